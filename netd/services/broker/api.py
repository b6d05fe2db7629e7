"""/v1/broker: the broker and its connections (netd/sessions/api.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from netd.services.broker.views import BrokerConnection
from netd.sessions.api import ListenerStatus, ServiceStatus, session_router

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter

    from netd.services.broker.service import BrokerService


class BrokerStatus(ServiceStatus):
    """The service at a moment; sums are since the daemon started. A stopped service shows nothing but that."""

    listeners: list[ListenerStatus] = Field(default_factory=list)
    requests: int = 0
    """HTTP connections that are no sessions, or not yet."""


class BrokerConnectionList(BaseModel):
    """Connections in the order of their coming; `total` says how many there are, listed or not."""

    connections: list[BrokerConnection]
    total: int


def router(service: Callable[[], BrokerService | None]) -> APIRouter:
    """`service` gives the running generation, or None."""
    return session_router("broker", service, BrokerStatus, BrokerConnectionList, BrokerConnection)
