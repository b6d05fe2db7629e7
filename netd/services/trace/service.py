"""The trace service's Trio shell: listeners, handshakes, sessions, drain.

    accept --limits--> TLS --> WebSocket handshake --path, Origin--> Session.run
             503                                      404, 403

Rules:
- limits are enforced before anything is read from a client; a refused one costs one write;
- everything up to the end of the handshake has one deadline; a connection that ends meanwhile ends it at once;
- what goes wrong with one connection stays with it: known failures of peers are logged quietly, anything else with its
  traceback, and neither reaches the accept loop;
- on drain unfinished handshakes are dropped, clients are told one after another, and none may take longer than its
  share; whoever does not read is cut off.

Left out: everything a client does once it is in (session.py).
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from trio_websocket import ConnectionClosed, HandshakeError
from wsproto.utilities import ProtocolError as WebSocketProtocolError

from netd.budget import Places, address_key
from netd.errors import NotFound, ProtocolError
from netd.net.certificates import Certificate
from netd.net.linux import TCP_SAVE_SYN
from netd.net.proxy import read_header, trusted
from netd.runtime.service import ServiceType
from netd.services.trace.config import TraceConfig
from netd.services.trace.counters import Counters
from netd.services.trace.handshake import Door, saved_syn, shake_hands
from netd.services.trace.history import History
from netd.services.trace.ids import IDS
from netd.services.trace.limits import Turns
from netd.services.trace.names import Names, Systems, open_systems
from netd.services.trace.session import ClientView, Endpoint, Session, farewell
from netd.services.trace.tracing import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.net.paths.tracer import Tracer
    from netd.runtime.service import Context

_SORRY = b"cannot serve another client now: as many as may be are here\n"
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nConnection: close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(_SORRY), _SORRY)
)

_SPREAD = 0.002
"""Seconds between two farewells on drain, as long as that fits in half of what time there is."""


@dataclass(frozen=True, slots=True)
class TraceSnapshot:
    """The service at a moment. Counts are of this generation."""

    listeners: list[str]
    clients: int
    connections: int
    """Clients and unfinished handshakes."""
    traces_running: int
    method: str
    """What "auto" means now; "none" if nothing works."""
    methods: list[str]
    unprivileged_reason: str | None
    limits: dict[str, float]
    traces: int
    probes: int


class PreparedTrace:
    """What `prepare` acquired: bound listeners, certificates, the AS table."""

    def __init__(self, context: Context, doors: Sequence[Door], systems: Systems | None) -> None:
        self.doors = doors
        self.systems = systems
        self._context = context

    def close(self) -> None:
        self._context.listeners.release(abandon=True)
        if self.systems is not None:
            self.systems.close()


async def prepare(config: TraceConfig, context: Context) -> PreparedTrace:
    """Acquire everything that can fail. Raises PrepareFailed."""
    systems = await trio.to_thread.run_sync(open_systems, config.asn)
    prepared = PreparedTrace(context, [], systems)
    try:
        doors = []
        for number, listen in enumerate(config.listen):
            certificate = None
            if listen.tls is not None:
                load = partial(Certificate, listen.tls, number, service="trace", alpn=["http/1.1"])
                certificate = await trio.to_thread.run_sync(load)
            listener = await context.listeners.open(listen, options=[(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)])
            doors.append(Door(listener, listen.path, certificate, number))
    except BaseException:
        prepared.close()
        raise
    prepared.doors = doors
    return prepared


class TraceService:
    """One generation of the trace service."""

    def __init__(
        self, config: TraceConfig, prepared: PreparedTrace, context: Context, *, tracer: Tracer, turns: Turns
    ) -> None:
        self._context = context
        self._doors = prepared.doors
        self._history = History(context.store)
        self._shared = Shared(
            config=config,
            tracer=tracer,
            bus=context.bus,
            health=context.health,
            history=self._history,
            counters=Counters(context.metrics),
            names=Names(),
            systems=prepared.systems,
            turns=turns,
            ids=IDS,
            rounds_at_once=trio.CapacityLimiter(config.max_traces),
            log=context.log,
        )
        self._places = Places()
        self._sessions: dict[str, Session] = {}
        self._handshakes: set[trio.CancelScope] = set()

    # --- the Service protocol ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._history.continue_ids(self._shared.ids)
            async with trio.open_nursery() as background:
                background.start_soon(self._shared.names.run)
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        for door in self._doors:
                            accepting.start_soon(self._accept, door, connections)
                        task_status.started()
                        # only now: bounds of the whole host are not for a generation that never served
                        self._apply(self._shared.config)
                        await self._context.draining.wait()
                        accepting.cancel_scope.cancel()
                    await self._drain()
                background.cancel_scope.cancel()
        finally:
            if self._shared.systems is not None:
                self._shared.systems.close()

    def reconfigure(self, config: TraceConfig) -> None:
        self._shared.config = config
        self._apply(config)

    @property
    def config(self) -> TraceConfig:
        """As it is now."""
        return self._shared.config

    def snapshot(self) -> TraceSnapshot:
        config, tracer = self._shared.config, self._shared.tracer
        chosen = config.method if config.method != "auto" else next(iter(tracer.methods), "none")
        return TraceSnapshot(
            listeners=[door.listener.address for door in self._doors],
            clients=len(self._sessions),
            connections=self._places.total,
            traces_running=self._shared.running,
            method=chosen,
            methods=list(tracer.methods),
            unprivileged_reason=tracer.unprivileged_reason,
            limits={
                "max_clients": config.max_clients,
                "clients_per_address": config.clients_per_address,
                "max_traces": config.max_traces,
                "probes_per_second": config.probes_per_second,
                "probes_at_once": tracer.limits.at_once,
                "client_interval": config.client_interval,
                "address_burst": config.address_burst,
            },
            traces=self._shared.traces,
            probes=self._shared.probes,
        )

    # --- verbs for REST ---

    def clients(self) -> list[ClientView]:
        """All clients, in the order of their coming."""
        return [session.view() for session in self._sessions.values()]

    def client(self, client_id: str) -> ClientView:
        """Raises NotFound."""
        return self._session(client_id).view()

    def trace_client(self, client_id: str) -> ClientView:
        """Begin a trace of a client now. Raises NotFound, or Conflict while it is traced already."""
        session = self._session(client_id)
        session.trace_now()
        return session.view()

    def _session(self, client_id: str) -> Session:
        session = self._sessions.get(client_id)
        if session is None:
            raise NotFound(f"cannot find client {client_id!r}: it is not connected")
        return session

    # --- inside ---

    def _apply(self, config: TraceConfig) -> None:
        shared = self._shared
        shared.rounds_at_once.total_tokens = config.max_traces
        shared.turns.configure(interval=config.client_interval, burst=config.address_burst)
        shared.tracer.limits = replace(
            shared.tracer.limits, traces=config.max_traces, probes_per_second=config.probes_per_second
        )
        self._history.configure(config.history)
        unprivileged = shared.tracer.unprivileged
        if unprivileged is not None and config.method in ("auto", "tcp"):
            message, grant = unprivileged
            meanwhile = "traces use a flow of their own" if config.method == "auto" else "traces end at once"
            self._context.health.warn("unprivileged", message, advice=f"{grant}; until then {meanwhile}")
        else:
            self._context.health.clear("unprivileged")

    async def _accept(self, door: Door, connections: trio.Nursery) -> None:
        while True:
            stream = await door.listener.accept()
            try:
                peer = stream.socket.getpeername()
            except OSError:  # gone before it was accepted
                await trio.aclose_forcefully(stream)
                continue
            config, key = self._shared.config, address_key(peer[0])
            per_address, proxied = (
                config.clients_per_address,
                trusted(config.listen[door.number].proxy_protocol, peer[0]),
            )
            if proxied:  # its clients are counted by their own addresses, once the header has said them
                key, per_address = f"proxy {key}", config.max_clients
            why = self._places.enter(key, limit=config.max_clients, limit_per_key=per_address)
            if why is None:
                connections.start_soon(self._guard, door, stream, peer, key, proxied)
                continue
            self._shared.counters.refused(why)
            self._shared.log.debug("client refused", address=peer[0], why=why)
            await self._turn_away(stream, plain=door.certificate is None)

    async def _turn_away(self, stream: trio.SocketStream, *, plain: bool) -> None:
        """Into an empty send buffer: it does not wait for the client."""
        if plain:
            # BrokenResourceError: it did not wait for the answer
            with trio.move_on_after(1.0), suppress(trio.BrokenResourceError):
                await stream.send_all(_BUSY)
        await trio.aclose_forcefully(stream)

    async def _guard(
        self, door: Door, stream: trio.SocketStream, peer: tuple[Any, ...], key: str, proxied: bool
    ) -> None:
        """One connection; nothing of it gets out but Cancelled."""
        address = _shown(peer)
        held: str | None = key
        try:
            if proxied:
                client = await self._behind_proxy(stream, peer)
                if client is None:
                    return
                self._places.leave(key)
                held, config = None, self._shared.config
                address, key = _shown(client), address_key(client[0])
                why = self._places.enter(key, limit=config.max_clients, limit_per_key=config.clients_per_address)
                if why is not None:
                    self._shared.counters.refused(why)
                    self._shared.log.debug("client refused", address=address, why=why)
                    await self._turn_away(stream, plain=door.certificate is None)
                    return
                held = key
            await self._connection(door, stream, address, key)
        except* (
            ConnectionClosed,
            HandshakeError,
            WebSocketProtocolError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            OSError,
            UnicodeError,
            ProtocolError,
        ) as group:
            # resets, broken TLS, frames and headers against the rules: the WebSocket library lets (most of) them out
            self._shared.log.debug("connection failed", address=address, why=repr(_first(group)))
        except* Exception:
            self._shared.log.exception("connection broke", address=address)
        finally:
            if held is not None:
                self._places.leave(held)
            # the last word wherever the session did not have it; it does not wait
            stream.socket.close()

    async def _behind_proxy(self, stream: trio.SocketStream, peer: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Who a trusted proxy says the client is (the proxy itself, if it says nobody); None if it says nothing."""
        with trio.move_on_after(self._shared.config.handshake_timeout) as patience:
            self._handshakes.add(patience)
            try:
                return (await read_header(stream)).source or peer
            finally:
                self._handshakes.discard(patience)
        if not self._context.draining.is_set():
            self._shared.counters.refused("handshake-timeout")
        return None

    async def _connection(self, door: Door, stream: trio.SocketStream, address: str, key: str) -> None:
        if self._context.draining.is_set():
            return
        endpoint = Endpoint(
            stream.socket, saved_syn(stream.socket), address, key, door.listener.address, door.certificate is not None
        )
        async with trio.open_nursery() as nursery:
            patience = trio.move_on_after(self._shared.config.handshake_timeout)
            self._handshakes.add(patience)
            try:
                with patience:
                    opened = await shake_hands(door, stream, nursery, self._shared)
            finally:
                self._handshakes.discard(patience)
            if patience.cancelled_caught:
                if not self._context.draining.is_set():
                    self._shared.counters.refused("handshake-timeout")
            elif opened is not None and not self._context.draining.is_set():
                session = Session(self._shared, endpoint, *opened)
                self._sessions[session.client_id] = session
                try:
                    await session.run()
                finally:
                    del self._sessions[session.client_id]
            nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        for handshake in list(self._handshakes):
            handshake.cancel()
        sessions = list(self._sessions.values())
        random.shuffle(sessions)
        left = max(0.0, self._context.drain_deadline() - trio.current_time())
        pause = min(_SPREAD, left / 2 / max(1, len(sessions)))
        within = left / 4
        for session in sessions:
            session.end(farewell(), within=within)
            await trio.sleep(pause)


def service_type(tracer: Tracer) -> ServiceType:
    """The trace service, tracing with `tracer`."""
    # not of a generation: a replacement does not forget who was traced a moment ago
    turns = Turns(interval=5.0, burst=1)
    return ServiceType(
        name="trace",
        config=TraceConfig,
        prepare=prepare,
        build=partial(TraceService, tracer=tracer, turns=turns),
    )


def _shown(peer: tuple[Any, ...]) -> str:
    host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"{host}:{peer[1]}"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
