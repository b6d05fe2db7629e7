from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire.ip import (
    OPTION_SACK,
    OPTION_TIMESTAMP,
    distance,
    fold,
    ones_sum,
    pack_address,
    parse_ip,
    show_address,
    tcp_option,
)
from tests.support import packets


def test_both_versions():
    four = parse_ip(packets.ip("192.0.2.1", "198.51.100.7", b"", ttl=9, tos=0xB8, options=b"\x01" * 4))
    assert four == (False, 24, 0xB8, 0, 9, 6, bytes((192, 0, 2, 1)), bytes((198, 51, 100, 7)))
    six = parse_ip(packets.ip("2001:db8::1", "2001:db8::2", b"", ttl=9, tos=0xB8, flow=0xABCDE))
    assert six is not None
    assert (six.v6, six.length, six.tos, six.flow_label, six.ttl, six.protocol) == (True, 40, 0xB8, 0xABCDE, 9, 6)


@given(st.binary(max_size=80), st.integers(-4, 90))
def test_any_bytes_give_a_header_or_none(data, offset):
    header = parse_ip(data, offset)
    assert header is None or len(header.source) == (16 if header.v6 else 4)


@given(st.binary(min_size=20, max_size=60), st.integers(0, 255))
def test_any_options_give_an_offset_or_none(header, kind):
    at = tcp_option(header, kind)
    assert at is None or (header[at] == kind and at + header[at + 1] <= len(header))


def test_options_are_found_behind_others():
    header = packets.tcp(1, 2, options=packets.timestamps(3, 4) + packets.sack((5, 6)))
    assert tcp_option(header, OPTION_TIMESTAMP) == 22
    assert tcp_option(header, OPTION_SACK) == 34
    assert tcp_option(header, 77) is None


@given(st.binary(max_size=100))
def test_the_sum_is_the_rfcs(data):
    assert 0xFFFF - fold(ones_sum(data)) == packets.checksum(data)


def test_a_mapped_address_is_the_ipv4_one():
    assert pack_address("::ffff:192.0.2.1") == pack_address("192.0.2.1")
    assert pack_address("fe80::1%eth0") == pack_address("fe80::1")
    assert show_address(pack_address("2001:db8::1")) == "2001:db8::1"
    with pytest.raises(ValueError, match="appear"):
        pack_address("example")


@pytest.mark.parametrize(
    ("ttl", "away"),
    [(64, 1), (60, 5), (128, 1), (115, 14), (255, 1), (250, 6), (32, 1), (1, 32), (0, None), (256, None)],
)
def test_the_distance_is_from_the_next_initial_ttl(ttl, away):
    assert distance(ttl) == away
