"""Handlers: what they are given, in which order, on what they run, and what becomes of what they raise."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio
import trio.testing

from netd.wire import workers as wire
from netd.worker import Response, Session, Worker
from tests.support.workerdaemon import PATIENCE, scripted_daemon, working


@pytest.fixture
async def daemon(tmp_path):
    async with scripted_daemon(tmp_path) as daemon:
        yield daemon


async def test_a_session_from_its_beginning_to_its_end(daemon):
    worker, seen = Worker("chat"), []

    @worker.session_opened
    def opened(session):
        seen.append(("opened", str(session), session.transport, session.address))

    @worker.message
    def message(session, data, token):
        seen.append((session.id, data, token))

    @worker.session_closed
    async def closed(session, token):
        seen.append(("closed", session.id, token))

    async with working(worker, daemon.path):
        link = await daemon.accept()
        assert link.hello.name == "chat"
        assert link.hello.handlers == ["message", "session_closed", "session_opened"]
        one = await link.opened("3f0c", transport="websocket", address="192.0.2.7:1")
        two = await link.message("3f0c", "text")
        three = await link.message("3f0c", b"\xff")
        await link.known("3f0c", transport="websocket", address="192.0.2.7:1", token=b"t")
        four = await link.closed("3f0c", b"the last")
        await link.done(one, two, three, four)
    assert seen[0] == ("opened", "3f0c", "websocket", "192.0.2.7:1")
    assert [data for _, data, _ in seen[1:3]] == ["text", b"\xff"]
    assert seen[3] == ("closed", "3f0c", b"the last")


@pytest.mark.parametrize("blocking", [True, False])
async def test_one_session_waits_and_others_do_not(daemon, blocking):
    worker, begun, go = Worker(), [], threading.Event()

    def wait(session, data, token):
        begun.append((session.id, data))
        if data == "wait":
            assert go.wait(PATIENCE)

    async def wait_on_trio(session, data, token):
        begun.append((session.id, data))
        while data == "wait" and not go.is_set():
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.001)

    worker.message(wait if blocking else wait_on_trio)
    async with working(worker, daemon.path):
        link = await daemon.accept()
        for id in ("a", "b"):
            await link.known(id)
        first = await link.message("a", "wait")
        second = await link.message("a", "then")
        other = await link.message("b", "meanwhile")
        await link.done(other)
        assert ("a", "then") not in begun
        go.set()
        await link.done(first, second)
    assert [data for id, data in begun if id == "a"] == ["wait", "then"]


async def test_the_order_holds_between_kinds_of_handlers(daemon):
    worker, seen = Worker(), []
    worker.session_opened(lambda session: seen.append(0))

    @worker.message
    async def message(session, data, token):
        await trio.lowlevel.checkpoint()
        seen.append(int(data))

    worker.session_closed(lambda session, token: seen.append(9))
    async with working(worker, daemon.path):
        link = await daemon.accept()
        numbers = [await link.opened("a"), *[await link.message("a", str(n)) for n in range(1, 9)]]
        await link.done(*numbers, await link.closed("a"))
    assert seen == list(range(10))


async def test_events_without_a_handler_are_over_at_once(daemon):
    async with working(Worker(), daemon.path):
        link = await daemon.accept()
        assert link.hello.handlers == []
        await link.done(await link.opened("a"), await link.message("a", "x"), await link.closed("a"))
        n = await link.request()
        assert (await link.heard(wire.Response)).response.status == 404
        assert n == 4


async def test_what_a_handler_raises_is_logged_and_the_next_goes_on(daemon, caplog):
    worker, seen = Worker(), []

    @worker.message
    def message(session, data, token):
        seen.append(data)
        raise RuntimeError(f"cannot bear {data}")

    @worker.http_request
    async def request(request):
        raise LookupError("nothing here")

    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        await link.done(await link.message("a", "1"), await link.message("a", "2"))
        await link.request("GET", "/x?y=1")
        answer = (await link.heard(wire.Response)).response
    assert seen == ["1", "2"]
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert "Traceback" in caplog.text
    assert "cannot bear 2" in caplog.text
    assert "the message handler has failed for session a" in caplog.text
    assert "the http_request handler has failed for GET /x?y=1" in caplog.text


async def test_requests_run_at_once_and_are_answered_by_number(daemon):
    worker, arrived, go = Worker(), trio.Event(), trio.Event()

    @worker.http_request
    async def request(request):
        if request.path == "/slow":
            arrived.set()
            await go.wait()
        return request.path

    async with working(worker, daemon.path):
        link = await daemon.accept()
        slow = await link.request("GET", "/slow")
        await arrived.wait()
        fast = await link.request("GET", "/fast")
        answer = await link.heard(wire.Response)
        assert (answer.n, answer.response.body) == (fast, b"/fast")
        go.set()
        answer = await link.heard(wire.Response)
        assert (answer.n, answer.response.body) == (slow, b"/slow")


async def test_a_request_and_what_a_handler_may_answer(daemon, caplog):
    worker = Worker()
    results = {
        "/none": None,
        "/text": "grüß",
        "/bytes": b"\x00",
        "/json": {"a": [1, None]},
        "/response": Response(404, "Not Found", {"X-Why": "so"}),
        "/number": 7,
        "/bad": Response(headers={"x": "a\r\nset-cookie: b"}),
    }

    @worker.http_request
    def request(request):
        assert request.client == "192.0.2.7:5"
        assert request.headers["HOST"] == "a"
        return results[request.path]

    async with working(worker, daemon.path):
        link = await daemon.accept()
        assert link.hello.requests == worker.threads
        found = {}
        for path in results:
            await link.request("POST", f"{path}?q=1", [(b"host", b"a")], b"{}")
            answer = (await link.heard(wire.Response)).response
            found[path] = (answer.status, answer.body, dict(answer.headers).get(b"content-type"))
    text = b"text/plain; charset=utf-8"
    assert found == {
        "/none": (200, b"OK", text),
        "/text": (200, "grüß".encode(), text),
        "/bytes": (200, b"\x00", b"application/octet-stream"),
        "/json": (200, b'{"a":[1,null]}', b"application/json"),
        "/response": (404, b"Not Found", text),
        "/number": (500, b"Internal Server Error", text),
        "/bad": (500, b"Internal Server Error", text),
    }
    assert "cannot answer with int" in caplog.text
    assert "cannot send the header 'x'" in caplog.text


async def test_a_response_that_is_too_large_becomes_an_error(daemon, caplog):
    worker = Worker()
    worker.http_request(lambda request: bytes(2**20))
    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.request()
        assert (await link.heard(wire.Response)).response.status == 500
    assert "max_frame" in caplog.text


async def test_what_the_daemon_cancels_ends(daemon, caplog):
    worker, arrived = Worker(), trio.Event()

    @worker.message
    @worker.http_request
    async def for_ever(*arguments):
        arrived.set()
        await trio.sleep_forever()

    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        first, second = await link.message("a", "x"), await link.message("a", "y")
        await arrived.wait()
        await link.say(wire.Cancel(n=second), wire.Cancel(n=first), wire.Cancel(n=99))
        await link.done(first, second)
        n = await link.request()
        await link.say(wire.Cancel(n=n))  # perhaps before it has begun
        assert (await link.heard(wire.Response)).n == n
    assert "the message handler for session a was cancelled" in caplog.text


async def test_a_thread_that_takes_too_long_is_shown_and_let_end(daemon, caplog):
    worker, arrived, go, seen = Worker(), trio.Event(), threading.Event(), []
    token = trio.lowlevel.current_trio_token()

    @worker.message
    def slow(session, data, _):
        if data == "slow":
            token.run_sync_soon(arrived.set)
            assert go.wait(PATIENCE)
        seen.append(data)

    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        first, second = await link.message("a", "slow"), await link.message("a", "next")
        await arrived.wait()
        await link.say(wire.Cancel(n=first), wire.Ping(n=1))
        await link.heard(wire.Pong)
        assert seen == []
        go.set()
        await link.done(first, second)
    assert seen == ["slow", "next"]
    assert "assert go.wait(PATIENCE)" in caplog.text  # where it stood


@pytest.mark.parametrize(
    ("message", "request_", "sessions", "requests"),
    [("def", None, 3, 7), ("async", "async", 7, 7), ("async", "def", 7, 3), (None, "def", 7, 3)],
)
async def test_how_much_it_takes_at_once_is_said(daemon, message, request_, sessions, requests):
    async def on_trio(*arguments): ...
    def in_thread(*arguments): ...

    worker, kinds = Worker(threads=3, tasks=7), {"def": in_thread, "async": on_trio}
    if message:
        worker.message(kinds[message])
    if request_:
        worker.http_request(kinds[request_])
    async with working(worker, daemon.path):
        hello = (await daemon.accept()).hello
    assert (hello.sessions, hello.requests) == (sessions, requests)


async def test_threads_that_hang_are_not_offered_again_and_the_others_are_shared(daemon):
    worker, go = Worker(threads=2), threading.Event()
    worker.message(lambda session, data, token: go.wait(PATIENCE))
    worker.http_request(lambda request: None)
    try:
        async with working(worker, daemon.path):
            for hanging, share in enumerate((2, 1, 1)):
                link = await daemon.accept()
                assert (link.hello.sessions, link.hello.requests) == (share, share)
                await link.known(str(hanging))
                await link.message(str(hanging), "x")
                await link.say(wire.Ping(n=1))
                await link.heard(wire.Pong)
                await trio.testing.wait_all_tasks_blocked()
                await link.close()
    finally:
        go.set()


async def test_a_def_around_an_async_def_is_told_that_nothing_of_it_ran(daemon, caplog):
    worker = Worker()

    async def inner(*arguments):
        raise AssertionError("nobody awaits it")

    worker.message(lambda session, data, token: inner(session))
    worker.http_request(lambda request: inner(request))
    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        await link.done(await link.message("a", "x"))
        assert caplog.text.count("TypeError: cannot await") == 1
        await link.request()
        assert (await link.heard(wire.Response)).response.status == 500
    assert caplog.text.count("TypeError: cannot await") == 2


def test_what_would_never_run_is_no_handler():
    def generator(session, data, token):
        yield

    async def asynchronous(request):
        yield

    for register, function in (("message", generator), ("http_request", asynchronous)):
        with pytest.raises(TypeError, match=f"cannot use .* for {register}: nothing in it would run"):
            getattr(Worker(), register)(function)


def test_a_handler_is_one_function():
    worker = Worker()

    @worker.message
    def message(session, data, token): ...

    assert worker.handlers["message"].function is message
    with pytest.raises(ValueError, match="cannot have two handlers for message"):
        worker.message(message)
    with pytest.raises(TypeError, match=r"write @worker\.session_opened above"):
        worker.session_opened(None)
    with pytest.raises(ValueError, match="threads=0"):
        Worker(threads=0)
    with pytest.raises(ValueError, match="tasks=2000000"):
        Worker(tasks=2_000_000)
    for name in ("", "x" * 129):
        with pytest.raises(ValueError, match="a name has 1 to 128 characters"):
            Worker(name)


@pytest.mark.parametrize(
    ("register", "function", "called"),
    [
        ("http_request", lambda: None, r"http_request\(request\): too many"),
        ("session_opened", lambda session, data: None, r"session_opened\(session\): missing .*'data'"),
        ("message", lambda session, data: None, r"message\(session, data, token\): too many"),
        ("session_closed", lambda session, *, token: None, r"session_closed\(session, token\): too many"),
    ],
)
def test_what_cannot_be_called_as_a_handler_is_told_before_there_is_a_client(register, function, called):
    worker = Worker()
    with pytest.raises(TypeError, match=f"cannot use .* for {register}: it is called as {called}"):
        getattr(worker, register)(function)
    assert not worker.handlers


def test_a_handler_may_take_more_than_it_is_given():
    worker = Worker()
    worker.message(lambda *arguments: None)
    worker.session_closed(lambda session, token, more=1, **others: None)
    worker.session_opened(print)
    assert set(worker.handlers) == {"message", "session_closed", "session_opened"}


def test_kinds_of_functions():
    class Callable:
        async def __call__(self, request): ...

    async def coroutine(first, request): ...

    def kind(function):
        worker = Worker()
        worker.http_request(function)
        return worker.handlers["http_request"].blocking

    async def alone(request): ...

    assert not kind(alone)
    assert not kind(partial(coroutine, 1))
    assert not kind(Callable())
    assert kind(lambda request: None)
    assert kind(partial(print, "x"))


async def test_sessions_are_what_their_id_is(daemon):
    worker, seen = Worker(), []
    worker.message(lambda session, data, token: seen.append((session, session.name, session.tags, token)))
    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a", name="one", tags={"device": "x"})
        await link.done(await link.message("a", ""))
        await link.known("a", name="two", token=b"t")
        await link.done(await link.message("a", ""))
    (first, name, tags, token), (second, later, none, set_since) = seen
    assert first is second
    assert (name, tags, token) == ("one", {"device": "x"}, None)
    assert (later, none, set_since) == ("two", {}, b"t")
    assert first == Session(wire.SessionState(id="a"))
    assert {first: 1}[Session(wire.SessionState(id="a"))] == 1
    assert first != "a"
    assert repr(first) == "<Session a  >"
