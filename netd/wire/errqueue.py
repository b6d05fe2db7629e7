"""What Linux puts on a socket's error queue when IP_RECVERR is set. Pure.

    struct sock_extended_err   errno, origin, type, code, info, data
    struct sockaddr            who sent the error

Rules: whatever the bytes are, `parse_extended_error` returns None or a value; it never raises.

Source: linux/errqueue.h, ip(7).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from netd.wire.icmp import TIME_EXCEEDED, TIME_EXCEEDED6, UNREACHABLE, UNREACHABLE6

_EXTENDED_ERROR = struct.Struct("@IBBBxII")
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_AF_INET, _AF_INET6 = 2, 10
_PORT_UNREACHABLE, _PORT_UNREACHABLE6 = 3, 4


class QueuedError(NamedTuple):
    """An ICMP error as the kernel queued it."""

    expired: bool
    """Time (hop limit) exceeded; False: unreachable, or whatever else ICMP reports."""
    code: int
    offender: bytes
    """Who sent it: 4 or 16 bytes."""
    port_unreachable: bool
    """The host is there and nobody listens: what a probe's destination says."""


def parse_extended_error(data: bytes) -> QueuedError | None:
    """The body of an IP_RECVERR or IPV6_RECVERR control message; None unless ICMP was the origin."""
    if len(data) < _EXTENDED_ERROR.size + 2:
        return None
    _, origin, kind, code, _, _ = _EXTENDED_ERROR.unpack_from(data)
    address = data[_EXTENDED_ERROR.size :]
    (family,) = struct.unpack_from("@H", address)
    if origin == _ORIGIN_ICMP and family == _AF_INET and len(address) >= 8:
        refused = (kind, code) == (UNREACHABLE, _PORT_UNREACHABLE)
        return QueuedError(kind == TIME_EXCEEDED, code, bytes(address[4:8]), refused)
    if origin == _ORIGIN_ICMP6 and family == _AF_INET6 and len(address) >= 24:
        refused = (kind, code) == (UNREACHABLE6, _PORT_UNREACHABLE6)
        return QueuedError(kind == TIME_EXCEEDED6, code, bytes(address[8:24]), refused)
    return None
