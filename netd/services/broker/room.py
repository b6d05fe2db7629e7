"""The room of the broker: what outlives its generations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from netd.services.broker import notices, routes
from netd.services.broker.counters import Answers
from netd.services.broker.gateway import Gateway
from netd.sessions import room
from netd.sessions.counters import Collector
from netd.sessions.notices import Teller
from netd.sessions.sockets import carrier_of, credentials_of

if TYPE_CHECKING:
    from netd.runtime.service import Context

MODES = ("operations", "channel", "application", "events")


class Room(room.Room[Gateway]):
    """Of one service type."""

    def make_exchange(self, context: Context) -> Gateway:
        gateway = Gateway(
            self.reactor,
            Teller(context.bus, time.monotonic, notices.WORDS),
            hub=self.hub,
            clock=time.time,
            carriers=carrier_of,
            peers=credentials_of,
        )
        context.metrics.registry.register(Collector(gateway, "broker", MODES))
        context.metrics.registry.register(Answers(gateway.answers))
        gateway.site = routes.site(gateway)
        return gateway
