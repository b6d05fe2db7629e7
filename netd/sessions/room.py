"""The room: what outlives the generations of a service with sessions. Its sessions, and who answers for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context

from netd.sessions.exchange import Exchange

ExchangeT = TypeVar("ExchangeT", bound=Exchange[Any, Any])


class Room(Generic[ExchangeT]):
    """Of one service type, or of one server of the library."""

    def __init__(self, hub: Hub, reactor: Reactor) -> None:
        self.hub = hub
        self.reactor = reactor
        self.owner: object | None = None
        """The generation that answers for the sessions."""
        self.gone = trio.lowlevel.ParkingLot()
        """Whoever waits for connections to end."""
        self.tuned: tuple[float, int] | None = None
        """keepalive and send_buffer as the sockets have them."""
        self.paced: tuple[int, ...] | None = None
        """Rates and bounds under which connections may be held back."""
        self._exchange: ExchangeT | None = None

    def exchange(self, context: Context) -> ExchangeT:
        """Made for the first generation."""
        if self._exchange is None:
            self._exchange = self.make_exchange(context)
            self._exchange.changed = self._tell
        return self._exchange

    def _tell(self) -> None:
        """A connection has ended."""
        if self.gone:  # seldom, and all that Trio does for nobody adds up
            self.gone.unpark_all()

    def make_exchange(self, context: Context) -> ExchangeT:
        """A new one, with who is told of what happens in it."""
        raise NotImplementedError
