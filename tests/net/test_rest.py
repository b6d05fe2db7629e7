"""What routers share: the error shape, access levels, query checks, event streams; on an application of their own."""

from __future__ import annotations

import json

import httpx
import pytest
import trio
import trio.testing
from fastapi import Depends, FastAPI, Response
from structlog.testing import capture_logs

from netd import errors
from netd.net.http import Peer
from netd.net.rest import (
    ERRORS,
    EVENTS,
    Access,
    Caller,
    Content,
    EventStream,
    Read,
    RequestBody,
    ServerEvent,
    Wait,
    Write,
    answer_head,
    error_detail,
    known_query,
    render_errors,
    set_caller,
    status_of,
)
from tests.support.http import conversation, request


class Body(RequestBody):
    count: int


def application(source=None):
    """One route of every kind. A request says by its header `as` what access it has."""
    app = FastAPI(dependencies=[Depends(known_query)], responses=ERRORS, openapi_url=None)
    render_errors(app, headers={"x-own": "1"})

    async def read(caller: Read) -> str:
        return caller.access.name

    async def content(caller: Content) -> str:
        return caller.access.name

    async def write(body: Body, caller: Write, wait: Wait = 0.0) -> str:
        return f"{body.count} {wait}"

    async def fail(what: str) -> None:
        raise FAILURES[what]

    async def events() -> EventStream:
        return EventStream(source())

    app.get("/read")(read)
    app.get("/content")(content)
    app.post("/write")(write)
    app.get("/fail")(fail)
    app.get("/events", response_class=Response, responses=EVENTS)(events)

    async def fronted(scope, receive, send):
        level = dict(scope["headers"]).get(b"as", b"").decode()
        if level:
            set_caller(scope, Caller(Peer(7, 1000, 1000), Access[level]))
        if scope["method"] == "HEAD":
            await answer_head(app, scope, receive, send)
        else:
            await app(scope, receive, send)

    return fronted


@pytest.fixture
async def client():
    transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


FAILURES = {
    "not-found": errors.NotFound("cannot find it"),
    "denied": errors.Denied("cannot do it"),
    "conflict": errors.Conflict("cannot do it any more"),
    "too-busy": errors.TooBusy("cannot do it now"),
    "invalid": errors.ControlError("cannot take it", path="that.one"),
    "reload-refused": errors.ReloadRefused("cannot change it", path="control.socket"),
    "config": errors.ConfigError([errors.ConfigProblem("a.b", "wrong", "f:1")]),
    "service": errors.ServiceError("trace", "cannot serve"),
    "start-failed": errors.StartFailed("trace", "cannot start"),
    "protocol": errors.ProtocolError("cannot parse it"),
    "internal": errors.NetdError("cannot say why"),
    "unexpected": RuntimeError("the secret reason"),
}


@pytest.mark.parametrize(
    ("what", "status", "kind", "path"),
    [
        ("not-found", 404, "not-found", None),
        ("denied", 403, "denied", None),
        ("conflict", 409, "conflict", None),
        ("too-busy", 503, "too-busy", None),
        ("invalid", 400, "invalid", "that.one"),
        ("reload-refused", 409, "reload-refused", "control.socket"),
        ("config", 422, "config", "a.b"),
        ("service", 503, "service", None),
        ("start-failed", 503, "start-failed", None),
        ("protocol", 500, "protocol", None),
        ("internal", 500, "internal", None),
        ("unexpected", 500, "internal", None),
    ],
)
async def test_every_error_has_the_one_shape(what, status, kind, path, client):
    response = await client.get("/fail", params={"what": what})
    error = response.json()["error"]
    assert (response.status_code, error["kind"], error.get("path")) == (status, kind, path)
    assert error["message"]
    assert "secret" not in response.text
    if what == "unexpected":
        assert response.headers["x-own"] == "1"
    else:
        assert status_of(FAILURES[what]) == status
        assert error_detail(FAILURES[what]).kind == kind


