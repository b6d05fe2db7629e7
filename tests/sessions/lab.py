"""A service with sessions on real loopback sockets, with a hub and a reactor of its own: what its tests have in common.

async with running(service_type, config, House) as house:
    assert await house.settle(another) == "running"
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from netd.runtime.service import ServiceType

PATIENCE = 20.0
"""Seconds after which a test that waits for something gives up; none needs more than a moment."""

PUBLIC = Namespace(
    name="public", subscribe="anyone", publish="anyone", presence="anyone", history="anyone", max_message=4 << 20
)
OPEN = HubConfig(namespace=[PUBLIC], direct="anyone", broadcast="anyone", clients="anyone")
"""A hub that lets strangers do everything in public:*."""

POLICY = RestartPolicy(drain=5.0)


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
    def service(self) -> Any:
        assert self.unit.service is not None
        return self.unit.service

    @property
    def exchange(self) -> Any:
        return self.service._exchange

    def port(self, number: int = 0) -> int:
        return int(self.unit.snapshot().addresses[number].rpartition(":")[2])

    async def connect(
        self, number: int = 0, *, tls: ssl.SSLContext | None = None, buffer: int | None = None
    ) -> tuple[trio.abc.Stream, trio.socket.SocketType]:
        """A stream to listener `number`, and the socket under it; closed at the end of the test."""
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
        self._open.append(stream)
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_hostname="127.0.0.1")
            with trio.fail_after(PATIENCE):
                await stream.do_handshake()
        return stream, sock

    async def close_clients(self) -> None:
        for stream in self._open:
            await trio.aclose_forcefully(stream)

    async def settle(self, config: Any) -> str:
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


HouseT = TypeVar("HouseT", bound=House)


@asynccontextmanager
async def running(
    kind: Callable[[Hub, Reactor], ServiceType],
    config: Any,
    house_type: type[HouseT],
    *,
    hub: HubConfig = OPEN,
    policy: RestartPolicy = POLICY,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[HouseT, None]:
    """The service in its unit."""
    bus = Bus()
    health = Health(bus)
    sockets = Listeners(health=health)
    the_hub = Hub(hub, clock=clock, server="netd", version="test")
    reactor = Reactor()
    async with open_store(None) as store:
        shared = Shared(bus, health, Metrics(), store, sockets)
        unit = Unit(kind(the_hub, reactor), config, shared, policy=lambda: policy)
        house = house_type(unit, the_hub, reactor, shared)
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
