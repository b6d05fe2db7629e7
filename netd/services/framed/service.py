"""The framed service's Trio shell: listeners, arrivals, reload with live sessions, drain.

    accept --limits--> (PROXY, TLS, required handshake, verifier: a task) --> Exchange.adopt --> the reactor
              closed                closed, told why

    generation 1  accepts ......... drains: hands over, waits for arrivals; ends those whose listener is gone
    generation 2         starts --> owns the exchange, its doors, its limits ...
    the Room      exchange, connections, doors, counters: of the service type, outlives both

Rules:
- limits are enforced before anything is read from a client; one too many is closed at once;
- a client that has nothing to do before it may speak costs no task: it goes straight to the reactor;
- sessions belong to the room. A replacement takes them over as they are, its limits hold from their next message on; a
  stop, or the removal of their listener, ends them: told one after another, each with its share of the time, none
  waited for longer; if the generation that owns them crashes they end at once;
- what goes wrong with one arrival stays with it.

Left out: what connections do once they are in (exchange.py, connection.py, modes.py).
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import structlog
import trio

from netd.errors import NotFound
from netd.net.reactor import plain_socket
from netd.runtime.service import ServiceType
from netd.services.framed.arrival import Arrived, Entrance, Rejected, Way, where_from
from netd.services.framed.config import FramedConfig
from netd.services.framed.modes import Opening
from netd.services.framed.preparation import PreparedFramed, prepare
from netd.services.framed.protocol import Terms
from netd.services.framed.room import Room
from netd.services.framed.sockets import tune
from netd.services.framed.views import FramedSnapshot
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context
    from netd.services.framed.views import ConnectionView

_RETURNS = 500
"""Clients a second that come back after a farewell to a crowd."""
_LATEST = 10.0
"""Seconds after which the last of them may come."""
_SPREAD = 0.002
"""Seconds between two farewells on drain, as long as that fits in half of what time there is."""
_LOOK = 1.0
"""Seconds between two looks at all connections."""
_PROXIED = "proxy"
"""Where connections are counted whose address a PROXY header has yet to tell."""

log = structlog.get_logger("netd.framed")


class FramedService:
    """One generation of the framed service."""

    def __init__(self, config: FramedConfig, prepared: PreparedFramed, context: Context, *, room: Room) -> None:
        self._config = config
        self._prepared = prepared
        self._context = context
        self._room = room
        self._exchange = room.exchange(context)
        self._entrances: list[Entrance] = []
        self._arriving: set[trio.CancelScope] = set()

    # --- the Service protocol ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        room = self._room
        try:
            async with trio.open_nursery() as arrivals:
                async with trio.open_nursery() as serving:
                    self._take_over()
                    serving.start_soon(self._look_after)
                    for entrance in self._entrances:
                        serving.start_soon(self._accept, entrance, arrivals)
                    task_status.started()
                    await self._context.draining.wait()
                    serving.cancel_scope.cancel()
                if room.owner is self:
                    # a stop: nobody is let in any more, and every session has to go
                    self._exchange.keep_doors(set())
                    for scope in list(self._arriving):
                        scope.cancel()
                await self._drain()
        finally:
            if room.owner is self:
                room.owner = None
                self._exchange.keep_doors(set())
            for connection in self._exchange.orphans():
                connection.end(CloseCode.GOING_AWAY, "the service has ended", within=1.0)

    def reconfigure(self, config: FramedConfig) -> None:
        self._config = config
        for entrance, listen in zip(self._entrances, config.listen, strict=True):
            entrance.listen = entrance.door.listen = listen
            entrance.door.configure(config)
        self._apply(config)

    @property
    def config(self) -> FramedConfig:
        """As it is now."""
        return self._config

    def snapshot(self) -> FramedSnapshot:
        config, exchange = self._config, self._exchange
        sums = asdict(exchange.totals())
        return FramedSnapshot(
            listeners=[_described(entrance) for entrance in self._entrances],
            connections=exchange.places.total,
            sessions=len(exchange.connections),
            arriving=len(self._arriving),
            total=sums.pop("connections"),
            rejected={why: count for why, count in exchange.rejections.items() if count},
            limits={
                name: getattr(config, name)
                for name in type(config).model_fields
                if isinstance(getattr(config, name), int | float) and name != "enabled"
            },
            **sums,
        )

    # --- for REST ---

    def connections(self, limit: int | None = None) -> list[ConnectionView]:
        """The clients that are in, in the order of their coming, at most `limit`."""
        return [self._exchange.view(connection) for connection in islice(self._exchange.connections, limit)]

    def connection(self, session_id: str) -> ConnectionView:
        """Raises NotFound."""
        connection = self._exchange.find(session_id)
        if connection is None:
            raise NotFound(f"cannot find connection {session_id!r}: it is not here")
        return self._exchange.view(connection)

    # --- taking over ---

    def _take_over(self) -> None:
        """From here on this generation answers for the sessions, and its limits hold. Cannot fail."""
        exchange, config = self._exchange, self._config
        places = set()
        for one in self._prepared.ways:
            listen = one.listen
            place = (one.listener.address, listen.interface)
            places.add(place)
            door = exchange.door(*place)
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
            door.configure(config)
            self._entrances.append(
                Entrance(
                    one.listener,
                    listen,
                    door,
                    one.certificate,
                    one.keys,
                    one.verifier,
                    door.mode,
                    self._room.threads,
                )
            )
        exchange.keep_doors(places)
        exchange.nonces.window = max(listen.handshake_window for listen in config.listen)
        self._room.owner = self
        self._apply(config)

    def _apply(self, config: FramedConfig) -> None:
        """Limits that are no door's."""
        room = self._room
        self._exchange.max_unfinished = config.max_unfinished
        tuned = config.keepalive, config.send_buffer
        if room.tuned != tuned:
            room.tuned = tuned
            for connection in self._exchange.connections:
                with suppress(OSError):  # gone, and about to be told so
                    tune(connection.stream.socket, config)
        paced = config.rate, config.burst, config.input_rate, config.input_burst, config.backpressure
        if room.paced != paced:
            room.paced = paced
            for connection in self._exchange.connections:
                connection.reconsider()
            room.reactor.reconsider()

    async def _look_after(self) -> None:
        while True:
            self._look_for_tokens()
            for _ in self._exchange.look():
                await trio.lowlevel.checkpoint()
            await trio.sleep(_LOOK)

    def _look_for_tokens(self) -> None:
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

    # --- arrivals ---

    async def _accept(self, entrance: Entrance, arrivals: trio.Nursery) -> None:
        exchange = self._exchange
        while True:
            stream = await entrance.listener.accept()
            config = self._config
            try:
                arrived = where_from(stream)
            except OSError:  # gone before it was accepted
                stream.socket.close()
                continue
            proxied = bool(entrance.listen.proxy_protocol)
            key = _PROXIED if proxied else arrived.key
            most = config.max_connections if proxied else config.connections_per_address
            why = exchange.places.enter(key, limit=config.max_connections, limit_per_key=most)
            if why is None and entrance.waits and len(self._arriving) >= config.arriving:
                exchange.places.leave(key)
                why = "arriving"
            if why is not None:
                exchange.rejected(why, arrived.address)
                stream.socket.close()
            elif entrance.waits:
                arrivals.start_soon(self._arrive, entrance, stream, arrived, key)
            else:
                self._let_in(entrance, stream, arrived, key)

    async def _arrive(self, entrance: Entrance, stream: trio.SocketStream, arrived: Arrived, key: str) -> None:
        """What may wait, for one client. Nothing of it gets out but Cancelled."""
        exchange, config = self._exchange, self._config
        way = Way(entrance, stream, arrived, self._context.health)
        scope = trio.move_on_after(config.handshake_timeout)
        self._arriving.add(scope)
        inside = False
        try:
            with scope:
                try:
                    await way.header()
                    if key == _PROXIED:
                        exchange.places.leave(key)
                        key = arrived.key
                        why = exchange.places.enter(
                            key, limit=config.max_connections, limit_per_key=config.connections_per_address
                        )
                        if why is not None:
                            key = ""
                            raise Rejected(why)
                    await way.walk()
                except Rejected as rejected:
                    exchange.rejected(rejected.why, arrived.address)
                    log.debug("client rejected", address=arrived.address, why=rejected.why, error=str(rejected.error))
                    if rejected.error is not None:
                        await way.refuse(rejected.error)
                    return
            if scope.cancelled_caught:
                if not self._context.draining.is_set():
                    exchange.rejected("timeout", arrived.address)
                return
            self._let_in(entrance, stream, arrived, key)
            inside = True
        except OSError as error:
            exchange.rejected("gone", arrived.address)
            log.debug("client went away", address=arrived.address, why=str(error))
        except Exception:
            exchange.rejected("broken", arrived.address)
            log.exception("arrival broke", address=arrived.address)
        finally:
            self._arriving.discard(scope)
            if not inside:
                if key:
                    exchange.places.leave(key)
                stream.socket.close()

    def _let_in(self, entrance: Entrance, stream: trio.SocketStream, arrived: Arrived, key: str) -> None:
        """Hand it to the exchange, its place with it. Raises nothing."""
        exchange, door = self._exchange, entrance.door
        sock = plain_socket(stream)
        try:
            tune(sock, self._config)
        except OSError:
            exchange.rejected("gone", arrived.address)
            exchange.places.leave(key)
            sock.close()
            return
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
                exchange.turn_away(connection, "changed", *_moved())
            # its listener may have been removed, or the service stopped, while it arrived
            elif exchange.welcome(connection) and not exchange.leads_in(door):
                connection.end(*_farewell(len(exchange.orphans())))
        except Exception:
            exchange.rejected("broken", arrived.address)
            log.exception("connection broke", address=arrived.address)
            connection.stream.abort("internal error")

    # --- the end ---

    async def _drain(self) -> None:
        """Tell those whose listener is gone (at a stop: all), and wait until they have ended."""
        doomed = self._exchange.orphans()
        random.shuffle(doomed)
        left = max(0.0, self._context.drain_deadline() - trio.current_time())
        pause = min(_SPREAD, left / 2 / max(1, len(doomed)))
        within = min(left / 4, 60.0)
        for connection in doomed:
            connection.end(*_farewell(len(doomed)), within=within)
            await trio.sleep(pause)
        while self._exchange.orphaned:
            await self._room.gone.park()


def _farewell(crowd: int) -> tuple[int, str, float]:
    """Close code, reason, and the seconds after which to come back.

    A crowd is spread, so that it does not come back all at once; a few need not wait for one another.
    """
    return CloseCode.GOING_AWAY, "netd is going away", round(random.uniform(0, min(_LATEST, crowd / _RETURNS)), 3)


def _moved() -> tuple[int, str, float]:
    """The same for a client whose listener has changed while it arrived."""
    return CloseCode.TRY_LATER, "the listener has changed; come again", round(random.uniform(0.05, 0.5), 3)


def _described(entrance: Entrance) -> dict[str, Any]:
    listen = entrance.listen
    return {
        "address": entrance.listener.address,
        "mode": listen.mode,
        "codec": listen.codec,
        "tls": listen.tls is not None,
        "handshake": listen.handshake,
        "connections": entrance.door.connections,
    }


def service_type(hub: Hub, reactor: Reactor) -> ServiceType:
    """The framed service: its sessions are `hub`'s, its streams `reactor`'s."""
    room = Room(hub, reactor)
    return ServiceType(name="framed", config=FramedConfig, prepare=prepare, build=partial(FramedService, room=room))
