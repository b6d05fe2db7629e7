"""The Trio shell of a service with sessions: listeners, arrivals, reload with live sessions, drain.

    accept --limits--> what may wait: a task --> Exchange --> the reactor
              closed        closed, told why
    accept, in the reactor and many at a time, --limits--> Exchange: where there is nothing to wait for

    generation 1  accepts ......... drains: hands over, waits for arrivals; ends those whose listener is gone
    generation 2         starts --> owns the exchange, its doors, its limits ...
    the Room      exchange, connections, doors, counters: of the service type, outlives both

Rules:
- limits are enforced before anything is read from a client; one too many is closed at once;
- sessions belong to the room. A replacement takes them over as they are, its limits hold from their next message on; a
  stop, or the removal of their listener, ends them: told one after another, each with its share of the time, none
  waited for longer; if the generation that owns them crashes they end at once;
- what goes wrong with one arrival stays with it.

Left out: what a transport asks of those who come, and what connections do once they are in (its own service.py).
"""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import structlog
import trio

from netd.budget import address_key
from netd.errors import NotFound
from netd.sessions.arrival import Arrived, Entrance, Rejected, Way, where_from, written
from netd.sessions.config import SessionLimits
from netd.sessions.room import Room
from netd.sessions.sockets import bequeath, tune
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.runtime.service import Context
    from netd.sessions.connection import Connection
    from netd.sessions.views import ServiceSnapshot

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

log = structlog.get_logger("netd.sessions")

ConfigT = TypeVar("ConfigT", bound=SessionLimits)
EntranceT = TypeVar("EntranceT", bound=Entrance)
RoomT = TypeVar("RoomT", bound=Room[Any])


