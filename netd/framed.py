"""The server library: length-prefixed messages over TCP, for programs of your own.

    async with FramedServer("127.0.0.1:9000", codec="json") as server:
        async for event in server:
            match event:
                case Received(connection, data):
                    connection.send({"echo": data})
                case Closed(connection, code, why):
                    print(connection.id, "left:", why)

It is the daemon's framed service without the daemon: the same arrivals (TLS, PROXY protocol, handshakes plain and
signed, verifiers), limits, outboxes and reactor, and every limit of the `[framed]` section by its name there.

Rules:
- events come in the order in which things happened to a connection; whoever does not take them is not overrun: of one
  connection at most `waiting` messages, or WAITING_BYTES, wait (and what was read with the last of them), and past that
  nothing more is read from it. One whose `Closed` was not taken yet still counts in `max_connections`;
- `send` never waits. What the other side does not read waits in the connection's outbox: `Backpressure` says that half
  of its bound does, `Drain` that it was read again, and past the bound `slow_consumer` says what becomes of it;
- leaving the block closes the listener, lets what waits be written for at most `drain` seconds, and ends.

Left out: channels, presence, history (netd itself; or give it a `hub`), clients (netd.client.FramedClient).
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

import structlog
import trio

from netd import logs
from netd.errors import sole
from netd.net.reactor import Reactor
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.service import Context
from netd.section import Tls
from netd.services.framed.config import FramedConfig, FramedListen
from netd.services.framed.connection import Held
from netd.services.framed.exchange import Exchange
from netd.services.framed.modes import Mode, Plain
from netd.services.framed.preparation import PreparedListener, prepare
from netd.services.framed.room import Room
from netd.services.framed.service import FramedService
from netd.wire.codecs import RAW
from netd.wire.codecs import codec as codec_of
from netd.wire.framing import FrameDecoder, NoFraming, frame
from netd.wire.handshake import Handshake
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from netd.hub.hub import Hub
    from netd.services.framed.connection import Connection as Link
    from netd.services.framed.views import ConnectionView, Totals
    from netd.wire.codecs import Codec

__all__ = [
    "Backpressure",
    "CloseCode",
    "Closed",
    "Connected",
    "Connection",
    "Drain",
    "Event",
    "FramedServer",
    "Handshake",
    "Introduced",
    "Received",
    "Rejected",
    "Tls",
]

WAITING_BYTES = 1 << 20
"""Bytes of one connection's payloads that wait to be taken, but for the frame that passes it."""
_REJECTIONS = 100
"""`Rejected` events that wait to be taken; further ones are only counted."""


class Connection:
    """A client of a FramedServer. Compares by identity; stays usable after its end, for what was known of it."""

    __slots__ = ("_link", "_pressure", "_server", "_waiting", "_waiting_bytes")

    def __init__(self, server: FramedServer, link: Link) -> None:
        self._server = server
        self._link = link
        self._waiting = 0
        self._waiting_bytes = 0
        self._pressure: bool | None = None
        """Of the event that waits to be taken: True for Backpressure, False for Drain; None: none does."""

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.address}>"

    @property
    def id(self) -> str:
        """UUIDv4; nobody else's, ever."""
        return self._link.session.id

    @property
    def address(self) -> str:
        """ "192.0.2.7:50312", "[2001:db8::1]:50312" or "unix:"; as the PROXY header tells it where one is spoken."""
        return self._link.session.address

    @property
    def tags(self) -> Mapping[str, str]:
        """Of its handshake; more may be set with `tag`."""
        return self._link.session.tags

    @property
    def handshake(self) -> Handshake | None:
        """None: there was none, or it has not come yet."""
        return self._link.handshake

    @property
    def peer_certificate(self) -> bytes | None:
        """The certificate that the client showed (mutual TLS), in DER."""
        tls = self._link.stream.tls
        return None if tls is None else tls.peer_certificate()

    @property
    def closed(self) -> bool:
        """It is ending, or has ended."""
        return self._link.closing or self._link.stream.closed

    @property
    def queued(self) -> int:
        """Bytes that wait for it to read."""
        return self._link.outbox.size

    def send(self, data: Any, *, priority: int = 128, ephemeral: bool = False) -> bool:
        """Have `data` sent; lower priorities (0 to 255) first. False: it was dropped (what is larger
        than `backpressure` by itself always is), or the connection has ended.

        Raises ProtocolError (local) for what the codec cannot encode.
        """
        return self._push(self._server.encode(data), priority, ephemeral)

    def tag(self, **tags: str) -> None:
        """Set tags of your own, for `broadcast`; they count more than the client's. Does nothing once it is ending."""
        session, hub = self._link.session, self._server.hub
        if self.closed:
            return  # the hub has forgotten it, and would keep it for ever
        fixed = {**session.fixed_tags, **tags}
        if hub is None:
            session.tag(fixed=fixed)
        else:
            hub.tag(session, fixed=fixed)

    def close(self, reason: str = "", code: int = CloseCode.NORMAL, *, within: float = 5.0) -> None:
        """End it, once what waits was written, or after `within` seconds. Its `Closed` tells code and reason."""
        self._link.end(code, reason or "closed", within=within)

    def view(self) -> ConnectionView:
        """Everything there is to know of it: bytes, messages, times."""
        return self._server._exchange.view(self._link)

    def _push(self, data: bytes, priority: int, ephemeral: bool) -> bool:
        return not self.closed and self._link.outbox.push(data, priority, ephemeral)


