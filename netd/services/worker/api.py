"""/v1/worker: the service and its workers. Thin: what is shown comes from the generation that runs just then.

One thing may be done to a worker: it is asked to go (POST {id}/drain), or cut off (DELETE).
"""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel

from netd.errors import Conflict
from netd.net.rest import Read, Write
from netd.services.worker.service import WorkerService
from netd.services.worker.views import ProgramView, WorkerView

Id = Annotated[int, Path(ge=1, le=2**53, description="The number of a worker, as the list shows it.")]


class WorkerStatus(BaseModel):
    """The service at a moment; sums are since the daemon started. A stopped service shows nothing but that."""

    running: bool
    socket: str | None = None
    workers: list[WorkerView] = []
    programs: list[ProgramView] = []
    """The daemon's own, by place."""
    sessions: int = 0
    """Sessions that workers know of, or will."""
    unassigned: int = 0
    """Those of them that have no worker at the moment: they get one as they need one."""
    waiting_events: int = 0
    waiting_bytes: int = 0
    waiting_requests: int = 0
    joined: int = 0
    crashed: int = 0
    """Workers that went without a word."""
    hung: int = 0
    rejected: int = 0
    """Connections that did not become workers."""
    handled: int = 0
    cancelled: int = 0
    lost: int = 0
    """Events that a worker had in hand as it went."""
    dropped: int = 0
    """Events that no worker will be told of."""
    moved: int = 0
    """Times that a session got another worker."""
    pauses: int = 0
    """Times that nothing more was read from a client, as its worker was behind."""
    requests: dict[str, int] = {}
    """HTTP requests by what came of them: answered, failed, refused, timeout."""


def router(service: Callable[[], WorkerService | None]) -> APIRouter:
    """`service` gives the running generation, or None."""
    routes = APIRouter(tags=["worker"])

    def running() -> WorkerService:
        generation = service()
        if generation is None:
            raise Conflict("cannot look at workers: the worker service is not running (worker.enabled)")
        return generation

    @routes.get("")
    async def get_worker(caller: Read) -> WorkerStatus:
        """The service: workers, what waits for them, sums."""
        generation = service()
        if generation is None:
            return WorkerStatus(running=False)
        values: dict[str, Any] = asdict(generation.snapshot())
        return WorkerStatus(running=True, **values)

    @routes.get("/{id}")
    async def get_one_worker(id: Id, caller: Read) -> WorkerView:
        """One worker."""
        return running().worker(id)

    @routes.post("/{id}/drain")
    async def drain_worker(id: Id, caller: Write) -> WorkerView:
        """Have it finish what it has in hand, and go. Its sessions become others' at once."""
        return running().drain(id)

    @routes.delete("/{id}")
    async def disconnect_worker(id: Id, caller: Write) -> WorkerView:
        """Cut it off: what it has in hand is lost. One of the daemon's own is ended, and started again."""
        return running().disconnect(id)

    return routes
