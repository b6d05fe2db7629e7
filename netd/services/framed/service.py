"""The framed service's Trio shell (netd/sessions/service.py), with what framed TCP adds to the way in.

    accept --limits--> (PROXY, TLS, required handshake, verifier: a task) --> Exchange.adopt --> the reactor
              closed                closed, told why

Rule: a client that has nothing to do before it may speak costs no task: it goes straight to the reactor.

Left out: what connections do once they are in (exchange.py, connection.py, modes.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from netd.net.reactor import plain_socket
from netd.runtime.service import ServiceType
from netd.services.framed.arrival import Arrived, Entrance, Way
from netd.services.framed.config import FramedConfig
from netd.services.framed.modes import Opening
from netd.services.framed.preparation import PreparedFramed, PreparedListener, prepare
from netd.services.framed.protocol import Terms
from netd.services.framed.room import Room
from netd.services.framed.views import FramedSnapshot
from netd.sessions.arrival import where_from
from netd.sessions.service import SessionService, farewell, moved
from netd.sessions.sockets import tune

if TYPE_CHECKING:
    import socket

    import trio

    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context
    from netd.services.framed.exchange import Exchange

log = structlog.get_logger("netd.framed")


class FramedService(SessionService[FramedConfig, Entrance, Room]):
    """One generation of the framed service."""

    _exchange: Exchange

    def __init__(self, config: FramedConfig, prepared: PreparedFramed, context: Context, *, room: Room) -> None:
        super().__init__(config, context, room)
        self._prepared = prepared

    def reconfigure(self, config: FramedConfig) -> None:
        super().reconfigure(config)
        for entrance in self._entrances:
            entrance.door.listen = entrance.listen

    def snapshot(self) -> FramedSnapshot:
        return FramedSnapshot(**self._sums())

    # --- taking over ---

    def _enter_all(self) -> list[Entrance]:
        exchange, config = self._exchange, self._config
        exchange.nonces.window = max(listen.handshake_window for listen in config.listen)
        return [self._enter_one(one) for one in self._prepared.ways]

    def _enter_one(self, one: PreparedListener) -> Entrance:
        listen = one.listen
        door = self._exchange.door(one.listener.address, listen.interface)
        door.mode = self._room.mode(one)
        door.opening = Opening(door.mode)
        door.terms = Terms(
            required=listen.handshake == "required",
            version=listen.version,
            signed=bool(listen.keys),
            verified=one.verifier is not None,
            window=listen.handshake_window,
            keys=one.keys.keys,
        )
        door.listen = listen
        door.token = listen.token
        door.accepts(one.keys if listen.keys else None)
        door.configure(self._config)
        threads = self._room.threads
        return Entrance(one.listener, listen, door, one.certificate, one.keys, one.verifier, door.mode, threads)

    def _look_around(self) -> None:
        """The hub's configuration may come and go without this one's."""
        hub, health = self._exchange.hub, self._context.health
        for number, entrance in enumerate(self._entrances):
            name, code = entrance.listen.token, f"token.{number}"
            if not name or hub is None or hub.tokens.grant_of(name) is not None:
                health.clear(code)
            else:
                health.warn(
                    code,
                    f"cannot serve clients of {entrance.listener.address}: there is no token {name!r} (hub.token)",
                    advice="configure a token of this name, or take it out of the listener",
                )

    def _described(self, entrance: Entrance) -> dict[str, Any]:
        listen = entrance.listen
        more = {"mode": listen.mode, "codec": listen.codec, "handshake": listen.handshake}
        return {**super()._described(entrance), **more}

    # --- arrivals ---

    def _arrival(self, stream: trio.SocketStream) -> Arrived:
        return Arrived(*where_from(stream))

    def _way(self, entrance: Entrance, stream: trio.SocketStream, arrived: Any) -> Way:
        return Way(entrance, stream, arrived, self._context.health)

    async def _arrive(self, entrance: Entrance, stream: trio.SocketStream, arrived: Any, key: str) -> None:
        place = await self._pass(entrance, stream, arrived, key)
        if place is None:
            return
        exchange = self._exchange
        sock = plain_socket(stream)
        try:
            tune(sock, self._config)
        except OSError:
            exchange.rejected("gone", arrived.address)
            exchange.places.leave(place)
            sock.close()
            return
        self._adopt(entrance, sock, arrived, place)

    def _let_in(
        self, entrance: Entrance, sock: socket.socket, address: str, host: str, key: str, arrivals: trio.Nursery
    ) -> None:
        self._adopt(entrance, sock, Arrived(address, host), key)

    def _adopt(self, entrance: Entrance, sock: socket.socket, arrived: Arrived, key: str) -> None:
        """Hand it to the exchange, its place with it. Raises nothing."""
        exchange, door = self._exchange, entrance.door
        # a replacement may have changed what the listener asks while it arrived: what it showed was held against the
        # old rules. It may come again at once, and be held against the new ones
        changed = exchange.leads_in(door) and entrance.listen != door.listen
        mode = door.opening if entrance.listen.handshake == "optional" else door.mode
        try:
            connection = exchange.adopt(
                sock,
                door,
                address=arrived.address,
                key=key,
                mode=entrance.mode if changed else mode,
                tls=arrived.tls,
                received=b"" if changed else arrived.received,
                handshake=arrived.handshake,
            )
        except (OSError, RuntimeError) as error:
            exchange.rejected("broken", arrived.address)
            log.error("cannot take over a connection", address=arrived.address, why=str(error))
            exchange.places.leave(key)
            sock.close()
            return
        try:
            if changed:
                exchange.turn_away(connection, "changed", *moved())
            # its listener may have been removed, or the service stopped, while it arrived
            elif exchange.welcome(connection) and not exchange.leads_in(door):
                connection.end(*farewell(len(exchange.orphans())))
        except Exception:
            exchange.rejected("broken", arrived.address)
            log.exception("connection broke", address=arrived.address)
            connection.stream.abort("internal error")


def service_type(hub: Hub, reactor: Reactor) -> ServiceType:
    """The framed service: its sessions are `hub`'s, its streams `reactor`'s."""
    room = Room(hub, reactor)
    return ServiceType(name="framed", config=FramedConfig, prepare=prepare, build=partial(FramedService, room=room))