@dataclass(frozen=True, slots=True)
class Connected:
    """A client was let in. Where handshakes are required, its own is known."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Introduced:
    """An optional handshake came: `connection.handshake` and its tags are known from here on."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Received:
    """A message, decoded by the codec."""

    connection: Connection
    data: Any


@dataclass(frozen=True, slots=True)
class Closed:
    """The last of a connection. `code` is a CloseCode, `why` a phrase."""

    connection: Connection
    code: int
    why: str


@dataclass(frozen=True, slots=True)
class Backpressure:
    """More than half of what may wait for it (`queued` bytes) does."""

    connection: Connection
    queued: int


@dataclass(frozen=True, slots=True)
class Drain:
    """It has read what waited, but for an eighth of what may."""

    connection: Connection
    queued: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A client was not let in. `why` is a word of netd.services.framed.exchange.REJECTED."""

    address: str
    why: str


Event: TypeAlias = Connected | Introduced | Received | Closed | Backpressure | Drain | Rejected


class FramedServer:
    """A server of framed messages: an async context manager, and an async iterator of events inside it."""

    def __init__(
        self,
        address: str,
        *,
        codec: str | Codec = "raw",
        framing: Literal["length", "none"] = "length",
        handshake: Literal["none", "optional", "required"] = "optional",
        version: str = "",
        keys: Sequence[Path] = (),
        handshake_window: float = 30.0,
        verify: Callable[[Handshake], bool | Awaitable[bool]] | None = None,
        tls: Tls | None = None,
        interface: str | None = None,
        proxy_protocol: Sequence[str] = (),
        waiting: int = 256,
        drain: float = 5.0,
        hub: Hub | None = None,
        **limits: Any,
    ) -> None:
        """Everything but `waiting`, `drain` (above), `verify` and `hub` is as in `[framed]` and `[[framed.listen]]`.

        `verify` is called with each handshake (`def` in a thread, `async def` on Trio); what it does not find true is
        refused. It asks for handshake="required". `hub`: clients are sessions of it too. `limits`: max_frame,
        max_connections, backpressure, rate, idle_timeout and the others of `[framed]`.

        Raises ValueError for what does not fit together.
        """
        if verify is not None and handshake != "required":
            raise ValueError('cannot verify handshakes if clients may come without one: write handshake="required"')
        if framing == "none" and handshake == "optional":
            handshake = "none"
        listen = FramedListen(
            address=address,
            mode="echo",
            framing=framing,
            handshake=handshake,
            version=version,
            keys=list(keys),
            handshake_window=handshake_window,
            tls=tls,
            interface=interface,
            proxy_protocol=list(proxy_protocol),
        )
        self.hub = hub
        self._limits = limits
        self._listen = listen
        self._config = FramedConfig(listen=[listen], **limits)
        self._codec: Codec = codec_of(codec) if isinstance(codec, str) else codec
        self._framed = framing == "length"
        self._verify = verify
        self._waiting = waiting
        self._drain = drain
        self._connections: dict[Link, Connection] = {}
        self._by_id: dict[str, Connection] = {}
        self._events: deque[Event] = deque()
        self._rejections = 0
        self._more = trio.Event()
        self._over = False
        self._stop: Callable[[], None]
        self._exchange: Exchange
        self._service: FramedService
        self._running: AbstractAsyncContextManager[None]
        self.address = address
        """Where it listens; inside the block the actual address ("127.0.0.1:43210")."""

    async def __aenter__(self) -> Self:
        """Listen. Raises PrepareFailed when the address, a certificate or a key cannot be had."""
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._running.__aexit__(*exc)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; the iteration ends once the server is closed and all was taken."""
        while not self._events:
            if self._over:
                raise StopAsyncIteration
            self._more = trio.Event()
            await self._more.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        event = self._events.popleft()
        if isinstance(event, Rejected):
            self._rejections -= 1
        else:
            self._taken(event)
        return event

    @property
    def port(self) -> int:
        """The actual port; 0 on a Unix socket."""
        return 0 if self.address.startswith("unix:") else int(self.address.rpartition(":")[2])

    @property
    def connections(self) -> int:
        """How many clients are in."""
        return len(self._by_id)

    def connection(self, id: str) -> Connection | None:
        """A client that is in; None: it is not here."""
        return self._by_id.get(id)

    def __iter__(self) -> Iterator[Connection]:
        """The clients that are in, in the order of their coming."""
        return iter(list(self._by_id.values()))

    def encode(self, data: Any) -> bytes:
        """`data` as it goes on the wire. Raises ProtocolError (local)."""
        payload = self._codec.encode(data)
        return frame(payload) if self._framed else payload

    def broadcast(
        self,
        data: Any,
        *,
        tags: Mapping[str, str] | None = None,
        but: Connection | None = None,
        priority: int = 128,
        ephemeral: bool = False,
    ) -> int:
        """Send to every client, or to those with all of these `tags`, but one; encoded once. Returns to how many."""
        wire = self.encode(data)
        wanted = (tags or {}).items()
        reached = 0
        for connection in self:
            if connection is not but and wanted <= connection.tags.items():
                reached += connection._push(wire, priority, ephemeral)
        return reached

    def configure(self, **limits: Any) -> None:
        """Change limits of `[framed]`; they hold for who is here from its next message on. Raises ValueError."""
        config = FramedConfig(listen=[self._listen], **{**self._limits, **limits})
        self._limits.update(limits)
        self._service.reconfigure(config)

    def totals(self) -> Totals:
        """Bytes and messages in and out, connections, backpressure and drains since it began."""
        return self._exchange.totals()

    def close(self) -> None:
        """Accept nothing more, close every connection, and end the iteration when that is done."""
        self._stop()

    # --- inside ---

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        logs.embed()
        bus = Bus(history=1)
        health = Health(bus)
        listeners = Listeners(health=health)
        reactor = Reactor()
        draining = trio.Event()
        deadline = [float("inf")]
        room = _Room(self, reactor)
        context = Context(
            name="framed",
            bus=bus,
            health=health.for_service("framed"),
            metrics=cast("Any", None),  # the library's user asks `totals`
            store=cast("Any", None),
            listeners=listeners.lease("framed"),
            log=structlog.get_logger("netd.framed"),
            state_directory=None,
            draining=draining,
            drain_deadline=lambda: deadline[0],
        )
        scope = trio.CancelScope()

        def stop() -> None:
            if not draining.is_set():
                deadline[0] = scope.deadline = trio.current_time() + self._drain
                draining.set()
                context.listeners.release()

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await self._service.run(task_status=task_status)
            finally:
                self._finish()

        self._stop = stop
        try:
            async with trio.open_nursery() as outer:
                await outer.start(reactor.run)
                prepared = await prepare(self._config, context)
                (one,) = prepared.ways
                prepared.ways = [one._replace(codec=self._codec, verifier=self._verify)]
                self.address = one.listener.address
                self._service = FramedService(self._config, prepared, context, room=room)
                self._exchange = room.exchange(context)
                async with trio.open_nursery() as inner:
                    await inner.start(serve)
                    yield
                    stop()
                outer.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise sole(group) from None
        finally:
            self._finish()
            listeners.close()

    def _finish(self) -> None:
        self._over = True
        self._more.set()

    def _happened(self, event: Event) -> None:
        self._events.append(event)
        self._more.set()

    def _taken(self, event: Connected | Introduced | Received | Closed | Backpressure | Drain) -> None:
        connection = event.connection
        if isinstance(event, Received):
            connection._waiting -= 1
            if not connection._waiting:
                connection._waiting_bytes = 0
            if connection._link.held & Held.READER and connection._waiting <= self._waiting // 2:
                connection._link.release(Held.READER)
        elif isinstance(event, (Backpressure, Drain)):
            told, connection._pressure = connection._pressure, None
            if connection._link.outbox.pressed != told:
                self.pressure(connection._link, not told)
        elif isinstance(event, Closed):
            self._exchange.places.leave(connection._link.key)

    # --- the exchange's observer ---

    def opened(self, link: Link) -> None:
        connection = self._connections[link] = Connection(self, link)
        self._by_id[connection.id] = connection
        self._happened(Connected(connection))

    def closed(self, link: Link, code: int, why: str) -> None:
        connection = self._connections.pop(link)
        del self._by_id[connection.id]
        # until somebody has taken the event it counts, so that connections that come and go cannot pile up events
        self._exchange.places.enter(link.key, limit=1 << 62, limit_per_key=1 << 62)
        self._happened(Closed(connection, int(code), why))

    def rejected(self, why: str, address: str) -> None:
        if self._rejections < _REJECTIONS:
            self._rejections += 1
            self._happened(Rejected(address, why))

    def pressure(self, link: Link, over: bool) -> None:
        connection = self._connections.get(link)
        # one that swings to and fro tells of it no faster than it is taken
        if connection is not None and connection._pressure is None:
            connection._pressure = over
            self._happened((Backpressure if over else Drain)(connection, link.outbox.size))

    # --- the mode's side ---

    def _introduced(self, link: Link) -> None:
        self._happened(Introduced(self._connections[link]))

    def _received(self, link: Link, payloads: list[bytes]) -> None:
        connection, decode = self._connections[link], self._codec.decode
        try:
            for payload in payloads:
                data = decode(payload)
                link.session.messages_in += 1
                connection._waiting += 1
                connection._waiting_bytes += len(payload)
                self._events.append(Received(connection, data))
        finally:
            self._more.set()
        if connection._waiting >= self._waiting or connection._waiting_bytes >= WAITING_BYTES:
            link.hold(Held.READER)


class _Delivering(Mode):
    """Every payload is an event."""

    name = "library"

    def __init__(self, server: FramedServer, codec: Codec, framing: str) -> None:
        self._server = server
        self.encoder = Plain(codec, framing)
        self.decoder = NoFraming if framing == "none" else FrameDecoder  # type: ignore[method-assign]

    def introduced(self, connection: Link) -> None:
        self._server._introduced(connection)

    def received(self, connection: Link, data: bytes) -> None:
        decoder = connection.decoder
        payloads = decoder.receive(data)
        if payloads:
            self._server._received(connection, payloads)
        if decoder.error is not None:
            raise decoder.error


class _Room(Room):
    """A room of the server's own."""

    def __init__(self, server: FramedServer, reactor: Reactor) -> None:
        super().__init__(cast("Any", server.hub), reactor)
        self._server = server

    def make_exchange(self, context: Context) -> Exchange:
        return Exchange(self.reactor, self._server, hub=self._server.hub, clock=time.time)

    def mode(self, listener: PreparedListener) -> Mode:
        return _Delivering(self._server, listener.codec or RAW, listener.listen.framing)
