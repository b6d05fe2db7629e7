"""One framed connection. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.sessions import connection
from netd.sessions.connection import Held
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from netd.errors import ProtocolError
    from netd.services.framed.doors import Door
    from netd.services.framed.modes import Mode
    from netd.wire.handshake import Handshake

__all__ = ["Connection", "Held"]


class Connection(connection.Connection):
    """Made by Exchange.adopt."""

    __slots__ = ("handshake",)

    door: Door
    mode: Mode

    def __init__(self, door: Door, mode: Mode, key: str, handshake: Handshake | None) -> None:
        super().__init__(door, mode, key)
        self.handshake = handshake
        """None: there was none."""

    def fail(self, error: ProtocolError) -> None:
        if not self.mode.settled:  # what it began with was no handshake
            self.door.exchange.rejected("handshake", self.session.address)
        super().fail(error)

    def look(self, now: float) -> None:
        if self.session.token is None and self.door.exchange.granted(self):
            # the hub has another configuration: the token's secret is another, or there is no such token
            self.end(CloseCode.TRY_LATER, "the token of this listener has changed; come again", 1.0)
        else:
            super().look(now)