class SessionService(Generic[ConfigT, EntranceT, RoomT]):
    """One generation of such a service."""

    def __init__(self, config: ConfigT, context: Context, room: RoomT) -> None:
        self._config = config
        self._context = context
        self._room = room
        self._exchange: Any = room.exchange(context)
        self._entrances: list[EntranceT] = []
        self._arriving: set[trio.CancelScope] = set()

    # --- what transports say for themselves ---

    def _enter_all(self) -> list[EntranceT]:
        """The entrances of what was prepared; their doors follow this configuration from here on. Cannot fail."""
        raise NotImplementedError

    def _let_in(
        self, entrance: EntranceT, sock: socket.socket, address: str, host: str, key: str, arrivals: trio.Nursery
    ) -> None:
        """A client that has nothing to wait for: its place and its socket, which is tuned, go with it. What it raises,
        it raises before that."""
        raise NotImplementedError

    async def _arrive(self, entrance: EntranceT, stream: trio.SocketStream, arrived: Arrived, key: str) -> None:
        """A client that has: a task. Nothing of it gets out but Cancelled."""
        raise NotImplementedError

    def _way(self, entrance: EntranceT, stream: trio.SocketStream, arrived: Arrived) -> Way:
        return Way(entrance, stream, arrived, self._context.health)

    def _arrival(self, stream: trio.SocketStream) -> Arrived:
        """Raises OSError when it is gone."""
        return Arrived(*where_from(stream))

    def _described(self, entrance: EntranceT) -> dict[str, Any]:
        """A listener for the snapshot."""
        return {
            "address": entrance.listener.address,
            "tls": entrance.listen.tls is not None,
            "connections": entrance.door.connections,
        }

    def _closing(self, arrivals: trio.Nursery) -> None:
        """Nothing more is accepted; whoever is on the way in may finish in `arrivals`."""

    def _abandon(self) -> None:
        """Nobody answers for the sessions any more, nor for whoever is about to be one."""

    def _look_around(self) -> None:
        """About once a second."""

    # --- the Service protocol ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        room, exchange = self._room, self._exchange
        try:
            async with trio.open_nursery() as ending, trio.open_nursery() as arrivals:
                async with trio.open_nursery() as serving:
                    self._take_over(arrivals)
                    serving.start_soon(self._look_after)
                    for entrance in self._entrances:
                        serving.start_soon(self._accept, entrance, arrivals)
                    task_status.started()
                    await self._context.draining.wait()
                    serving.cancel_scope.cancel()
                if room.owner is self:
                    # a stop: nobody is let in any more, and every session has to go
                    exchange.keep_doors(set())
                    for scope in list(self._arriving):
                        scope.cancel()
                self._closing(arrivals)
                ending.start_soon(self._drain)
        finally:
            if room.owner is self:
                room.owner = None
                exchange.keep_doors(set())
                self._abandon()
            for connection in exchange.orphans():
                connection.end(CloseCode.GOING_AWAY, "the service has ended", within=1.0)

    def reconfigure(self, config: ConfigT) -> None:
        self._config = config
        listens: Any = getattr(config, "listen")  # noqa: B009  # each section has listeners of its own kind
        for entrance, listen in zip(self._entrances, listens, strict=True):
            waited, entrance.listen = entrance.waits, listen
            if entrance.waits != waited:
                entrance.unwatch()
                entrance.accepting.cancel()
            entrance.door.configure(config)
        self._apply(config)

    @property
    def config(self) -> ConfigT:
        """As it is now."""
        return self._config

    def _sums(self) -> dict[str, Any]:
        """The fields of `ServiceSnapshot`."""
        config, exchange = self._config, self._exchange
        sums = asdict(exchange.totals())
        return {
            "listeners": [self._described(entrance) for entrance in self._entrances],
            "connections": exchange.places.total,
            "sessions": len(exchange.connections),
            "arriving": len(self._arriving),
            "total": sums.pop("connections"),
            "rejected": {why: count for why, count in exchange.rejections.items() if count},
            "limits": {
                name: getattr(config, name)
                for name in type(config).model_fields
                if isinstance(getattr(config, name), int | float) and not isinstance(getattr(config, name), bool)
            },
            **sums,
        }

    # --- for REST ---

    @property
    def count(self) -> int:
        """Clients that are in."""
        return len(self._exchange.connections)

    def snapshot(self) -> ServiceSnapshot:
        """The service as it is now."""
        raise NotImplementedError

    def connections(self, limit: int | None = None) -> list[Any]:
        """The clients that are in, in the order of their coming, at most `limit`."""
        return [self._exchange.view(connection) for connection in islice(self._exchange.connections, limit)]

    def connection(self, session_id: str) -> Any:
        """Raises NotFound."""
        connection = self._exchange.find(session_id)
        if connection is None:
            raise NotFound(f"cannot find connection {session_id!r}: it is not here")
        return self._exchange.view(connection)

    # --- taking over ---

    def _take_over(self, arrivals: trio.Nursery) -> None:
        """From here on this generation answers for the sessions, and its limits hold. Cannot fail. `arrivals` is for
        what is under way besides."""
        self._entrances = self._enter_all()
        self._exchange.keep_doors({(one.door.address, one.door.interface) for one in self._entrances})
        self._room.owner = self
        self._apply(self._config)

    def _apply(self, config: ConfigT) -> None:
        """Limits that are no door's."""
        room, exchange = self._room, self._exchange
        exchange.max_unfinished = config.max_unfinished
        tuned = config.keepalive, config.send_buffer
        if room.tuned != tuned:
            room.tuned = tuned
            for stream in exchange.streams():
                with suppress(OSError):  # gone, and about to be told so
                    tune(stream.socket, config)
        for entrance in self._entrances:
            if entrance.bequeathed != tuned:
                # who is in its queue by now has not inherited this: see _arrived. Where clients wait for TLS each is
                # told all of it, but what an earlier generation left to them has to go
                entrance.bequeathed, entrance.heirs = tuned, entrance.listener.drained + 1
                with suppress(OSError):  # released, and nobody comes by it any more
                    entrance.complete = bequeath(entrance.listener.socket, config)
        paced = config.rate, config.burst, config.input_rate, config.input_burst, config.backpressure
        if room.paced != paced:
            room.paced = paced
            for connection in exchange.connections:
                connection.reconsider()
            room.reactor.reconsider()

    async def _look_after(self) -> None:
        while True:
            self._look_around()
            for _ in self._exchange.look():
                await trio.lowlevel.checkpoint()
            await trio.sleep(_LOOK)

    # --- arrivals ---

    async def _accept(self, entrance: EntranceT, arrivals: trio.Nursery) -> None:
        def watch(fd: int, ready: Callable[[], None]) -> Callable[[], None]:
            entrance.unwatch = self._room.reactor.watch(fd, ready)
            return entrance.unwatch

        while True:
            entrance.accepting = trio.CancelScope()
            with entrance.accepting:  # until a reload asks something else of those who come
                if entrance.waits:
                    await self._accept_each(entrance, arrivals)
                await entrance.listener.accept_into(watch, partial(self._arrived, entrance, arrivals))

    async def _accept_each(self, entrance: EntranceT, arrivals: trio.Nursery) -> NoReturn:
        exchange = self._exchange
        while True:
            stream = await entrance.listener.accept()
            config = self._config
            try:
                arrived = self._arrival(stream)
            except OSError:  # gone before it was accepted
                stream.socket.close()
                continue
            proxied = bool(entrance.listen.proxy_protocol)
            key = _PROXIED if proxied else arrived.key
            most = config.max_connections if proxied else config.connections_per_address
            why = exchange.places.enter(key, limit=config.max_connections, limit_per_key=most)
            if why is None and len(self._arriving) >= config.arriving:
                exchange.places.leave(key)
                why = "arriving"
            if why is not None:
                exchange.rejected(why, arrived.address)
                stream.socket.close()
            else:
                arrivals.start_soon(self._arrive, entrance, stream, arrived, key)

    def _arrived(self, entrance: EntranceT, arrivals: trio.Nursery, sock: socket.socket, peer: Any) -> None:
        """The same for a client that has nothing to wait for, without a task. Raises nothing."""
        exchange, config = self._exchange, self._config
        if peer:
            host = peer[0]
            address, key = written(host, peer[1]), address_key(host)
        else:
            address = host = key = "unix:"
        why: str | None = "broken"
        try:
            why = exchange.places.enter(key, limit=config.max_connections, limit_per_key=config.connections_per_address)
            if why is None:
                try:
                    if entrance.heirs > entrance.listener.drained:
                        tune(sock, config)
                    elif not entrance.complete and config.send_buffer:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer)
                except OSError:
                    why = "gone"
                    exchange.places.leave(key)
            if why is not None:
                exchange.rejected(why, address)
                sock.close()
                return
            self._let_in(entrance, sock, address, host, key, arrivals)
        except Exception:
            if why is None:
                exchange.places.leave(key)
            sock.close()
            exchange.rejected("broken", address)
            log.exception("arrival broke", address=address)

    async def _pass(self, entrance: EntranceT, stream: trio.SocketStream, arrived: Arrived, key: str) -> str | None:
        """What may wait, for one client. The key of the place that it has then; None: it is not let in, and nothing of
        it is left. Raises nothing but Cancelled."""
        exchange, config = self._exchange, self._config
        way = self._way(entrance, stream, arrived)
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
                    return None
            if scope.cancelled_caught:
                if not self._context.draining.is_set():
                    exchange.rejected("timeout", arrived.address)
                return None
            inside = True
            return key
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
        return None

    # --- the end ---

    async def _drain(self) -> None:
        """Tell those whose listener is gone (at a stop: all), and wait until they have ended."""
        doomed: list[Connection] = self._exchange.orphans()
        random.shuffle(doomed)
        left = max(0.0, self._context.drain_deadline() - trio.current_time())
        pause = min(_SPREAD, left / 2 / max(1, len(doomed)))
        within = min(left / 4, 60.0)
        for connection in doomed:
            connection.end(*farewell(len(doomed)), within=within)
            await trio.sleep(pause)
        while self._exchange.orphaned:
            await self._room.gone.park()


def farewell(crowd: int) -> tuple[int, str, float]:
    """Close code, reason, and the seconds after which to come back.

    A crowd is spread, so that it does not come back all at once; a few need not wait for one another.
    """
    return CloseCode.GOING_AWAY, "netd is going away", round(random.uniform(0, min(_LATEST, crowd / _RETURNS)), 3)


def moved() -> tuple[int, str, float]:
    """The same for a client whose listener has changed while it arrived."""
    return CloseCode.TRY_LATER, "the listener has changed; come again", round(random.uniform(0.05, 0.5), 3)
