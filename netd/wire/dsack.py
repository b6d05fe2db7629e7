"""Duplicate acknowledgements that name what they saw twice (DSACK, RFC 2883). Pure.

A byte that the peer already has makes it answer at once with an acknowledgement whose first SACK block is that byte. So
a probe that reached the peer is answered by its own sequence number, whatever else the connection carries.

Rules: whatever the bytes are, `parse_duplicate` returns None or a value; it never raises.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netd.wire.ip import MOD32, OPTION_SACK, TCP, parse_ip, tcp_option


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The first SACK block of an incoming segment: sequence numbers `left` up to, not including, `right`."""

    source: bytes
    source_port: int
    destination_port: int
    reply_ttl: int
    left: int
    right: int

    @property
    def width(self) -> int:
        return (self.right - self.left) & MOD32


def parse_duplicate(packet: bytes) -> Duplicate | None:
    """An incoming IP packet, from its IP header on; None unless it is TCP with a SACK option.

    A block above the acknowledgement is no DSACK in the RFC's sense, yet says as well that these bytes arrived (the
    message itself was lost and the copies came first), so it counts.
    """
    header = parse_ip(packet)
    if header is None or header.protocol != TCP or len(packet) < header.length + 20:
        return None
    at = header.length
    length = (packet[at + 12] >> 4) * 4
    tcp = packet[at : at + length]
    if length < 20 or len(tcp) < length:
        return None
    option = tcp_option(tcp, OPTION_SACK)
    if option is None or tcp[option + 1] < 10:
        return None
    left, right = struct.unpack_from("!II", tcp, option + 2)
    source_port, destination_port = struct.unpack_from("!HH", tcp)
    return Duplicate(header.source, source_port, destination_port, header.ttl, left, right)
