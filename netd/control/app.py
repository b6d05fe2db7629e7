"""The control API: a FastAPI application over a Host.

    net/http.serve --> _Front (who asks, headers) --> FastAPI --> routes/*.py and each service's router --> Host

Rules:
- routes are thin: they read snapshots, or begin a change; whatever is slow runs in the daemon's nursery;
- within /v1 things are only added: tests/control/openapi.json holds what clients rely on;
- every answer says which daemon and which API it comes from (Netd-Version, Netd-Api).

Importing this file imports FastAPI (some 0.3 s): the daemon does it when it has a control socket to serve.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import structlog
from fastapi import Depends, FastAPI

from netd.control.access import AccessPolicy, own_account
from netd.control.changes import Changes
from netd.control.routes import changes as changes_routes
from netd.control.routes import channels, config, events, log, services, sessions, status, tokens
from netd.net.rest import ERRORS, answer_head, known_query, render_errors, set_caller

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from netd.control.host import Host
    from netd.net.http import App, Message, Receive, Scope, Send

API = "1"
"""The version of the API, as in its paths."""

logger = structlog.get_logger("netd.control")


def create_app(
    host: Host, nursery: trio.Nursery, *, policy: AccessPolicy | None = None, boot: str | None = None
) -> FastAPI:
    """The application over `host`; slow operations run in `nursery`, which must outlive every request.

    `policy` says who may do what, by default by the running [control] section and by how this process was started.
    `boot` is a word for this run of the daemon (hexadecimal), by default a random one.
    """
    boot = boot or secrets.token_hex(4)
    policy = policy or AccessPolicy(lambda: host.control_config, own_uid=own_account())
    changes = Changes(nursery, boot=boot)
    headers = {"netd-version": host.version, "netd-api": API}

    app = FastAPI(
        title="netd control API",
        version=host.version,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(known_query)],
        responses=ERRORS,
    )
    app.add_middleware(_Front, policy=policy, headers=headers)
    render_errors(app, headers=headers)
    for router in (
        status.router(host),
        services.router(host, changes),
        changes_routes.router(changes),
        config.router(host, changes),
        events.router(host, boot=boot),
        log.router(host),
        sessions.router(host),
        channels.router(host),
        tokens.router(host),
    ):
        app.include_router(router, prefix="/v1")
    for prefix, service_router in host.routers():
        app.include_router(service_router, prefix=f"/v1{prefix}")
    return app


_NAMED = ("/v1/sessions/", "/v1/channels/")
"""Below these a segment of the path is a name that may hold anything: it is routed as it was sent, percent-encoded, and
the route decodes it. A slash in a name would be taken for one of the path otherwise."""


class _Front:
    """What every request passes on its way in and out."""

    def __init__(self, app: App, *, policy: AccessPolicy, headers: Mapping[str, str]) -> None:
        self._app = app
        self._policy = policy
        self._headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(_NAMED):
            scope["path"] = scope["raw_path"].decode("ascii", "replace")
        caller = await self._policy.caller(scope.get("extensions", {}).get("netd.peer"))
        set_caller(scope, caller)
        answered = 0
        began = time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        try:
            if scope["method"] == "HEAD":
                await answer_head(self._app, scope, receive, tell)
            else:
                await self._app(scope, receive, tell)
        finally:
            logger.debug(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=answered,
                ms=round((time.perf_counter() - began) * 1000, 1),
                caller=str(caller),
            )
