"""/v1/NAME of a service with sessions: the service and its connections.

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
from netd.sessions.service import SessionService

_MAX_LIST = 10_000

SessionId = Annotated[
    str, Path(pattern=r"^[0-9a-f-]{36}$", description="The id of the connection's session, as lists show it.")
]


class ListenerStatus(BaseModel):
    """A listener at a moment; `connections` are those that came by it and are here."""

    address: str
    tls: bool
    connections: int


class ServiceStatus(BaseModel):
    """The service at a moment; sums are since the daemon started. A stopped service shows nothing but that."""

    running: bool
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


def session_router(
    name: str,
    service: Callable[[], SessionService[Any, Any, Any] | None],
    status: type[ServiceStatus],
    connections: type[BaseModel],
    connection: type,
) -> APIRouter:
    """`service` gives the running generation, or None; the others are the models of the three answers.

    That of `connections` has the fields `connections` and `total`.
    """
    routes = APIRouter(tags=[name])

    async def get_service(caller: Read) -> Any:
        """The service: listeners, connections, sums, limits."""
        generation = service()
        if generation is None:
            return status(running=False)
        return status(running=True, **asdict(generation.snapshot()))

    async def list_connections(
        caller: Read,
        limit: Annotated[int, Query(ge=1, le=_MAX_LIST)] = 1000,
    ) -> Any:
        """The connections that are here, the oldest first."""
        generation = service()
        if generation is None:
            return connections(connections=[], total=0)
        return connections(connections=generation.connections(limit), total=generation.count)

    async def get_connection(id: SessionId, caller: Read) -> Any:
        """One connection, by its session's id."""
        generation = service()
        if generation is None:
            raise Conflict(f"cannot show a connection: the {name} service is not running")
        return generation.connection(id)

    routes.add_api_route("", get_service, response_model=status, name=f"get_{name}")
    routes.add_api_route("/connections", list_connections, response_model=connections)
    routes.add_api_route("/connections/{id}", get_connection, response_model=connection)
    return routes
