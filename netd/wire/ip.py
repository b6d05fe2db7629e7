"""IPv4, IPv6 and TCP headers, as far as probes and their answers need them. Pure.

Rules: whatever the bytes are, a parser returns None or a value; it never raises.

Left out: IPv6 extension headers (a quote that has them is not of a probe), fragments after the first.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

TCP = 6
ICMP = 1
ICMP6 = 58

MOD32 = 0xFFFFFFFF

OPTION_END, OPTION_NOP, OPTION_SACK, OPTION_TIMESTAMP = 0, 1, 5, 8
INITIAL_TTLS = (32, 64, 128, 255)
"""What systems start a packet's TTL with."""


class IpHeader(NamedTuple):
    """The fixed part of an IP header. Addresses are 4 or 16 bytes; `length` is the header's own."""

    v6: bool
    length: int
    tos: int
    flow_label: int
    ttl: int
    protocol: int
    source: bytes
    destination: bytes


def parse_ip(data: bytes, offset: int = 0) -> IpHeader | None:
    """The IP header at `offset` (RFC 791 3.1, RFC 8200 3); None if there is none, or too little of it."""
    if offset < 0 or offset >= len(data):
        return None
    version = data[offset] >> 4
    if version == 4 and len(data) >= offset + 20:
        length = (data[offset] & 15) * 4
        if length < 20:
            return None
        return IpHeader(
            False,
            length,
            data[offset + 1],
            0,
            data[offset + 8],
            data[offset + 9],
            bytes(data[offset + 12 : offset + 16]),
            bytes(data[offset + 16 : offset + 20]),
        )
    if version == 6 and len(data) >= offset + 40:
        (word,) = struct.unpack_from("!I", data, offset)
        return IpHeader(
            True,
            40,
            word >> 20 & 0xFF,
            word & 0xFFFFF,
            data[offset + 7],
            data[offset + 6],
            bytes(data[offset + 8 : offset + 24]),
            bytes(data[offset + 24 : offset + 40]),
        )
    return None


def tcp_option(header: bytes, kind: int) -> int | None:
    """Offset of option `kind` in a TCP header (with its options and nothing behind); None if absent or malformed."""
    at = 20
    while at < len(header):
        if header[at] == OPTION_END:
            return None
        if header[at] == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= len(header):
            return None
        length = header[at + 1]
        if length < 2 or at + length > len(header):
            return None
        if header[at] == kind:
            return at
        at += length
    return None


def ones_sum(data: bytes, start: int = 0) -> int:
    """The 16-bit words of `data` added to `start`, not yet folded (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    words: tuple[int, ...] = struct.unpack(f"!{len(data) // 2}H", data)
    return start + sum(words)


def fold(total: int) -> int:
    """Carries folded back in until 16 bits are left (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pack_address(text: str) -> bytes:
    """An address as getsockname gives it (a scope after "%" is ignored), v4-mapped IPv6 as the IPv4 it stands for.

    Raises ValueError for anything else.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.packed
    return address.packed


def show_address(packed: bytes) -> str:
    """4 or 16 bytes as text."""
    return str(ipaddress.ip_address(packed))


def distance(ttl: int) -> int | None:
    """How far a sender is whose packet arrived with this TTL: routers between plus one; None for an impossible TTL."""
    if not 1 <= ttl <= 255:
        return None
    return next(initial for initial in INITIAL_TTLS if initial >= ttl) - ttl + 1
