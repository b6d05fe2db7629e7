"""The connection's own packet, looped back by the kernel: how a trace learns sequence numbers without privilege.

    SO_TIMESTAMPING on -> the carrier writes its message -> the kernel queues the very packet it sent on the socket's
    error queue (no OPT_TSONLY: with its bytes) -> SO_TIMESTAMPING off

Rules:
- a message on the error queue makes the socket look ready (EPOLLERR) to everybody who waits for it, so nothing is left
  there: what the kernel queues later (held back by the congestion window, sent again) is taken off until all that was
  written meanwhile is acknowledged (`Leftovers`);
- needs net.core.tstamp_allow_data=1, the kernel's default, or CAP_NET_RAW in the initial user namespace.

Source: Linux Documentation/networking/timestamping.rst, 1.3.2 and 1.4.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from netd.net.linux import (
    SIOCOUTQ,
    SO_TIMESTAMPING,
    SOF_TIMESTAMPING_OPT_ID,
    SOF_TIMESTAMPING_SOFTWARE,
    SOF_TIMESTAMPING_TX_SCHED,
    cookie_of,
    queued_packet,
)
from netd.net.sockdiag import tcp_info
from netd.wire.probes import SLOTS, SPAN, Segment, parse_looped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.net.paths.path import Carrier, Reason

_FLAGS = SOF_TIMESTAMPING_TX_SCHED | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID
_LARGEST = 1 << 16
_PAUSES = (0.0, 0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
"""Seconds between looks: usually it is there at once, later if a queue of the host holds it back."""
_HELD_BACK = 20
"""Looks more, 50 ms apart, while the congestion window keeps the kernel from sending it at all."""
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address in an IPv6 one (RFC 4291 2.5.5.2)."""
_SWEEP_FIRST, _SWEEP_LONGEST = 0.02, 0.25
"""Seconds between looks into a queue that may fill again; retransmissions come ever more rarely (RFC 6298 5.5)."""


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
    return Endpoints(_packed(sock.family, local[0]), local[1], _packed(sock.family, peer[0]), peer[1], scope)


def _packed(family: int, text: str) -> bytes:
    packed = socket.inet_pton(family, text.partition("%")[0])
    return packed[len(_MAPPED) :] if packed.startswith(_MAPPED) else packed


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
    _discard(carrier)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, _FLAGS)
    best: Segment | None = None
    try:
        if not await carrier.carry():
            return "no-carrier"
        for pause in _pauses(sock):
            if pause:
                await trio.sleep(pause)
            while (packet := carrier.read_errors()) is not None:
                segment = parse_looped(packet, ends.local, ends.peer, ends.local_port, ends.peer_port)
                if segment is not None and (best is None or len(segment.payload) > len(best.payload)):
                    best = segment
            if best is not None and len(best.payload) >= wants:
                break
    finally:
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, 0)
            _discard(carrier)
    if best is not None and len(best.payload) >= SLOTS:
        return best
    # a peer that lets nothing be sent is no reason to suspect the kernel
    return "timeout" if tcp_info(sock).notsent_bytes else "no-loopback"


def _pauses(sock: socket.socket) -> Iterator[float]:
    yield from _PAUSES
    for _ in range(_HELD_BACK):
        if not tcp_info(sock).notsent_bytes:
            return
        yield 0.05


def drain(sock: socket.socket) -> None:
    """Empty the error queue. Raises OSError on a closed socket."""
    while queued_packet(sock, 1) is not None:
        pass


def read_queue(sock: socket.socket) -> bytes | None:
    """`Carrier.read_errors` of a session whose socket nobody else reads. Raises OSError on a closed socket."""
    return queued_packet(sock, _LARGEST)


def _discard(carrier: Carrier) -> None:
    """What was looped for an earlier message, whoever has taken it off the queue meanwhile."""
    while carrier.read_errors() is not None:
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


class Leftovers:
    """The sockets whose error queue may still be given something, one task for each while that is so.

    A segment that was marked for looping is looped again with each retransmission, until it is acknowledged: minutes
    after its trace, if the peer is slow or gone. Whatever lies in an error queue makes epoll report the socket again
    and again, so a reader that waits for it would spin for as long.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Acknowledgement] = {}
        """By socket cookie, what has to be acknowledged before its queue can be left alone."""
        self._captured: set[int] = set()
        """Cookies of sockets whose queue somebody reads on purpose."""

    def __len__(self) -> int:
        """Sockets being looked after."""
        return len(self._waiting)

    @contextmanager
    def captured(self, sock: socket.socket, nursery: trio.Nursery) -> Iterator[None]:
        """Leave the queue of `sock` to the caller meanwhile, and look after it from then on (`leave`).

        Raises OSError if it is closed already.
        """
        cookie = cookie_of(sock)
        self._captured.add(cookie)
        try:
            yield
        finally:
            self._captured.discard(cookie)
            self.leave(sock, nursery)

    def leave(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Keep the queue of `sock` empty until all that is written now is acknowledged, or the socket is closed.

        `sock` has to live as long as the connection: a duplicate that is closed earlier would end it too soon.
        """
        try:
            drain(sock)
            acknowledgement = Acknowledgement(sock)
            if acknowledgement.arrived():
                return
            cookie = cookie_of(sock)
        except (OSError, ValueError):
            return  # closed: its queue went with it
        if cookie not in self._waiting:
            nursery.start_soon(self._sweep, cookie, sock)
        self._waiting[cookie] = acknowledgement

    async def _sweep(self, cookie: int, sock: socket.socket) -> None:
        pause = _SWEEP_FIRST
        try:
            while not self._waiting[cookie].arrived():
                await trio.sleep(pause)
                pause = min(2 * pause, _SWEEP_LONGEST)
                if cookie not in self._captured:
                    drain(sock)
        except (OSError, ValueError):
            pass  # closed: its queue went with it
        finally:
            del self._waiting[cookie]
