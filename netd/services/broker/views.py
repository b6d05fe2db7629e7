"""What the broker's connections look like from outside. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from netd.sessions.views import ServiceSnapshot, SessionView


@dataclass(frozen=True, kw_only=True)
class BrokerSnapshot(ServiceSnapshot):
    """The service at a moment."""

    requests: int
    """HTTP connections that are no sessions, or not yet."""


@dataclass(frozen=True, kw_only=True)
class BrokerConnection(SessionView):
    """A WebSocket or an event stream as REST shows it."""

    transport: str
    """websocket or sse."""
    deflate: bool
    """Messages may be compressed."""
