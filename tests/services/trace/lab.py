"""The trace service on real loopback sockets, with a tracer that follows a script.

    async with serving(ScriptedTracer(), names=True) as house:
        async with house.client() as client:
            assert (await client.next())["type"] == "connected"

`Client` speaks WebSocket through trio-websocket; `house.raw()` is a bare TCP connection for what is against the rules.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, connect_websocket
from wsproto.utilities import LocalProtocolError

from netd.net.paths.budget import TracerLimits
from netd.net.paths.path import Carrier, Hop, Path, TraceOptions
from netd.net.paths.tracer import TracerSnapshot
from netd.runtime.bus import Bus, Notice
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.service import Context
from netd.runtime.store import Store, open_store
from netd.services.trace.config import TraceConfig, TraceListen
from netd.services.trace.service import TraceService, service_type

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

PATIENCE = 20.0
"""Seconds after which a test that waits for something gives up; none needs more than a moment."""


def hop(ttl: int, addr: str | None, rtt_ms: float | None = None, **more: Any) -> Hop:
    """A hop that answered, or with addr None a silent one."""
    kind = more.pop("kind", "ttl" if addr else "silent")
    return Hop(ttl=ttl, addr=addr, rtt_ms=float(ttl) if addr and rtt_ms is None else rtt_ms, kind=kind, **more)


def path(*hops: Hop, **more: Any) -> Path:
    """A round that reached the client behind these hops, unless `more` says otherwise."""
    found = {
        "method": "tcp",
        "reason": "destination",
        "dest_ttl": len(hops) + 1,
        "est_ttl": len(hops) + 1,
        "dest_rtt_ms": 10.0,
        "tcp_rtt_ms": 9.0,
        "probes": len(hops) + 1,
        "elapsed_ms": 11.0,
    }
    return Path(hops=tuple(hops), **{**found, **more})


ROUTE = path(hop(1, "192.168.1.1", 0.5), hop(2, "198.51.100.7", 4.25), hop(3, None), hop(4, "203.0.113.9", 8.125))
"""A private hop, a public one, a silent one, a public one, the client."""

Round = Path | Exception | str
"""What the tracer does in a round: find a path, fail, or "hang"."""


class ScriptedTracer:
    """Follows `rounds`, the last of them again and again. Like the real one it writes through the carrier first."""

    def __init__(self, *rounds: Round, carries: bool = True, hold: trio.Event | None = None) -> None:
        self.rounds: list[Round] = list(rounds) or [ROUTE]
        self.limits = TracerLimits()
        self.methods: tuple[Any, ...] = ("tcp", "udp", "syn")
        self.unprivileged: tuple[str, str] | None = None
        self.options: list[TraceOptions] = []
        self.saved_syns: list[bytes] = []
        self.peers: list[Any] = []
        self.sockets: list[socket.socket] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.targets: list[tuple[str, int, str]] = []
        self.most_connections = math.inf
        """Of those that `open_carrier` makes."""
        self.begun = trio.Event()
        self._carries = carries
        self._hold = hold

    @property
    def unprivileged_reason(self) -> str | None:
        return None if self.unprivileged is None else "; ".join(self.unprivileged)

    async def trace(
        self,
        carrier: Carrier,
        options: TraceOptions = TraceOptions(),  # noqa: B008  # frozen
        on_hop: Callable[[Hop], None] | None = None,
    ) -> Path:
        self.options.append(options)
        self.saved_syns.append(carrier.saved_syn)
        self.sockets.append(carrier.socket)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self._carries:
                assert carrier.socket.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
                self.peers.append(carrier.socket.getpeername())
                if not await carrier.carry():
                    return path(reason="no-carrier", dest_ttl=None, dest_rtt_ms=None)
            found = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
            self.begun.set()
            if self._hold is not None:
                await self._hold.wait()
            if found == "hang":
                await trio.sleep_forever()
            if isinstance(found, Exception):
                raise found
            assert isinstance(found, Path)
            for one in found.hops:
                if on_hop is not None:
                    on_hop(one)
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return found

    def snapshot(self) -> TracerSnapshot:
        return TracerSnapshot(
            methods=self.methods,
            unprivileged_reason=self.unprivileged_reason,
            running=self.running,
            waiting=0,
            traces=len(self.options),
            probes=0,
            replies=0,
            unmatched=0,
            limited=0,
        )

    async def open_carrier(self, host: str, port: int, *, send: str = "auto") -> Any:
        self.targets.append((host, port, send))
        await trio.lowlevel.checkpoint()
        if host == "refused.test" or len(self.targets) > self.most_connections:
            raise ConnectionRefusedError(111, "Connection refused")
        if host == "strange.test":
            raise UnicodeError("label too long")
        return _Outgoing()


class _Outgoing:
    """An outgoing connection that goes nowhere."""

    saved_syn = b""

    async def __aenter__(self) -> _Outgoing:
        self.socket, self._other = socket.socketpair()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.socket.close()
        self._other.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    async def carry(self) -> bool:
        return True


class Client:
    """A WebSocket client. Messages are dictionaries."""

    def __init__(self, ws: WebSocketConnection) -> None:
        self.ws = ws

    async def next(self) -> dict[str, Any]:
        with trio.fail_after(PATIENCE):
            message = json.loads(await self.ws.get_message())
        assert isinstance(message, dict)
        return message

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """All messages up to and with the first of type `kind`."""
        messages = [await self.next()]
        while messages[-1]["type"] != kind:
            messages.append(await self.next())
        return messages

    async def say(self, message: Any) -> None:
        await self.ws.send_message(json.dumps(message))

    async def closed(self) -> tuple[int, str | None]:
        """Wait for the end; its close code and reason."""
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    await self.ws.get_message()
                except ConnectionClosed as closed:
                    return closed.reason.code, closed.reason.reason


@asynccontextmanager
async def connected_to(
    port: int,
    resource: str = "/",
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Client, None]:
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                ws = await connect_websocket(
                    nursery,
                    "127.0.0.1",
                    port,
                    resource,
                    use_ssl=tls or False,
                    extra_headers=list(headers),
                    message_queue_size=1000,
                )
            yield Client(ws)
            with trio.move_on_after(1):
                await ws.aclose()
            # closed by the server, the library's client leaves its socket open
            await trio.aclose_forcefully(ws._stream)
            nursery.cancel_scope.cancel()
    except* LocalProtocolError:
        pass  # the library's client answers a ping that comes while it closes, and trips over itself


class House:
    """A running service and everything around it."""

    def __init__(self, service: TraceService, context: Context, health: Health, store: Store) -> None:
        self.service = service
        self.context = context
        self.bus = context.bus
        self.health = health
        self.metrics = context.metrics
        self.store = store
        self.ended = trio.Event()
        self.deadline = math.inf
        self._raw: list[trio.SocketStream] = []

    def close_raw(self) -> None:
        """Close what `raw` opened."""
        for stream in self._raw:
            stream.socket.close()

    @property
    def port(self) -> int:
        return int(self.context.listeners.addresses[0].rpartition(":")[2])

    def client(self, resource: str = "/", **more: Any) -> AbstractAsyncContextManager[Client]:
        """A client of this house, its handshake done."""
        return connected_to(self.port, resource, **more)

    async def raw(self) -> trio.SocketStream:
        """A bare connection; closed at the end of the test if it is open then."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._raw.append(stream)
        return stream

    async def refused(self, target: str = "/", *lines: str) -> bytes:
        """What a handshake gets that is not answered by 101: the whole response."""
        stream = await self.raw()
        await stream.send_all(handshake(*lines, target=target))
        async with stream:
            return await read_all(stream)

    def notices(self, *kinds: type[Notice]) -> list[Notice]:
        """Everything published so far."""
        with self.bus.subscribe(*kinds, since=0) as subscription:
            return [stamped.notice for stamped in subscription._waiting]

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value, 0 if it was never touched."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def drain(self, within: float = 5.0) -> None:
        """What the unit does: stop accepting, and a deadline after which everything is cancelled."""
        self.deadline = trio.current_time() + within
        self.context.draining.set()
        self.context.listeners.release()


