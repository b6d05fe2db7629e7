"""All connections of one service: who may come, who is here, what was counted. Pure; it outlives generations.

    Door        one listener as its connections see it: limits (doors.py)
    Exchange    has connections sessions of the hub and streams of the reactor, looks after them, knows them by id
    Observer    who is told: the service (notices on the bus), or a program that uses the server library

Rules:
- a door is known by its actual address and its interface, so that another generation of the service finds it again;
- a connection is counted from accept to its very end (`places`), whatever becomes of it in between;
- what is looked after in time (idle clients, pings, unfinished messages) is looked at once a second, all connections in
  slices: there is no timer for each;
- sums are what ended plus what is here: nothing is counted twice, and nothing is touched for a message.

Left out: accepting and whatever is waited for (arrival.py, service.py), what becomes of bytes (modes.py).
"""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

import structlog

from netd.budget import Places
from netd.errors import ProtocolError, TooBusy
from netd.hub.grants import ANONYMOUS
from netd.hub.outbox import Outbox
from netd.hub.session import Session
from netd.sessions.connection import Connection
from netd.sessions.doors import Door
from netd.sessions.views import Totals
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from netd.hub.grants import Grant
    from netd.hub.hub import Hub
    from netd.hub.outbox import OutboxRules
    from netd.hub.session import Encoder
    from netd.net.carrier import StreamCarrier
    from netd.net.reactor import Reactor
    from netd.net.stream import Stream
    from netd.net.tls import TlsLayer

_SLICE: Final = 256
"""Connections that are looked after at once."""

log = structlog.get_logger("netd.sessions")

REJECTED: Final = (
    "clients",  # as many connections as may be are here
    "address",  # ... from this address
    "arriving",  # too many have not finished their handshakes
    "timeout",  # its handshake took too long
    "proxy",  # no PROXY header, or a wrong one
    "tls",
    "changed",  # its listener asks for something else than it did when the client came
    "policy",  # no channel can be told for it, or the hub takes no more sessions
    "gone",  # it went away before its handshake was done
    "broken",  # something of ours went wrong
)
"""Why a client was not let in: labels of the metric, and `why` of the notice. Transports have a few more."""

_CODES: Final = frozenset(map(int, CloseCode))

ConnectionT = TypeVar("ConnectionT", bound=Connection)
DoorT = TypeVar("DoorT", bound=Door)


class Observer(Protocol):
    """Who is told what happens to connections. Nothing here may block."""

    def opened(self, connection: Any) -> None: ...
    def closed(self, connection: Any, code: int, why: str) -> None: ...
    def rejected(self, why: str, address: str) -> None: ...
    def pressure(self, connection: Any, over: bool) -> None:
        """More than half of what may wait for the client does; or less than an eighth again."""


