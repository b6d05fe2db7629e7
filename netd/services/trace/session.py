"""One client's stay: a WebSocket that is traced at once, may ask again, and is a full WebSocket meanwhile.

    reader     messages in: always reading, because an unread message would hold up pings and the closing handshake
    writer     the outbox, in order, and the closing handshake last
    keepalive  pings; a client that does not answer, or has nothing to do here any more, is closed
    tracer     waits for the client's turn, traces, waits to be asked again
    closer     ends the stay in good order when `end` was called, within a bound

    waiting --turn comes--> tracing --done--> idle --asked, turn taken--> tracing

Rules:
- nothing waits for a client but its own writer: `say` puts a message into the bounded outbox or ends the stay;
- a send is cancelled only when the connection is over: a torn frame could not be repaired;
- a client's next trace begins `client_interval` after its last ended at the earliest, and costs its address a turn;
  what an operator asks for costs no turn.

Left out: the handshake (service.py), one trace (tracing.py), the words (protocol.py).
"""

from __future__ import annotations

import math
import os
import random
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import trio
from trio_websocket import ConnectionClosed

from netd.errors import Conflict, ProtocolError
from netd.services.trace import protocol
from netd.services.trace.carrier import Ping, PingCarrier
from netd.services.trace.notices import ClientConnected, ClientGone
from netd.services.trace.tracing import ClientTrace

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from netd.services.trace.rounds import Summary
    from netd.services.trace.stream import ClientStream
    from netd.services.trace.tracing import Shared

MAX_FRAGMENTS = 1024
"""Fragments of one message. The library bounds a message's size, but not how many empty fragments it has."""

CLOSING = 2.0
"""Seconds for a client to take what is left for it and to answer the closing handshake."""

State = Literal["waiting", "tracing", "idle"]


class Close(NamedTuple):
    """How a stay ends: WebSocket close code, its reason for the client, what becomes of a running trace."""

    code: int
    reason: str
    cut: str


@dataclass(frozen=True)
class ClientView:
    """A client as REST shows it. Times are seconds since the epoch, `*_ms` milliseconds."""

    client_id: str
    address: str
    listener: str
    tls: bool
    connected: float
    state: State
    traces: int
    trace_id: str | None
    """Of the running trace, or else of the last."""
    round: int | None
    """Of the running trace."""
    reason: str | None
    """Of the last trace, as what follows."""
    method: str | None
    dest_ttl: int | None
    path_rtt_ms: float | None
    tcp_rtt_ms: float | None
    pong_rtt_ms: float | None
    proxy: bool | None


class Endpoint(NamedTuple):
    """Where a client comes from and came in."""

    sock: trio.socket.SocketType
    saved_syn: bytes
    address: str
    """ "192.0.2.7:50312", "[2001:db8::1]:50312"."""
    key: str
    """What counts as its address in limits.py."""
    listener: str
    tls: bool


