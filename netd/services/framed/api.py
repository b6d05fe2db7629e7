"""/v1/framed: the framed service and its connections (netd/sessions/api.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from netd.services.framed.views import ConnectionView
from netd.sessions.api import ListenerStatus, ServiceStatus, session_router

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from netd.services.framed.service import FramedService


class FramedListener(ListenerStatus):
    """A listener at a moment; `connections` are those that came by it and are here."""

    mode: str
    codec: str
    handshake: str


class FramedStatus(ServiceStatus):
    """The service at a moment; sums are since the daemon started. A stopped service shows nothing but that."""

    listeners: list[FramedListener] = Field(default_factory=list)


class ConnectionList(BaseModel):
    """Connections in the order of their coming; `total` says how many there are, listed or not."""

    connections: list[ConnectionView]
    total: int


def router(service: Callable[[], FramedService | None]) -> APIRouter:
    """`service` gives the running generation, or None."""
    return session_router("framed", service, FramedStatus, ConnectionList, ConnectionView)
