"""Workers of a real daemon: the two examples over WebSocket and HTTP, and what becomes of clients when workers go."""

from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed

import netd
from netd.client import FramedClient
from netd.worker import Position, Response, Worker, serve
from netd.worker.examples import api, chat
from tests.support.websocket import websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio_websocket import WebSocketConnection

PATIENCE = 30.0


class House:
    """A daemon, and how to get to it."""

    def __init__(self, daemon: netd.Daemon, nursery: trio.Nursery, path: Path) -> None:
        self.daemon = daemon
        self.path = path
        self.framed = daemon.addresses("framed")[0]
        self.broker = daemon.addresses("broker")[0]
        self._nursery = nursery

    async def work(self, worker: Worker) -> None:
        """Have a worker at work when this returns; it stops with the test."""
        await self._nursery.start(serve, worker, self.path)

    async def http(self, method: str, target: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://{self.broker}", trust_env=False) as client:
            return await client.request(method, target, **options)

    def app(self) -> Any:
        return websocket(f"ws://{self.broker}/app")


@asynccontextmanager
async def serving(directory: Path, **limits: Any) -> AsyncIterator[House]:
    settings = {
        "trace": {"enabled": False},
        "framed": {"listen": [{"address": "127.0.0.1:0"}]},
        "broker": {"listen": [{"address": "127.0.0.1:0"}]},
        "worker": {"socket": str(directory / "worker.sock"), "group": None, **limits},
        "hub": {
            "namespace": [
                {"name": "user", "publish": "anyone"},
                {"name": "kept", "history_size": 10, "presence": "anyone"},
            ]
        },
    }
    async with netd.open(settings) as daemon, trio.open_nursery() as nursery:
        yield House(daemon, nursery, directory / "worker.sock")
        nursery.cancel_scope.cancel()


@pytest.fixture
async def house(tmp_path):
    async with serving(tmp_path) as house:
        yield house


async def say(ws: WebSocketConnection, **message: Any) -> None:
    await ws.send_message(json.dumps(message))


async def hear(ws: WebSocketConnection) -> dict[str, Any]:
    with trio.fail_after(PATIENCE):
        return json.loads(await ws.get_message())


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await trio.sleep(0.005)  # nothing tells


# --- the examples ----------------------------------------------------------------------------------------------------


async def test_the_chat(house, caplog):
    caplog.set_level("INFO", logger="chat")
    await house.work(chat.worker)
    async with house.app() as one, house.app() as two:
        await say(one, type="join", room="lobby")
        joined = await hear(one)
        first = joined["userId"]
        assert joined == {"type": "user-joined", "userId": first, "room": "lobby"}
        await say(two, type="join", room="lobby")
        second = (await hear(one))["userId"]
        assert (await hear(two))["userId"] == second != first

        await say(two, type="message", room="lobby", text="grüß dich")
        heard = [await hear(one), await hear(two)]
        assert heard[0] == heard[1]
        assert heard[0].pop("timestamp") > 1_700_000_000_000
        assert heard[0] == {"type": "chat-message", "userId": second, "text": "grüß dich"}

        await say(one, type="leave", room="lobby")
        assert await hear(two) == {"type": "user-left", "userId": first, "room": "lobby"}
        await say(two, type="message", room="lobby", text="alone")
        assert (await hear(two))["text"] == "alone"
        await one.send_message("no JSON")  # the first that it hears since it left
        assert (await hear(one))["type"] == "error"
        await say(one, type="shout", room="lobby")
        assert await hear(one) == {"type": "error", "message": "cannot 'shout'"}
    await until(lambda: "disconnected" in caplog.text)


HOSTILE = [
    b"\xff\xfe",
    "[" * 100_000,
    '{"type": "join"}',
    '{"type": "join", "room": "\\ud800"}',
    '{"type": "join", "room": 7}',
    '{"type": "\\ud800", "room": "lobby"}',
    '{"type": ["join"], "room": "lobby"}',
    '["type", "room"]',
    '"type room"',
]


async def test_the_chat_answers_what_is_no_message_of_it(house, caplog):
    await house.work(chat.worker)
    async with house.app() as one:
        for data in HOSTILE:
            await one.send_message(data)
            assert (await hear(one))["type"] == "error", data
    assert "has failed" not in caplog.text


@pytest.mark.parametrize("data", ['{"type": "authenticate", "token": 7}', "[" * 100_000, '{"type": ["whoami"]}', "7"])
async def test_the_api_answers_what_is_no_message_of_it(house, caplog, data):
    await house.work(api.worker)
    async with house.app() as ws:
        await ws.send_message(data)
        assert "error" in (await hear(ws))["type"]
    assert (await house.http("POST", "/auth", content="[" * 100_000)).status_code == 400
    assert (await house.http("POST", "/auth", content='{"userId": "' + "x" * 9000 + '"}')).status_code == 400
    assert "has failed" not in caplog.text


async def test_the_chat_is_one_for_all_transports(house):
    await house.work(chat.worker)
    async with house.app() as page, FramedClient(house.framed) as device:
        await say(page, type="join", room="lobby")
        await hear(page)
        await device.text('{"type": "join", "room": "lobby"}')
        await hear(page)
        await device.text('{"type": "message", "room": "lobby", "text": "from a device"}')
        assert (await hear(page))["text"] == "from a device"
        with trio.fail_after(PATIENCE):
            async for event in device:
                if json.loads(event.data)["type"] == "chat-message":
                    break
        assert json.loads(event.data)["text"] == "from a device"


async def test_the_api_with_authentication(house):
    await house.work(api.worker)
    assert (await house.http("GET", "/auth")).status_code == 404
    assert (await house.http("POST", "/auth", content=b"{")).status_code == 400
    answer = await house.http("POST", "/auth", json={"userId": "ada"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    token = answer.json()["token"]

    async with house.app() as ws:
        await say(ws, type="whoami")
        assert await hear(ws) == {"type": "error", "message": "Authentication required"}
        await say(ws, type="authenticate", token=f"{token}x")
        assert await hear(ws) == {"type": "auth-error", "message": "Invalid token"}
        await say(ws, type="authenticate", token=token)
        assert await hear(ws) == {"type": "authenticated", "userId": "ada"}
        await say(ws, type="whoami")
        assert await hear(ws) == {"type": "you", "userId": "ada"}

        # what is published to a user reaches the user
        published = await house.http(
            "POST", "/channels/user:ada", content=json.dumps({"type": "news"}), headers={"content-type": "text/plain"}
        )
        assert published.status_code == 201, published.text
        assert await hear(ws) == {"type": "news"}


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def test_http_as_the_handler_sees_it(house):
    worker, seen = Worker(), []

    @worker.http_request
    def request(request):
        seen.append(request)
        return Response(202, b"\x00\xff", [("X-A", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])

    await house.work(worker)
    answer = await house.http(
        "PATCH", "/a%20b/c?x=%2F&y", content=b"\x01\x02", headers=[("X-Two", "1"), ("x-two", "2")]
    )
    assert (answer.status_code, answer.content, answer.headers["x-a"]) == (202, b"\x00\xff", "1")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["content-length"] == "2"
    (asked,) = seen
    assert (asked.method, asked.url, asked.path, asked.search) == ("PATCH", "/a%20b/c?x=%2F&y", "/a%20b/c", "?x=%2F&y")
    assert (asked.body, asked.headers.all("X-TWO"), asked.headers["X-Two"]) == (b"\x01\x02", ["1", "2"], "1, 2")
    assert asked.client.startswith("127.0.0.1:")


@pytest.mark.parametrize(("path", "status", "body"), [("/none", 200, "OK"), ("/raise", 500, "Internal Server Error")])
async def test_nothing_is_ok_and_an_exception_is_500(house, path, status, body, caplog):
    worker = Worker()

    @worker.http_request
    def request(request):
        if request.path == "/raise":
            raise RuntimeError("cannot bear it")

    await house.work(worker)
    answer = await house.http("GET", path)
    assert (answer.status_code, answer.text) == (status, body)
    assert ("cannot bear it" in caplog.text) == (status == 500)


async def test_without_a_worker_there_is_an_echo_and_503(house):
    answer = await house.http("GET", "/anything")
    assert answer.status_code == 503
    assert "no worker" in answer.text
    async with house.app() as ws:
        await ws.send_message("hello")
        assert await ws.get_message() == "hello"
        await ws.send_message(b"\xff")
        assert await ws.get_message() == b"\xff"


# --- semantics of the verbs, with a real hub --------------------------------------------------------------------------


async def test_subscriptions_are_sets_and_gone_sessions_are_no_error(house):
    worker, results = Worker(), {}

    @worker.message
    async def message(session, data, token):
        results["first"] = await worker.subscribe(session, "räum")
        results["again"] = await worker.subscribe(session, "räum".encode())
        results["copied"] = await worker.copy_subscriptions("räum", b"\xff\x00")
        results["copied again"] = await worker.copy_subscriptions("räum", b"\xff\x00")
        results["reached"] = await worker.send_to_channel(b"\xff\x00", b"\x01", confirm=True)
        results["removed"] = await worker.unsubscribe(session, "räum")
        results["removed again"] = await worker.unsubscribe(session, "räum")
        results["gone"] = await worker.send("0000", "x", confirm=True)
        results["gone, subscribed"] = await worker.subscribe("0000", "r")
        results["token"] = await worker.set_token(session, "mine")
        results["info"] = await worker.info(session)
        results["nobody"] = await worker.info("0000")
        results["broadcast"] = await worker.broadcast("to all")
        await worker.send(session, "over")

    @worker.session_closed
    def closed(session, token):
        results["last token"] = token
        results["still"] = worker.unsubscribe(session, b"\xff\x00")
        done.set()

    done = threading.Event()
    await house.work(worker)
    async with house.app() as ws:
        await ws.send_message("go")
        assert await ws.get_message() == b"\x01"
        assert {await ws.get_message(), await ws.get_message()} == {"to all", "over"}
    assert await trio.to_thread.run_sync(done.wait, PATIENCE)
    info = results.pop("info")
    assert (info.transport, info.token) == ("websocket", b"mine")
    assert results == {
        "first": True,
        "again": False,
        "copied": 1,
        "copied again": 0,
        "reached": 1,
        "removed": True,
        "removed again": False,
        "gone": False,
        "gone, subscribed": False,
        "token": True,
        "nobody": None,
        "broadcast": 1,
        "last token": b"mine",
        "still": False,
    }


async def test_history_and_presence(house):
    worker, results = Worker(), []

    @worker.message
    def message(session, data, token):
        worker.subscribe(session, "kept:x")
        results.append([one.session for one in worker.presence("kept:x")] == [session.id])
        for data in ("one", b"\xff", {"a": [None]}):
            worker.send_to_channel("kept:x", data, sender=session)
        page = worker.history("kept:x")
        results.append([(one.data, one.offset, one.from_ == session.id) for one in page.messages])
        since = Position(page.epoch, page.messages[1].offset)
        results.append([one.data for one in worker.history("kept:x", since=since).messages])
        results.append(worker.history("user:x"))
        worker.send(session, "over")

    await house.work(worker)
    async with FramedClient(house.framed) as client:
        await client.text("go")
        with trio.fail_after(PATIENCE):
            async for event in client:
                if getattr(event, "text", None) == "over":
                    break
    assert results[0] is True
    assert results[1] == [("one", 1, True), (b"\xff", 2, True), ({"a": [None]}, 3, True)]
    assert results[2] == [{"a": [None]}]
    assert results[3] is None


async def test_close_ends_a_session_with_a_code(house):
    worker = Worker()
    worker.message(lambda session, data, token: worker.close(session, 4321, "enough"))
    await house.work(worker)
    async with house.app() as ws:
        await ws.send_message("go")
        with trio.fail_after(PATIENCE), pytest.raises(ConnectionClosed) as caught:
            await ws.get_message()
    assert caught.value.reason.code == 4321


# --- workers that go -------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_stopped_leaves_its_sessions_to_another(house):
    def made(name: str) -> Worker:
        worker = Worker(name)
        worker.message(lambda session, data, token: worker.send(session, f"{name}: {data}"))
        return worker

    first, second = made("first"), made("second")
    await house.work(first)
    async with house.app() as ws:
        await ws.send_message("1")
        assert await ws.get_message() == "first: 1"
        await house.work(second)
        await ws.send_message("2")
        assert await ws.get_message() == "first: 2"  # pinned
        first.stop()
        await until(lambda: first.running is None)
        await ws.send_message("3")
        assert await ws.get_message() == "second: 3"


async def test_a_stopping_worker_finishes_the_request_it_has(house):
    worker, arrived, go = Worker(), trio.Event(), trio.Event()

    @worker.http_request
    async def request(request):
        arrived.set()
        await go.wait()
        return "done"

    await house.work(worker)
    answers = []

    async def ask():
        answers.append(await house.http("GET", "/slow", timeout=PATIENCE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await arrived.wait()
        worker.stop()
        go.set()
    assert (answers[0].status_code, answers[0].text) == (200, "done")


async def test_many_sessions_keep_their_order(house):
    worker = Worker(threads=4)

    @worker.message
    def message(session, data, token):
        worker.send(session, data)

    await house.work(worker)
    many = [str(n) for n in range(100)]

    async def one() -> None:
        async with house.app() as ws:
            heard = []
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read():
                    heard.extend([await ws.get_message() for _ in many])

                for data in many:
                    await ws.send_message(data)
            assert heard == many

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)


# --- handlers that take too long -------------------------------------------------------------------------------------


async def test_a_request_that_takes_too_long_is_504_and_the_worker_stays(tmp_path, caplog):
    worker, joined = Worker(), []

    @worker.http_request
    async def request(request):
        if request.path == "/slow":
            await trio.sleep_forever()
        return "fast"

    async with serving(tmp_path, request_timeout=0.2) as house:
        joined.append(await house.work(worker))
        assert (await house.http("GET", "/slow", timeout=PATIENCE)).status_code == 504
        answer = await house.http("GET", "/fast")
        assert (answer.status_code, answer.text) == (200, "fast")
    assert "GET /slow was cancelled" in caplog.text
    assert "trying again" not in caplog.text


async def test_a_session_goes_on_behind_a_message_that_takes_too_long(tmp_path, caplog):
    worker = Worker()

    @worker.message
    async def message(session, data, token):
        if data == "slow":
            await trio.sleep_forever()
        await worker.send(session, data)

    async with serving(tmp_path, message_timeout=0.2) as house:
        await house.work(worker)
        async with house.app() as ws:
            await ws.send_message("slow")
            await ws.send_message("fast")
            with trio.fail_after(PATIENCE):
                assert await ws.get_message() == "fast"
    assert "the message handler for session" in caplog.text
    assert "trying again" not in caplog.text


async def test_a_worker_with_a_thread_that_hangs_comes_back_without_it(tmp_path, caplog):
    worker, go = Worker(threads=2), threading.Event()

    @worker.message
    def message(session, data, token):
        if data == "hang":
            go.wait(PATIENCE)
        else:
            worker.send(session, data)

    async with serving(tmp_path, message_timeout=0.2, hang=0.2, ping=60) as house:
        await house.work(worker)
        try:
            async with house.app() as stuck, house.app() as other:
                await other.send_message("before")
                assert await other.get_message() == "before"
                await stuck.send_message("hang")
                await until(lambda: "(hung)" in caplog.text)
                await other.send_message("after")
                with trio.fail_after(PATIENCE):
                    assert await other.get_message() == "after"
                go.set()
                await stuck.send_message("again")
                with trio.fail_after(PATIENCE):
                    assert await stuck.get_message() == "again"
        finally:
            go.set()
    assert "a thread cannot be ended" in caplog.text
