"""The PROXY protocol: headers whole, torn, hostile; whom to believe."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.net.proxy import MAX_TLVS, SIGNATURE, Proxied, ProxyHeader, read_header, trusted


def header(family: int, body: bytes, *, command: int = 1, length: int | None = None) -> bytes:
    return (
        SIGNATURE + struct.pack("!BBH", 0x20 | command, family << 4 | 1, len(body) if length is None else length) + body
    )


def inet(source: str = "192.0.2.7", port: int = 50312, *, tlvs: bytes = b"") -> bytes:
    packed = [
        ipaddress.ip_address(text).packed for text in (source, "2001:db8::1" if ":" in source else "198.51.100.1")
    ]
    family = 1 if len(packed[0]) == 4 else 2
    return header(family, b"".join(packed) + struct.pack("!HH", port, 443) + tlvs)


UNIX = header(3, b"/run/client".ljust(108, b"\0") + b"/run/proxy".ljust(108, b"\0"))

HEADERS = [
    (inet(), Proxied(("192.0.2.7", 50312), ("198.51.100.1", 443))),
    (inet("2001:db8::7"), Proxied(("2001:db8::7", 50312), ("2001:db8::1", 443))),
    (inet("::ffff:192.0.2.7"), Proxied(("192.0.2.7", 50312), ("2001:db8::1", 443))),
    (inet(tlvs=b"\x05\x00\x04uniq"), Proxied(("192.0.2.7", 50312), ("198.51.100.1", 443))),
    (inet(tlvs=b"x" * MAX_TLVS), Proxied(("192.0.2.7", 50312), ("198.51.100.1", 443))),
    (UNIX, Proxied(("/run/client", 0), ("/run/proxy", 0))),
    (header(0, b""), Proxied(None, None)),  # UNSPEC
    (header(9, b"whatever"), Proxied(None, None)),
    (header(0, b"", command=0), Proxied(None, None)),  # LOCAL: a health check
    (header(1, b"\0" * 12, command=0), Proxied(None, None)),
]


@pytest.mark.parametrize(("data", "says"), HEADERS)
def test_what_a_header_says_and_what_follows_it(data, says):
    assert ProxyHeader().receive(data + b"GET /") == (says, b"GET /")


@given(st.sampled_from(HEADERS), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_a_header_may_come_torn(case, cuts):
    data, says = case
    parser, at, number = ProxyHeader(), 0, 0
    while True:
        piece = data[at : at + cuts[number % len(cuts)]]
        at, number = at + len(piece), number + 1
        found = parser.receive(piece)
        if at >= len(data):
            assert found == (says, b"")
            return
        assert found == (None, b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n", "version 1, and version 2 is needed"),
        (b"GET / HTTP/1.1\r\n", "the connection begins with b'GET / HTTP/1"),
        (b"\x16\x03\x01", "cannot find a PROXY header"),
        (SIGNATURE[:11] + b"x", "cannot find a PROXY header"),
        (SIGNATURE + b"\x11\x11\x00\x0c" + b"\0" * 12, "version 1 is not 2"),
        (SIGNATURE + b"\x22\x11\x00\x0c" + b"\0" * 12, "command 2"),
        (header(1, b"\0" * 11), "11 bytes are too few for its addresses \\(12\\)"),
        (header(2, b"\0" * 35), "35 bytes are too few"),
        (header(3, b"\0" * 215), "215 bytes are too few"),
        (header(1, b"", length=0xFFFF), "65535 bytes are more than 4312"),
    ],
)
def test_what_is_refused(data, why):
    with pytest.raises(ProtocolError, match=why):
        ProxyHeader().receive(data)


def test_what_cannot_become_a_header_is_refused_at_its_first_byte():
    with pytest.raises(ProtocolError, match="cannot find a PROXY header"):
        ProxyHeader().receive(b"G")


@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_for(noise):
    for data in (noise, SIGNATURE + noise):
        parser = ProxyHeader()
        try:
            found, _ = parser.receive(data)
        except ProtocolError:
            continue
        assert found is not None or parser.missing > 0


@pytest.mark.parametrize(
    ("networks", "address", "believed"),
    [
        ([], "127.0.0.1", False),
        ([], "", False),
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "2001:db8::1", False),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["10.0.0.0/8"], "", True),  # a Unix socket's peer
        (["10.0.0.0/8", "192.0.2.7/32"], "192.0.2.7", True),
    ],
)
def test_whom_to_believe(networks, address, believed):
    assert trusted([ipaddress.ip_network(network) for network in networks], address) is believed


@pytest.mark.parametrize(("data", "says"), HEADERS)
async def test_exactly_the_header_is_read_from_a_stream(data, says):
    left, right = socket.socketpair()
    right.setblocking(False)
    with left:
        left.sendall(data + b"what follows")
        async with trio.SocketStream(trio.socket.from_stdlib_socket(right)) as stream:
            assert await read_header(stream) == says
            assert await stream.receive_some(100) == b"what follows"


@pytest.mark.parametrize("sent", [b"", inet()[:20], SIGNATURE])
async def test_a_connection_that_ends_within_the_header(sent):
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(sent) if sent else None
    await theirs.aclose()
    with pytest.raises(ProtocolError, match="the connection ended within it"):
        await read_header(ours)


async def test_a_header_that_dribbles_in():
    ours, theirs = trio.testing.memory_stream_pair()
    data = inet(tlvs=os.urandom(200))

    async def dribble() -> None:
        for byte in data:
            await theirs.send_all(bytes([byte]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        assert (await read_header(ours)).source == ("192.0.2.7", 50312)