@asynccontextmanager
async def serving(
    tracer: Any = None, *, store: Store | None = None, listen: TraceListen | None = None, **fields: Any
) -> AsyncGenerator[House, None]:
    """The service on a free port of 127.0.0.1. `fields` are TraceConfig's, not validated (tests need short times)."""
    config = TraceConfig(listen=[listen or TraceListen(address="127.0.0.1:0")]).model_copy(update=fields)
    bus = Bus()
    health = Health(bus)
    listeners = Listeners(health=health)
    async with open_store(None) as own_store:
        house: House | None = None
        context = Context(
            name="trace",
            bus=bus,
            health=health.for_service("trace"),
            metrics=Metrics(),
            store=store or own_store,
            listeners=listeners.lease("trace"),
            log=structlog.get_logger("netd.trace"),
            state_directory=None,
            draining=trio.Event(),
            drain_deadline=lambda: house.deadline if house is not None else math.inf,
        )
        kind = service_type(tracer or ScriptedTracer())
        prepared = await kind.prepare(config, context)
        service = kind.build(config, prepared, context)
        assert isinstance(service, TraceService)
        house = House(service, context, health, store or own_store)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await service.run(task_status=task_status)
            house.ended.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            try:
                yield house
            finally:
                house.close_raw()
                listeners.close()
                nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something outside our reach has come true."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what it waits for has no event
            await trio.sleep(0.005)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until the end; a reset is an end too."""
    data = b""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                more = await stream.receive_some(65536)
            except trio.BrokenResourceError:
                return data
            if not more:
                return data
            data += more


def handshake(*lines: str, target: str = "/") -> bytes:
    """A WebSocket handshake as bytes; `lines` come last."""
    head = [
        f"GET {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> bytes:
    """A WebSocket frame as a client sends it, with a mask of zeros."""
    size = len(payload)
    mask = 0x80 if masked else 0
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        head += bytes([mask | size])
    elif size < 65536:
        head += bytes([mask | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + payload
