"""/v1/framed: the framed service and its connections.

Thin: all of it comes from the running generation, looked up for every request. What may be done to a session (send,
kick) is the same for every transport and stands in /v1/sessions.
"""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from netd.errors import Conflict
from netd.net.rest import Read
from netd.services.framed.service import FramedService
from netd.services.framed.views import ConnectionView

_MAX_LIST = 10_000

SessionId = Annotated[
    str, Path(pattern=r"^[0-9a-f-]{36}$", description="The id of the connection's session, as lists show it.")
]


class FramedListener(BaseModel):
    """A listener at a moment; `connections` are those that came by it and are here."""

    address: str
    mode: str
    codec: str
    tls: bool
    handshake: str
    connections: int


class FramedStatus(BaseModel):
    """The service at a moment; sums are since the daemon started. A stopped service shows nothing but that."""

    running: bool
    listeners: list[FramedListener] = []
    connections: int = 0
    """Here now, unfinished arrivals included."""
    sessions: int = 0
    """Here now and let in."""
    arriving: int = 0
    """With TLS or a handshake under way."""
    total: int = 0
    """Connections ever let in."""
    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    dropped: int = 0
    """Messages lost because a client did not read."""
    backpressure: int = 0
    """Times that half of what may wait for a client did."""
    drains: int = 0
    """Times that such a client had read it."""
    rejected: dict[str, int] = {}
    """Clients not let in, by reason."""
    limits: dict[str, float] = {}


class ConnectionList(BaseModel):
    """Connections in the order of their coming; `total` says how many there are, listed or not."""

    connections: list[ConnectionView]
    total: int


def router(service: Callable[[], FramedService | None]) -> APIRouter:
    """`service` gives the running generation, or None."""
    routes = APIRouter(tags=["framed"])

    @routes.get("")
    async def get_framed(caller: Read) -> FramedStatus:
        """The service: listeners, connections, sums, limits."""
        generation = service()
        if generation is None:
            return FramedStatus(running=False)
        values: dict[str, Any] = asdict(generation.snapshot())
        return FramedStatus(running=True, **values)

    @routes.get("/connections")
    async def list_connections(
        caller: Read,
        limit: Annotated[int, Query(ge=1, le=_MAX_LIST)] = 1000,
    ) -> ConnectionList:
        """The connections that are here, the oldest first."""
        generation = service()
        if generation is None:
            return ConnectionList(connections=[], total=0)
        return ConnectionList(connections=generation.connections(limit), total=generation.snapshot().sessions)

    @routes.get("/connections/{id}")
    async def get_connection(id: SessionId, caller: Read) -> ConnectionView:
        """One connection, by its session's id."""
        generation = service()
        if generation is None:
            raise Conflict("cannot show a connection: the framed service is not running")
        return generation.connection(id)

    return routes