class Session:
    """One client, from its handshake on. `run` returns when it is over."""

    def __init__(self, shared: Shared, endpoint: Endpoint, stream: ClientStream, ws: WebSocketConnection) -> None:
        self._shared = shared
        self._endpoint = endpoint
        self._stream = stream
        self._ws = ws
        self._outbox: deque[str] = deque()
        self._more = trio.Event()
        self._state: State = "waiting"
        self._hurry = trio.Event()
        self._asked = trio.Event()
        self._trace: ClientTrace | None = None
        self._traces = 0
        self._tracing = trio.CancelScope()
        self._tracing_over = trio.Event()
        self._close: Close | None = None
        self._close_asked = trio.Event()
        self._close_within = CLOSING
        self._flushed = False
        self._busy_until = trio.current_time()
        self._may_ask_at = 0.0
        self._over = trio.CancelScope()
        self._gone = ""
        self._pings = 0
        self._own: socket.socket | None = None
        self._nursery: trio.Nursery
        self.client_id = shared.ids.new()
        self.address = endpoint.address
        self.connected = time.time()
        self.last: tuple[str, str, Summary | None] | None = None
        """Id, reason and findings of the last trace; findings None when operators are not to know."""
        stream.inspect = self._inspect

    async def run(self) -> None:
        """Serve the client until it leaves or is sent away."""
        config = self._shared.config
        self._shared.counters.clients.inc()
        self._shared.bus.publish(ClientConnected(client_id=self.client_id, address=self.address))
        self.say(
            protocol.connected(
                self.client_id, self.address, max_hops=config.max_hops, rounds=config.rounds, interval=config.interval
            )
        )
        try:
            with self._over:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for task in (self._read, self._write, self._keep_alive, self._trace_when_asked, self._close_well):
                        nursery.start_soon(task)
        finally:
            if self._own is not None:
                self._own.close()
            self._shared.counters.clients.dec()
            self._shared.bus.publish(ClientGone(client_id=self.client_id, reason=self._reason()))

    # --- for others; none of them waits ---

    def say(self, message: protocol.Message) -> None:
        """Send a message, some time soon."""
        if self._over.cancel_called or self._flushed:
            return
        if len(self._outbox) >= self._shared.config.outbox:
            self._leave("did not read")
            return
        self._outbox.append(protocol.encode(message))
        self._more.set()

    def end(self, close: Close, *, within: float = CLOSING) -> None:
        """End the stay: cut the trace, send what is left, close, all in `within` (or CLOSING) seconds.

        May be called twice; the first counts.
        """
        if self._close is None:
            self._close = close
            self._close_within = min(within, CLOSING)
            self._close_asked.set()

    def trace_now(self) -> None:
        """Trace this client at once, as an operator wishes. Raises Conflict while it is being traced already."""
        if self._state == "tracing" or self._asked.is_set():
            raise Conflict(f"cannot trace client {self.client_id}: it is being traced already")
        if self._close is not None:
            raise Conflict(f"cannot trace client {self.client_id}: its connection is being closed")
        (self._hurry if self._state == "waiting" else self._asked).set()

    def view(self) -> ClientView:
        trace_id, reason, summary = self.last or (None, None, None)
        running = self._trace
        return ClientView(
            client_id=self.client_id,
            address=self.address,
            listener=self._endpoint.listener,
            tls=self._endpoint.tls,
            connected=self.connected,
            state=self._state,
            traces=self._traces,
            trace_id=running.id if running else trace_id,
            round=running.round if running else None,
            reason=reason,
            method=summary.method if summary else None,
            dest_ttl=summary.dest_ttl if summary else None,
            path_rtt_ms=protocol.to_ms(summary.path_rtt.mean) if summary else None,
            tcp_rtt_ms=protocol.to_ms(summary.tcp_rtt_ms) if summary else None,
            pong_rtt_ms=protocol.to_ms(summary.pong_rtt_ms) if summary else None,
            proxy=summary.proxy if summary else None,
        )

    def carrier(self) -> PingCarrier:
        """What the tracer needs of this session, for one round."""
        # A descriptor of its own: Trio lets one task wait for one descriptor, and the reader waits for the first. It
        # lives as long as the session: after a round the tracer still looks after the socket's error queue by it.
        if self._own is None:
            self._own = socket.socket(fileno=os.dup(self._endpoint.sock.fileno()))
        return PingCarrier(self.start_ping, self._own, self._endpoint.saved_syn)

    # --- the tasks ---

    async def _read(self) -> None:
        try:
            while True:
                message = await self._ws.get_message()
                self._busy_until = trio.current_time()
                try:
                    asked = protocol.parse(message)
                except ProtocolError as error:
                    self.say(protocol.error(str(error)))
                    continue
                if isinstance(asked, protocol.PingAsked):
                    self.say(protocol.pong(asked))
                else:
                    self._ask()
        except ConnectionClosed:
            if self._close is None:
                self._leave("left")

    async def _write(self) -> None:
        try:
            while True:
                while self._outbox:
                    await self._ws.send_message(self._outbox.popleft())
                if self._flushed and self._close is not None:
                    await self._ws.aclose(self._close.code, self._close.reason)
                    self._leave(self._close.cut)
                self._more = trio.Event()
                await self._more.wait()
        except ConnectionClosed:
            # the reader has heard of it too, unless the stay is ending anyway
            self._leave("left" if self._close is None else self._close.cut)

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(min(self._shared.config.ping_interval, self._idle_left()))
            if self._idle_left() <= 0:
                self.end(Close(1000, "idle", "idle"))
                return
            with trio.move_on_after(self._shared.config.pong_timeout) as patience:
                await self.start_ping().answered.wait()
            if patience.cancelled_caught:
                self._leave("did not answer a ping")

    async def _trace_when_asked(self) -> None:
        with self._tracing:
            await self._await_turn()
            while True:
                self._state = "tracing"
                self._trace = ClientTrace(self._shared, self)
                if self._close is not None:
                    self._trace.cut = self._close.cut
                try:
                    await self._trace.run()
                finally:
                    self._trace = None
                    self._traces += 1
                    self._busy_until = trio.current_time()
                    self._may_ask_at = self._busy_until + self._shared.config.client_interval
                self._state = "idle"
                await self._asked.wait()
                self._asked = trio.Event()
        self._tracing_over.set()

    async def _await_turn(self) -> None:
        turns, key = self._shared.turns, self._endpoint.key
        delay = turns.reserve(key, trio.current_time())
        if delay <= 0:
            return
        self.say(protocol.waiting(delay))
        used = False
        try:
            with trio.move_on_after(delay) as patience:
                await self._hurry.wait()
            used = patience.cancelled_caught
        finally:
            if not used:
                turns.give_back(key, trio.current_time())

    async def _close_well(self) -> None:
        await self._close_asked.wait()
        assert self._close is not None
        if self._trace is not None:
            self._trace.cut = self._close.cut
        self._tracing.cancel()
        with trio.move_on_after(self._close_within):
            await self._tracing_over.wait()
            self._flushed = True
            self._more.set()
            await trio.sleep_forever()
        self._leave(self._close.cut)

    # --- inside ---

    def _idle_left(self) -> float:
        """Seconds until this client has been idle for too long; inf while it is not idle at all."""
        if self._state != "idle":
            return math.inf
        return max(0.0, self._busy_until + self._shared.config.idle_timeout - trio.current_time())

    def _ask(self) -> None:
        """The client wants another trace."""
        now = trio.current_time()
        if self._state != "idle" or self._asked.is_set():
            self.say(protocol.error("cannot begin another trace: one is running or about to"))
            return
        delay = self._may_ask_at - now
        if delay <= 0:
            delay = self._shared.turns.take(self._endpoint.key, now)
        if delay > 0:
            self._shared.counters.refused("interval")
            self.say(protocol.error("cannot begin another trace so soon: ask again later", retry_after=delay))
            return
        self._asked.set()

    def start_ping(self) -> Ping:
        """Write a WebSocket ping; the result tells how it fares."""
        self._pings += 1
        ping = Ping(self._stream, b"netd %d " % self._pings)
        self._nursery.start_soon(ping.run, self._ws)
        return ping

    def _inspect(self) -> None:
        # the library has no public word for a message under way; without the attribute there is nothing to bound
        if len(getattr(self._ws, "_message_parts", ())) > MAX_FRAGMENTS:
            self._leave("sent too many fragments")
            raise trio.BrokenResourceError("too many fragments")

    def _leave(self, why: str) -> None:
        """The connection is over, or is to be: everything of this session is cancelled."""
        if not self._gone:
            self._gone = why
        self._over.cancel()

    def _reason(self) -> str:
        if self._stream.stalled:
            return "did not read"
        if self._gone == "left" and self._ws.closed is not None:
            return f"left ({self._ws.closed.code})"
        return self._gone or "cancelled"


def farewell() -> Close:
    """For a client that the daemon leaves: 1001 (RFC 6455 section 7.4.1), and when to come back, a little different for
    each so that they do not all come at once."""
    return Close(1001, f"netd is going away; come back in {random.randint(1, 10)} s", "draining")
