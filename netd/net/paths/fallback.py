"""Tracing without privilege: a flow of its own to the same peer, its errors read from the sockets' error queues.

    udp   datagrams to ports from 33434 on; the peer answers that nobody listens there
    syn   connection attempts to the peer's port; the peer accepts or resets

One socket for each TTL (syn: for each probe), all in parallel, watched through one epoll.

Rules: another flow may take another path, and a NAT or firewall before the peer hides it; so what comes of this is
labelled with its method and never passed off as the connection's own path. Sockets are bounded by the TTLs of a round.

Left out: extensions (MPLS) of errors.

Sources: ip(7), IP_RECVERR; linux/errqueue.h; RFC 1122 3.2.2.1 (port unreachable).
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import structlog
import trio

from netd.net.linux import (
    IP_RECVERR,
    IP_RECVTTL,
    IPV6_HOPLIMIT,
    IPV6_RECVERR,
    IPV6_RECVHOPLIMIT,
    SO_TIMESTAMPNS,
    timestamp_of,
)
from netd.net.paths.path import Hop
from netd.wire.errqueue import parse_extended_error
from netd.wire.ip import distance, show_address
from netd.wire.probes import SLOTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from netd.net.paths.looped import Endpoints
    from netd.net.paths.receivers import OpenSocket
    from netd.net.paths.round import Probe, Round

_log = structlog.get_logger("netd.net")

_FIRST_PORT = 33434
"""Where traceroute's ports start: nobody listens there (IANA: traceroute)."""
_PAYLOAD = bytes(32)


