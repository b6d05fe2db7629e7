"""A door of the broker: one listener as its WebSockets and event streams see it. Pure; it outlives generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.net.stream import READ
from netd.sessions import doors
from netd.wire.websocket import Limits

if TYPE_CHECKING:
    from netd.services.broker.config import BrokerConfig, BrokerListen
    from netd.services.broker.gateway import Gateway


class Door(doors.Door):
    """Made by Gateway.door."""

    exchange: Gateway
    limits: Limits
    listen: BrokerListen
    """What it asks of those who come now."""

    def __init__(self, exchange: Any, address: str, interface: str | None) -> None:
        super().__init__(exchange, address, interface)
        # as much as a read brings of what is not compressed: outboxes have room for that, and are written after it
        self.limits = Limits(max_inflated=READ)
        self.ping_timeout = 0.0

    def configure(self, config: BrokerConfig) -> None:  # type: ignore[override]
        super().configure(config)
        self.limits.max_message = config.max_message
        self.limits.max_fragments = config.max_fragments
        self.ping_timeout = config.ping_timeout