@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        ("", []),
        ("NONE", []),
        ("READ", ["read"]),
        ("CONTENT", ["read", "content"]),
        ("WRITE", ["read", "content", "write"]),
    ],
)
async def test_each_level_includes_those_below(level, allowed, client):
    headers = {"as": level} if level else {}
    with capture_logs():
        answers = {
            "read": await client.get("/read", headers=headers),
            "content": await client.get("/content", headers=headers),
            "write": await client.post("/write", headers=headers, json={"count": 1}),
        }
    assert [name for name, answer in answers.items() if answer.status_code == 200] == allowed
    for name in answers.keys() - set(allowed):
        assert answers[name].status_code == 403
        assert answers[name].json()["error"]["kind"] == "denied"


@pytest.mark.parametrize(
    "body", [{"count": "1"}, {"count": 1.5}, {"count": True}, {"count": 1, "extra": 2}, {}, None, []]
)
async def test_bodies_are_taken_strictly(body, client):
    response = await client.post("/write", headers={"as": "WRITE"}, json=body)
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith("cannot accept ")


async def test_several_problems_are_counted(client):
    response = await client.post("/write?wait=-1", headers={"as": "WRITE"}, json={"count": "x", "more": 1})
    assert response.json()["error"]["message"].endswith("(and 2 more)")


async def test_query_parameters_of_dependencies_count_as_known(client):
    assert (await client.post("/write?wait=1", headers={"as": "WRITE"}, json={"count": 1})).json() == "1 1.0"
    response = await client.get("/read?wait=1", headers={"as": "READ"})
    assert (response.status_code, response.json()["error"]["path"]) == (400, "wait")


# --- event streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "encoded"),
    [
        (ServerEvent("hop", {"ttl": 1}), b'event: hop\ndata: {"ttl":1}\n\n'),
        (ServerEvent("hop", "a\nb", id="x-1"), b'id: x-1\nevent: hop\ndata: "a\\nb"\n\n'),
        (ServerEvent("hop", None), b"event: hop\ndata: null\n\n"),
    ],
)
def test_an_event_on_the_wire(event, encoded):
    assert event.encode() == encoded


@pytest.mark.parametrize(
    "event", [ServerEvent("a\nb", 1), ServerEvent("a", 1, id="1\r2"), ServerEvent("a", 1, id="\0")]
)
def test_no_event_breaks_the_framing(event):
    with pytest.raises(ValueError, match="cannot send"):
        event.encode()


async def test_a_stream_ends_with_its_generator(autojump_clock):
    async def source():
        yield ServerEvent("one", 1)
        await trio.sleep(1)
        yield ServerEvent("two", 2)

    async with conversation(application(source)) as peer:
        await peer.send(request("GET", "/events"))
        response = await peer.response()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.body == b": \n\nevent: one\ndata: 1\n\nevent: two\ndata: 2\n\n"
        await peer.send(request("GET", "/read", headers=["as: READ"]))
        assert (await peer.response()).body == b'"READ"', "the connection goes on"


async def test_a_stream_that_cannot_go_on_says_so_in_the_one_shape(autojump_clock):
    async def source():
        yield ServerEvent("one", 1)
        raise errors.ServiceError("trace", "cannot trace any more")

    async with conversation(application(source)) as peer:
        await peer.send(request("GET", "/events"))
        last = (await peer.response()).body.split(b"\n\n")[-2]
    name, _, data = last.partition(b"\ndata: ")
    assert name == b"event: error"
    assert json.loads(data) == {"error": {"kind": "service", "message": "cannot trace any more"}}


async def test_a_stream_that_fails_inside_is_cut_and_logged(autojump_clock):
    async def source():
        yield ServerEvent("one", 1)
        await trio.sleep(1)
        raise RuntimeError("the secret reason")

    with capture_logs() as logs:
        async with conversation(application(source)) as peer:
            await peer.send(request("GET", "/events"))
            data = await peer.rest()
    assert b"event: one" in data
    assert not data.endswith(b"0\r\n\r\n")
    assert b"secret" not in data
    assert [line["event"] for line in logs] == ["connection failed"]


