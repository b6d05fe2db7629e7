from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire.ip import pack_address
from netd.wire.probes import SPAN, ProbeTemplate, Segment, parse_looped, syn_distance
from tests.support import packets

PAIRS = pytest.mark.parametrize(
    ("ours", "theirs"), [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:ffff::7")], ids=["v4", "v6"]
)
ETHERNET = bytes(12) + b"\x08\x00"


def looped(ours: str, theirs: str, payload: bytes, *, seq=1000, options=None, flags=0x18, tos=0, flow=0) -> bytes:
    options = packets.timestamps(111, 222) if options is None else options
    segment = packets.tcp(8080, 50000, seq=seq, ack=77, flags=flags, options=options, payload=payload)
    return packets.ip(ours, theirs, segment, tos=tos, flow=flow)


def parse(data: bytes, ours: str, theirs: str) -> Segment | None:
    return parse_looped(data, pack_address(ours), pack_address(theirs), 8080, 50000)


@PAIRS
@pytest.mark.parametrize("link", [b"", ETHERNET, bytes(62), b"\x45\x00"])
def test_the_segment_is_found_behind_any_link_header(ours, theirs, link):
    payload = bytes(range(127))
    segment = parse(link + looped(ours, theirs, payload, tos=0x2A, flow=0x12345), ours, theirs)
    assert segment is not None
    assert (segment.seq, segment.payload, segment.tos) == (1000, payload, 0x2A)
    assert segment.flow_label == (0x12345 if ":" in ours else 0)


@PAIRS
def test_what_the_link_padded_is_not_payload(ours, theirs):
    segment = parse(looped(ours, theirs, b"abc") + bytes(9), ours, theirs)
    assert segment is not None
    assert segment.payload == b"abc"


@PAIRS
def test_other_connections_are_not_ours(ours, theirs):
    data = looped(ours, theirs, bytes(127))
    assert parse_looped(data, pack_address(ours), pack_address(theirs), 8080, 50001) is None
    assert parse_looped(data, pack_address(theirs), pack_address(ours), 8080, 50000) is None
    assert parse(packets.ip(ours, theirs, bytes(40), protocol=17), ours, theirs) is None


@PAIRS
@given(cut=st.integers(0, 80), data=st.binary(max_size=200))
def test_cut_short_or_random_it_is_none_or_a_segment(ours, theirs, cut, data):
    whole = looped(ours, theirs, bytes(40))
    for candidate in (whole[:cut], data, whole[:cut] + data):
        segment = parse(candidate, ours, theirs)
        assert segment is None or len(segment.tcp) >= 20


@PAIRS
@given(
    seq=st.integers(0, 2**32 - 1),
    size=st.integers(32, 300),
    ttl=st.integers(1, 32),
    attempt=st.integers(0, 2),
    plain=st.booleans(),
    flow=st.integers(0, 0xFFFFF),
    tos=st.integers(0, 255),
    tsval=st.none() | st.integers(0, 2**33),
)
def test_a_probe_is_one_genuine_byte_with_its_own_ttl(ours, theirs, seq, size, ttl, attempt, plain, flow, tos, tsval):
    payload = bytes(number * 7 & 0xFF for number in range(size))
    options = b"" if plain else packets.timestamps(111, 222)
    segment = parse(looped(ours, theirs, payload, seq=seq, options=options, tos=tos, flow=flow), ours, theirs)
    assert segment is not None
    template = ProbeTemplate(segment, 65530)
    attempt = min(attempt, template.attempts - 1)
    if tsval is not None:
        template.refresh(tsval)
    packet = template.build(ttl, attempt)

    header, length = (packet[:40], 40) if ":" in ours else (packet[:20], 20)
    assert len(packet) == length + 20 + len(options) + 1
    if ":" in ours:
        word, total, protocol, hops = struct.unpack_from("!IHBB", header)
        assert (word & 0xFFFFF, total, protocol, hops) == (flow, 21 + len(options), 6, ttl)
        assert word >> 20 & 0xFF == tos & 0xFC
        addresses = header[8:]
    else:
        assert (header[0], header[1], header[8], header[9]) == (0x45, tos & 0xFC, ttl, 6)
        assert struct.unpack_from("!H", header, 2) == (len(packet),)
        assert struct.unpack_from("!H", header, 4) != (0,)
        assert struct.unpack_from("!H", header, 6) == (0x4000,)
        addresses = header[12:]
    assert addresses == packets.packed(ours) + packets.packed(theirs)

    body = packet[length:]
    pseudo = addresses + struct.pack("!HH", 6, len(body))
    assert packets.checksum(pseudo + body) == 0
    got = (struct.unpack_from("!I", body, 4)[0] - seq) % 2**32
    assert got < size
    assert body[-1] == payload[got]
    assert body[13] == 0x10
    assert struct.unpack_from("!I", body, 8) == (77,)
    if not plain:
        assert struct.unpack_from("!II", body, 24) == (111 if tsval is None else tsval % 2**32, 222)
    assert template.probe_of((seq + got) % 2**32) == (ttl, attempt)


def test_every_probe_has_a_sequence_number_of_its_own_and_none_is_of_the_future():
    ours, theirs = "192.0.2.1", "198.51.100.7"
    segment = parse(looped(ours, theirs, bytes(127), seq=2**32 - 100), ours, theirs)
    assert segment is not None
    template = ProbeTemplate(segment)
    found = {
        struct.unpack_from("!I", template.build(ttl, attempt), 24)[0] for ttl in range(1, 33) for attempt in range(3)
    }
    offsets = {(seq - segment.seq) % 2**32 for seq in found}
    assert offsets == set(range(127 - SPAN, 127))


@given(st.integers(0, 2**32 - 1))
def test_a_foreign_sequence_number_is_no_probe(seq):
    segment = Segment(bytes(4), bytes(4), 0, 0, packets.tcp(1, 2), 5000, bytes(64))
    probe = ProbeTemplate(segment).probe_of(seq)
    assert (probe is not None) == (5000 <= seq < 5064)


def test_too_short_a_message_cannot_be_probed_with():
    with pytest.raises(ValueError, match="cannot probe"):
        ProbeTemplate(Segment(bytes(4), bytes(4), 0, 0, packets.tcp(1, 2), 0, bytes(31)))
    template = ProbeTemplate(Segment(bytes(4), bytes(4), 0, 0, packets.tcp(1, 2), 0, bytes(70)))
    assert template.attempts == 2
    assert not template.timestamped


def test_ecn_bits_do_not_travel():
    """Explicit congestion: neither the IP bits nor the TCP flags of the original (RFC 3168 6.1.5)."""
    ours, theirs = "192.0.2.1", "198.51.100.7"
    segment = parse(looped(ours, theirs, bytes(127), tos=0x2B, flags=0xD8), ours, theirs)
    assert segment is not None
    packet = ProbeTemplate(segment).build(1, 0)
    assert packet[1] == 0x28
    assert packet[33] == 0x10


def test_the_syns_ttl_is_the_distance():
    assert syn_distance(packets.ip("192.0.2.1", "198.51.100.7", packets.tcp(1, 2), ttl=57)) == 8
    assert syn_distance(packets.ip("2001:db8::1", "2001:db8::2", packets.tcp(1, 2), ttl=120)) == 9
    assert syn_distance(b"") is None


@given(st.binary(max_size=100))
def test_any_saved_syn_gives_a_distance_or_none(data):
    found = syn_distance(data)
    assert found is None or 1 <= found <= 128
