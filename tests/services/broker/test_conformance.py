"""What the Autobahn test suite asks of a server, asked of a broker over TCP: groups 1 to 7, 9, 10, and 12, 13.

Each test is a group: every case of it is tried, and those with another answer are listed. How many there were is
printed (`pytest -rP`). With NETD_CONFORMANCE=full messages are as many and as long as the suite has them (a thousand in
each case of groups 12 and 13: an hour, and a GiB of memory); the usual run has fewer and shorter ones. What is sent in
pieces may arrive in others, as TCP has it: where the decoder is cut does not matter, which tests/wire/test_websocket.py
asks of every place.

What is compressed is made and read by zlib here, and not by deflate.py, which would make its own mistakes twice.

Independent clients are asked besides: `websockets` and trio-websocket.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import re
import zlib
from operator import eq
from typing import TYPE_CHECKING

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

from netd.wire import deflate
from netd.wire.websocket import frame
from tests.services.broker import autobahn
from tests.services.broker.autobahn import Case, cut
from tests.services.broker.raw import GOODBYE, PATIENCE, broker, message
from tests.support.websocket import websocket
from tests.support.websocketpeer import raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.services.broker.raw import House

FULL = os.environ.get("NETD_CONFORMANCE") == "full"
# no pings: on a machine that is busy with something else, a case may take longer than a client may be silent
ROOMY = {
    "max_message": 16 * 2**20,
    "backpressure": 48 * 2**20,
    "connections_per_address": 1000,
    "ping_interval": 0,
}

pytestmark = pytest.mark.timeout(3600 if FULL else 120)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with broker(ROOMY) as house:
        yield house


def try_all(house: House, cases: Iterable[Case], how: str = "as it is sent") -> int:
    """Every case; fails with those that were answered otherwise."""
    wrong, counts = [], collections.Counter()
    for case in cases:
        counts[case.number.partition(".")[0]] += 1
        answer = house.wire("/app").talk(case.stream, chop=case.chop)
        code = answer.close
        if answer.before != case.expected or code != case.close or answer.error is not None:
            wrong.append(f"{case.number}: {str(answer)[:300]} instead of {str(case.expected)[:100]}, {case.close}")
    for group, count in counts.items():
        print(f"group {group}, {how}: {count} cases, {len(wrong)} wrong")
    assert wrong == []
    return counts.total()


@pytest.mark.parametrize(
    ("cases", "count"),
    [
        (autobahn.framing, 16),
        (autobahn.pings, 11),
        (autobahn.reserved_bits, 7),
        (autobahn.opcodes, 10),
        (autobahn.fragmentation, 20),
        (autobahn.utf8, 143),
        (autobahn.closing, 37),
    ],
    ids=["1", "2", "3", "4", "5", "6", "7"],
)
def test_a_group_as_it_is_sent_and_in_other_pieces(house, cases, count):
    assert try_all(house, cases()) == count
    small = [case for case in cases() if len(case.stream) < 2000]
    # nobody but a decoder sees where the pieces end: by octets, and where two frames meet in the middle of one
    again = itertools.chain.from_iterable(cut(case, (1, 7)) for case in small)
    try_all(house, again, "in other pieces")


def test_text_fails_before_its_frame_is_complete(house):
    for number, stream in autobahn.unfinished():
        for chop in (0, 1):
            answer = house.wire("/app").talk(stream, chop=chop)
            assert (answer.before, answer.close) == ([], 1007), number


def test_large_messages_whole_in_fragments_and_in_pieces(house):
    """Groups 9 and 10."""
    assert try_all(house, autobahn.large(1 if FULL else 8)) == 55


def test_what_follows_a_violation_is_not_served(house):
    stream = raw(0x81, b"before") + raw(0x83, b"") + raw(0x81, b"after") * 100 + GOODBYE
    answer = house.wire("/app").talk(stream)
    assert (answer.before, answer.close) == ([("text", b"before")], 1002)


@pytest.mark.parametrize("first", [0x81, 0x82, 0x89, 0x88])
def test_a_frame_without_a_mask_is_a_violation(house, first):
    answer = house.wire("/app").talk(raw(0x81, b"before") + raw(first, b"\x03\xe8", None))
    assert (answer.before, answer.close) == ([("text", b"before")], 1002)


def test_a_length_in_more_bytes_than_it_takes_and_one_that_is_too_long(house):
    for lie in (raw(0x81, b"abc", size=2), raw(0x81, b"abc", size=8), raw(0x82, b"", length=2**63, size=8)):
        assert house.wire("/app").talk(lie).close == 1002
    assert house.wire("/app").talk(raw(0x82, b"", length=2**24 + 1, size=8)).close == 1009


# --- 12, 13: compression ---------------------------------------------------------------------------------------------

SIZES = (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)
PIECED = (
    (8192, 256),
    (16384, 512),
    (32768, 1024),
    (65536, 2048),
    (131072, 4096),
    (131072, 8192),
    (131072, 16384),
    (131072, 32768),
)
OFFERS = {
    "13.1": "permessage-deflate",
    "13.2": "permessage-deflate; client_no_context_takeover",
    "13.3": "permessage-deflate; server_max_window_bits=9",
    "13.4": "permessage-deflate; client_max_window_bits; server_max_window_bits=15",
    "13.5": "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
    "13.6": "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=9",
    "13.7": "permessage-deflate; server_no_context_takeover; server_max_window_bits=9, "
    "permessage-deflate; client_no_context_takeover, permessage-deflate",
}
SETTINGS = {
    "takeover": {"server_takeover": True, "client_takeover": True},
    "none": {},
    "server": {"server_takeover": True, "deflate_window": 10},
    "client": {"client_takeover": True, "deflate_level": 1, "deflate_least": 0},
}
COUNT = 1000 if FULL else 2


def samples() -> dict[str, bytes]:
    """What compresses well, badly, and not at all; each 128 KiB."""
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnop", k=chance.randint(2, 9))) for _ in range(500)]
    return {
        "json": b"".join(b'{"n":%d,"name":"%b"},' % (n, words[n % 500]) for n in range(7000))[:131072],
        "text": b" ".join(chance.choices(words, k=30000))[:131072],
        "utf8": "κόσμε и мир ".encode() * 8000,
        "same": b"*" * 131072,
        "random": chance.randbytes(131072),
    }


class Inflated:
    """RFC 7692 section 7.2.2 and no more, in place of deflate.Decompressor."""

    def __init__(self, bits: int, *, fresh: bool) -> None:
        self.bits, self.fresh = bits, fresh
        self.inflate = zlib.decompressobj(-bits)

    def message(self, payload: bytes, most: int) -> bytes:
        if self.fresh:
            self.inflate = zlib.decompressobj(-self.bits)
        return self.inflate.decompress(payload + b"\x00\x00\xff\xff")


def agreed_of(wire, offer: str):
    """What the client may do, from the answer: as an independent reading of RFC 7692 section 7."""
    assert re.fullmatch(r"permessage-deflate(; [a-z_]+(=\d+)?)*", wire.extensions), wire.extensions
    parameters = dict(each.strip().partition("=")[::2] for each in wire.extensions.split(";")[1:])
    assert all(name in offer for name in parameters if name.startswith("client_max")), "never offered"
    return parameters


def conversation(house: House, offer: str, payloads: list[bytes], opcode: int, piece: int = 0):
    """Send these, compressed as agreed on; what comes back."""
    wire = house.wire("/app", f"Sec-WebSocket-Extensions: {offer}")
    parameters = agreed_of(wire, offer)
    bits = int(parameters.get("client_max_window_bits") or 15)
    fresh = "client_no_context_takeover" in parameters
    packer = zlib.compressobj(wbits=-bits)
    unpack = Inflated(
        int(parameters.get("server_max_window_bits") or 15), fresh="server_no_context_takeover" in parameters
    )
    stream = bytearray()
    for payload in payloads:
        if fresh:
            packer = zlib.compressobj(wbits=-bits)
        packed = (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]
        if piece:
            parts = autobahn.fragments(opcode, packed, piece)
            stream += b"".join(
                message(first | (0x40 if not index else 0), part) for index, (first, part) in enumerate(parts)
            )
        else:
            stream += frame(opcode, packed, key=b"\x11\x22\x00\xff", compressed=True)
    return wire.talk(bytes(stream) + GOODBYE, inflate=unpack)


@pytest.fixture(scope="module")
def compressible() -> dict[str, bytes]:
    return samples()


@pytest.mark.parametrize("setting", SETTINGS)
def test_compressed_messages(setting, compressible):
    """Group 13 with each of our settings; group 12 with and without context takeover."""
    wrong, counts = [], collections.Counter()
    with broker(ROOMY | {"deflate": True} | SETTINGS[setting]) as house:

        def check(group: str, offer: str, whole: bytes, opcode: int) -> None:
            for number, (size, piece) in enumerate([*((size, 0) for size in SIZES), *PIECED], start=1):
                starts = [at * 37 % (len(whole) - size + 1) for at in range(COUNT)]
                payloads = [whole[at : at + size] for at in starts]
                answer = conversation(house, offer, payloads, opcode, piece)
                counts[group.partition(".")[0]] += 1
                kind = "text" if opcode == 1 else "binary"
                expected = [(kind, each) for each in payloads]
                if answer.before != expected or answer.close != 1000 or answer.error:
                    same = sum(itertools.takewhile(bool, map(eq, answer.before, expected)))
                    rest = str(answer.before[same : same + 1])[:80]
                    wrong.append(f"{group}.{number} {offer}: {same} as they were, then {rest}, {answer.close}")

        if setting in ("takeover", "none") or FULL:
            for group, (name, whole) in enumerate(compressible.items(), start=1):
                # cut anywhere, it may be no text
                check(f"12.{group}", OFFERS["13.1"], whole, 2 if name in ("random", "utf8") else 1)
        for group, offer in OFFERS.items():
            check(group, offer, compressible["json"], 1)
    for group, count in counts.items():
        print(f"group {group}, {setting}: {count} cases, {len(wrong)} wrong")
    assert wrong == []
    assert counts["13"] == 126
    assert counts["12"] in (0, 90)


def test_compressed_frames_where_they_may_not_be(house):
    """RSV1 without an agreement, on a control frame, and on a continuation."""
    packed = deflate.Compressor().message(b"hello")
    wire = house.wire("/app", "Sec-WebSocket-Extensions: permessage-deflate")
    assert wire.extensions == ""  # not configured
    assert wire.talk(raw(0xC1, packed)).close == 1002
    with broker(ROOMY | {"deflate": True}) as packing:
        for stream in (raw(0xC9, packed), raw(0xC8, b""), raw(0x41, packed[:3]) + raw(0xC0, packed[3:])):
            assert packing.wire("/app", "Sec-WebSocket-Extensions: permessage-deflate").talk(stream).close == 1002
        spoilt = packing.wire("/app", "Sec-WebSocket-Extensions: permessage-deflate")
        assert spoilt.talk(raw(0xC1, b"\xff\xff\xff\xff")).close == 1007


# --- other people's clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deflated", [False, True])
def test_websockets_is_echoed(deflated):
    factory = [ClientPerMessageDeflateFactory(client_max_window_bits=True)] if deflated else None
    with broker(ROOMY | {"deflate": deflated, "server_takeover": True, "client_takeover": True}) as house:
        url = f"ws://{house.address}/app"
        with connect(url, extensions=factory, compression=None, max_size=2**25, open_timeout=PATIENCE) as client:
            for message in ("", "κόσμε" * 999, b"", b"\xff" * 70000, "x" * 2**20, b"\0" * (2**24)):
                client.send(message)
                assert client.recv(PATIENCE) == message
            client.send(["in ", "three ", "parts"])
            assert client.recv(PATIENCE) == "in three parts"
            pong = client.ping()
            assert pong.wait(PATIENCE)
        assert client.close_code == 1000


async def test_trio_websocket_is_echoed():
    import netd

    async with netd.open({"broker": {"listen": [{"address": "127.0.0.1:0"}]}}) as daemon:
        async with websocket(f"ws://{daemon.addresses('broker')[0]}/app") as client:
            for message in ("", "κόσμε" * 999, b"", b"\xff" * 70000, "x" * 2**20):
                await client.send_message(message)
                assert await client.get_message() == message
            await client.ping(b"there?")
        assert client.closed.code == 1000