@pytest.mark.parametrize("how", ["hang up", "drain"])
async def test_the_generator_is_closed_in_its_own_task_however_the_stream_ends(how, autojump_clock):
    tasks, draining = [], trio.Event()

    async def source():
        tasks.append(trio.lowlevel.current_task())
        try:
            yield ServerEvent("one", 1)
            await trio.sleep_forever()
        finally:
            tasks.append(trio.lowlevel.current_task())

    async with conversation(application(source), draining=draining) as peer:
        await peer.send(request("GET", "/events"))
        await trio.testing.wait_all_tasks_blocked()
        if how == "drain":
            draining.set()
            assert (await peer.response()).body.endswith(b'event: ended\ndata: {"reason":"draining"}\n\n')
        else:
            await peer.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert len(tasks) == 2
        assert tasks[0] is tasks[1]


async def test_drain_does_not_cut_the_event_that_is_being_sent(autojump_clock):
    draining = trio.Event()

    async def source():
        yield ServerEvent("long", "x" * 10_000)
        await trio.sleep_forever()

    async with conversation(application(source), lockstep=True, draining=draining) as peer:
        await peer.send(request("GET", "/events"))
        data = b""
        while b"event: long" not in data:
            data += await peer.stream.receive_some(10)
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        while not data.endswith(b"0\r\n\r\n"):
            data += await peer.stream.receive_some(1000)
    assert data.count(b"x" * 10_000) == 1
    assert b"event: ended" in data


async def test_a_source_is_held_back_by_a_slow_reader(autojump_clock):
    made = []

    async def source():
        for number in range(100):
            made.append(number)
            yield ServerEvent("tick", number)

    async with conversation(application(source), lockstep=True) as peer:
        await peer.send(request("GET", "/events"))
        data = b""
        while b": \n\n" not in data:
            data += await peer.stream.receive_some(100)
        await trio.testing.wait_all_tasks_blocked()
        assert len(made) <= 3


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_end_of_a_stream_is_whole_however_slowly_it_is_read_by_a_peer_that_sends_ahead(
    method, autojump_clock
):
    async def source():
        yield ServerEvent("one", 1)

    async with conversation(application(source), lockstep=True) as peer:
        await peer.send(request(method, "/events"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(request("GET", "/read", headers=["as: READ"]))
        data = b""
        while not data.endswith(b'"READ"'):
            await trio.testing.wait_all_tasks_blocked()
            data += (more := await peer.stream.receive_some(1))
            assert more, data
    assert data.count(b"HTTP/1.1 200") == 2
    assert data.count(b"\r\n0\r\n\r\n") == (method == "GET")


# --- HEAD -------------------------------------------------------------------------------------------------------------


async def test_head_of_a_stream_ends_at_once_and_closes_its_generator(autojump_clock):
    began = ended = 0

    async def source():
        nonlocal began, ended
        began += 1
        try:
            yield ServerEvent("one", 1)
            await trio.sleep_forever()
        finally:
            ended += 1

    async with conversation(application(source)) as peer:
        await peer.send(request("HEAD", "/events") + request("GET", "/read", headers=["as: READ"]))
        response = await peer.response("HEAD")
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.body == b""
        assert (await peer.response()).body == b'"READ"', "the connection goes on"
    assert began == ended


async def test_head_of_what_fails_inside_is_logged_as_get_is():
    with capture_logs() as logs:
        async with conversation(application()) as peer:
            await peer.send(request("HEAD", "/fail?what=unexpected"))
            response = await peer.response("HEAD")
    assert (response.status, response.body) == (500, b"")
    assert [line["event"] for line in logs] == ["connection failed"]


async def test_head_is_refused_where_get_is(client):
    response = await client.head("/write")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert (await client.head("/read")).status_code == 403
