"""The exchange: all framed connections, who may come, what was counted. Pure; it outlives generations.

    Door        one listener as its connections see it: limits, terms, mode (doors.py)
    Exchange    adopts connections, looks after them, knows them by id
    Observer    who is told: the service (notices on the bus), or a program that uses the server library

Rules:
- a door is known by its actual address and its interface, so that another generation of the service finds it again;
- a connection is counted from accept to its very end (`places`), whatever becomes of it in between;
- what is looked after in time (idle clients, pings, unfinished frames) is looked at once a second, all connections in
  slices: there is no timer for each;
- sums are what ended plus what is here: nothing is counted twice, and nothing is touched for a message.

Left out: accepting, TLS, handshakes that are waited for (arrival.py), what becomes of payloads (modes.py).
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from netd.budget import Places
from netd.errors import ProtocolError, TooBusy
from netd.hub.outbox import Outbox
from netd.hub.session import Session
from netd.services.framed.connection import Connection
from netd.services.framed.doors import Door, beginning
from netd.services.framed.views import ConnectionView, Totals, view
from netd.wire.handshake import Nonces
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netd.hub.hub import Hub
    from netd.net.carrier import StreamCarrier
    from netd.net.reactor import Reactor
    from netd.net.tls import TlsLayer
    from netd.services.framed.modes import Mode
    from netd.wire.handshake import Handshake

_SLICE: Final = 256
"""Connections that are looked after at once."""
_NONCES: Final = 65_536
"""Signed handshakes remembered; with more of them inside the window further ones are refused."""

log = structlog.get_logger("netd.framed")

REJECTED: Final = (
    "clients",  # as many connections as may be are here
    "address",  # ... from this address
    "arriving",  # too many have not finished their handshakes
    "timeout",  # its handshake took too long
    "proxy",  # no PROXY header, or a wrong one
    "tls",
    "handshake",  # none where one is required, or a wrong one
    "verifier",
    "changed",  # its listener asks for something else than it did when the client came
    "policy",  # no channel can be told for it, or the hub takes no more sessions
    "gone",  # it went away before its handshake was done
    "broken",  # something of ours went wrong
)
"""Why a client was not let in: labels of the metric, and `why` of the notice."""


class Observer(Protocol):
    """Who is told what happens to connections. Nothing here may block."""

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection, code: int, why: str) -> None: ...
    def rejected(self, why: str, address: str) -> None: ...
    def pressure(self, connection: Connection, over: bool) -> None:
        """More than half of what may wait for the client does; or less than an eighth again."""


class Exchange:
    """All framed connections of a service, or of one server of the library."""

    def __init__(
        self,
        reactor: Reactor,
        observer: Observer,
        *,
        hub: Hub | None,
        clock: Callable[[], float],
        carriers: Callable[[Connection], StreamCarrier | None] = lambda connection: None,
        peers: Callable[[Any], tuple[int, int] | None] = lambda sock: None,
    ) -> None:
        """`clock` gives seconds since the epoch. `carriers` makes a tracer's carrier, `peers` tells pid and uid."""
        self.reactor = reactor
        self.observer = observer
        self.hub = hub
        self.clock = clock
        self.carrier_of = carriers
        self.places = Places()
        # what an earlier life of this server saw is not remembered: nothing signed before this one is taken
        self.nonces = Nonces(_NONCES, since=beginning(self))
        """Of the doors that list keys."""
        self.doors: dict[tuple[str, str | None], Door] = {}
        self.connections: dict[Connection, None] = {}
        """In the order of their coming."""
        self.rejections: Counter[str] = Counter(dict.fromkeys(REJECTED, 0))
        self.closes: Counter[int] = Counter()
        """Connections that ended, by close code."""
        self.by_mode: Counter[str] = Counter()
        """Connections that are here."""
        self.max_unfinished = 256 * 1024 * 1024
        self.changed: Callable[[], object] | None = None
        """Called when a connection has ended."""
        self._unwelcome: set[Connection] = set()
        """Adopted, and never let in."""
        self._granted: set[Connection] = set()
        """Those whose token is their listener's."""
        self._ended = Totals()
        self._peers = peers

    # --- doors ---

    def lists(self, key: bytes) -> bool:
        """Whether a door accepts this key by name, as far as its files have been read."""
        return any(key in door.listed.keys for door in self.doors.values() if door.listed is not None)

    def door(self, address: str, interface: str | None) -> Door:
        """The door of a listener, a new one if there was none."""
        key = (address, interface)
        if key not in self.doors:
            self.doors[key] = Door(self, address, interface)
        return self.doors[key]

    def keep_doors(self, keep: set[tuple[str, str | None]]) -> None:
        """Forget every other door; the connections that came by those are orphans."""
        for key in self.doors.keys() - keep:
            del self.doors[key]

    def leads_in(self, door: Door) -> bool:
        """Whether its listener is still there."""
        return self.doors.get((door.address, door.interface)) is door

    @property
    def orphaned(self) -> int:
        """How many connections there are whose listener there is no longer."""
        return len(self.connections) - sum(door.connections for door in self.doors.values())

    def orphans(self) -> list[Connection]:
        """Those connections."""
        return [one for one in self.connections if not self.leads_in(one.door)]

    # --- connections ---

    def rejected(self, why: str, address: str) -> None:
        """A client was not let in."""
        self.rejections[why] += 1
        self.observer.rejected(why, address)

    def adopt(
        self,
        sock: Any,
        door: Door,
        *,
        address: str,
        key: str,
        mode: Mode,
        tls: TlsLayer | None = None,
        received: bytes = b"",
        handshake: Handshake | None = None,
    ) -> Connection:
        """Make a connection of a socket (socket.socket, which nothing here touches): a session, an outbox, a stream in
        the reactor. `welcome` comes next. Its place (`places`, `key`) was taken by the caller and goes with it.

        Raises RuntimeError while the reactor does not run; then socket and place are still the caller's.
        """
        connection = Connection(door, mode, key, handshake)
        rules = door.echo_rules if mode.name == "echo" else door.rules
        outbox = connection.outbox = Outbox(rules, self.reactor, connection)
        tags = None if handshake is None else handshake.tags
        vouched = handshake is not None and (handshake.signed or door.terms.verified)
        session = connection.session = Session(
            transport="framed",
            listener=door.address,
            address=address,
            encoder=mode.encoder,
            outbox=outbox,
            link=connection,
            opened=self.clock(),
            # what nobody has vouched for is no more than what a client says of itself
            tags=None if vouched else tags,
            fixed_tags=tags if vouched else None,
            name=None if handshake is None else handshake.tags.get("name"),
        )
        session.heartbeat = door.ping_interval if mode.name == "operations" else 0.0
        connection.stream = self.reactor.adopt(sock, connection, outbox, tls=tls, received=received)
        self._unwelcome.add(connection)
        return connection

    def welcome(self, connection: Connection) -> bool:
        """Let it in. False: the hub or its mode cannot have it; then it is told so, and ended."""
        try:
            if self.hub is not None:
                if connection.door.token:
                    self._grant(connection, self.hub)
                self.hub.open(connection.session)
            connection.mode.opened(connection)
        except (ProtocolError, TooBusy) as error:
            self.rejected("policy", connection.session.address)
            code = error.close if isinstance(error, ProtocolError) else CloseCode.TRY_LATER
            connection.end(code or CloseCode.POLICY, str(error))
            return False
        self._unwelcome.discard(connection)
        self.connections[connection] = None
        connection.door.connections += 1
        self.by_mode[connection.mode.name] += 1
        self.observer.opened(connection)
        return True

    def _grant(self, connection: Connection, hub: Hub) -> None:
        grant = hub.tokens.grant_of(connection.door.token)
        if grant is None:
            raise ProtocolError("cannot serve this listener's clients: it has no token", close=CloseCode.TRY_LATER)
        connection.session.tag(grants=grant)
        self._granted.add(connection)

    def introduced(self, connection: Connection, handshake: Handshake) -> None:
        """The first frame of a connection that is here was a handshake."""
        connection.handshake = handshake
        session, hub = connection.session, self.hub
        if hub is not None:
            hub.unindex(session)
        session.tag(own=handshake.tags)  # where handshakes are checked they are required, and come before `adopt`
        session.name = handshake.tags.get("name")
        if hub is not None:
            hub.index(session)

    def turn_away(self, connection: Connection, why: str, code: int, reason: str, retry_after: float) -> None:
        """In place of `welcome`."""
        self.rejected(why, connection.session.address)
        connection.end(code, reason, retry_after)

    def forget(self, connection: Connection, code: int, why: str) -> None:
        """It is ending: the hub forgets it at once. Raises nothing: the connection has to end whatever others do."""
        if self.hub is not None:
            try:
                self.hub.close(connection.session, code, why)
            except Exception:
                log.exception("the hub failed at the end of a session", session=connection.session.id)

    def ended(self, connection: Connection, code: int, why: str) -> None:
        """Its stream is gone. Whatever the observer raises, nothing of the connection stays."""
        self.forget(connection, code, why)
        self.places.leave(connection.key)
        self._granted.discard(connection)
        if connection in self._unwelcome:
            self._unwelcome.discard(connection)
            return
        del self.connections[connection]
        connection.door.connections -= 1
        self.by_mode[connection.mode.name] -= 1
        self.closes[int(code)] += 1
        self._ended.add(connection)
        try:
            self.observer.closed(connection, code, why)
        finally:
            if self.changed is not None:
                self.changed()

    def pressure(self, connection: Connection, over: bool) -> None:
        if over:
            self._ended.backpressure += 1
        else:
            self._ended.drains += 1
        self.observer.pressure(connection, over)

    def milliseconds(self) -> int:
        """Since the epoch."""
        return round(self.clock() * 1000)

    # --- once a second ---

    def look(self) -> Iterator[None]:
        """Look after all connections; pause wherever it yields. Run it about once a second."""
        unfinished = 0
        holding: list[Connection] = []
        for number, connection in enumerate(list(self.connections), 1):
            if not number % _SLICE:
                yield
            if connection.closing:
                continue
            door, now = connection.door, self.reactor.now
            if connection in self._granted and connection.session.token is None:
                # the hub has another configuration: the token's secret is another, or there is no such token
                connection.end(CloseCode.TRY_LATER, "the token of this listener has changed; come again", 1.0)
                continue
            silent = now - connection.heard
            if door.idle_timeout and silent >= door.idle_timeout:
                connection.end(CloseCode.NORMAL, "idle")
                continue
            if door.ping_interval and silent >= door.ping_interval and now - connection.pinged >= door.ping_interval:
                connection.pinged = now
                ping = connection.mode.ping(self.milliseconds())
                if ping is not None:
                    connection.outbox.push(ping, 128, True)
            held = connection.decoder.buffered
            if held:
                unfinished += held
                holding.append(connection)
        if unfinished > self.max_unfinished:
            self._relieve(holding, unfinished)

    def _relieve(self, holding: list[Connection], unfinished: int) -> None:
        for connection in nlargest(len(holding), holding, key=lambda one: one.decoder.buffered):
            if unfinished <= self.max_unfinished:
                return
            unfinished -= connection.decoder.buffered
            connection.end(CloseCode.TRY_LATER, "too much of unfinished frames is held for all clients")

    # --- views ---

    def find(self, session_id: str) -> Connection | None:
        """The connection of a session of the hub."""
        session = None if self.hub is None else self.hub.sessions.get(session_id)
        link = None if session is None else session.link
        return link if isinstance(link, Connection) and link in self.connections else None

    def totals(self) -> Totals:
        """As of now; as many steps as there are connections."""
        total = self._ended.copy()
        for connection in self.connections:
            total.add(connection)
        return total

    def view(self, connection: Connection) -> ConnectionView:
        return view(connection, self.reactor.now, self._peers(connection.stream.socket))
