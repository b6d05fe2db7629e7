"""GET /v1/services, POST /v1/services/{name}/start|stop|restart."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from netd.control.changes import Changes, ChangeView
from netd.control.host import Host
from netd.control.routes.changes import CHANGE, answer
from netd.errors import NotFound
from netd.net.rest import Read, Wait, Write
from netd.runtime.unit import UnitSnapshot

Name = Annotated[str, Path(max_length=64, description="A service's name, as in the configuration.")]


class ServiceList(BaseModel):
    services: list[UnitSnapshot]


def router(host: Host, changes: Changes) -> APIRouter:
    routes = APIRouter(prefix="/services", tags=["services"])

    def find(name: str) -> UnitSnapshot:
        units = {unit.name: unit for unit in host.services()}
        if name not in units:
            raise NotFound(f"cannot find service {name!r}: there are {', '.join(units) or 'none'}")
        return units[name]

    @routes.get("")
    async def list_services(caller: Read) -> ServiceList:
        """All services, in the order they start."""
        return ServiceList(services=list(host.services()))

    @routes.get("/{name}")
    async def get_service(name: Name, caller: Read) -> UnitSnapshot:
        """One service."""
        return find(name)

    def verb(word: str, operation: Callable[[str], Awaitable[UnitSnapshot]], does: str) -> None:
        async def act(name: Name, caller: Write, request: Request, response: Response, wait: Wait = 0.0) -> ChangeView:
            find(name)
            change = changes.begin(f"service.{word}", name, partial(operation, name), caller)
            return await answer(change, wait, request, response)

        routes.add_api_route(
            f"/{{name}}/{word}",
            act,
            methods=["POST"],
            name=f"{word}_service",
            description=does,
            responses=CHANGE,
        )

    verb("start", host.service_start, "Start a service; done once it serves.")
    verb("stop", host.service_stop, "Drain and stop a service; done once it has ended.")
    verb("restart", host.service_restart, "Replace a service by a new generation; its listeners stay open.")

    return routes
