"""The broker's Trio shell: every connection begins as HTTP, in a task; what becomes a session goes on in the reactor.

    accept --limits--> (PROXY, TLS) --> HTTP: the site answers, or hands over --> Gateway.enter --> the reactor
                        a task for each connection, until it ends or becomes a session
    accept --limits--> Gateway.greet: without a task, where there is neither PROXY nor TLS (doorstep.py)

Rules, besides those of every service with sessions (netd/sessions/service.py):
- a connection counts from accept to its end, whether it is HTTP or a session; those that are HTTP are bounded besides
  (`[broker.http]`), and only PROXY headers and TLS that are still to be done are arrivals;
- a drain ends HTTP connections without a request in progress at once, and gives the others `http.drain` seconds.

Left out: what is answered (routes.py), what sessions do (gateway.py, connection.py, modes.py).
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio

from netd.net.asgi import Ends
from netd.net.http import FrontDoor
from netd.net.tls import TlsStream
from netd.runtime.service import ServiceType
from netd.services.broker.config import BrokerConfig
from netd.services.broker.preparation import PreparedBroker, check, prepare
from netd.services.broker.room import Room
from netd.services.broker.views import BrokerSnapshot
from netd.services.broker.visit import Visit
from netd.sessions.arrival import Arrived, Entrance
from netd.sessions.service import SessionService

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context
    from netd.services.broker.doors import Door
    from netd.services.broker.doorstep import Doorstep
    from netd.services.broker.gateway import Gateway

log = structlog.get_logger("netd.broker")


class BrokerService(SessionService[BrokerConfig, Entrance, Room]):
    """One generation of the broker."""

    _exchange: Gateway

    def __init__(self, config: BrokerConfig, prepared: PreparedBroker, context: Context, *, room: Room) -> None:
        super().__init__(config, context, room)
        self._prepared = prepared
        self._front = FrontDoor(self._exchange.site, lambda: self._config.http, context.draining)
        self._arrivals: trio.Nursery | None = None

    def snapshot(self) -> BrokerSnapshot:
        return BrokerSnapshot(requests=len(self._front) + len(self._exchange.doorsteps), **self._sums())

    # --- what is the broker's own ---

    def _enter_all(self) -> list[Entrance]:
        entrances = []
        for one in self._prepared.ways:
            door: Door = self._exchange.door(one.listener.address, one.listen.interface)
            door.listen = one.listen
            door.configure(self._config)
            entrances.append(Entrance(one.listener, one.listen, door, one.certificate))
        return entrances

    def reconfigure(self, config: BrokerConfig) -> None:
        super().reconfigure(config)
        for entrance in self._entrances:
            entrance.door.listen = entrance.listen  # type: ignore[attr-defined]

    def _apply(self, config: BrokerConfig) -> None:
        self._exchange.config = config
        self._exchange.least.size = config.deflate_least
        self._exchange.set_patience(config.ping_timeout)
        super()._apply(config)

    def _take_over(self, arrivals: trio.Nursery) -> None:
        exchange = self._exchange
        self._arrivals = arrivals
        super()._take_over(arrivals)
        exchange.draining = self._context.draining
        exchange.host = self._go_on

    def _look_around(self) -> None:
        exchange = self._exchange
        exchange.clear_doorsteps(exchange.reactor.now - self._config.http.head_timeout)

    def _let_in(
        self, entrance: Entrance, sock: socket.socket, address: str, host: str, key: str, arrivals: trio.Nursery
    ) -> None:
        """Nothing to wait for but the first request."""
        exchange = self._exchange
        if host == "unix:":
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            arrivals.start_soon(self._host, entrance.door, stream, Arrived(address, host), key)
            return
        if exchange.doorsteps and len(exchange.doorsteps) + len(self._front) >= self._config.http.max_connections:
            exchange.clear_oldest()
        try:
            exchange.greet(sock, entrance.door, address, host, key)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            exchange.rejected("broken", address)
            log.error("cannot take over a connection", address=address, why=str(error))
            exchange.places.leave(key)
            sock.close()

    def _go_on(self, doorstep: Doorstep, sock: socket.socket) -> None:
        """The gateway's `host`."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        arrived = Arrived(doorstep.address, doorstep.host, received=doorstep.received)
        assert self._arrivals is not None
        self._arrivals.start_soon(self._host, doorstep.door, stream, arrived, doorstep.key, doorstep.visit)

    async def _arrive(self, entrance: Entrance, stream: trio.SocketStream, arrived: Arrived, key: str) -> None:
        place = await self._pass(entrance, stream, arrived, key)
        if place is not None:
            await self._host(entrance.door, stream, arrived, place)

    async def _host(
        self, door: Any, stream: trio.SocketStream, arrived: Arrived, key: str, visit: Visit | None = None
    ) -> None:
        """Serve it until it ends or is handed over. Nothing of it gets out but Cancelled. `visit`: one that began."""
        exchange = self._exchange
        visit = visit or Visit(exchange, door, arrived.address, arrived.host, key)
        taken = False
        try:
            ends = None
            line: trio.abc.HalfCloseableStream = stream
            received = arrived.received
            if arrived.tls is not None:
                line, received = TlsStream(arrived.tls, stream, received), b""
            if stream.socket.family != socket.AF_UNIX:
                ends = _ends(arrived, stream)
            taken = await self._front.host(line, app=visit, received=received, ends=ends)
        except OSError as error:
            exchange.rejected("gone", arrived.address)
            log.debug("client went away", address=arrived.address, why=str(error))
        except Exception:
            exchange.rejected("broken", arrived.address)
            log.exception("arrival broke", address=arrived.address)
        finally:
            if not taken:
                exchange.places.leave(visit.key)
                stream.socket.close()

    def _closing(self, arrivals: trio.Nursery) -> None:
        arrivals.cancel_scope.deadline = trio.current_time() + self._config.http.drain
        self._front.close()
        if self._room.owner is self:
            self._abandon()

    def _abandon(self) -> None:
        for doorstep in list(self._exchange.doorsteps):
            doorstep.abort("netd is going away")
        self._exchange.doorsteps.clear()


def _ends(arrived: Arrived, stream: trio.SocketStream) -> Ends:
    """Both ends of a connection, the client as a PROXY header tells it. Raises OSError when it is gone."""
    server: Any = stream.socket.getsockname()
    _, _, port = arrived.address.rpartition(":")
    scheme = "http" if arrived.tls is None else "https"
    return Ends(client=(arrived.host, int(port)), server=(server[0], server[1]), scheme=scheme)


def service_type(hub: Hub, reactor: Reactor) -> ServiceType:
    """The broker: its sessions are `hub`'s, its streams `reactor`'s."""
    return ServiceType(
        name="broker",
        config=BrokerConfig,
        prepare=prepare,
        build=partial(BrokerService, room=Room(hub, reactor)),
        check=check,
    )
