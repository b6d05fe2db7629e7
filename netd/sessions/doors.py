"""A door: one listener as the connections that came by it see it. Pure; it outlives generations.

Rule: what is read at every message (limits) stands here and is changed in place by `configure`, so that a reload holds
for those who are here from their next message on; what a connection came with (its mode) it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.hub.outbox import OutboxRules

if TYPE_CHECKING:
    from netd.sessions.config import SessionLimits
    from netd.sessions.exchange import Exchange


class Door:
    """Made by `Exchange.door`; transports add what is theirs."""

    def __init__(self, exchange: Exchange[Any, Any], address: str, interface: str | None) -> None:
        self.exchange: Exchange[Any, Any] = exchange
        self.address = address
        self.interface = interface
        self.limits: Any = None
        """What decoders share."""
        self.rules = OutboxRules()
        self.input_rate = 0.0
        self.input_burst = 0.0
        self.idle_timeout = 0.0
        self.ping_interval = 0.0
        self.connections = 0
        """Here now."""

    def configure(self, config: SessionLimits) -> None:
        """Take over the section's limits."""
        set_rules(self.rules, config)
        self.input_rate = float(config.input_rate)
        self.input_burst = float(config.input_burst or config.input_rate)
        self.idle_timeout = config.idle_timeout
        self.ping_interval = config.ping_interval


def set_rules(rules: OutboxRules, config: SessionLimits) -> None:
    """Have outboxes follow the section."""
    rules.bound = config.backpressure
    rules.policy = config.slow_consumer
    rules.rate = float(config.rate)
    rules.burst = float(config.burst)
