"""Verbs: from both kinds of handlers, what they put on the wire, what they return, and what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.lowlevel

from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire import workers as wire
from netd.worker import Position, Session, Worker
from tests.support.workerdaemon import PATIENCE, WELCOME, scripted_daemon, working

STATE = wire.SessionState(id="3f0c", transport="framed")
SESSION = Session(STATE)


@pytest.fixture
async def daemon(tmp_path):
    async with scripted_daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
async def at_work(daemon):
    """A worker at work, and the daemon's end of its connection."""
    worker = Worker()
    async with working(worker, daemon.path):
        link = await daemon.accept()
        while worker.running is None or getattr(worker.running, "_link", None) is None:
            await trio.lowlevel.checkpoint()
        yield worker, link


CALLS: dict[str, tuple[Any, wire.Verb, Any, Any]] = {
    "send": (lambda w: w.send(SESSION, "x"), wire.Send(session="3f0c", data="x"), None, None),
    "send bytes": (
        lambda w: w.send("3f0c", bytearray(b"\xff"), priority=0, ephemeral=True),
        wire.Send(session="3f0c", data=b"\xff", priority=0, ephemeral=True),
        None,
        None,
    ),
    "send JSON": (lambda w: w.send(SESSION, {"a": [1]}), wire.Send(session="3f0c", data='{"a":[1]}'), None, None),
    "send, confirmed": (
        lambda w: w.send(SESSION, "x", confirm=True),
        wire.Send(session="3f0c", data="x", ref=1),
        False,
        False,
    ),
    "send_to_channel": (
        lambda w: w.send_to_channel("räum", {"a": 1}, sender=SESSION),
        wire.Publish(channel="räum".encode(), data={"a": 1}, from_="3f0c"),
        None,
        None,
    ),
    "send_to_channel, confirmed": (
        lambda w: w.send_to_channel(b"\xff", memoryview(b"x"), confirm=True),
        wire.Publish(channel=b"\xff", data=b"x", ref=1),
        7,
        7,
    ),
    "send_to_channel, under way": (
        lambda w: w.send_to_channel("r", "x", confirm=True),
        wire.Publish(channel=b"r", data="x", ref=1),
        None,
        None,
    ),
    "direct": (lambda w: w.direct("name:x", 1), wire.SendDirect(to="name:x", data=1, ref=1), 2, 2),
    "broadcast": (lambda w: w.broadcast(None), wire.SendBroadcast(data=None, ref=1), 3, 3),
    "subscribe": (lambda w: w.subscribe(SESSION, "r"), wire.Subscribe(session="3f0c", channel=b"r", ref=1), True, True),
    "unsubscribe": (
        lambda w: w.unsubscribe("3f0c", b"r"),
        wire.Unsubscribe(session="3f0c", channel=b"r", ref=1),
        False,
        False,
    ),
    "copy_subscriptions": (
        lambda w: w.copy_subscriptions("a", "b"),
        wire.CopySubscriptions(source=b"a", target=b"b", ref=1),
        4,
        4,
    ),
    "copy_session": (lambda w: w.copy_session(SESSION, "x"), wire.CopySession(source="3f0c", target="x", ref=1), 1, 1),
    "set_token": (
        lambda w: w.set_token(SESSION, "tökèn"),
        wire.SetToken(session="3f0c", token="tökèn".encode(), ref=1),
        True,
        True,
    ),
    "set_token, none": (lambda w: w.set_token(SESSION, None), wire.SetToken(session="3f0c", ref=1), True, True),
    "close": (
        lambda w: w.close(SESSION, 4001, "enough"),
        wire.CloseSession(session="3f0c", code=4001, reason="enough", ref=1),
        True,
        True,
    ),
    "presence": (
        lambda w: w.presence("r"),
        wire.AskPresence(channel=b"r", ref=1),
        [{"session": "3f0c", "name": "n"}],
        [wire.Client(session="3f0c", name="n")],
    ),
    "history": (
        lambda w: w.history("r", since=Position("x7", 2), limit=5),
        wire.AskHistory(channel=b"r", since=Position("x7", 2), limit=5, ref=1),
        {"epoch": "x7", "offset": 3, "messages": [{"data": b"hi", "from": "a", "offset": 3, "time": 1.5}]},
        wire.HistoryPage("x7", 3, [wire.Said(data=b"hi", from_="a", offset=3, time=1.5)]),
    ),
    "history, none": (lambda w: w.history("r"), wire.AskHistory(channel=b"r", ref=1), None, None),
    "info": (lambda w: w.info("3f0c"), wire.AskInfo(session="3f0c", ref=1), {"id": "3f0c"}, SESSION),
    "info, none": (lambda w: w.info("gone"), wire.AskInfo(session="gone", ref=1), None, None),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["on Trio", "in a thread", "in a thread of one's own"])
async def test_a_verb_is_said_and_answered(at_work, call, where):
    worker, link = at_work
    verb, said, value, returned = CALLS[call]
    result: list[Any] = []

    async def on_trio():
        result.append(await verb(worker))

    def in_thread():
        result.append(verb(worker))

    async with trio.open_nursery() as nursery:
        if where == "on Trio":
            nursery.start_soon(on_trio)
        elif where == "in a thread":
            nursery.start_soon(trio.to_thread.run_sync, in_thread)
        else:
            thread = threading.Thread(target=in_thread)
            thread.start()
        assert await link.next() == said
        if said.ref is not None:
            await link.say(wire.Answer(ref=said.ref, value=value))
    if where == "in a thread of one's own":
        await trio.to_thread.run_sync(thread.join, PATIENCE)
    assert result == [returned]


