"""Messages compressed on their way out: rows of them, and an outbox that has more than it gave."""

from __future__ import annotations

import os
from typing import Any

import pytest

from netd.hub.batch import Batch
from netd.hub.outbox import OutboxRules
from netd.services.broker.encoders import FRAMES, LINES, SPOKEN
from netd.services.broker.packing import Least, Packed, Packing, Singly
from netd.wire.deflate import Compressor, Decompressor
from netd.wire.rows import Row
from netd.wire.websocket import BINARY, TEXT, Decoder, Limits, Messages, frame


class Room:
    """Flusher and owner of an outbox."""

    def __init__(self) -> None:
        self.marked = 0

    def settle(self):
        """Nothing is ever owed."""

    def mark(self, outbox: Any) -> None:
        self.marked += 1

    def pressure(self, over: bool) -> None:
        pass

    def overflow(self) -> None:
        pass


@pytest.mark.parametrize("inner", [FRAMES, SPOKEN["json"], SPOKEN["messagepack"]])
@pytest.mark.parametrize("sizes", [[1] * 20, [400, 5, 400], [130]])
@pytest.mark.parametrize("text", [True, False])
def test_a_row_says_what_each_of_its_messages_does(inner: Any, sizes: list[int], text: bool) -> None:
    payloads = [b"%d" % (number % 10) * size for number, size in enumerate(sizes)]
    batch = Batch(Row(b"public:a", str if text else bytes, None, payloads), "somebody", 0.0)
    pack = Packed(inner, Compressor(takeover=False), Least())

    def heard(data: bytes) -> list[Any]:
        decoder = Decoder(Limits(), masked=False, inflate=Decompressor(takeover=False))
        events = decoder.receive(data)
        assert decoder.error is None
        return [(event.text, payload) for event in events if isinstance(event, Messages) for payload in event.payloads]

    whole, count = batch.encoded(pack)
    assert count == len(sizes)
    alone = [heard(pack.encode(each.event()) or b"") for each in batch.publications()]
    assert heard(whole) == [one for each in alone for one in each]
    if max(sizes) > 128:
        assert len(whole) < len(inner.encode_many(batch))


@pytest.mark.parametrize("inner", [FRAMES, SPOKEN["json"], SPOKEN["messagepack"]])
def test_what_of_a_row_is_compressed_is_what_would_be_by_itself(inner: Any) -> None:
    pack = Packed(inner, Compressor(takeover=False), Least())
    for sizes in ([20] * 3, [100] * 3, [20, 100, 130, 20]):
        batch = Batch(Row(b"public:a", str, None, [b"a" * size for size in sizes]), "somebody", 0.0)
        assert pack.encode_many(batch) == b"".join([pack.encode(each.event()) or b"" for each in batch.publications()])


def test_compressed_messages_that_follow_each_other_are_a_row_too() -> None:
    pack = Compressor(takeover=False)
    said = [(TEXT, b"1"), (TEXT, b"2"), (BINARY, b"3"), (BINARY, b"4")]
    decoder = Decoder(Limits(), masked=False, inflate=Decompressor(takeover=False))
    data = b"".join(frame(opcode, pack.message(payload), compressed=True) for opcode, payload in said)
    assert decoder.receive(data + frame(BINARY, b"5")[:2]) == [
        Messages(True, [b"1", b"2"]),
        Messages(False, [b"3", b"4"]),
    ]


def test_a_row_as_server_sent_events() -> None:
    batch = Batch(Row(b"public:a", str, None, [b"1", b"2"]), None, 0.0)
    data, count = batch.encoded(LINES)
    assert count == 2
    assert bytes(data) == b"".join([LINES.encode(each.event()) or b"" for each in batch.publications()])


def test_an_outbox_whose_compressed_bytes_are_as_many_as_waited_is_asked_again() -> None:
    for more in range(1, 60):
        room = Room()
        outbox = Packing(OutboxRules(), Singly(room), room, Compressor(), Least())  # type: ignore[arg-type]
        outbox.push(frame(BINARY, os.urandom(60_000)))  # which compresses to more than it is
        outbox.push(frame(BINARY, bytes(more)))
        before, marked = outbox.size, room.marked
        taken = sum(map(len, outbox.take(60_000, 0.0)))
        assert outbox.size == more + 2
        assert room.marked - marked == (taken == before)
        if taken == before:
            return
    pytest.fail("none were as many")
