"""Linux socket options, ioctls and control messages that Python's socket module does not name.

Numbers are of the generic architecture (linux/socket.h, asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h).
Left out: alpha, mips, parisc and sparc, whose SOL_SOCKET numbers differ.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SO_TIMESTAMPING = 37
SO_COOKIE = 57
SO_BUF_LOCK = 72
SOCK_SNDBUF_LOCK = 1

SOF_TIMESTAMPING_SOFTWARE = 1 << 4
SOF_TIMESTAMPING_OPT_ID = 1 << 7
SOF_TIMESTAMPING_TX_SCHED = 1 << 8

TCP_TIMESTAMP = 24
TCP_SAVE_SYN = 27
TCP_SAVED_SYN = 28

SIOCOUTQ = 0x5411

IP_RECVERR = 11
IP_RECVTTL = 12
IPV6_RECVERR = 25
IPV6_RECVHOPLIMIT = 51
IPV6_HOPLIMIT = 52

SOL_RAW = 255
ICMP_FILTER = 1
ICMP6_FILTER = 1

ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD

ESTABLISHED = 1
"""The only TCP state in which both sides may still speak (linux/tcp_states.h)."""


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Set the classic BPF program (an array of `struct sock_filter`) as the socket's filter, replacing any before."""
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def timestamp_of(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """The kernel's SO_TIMESTAMPNS among control messages: nanoseconds since the epoch."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) >= 16:
            seconds, nanoseconds = struct.unpack_from("@qq", data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None


def queued_packet(sock: socket.socket, size: int) -> bytes | None:
    """The next packet of the socket's error queue, its first `size` bytes; None when it is empty. OSError if closed."""
    try:
        return sock.recvmsg(size, 512, socket.MSG_ERRQUEUE)[0]
    except BlockingIOError:
        return None


def cookie_of(sock: socket.socket) -> int:
    """The kernel's name for the socket, unique until the next boot."""
    (cookie,) = struct.unpack("@Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
    return int(cookie)
