"""The metrics service: what a Prometheus on TCP gets, and nobody else."""

from __future__ import annotations

import pytest
import trio

from netd.control.config import MetricsConfig
from netd.control.scrape import scrape_app, service_type
from netd.runtime.metrics import Metrics
from tests.support.http import MemoryListener, conversation, request


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.counter("netd_test_total", "A test.").inc(3)
    return metrics


async def test_the_text_exposition(metrics):
    async with conversation(scrape_app(metrics)) as peer:
        await peer.send(request("GET", "/metrics") + request("HEAD", "/metrics"))
        response = await peer.response()
        assert response.headers["content-type"] == metrics.content_type
        assert b"netd_test_total 3.0\n" in response.body
        head = await peer.response("HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(response.body)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/status", 404), ("GET", "/metrics/", 404), ("DELETE", "/metrics", 405)],
)
async def test_nothing_else_is_there(method, path, status, metrics):
    async with conversation(scrape_app(metrics)) as peer:
        await peer.send(request(method, path))
        assert (await peer.response()).status == status


@pytest.mark.parametrize(
    ("server", "host", "status"),
    [
        ("127.0.0.1", b"127.0.0.1:9464", 200),
        ("127.0.0.1", b"localhost:9464", 200),
        ("::1", b"[::1]:9464", 200),
        ("127.0.0.1", b"attacker.example:9464", 421),
        ("127.0.0.1", b"", 421),
        ("192.0.2.1", b"metrics.example:9464", 200),
    ],
)
async def test_on_loopback_a_name_that_was_pointed_here_is_refused(server, host, status, metrics):
    sent = []

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    scope = {"path": "/metrics", "method": "GET", "headers": [(b"host", host)], "server": (server, 9464)}
    await scrape_app(metrics)(scope, None, send)
    assert sent[0]["status"] == status


class Listeners:
    """A generation's listeners, in memory."""

    def __init__(self):
        self.opened = []

    async def open(self, listen):
        listener = MemoryListener()
        listener.address = listen.address
        self.opened.append(listener)
        return listener


class Context:
    def __init__(self):
        self.listeners = Listeners()
        self.draining = trio.Event()


async def test_the_service_serves_on_every_listener_until_it_drains(metrics, autojump_clock):
    config = MetricsConfig(listen=[{"address": "127.0.0.1:9100"}, {"address": "[::1]:9100"}])
    kind, context = service_type(metrics), Context()
    service = kind.build(config, await kind.prepare(config, context), context)
    assert service.snapshot().addresses == ["127.0.0.1:9100", "[::1]:9100"]
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        for listener in context.listeners.opened:
            peer = listener.connect()
            await peer.send(request("GET", "/metrics"))
            assert (await peer.response()).status == 200
        context.draining.set()  # with both connections idle


async def test_new_limits_hold_from_the_next_connection(metrics, autojump_clock):
    config = MetricsConfig(listen=[{"address": "127.0.0.1:9100"}])
    kind, context = service_type(metrics), Context()
    service = kind.build(config, await kind.prepare(config, context), context)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        service.reconfigure(MetricsConfig(listen=config.listen, limits={"max_headers": 4}))
        peer = context.listeners.opened[0].connect()
        await peer.send(request("GET", "/metrics", headers=[f"x-{n}: 1" for n in range(5)]))
        assert (await peer.response()).status == 431
        context.draining.set()


async def test_without_a_listener_it_waits_for_its_end(metrics, autojump_clock):
    kind, context = service_type(metrics), Context()
    service = kind.build(MetricsConfig(), await kind.prepare(MetricsConfig(), context), context)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        await trio.sleep(1)
        assert service.snapshot().addresses == []
        context.draining.set()
