"""/v1/trace as operators see it, with the service running, stopped and replaced."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from fastapi import Depends, FastAPI

from netd.errors import ControlError
from netd.net.paths.path import MplsLabel
from netd.net.rest import Access, Caller, known_query, render_errors, set_caller
from netd.runtime.store import open_store
from netd.services.trace import api
from netd.services.trace.config import TraceConfig
from netd.services.trace.history import History
from netd.wire.sse import SseParser
from tests.services.trace.lab import PATIENCE, ROUTE, House, ScriptedTracer, eventually, hop, path, serving
from tests.support.http import conversation, request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from netd.runtime.store import Store
    from netd.services.trace.service import TraceService


class Api:
    """The router as the control API mounts it. `running` may be exchanged, as a reload does."""

    def __init__(self, tracer: ScriptedTracer, store: Store, running: TraceService | None = None) -> None:
        self.running = running
        app = FastAPI(dependencies=[Depends(known_query)])
        render_errors(app)
        self.configured = TraceConfig()
        routes = api.router(lambda: self.running, tracer, store, lambda: self.configured)
        app.include_router(routes, prefix="/v1/trace")
        self.app = app
        self.access = Access.WRITE

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            set_caller(scope, Caller(None, self.access))
        await self.app(scope, receive, send)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self), base_url="http://netd/v1/trace")


@asynccontextmanager
async def running(
    tracer: ScriptedTracer | None = None, **fields: Any
) -> AsyncGenerator[tuple[House, Api, httpx.AsyncClient], None]:
    tracer = tracer or ScriptedTracer()
    async with serving(tracer, **fields) as house:
        api_ = Api(tracer, house.store, house.service)
        async with api_.client() as http:
            yield house, api_, http


@asynccontextmanager
async def stopped(tracer: ScriptedTracer | None = None) -> AsyncGenerator[tuple[Api, httpx.AsyncClient], None]:
    async with open_store(None) as store:
        api_ = Api(tracer or ScriptedTracer(), store)
        async with api_.client() as http:
            yield api_, http


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"].startswith("cannot ")
    return error


def events_of(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, json.loads(event.data)) for event in SseParser().feed(body)]


# --- the service ------------------------------------------------------------------------------------------------------


async def test_the_service_at_a_glance() -> None:
    async with running(max_traces=7) as (house, _, http):
        async with house.client() as client:
            await client.until("clientDone")
            status = (await http.get("http://netd/v1/trace")).json()
        assert (status["running"], status["clients"], status["traces"], status["method"]) == (True, 1, 1, "tcp")
        assert status["limits"]["max_traces"] == 7
        assert status["listeners"] == [f"127.0.0.1:{house.port}"]
        assert status["tracer"]["methods"] == ["tcp", "udp", "syn"]


async def test_a_stopped_service_still_has_a_status() -> None:
    async with stopped() as (_, http):
        status = (await http.get("http://netd/v1/trace")).json()
        assert (status["running"], status["clients"], status["method"]) == (False, 0, "tcp")
        assert (await http.get("/clients")).json() == {"clients": []}


async def test_clients_and_what_was_found_of_them() -> None:
    async with running() as (house, _, http), house.client() as client:
        done = (await client.until("clientDone"))[-1]
        (seen,) = (await http.get("/clients")).json()["clients"]
        assert seen == (await http.get(f"/clients/{done['client_id']}")).json()
        assert (seen["client_id"], seen["state"], seen["trace_id"]) == (done["client_id"], "idle", done["trace_id"])
        assert (seen["dest_ttl"], seen["path_rtt_ms"], seen["traces"]) == (5, 10.0, 1)
        assert "not connected" in error_of(await http.get("/clients/000000000"), 404)["message"]
        assert error_of(await http.get("/clients/..%2f..%2f"), 404)


async def test_tracing_a_client_again() -> None:
    async with running(client_interval=1000.0) as (house, api_, http), house.client() as client:
        client_id = (await client.until("clientDone"))[0]["client_id"]
        answer = await http.post(f"/clients/{client_id}/trace")
        assert (answer.status_code, answer.json()["client_id"]) == (202, client_id)
        await client.until("clientDone")
        assert error_of(await http.post("/clients/000000000/trace"), 404)["kind"] == "not-found"
        api_.running = None  # stopped, or between two generations
        assert "not running" in error_of(await http.post(f"/clients/{client_id}/trace"), 409)["message"]
        api_.running = house.service
        api_.access = Access.READ
        assert error_of(await http.post(f"/clients/{client_id}/trace"), 403)["kind"] == "denied"


async def test_a_client_that_is_being_traced_is_a_conflict() -> None:
    tracer = ScriptedTracer("hang")
    async with running(tracer) as (house, _, http), house.client() as client:
        client_id = (await client.next())["client_id"]
        await tracer.begun.wait()
        assert error_of(await http.post(f"/clients/{client_id}/trace"), 409)["kind"] == "conflict"


# --- the history ------------------------------------------------------------------------------------------------------


async def test_the_history_by_pages_and_by_client() -> None:
    async with running() as (house, _, http):
        ids = []
        for _ in range(3):
            async with house.client() as client:
                ids.append((await client.until("clientDone"))[-1])
        newest = (await http.get("/traces", params={"limit": 2})).json()["traces"]
        assert [one["id"] for one in newest] == [ids[2]["trace_id"], ids[1]["trace_id"]]
        rest = (await http.get("/traces", params={"before": newest[-1]["id"]})).json()["traces"]
        assert [one["id"] for one in rest] == [ids[0]["trace_id"]]
        mine = (await http.get("/traces", params={"client": ids[1]["client_id"]})).json()["traces"]
        assert [one["id"] for one in mine] == [ids[1]["trace_id"]]
        assert "hops" not in mine[0]


async def test_one_trace_whole_with_private_hops() -> None:
    async with running() as (house, _, http), house.client() as client:
        done = (await client.until("clientDone"))[-1]
        record = (await http.get(f"/traces/{done['trace_id']}")).json()
        assert [one["router"] for one in record["hops"]] == ["192.168.1.1", "198.51.100.7", None, "203.0.113.9"]
        assert (record["reason"], record["probes"], record["tcp_rtt_ms"]) == ("destination", 5, 9.0)
        assert error_of(await http.get("/traces/000000000"), 404)["kind"] == "not-found"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "before=x", "client='%20OR%201=1", "order=asc"])
async def test_strange_queries_are_refused(query: str) -> None:
    async with stopped() as (_, http):
        response = await http.get(f"/traces?{query}")
        assert response.status_code in (400, 422)
        assert response.json()["error"]["path"] == query.partition("=")[0]


# --- traces for operators --------------------------------------------------------------------------------------------


async def test_a_run_works_with_the_service_stopped() -> None:
    label = MplsLabel(label=16001, traffic_class=0, bottom=True, ttl=1)
    tracer = ScriptedTracer(path(hop(1, "192.168.1.1", mpls=(label,)), hop(2, None)), ROUTE)
    async with stopped(tracer) as (_, http):
        body = {"target": "example.test:80", "rounds": 2, "interval": 0.2, "max_hops": 9, "send": "http"}
        response = await http.post("/run", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response.content)
        assert [name for name, _ in events] == ["hop", "hop", "round", *["hop"] * 4, "round", "done"]
        first = events[0][1]
        assert (first["round"], first["ttl"], first["router"], first["kind"]) == (1, 1, "192.168.1.1", "ttl")
        assert first["mpls"][0]["label"] == 16001
        assert "type" not in first
        done = events[-1][1]
        assert (done["reason"], done["rounds"], done["dest_ttl"]) == ("destination", 2, 5)
        assert done["hops"][0]["answered"] == 2
        assert tracer.targets == [("example.test", 80, "http")]
        assert [options.max_hops for options in tracer.options] == [9, 9]
        assert tracer.options[1].mute == {2}
        assert (done["rounds_wanted"], done["connections"]) == (2, 1)
        (record,) = (await http.get("/traces")).json()["traces"]
        assert (record["id"], record["client_id"], record["address"]) == (done["trace_id"], None, "example.test:80")


async def test_a_target_that_cannot_be_reached_is_an_error_event() -> None:
    async with stopped() as (_, http):
        events = events_of((await http.post("/run", json={"target": "refused.test"})).content)
        assert [name for name, _ in events] == ["error"]
        error = events[0][1]["error"]
        assert error["kind"] == "service"
        assert error["message"] == "cannot trace to refused.test:443: connection refused"
        assert (await http.get("/traces")).json()["traces"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"target": ""},
        {"target": "a b"},
        {"target": "host:0"},
        {"target": "host:65536"},
        {"target": "host:http"},
        {"target": "http://host/"},
        {"target": "[::1"},
        {"target": "host", "rounds": 0},
        {"target": "host", "rounds": 1001},
        {"target": "host", "rounds": "2"},
        {"target": "host", "interval": 0.01},
        {"target": "host", "max_hops": 33},
        {"target": "host", "send": "ssh"},
        {"target": "host", "flood": True},
        {},
    ],
)
async def test_what_cannot_be_run_is_refused_before_anything_is_sent(body: dict[str, Any]) -> None:
    tracer = ScriptedTracer()
    async with stopped(tracer) as (_, http):
        response = await http.post("/run", json=body)
        assert response.status_code in (400, 422)
        assert response.json()["error"]["message"].startswith("cannot ")
        assert tracer.targets == []


GONE = path(reason="closed", dest_ttl=None, dest_rtt_ms=None, probes=0)
"""What a round finds in a connection that the other end had closed."""


async def run(http: httpx.AsyncClient, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"target": "example.test", "interval": 0.2, **body}
    return events_of((await http.post("/run", json=body)).content)


async def test_a_run_connects_anew_when_the_server_closed_after_its_reply() -> None:
    short = path(hop(1, "192.0.2.1"))
    tracer = ScriptedTracer(short, GONE, short, GONE, short)
    async with stopped(tracer) as (_, http):
        events = await run(http, rounds=3)
        assert [(data["rounds"], data["connections"]) for name, data in events if name == "round"] == [
            (1, 1),
            (2, 2),
            (3, 3),
        ]
        name, done = events[-1]
        assert (name, done["reason"], done["rounds"], done["rounds_wanted"]) == ("done", "destination", 3, 3)
        assert done["hops"][0]["answered"] == 3
        assert len(tracer.targets) == 3


async def test_a_round_that_was_cut_short_counts_and_the_next_has_a_connection_of_its_own() -> None:
    cut = path(hop(1, "192.0.2.1"), hop(2, None), reason="closed", dest_ttl=None, dest_rtt_ms=None)
    tracer = ScriptedTracer(cut, GONE, path(hop(1, "192.0.2.1"), hop(2, "192.0.2.2")))
    async with stopped(tracer) as (_, http):
        _, done = (await run(http, rounds=2))[-1]
        assert (done["reason"], done["rounds"], done["connections"]) == ("destination", 2, 2)


@pytest.mark.parametrize("most", [1, 5])
async def test_a_run_that_cannot_go_on_says_so(most: int) -> None:
    tracer = ScriptedTracer(ROUTE, GONE)  # refused at the next connection, or closed as soon as it is open
    tracer.most_connections = most
    async with stopped(tracer) as (_, http):
        events = await run(http, rounds=3)
        name, done = events[-1]
        assert (name, done["reason"], done["rounds"], done["rounds_wanted"]) == ("done", "closed", 1, 3)
        assert len(tracer.targets) == 2
        (record,) = (await http.get("/traces")).json()["traces"]
        assert record["reason"] == "closed"


async def test_a_first_connection_that_is_closed_at_once_is_not_tried_again() -> None:
    tracer = ScriptedTracer(GONE)
    async with stopped(tracer) as (_, http):
        events = await run(http, rounds=3)
        assert [name for name, _ in events] == ["round", "done"]
        assert (events[-1][1]["reason"], len(tracer.targets)) == ("closed", 1)


async def test_a_run_goes_by_the_configuration_and_shares_nothing() -> None:
    fields = {"method": "udp", "attempts": 1, "per_ttl_timeout_ms": 300, "max_hops": 12}
    for body, hops in (({}, 12), ({"max_hops": 7}, 7), ({"max_hops": 32}, 12)):
        tracer = ScriptedTracer()
        async with running(tracer, **fields) as (_, _, http):
            await run(http, **body)
        async with stopped(tracer) as (api_, http):
            api_.configured = TraceConfig(**fields)
            await run(http, **body)
        for options in tracer.options:
            assert (options.method, options.attempts, options.timeout) == ("udp", 1, 0.3)
            assert (options.max_hops, options.share) == (hops, False)
        assert len(tracer.options) == 2


async def test_whatever_fails_ends_the_stream_with_an_error() -> None:
    async with stopped() as (_, http):
        ((name, data),) = await run(http, target="strange.test")
        assert (name, data["error"]["message"]) == ("error", "cannot trace to strange.test:443: label too long")
    for failure in (OSError(105, "No buffer space available"), ValueError("embedded null byte")):
        async with stopped(ScriptedTracer(ROUTE, failure)) as (_, http):
            events = await run(http, rounds=2)
            assert [name for name, _ in events][-2:] == ["round", "error"]
            assert events[-1][1]["error"]["message"].startswith("cannot trace to example.test:443: ")
            (record,) = (await http.get("/traces")).json()["traces"]
            assert record["reason"] == "error"


async def test_a_run_needs_write_access() -> None:
    async with stopped() as (api_, http):
        api_.access = Access.CONTENT
        assert error_of(await http.post("/run", json={"target": "host"}), 403)["kind"] == "denied"


async def test_a_run_ends_with_its_reader() -> None:
    tracer = ScriptedTracer(ROUTE)
    async with stopped(tracer) as (api_, http):
        body = json.dumps({"target": "example.test", "rounds": 1000, "interval": 60}).encode()
        with trio.fail_after(PATIENCE):
            async with conversation(api_) as peer:
                await peer.send(request("POST", "/v1/trace/run", body, ["Content-Type: application/json"]))
                data = b""
                while b"event: round" not in data:
                    data += await peer.stream.receive_some(65536)
                await peer.vanish()

        (record,) = (await http.get("/traces")).json()["traces"]
        assert record["reason"] == "closed"
        assert len(tracer.options) == 1


async def test_a_run_that_hangs_ends_with_its_reader_too() -> None:
    tracer = ScriptedTracer("hang")
    async with stopped(tracer) as (api_, _):
        body = json.dumps({"target": "example.test"}).encode()
        with trio.fail_after(PATIENCE):
            async with conversation(api_) as peer:
                await peer.send(request("POST", "/v1/trace/run", body, ["Content-Type: application/json"]))
                await tracer.begun.wait()
                await peer.vanish()
            await eventually(lambda: tracer.cancelled == 1)


async def test_a_draining_front_door_ends_a_run() -> None:
    draining = trio.Event()
    tracer = ScriptedTracer("hang")
    async with stopped(tracer) as (api_, _):
        body = json.dumps({"target": "example.test"}).encode()
        with trio.fail_after(PATIENCE):
            async with conversation(api_, draining=draining) as peer:
                await peer.send(request("POST", "/v1/trace/run", body, ["Content-Type: application/json"]))
                await tracer.begun.wait()
                draining.set()
                assert b"event: ended" in await peer.rest()
        assert tracer.cancelled == 1


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("example.org", "example.org", 443),
        ("example.org:80", "example.org", 80),
        ("192.0.2.7", "192.0.2.7", 443),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[fe80::1%eth0]:8080", "fe80::1%eth0", 8080),
        ("b\u00fccher.example:80", "b\u00fccher.example", 80),
        ("_dmarc.example.org.", "_dmarc.example.org.", 443),
    ],
)
def test_targets(target: str, host: str, port: int) -> None:
    assert api.parse_target(target) == (host, port)


@pytest.mark.parametrize("target", ["", ":80", "[]:80", "a:b:c", "a/b", "[example.org]:80", "a\n", "x" * 20 + " "])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(ControlError, match="cannot trace to") as caught:
        api.parse_target(target)
    assert caught.value.path == "target"


@pytest.mark.parametrize(
    "host",
    [
        "a..b",
        ".example.org",
        "x" * 70,
        "-x",
        "a.-b",
        "a\\b",
        "a;b",
        ".",
        "b\u00fccher..example",
        ".".join(["x" * 60] * 5),
    ],
)
def test_targets_that_are_no_host_names(host: str) -> None:
    with pytest.raises(ControlError, match=r"^cannot trace to .* is not a host name$") as caught:
        api.parse_target(f"{host}:80")
    assert caught.value.path == "target"


def test_a_zone_cannot_carry_anything_else() -> None:
    for zone in ("a\r\nX-Evil: 1", "a b", "\x00", "\u00fc"):
        with pytest.raises(ControlError, match="cannot trace to"):
            api.parse_target(f"fe80::1%{zone}")


async def test_both_share_one_history() -> None:
    async with running() as (house, _, http), house.client() as client:
        await client.until("clientDone")
        await http.post("/run", json={"target": "example.test"})
        assert len(await History(house.store).list()) == 2
        assert len((await http.get("/traces")).json()["traces"]) == 2
