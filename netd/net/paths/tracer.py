"""Tracing paths from inside live TCP connections, for any room of the daemon that has one to offer (a `Carrier`).

    trace(carrier) -> its turn -> looped packet -> Round.poll -> Flight.send -> raw socket ---> routers and peer
                                       ^                                                      |
                                     Round <- Flight <- sequence number <- shared receivers <-

Rules:
- the tracer never writes to a session's socket itself: the carrier does, and what the tracer sends are copies;
- every host-wide bound is in `TracerLimits`, settable at any time; what a bound does not let run ends "limited";
- without CAP_NET_RAW the probes are a flow of their own (fallback.py), and `unprivileged_reason` says what to
  grant; nothing else changes for callers;
- on_hop is called in the task that called `trace`; an exception from it ends that trace only.

Left out: names and networks of hops, statistics over rounds, who may trace whom: the trace service's.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import structlog
import trio

from netd.net.linux import ESTABLISHED, cookie_of
from netd.net.paths import fallback, outgoing
from netd.net.paths.budget import ProbeBucket, TracerLimits
from netd.net.paths.inflight import Flight
from netd.net.paths.looped import (
    Acknowledgement,
    Endpoints,
    Leftovers,
    capture,
    endpoints_of,
)
from netd.net.paths.path import Carrier, Hop, Method, Path, Reason, TraceOptions
from netd.net.paths.receivers import OpenSocket, Receivers
from netd.net.paths.round import Finished, Probe, Round
from netd.net.paths.sharing import Ledger
from netd.net.sockdiag import TcpInfo, tcp_info
from netd.wire.probes import syn_distance

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from netd.net.paths.outgoing import OutgoingCarrier
    from netd.wire.dsack import Duplicate
    from netd.wire.icmp import IcmpError

_log = structlog.get_logger("netd.net")

_CLOSE_CHECK = 0.05
"""Seconds between looks at whether the connection still stands."""
_COUNT_CHECK = 0.001
"""The same while received segments are counted."""
_QUIET_SEGMENTS = 4
"""Segments in flight that do not make a connection a busy one."""
_OPTIONS = TraceOptions()
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class TracerSnapshot:
    """What the tracer is doing now and has done since it started."""

    methods: tuple[Method, ...]
    unprivileged_reason: str | None
    running: int
    waiting: int
    traces: int
    """Traces finished."""
    probes: int
    replies: int
    """Answers that matched a probe."""
    unmatched: int
    """ICMP errors that quoted a port in use and matched no probe."""
    limited: int
    """Traces a limit did not let run, or not to their end."""


class Tracer:
    """One per daemon; all methods are for the Trio thread."""

    def __init__(self, limits: TracerLimits | None = None, *, open_socket: OpenSocket = socket.socket) -> None:
        """`open_socket(family, type, protocol)` opens every socket of the tracer's own."""
        self._limits = limits or TracerLimits()
        self._turns = trio.CapacityLimiter(max(1, self._limits.traces))
        self._bucket = ProbeBucket()
        self._ledger = Ledger()
        self._open_socket = open_socket
        self._receivers: dict[bool, Receivers] = {}
        self._methods: tuple[Method, ...] = ()
        self._unprivileged: tuple[str, str] | None = None
        self._nursery: trio.Nursery | None = None
        self._flights: dict[tuple[bool, int], list[Flight]] = {}
        """(v6, local port) -> rounds inside connections."""
        self._leftovers = Leftovers()
        self._traced: set[int] = set()
        """Cookies of the sockets that a round is using."""
        self._finished = self._probes = self._replies = self._unmatched = self._limited = 0

    @property
    def limits(self) -> TracerLimits:
        """Settable at any time; traces that run keep their place."""
        return self._limits

    @limits.setter
    def limits(self, limits: TracerLimits) -> None:
        self._limits = limits
        self._turns.total_tokens = max(1, limits.traces)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods possible here, best first: ("tcp", "udp", "syn") with CAP_NET_RAW, else ("udp", "syn").

        Empty until `run` has started.
        """
        return self._methods

    @property
    def unprivileged_reason(self) -> str | None:
        """Why "tcp" is not possible, as a sentence that says what to grant; None when it is possible."""
        return None if self._unprivileged is None else "; ".join(self._unprivileged)

    @property
    def unprivileged(self) -> tuple[str, str] | None:
        """The same in its two parts: why, and what to grant."""
        return self._unprivileged

    @property
    def sweeping(self) -> int:
        """Connections whose error queue is still looked after, because their message is not acknowledged."""
        return len(self._leftovers)

    def snapshot(self) -> TracerSnapshot:
        return TracerSnapshot(
            methods=self._methods,
            unprivileged_reason=self.unprivileged_reason,
            running=self._turns.borrowed_tokens,
            waiting=self._turns.statistics().tasks_waiting,
            traces=self._finished,
            probes=self._probes,
            replies=self._replies,
            unmatched=self._unmatched,
            limited=self._limited,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Receive until cancelled. `started()` means `trace` may be called."""
        self._open_receivers()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for receivers in self._receivers.values():
                    nursery.start_soon(receivers.run, self._on_error, self._on_duplicate)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._methods = ()
            for receivers in self._receivers.values():
                receivers.close()
            self._receivers = {}

    def _open_receivers(self) -> None:
        problem: OSError | None = None
        for v6 in (False, True):
            try:
                self._receivers[v6] = Receivers(v6=v6, open_socket=self._open_socket)
            except OSError as error:
                problem = error
                _log.info("raw sockets not available", family="ipv6" if v6 else "ipv4", error=str(error))
        if self._receivers:  # one family may be absent from the host altogether
            self._methods = ("tcp", "udp", "syn")
            self._unprivileged = None
            return
        self._methods = ("udp", "syn")
        if isinstance(problem, PermissionError):
            advice = "grant CAP_NET_RAW (systemd: AmbientCapabilities=CAP_NET_RAW)"
        else:
            advice = "a kernel with raw and packet sockets is needed"
        self._unprivileged = (f"cannot trace inside connections: raw sockets were refused ({problem})", advice)

    async def open_carrier(
        self, host: str, port: int, *, send: Literal["auto", "http", "tls"] = "auto"
    ) -> OutgoingCarrier:
        """Open a TCP connection for `trace`; close it with `async with`. OSError when no address answers in time."""
        return await outgoing.open_carrier(host, port, send=send)

    # --- a trace -------------------------------------------------------------------------------------------------

    async def trace(
        self,
        carrier: Carrier,
        options: TraceOptions = _OPTIONS,
        on_hop: Callable[[Hop], None] | None = None,
    ) -> Path:
        """One round over the path to the carrier's peer.

        `on_hop` is called once for each TTL, as soon as its hop is known, the silent ones at the end; never for the
        peer itself. Whatever goes wrong with the connection or a limit is the path's `reason`. RuntimeError if `run`
        is not running.
        """
        if self._nursery is None:
            raise RuntimeError("cannot trace: the tracer is not running")
        await trio.lowlevel.checkpoint_if_cancelled()
        path = await self._trace_in_turn(carrier, options, on_hop)
        if not path.probes:  # a refusal must not let its caller spin
            await trio.lowlevel.checkpoint()
        return path

    async def _trace_in_turn(
        self, carrier: Carrier, options: TraceOptions, on_hop: Callable[[Hop], None] | None
    ) -> Path:
        start = trio.current_time()
        if self._turns.statistics().tasks_waiting >= max(0, self._limits.waiting):
            return self._refused("limited", options, start)
        try:
            self._turns.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(self._limits.patience) as queue:
                await self._turns.acquire()
            if queue.cancelled_caught:
                return self._refused("limited", options, start)
        try:
            path = await self._trace(carrier, options, on_hop)
        finally:
            self._turns.release()
        self._finished += 1
        return path

    async def _trace(self, carrier: Carrier, options: TraceOptions, on_hop: Callable[[Hop], None] | None) -> Path:
        start = trio.current_time()
        sock = carrier.socket
        ends = endpoints_of(sock)
        if ends is None:
            return self._refused("closed", options, start)
        method = options.method if options.method != "auto" else "tcp" if ends.v6 in self._receivers else "udp"
        if method == "tcp" and ends.v6 not in self._receivers:
            return self._refused("unprivileged", options, start)
        try:
            cookie = cookie_of(sock)
        except OSError:
            return self._refused("closed", options, start)
        if cookie in self._traced:  # two would read each other's looped packets
            return self._refused("limited", options, start)
        self._traced.add(cookie)
        try:
            if method == "tcp":
                return await self._trace_inside(carrier, ends, options, on_hop, start)
            return await self._trace_beside(carrier, ends, method, options, on_hop, start)
        finally:
            self._traced.discard(cookie)

    def _refused(self, reason: Reason, options: TraceOptions, start: float, method: Method | None = None) -> Path:
        """A path of which nothing is known."""
        if reason == "limited":
            self._limited += 1
        if method is None:
            method = options.method if options.method != "auto" else "tcp" if "tcp" in self._methods else "udp"
        return Path((), method, reason, None, None, None, None, 0, (trio.current_time() - start) * 1000)

    async def _trace_inside(
        self,
        carrier: Carrier,
        ends: Endpoints,
        options: TraceOptions,
        on_hop: Callable[[Hop], None] | None,
        start: float,
    ) -> Path:
        """With copies of bytes of the connection itself."""
        sock = carrier.socket
        try:
            info = tcp_info(sock)
            busy = _busy(info)
            assert self._nursery is not None
            with self._leftovers.captured(sock, self._nursery):
                segment = await capture(carrier, ends)
            acknowledgement = Acknowledgement(sock)
        except _BROKEN:
            return self._refused("closed", options, start, "tcp")
        if isinstance(segment, str):
            return self._refused(segment, options, start, "tcp")
        receivers = self._receivers[ends.v6]
        flight = Flight(sock, ends, segment, receivers)
        receivers.hold(ends.local_port)
        flights = self._flights.setdefault((ends.v6, ends.local_port), [])
        flights.append(flight)
        try:
            if busy or not info.sack:
                # the peer should have the bytes before their copies arrive, and a count of segments needs quiet
                try:
                    await acknowledgement.wait(start + options.timeout)
                except OSError:
                    return self._refused("closed", options, start, "tcp")
            connection = (ends.local, ends.local_port, ends.peer, ends.peer_port)
            flight.round = self._new_round(carrier, ends, options, info, flight, connection, inside=True)
            return await self._drive(flight.round, flight, "tcp", on_hop, start, sock)
        finally:
            receivers.release(ends.local_port)
            flights.remove(flight)
            if not flights:
                self._flights.pop((ends.v6, ends.local_port), None)

    async def _trace_beside(
        self,
        carrier: Carrier,
        ends: Endpoints,
        method: Literal["udp", "syn"],
        options: TraceOptions,
        on_hop: Callable[[Hop], None] | None,
        start: float,
    ) -> Path:
        """With a flow of its own to the same peer."""
        try:
            info = tcp_info(carrier.socket)
        except OSError:
            return self._refused("closed", options, start, method)
        connection = (method, ends.local, ends.local_port, ends.peer, ends.peer_port)
        async with fallback.open_flight(method, ends, self._open_socket) as flight:
            flight.round = self._new_round(carrier, ends, options, info, flight, connection, inside=False)
            path = await self._drive(flight.round, flight, method, on_hop, start, carrier.socket)
            self._replies += flight.replies
        return path

    def _new_round(
        self,
        carrier: Carrier,
        ends: Endpoints,
        options: TraceOptions,
        info: TcpInfo,
        flight: Flight | fallback.Flight,
        connection: Hashable,
        *,
        inside: bool,
    ) -> Round:
        rtt = info.rtt_us / 1e6 if info.rtt_us else None
        now = trio.current_time()
        return Round(
            options,
            now=now,
            distance=syn_distance(carrier.saved_syn),
            rtt=rtt,
            names_duplicates=info.sack or not inside,
            attempts=flight.attempts,
            share=self._ledger.join(
                # another flow may take another way: what it finds is shared among its own kind only
                ends.local if inside else b"beside" + ends.local,
                ends.peer,
                connection,
                now=now,
                hold=min(max(0.1, 3 * (rtt or 0.0)), options.timeout / 3),
                adopt=options.share,
                wake=flight.wake,
            ),
        )

    async def _drive(
        self,
        round_: Round,
        flight: Flight | fallback.Flight,
        method: Method,
        on_hop: Callable[[Hop], None] | None,
        start: float,
        sock: socket.socket,
    ) -> Path:
        """Do what the strategy says until it is finished."""
        held = 0.0  # seconds that the limit has kept the next probe back
        starved = False
        tcp_rtt_ms: float | None = None
        try:
            while True:
                now = trio.current_time()
                try:
                    info = tcp_info(sock)
                except OSError:
                    info = TcpInfo()
                if info.state != ESTABLISHED:
                    round_.close()
                elif method == "tcp" and info.segs_in is not None:
                    round_.counted(info.segs_in, now)
                if tcp_rtt_ms is None and info.rtt_us:
                    tcp_rtt_ms = info.rtt_us / 1000
                flight.wakeup = trio.Event()
                delay = 0.0
                while isinstance(step := round_.poll(now), Probe):
                    if delay := self._bucket.take(self._limits, now):
                        break
                    flight.send(step)
                    round_.sent(step, now)
                    self._probes += 1
                    held = 0.0
                    now = trio.current_time()
                if on_hop is not None:
                    for hop in round_.news():
                        on_hop(hop)
                if isinstance(step, Finished):
                    break
                until = now + delay if isinstance(step, Probe) else step.until
                pause = _COUNT_CHECK if round_.counting and not delay else _CLOSE_CHECK
                with trio.move_on_at(min(until, now + pause)):
                    await flight.wakeup.wait()
                if delay:
                    waited = trio.current_time() - now
                    held += waited
                    if held < self._limits.patience:
                        round_.postpone(waited)  # a low limit makes a round slow, not short
                    else:
                        starved = True
        finally:
            round_.close()
        reason = step.reason
        if starved and reason in ("timeout", "max-hops"):
            reason = "limited"
            self._limited += 1
        return Path(
            hops=round_.hops(),
            method=method,
            reason=reason,
            dest_ttl=round_.destination,
            est_ttl=round_.distance,
            dest_rtt_ms=round_.rtt_ms if round_.destination is not None else None,
            tcp_rtt_ms=tcp_rtt_ms,
            probes=round_.probes,
            elapsed_ms=(trio.current_time() - start) * 1000,
        )

    # --- what arrives --------------------------------------------------------------------------------------------

    def _on_error(self, error: IcmpError, at: int) -> None:
        flights = self._flights.get((len(error.source) == 16, error.source_port), [])
        # the round to this very port first; a NAT may have changed the port, then it is any of them
        for flight in sorted(flights, key=lambda one: one.ends.peer_port != error.destination_port):
            if flight.on_error(error, at):
                self._replies += 1
                return
        self._unmatched += 1

    def _on_duplicate(self, duplicate: Duplicate, at: int) -> None:
        for flight in self._flights.get((len(duplicate.source) == 16, duplicate.destination_port), ()):
            if flight.on_duplicate(duplicate, at):
                self._replies += 1
                return
        # matched or not: acknowledgements of the connections' own losses come this way too


def _busy(info: TcpInfo) -> bool:
    """Whether so much is under way that copies had better wait for the acknowledgement of what they are copies of.

    A handshake's answer or a greeting in flight is ahead of the copies on the same path: waiting for its
    acknowledgement would cost a first trace a second round trip. A stream is another matter: the message may still be
    queued behind it, and what is lost of it is told from duplicates only once it has arrived.
    """
    return bool(info.notsent_bytes) or (info.unacked or 0) > _QUIET_SEGMENTS
