from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire.icmp import IcmpError, MplsLabel, parse_error4, parse_error6
from tests.support import packets

US, PEER, ROUTER = "192.0.2.1", "198.51.100.7", "203.0.113.9"
US6, PEER6, ROUTER6 = "2001:db8::1", "2001:db8:ffff::7", "2001:db8:aaaa::9"
SEGMENT = packets.tcp(8080, 50000, seq=0xCAFEBABE, payload=b"x")
QUOTE = packets.ip(US, PEER, SEGMENT, ttl=1, tos=0x10)
QUOTE6 = packets.ip(US6, PEER6, SEGMENT, ttl=1, tos=0x10)


def six(message: bytes, hop_limit: int | None = 55) -> IcmpError | None:
    return parse_error6(message, packets.packed(ROUTER6), hop_limit)


def test_time_exceeded():
    error = parse_error4(packets.icmp4(ROUTER, US, QUOTE))
    assert error == IcmpError(
        expired=True,
        code=0,
        source=packets.packed(ROUTER),
        reply_ttl=60,
        quoted_source=packets.packed(US),
        quoted_destination=packets.packed(PEER),
        quoted_tos=0x10,
        source_port=8080,
        destination_port=50000,
        seq=0xCAFEBABE,
    )
    error = six(packets.icmp6(QUOTE6))
    assert error is not None
    assert (error.expired, error.seq, error.quoted_tos, error.reply_ttl) == (True, 0xCAFEBABE, 0x10, 55)
    assert error.quoted_destination == packets.packed(PEER6)


def test_eight_bytes_of_tcp_suffice():
    """RFC 792 asks no more of a router."""
    assert parse_error4(packets.icmp4(ROUTER, US, QUOTE[:28])) is not None
    assert parse_error4(packets.icmp4(ROUTER, US, QUOTE[:27])) is None
    assert six(packets.icmp6(QUOTE6[:48])) is not None
    assert six(packets.icmp6(QUOTE6[:47])) is None


def test_a_quote_with_options():
    quote = packets.ip(US, PEER, SEGMENT, options=b"\x01" * 8)
    error = parse_error4(packets.icmp4(ROUTER, US, quote))
    assert error is not None
    assert error.seq == 0xCAFEBABE


def test_an_error_with_ip_options_of_its_own():
    message = packets.icmp4(ROUTER, US, QUOTE)[20:]
    assert parse_error4(packets.ip(ROUTER, US, message, protocol=1, options=b"\x01" * 12)) is not None


@pytest.mark.parametrize("code", [0, 1, 3, 9, 13])
def test_unreachables_carry_their_code(code):
    error = parse_error4(packets.icmp4(ROUTER, US, QUOTE, kind=3, code=code))
    assert error is not None
    assert (error.expired, error.code) == (False, code)
    error = six(packets.icmp6(QUOTE6, kind=1, code=code))
    assert error is not None
    assert (error.expired, error.code) == (False, code)


def test_the_next_hop_mtu():
    error = parse_error4(packets.icmp4(ROUTER, US, QUOTE, kind=3, code=4, mtu=1400))
    assert error is not None
    assert error.next_mtu == 1400
    error = six(packets.icmp6(QUOTE6, kind=2, rest=1280))
    assert error is not None
    assert error.next_mtu == 1280
    error = parse_error4(packets.icmp4(ROUTER, US, QUOTE, kind=3, code=1, mtu=1400))
    assert error is not None
    assert error.next_mtu is None


@pytest.mark.parametrize("stated", [True, False], ids=["rfc4884", "legacy"])
def test_label_stacks(stated):
    labels = [(16001, 5, 0, 1), (1048575, 0, 1, 254)]
    expected = (MplsLabel(16001, 5, False, 1), MplsLabel(1048575, 0, True, 254))
    quote = QUOTE.ljust(128, b"\0")
    error = parse_error4(packets.icmp4(ROUTER, US, quote, extensions=packets.mpls(*labels), stated=32 if stated else 0))
    assert error is not None
    assert error.mpls == expected
    error = six(packets.icmp6(QUOTE6.ljust(128, b"\0"), extensions=packets.mpls(*labels), stated=16 if stated else 0))
    assert error is not None
    assert error.mpls == expected


def test_other_extensions_are_passed_over_and_broken_ones_ignored():
    stack = packets.mpls((7, 0, 1, 64))
    interface = struct.pack("!HBB4s", 8, 2, 0, b"eth0")
    both = b"\x20\0\0\0" + interface + stack[4:]
    quote = QUOTE.ljust(128, b"\0")

    def labels(extensions: bytes) -> tuple:
        error = parse_error4(packets.icmp4(ROUTER, US, quote, extensions=extensions, stated=32))
        assert error is not None
        return error.mpls

    assert labels(both) == (MplsLabel(7, 0, True, 64),)
    assert labels(b"\x10" + stack[1:]) == ()  # another version
    assert labels(stack[:2] + b"\xff\xff" + stack[4:]) == ()  # a wrong checksum
    assert labels(b"\x20\0\0\0\xff\xff\x01\x01\0\0\0\0") == ()  # longer than what is there
    assert labels(b"\x20\0\0\0\0\0\x01\x01\0\0\0\0") == ()  # would never end
    assert len(labels(b"\x20\0\0\0" + struct.pack("!HBB", 4 + 400, 1, 1) + bytes(400))) == 16


@pytest.mark.parametrize(
    "packet",
    [
        packets.icmp4(ROUTER, US, QUOTE, kind=0),
        packets.icmp4(ROUTER, US, QUOTE, kind=11, code=1),  # reassembly
        packets.icmp4(ROUTER, US, packets.ip(US, PEER, SEGMENT, protocol=17)),
        packets.icmp4(ROUTER, US, QUOTE6),
        packets.icmp4(ROUTER, US, b""),
        b"",
    ],
)
def test_what_is_no_error_about_tcp_is_none(packet):
    assert parse_error4(packet) is None


@given(st.binary(max_size=300))
def test_any_bytes_give_an_error_or_none(data):
    for parsed in (parse_error4(data), six(data), parse_error6(data, data[:16], None)):
        assert parsed is None or 0 <= parsed.source_port < 65536


@given(st.integers(0, 200), st.integers(0, 255), st.binary(max_size=60))
def test_a_true_error_with_bytes_changed_or_cut(at, value, tail):
    whole = packets.icmp4(ROUTER, US, QUOTE.ljust(128, b"\0"), extensions=packets.mpls((1, 2, 1, 3)), stated=32)
    changed = bytearray(whole)
    changed[at % len(whole)] = value
    for candidate in (bytes(changed), bytes(changed[:at]), bytes(changed[:at]) + tail):
        error = parse_error4(candidate)
        assert error is None or len(error.mpls) <= 16
