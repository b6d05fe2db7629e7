"""The router of a service with sessions, as the control API mounts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from fastapi import Depends, FastAPI

from netd.net.rest import Access, Caller, known_query, render_errors, set_caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter


def api_of(name: str, router: Callable[[Callable[[], Any]], APIRouter], service: Any) -> httpx.AsyncClient:
    """A client of /v1/NAME that may read; `service` is the running generation, or None."""
    app = FastAPI(dependencies=[Depends(known_query)])
    render_errors(app)
    app.include_router(router(lambda: service), prefix=f"/v1/{name}")

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            set_caller(scope, Caller(None, Access.READ))
        await app(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://netd")
