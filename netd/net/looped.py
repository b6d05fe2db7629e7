"""The connection's own packet, looped back by the kernel: how a trace learns sequence numbers without privilege.

    SO_TIMESTAMPING on -> the carrier writes its message -> the kernel queues the very packet it sent on the socket's
    error queue (no OPT_TSONLY: with its bytes) -> SO_TIMESTAMPING off

Rules:
- a message on the error queue makes the socket look ready (EPOLLERR) to everybody who waits for it, so nothing is left
  there: what the kernel queues later (held back by the congestion window, sent again) is taken off until all that was
  written meanwhile is acknowledged (`drain_until_acknowledged`);
- needs net.core.tstamp_allow_data=1, the kernel's default, or CAP_NET_RAW in the initial user namespace.

Source: Linux Documentation/networking/timestamping.rst, 1.3.2 and 1.4.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from netd.net.linux import (
    SIOCOUTQ,
    SO_TIMESTAMPING,
    SOF_TIMESTAMPING_OPT_ID,
    SOF_TIMESTAMPING_SOFTWARE,
    SOF_TIMESTAMPING_TX_SCHED,
)
from netd.net.sockdiag import tcp_info
from netd.wire.ip import pack_address
from netd.wire.probes import SLOTS, SPAN, Segment, parse_looped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netd.net.path import Carrier, Reason

_FLAGS = SOF_TIMESTAMPING_TX_SCHED | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID
_LARGEST = 1 << 16
_PAUSES = (0.0, 0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
"""Seconds between looks: usually it is there at once, later if a queue of the host holds it back."""
_HELD_BACK = 20
"""Looks more, 50 ms apart, while the congestion window keeps the kernel from sending it at all."""
_DRAIN_PAUSE = 0.02
_DRAIN_AT_MOST = 30.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A connected socket's two ends, v4-mapped IPv6 as the IPv4 it is."""

    local: bytes
    local_port: int
    peer: bytes
    peer_port: int
    scope: int
    """Interface index of a link-local IPv6 peer, else 0."""

    @property
    def v6(self) -> bool:
        return len(self.peer) == 16


def endpoints_of(sock: socket.socket) -> Endpoints | None:
    """None once the socket is closed or no longer connected, or if it is no IP socket."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        local, peer = sock.getsockname(), sock.getpeername()
    except OSError:
        return None
    scope = peer[3] if len(peer) > 3 else 0
    return Endpoints(pack_address(local[0]), local[1], pack_address(peer[0]), peer[1], scope)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes written that the peer has not acknowledged yet, sent or not. Raises OSError on a closed socket."""
    (count,) = struct.unpack("@i", fcntl.ioctl(sock.fileno(), SIOCOUTQ, bytes(4)))
    return int(count)


async def capture(carrier: Carrier, ends: Endpoints, *, wants: int = SPAN) -> Segment | Reason:
    """Have the carrier write its message and learn the segment it travelled in, or why there is none.

    A segment with fewer than `wants` bytes of payload is taken only if no longer one shows up. Raises OSError if the
    connection breaks meanwhile.
    """
    sock = carrier.socket
    drain(sock)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, _FLAGS)
    best: Segment | None = None
    try:
        if not await carrier.carry():
            return "no-carrier"
        for pause in _pauses(sock):
            if pause:
                await trio.sleep(pause)
            while (packet := _take(sock, _LARGEST)) is not None:
                segment = parse_looped(packet, ends.local, ends.peer, ends.local_port, ends.peer_port)
                if segment is not None and (best is None or len(segment.payload) > len(best.payload)):
                    best = segment
            if best is not None and len(best.payload) >= wants:
                break
    finally:
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)
            drain(sock)
    return best if best is not None and len(best.payload) >= SLOTS else "no-loopback"


def _pauses(sock: socket.socket) -> Iterator[float]:
    yield from _PAUSES
    for _ in range(_HELD_BACK):
        if not tcp_info(sock).notsent_bytes:
            return
        yield 0.05


def _take(sock: socket.socket, size: int) -> bytes | None:
    """The next message of the error queue, None when it is empty."""
    try:
        return sock.recvmsg(size, 512, socket.MSG_ERRQUEUE)[0]
    except BlockingIOError:
        return None


def drain(sock: socket.socket) -> None:
    """Empty the error queue. Raises OSError on a closed socket."""
    while _take(sock, 1) is not None:
        pass


class Acknowledgement:
    """Whether the peer has acknowledged all that had been written when this was made."""

    def __init__(self, sock: socket.socket) -> None:
        """Raises OSError on a closed socket."""
        self._sock = sock
        # read in this order the sum can only be too small by what was acknowledged in between, and that was ours
        acknowledged = tcp_info(sock).bytes_acked or 0
        self._goal = acknowledged + unacknowledged(sock)

    def arrived(self) -> bool:
        return (tcp_info(self._sock).bytes_acked or 0) >= self._goal

    async def wait(self, deadline: float) -> bool:
        """Until it arrived, or trio's clock reaches the deadline (False). Raises OSError if the socket is closed."""
        while not self.arrived():
            if trio.current_time() >= deadline:
                return False
            await trio.sleep(0.002)
        return True


async def drain_until_acknowledged(
    sock: socket.socket, acknowledgement: Acknowledgement, clock: Callable[[], float] = trio.current_time
) -> None:
    """Keep the error queue empty while segments marked for looping may still be sent (again)."""
    end = clock() + _DRAIN_AT_MOST
    try:
        while clock() < end:
            drain(sock)
            if acknowledgement.arrived():
                return
            await trio.sleep(_DRAIN_PAUSE)
    except OSError:
        return  # closed: its queue went with it
