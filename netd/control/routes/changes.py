"""GET /v1/changes: slow operations, followed by id. Also how the routes that begin one answer."""

from typing import Annotated, Any

import trio
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from netd.control.changes import Change, Changes, ChangeView
from netd.net.rest import Read, Wait, until_gone

CHANGE: dict[int | str, dict[str, Any]] = {
    202: {"model": ChangeView, "description": "It is under way: follow it by its id."}
}
"""The `responses` of a route that begins a change."""


class ChangeList(BaseModel):
    changes: list[ChangeView]


def router(changes: Changes) -> APIRouter:
    routes = APIRouter(prefix="/changes", tags=["changes"])

    @routes.get("")
    async def list_changes(caller: Read) -> ChangeList:
        """All that are running and the last that ended, newest first."""
        return ChangeList(changes=changes.views())

    @routes.get("/{id}")
    async def get_change(
        id: Annotated[str, Path(max_length=64)], caller: Read, request: Request, wait: Wait = 0.0
    ) -> ChangeView:
        """One change; with `wait`, once it has ended or that time is over."""
        change = changes.get(id)
        await follow(change, wait, request)
        return change.view

    return routes


async def follow(change: Change, seconds: float, request: Request) -> None:
    """Wait for the end of `change` as long as somebody wants to know: the client, for at most `seconds`."""
    if seconds <= 0 or change.ended:
        return
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await until_gone(request)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await change.wait(seconds)
        nursery.cancel_scope.cancel()


async def answer(change: Change, wait: float, request: Request, response: Response) -> ChangeView:
    """202 while the change is under way, 200 when it is done; when it failed meanwhile, its own error."""
    await follow(change, wait, request)
    if change.error is not None:
        raise change.error
    response.status_code = 200 if change.ended else 202
    return change.view
