"""Probes of a path from inside a live TCP connection: low-TTL copies of bytes it really sent. Pure.

The kernel loops a sent packet back to its owner (SO_TIMESTAMPING); from it a template is made, and every probe is one
byte of that packet sent once more with a small TTL. Which byte it is tells which probe it was:

    sequence number = first + attempt * 32 + (ttl - 1)

and the sequence number lies in the first 8 bytes of TCP, so whoever answers names the probe: a router quotes at least
those 8 bytes (RFC 792), the peer's duplicate acknowledgement names them in a DSACK block (RFC 2883).

Rules:
- a probe repeats what was sent: never a byte of the future, which the peer would take for data;
- addresses, ports, flow label and DSCP stay what they are, so every probe takes the connection's own path (as Paris
  traceroute wants it); the ECN bits are cleared, as RFC 3168 6.1.5 asks of retransmissions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netd.wire.ip import (
    MOD32,
    OPTION_TIMESTAMP,
    TCP,
    distance,
    fold,
    ones_sum,
    parse_ip,
    tcp_option,
)

SLOTS = 32
"""TTLs that one attempt has room for."""
ATTEMPTS = 3
SPAN = SLOTS * ATTEMPTS
"""Bytes of payload a template uses at most, and the least a carrier's message should have."""

_ACK = 0x10
_DONT_FRAGMENT = 0x4000
_LONGEST_LINK_HEADER = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment this host sent, without its link header."""

    source: bytes
    destination: bytes
    tos: int
    flow_label: int
    tcp: bytes
    """The TCP header with its options."""
    seq: int
    """Sequence number of the first byte of `payload`."""
    payload: bytes

    @property
    def v6(self) -> bool:
        return len(self.source) == 16


def parse_looped(
    data: bytes, source: bytes, destination: bytes, source_port: int, destination_port: int
) -> Segment | None:
    """The segment in a packet that the kernel looped back, None if it is not of this connection.

    A link header of unknown length may come first, so the address pair is searched for.
    """
    want_v6 = len(source) == 16
    for offset in range(min(_LONGEST_LINK_HEADER, len(data))):
        header = parse_ip(data, offset)
        if (
            header is None
            or header.v6 != want_v6
            or header.protocol != TCP
            or header.source != source
            or header.destination != destination
        ):
            continue
        at = offset + header.length
        if len(data) < at + 20:
            continue
        sport, dport, seq = struct.unpack_from("!HHI", data, at)
        length = (data[at + 12] >> 4) * 4
        if (sport, dport) != (source_port, destination_port) or length < 20 or len(data) < at + length:
            continue
        tcp = bytes(data[at : at + length])
        # the link may have padded a short frame; the IP header knows where the packet ends, unless it is a
        # super-packet not yet cut up (length 0)
        end = len(data)
        (total,) = struct.unpack_from("!H", data, offset + (4 if header.v6 else 2))
        if total:
            end = min(end, offset + total + (40 if header.v6 else 0))
        payload = bytes(data[at + length : max(end, at + length)])
        return Segment(source, destination, header.tos, header.flow_label, tcp, seq, payload)
    return None


class ProbeTemplate:
    """Builds the probes of one round and recognises what answers them."""

    def __init__(self, segment: Segment, ip_id: int = 1) -> None:
        """`ip_id` (1..65535) is the first probe's IPv4 identification; the others count on from it.

        Raises ValueError if the segment's payload is shorter than one attempt needs.
        """
        if len(segment.payload) < SLOTS:
            raise ValueError(f"cannot probe with a payload of {len(segment.payload)} bytes: {SLOTS} are the least")
        spare = max(0, len(segment.payload) - SPAN)
        self.first = (segment.seq + spare) & MOD32
        self.attempts = min(ATTEMPTS, len(segment.payload) // SLOTS)
        """Attempts there are bytes for."""
        self.v6 = segment.v6
        self.source, self.destination = segment.source, segment.destination
        self.source_port, self.destination_port = struct.unpack_from("!HH", segment.tcp)
        self.tos = segment.tos & 0xFC
        self._flow_label = segment.flow_label
        self._payload = segment.payload[spare:]
        self._ip_id = ip_id
        tcp = bytearray(segment.tcp)
        tcp[12] &= 0xF0  # with the byte after it: the flags, the fourth ECN bit among them
        tcp[13] = _ACK
        tcp[4:8] = bytes(4)
        tcp[16:20] = bytes(4)  # checksum, urgent pointer
        self._tcp = tcp
        self._timestamp = tcp_option(bytes(tcp), OPTION_TIMESTAMP)
        self._sum = self._checksum()

    def _checksum(self) -> int:
        """Of pseudo-header and TCP header with sequence number, checksum and payload still zero."""
        pseudo = ones_sum(self.source + self.destination, TCP + len(self._tcp) + 1)
        return fold(ones_sum(bytes(self._tcp), pseudo))

    @property
    def timestamped(self) -> bool:
        """The connection uses TCP timestamps (RFC 7323)."""
        return self._timestamp is not None

    def refresh(self, tsval: int) -> None:
        """Let the probes from here on carry this TSval, lest the peer takes them for old duplicates (RFC 7323 5)."""
        if self._timestamp is not None:
            struct.pack_into("!I", self._tcp, self._timestamp + 2, tsval & MOD32)
            self._sum = self._checksum()

    def build(self, ttl: int, attempt: int) -> bytes:
        """The whole packet, IP header first, as a raw socket takes it (the kernel fills in IPv4's checksum).

        `ttl` is 1 to 32, `attempt` 0 to `attempts` - 1.
        """
        index = attempt * SLOTS + ttl - 1
        seq = (self.first + index) & MOD32
        byte = self._payload[index]
        tcp = bytearray(self._tcp)
        struct.pack_into("!I", tcp, 4, seq)
        checksum = ~fold(self._sum + (seq >> 16) + (seq & 0xFFFF) + (byte << 8)) & 0xFFFF
        struct.pack_into("!H", tcp, 16, checksum)
        if self.v6:
            first_word = 6 << 28 | self.tos << 20 | self._flow_label
            ip = struct.pack("!IHBB", first_word, len(tcp) + 1, TCP, ttl)
        else:
            identification = (self._ip_id + index) & 0xFFFF or 1  # 0 would have the kernel choose
            ip = struct.pack(
                "!BBHHHBBH", 0x45, self.tos, 20 + len(tcp) + 1, identification, _DONT_FRAGMENT, ttl, TCP, 0
            )
        return b"".join((ip, self.source, self.destination, tcp, bytes((byte,))))

    def probe_of(self, seq: int) -> tuple[int, int] | None:
        """(ttl, attempt) of the probe that had this sequence number, None if none can have had it."""
        index = (seq - self.first) & MOD32
        if index >= self.attempts * SLOTS:
            return None
        attempt, slot = divmod(index, SLOTS)
        return slot + 1, attempt


def syn_distance(syn: bytes) -> int | None:
    """How far the sender of this SYN is (TCP_SAVED_SYN: from the IP header on), None if the bytes hold no IP header."""
    header = parse_ip(syn)
    return None if header is None else distance(header.ttl)
