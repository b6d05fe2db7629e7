"""What connections ask of their sockets: keepalive (tcp(7)), send buffer (socket(7)), who is at the other end.

Rules:
- a limit that a reload changes is set on sockets that are there, too; what a socket does not have (a Unix socket has no
  keepalive) is left alone;
- TCP sockets inherit all of it from the one that accepts them (`bequeath`), on Linux: eight calls for each connection
  less. The send buffer from Linux 5.14 on: to set it ends the kernel's own tuning, and before, that could not be taken
  back from a socket that goes on accepting;
- a Unix socket, whose buffer the kernel does not tune, keeps what it had where `send_buffer` becomes 0.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from netd.net.carrier import StreamCarrier
from netd.net.linux import SO_BUF_LOCK, SOCK_SNDBUF_LOCK, TCP_SAVED_SYN

if TYPE_CHECKING:
    import trio

    from netd.sessions.config import SessionLimits
    from netd.sessions.connection import Connection

_PROBES = 3
"""Keepalive probes unanswered until the connection ends."""
_LEAST_BUFFER = 8192
"""SO_SNDBUF of a new TCP socket, which the kernel doubles (tcp(7): tcp_wmem's default); its own tuning begins there."""


def tune(sock: socket.socket, config: SessionLimits) -> None:
    """Have `sock` follow the configuration. Raises OSError for a socket that is gone."""
    _size(sock, config.send_buffer)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Trio has the kernel refuse more than 16 KiB that are not on their way; here `send_buffer` says how much it takes
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    keep_alive(sock, config.keepalive)


def bequeath(sock: socket.socket | trio.socket.SocketType, config: SessionLimits) -> bool:
    """Have those that this listening socket accepts from now on follow the configuration. False: all but
    `send_buffer`, which each has to be told."""
    if sock.family == socket.AF_UNIX:
        return False
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock, config.keepalive)
    if _locks(sock) is None:
        return not config.send_buffer
    _size(sock, config.send_buffer)
    return True


def _size(sock: socket.socket | trio.socket.SocketType, send_buffer: int) -> None:
    """Fix the send buffer; 0: leave it to the kernel, which gets it back if it was fixed and that can be undone."""
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    elif sock.family != socket.AF_UNIX and (locks := _locks(sock) or 0) & SOCK_SNDBUF_LOCK:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAST_BUFFER)  # from where the kernel's tuning begins
        # what it receives into may be somebody's choice (systemd.socket(5), ReceiveBuffer=), and stays
        sock.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, locks & ~SOCK_SNDBUF_LOCK)


def _locks(sock: socket.socket | trio.socket.SocketType) -> int | None:
    """Which of its buffers the kernel does not tune; None: it does not say, as before Linux 5.14."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return None


def keep_alive(sock: socket.socket | trio.socket.SocketType, seconds: float) -> None:
    """Have the kernel probe a peer that was silent for so long, then every third of it; 0: never."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if seconds else 0)
    if seconds:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, math.ceil(seconds)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, math.ceil(seconds / _PROBES)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def bound_silence(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give up on a peer that takes nothing of what it is sent for so long (tcp(7), TCP_USER_TIMEOUT);
    0: as it likes, a quarter of an hour and more."""
    if sock.family != socket.AF_UNIX:
        with suppress(OSError):  # gone, and about to be told so
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def carrier_of(connection: Connection) -> StreamCarrier | None:
    """What the tracer needs of a connection. The client's SYN is kept by the kernel until it is read, here."""
    stream = connection.stream
    if stream.socket.family == socket.AF_UNIX or stream.gone:
        return None
    syn = b""
    with suppress(OSError):
        syn = stream.socket.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 512)
    return StreamCarrier(stream, syn, connection.nudge if connection.mode.pings else None)


def credentials_of(sock: socket.socket) -> tuple[int, int] | None:
    """pid and uid of the process at the other end of a Unix socket (SO_PEERCRED)."""
    if sock.family != socket.AF_UNIX or sock.fileno() < 0:
        return None
    pid, uid, _ = struct.unpack("@iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
