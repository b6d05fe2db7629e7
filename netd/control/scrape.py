"""The metrics service: GET /metrics on TCP, for scrapers that speak no Unix sockets.

A plain ASGI application, so that it costs no FastAPI. Whoever reaches a listener may read it; metrics carry no
addresses and no ids of clients. On loopback a Host that is somebody's name is refused: a web page could have pointed it
here (DNS rebinding).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import trio

from netd.control.config import MetricsConfig
from netd.net.http import serve
from netd.runtime.service import ServiceType

if TYPE_CHECKING:
    from netd.net.http import App, Receive, Scope, Send
    from netd.runtime.listeners import Listener
    from netd.runtime.metrics import Metrics
    from netd.runtime.service import Context


def scrape_app(metrics: Metrics) -> App:
    """Serve `metrics` at /metrics."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = []
        if not _meant(scope):
            status, kind, body = 421, "text/plain; charset=utf-8", b"cannot serve this host: ask by address\n"
        elif scope["path"] != "/metrics":
            status, kind, body = 404, "text/plain; charset=utf-8", b"cannot find it: the metrics are at /metrics\n"
        elif scope["method"] not in ("GET", "HEAD"):
            status, kind, body = 405, "text/plain; charset=utf-8", b"cannot do that: only GET and HEAD\n"
            headers.append((b"allow", b"GET, HEAD"))
        else:
            status, kind, body = 200, metrics.content_type, metrics.render()
        headers += [(b"content-type", kind.encode("ascii")), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _meant(scope: Scope) -> bool:
    """Whether the request, if it came over loopback, was for this host by address or as localhost."""
    server = scope.get("server")
    if server is None or not _loopback(server[0]):
        return True
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name == "localhost" or _address(name) is not None


def _loopback(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def service_type(metrics: Metrics) -> ServiceType:
    """The service "metrics", which shows `metrics`."""
    return ServiceType("metrics", MetricsConfig, _prepare, partial(MetricsService, metrics))


class _Prepared:
    """The listeners, bound. They belong to the generation's leases, which close them."""

    def __init__(self, listeners: list[Listener]) -> None:
        self.listeners = listeners

    def close(self) -> None:
        pass


async def _prepare(config: MetricsConfig, context: Context) -> _Prepared:
    return _Prepared([await context.listeners.open(listen) for listen in config.listen])


@dataclass(frozen=True)
class MetricsSnapshot:
    addresses: list[str]


class MetricsService:
    """One generation: a front door for each listener."""

    def __init__(self, metrics: Metrics, config: MetricsConfig, prepared: _Prepared, context: Context) -> None:
        self._app = scrape_app(metrics)
        self._config = config
        self._listeners = prepared.listeners
        self._draining = context.draining

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                await nursery.start(serve, listener, self._app, lambda: self._config.limits, self._draining)
            task_status.started()
            await self._draining.wait()

    def reconfigure(self, config: MetricsConfig) -> None:
        self._config = config

    def snapshot(self) -> MetricsSnapshot:
        return MetricsSnapshot([listener.address for listener in self._listeners])
