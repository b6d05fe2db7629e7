"""Framing against a decoder too simple to be wrong, every way to cut the bytes, and peers that lie about lengths."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire.framing import FrameDecoder, FrameLimits, NoFraming, frame, frames

MANY = [b"x" * 60] * 64


def simple(stream: bytes) -> list[bytes]:
    """What the stream says, one frame after the other."""
    payloads, at = [], 0
    while at + 4 <= len(stream):
        (size,) = struct.unpack_from(">I", stream, at)
        if at + 4 + size > len(stream):
            break
        payloads.append(stream[at + 4 : at + 4 + size])
        at += 4 + size
    return payloads


def decoder(max_frame: int = 1 << 20) -> FrameDecoder:
    return FrameDecoder(FrameLimits(max_frame))


def chunks_of(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


STREAMS = {
    "one": [b"hello"],
    "empty frames": [b"", b"", b"", b"", b"", b""],
    "equal": [bytes([i]) * 7 for i in range(20)],
    "more than a run": [b"%04d" % i for i in range(200)],
    "mixed": [b"", b"a", b"bc", b"def" * 100, b"", b"g"],
    "runs": [b"a" * (1 + i // 5) for i in range(40)],
    "pairs": [b"a" * (i // 2 % 2) for i in range(40)],
    "lengths inside of payloads": [b"\0\0\0\x04", b"\0\0\0\x00", b"\0\0\0\x04", b"\0\0\0\x08\0\0\0\x04"] * 3,
    "differ in the second byte": [b"a" * 0x101, b"b" * 0x101, b"c" * 0x001, b"d" * 0x101, b"e" * 0x101] * 2,
}


@pytest.mark.parametrize("payloads", STREAMS.values(), ids=STREAMS)
def test_payloads_are_the_same_however_the_stream_is_cut(payloads):
    stream = frames(payloads)
    assert stream == b"".join(map(frame, payloads))
    assert simple(stream) == payloads
    for size in [*range(1, 40), len(stream)]:
        receiving, relaying = decoder(), decoder()
        relayed, count = [], 0
        got = []
        for chunk in chunks_of(stream, size):
            got += receiving.receive(chunk)
            more, frames_in_it = relaying.relay(chunk)
            relayed += more
            count += frames_in_it
            assert receiving.buffered == relaying.buffered
        assert got == payloads, f"in chunks of {size}"
        assert (b"".join(relayed), count) == (stream, len(payloads)), f"in chunks of {size}"
        assert (receiving.buffered, receiving.error) == (0, None)


@given(
    st.lists(st.tuples(st.integers(0, 5) | st.integers(250, 260), st.integers(1, 70)), max_size=8),
    st.lists(st.integers(1, 2000), max_size=20),
    st.binary(max_size=30),
)
def test_runs_of_any_lengths_cut_anywhere(runs, cuts, tail):
    stream = b"".join(frame(bytes([i % 3]) * size) for size, count in runs for i in range(count)) + tail
    receiving, relaying = decoder(1 << 32), decoder(1 << 32)
    got, relayed, counted, at = [], [], 0, 0
    for cut in [*cuts, len(stream)]:
        got += receiving.receive(stream[at : at + cut])
        more, count = relaying.relay(stream[at : at + cut])
        relayed += more
        counted += count
        at += cut
    payloads = simple(stream)
    assert got == payloads
    assert counted == len(payloads)
    assert b"".join(relayed) == frames(payloads)
    assert b"".join(relayed) + relaying.rest() == frames(payloads) + receiving.rest() == stream


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_any_bytes_obey_the_limit_and_agree_with_relaying(chunks):
    receiving, relaying = decoder(64), decoder(64)
    for chunk in chunks:
        payloads = receiving.receive(chunk)
        assert all(len(payload) <= 64 for payload in payloads)
        relayed, count = relaying.relay(chunk)
        assert b"".join(relayed) == frames(payloads)
        assert all(simple(part) and frames(simple(part)) == part for part in relayed)
        assert count == len(payloads)
        assert receiving.buffered == relaying.buffered <= 64 + 4
        assert (receiving.error is None) == (relaying.error is None)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_the_limit_is_inclusive():
    for size in range(1, 15):
        limited = decoder(10)
        got = [payload for chunk in chunks_of(frame(b"x" * 10), size) for payload in limited.receive(chunk)]
        assert got == [b"x" * 10]
        assert limited.error is None


def test_a_length_that_differs_in_its_first_byte_only_is_no_part_of_a_run():
    stream = frames([b"aaaaa"] * 5) + b"\x01\0\0\5bbbbb" + frames([b"ccccc"] * 5)
    for method, before in (("receive", [b"aaaaa"] * 5), ("relay", ([stream[:45]], 5))):
        limited = decoder()
        assert getattr(limited, method)(stream) == before
        assert limited.error is not None


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_an_oversize_frame_leaves_nothing_out_of_step(size):
    """What came before it counts; nothing after it does, also when it looks like frames."""
    stream = frames([b"before", b"", b"x" * 11, b"after", b"after"])
    for method in ("receive", "relay"):
        limited = decoder(10)
        got = [getattr(limited, method)(chunk) for chunk in chunks_of(stream, size)]
        if method == "relay":
            assert b"".join(part for chunks, _ in got for part in chunks) == frames([b"before", b""])
            assert sum(count for _, count in got) == 2
        else:
            assert [payload for payloads in got for payload in payloads] == [b"before", b""]
        assert limited.error is not None
        assert limited.error.close == 1009
        assert str(limited.error) == "cannot take a frame of 11 bytes: max_frame is 10"
        assert limited.buffered == 0
        assert limited.receive(frame(b"later")) == []
        assert limited.relay(frame(b"later")) == ([], 0)
        assert limited.rest() == b""


def test_a_changed_limit_counts_from_the_next_length():
    limits = FrameLimits(10)
    live = FrameDecoder(limits)
    assert live.receive(frame(b"x" * 10)[:6]) == []
    limits.max_frame = 5
    assert live.receive(frame(b"x" * 10)[6:]) == [b"x" * 10]
    assert live.receive(frame(b"x" * 6)) == []
    assert live.error is not None


def test_memory_grows_with_what_arrives_and_not_with_what_a_length_says():
    tracemalloc.start()
    try:
        lying = FrameDecoder(FrameLimits())
        lying.receive(struct.pack(">I", 4 << 20) + b"x" * 100)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 1400])
def test_a_dribble_is_held_in_little_more_than_its_bytes(size):
    dribbled = FrameDecoder(FrameLimits())
    payload = bytes(range(256)) * 2000
    *first, last = chunks_of(frame(payload), size)
    tracemalloc.start()
    try:
        for chunk in first:
            assert dribbled.receive(bytes(bytearray(chunk))) == []
        assert tracemalloc.get_traced_memory()[0] < 1.4 * len(payload)
    finally:
        tracemalloc.stop()
    assert dribbled.buffered == len(payload) + 4 - len(last)
    assert dribbled.receive(last) == [payload]
    assert dribbled.buffered == 0


def test_an_idle_decoder_is_small():
    limits = FrameLimits()
    used = decoder()
    used.receive(frame(b"x")[:3])
    used.receive(frame(b"x")[3:])
    tracemalloc.start()
    try:
        idle = [FrameDecoder(limits) for _ in range(1000)]
        assert tracemalloc.get_traced_memory()[0] / len(idle) < 120
    finally:
        tracemalloc.stop()
    assert used._pieces is None


# --- relaying --------------------------------------------------------------------------------------------------------


def test_relaying_copies_nothing_that_it_need_not():
    stream = frames(MANY)
    chunks, count = decoder().relay(stream)
    assert count == 64
    assert chunks[0] is stream


def test_the_pieces_of_a_frame_are_relayed_as_one_chunk():
    """Whoever lets chunks wait puts others between them, and drops single ones."""
    big, stream = frame(bytes(65536)), frames(MANY)
    first, second = big[:30000], big[30000:]
    relaying = decoder()
    assert relaying.relay(first) == ([], 0)
    assert relaying.relay(second) == ([big], 1)
    relaying.relay(first)
    assert relaying.relay(second + stream + first) == ([big + stream], 65)
    assert relaying.relay(second) == ([big], 1)


def test_what_is_relayed_is_bytes_also_after_a_dribble():
    relaying = decoder()
    for chunk in chunks_of(frame(b"hello"), 2)[:-1]:
        relaying.relay(chunk)
    chunks, count = relaying.relay(b"o")
    assert {type(chunk) for chunk in chunks} == {bytes}
    assert (b"".join(chunks), count) == (frame(b"hello"), 1)


def test_another_decoder_goes_on_with_the_rest():
    before = decoder()
    stream = frames([b"handshake", b"first", b"second"])
    assert before.receive(stream[:20]) == [b"handshake"]
    after = decoder()
    assert after.receive(before.rest() + stream[20:]) == [b"first", b"second"]
    assert (before.buffered, before.rest()) == (0, b"")
    assert before.receive(frame(b"goes on")) == [b"goes on"]


# --- no lengths, and writing -----------------------------------------------------------------------------------------


def test_no_framing_takes_chunks_as_they_come():
    raw = NoFraming(FrameLimits(10))
    assert raw.receive(b"") == []
    assert raw.relay(b"") == ([], 0)
    assert raw.receive(b"hello") == [b"hello"]
    assert raw.relay(b"hello") == ([b"hello"], 1)
    assert raw.receive(b"0123456789abc") == [b"0123456789", b"abc"]
    assert raw.relay(b"0123456789abc") == ([b"0123456789abc"], 2)
    assert (raw.buffered, raw.error, raw.rest()) == (0, None, b"")


def test_frames_of_nothing_and_of_tuples():
    assert frames([]) == b""
    assert frames((b"a", b"bc")) == b"\0\0\0\1a\0\0\0\2bc"
    assert frames([b""] * 3) == bytes(12)


def test_what_32_bits_cannot_count_is_our_own_mistake():
    class Endless(bytes):
        def __len__(self):
            return 1 << 32

    for attempt in (lambda: frame(Endless()), lambda: frames([Endless()]), lambda: frames([Endless(), b"x"])):
        with pytest.raises(ProtocolError, match="cannot frame 4294967296 bytes") as caught:
            attempt()
        assert caught.value.origin == "local"
