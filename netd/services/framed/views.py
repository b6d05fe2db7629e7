"""What framed connections look like from outside. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from netd.sessions.views import ServiceSnapshot, SessionView, Totals, about

if TYPE_CHECKING:
    from netd.services.framed.connection import Connection

__all__ = ["ConnectionView", "FramedSnapshot", "Totals", "view"]


@dataclass(frozen=True)
class FramedSnapshot(ServiceSnapshot):
    """The service at a moment."""


@dataclass(frozen=True, kw_only=True)
class ConnectionView(SessionView):
    """A framed connection as REST shows it."""

    version: str | None
    """Of its handshake."""
    signed: bool
    """Its handshake's signature was checked."""


def view(connection: Connection, now: float, peer: tuple[int, int] | None) -> ConnectionView:
    """`now` is the reactor's clock, `peer` the pid and uid behind a Unix socket."""
    handshake = connection.handshake
    return ConnectionView(
        version=None if handshake is None else handshake.version,
        signed=handshake is not None and handshake.signed,
        **about(connection, now, peer),
    )
