"""The exchange: all framed connections. Pure; it outlives generations.

    Door        one listener as its connections see it: limits, terms, mode (doors.py)
    Exchange    adopts connections, and knows which handshakes have been (netd/sessions/exchange.py: all the rest)

Left out: accepting, TLS, handshakes that are waited for (arrival.py), what becomes of payloads (modes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from netd.errors import ProtocolError
from netd.services.framed.connection import Connection
from netd.services.framed.doors import Door, beginning
from netd.services.framed.views import ConnectionView, view
from netd.sessions import exchange
from netd.wire.handshake import Nonces
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.tls import TlsLayer
    from netd.services.framed.modes import Mode
    from netd.wire.handshake import Handshake

_NONCES: Final = 65_536
"""Signed handshakes remembered; with more of them inside the window further ones are refused."""

REJECTED: Final = (
    *exchange.REJECTED,
    "handshake",  # none where one is required, or a wrong one
    "verifier",
)
"""Why a client was not let in: labels of the metric, and `why` of the notice."""


class Exchange(exchange.Exchange[Connection, Door]):
    """All framed connections of a service, or of one server of the library."""

    reasons = REJECTED

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # what an earlier life of this server saw is not remembered: nothing signed before this one is taken
        self.nonces = Nonces(_NONCES, since=beginning(self))
        """Of the doors that list keys."""
        self._granted: set[Connection] = set()
        """Those whose token is their listener's."""

    def make_door(self, address: str, interface: str | None) -> Door:
        return Door(self, address, interface)

    def lists(self, key: bytes) -> bool:
        """Whether a door accepts this key by name, as far as its files have been read."""
        return any(key in door.listed.keys for door in self.doors.values() if door.listed is not None)

    def granted(self, connection: Connection) -> bool:
        """Whether it was given its listener's token."""
        return connection in self._granted

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
        """Make a connection of a socket (`seat`)."""
        connection = Connection(door, mode, key, handshake)
        tags = None if handshake is None else handshake.tags
        vouched = handshake is not None and (handshake.signed or door.terms.verified)
        self.seat(
            connection,
            sock,
            address=address,
            encoder=mode.encoder,
            rules=door.echo_rules if mode.name == "echo" else door.rules,
            tls=tls,
            received=received,
            # what nobody has vouched for is no more than what a client says of itself
            tags=None if vouched else tags,
            fixed_tags=tags if vouched else None,
            name=None if handshake is None else handshake.tags.get("name"),
        )
        return connection

    def introduce(self, connection: Connection, hub: Hub) -> None:
        if connection.door.token:
            self._grant(connection, hub)
        super().introduce(connection, hub)

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

    def ended(self, connection: Connection, code: int, why: str) -> None:
        self._granted.discard(connection)
        super().ended(connection, code, why)

    def view(self, connection: Connection) -> ConnectionView:
        return view(connection, self.reactor.now, self.peer_of(connection.stream.socket))
