"""What the kernel thinks of TCP connections: TCP_INFO of one socket, or of all by INET_DIAG.

    tcp_info(sock)            one getsockopt
    await connections(...)    every connection of the namespace: one netlink dump, parsed where it arrives

Rules:
- `struct tcp_info` grows with the kernel: what the kernel is too old to tell is None, what it tells beyond is ignored;
- a dump is read in pieces, the event loop runs in between.

Sources: linux/tcp.h (struct tcp_info), linux/inet_diag.h, linux/sock_diag.h.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from netd.net.linux import cookie_of as cookie_of
from netd.wire.ip import show_address

if TYPE_CHECKING:
    from collections.abc import Callable

SACK_NEGOTIATED = 2
"""In `TcpInfo.options` (TCPI_OPT_SACK)."""

_FIELDS = {
    # name: offset in struct tcp_info, format
    "state": (0, "B"),
    "ca_state": (1, "B"),
    "retransmits": (2, "B"),
    "options": (5, "B"),
    "rto_us": (8, "I"),
    "snd_mss": (16, "I"),
    "rcv_mss": (20, "I"),
    "unacked": (24, "I"),
    "lost": (32, "I"),
    "retrans": (36, "I"),
    "last_data_sent_ms": (44, "I"),
    "last_data_recv_ms": (52, "I"),
    "pmtu": (60, "I"),
    "rtt_us": (68, "I"),
    "rttvar_us": (72, "I"),
    "snd_cwnd": (80, "I"),
    "reordering": (88, "I"),
    "total_retrans": (100, "I"),
    "bytes_acked": (120, "Q"),
    "bytes_received": (128, "Q"),
    "segs_out": (136, "I"),
    "segs_in": (140, "I"),
    "notsent_bytes": (144, "I"),
    "min_rtt_us": (148, "I"),
    "delivery_rate": (160, "Q"),
    "bytes_sent": (200, "Q"),
    "bytes_retrans": (208, "Q"),
    "dsack_dups": (216, "I"),
}
_LONGEST = 512
_BY_LENGTH: dict[int, list[tuple[str, Callable[..., tuple[int]], int]]] = {}
"""Fields that a struct of some length has, with their unpackers; filled as lengths are met (a kernel has one)."""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """`struct tcp_info` as far as anyone here reads it; names and units as there. None: this kernel does not tell."""

    state: int | None = None
    ca_state: int | None = None
    retransmits: int | None = None
    options: int | None = None
    rto_us: int | None = None
    snd_mss: int | None = None
    rcv_mss: int | None = None
    unacked: int | None = None
    lost: int | None = None
    retrans: int | None = None
    last_data_sent_ms: int | None = None
    last_data_recv_ms: int | None = None
    pmtu: int | None = None
    rtt_us: int | None = None
    rttvar_us: int | None = None
    snd_cwnd: int | None = None
    reordering: int | None = None
    total_retrans: int | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None
    segs_out: int | None = None
    segs_in: int | None = None
    notsent_bytes: int | None = None
    min_rtt_us: int | None = None
    delivery_rate: int | None = None
    """Bytes a second."""
    bytes_sent: int | None = None
    bytes_retrans: int | None = None
    dsack_dups: int | None = None

    @property
    def sack(self) -> bool:
        """Both sides agreed on selective acknowledgements."""
        return self.options is not None and bool(self.options & SACK_NEGOTIATED)


def parse_tcp_info(data: bytes) -> TcpInfo:
    """Bytes as the kernel filled them in, of whatever length."""
    length = min(len(data), _LONGEST)
    fields = _BY_LENGTH.get(length)
    if fields is None:
        fields = _BY_LENGTH[length] = [
            (name, struct.Struct(f"={kind}").unpack_from, offset)
            for name, (offset, kind) in _FIELDS.items()
            if offset + struct.calcsize(f"={kind}") <= length
        ]
    return TcpInfo(**{name: unpack(data, offset)[0] for name, unpack, offset in fields})


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Of one TCP socket. Raises OSError if it is closed or no TCP socket."""
    return parse_tcp_info(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LONGEST))


# --- all of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP socket of the namespace."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int
    cookie: int
    """As SO_COOKIE tells it (see `cookie_of`)."""
    uid: int
    inode: int
    receive_queue: int
    """Bytes received and not yet read by its process."""
    send_queue: int
    """Bytes not yet acknowledged."""
    info: TcpInfo | None


_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INET_DIAG_INFO = 2
_NLMSG = struct.Struct("=IHHII")
_ID = struct.Struct("!HH16s16s")
_MSG_LENGTH = 72
_PIECE = 1 << 17


async def connections(
    *,
    states: int = 1 << 1,
    open_socket: Callable[[int, int, int], socket.socket] = socket.socket,
) -> list[Connection]:
    """Every TCP socket, IPv4 and IPv6, in one of these states (a mask of 1 << state; by default: established).

    Raises OSError when the kernel refuses (it does not for one's own namespace).
    """
    found: list[Connection] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with open_socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as sock:
            sock.setblocking(False)
            sock.send(_request(family, states))
            done = False
            while not done:
                await trio.lowlevel.wait_readable(sock.fileno())
                done = _read_piece(sock.recv(_PIECE), found)
    return found


def _request(family: int, states: int) -> bytes:
    body = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), states)
    return _NLMSG.pack(_NLMSG.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body


def _read_piece(piece: bytes, found: list[Connection]) -> bool:
    """Append what one read brought; True at the end of the dump."""
    at = 0
    while at + _NLMSG.size <= len(piece):
        length, kind, _, _, _ = _NLMSG.unpack_from(piece, at)
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", piece, at + _NLMSG.size)
            raise OSError(-code, f"cannot list TCP connections: {os.strerror(-code)}")
        if length < _NLMSG.size or at + length > len(piece):
            raise OSError("cannot list TCP connections: the kernel's answer was cut short")
        found.append(_parse(piece, at + _NLMSG.size, at + length))
        at += (length + 3) & ~3
    return False


def _parse(piece: bytes, at: int, end: int) -> Connection:
    family, state = piece[at], piece[at + 1]
    source_port, destination_port, source, destination = _ID.unpack_from(piece, at + 4)
    size = 4 if family == socket.AF_INET else 16
    (cookie,) = struct.unpack_from("=Q", piece, at + 44)
    _, receive_queue, send_queue, uid, inode = struct.unpack_from("=IIIII", piece, at + 52)
    info = None
    attribute = at + _MSG_LENGTH
    while attribute + 4 <= end:
        length, kind = struct.unpack_from("=HH", piece, attribute)
        if length < 4:
            break
        if kind == _INET_DIAG_INFO:
            info = parse_tcp_info(piece[attribute + 4 : attribute + length])
        attribute += (length + 3) & ~3
    return Connection(
        (show_address(source[:size]), source_port),
        (show_address(destination[:size]), destination_port),
        state,
        cookie,
        uid,
        inode,
        receive_queue,
        send_queue,
        info,
    )
