"""A worker's time with the daemon: connecting, connecting again, leaving, and what it cannot go on after."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import msgspec
import pytest
import trio
import trio.lowlevel

from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed, VersionMismatch
from netd.wire import workers as wire
from netd.wire.framing import frame
from netd.worker import Worker, running, serve
from netd.worker.link import Link
from tests.support.accounts import open_to_all, why_not_nobody
from tests.support.workerdaemon import PATIENCE, WELCOME, scripted_daemon, working


@pytest.fixture
async def daemon(tmp_path):
    async with scripted_daemon(tmp_path) as daemon:
        yield daemon


async def connected(worker: Worker) -> None:
    with trio.fail_after(PATIENCE):
        while getattr(worker.running, "_link", None) is None:
            await trio.lowlevel.checkpoint()


async def test_started_means_welcomed(daemon):
    worker = Worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.accept)
        welcome = await nursery.start(serve, worker, daemon.path)
        assert welcome == WELCOME
        nursery.cancel_scope.cancel()
    assert worker.running is None


async def test_it_waits_for_a_daemon_and_says_once_what_is_missing(tmp_path, caplog, autojump_clock):
    worker, said = Worker(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: serve(worker, tmp_path / "none.sock", status=lambda text, connected: said.append((text, connected)))
        )
        await trio.sleep(60)
        worker.stop()
    assert 12 <= len(said) <= 30, "every five seconds in the end, less some"
    assert {text for text, _ in said} == {said[0][0]}
    assert f"there is no socket {tmp_path / 'none.sock'}" in said[0][0]
    assert not any(connected for _, connected in said)
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("end", ["lost", "goodbye", "refused", "before the welcome"])
async def test_it_connects_again(daemon, end, caplog):
    worker = Worker()
    worker.message(lambda session, data, token: None)
    async with working(worker, daemon.path):
        link = await (daemon.connected() if end in ("refused", "before the welcome") else daemon.accept())
        if end in ("goodbye", "refused"):
            await link.say(wire.Goodbye("stopping", "the daemon is restarted", True))
        if end != "refused":
            await link.close()
        link = await daemon.accept()
        await link.known("a")
        await link.done(await link.message("a", "x"))
    assert ("restarted" in caplog.text) == (end in ("goodbye", "refused"))


async def test_stopping_leaves_and_ends_with_the_goodbye(daemon):
    worker, go = Worker(), trio.Event()

    @worker.message
    async def message(session, data, token):
        await go.wait()
        await worker.send(session, "the last")

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, daemon.path)
            link = await daemon.accept()
            await link.known("a")
            n = await link.message("a", "x")
            await connected(worker)
            worker.stop()
            worker.stop()
            await link.heard(wire.Leave)
            go.set()
            await link.heard(wire.Send)
            await link.done(n)
            await link.say(wire.Goodbye("drained", "the worker wanted to leave"))
            # serve returns by itself


async def test_stopping_waits_for_the_drain_and_no_longer(daemon, caplog, autojump_clock):
    worker, blocked = Worker(), threading.Event()

    @worker.message
    def message(session, data, token):
        blocked.wait(PATIENCE)

    @worker.http_request
    async def request(request):
        await trio.sleep_forever()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: serve(worker, daemon.path, drain=3))
            link = await daemon.accept()
            await link.known("a")
            await link.message("a", "x")
            await link.request()
            await connected(worker)
            began = trio.current_time()
            worker.stop()
        assert trio.current_time() - began == pytest.approx(3)
        assert "cut off" in caplog.text
    finally:
        blocked.set()


@pytest.mark.parametrize("kind", ["message", "http_request"])
async def test_what_fails_as_it_is_cut_off_is_logged_and_goes_no_further(daemon, caplog, kind):
    worker = Worker()

    async def fail_at_the_end():
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("cannot clean up")

    async def handle(*arguments):
        async with trio.open_nursery() as nursery:  # which raises a group: this error, and the cancellation
            nursery.start_soon(fail_at_the_end)
            nursery.start_soon(trio.sleep_forever)

    getattr(worker, kind)(handle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(worker, daemon.path, drain=0))
        link = await daemon.accept()
        await link.known("a")
        await (link.message("a", "x") if kind == "message" else link.request())
        await connected(worker)
        worker.stop()
    assert "cannot clean up" in caplog.text
    assert f"the {kind} handler has failed" in caplog.text


@pytest.mark.parametrize("when", ["the connection is gone", "it goes later"])
async def test_stopping_without_a_connection_lets_what_runs_end(daemon, when, caplog):
    worker, arrived, go, ended = Worker(), trio.Event(), trio.Event(), []

    @worker.http_request
    async def request(request):
        arrived.set()
        await go.wait()
        ended.append(request.path)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, daemon.path)
            link = await daemon.accept()
            await link.request("GET", "/slow")
            await arrived.wait()
            if when == "it goes later":
                worker.stop()
                await link.heard(wire.Leave)
            await link.close()
            await trio.testing.wait_all_tasks_blocked()
            worker.stop()
            await trio.testing.wait_all_tasks_blocked()
            go.set()
    assert ended == ["/slow"]
    assert "cut off" not in caplog.text


async def test_stopping_before_there_is_a_daemon(tmp_path):
    worker = Worker()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, tmp_path / "none.sock")
            await trio.testing.wait_all_tasks_blocked()
            worker.stop()


async def test_a_daemon_that_wants_it_to_go_ends_it(daemon, caplog):
    worker = Worker()
    worker.message(lambda session, data, token: None)
    with caplog.at_level("INFO"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, daemon.path)
            link = await daemon.accept()
            await link.known("a")
            n = await link.message("a", "x")
            await link.say(wire.Drain(5.0))
            await link.done(n)
            await link.say(wire.Goodbye("drained", "netctl wanted it"))
    assert "wants this worker to leave within 5 s" in caplog.text
    assert "goodbye (drained): netctl wanted it" in caplog.text


@pytest.mark.parametrize(
    ("goodbye", "error", "exit_code"),
    [
        (wire.Goodbye("version", "this netd speaks 2"), VersionMismatch, 76),
        (wire.Goodbye("invalid", "cannot read the message"), ProtocolError, 76),
        (wire.Goodbye("too-large", "a frame of 2 GB"), ProtocolError, 76),
        (wire.Goodbye("denied", "uid 7 is no worker's"), RequestFailed, 77),
        (wire.Goodbye("something new", "why"), RequestFailed, 1),
    ],
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_a_goodbye_without_return_ends_it_with_an_error(daemon, goodbye, error, exit_code, greeted):
    with pytest.RaisesGroup(error) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, Worker(), daemon.path)
            link = await (daemon.accept() if greeted else daemon.connected())
            await link.say(goodbye)
    (raised,) = caught.value.exceptions
    assert goodbye.reason in str(raised)
    assert str(raised).startswith("cannot ")
    assert raised.exit_code == exit_code


STATE = wire.SessionState(id="a")
BROKEN = {
    "no frames": b"\xff" * 64,
    "no message": b"\x00\x00\x00\x01\xc1",
    "an event before the welcome": wire.encode(wire.Ping(n=1)),
    "another version": wire.encode(wire.Welcome(2, 1, "netd", "9", 2**20, 5, 10, 30, 60, 16)),
    "another version of another shape": frame(msgspec.msgpack.encode({"type": "welcome", "version": 9, "worker": "x"})),
    "two welcomes": wire.encode(WELCOME) * 2,
    "a number left out": wire.encode(WELCOME) + wire.encode(wire.SessionOpened(2, STATE)),
    "a number twice": wire.encode(WELCOME) + wire.encode(wire.SessionOpened(1, STATE)) * 2,
    "a session that was never named": wire.encode(WELCOME) + wire.encode(wire.Message(1, "b", "x")),
    "an end of a session that was never named": wire.encode(WELCOME) + wire.encode(wire.SessionClosed(1, "b")),
    "an answer that nobody asked for": wire.encode(WELCOME) + wire.encode(wire.Answer(7, True)),
    "more than it takes": wire.encode(WELCOME)
    + b"".join(wire.encode(wire.Request(n, wire.HttpRequest("GET", "/", []))) for n in range(1, 999)),
    "something after its goodbye": wire.encode(WELCOME)
    + wire.encode(wire.Goodbye("stopping", "", True))
    + wire.encode(wire.Ping(1)),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
async def test_a_daemon_that_breaks_the_protocol_ends_it_with_an_error(daemon, data):
    worker = Worker(threads=2, tasks=2)

    @worker.http_request
    async def request(request):
        await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc((ProtocolError, VersionMismatch))) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, daemon.path)
            link = await daemon.connected()
            await link.stream.send_all(data)
    (error,) = caught.value.exceptions
    assert str(error).startswith("cannot ")
    assert error.exit_code == 76


async def test_a_goodbye_is_heard_by_whoever_can_say_nothing_any_more(daemon):
    worker = Worker()

    @worker.message
    async def message(session, data, token):
        await worker.send(session, "nobody reads this")

    with pytest.RaisesGroup(pytest.RaisesExc(RequestFailed, match="not you")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, worker, daemon.path)
            link = await daemon.accept()
            await link.known("a")
            link.stream.socket.shutdown(trio.socket.SHUT_RD)
            await link.message("a", "x")
            await trio.testing.wait_all_tasks_blocked()
            await link.say(wire.Goodbye("denied", "not you"))
            await link.close()


async def test_two_at_once_are_one_too_many(daemon):
    worker = Worker()
    async with working(worker, daemon.path):
        await daemon.accept()
        with pytest.raises(ProtocolError, match="twice at once"):
            await serve(worker, daemon.path)
        await connected(worker)


async def test_what_was_handed_over_and_not_begun_goes_with_the_connection(daemon):
    worker, seen, arrived, go = Worker(), [], trio.Event(), trio.Event()

    @worker.message
    async def message(session, data, token):
        seen.append(data)
        if data == "runs":
            arrived.set()
            await go.wait()
            with pytest.raises(DaemonUnreachable):  # for the moment
                await worker.send(session, "x")
            go2.set()
            await again.wait()
            seen.append("ends")

    go2, again = trio.Event(), trio.Event()
    async with working(worker, daemon.path):
        link = await daemon.accept()
        await link.known("a")
        for data in ("runs", "waits"):
            await link.message("a", data)
        await arrived.wait()
        await link.say(wire.Ping(n=1))
        await link.heard(wire.Pong)
        await link.close()
        while worker.running._link is not None:
            await trio.lowlevel.checkpoint()
        go.set()
        await go2.wait()
        link = await daemon.accept()
        await link.known("a")
        n = await link.message("a", "after it")  # waits for what still runs
        await link.say(wire.Ping(n=2))
        await link.heard(wire.Pong)
        assert seen == ["runs"]
        again.set()
        await link.done(n)
    assert seen == ["runs", "ends", "after it"]


async def test_threads_that_hang_are_not_offered_again(daemon):
    worker, go = Worker(threads=2), threading.Event()
    worker.message(lambda session, data, token: go.wait(PATIENCE))
    try:
        with pytest.RaisesGroup(pytest.RaisesExc(ProtocolError, match="all 2 threads are in handlers")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, worker, daemon.path)
                for sessions in (2, 1):
                    link = await daemon.accept()
                    assert link.hello.sessions == sessions
                    id = str(sessions)
                    await link.known(id)
                    await link.message(id, "x")
                    await link.say(wire.Ping(n=1))
                    await link.heard(wire.Pong)
                    await trio.testing.wait_all_tasks_blocked()
                    await link.close()
    finally:
        go.set()


async def test_what_is_cancelled_before_it_has_a_thread_never_begins(daemon, caplog):
    worker, arrived, go, seen = Worker(threads=1), trio.Event(), threading.Event(), []
    token = trio.lowlevel.current_trio_token()

    @worker.http_request
    def request(request):
        seen.append(request.path)
        token.run_sync_soon(arrived.set)
        assert go.wait(PATIENCE)

    try:
        async with working(worker, daemon.path):
            link = await daemon.accept()
            first = await link.request("GET", "/1")
            await arrived.wait()
            second = await link.request("GET", "/2")
            await link.say(wire.Cancel(n=second), wire.Ping(n=1))
            await link.heard(wire.Pong)
            go.set()
            assert {(await link.heard(wire.Response)).n for _ in range(2)} == {first, second}
    finally:
        go.set()
    assert seen == ["/1"]
    assert "was cancelled" in caplog.text


async def test_a_daemon_that_does_not_greet_is_given_up(daemon, autojump_clock):
    with pytest.raises(DaemonUnreachable, match="nothing was answered within 15 s"):
        await Link.open(daemon.path, wire.Hello(1, "x", 1, []))


async def test_a_daemon_of_a_version_with_other_words_is_known_as_one(daemon):
    words = {"type": "welcome", "version": 9, "welcome": ["to", "the", "future"]}
    with pytest.RaisesGroup(pytest.RaisesExc(VersionMismatch, match="it speaks version 9 of the worker protocol")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, Worker(), daemon.path)
            link = await daemon.connected()
            await link.stream.send_all(frame(msgspec.msgpack.encode(words)))


async def test_another_socket_than_that_for_workers_is_said_to_be_one(daemon):
    with pytest.RaisesGroup(pytest.RaisesExc(ProtocolError, match=r"not its socket for workers \(\[worker\] socket\)")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, Worker(), daemon.path)
            link = await daemon.connected()
            await link.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # the control socket's


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
def test_who_may_not_use_the_socket_is_told_what_would_help(tmp_path):
    open_to_all(tmp_path)
    path, closed = tmp_path / "worker.sock", tmp_path / "closed"
    code = """
