"""/v1/anomaly: scores of sessions. Thin: what is shown comes from the generation that runs as the request comes."""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from netd.errors import Conflict, NotFound
from netd.net.rest import Read
from netd.services.anomaly.service import AnomalyService, SessionScores

MAX_LIST = 1000
"""Sessions of one answer."""

Id = Annotated[str, Path(max_length=128, description="The id of a session.")]


class AnomalyStatus(BaseModel):
    """The service and the sessions with the largest scores; of a stopped service, that it does not run."""

    running: bool
    use: str | None = None
    scoring: str | None = Field(None, description='Who scores now: builtin, command, http, python, or "none".')
    adapter_error: str | None = None
    interval: float | None = None
    threshold: float | None = None
    window: int | None = None
    tracked: int = 0
    untracked: int = 0
    learning: int = 0
    over: int = 0
    samples: int = 0
    sample_ms: float | None = None
    sessions: list[SessionScores] = []


def router(service: Callable[[], AnomalyService | None]) -> APIRouter:
    """`service` gives the running generation, or None."""
    routes = APIRouter(tags=["anomaly"])

    @routes.get("")
    async def get_anomaly(
        caller: Read,
        limit: Annotated[int, Query(ge=0, le=MAX_LIST, description="Sessions, the largest anomaly first.")] = 20,
    ) -> AnomalyStatus:
        """How it stands, and the sessions with the largest scores."""
        generation = service()
        if generation is None:
            return AnomalyStatus(running=False)
        return AnomalyStatus(running=True, sessions=generation.worst(limit), **asdict(generation.snapshot()))

    @routes.get("/{id}")
    async def get_session_scores(id: Id, caller: Read) -> SessionScores:
        """One session's scores."""
        generation = service()
        if generation is None:
            raise Conflict("cannot score sessions: the anomaly service is not running (anomaly.enabled)")
        found = generation.of(id)
        if found is None:
            raise NotFound(f"cannot find scores of session {id!r}: it is not there, not watched, or too new")
        return found

    return routes