class Exchange(Generic[ConnectionT, DoorT]):
    """All connections of a service, or of one server of the library."""

    reasons: ClassVar[tuple[str, ...]] = REJECTED
    """Why it may not let a client in."""

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
        self.peer_of = peers
        self.places = Places()
        self.doors: dict[tuple[str, str | None], DoorT] = {}
        self.connections: dict[ConnectionT, None] = {}
        """In the order of their coming."""
        self.rejections: Counter[str] = Counter(dict.fromkeys(self.reasons, 0))
        self.closes: Counter[int] = Counter()
        """Connections that ended, by close code; 0: one of the client's own."""
        self.by_mode: Counter[str] = Counter()
        """Connections that are here."""
        self.max_unfinished = 256 * 1024 * 1024
        self.changed: Callable[[], object] | None = None
        """Called when a connection has ended."""
        self._unwelcome: set[ConnectionT] = set()
        """Adopted, and never let in."""
        if hub is not None:
            hub.on_lost.append(self._lost)
        self._ended = Totals()

    # --- doors ---

    def make_door(self, address: str, interface: str | None) -> DoorT:
        """A new one, of the transport's kind."""
        raise NotImplementedError

    def door(self, address: str, interface: str | None) -> DoorT:
        """The door of a listener, a new one if there was none."""
        key = (address, interface)
        if key not in self.doors:
            self.doors[key] = self.make_door(address, interface)
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

    def orphans(self) -> list[ConnectionT]:
        """Those connections."""
        return [one for one in self.connections if not self.leads_in(one.door)]

    # --- connections ---

    def streams(self) -> list[Stream]:
        """Of all that are here, in whatever state."""
        return [connection.stream for connection in self.connections]

    def rejected(self, why: str, address: str) -> None:
        """A client was not let in."""
        self.rejections[why] += 1
        self.observer.rejected(why, address)

    def seat(
        self,
        connection: ConnectionT,
        sock: Any,
        *,
        address: str,
        encoder: Encoder,
        rules: OutboxRules,
        outbox: Outbox | None = None,
        tls: TlsLayer | None = None,
        received: bytes = b"",
        stream: Stream | None = None,
        grants: Grant = ANONYMOUS,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        fixed_tags: Mapping[str, str] | None = None,
    ) -> None:
        """Make a session, an outbox and a stream in the reactor of a connection and its socket (socket.socket, which
        nothing here touches). `welcome` comes next. Its place (`places`, `key`) was taken by the caller and goes with
        it. `stream`: the socket is in the reactor already.

        Raises RuntimeError while the reactor does not run, and OSError if it takes no more; then socket and place are
        still the caller's.
        """
        door = connection.door
        outbox = connection.outbox = Outbox(rules, self.reactor, connection) if outbox is None else outbox
        session = connection.session = Session(
            transport=connection.mode.transport,
            listener=door.address,
            address=address,
            encoder=encoder,
            outbox=outbox,
            link=connection,
            opened=self.clock(),
            grants=grants,
            name=name,
            tags=tags,
            fixed_tags=fixed_tags,
        )
        session.heartbeat = door.ping_interval if connection.mode.pings else 0.0
        if stream is None:
            stream = self.reactor.adopt(sock, connection, outbox, tls=tls, received=received)
        else:
            stream.pass_on(connection, outbox, received)
        connection.stream = stream
        self._unwelcome.add(connection)

    def welcome(self, connection: ConnectionT) -> bool:
        """Let it in. False: the hub or its mode cannot have it; then it is told so, and ended."""
        try:
            if self.hub is not None:
                self.introduce(connection, self.hub)
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

    def introduce(self, connection: ConnectionT, hub: Hub) -> None:
        """Have the hub know its session. Raises ProtocolError and TooBusy."""
        hub.open(connection.session)

    def turn_away(self, connection: ConnectionT, why: str, code: int, reason: str, retry_after: float) -> None:
        """In place of `welcome`."""
        self.rejected(why, connection.session.address)
        connection.end(code, reason, retry_after)

    def forget(self, connection: ConnectionT, code: int, why: str) -> None:
        """It is ending: the hub forgets it at once. Raises nothing: the connection has to end whatever others do."""
        if self.hub is not None:
            try:
                self.hub.close(connection.session, code, why)
            except Exception:
                log.exception("the hub failed at the end of a session", session=connection.session.id)

    def ended(self, connection: ConnectionT, code: int, why: str) -> None:
        """Its stream is gone. Whatever the observer raises, nothing of the connection stays."""
        if not connection.session.closing:
            self.forget(connection, code, why)
        self.places.leave(connection.key)
        if connection in self._unwelcome:
            self._unwelcome.discard(connection)
            return
        del self.connections[connection]
        connection.door.connections -= 1
        self.by_mode[connection.mode.name] -= 1
        self.closes[int(code) if code in _CODES else 0] += 1
        self._ended.add(connection)
        try:
            self.observer.closed(connection, code, why)
        finally:
            if self.changed is not None:
                self.changed()

    def pressure(self, connection: ConnectionT, over: bool) -> None:
        if over:
            self._ended.backpressure += 1
        else:
            self._ended.drains += 1
        self.observer.pressure(connection, over)

    def milliseconds(self) -> int:
        """Since the epoch."""
        return round(self.clock() * 1000)

    def _lost(self, session: Session, channel: bytes | None, why: str) -> None:
        """The hub's `on_lost`."""
        link: Any = session.link
        if isinstance(link, Connection) and link in self.connections and not link.closing:
            link.mode.lost(link, channel, why)

    # --- once a second ---

    def look(self) -> Iterator[None]:
        """Look after all connections; pause wherever it yields. Run it about once a second."""
        unfinished = 0
        holding: list[ConnectionT] = []
        for number, connection in enumerate(list(self.connections), 1):
            if not number % _SLICE:
                yield
            if connection.closing:
                continue
            connection.look(self.reactor.now)
            held = connection.decoder.buffered
            if held and not connection.closing:
                unfinished += held
                holding.append(connection)
        if unfinished > self.max_unfinished:
            self._relieve(holding, unfinished)

    def _relieve(self, holding: list[ConnectionT], unfinished: int) -> None:
        for connection in nlargest(len(holding), holding, key=lambda one: one.decoder.buffered):
            if unfinished <= self.max_unfinished:
                return
            unfinished -= connection.decoder.buffered
            connection.end(CloseCode.TRY_LATER, "too much of unfinished messages is held for all clients")

    # --- views ---

    def find(self, session_id: str) -> ConnectionT | None:
        """The connection of a session of the hub."""
        session = None if self.hub is None else self.hub.sessions.get(session_id)
        link: Any = None if session is None else session.link
        return link if link in self.connections else None

    def totals(self) -> Totals:
        """As of now; as many steps as there are connections."""
        total = self._ended.copy()
        for connection in self.connections:
            total.add(connection)
        return total

    def view(self, connection: ConnectionT) -> Any:
        """It as REST shows it."""
        raise NotImplementedError
