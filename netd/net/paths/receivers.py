"""The raw sockets of one address family that all traces share: one to send, two to receive.

    send     SOCK_RAW/IPPROTO_RAW, the packet's own IP header
    errors   raw ICMP or ICMPv6: what routers say
    copies   AF_PACKET, incoming TCP with a SACK option: what the peer says

Rules:
- CAP_NET_RAW is all it takes; opening without it raises PermissionError;
- the filters let through what concerns ports in use, which are counted, so traces may share one. Setting a filter takes
  the kernel 0.2 ms and more, so a port stays in it for a while after its last trace; with no port nothing passes;
- an arrival is stamped by the kernel; whoever is called with it decides whether it is an answer.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from netd.net.linux import (
    ETH_P_IP,
    ETH_P_IPV6,
    ICMP6_FILTER,
    ICMP_FILTER,
    IPV6_HOPLIMIT,
    IPV6_RECVHOPLIMIT,
    SO_TIMESTAMPNS,
    SOL_RAW,
    attach_filter,
    timestamp_of,
)
from netd.wire import cbpf
from netd.wire.dsack import parse_duplicate
from netd.wire.icmp import (
    TIME_EXCEEDED,
    TIME_EXCEEDED6,
    UNREACHABLE,
    UNREACHABLE6,
    parse_error4,
    parse_error6,
)
from netd.wire.ip import ICMP, ICMP6, pack_address

if TYPE_CHECKING:
    from netd.wire.dsack import Duplicate
    from netd.wire.icmp import IcmpError

OpenSocket = Callable[[int, int, int], socket.socket]
"""(family, type, protocol) -> socket, as `socket.socket` is."""

log = structlog.get_logger("netd.net")

_RECEIVE_BUFFER = 1 << 20
_BATCH = 256
"""Packets taken in a row before other tasks get their turn."""
_LONGEST = 1500
_PAUSE = 0.1
_LINGER = 10.0
"""Seconds for which a port stays in the filters after its last trace."""
_MOST_LINGERING = 64


class Receivers:
    def __init__(self, *, v6: bool, open_socket: OpenSocket = socket.socket) -> None:
        """Raises PermissionError without CAP_NET_RAW, another OSError where the family does not exist."""
        self.v6 = v6
        self._ports: Counter[int] = Counter()
        self._lingering: dict[int, float] = {}
        """Ports no longer in use that the filters still name, and since when."""
        self._sockets: list[socket.socket] = []
        family = socket.AF_INET6 if v6 else socket.AF_INET
        raw, packet = socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        try:
            self._send = self._open(open_socket(family, raw, socket.IPPROTO_RAW))
            self._errors = self._open(open_socket(family, raw, ICMP6 if v6 else ICMP))
            if v6:
                wanted = 1 << TIME_EXCEEDED6 | 1 << UNREACHABLE6
                blocked = struct.pack("@8I", ~wanted & 0xFFFFFFFF, *[0xFFFFFFFF] * 7)
                self._errors.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, blocked)
                self._errors.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            else:
                wanted = 1 << TIME_EXCEEDED | 1 << UNREACHABLE
                self._errors.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("@I", ~wanted & 0xFFFFFFFF))
            ethertype = ETH_P_IPV6 if v6 else ETH_P_IP
            self._copies = self._open(open_socket(socket.AF_PACKET, packet, socket.htons(ethertype)))
            self._filter()
            for sock in (self._errors, self._copies):
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
                _empty(sock)  # what came before there was a filter
        except BaseException:
            self.close()
            raise

    def _open(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def close(self) -> None:
        """May be called twice."""
        while self._sockets:
            self._sockets.pop().close()

    def hold(self, port: int) -> None:
        """Receive for this local port too. Every call is undone by a `release`; one that raises OSError needs none."""
        self._ports[port] += 1
        if self._ports[port] == 1 and self._lingering.pop(port, None) is None:
            try:
                self._filter()
            except OSError:
                del self._ports[port]
                raise

    def release(self, port: int) -> None:
        self._ports[port] -= 1
        if self._ports[port] <= 0:
            del self._ports[port]
            if len(self._lingering) < _MOST_LINGERING:
                self._lingering[port] = trio.current_time()
            elif self._sockets:
                self._filter()

    @property
    def ports(self) -> set[int]:
        """The ports that the filters name."""
        return self._ports.keys() | self._lingering.keys()

    def _filter(self) -> None:
        attach_filter(self._errors, cbpf.assemble(cbpf.icmp_errors(self.ports, v6=self.v6)))
        attach_filter(self._copies, cbpf.assemble(cbpf.duplicates(self.ports, v6=self.v6)))

    async def _tidy(self) -> None:
        while True:
            await trio.sleep(_LINGER)
            before = len(self._lingering)
            old = trio.current_time() - _LINGER
            self._lingering = {port: since for port, since in self._lingering.items() if since > old}
            if len(self._lingering) < before:
                try:
                    self._filter()
                except OSError as error:  # ENOMEM: the filters still name too many ports, which costs a little time
                    log.warning("cannot narrow the filters", why=error.strerror)

    def send(self, packet: bytes, to: tuple[str, int] | tuple[str, int, int, int]) -> None:
        """One packet with its IP header. Raises OSError when the kernel does not take it (no route, firewall, full)."""
        self._send.sendto(packet, to)

    async def run(
        self, on_error: Callable[[IcmpError, int], None], on_duplicate: Callable[[Duplicate, int], None]
    ) -> None:
        """Receive until cancelled. Both are called with what arrived and when: nanoseconds since the epoch."""

        def error(packet: bytes, ancillary: list[tuple[int, int, bytes]], sender: tuple[str, int]) -> None:
            if self.v6:
                hops = [data for level, kind, data in ancillary if (level, kind) == _HOP_LIMIT and len(data) >= 4]
                hop_limit = struct.unpack_from("@i", hops[0])[0] if hops else None
                parsed = parse_error6(packet, pack_address(sender[0]), hop_limit)
            else:
                parsed = parse_error4(packet)
            if parsed is not None:
                on_error(parsed, timestamp_of(ancillary) or time.time_ns())

        def copy(packet: bytes, ancillary: list[tuple[int, int, bytes]], _sender: object) -> None:
            parsed = parse_duplicate(packet)
            if parsed is not None:
                on_duplicate(parsed, timestamp_of(ancillary) or time.time_ns())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive, self._errors, error)
            nursery.start_soon(_receive, self._copies, copy)
            nursery.start_soon(self._tidy)


_HOP_LIMIT = (socket.IPPROTO_IPV6, IPV6_HOPLIMIT)


async def _receive(
    sock: socket.socket, take: Callable[[bytes, list[tuple[int, int, bytes]], tuple[str, int]], None]
) -> None:
    while True:
        await trio.lowlevel.wait_readable(sock.fileno())
        for _ in range(_BATCH):
            try:
                packet, ancillary, _, sender = sock.recvmsg(_LONGEST, 256)
            except BlockingIOError:
                break
            except OSError as error:  # of the network, not of ours: a device that goes down is told here once
                log.warning("cannot receive answers to probes for a moment", why=error.strerror)
                await trio.sleep(_PAUSE)
                break
            try:
                take(packet, ancillary, sender)
            except Exception:  # anybody can send us a packet: none of them may end tracing for all
                log.exception("cannot take in a packet", packet=packet[:64].hex())


def _empty(sock: socket.socket) -> None:
    while True:
        try:
            sock.recv(1)
        except BlockingIOError:
            return
