from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire.dsack import parse_duplicate
from tests.support import packets

PAIRS = pytest.mark.parametrize(
    ("peer", "us"), [("198.51.100.7", "192.0.2.1"), ("2001:db8:ffff::7", "2001:db8::1")], ids=["v4", "v6"]
)


@PAIRS
@pytest.mark.parametrize("before", [b"", packets.timestamps(1, 2)], ids=["plain", "timestamps"])
@pytest.mark.parametrize("payload", [b"", b"data rides along"])
def test_the_first_block_is_what_was_seen_twice(peer, us, before, payload):
    options = before + packets.sack((1005, 1006), (9000, 9500))
    segment = packets.tcp(50000, 8080, ack=2000, options=options, payload=payload)
    found = parse_duplicate(packets.ip(peer, us, segment, ttl=52))
    assert found is not None
    assert (found.source, found.source_port, found.destination_port) == (packets.packed(peer), 50000, 8080)
    assert (found.left, found.right, found.width, found.reply_ttl) == (1005, 1006, 1, 52)


def test_a_block_may_span_the_end_of_the_sequence_space():
    segment = packets.tcp(1, 2, options=packets.sack((2**32 - 2, 3)))
    found = parse_duplicate(packets.ip("192.0.2.1", "192.0.2.2", segment))
    assert found is not None
    assert found.width == 5


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        packets.ip("192.0.2.1", "192.0.2.2", packets.tcp(1, 2)),
        packets.ip("192.0.2.1", "192.0.2.2", packets.tcp(1, 2, options=packets.timestamps(1, 2))),
        packets.ip("192.0.2.1", "192.0.2.2", packets.tcp(1, 2, options=b"\x05\x02")),  # SACK without a block
        packets.ip("192.0.2.1", "192.0.2.2", packets.tcp(1, 2, options=b"\x05\x0a\0\0"))[:-2],
        packets.ip("192.0.2.1", "192.0.2.2", packets.tcp(1, 2, options=packets.sack((1, 2))), protocol=17),
    ],
)
def test_without_a_block_there_is_none(packet):
    assert parse_duplicate(packet) is None


@PAIRS
@given(data=st.binary(max_size=120), cut=st.integers(0, 120))
def test_any_bytes_give_a_duplicate_or_none(peer, us, data, cut):
    whole = packets.ip(peer, us, packets.tcp(50000, 8080, options=packets.sack((5, 6))))
    for candidate in (data, whole[:cut], whole[:cut] + data):
        found = parse_duplicate(candidate)
        assert found is None or 0 <= found.width < 2**32
