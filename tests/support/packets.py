"""Packets for tests, built by hand and independently of netd.wire: what routers and peers send."""

from __future__ import annotations

import ipaddress
import struct


def checksum(data: bytes) -> int:
    """RFC 1071, the slow way."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ip(source: str, destination: str, payload: bytes, *, protocol=6, ttl=64, tos=0, flow=0, options=b"", fragment=0):
    """An IP packet; the version follows from the addresses."""
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28 | tos << 20 | flow, len(payload), protocol, ttl)
        return head + packed(source) + packed(destination) + payload
    length = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 0x40 | length // 4, tos, length + len(payload), 7, fragment, ttl, protocol, 0)
    return head + packed(source) + packed(destination) + options + payload


def tcp(sport: int, dport: int, *, seq=0, ack=0, flags=0x10, options=b"", payload=b"") -> bytes:
    options += b"\x01" * (-len(options) % 4)
    return struct.pack("!HHIIBBHHH", sport, dport, seq, ack, (5 + len(options) // 4) << 4, flags, 501, 0, 0) + (
        options + payload
    )


def timestamps(tsval: int, tsecr: int) -> bytes:
    return b"\x01\x01" + struct.pack("!BBII", 8, 10, tsval, tsecr)


def sack(*blocks: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack("!II", left, right) for left, right in blocks)
    return b"\x01\x01" + bytes((5, 2 + len(body))) + body


def mpls(*labels: tuple[int, int, int, int]) -> bytes:
    """An RFC 4884 extension structure with an RFC 4950 label stack of (label, class, bottom, ttl)."""
    words = b"".join(struct.pack("!I", la << 12 | tc << 9 | bottom << 8 | ttl) for la, tc, bottom, ttl in labels)
    body = struct.pack("!HBB", 4 + len(words), 1, 1) + words
    return struct.pack("!BBH", 0x20, 0, checksum(b"\x20\0\0\0" + body)) + body


def icmp4(router: str, to: str, quote: bytes, *, kind=11, code=0, ttl=60, extensions=b"", stated=0, mtu=0) -> bytes:
    message = struct.pack("!BBHBBH", kind, code, 0, 0, stated, mtu) + quote + extensions
    return ip(router, to, message, protocol=1, ttl=ttl)


def icmp6(quote: bytes, *, kind=3, code=0, extensions=b"", stated=0, rest=0) -> bytes:
    word = stated << 24 if stated else rest
    return struct.pack("!BBHI", kind, code, 0, word) + quote + extensions
