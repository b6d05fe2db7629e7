"""A door: one listener as the connections that came by it see it. Pure; it outlives generations.

Rule: what is read at every message (limits) stands here and is changed in place by `configure`, so that a reload holds
for those who are here from their next message on; what a connection came with (its mode) it keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netd.hub.outbox import OutboxRules
from netd.services.framed.protocol import Terms
from netd.wire.framing import FrameLimits

if TYPE_CHECKING:
    from netd.services.framed.config import FramedConfig
    from netd.services.framed.exchange import Exchange
    from netd.services.framed.modes import Mode

_MAX_READ: Final = 256 * 1024
"""Bytes that the reactor reads from one stream at most before it writes."""


class Door:
    """Made by Exchange.door."""

    def __init__(self, exchange: Exchange, address: str, interface: str | None) -> None:
        self.exchange = exchange
        self.address = address
        self.interface = interface
        self.frame_limits = FrameLimits()
        self.rules = OutboxRules()
        self.echo_rules = OutboxRules()
        """With room for what was read already when an echo stops reading: its own payloads overflow nothing."""
        self.terms = Terms()
        self.mode: Mode
        """Of those who come from now on, when their handshakes are done."""
        self.opening: Mode
        """Of those whose first frame may be a handshake."""
        self.input_rate = 0.0
        self.input_burst = 0.0
        self.idle_timeout = 0.0
        self.ping_interval = 0.0
        self.connections = 0
        """Here now."""

    def configure(self, config: FramedConfig) -> None:
        """Take over the section's limits."""
        self.frame_limits.max_frame = config.max_frame
        for rules in (self.rules, self.echo_rules):
            rules.bound = config.backpressure
            rules.policy = config.slow_consumer
            rules.rate = float(config.rate)
            rules.burst = float(config.burst)
        echo = self.echo_rules
        high, low = echo.high, echo.low
        echo.bound = config.backpressure + config.max_frame + _MAX_READ
        echo.high, echo.low = high, low
        self.input_rate = float(config.input_rate)
        self.input_burst = float(config.input_burst or config.input_rate)
        self.idle_timeout = config.idle_timeout
        self.ping_interval = config.ping_interval
