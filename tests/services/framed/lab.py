"""The framed service on real loopback sockets, with a hub and a reactor of its own.

    async with serving(mode="echo") as house:
        client = await house.client()
        await client.send(b"hello")
        assert await client.next() == b"hello"

`Client` knows frames and nothing else; `say` and `hear` speak the message vocabulary in JSON.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio

from netd.hub.config import HubConfig, Namespace
from netd.hub.hub import Hub
from netd.net.reactor import Reactor
from netd.runtime.bus import Bus, Notice
from netd.runtime.config import RestartPolicy
from netd.runtime.generation import Shared
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.store import open_store
from netd.runtime.unit import Unit
from netd.services.framed.config import FramedConfig, FramedListen
from netd.services.framed.service import FramedService, service_type
from netd.wire.framing import FrameDecoder, FrameLimits, frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

PATIENCE = 20.0
"""Seconds after which a test that waits for something gives up; none needs more than a moment."""

PUBLIC = Namespace(
    name="public", subscribe="anyone", publish="anyone", presence="anyone", history="anyone", max_message=4 << 20
)
OPEN = HubConfig(namespace=[PUBLIC], direct="anyone", broadcast="anyone", clients="anyone")
"""A hub that lets strangers do everything in public:*."""

POLICY = RestartPolicy(drain=5.0)


class Client:
    """One framed connection, seen from its other end."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self.stream = stream
        self.socket = sock
        self._decoder = FrameDecoder(FrameLimits(1 << 30))
        self._frames: list[bytes] = []
        self._ref = 0
        self.id = ""

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send(self, *payloads: bytes) -> None:
        await self.raw(b"".join(map(frame, payloads)))

    async def next(self) -> bytes:
        """The next payload. EndOfChannel when the connection is over."""
        with trio.fail_after(PATIENCE):
            while not self._frames:
                data = await self._some()
                if not data:
                    raise trio.EndOfChannel
                self._frames += self._decoder.receive(data)
        return self._frames.pop(0)

    async def rest(self) -> list[bytes]:
        """Everything until the connection is over."""
        payloads = []
        while True:
            try:
                payloads.append(await self.next())
            except trio.EndOfChannel:
                return payloads

    async def rest_or(self, payload: bytes) -> bool:
        """Whether `payload` comes next, rather than the end."""
        try:
            return await self.next() == payload
        except trio.EndOfChannel:
            return False

    async def bytes(self, count: int) -> bytes:
        """So many bytes, frames or not."""
        data = b""
        with trio.fail_after(PATIENCE):
            while len(data) < count:
                more = await self._some()
                assert more, f"the connection ended after {data!r}"
                data += more
        return data

    async def over(self) -> bytes:
        """Wait for the end; whatever came before it."""
        data = b""
        with trio.fail_after(PATIENCE):
            while more := await self._some():
                data += more
        return data

    async def _some(self) -> bytes:
        try:
            data = bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            data = b""
        if not data:
            # the other side lingers until it has our FIN
            self.socket.close()
        return data

    # --- the message vocabulary, in JSON ---

    async def say(self, type: str, **fields: Any) -> None:
        await self.send(json.dumps({"type": type, **fields}).encode())

    async def hear(self, type: str | None = None) -> dict[str, Any]:
        """The next message; or the next of this type, and pings are skipped anyway."""
        while True:
            message: dict[str, Any] = json.loads(await self.next())
            if message["type"] == type or (type is None and message["type"] != "ping"):
                return message

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request: ok, error, or what was asked for."""
        self._ref += 1
        await self.say(type, ref=self._ref, **fields)
        while True:
            message = await self.hear()
            if message.get("ref") == self._ref:
                return message

    async def hello(self, **fields: Any) -> Client:
        await self.say("hello", version=1, **fields)
        self.id = (await self.hear("welcome"))["session"]
        return self


class House:
    """A running service and everything around it."""

    def __init__(self, unit: Unit, hub: Hub, reactor: Reactor, shared: Shared) -> None:
        self.unit = unit
        self.hub = hub
        self.reactor = reactor
        self.bus = shared.bus
        self.health = shared.health
        self.metrics = shared.metrics
        self._open: list[trio.abc.AsyncResource] = []

    @property
    def service(self) -> FramedService:
        assert isinstance(self.unit.service, FramedService)
        return self.unit.service

    @property
    def exchange(self) -> Any:
        return self.service._exchange

    def port(self, number: int = 0) -> int:
        return int(self.unit.snapshot().addresses[number].rpartition(":")[2])

    async def client(
        self, number: int = 0, *, tls: ssl.SSLContext | None = None, buffer: int | None = None, settled: bool = True
    ) -> Client:
        """A client of listener `number`, let in unless `settled` is False; closed at the end of the test."""
        before = self.service.snapshot().total
        address = self.unit.snapshot().addresses[number]
        if address.startswith("unix:"):
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.connect(address.removeprefix("unix:"))
        else:
            sock = trio.socket.socket()
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            await sock.connect(("127.0.0.1", self.port(number)))
        stream: trio.abc.Stream = trio.SocketStream(sock)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="127.0.0.1")
            with trio.fail_after(PATIENCE):
                await stream.do_handshake()
        client = Client(stream, sock)
        self._open.append(trio.SocketStream(sock) if tls is not None else stream)
        if settled:
            await eventually(lambda: self.service.snapshot().total > before)
        return client

    async def close_clients(self) -> None:
        for stream in self._open:
            await trio.aclose_forcefully(stream)

    async def settle(self, config: FramedConfig | None) -> str:
        """Have the unit run with `config`, or stop; the outcome."""
        with trio.fail_after(PATIENCE):
            return (await self.unit.settled(self.unit.want(config))).outcome

    async def live(self, **limits: Any) -> None:
        """Change limits of the running generation."""
        number = self.unit.snapshot().generation
        assert await self.settle(self.service.config.model_copy(update=limits)) == "running"
        assert self.unit.snapshot().generation == number

    def notices(self, *kinds: type[Notice]) -> list[Any]:
        """Everything published so far."""
        with self.bus.subscribe(*kinds, since=0) as subscription:
            return [stamped.notice for stamped in subscription._waiting]

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value, 0 if there is none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def listening(**fields: Any) -> FramedListen:
    """A listener on a free port of 127.0.0.1."""
    return FramedListen(**{"address": "127.0.0.1:0", **fields})


@asynccontextmanager
async def serving(
    *listeners: FramedListen,
    hub: HubConfig = OPEN,
    policy: RestartPolicy = POLICY,
    limits: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.time,
    **listen: Any,
) -> AsyncGenerator[House, None]:
    """The service in its unit. Either `listeners`, or the fields of one. `limits` are not validated: short times."""
    config = FramedConfig(listen=list(listeners) or [listening(**listen)]).model_copy(update=limits or {})
    bus = Bus()
    health = Health(bus)
    sockets = Listeners(health=health)
    the_hub = Hub(hub, clock=clock, server="netd", version="test")
    reactor = Reactor()
    async with open_store(None) as store:
        shared = Shared(bus, health, Metrics(), store, sockets)
        unit = Unit(service_type(the_hub, reactor), config, shared, policy=lambda: policy)
        house = House(unit, the_hub, reactor, shared)
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            await nursery.start(unit.run)
            try:
                assert await house.settle(config) == "running", unit.snapshot().error
                yield house
            finally:
                await house.close_clients()
                nursery.cancel_scope.cancel()
    sockets.close()
    structlog.reset_defaults()


def trusting(certificate: str) -> ssl.SSLContext:
    """A TLS client's context that trusts this certificate and no other."""
    return ssl.create_default_context(cadata=certificate)


async def echoes(client: Client, payload: bytes = b"are you there") -> bool:
    """Whether a payload comes back."""
    await client.send(payload)
    return await client.rest_or(payload)


SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""What a PROXY protocol header of version 2 begins with."""


def proxied(source: str = "203.0.113.9", port: int = 4711) -> bytes:
    """The header of a client with this IPv4 address."""
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address("192.0.2.1").packed
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", 12) + addresses + struct.pack("!HH", port, 9000)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until something outside our reach has come true."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what it waits for has no event
            await trio.sleep(0.002)
