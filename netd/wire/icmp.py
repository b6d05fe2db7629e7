"""ICMP and ICMPv6 errors that quote a TCP segment of ours. Pure.

    error := type, code, ..., quote of the packet that caused it, [extensions]

Rules: whatever the bytes are, `parse_error` returns None or a value; it never raises. The quote's own checksums are not
looked at: a NAT on the way may have changed them.

Sources: RFC 792 and RFC 4443 (errors and quotes), RFC 4884 (where extensions start), RFC 4950 (MPLS label stacks),
RFC 1191 (next-hop MTU).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netd.wire.ip import TCP, fold, ones_sum, parse_ip

TIME_EXCEEDED, UNREACHABLE = 11, 3
TIME_EXCEEDED6, UNREACHABLE6, TOO_BIG6 = 3, 1, 2

_FRAGMENTATION_NEEDED = 4
_MOST_LABELS = 16
"""Label stacks are a few entries deep; what claims more is not a label stack."""
_LEGACY_QUOTE = 128
"""Where routers that predate RFC 4884 put their extensions (5.5)."""
_MPLS = (1, 1)  # class, c-type


@dataclass(frozen=True, slots=True)
class MplsLabel:
    """One entry of an MPLS label stack (RFC 4950): label 0..2^20-1, traffic class 0..7, bottom of stack, TTL 0..255."""

    label: int
    traffic_class: int
    bottom: bool
    ttl: int


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error and what it quotes."""

    expired: bool
    """Time (hop limit) exceeded in transit; False: unreachable."""
    code: int
    source: bytes
    """Who sent the error: 4 or 16 bytes."""
    reply_ttl: int | None
    """TTL (hop limit) of the error as it arrived, None where the socket did not tell."""
    quoted_source: bytes
    quoted_destination: bytes
    quoted_tos: int
    source_port: int
    destination_port: int
    seq: int
    mpls: tuple[MplsLabel, ...] = ()
    next_mtu: int | None = None


def parse_error4(packet: bytes) -> IcmpError | None:
    """An IPv4 packet, from its header on, as a raw ICMP socket delivers it."""
    outer = parse_ip(packet)
    if outer is None or outer.v6 or len(packet) < outer.length + 8:
        return None
    return _parse(packet[outer.length :], outer.source, outer.ttl, v6=False)


def parse_error6(message: bytes, source: bytes, hop_limit: int | None) -> IcmpError | None:
    """An ICMPv6 message, from its type on, as a raw ICMPv6 socket delivers it; source and hop limit come beside it."""
    if len(message) < 8 or len(source) != 16:
        return None
    return _parse(message, source, hop_limit, v6=True)


def _parse(message: bytes, source: bytes, reply_ttl: int | None, *, v6: bool) -> IcmpError | None:
    kind, code = message[0], message[1]
    expired = kind == (TIME_EXCEEDED6 if v6 else TIME_EXCEEDED)
    if expired and code != 0:
        return None  # reassembly time exceeded: not a router on the path speaking
    if not expired and kind not in ((UNREACHABLE6, TOO_BIG6) if v6 else (UNREACHABLE,)):
        return None
    quote = message[8:]
    inner = parse_ip(quote)
    if inner is None or inner.v6 != v6 or inner.protocol != TCP or len(quote) < inner.length + 8:
        return None
    source_port, destination_port, seq = struct.unpack_from("!HHI", quote, inner.length)
    next_mtu = None
    if v6 and kind == TOO_BIG6:
        (next_mtu,) = struct.unpack_from("!I", message, 4)
    elif not v6 and not expired and code == _FRAGMENTATION_NEEDED:
        (next_mtu,) = struct.unpack_from("!H", message, 6)
    # RFC 4884 4: the quote's length in 32-bit words (ICMPv6: 64-bit); the Packet Too Big message has no such field
    stated = message[5] * 4
    if v6:
        stated = message[4] * 8 if kind != TOO_BIG6 else 0
    return IcmpError(
        expired,
        code,
        source,
        reply_ttl,
        inner.source,
        inner.destination,
        inner.tos,
        source_port,
        destination_port,
        seq,
        _labels(quote, stated or _LEGACY_QUOTE),
        next_mtu or None,
    )


def _labels(quote: bytes, start: int) -> tuple[MplsLabel, ...]:
    """The label stack among the extensions at `start`; () where there are none (RFC 4884 7, RFC 4950 3)."""
    extensions = quote[start:]
    if len(extensions) < 8 or extensions[0] >> 4 != 2:
        return ()
    (checksum,) = struct.unpack_from("!H", extensions, 2)
    if checksum and fold(ones_sum(extensions)) != 0xFFFF:
        return ()
    at = 4
    while at + 4 <= len(extensions):
        length, class_number, class_type = struct.unpack_from("!HBB", extensions, at)
        if length < 4 or at + length > len(extensions):
            return ()
        if (class_number, class_type) == _MPLS:
            words = struct.unpack_from(f"!{min((length - 4) // 4, _MOST_LABELS)}I", extensions, at + 4)
            return tuple(MplsLabel(word >> 12, word >> 9 & 7, bool(word >> 8 & 1), word & 0xFF) for word in words)
        at += length
    return ()
