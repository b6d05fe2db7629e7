"""The room of the framed service: what outlives its generations, or what one server of the library has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from netd.services.framed import notices
from netd.services.framed.arrival import VERIFIERS
from netd.services.framed.exchange import Exchange
from netd.services.framed.modes import made
from netd.sessions import room
from netd.sessions.counters import Collector
from netd.sessions.notices import Teller
from netd.sessions.sockets import carrier_of, credentials_of

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.reactor import Reactor
    from netd.runtime.service import Context
    from netd.services.framed.modes import Mode
    from netd.services.framed.preparation import PreparedListener

MODES = ("operations", "channel", "worker", "echo")


class Room(room.Room[Exchange]):
    """Of one service type, or of one server of the library."""

    def __init__(self, hub: Hub, reactor: Reactor) -> None:
        super().__init__(hub, reactor)
        self.threads = trio.CapacityLimiter(VERIFIERS)

    def make_exchange(self, context: Context) -> Exchange:
        exchange = Exchange(
            self.reactor,
            Teller(context.bus, time.monotonic, notices.WORDS),
            hub=self.hub,
            clock=time.time,
            carriers=carrier_of,
            peers=credentials_of,
        )
        context.metrics.registry.register(Collector(exchange, "framed", MODES))
        return exchange

    def mode(self, listener: PreparedListener) -> Mode:
        """What becomes of the payloads of a listener's clients."""
        return made(listener.listen, listener.codec, self.hub)
