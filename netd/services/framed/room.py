"""The room: what outlives the generations of the framed service. Its sessions, and who answers for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from netd.services.framed.arrival import VERIFIERS
from netd.services.framed.counters import Collector
from netd.services.framed.exchange import Exchange
from netd.services.framed.modes import made
from netd.services.framed.notices import Teller
from netd.services.framed.sockets import carrier_of, credentials_of

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context
    from netd.services.framed.modes import Mode
    from netd.services.framed.preparation import PreparedListener
    from netd.services.framed.service import FramedService


class Room:
    """Of one service type, or of one server of the library."""

    def __init__(self, hub: Hub, reactor: Reactor) -> None:
        self.hub = hub
        self.reactor = reactor
        self.owner: FramedService | None = None
        """The generation that answers for the sessions."""
        self.gone = trio.lowlevel.ParkingLot()
        """Whoever waits for connections to end."""
        self.threads = trio.CapacityLimiter(VERIFIERS)
        self.tuned: tuple[float, int] | None = None
        """keepalive and send_buffer as the sockets have them."""
        self.paced: tuple[int, ...] | None = None
        """Rates and bounds under which connections may be held back."""
        self._exchange: Exchange | None = None

    def exchange(self, context: Context) -> Exchange:
        """Made for the first generation."""
        if self._exchange is None:
            self._exchange = Exchange(
                self.reactor,
                Teller(context.bus, time.monotonic),
                hub=self.hub,
                clock=time.time,
                carriers=carrier_of,
                peers=credentials_of,
            )
            self._exchange.changed = self.gone.unpark_all
            context.metrics.registry.register(Collector(self._exchange))
        return self._exchange

    def mode(self, listener: PreparedListener) -> Mode:
        """What becomes of the payloads of a listener's clients."""
        return made(listener.listen, listener.codec, self.hub)