async def test_what_a_handler_says_stands_before_its_end(daemon):
    worker = Worker()

    @worker.message
    def message(session, data, token):
        worker.send(session, "one")
        worker.send(session, "two")

    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        numbers = [await link.message("a", "x") for _ in range(2)]
        for n in numbers:
            assert (await link.heard(wire.Send)).data == "one"
            assert (await link.heard(wire.Send)).data == "two"
            await link.done(n)


async def test_a_token_that_was_set_is_there_for_the_next_handler(daemon):
    worker, seen = Worker(), []

    @worker.message
    def message(session, data, token):
        seen.append(token)
        assert worker.set_token(session, data)
        assert session.token == data.encode()

    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        numbers = [await link.message("a", "first"), await link.message("a", "second")]
        for n in numbers:
            asked = await link.heard(wire.SetToken)
            await link.known("a", token=asked.token)
            await link.say(wire.Answer(ref=asked.ref, value=True))
            await link.done(n)
    assert seen == [None, b"first"]


async def test_what_the_daemon_refuses_is_an_error_with_its_word(at_work):
    worker, link = at_work
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def refused():
            with pytest.raises(RequestFailed, match="at most 65536") as caught:
                await worker.subscribe(SESSION, "r")
            assert (caught.value.kind, caught.value.status) == ("too-large", 413)

        asked = await link.heard(wire.Subscribe)
        await link.say(wire.Error("too-large", "cannot publish 70000 bytes to room: at most 65536", asked.ref))


async def test_what_is_refused_of_what_nobody_waits_for_is_logged(at_work, caplog):
    worker, link = at_work
    await worker.send_to_channel("r", "x")
    await link.heard(wire.Publish)
    await link.say(wire.Error("too-large", "cannot publish so much to r"), wire.Ping(n=1))
    await link.heard(wire.Pong)
    assert "the daemon refused (too-large): cannot publish so much to r" in caplog.text


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda w: w.send(7, "x"), "as a session"),
        (lambda w: w.send("a", 7), "cannot send int to a session"),
        (lambda w: w.send("a", {"a": {1, 2}, "b": object()}), "as JSON"),
        (lambda w: w.send("a" * 999, "x"), "cannot send with these arguments"),
        (lambda w: w.send("a", "x", priority=256), "priority"),
        (lambda w: w.subscribe("a", ""), "channel"),
        (lambda w: w.subscribe("a", "x" * 256), "channel"),
        (lambda w: w.subscribe("a", 7), "as a channel"),
        (lambda w: w.subscribe("a", "\ud800"), "as a channel: surrogates"),
        (lambda w: w.set_token("a", "\ud800"), "as a token: surrogates"),
        (lambda w: w.send("a", "\ud800"), "surrogates"),
        (lambda w: w.send_to_channel("r", object()), "cannot write a message"),
        (lambda w: w.send_to_channel("r", {1: 2}), "not text"),
        (lambda w: w.send_to_channel("r", float("nan")), "NaN"),
        (lambda w: w.send_to_channel("r", 2**70), "cannot"),
        (lambda w: w.set_token("a", b"x" * 8193), "token"),
        (lambda w: w.close("a", 7), "code"),
        (lambda w: w.close("a", reason="x" * 200), "reason"),
        (lambda w: w.direct("", 1), "to"),
        (lambda w: w.history("r", limit=-1), "limit"),
        (lambda w: w.send_to_channel("r", bytes(WELCOME.max_frame)), "max_frame"),
    ],
)
async def test_what_cannot_be_said_is_refused_here_and_the_connection_stays(at_work, call, why):
    worker, link = at_work
    with pytest.raises((ProtocolError, RequestFailed, TypeError), match=why) as caught:
        await call(worker)
    assert str(caught.value).startswith("cannot ")
    await worker.send("a", "after it")
    assert (await link.heard(wire.Send)).data == "after it"


async def test_a_worker_that_does_not_run_has_nobody_to_ask():
    with pytest.raises(DaemonUnreachable, match="does not run"):
        await Worker().send("a", "x")
    worker = Worker()
    result: list[BaseException] = []

    def outside():
        with pytest.raises(DaemonUnreachable) as caught:
            worker.send("a", "x")
        result.append(caught.value)

    thread = threading.Thread(target=outside)
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert len(result) == 1


async def test_who_waits_as_the_connection_ends_is_told(at_work):
    worker, link = at_work
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def asking():
            with pytest.raises(DaemonUnreachable, match="has ended"):
                await worker.subscribe(SESSION, "r")

        @nursery.start_soon
        async def in_a_thread():
            with pytest.raises(DaemonUnreachable, match="has ended"):
                await trio.to_thread.run_sync(worker.subscribe, SESSION, "r")

        await link.heard(wire.Subscribe)
        await link.heard(wire.Subscribe)
        await link.close()


async def test_an_answer_that_nobody_waits_for_any_more_harms_nobody(at_work):
    worker, link = at_work
    with trio.move_on_after(PATIENCE) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: worker.subscribe(SESSION, "r"))
            asked = await link.heard(wire.Subscribe)
            scope.cancel()
    await link.say(wire.Answer(ref=asked.ref, value=True), wire.Ping(n=1))
    await link.heard(wire.Pong)


async def test_verbs_wait_while_the_daemon_does_not_read(daemon):
    worker, sent = Worker(), 0
    block = "x" * 65536

    async def flood():
        nonlocal sent
        while sent < 200:
            await worker.send("a", block)
            sent += 1

    async with working(worker, daemon.path):
        link = await daemon.accept()
        while getattr(worker.running, "_link", None) is None:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            before = -1
            while sent != before:  # until nothing moves any more
                before = sent
                await trio.testing.wait_all_tasks_blocked()
            assert 16 <= sent < 100, "a queue of a megabyte, and what the kernel holds"
            for _ in range(200):
                assert (await link.heard(wire.Send)).data == block
    assert sent == 200
