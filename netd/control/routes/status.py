"""GET /v1/status, /v1/health, /v1/ready, /v1/metrics: how the daemon is.

Healthy and ready are two things: a daemon with a warning may serve everybody, and one that is only starting has no
warning yet.
"""

import os
import time
from dataclasses import dataclass

from fastapi import APIRouter, Response

from netd.control.host import DaemonState, Host
from netd.net.rest import Read
from netd.runtime.health import HealthWarning, Status
from netd.runtime.unit import UnitSnapshot


@dataclass(frozen=True)
class ConfigSources:
    """Where the running configuration came from."""

    sources: list[str]
    etag: str


@dataclass(frozen=True)
class StatusView:
    """The daemon at a glance. `started` is in seconds since the epoch."""

    version: str
    state: DaemonState
    ready: bool
    pid: int
    started: float
    uptime_s: float
    services: list[UnitSnapshot]
    warnings: list[HealthWarning]
    config: ConfigSources


@dataclass(frozen=True)
class HealthView:
    status: Status
    warnings: list[HealthWarning]


@dataclass(frozen=True)
class ReadyView:
    """`waiting` names the enabled services that are not serving."""

    ready: bool
    waiting: list[str]


def router(host: Host) -> APIRouter:
    routes = APIRouter(tags=["status"])

    @routes.get("/status")
    async def status(caller: Read) -> StatusView:
        """The daemon at a glance."""
        view = host.config_view()
        return StatusView(
            version=host.version,
            state=host.state,
            ready=host.ready,
            pid=os.getpid(),
            started=host.started,
            uptime_s=max(0.0, time.time() - host.started),
            services=list(host.services()),
            warnings=list(host.health.warnings()),
            config=ConfigSources(view.sources, view.etag),
        )

    @routes.get("/health")
    async def health(caller: Read) -> HealthView:
        """What is wrong right now."""
        return HealthView(host.health.status, list(host.health.warnings()))

    @routes.get(
        "/ready", responses={503: {"model": ReadyView, "description": "Not every service that is to run serves."}}
    )
    async def ready(caller: Read, response: Response) -> ReadyView:
        """200 while every service that is to run (one stopped by hand is not) is serving, 503 otherwise."""
        if not host.ready:
            response.status_code = 503
        return ReadyView(host.ready, list(host.waiting()))

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "The Prometheus text exposition."}},
    )
    async def metrics(caller: Read) -> Response:
        """All metrics, as Prometheus scrapes them."""
        return Response(host.metrics.render(), headers={"content-type": host.metrics.content_type})

    return routes