import grp, os, sys, trio
from pathlib import Path
from netd.wire.workers import Hello
from netd.worker.link import Link
from netd.errors import DaemonUnreachable
os.chdir("/")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
for path in sys.argv[1:]:
    try:
        trio.run(Link.open, Path(path), Hello(1, "x", 1, []))
    except DaemonUnreachable as error:
        print(error)
"""
    closed.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        said = []
        for gid in (0, 4242):
            os.chown(path, 0, gid)
            path.chmod(0o660)
            argv = [sys.executable, "-c", code, str(path), str(closed / "worker.sock")]
            said += subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "the socket belongs to group root: have [worker] group name another one" in said[0]
    assert f"it may not enter {closed}" in said[1]
    assert "join group 4242 (usermod -aG 4242 ACCOUNT" in said[2]
    assert all(line.startswith("cannot use ") for line in said)


async def test_a_path_that_no_socket_can_have(tmp_path):
    with pytest.raises(ProtocolError, match="at most 107 bytes"):
        await Link.open(tmp_path / ("x" * 200), wire.Hello(1, "x", 1, []))


def test_where_the_daemon_is_looked_for(tmp_path):
    assert running.default_socket({}) == running.DEFAULT_SOCKET
    assert running.default_socket({"NETD_WORKER_SOCKET": "/x"}).as_posix() == "/x"