class Flight:
    """The sockets of one round and what they have in the air."""

    attempts = 3

    def __init__(self, method: Literal["udp", "syn"], ends: Endpoints, open_socket: OpenSocket) -> None:
        self.method = method
        self.round: Round | None = None
        self.wakeup = trio.Event()
        self.replies = 0
        self._ends = ends
        self._open_socket = open_socket
        self._epoll = select.epoll()
        self._by_ttl: dict[int, socket.socket] = {}
        self._by_fd: dict[int, tuple[int, socket.socket]] = {}
        self._sent: dict[tuple[int, int], int] = {}
        self._attempt: dict[int, int] = {}

    def wake(self) -> None:
        self.wakeup.set()

    def close(self) -> None:
        for sock in self._by_ttl.values():
            sock.close()
        self._by_ttl.clear()
        self._by_fd.clear()
        self._epoll.close()

    def send(self, probe: Probe) -> None:
        """One probe; a refusal of the kernel leaves it unanswered."""
        try:
            self._send(probe)
        except OSError as error:
            _log.debug("probe not sent", peer=show_address(self._ends.peer), ttl=probe.ttl, error=str(error))

    def _send(self, probe: Probe) -> None:
        sock = self._by_ttl.get(probe.ttl)
        if sock is None or self.method == "syn":
            self._drop(probe.ttl)
            sock = self._open(probe.ttl)
        self._attempt[probe.ttl] = probe.attempt
        self._sent[probe.ttl, probe.attempt] = time.time_ns()
        peer, v6, scope = show_address(self._ends.peer), self._ends.v6, self._ends.scope
        if self.method == "syn":
            port = self._ends.peer_port
            result = sock.connect_ex((peer, port, 0, scope) if v6 else (peer, port))
            if result not in (0, errno.EINPROGRESS):
                self._settled(probe.ttl, sock, result)
        else:
            port = _FIRST_PORT + probe.attempt * SLOTS + probe.ttl - 1
            sock.sendto(_PAYLOAD, (peer, port, 0, scope) if v6 else (peer, port))

    def _open(self, ttl: int) -> socket.socket:
        family = socket.AF_INET6 if self._ends.v6 else socket.AF_INET
        kind = socket.SOCK_STREAM if self.method == "syn" else socket.SOCK_DGRAM
        sock = self._open_socket(family, kind | socket.SOCK_CLOEXEC, 0)
        try:
            sock.setblocking(False)
            if self._ends.v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            if self.method == "syn":
                # closing resets at once, should the peer have accepted
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            # from the address of the connection itself: on a host of many addresses it decides about the path
            sock.bind(
                (show_address(self._ends.local), 0, 0, self._ends.scope)
                if self._ends.v6
                else (show_address(self._ends.local), 0)
            )
            self._epoll.register(sock, select.EPOLLIN | (select.EPOLLOUT if self.method == "syn" else 0))
        except BaseException:
            sock.close()
            raise
        self._by_ttl[ttl] = sock
        self._by_fd[sock.fileno()] = (ttl, sock)
        return sock

    def _drop(self, ttl: int) -> None:
        sock = self._by_ttl.pop(ttl, None)
        if sock is not None:
            del self._by_fd[sock.fileno()]
            sock.close()  # and with it leaves the epoll

    async def receive(self) -> None:
        """Read answers until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0):
                found = self._by_fd.get(fd)
                if found is not None:
                    self._read(*found)

    def _read(self, ttl: int, sock: socket.socket) -> None:
        while True:
            try:
                _, ancillary, _, quoted = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                break
            attempt = self._attempt.get(ttl, 0)
            if self.method == "udp" and quoted:
                attempt = (quoted[1] - _FIRST_PORT) // SLOTS
            self._on_error(ttl, attempt, ancillary)
        if self.method == "syn":
            self._settled(ttl, sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            self._drop(ttl)  # settled one way or the other
            return
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # pending errors would keep it ready
        try:
            while sock.recv(2048):
                self._reached(ttl, self._attempt.get(ttl, 0), time.time_ns(), None)
        except OSError:
            return  # nothing more to read: a datagram back is rarer than an error

    def _settled(self, ttl: int, sock: socket.socket, result: int) -> None:
        """A connection attempt is over: accepted or reset, the peer spoke; anything else was in the error queue."""
        if result == errno.ECONNREFUSED or (result == 0 and _connected(sock)):
            self._reached(ttl, self._attempt[ttl], time.time_ns(), None)

    def _on_error(self, ttl: int, attempt: int, ancillary: list[tuple[int, int, bytes]]) -> None:
        at = timestamp_of(ancillary) or time.time_ns()
        reply_ttl = None
        for level, kind, data in ancillary:
            if (
                (level, kind) == (socket.IPPROTO_IP, socket.IP_TTL)
                or (level, kind) == (socket.IPPROTO_IPV6, IPV6_HOPLIMIT)
            ) and len(data) >= 4:
                (reply_ttl,) = struct.unpack_from("@i", data)
        for level, kind, data in ancillary:
            error = (level, kind)
            if error not in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
                continue
            parsed = parse_extended_error(data)
            sent = self._sent.get((ttl, attempt))
            if parsed is None or sent is None or self.round is None:
                continue
            # refused by anybody but the peer it is a middlebox speaking
            if parsed.port_unreachable and parsed.offender == self._ends.peer:
                self._reached(ttl, attempt, at, reply_ttl)
                continue
            self.replies += 1
            hop = Hop(
                ttl=ttl,
                addr=show_address(parsed.offender),
                rtt_ms=max(0.0, (at - sent) / 1e6),
                kind="ttl" if parsed.expired else "unreach",
                reply_ttl=reply_ttl,
                nat=parsed.offender == self._ends.peer,
                unreach_code=None if parsed.expired else parsed.code,
            )
            self.round.replied(ttl, hop, trio.current_time())
            self.wake()

    def _reached(self, ttl: int, attempt: int, at: int, reply_ttl: int | None) -> None:
        sent = self._sent.get((ttl, attempt))
        if sent is None or self.round is None:
            return
        self.replies += 1
        away = None if reply_ttl is None else distance(reply_ttl)
        self.round.reached(ttl, max(0.0, (at - sent) / 1e6), away, trio.current_time())
        self.wake()


@asynccontextmanager
async def open_flight(method: Literal["udp", "syn"], ends: Endpoints, open_socket: OpenSocket) -> AsyncIterator[Flight]:
    """A flight whose answers are read as long as the context lasts."""
    flight = Flight(method, ends, open_socket)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flight.receive)
            yield flight
            nursery.cancel_scope.cancel()
    finally:
        flight.close()


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
