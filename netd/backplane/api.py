"""/v1/nodes: the machines that are one hub. Thin: what is shown comes from the generation that runs now."""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from netd.backplane.service import BackplaneService
from netd.net.rest import Read


class NodeView(BaseModel):
    """A node. `node`: its name and an id of its run; `address`: where clients find it. `queue`: its messages that wait
    for Redis; `lag_ms`: how long Redis took for its last heartbeat; `seen`: when it said all this, in seconds since the
    epoch, by its own clock. `here`: this one."""

    node: str
    name: str
    address: str | None
    version: str
    sessions: int
    channels: int
    queue: int
    lag_ms: float | None
    seen: float
    here: bool


class NodeList(BaseModel):
    """This node first. `backplane`: memory, where the hub is of one machine, or redis. `redis`: how that stands; null
    while the unit does not run."""

    backplane: str
    nodes: list[NodeView]
    redis: dict[str, Any] | None


def router(service: Callable[[], BackplaneService | None], kind: Callable[[], str]) -> APIRouter:
    """`service` gives the running generation, or None; `kind` is `hub.backplane`."""
    routes = APIRouter(tags=["nodes"])

    @routes.get("")
    async def list_nodes(caller: Read) -> NodeList:
        """The nodes that live, as far as this one knows."""
        generation = service()
        snapshot = None if generation is None else generation.snapshot()
        nodes = [] if generation is None else generation.nodes()
        views = [
            NodeView(
                node=one.node,
                name=one.name,
                address=one.address,
                version=one.version,
                sessions=one.sessions,
                channels=one.channels,
                queue=one.queue,
                lag_ms=one.lag_ms,
                seen=one.time,
                here=number == 0,
            )
            for number, one in enumerate(nodes)
        ]
        return NodeList(backplane=kind(), nodes=views, redis=None if snapshot is None else asdict(snapshot))

    return routes
