"""Who the front door lets in, and how it closes: within its deadline, whoever is attached."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from netd.net.http import HttpLimits, serve_connection
from tests.support.http import (
    MemoryListener,
    Peer,
    SocketListener,
    conversation,
    echo,
    endless,
    front_door,
    request,
    say,
)


class Waiting:
    """An application that answers when told to."""

    def __init__(self):
        self.reached = trio.Event()
        self.go_on = trio.Event()

    async def __call__(self, scope, receive, send):
        self.reached.set()
        await self.go_on.wait()
        await say(send, b"done")


# --- drain ----------------------------------------------------------------------------------------------------------


async def test_drain_closes_at_once_whoever_has_no_request_in_progress(autojump_clock):
    async with front_door(echo) as (listener, draining, returned):
        idle, silent, half = listener.connect(), listener.connect(), listener.connect()
        await idle.send(request())
        await idle.response()
        await half.send(b"GET / HTT")
        await trio.sleep(1)
        began = trio.current_time()
        draining.set()
        await returned.wait()
        assert trio.current_time() == began
        assert [await peer.rest() for peer in (idle, silent, half)] == [b"", b"", b""]


async def test_drain_gives_who_has_only_just_come_a_moment_for_a_first_request(autojump_clock):
    async with front_door(echo) as (listener, draining, returned):
        quick, twice, half, silent = (listener.connect() for _ in range(4))
        await half.send(b"GET / HTT")
        await trio.testing.wait_all_tasks_blocked()
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not returned.is_set()
        await quick.send(request())
        assert (await quick.response()).headers["connection"] == "close"
        await twice.send(request() * 2)
        assert (await twice.response()).headers["connection"] == "close"
        began = trio.current_time()
        await returned.wait()
        assert 0 < trio.current_time() - began <= 1
        assert [await peer.rest() for peer in (quick, twice, half, silent)] == [b"", b"", b"", b""]


async def test_one_that_makes_room_has_no_such_moment(autojump_clock):
    async with front_door(echo, limits=HttpLimits(max_connections=1)) as (listener, _, _):
        first = listener.connect()
        await trio.testing.wait_all_tasks_blocked()
        await (second := listener.connect()).send(request())
        assert (await second.response()).status == 200
        assert await first.rest() == b""
        assert trio.current_time() == 0


async def test_drain_lets_a_request_in_progress_finish_and_says_that_it_is_the_last(autojump_clock):
    app = Waiting()
    async with front_door(app) as (listener, draining, returned):
        peer = listener.connect()
        await peer.send(request() * 2)
        await app.reached.wait()
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not returned.is_set()
        app.go_on.set()
        response = await peer.response()
        assert (response.body, response.headers["connection"]) == (b"done", "close")
        await returned.wait()
        assert await peer.rest() == b""


async def test_drain_takes_no_new_connection(autojump_clock):
    app = Waiting()
    async with front_door(app) as (listener, draining, returned):
        await (first := listener.connect()).send(request())
        await app.reached.wait()
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        late = listener.connect()
        await late.send(request())
        app.go_on.set()
        await first.response()
        await returned.wait()
        with trio.move_on_after(1) as patience:
            await late.response()
        assert patience.cancelled_caught, "it waits in the listener's backlog, for whoever accepts next"


async def half_a_request(peer):
    await peer.send(b"POST / HTTP/1.1\r\n")


async def half_a_body(peer):
    await peer.send(request("POST", "/", headers=["Content-Length: 1000"]) + b"x")


async def never_read(peer):
    await peer.send(request("GET", "/endless"))


async def say_nothing(peer):
    pass


async def send_garbage(peer):
    await peer.send(b"\x00" * 100)


@pytest.mark.parametrize("behave", [half_a_request, half_a_body, never_read, say_nothing, send_garbage])
async def test_drain_ends_by_its_deadline_with_a_hostile_peer_attached(behave, autojump_clock):
    async def app(scope, receive, send):
        await (endless if scope["path"] == "/endless" else echo)(scope, receive, send)

    limits = HttpLimits(drain=5, head_timeout=600, body_timeout=600, write_timeout=600)
    async with front_door(app, limits=limits) as (listener, draining, returned):
        peer = listener.connect(lockstep=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behave, peer)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            draining.set()
            await returned.wait()
            assert trio.current_time() - began <= 5
            nursery.cancel_scope.cancel()


async def test_drain_ends_by_its_deadline_with_an_application_that_never_does(autojump_clock):
    app = Waiting()
    async with front_door(app, limits=HttpLimits(drain=5)) as (listener, draining, returned):
        peer = listener.connect()
        await peer.send(request())
        await app.reached.wait()
        began = trio.current_time()
        draining.set()
        await returned.wait()
        assert trio.current_time() - began == 5
        assert await peer.rest() == b""


async def test_cancelling_the_front_door_closes_every_connection(autojump_clock):
    app = Waiting()
    async with front_door(app) as (listener, _, _):
        peers = [listener.connect() for _ in range(3)]
        await peers[0].send(request())
        await peers[1].send(b"half")
        await app.reached.wait()
    assert [await peer.rest() for peer in peers] == [b"", b"", b""]


async def test_a_connection_served_alone_ends_with_its_request_when_draining(autojump_clock):
    app, draining = Waiting(), trio.Event()
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, app, HttpLimits(), draining)
        await (peer := Peer(ours)).send(request() * 2)
        await app.reached.wait()
        draining.set()
        app.go_on.set()
        assert (await peer.response()).headers["connection"] == "close"


async def test_a_peer_that_never_reads_does_not_delay_shutdown_on_a_real_socket(tmp_path):
    """The same through the kernel's buffers, where a blocked send is a blocked send."""
    limits = HttpLimits(drain=0.2, write_timeout=600)
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "s"))
        listening.listen()
        with trio.fail_after(30):
            async with front_door(endless, SocketListener(listening), limits) as (_, draining, returned):
                stream = await trio.open_unix_socket(str(tmp_path / "s"))
                await stream.send_all(request())
                await trio.testing.wait_all_tasks_blocked(0.05)  # the kernel's buffers are full
                draining.set()
                await returned.wait()
                await stream.aclose()


# --- how many -------------------------------------------------------------------------------------------------------


async def test_one_connection_too_many_displaces_the_longest_idle_one(autojump_clock):
    async with front_door(echo, limits=HttpLimits(max_connections=2)) as (listener, _, _):
        older, newer = listener.connect(), listener.connect()
        for peer in (older, newer):
            await peer.send(request())
            await peer.response()
            await trio.sleep(1)
        third = listener.connect()
        await third.send(request())
        assert (await third.response()).status == 200
        assert await older.rest() == b""
        await newer.send(request())
        assert (await newer.response()).status == 200


async def test_with_every_connection_at_work_one_more_is_told_so_and_costs_nothing(autojump_clock):
    app = Waiting()
    with capture_logs() as logs:
        async with front_door(app, limits=HttpLimits(max_connections=2)) as (listener, _, _):
            working = [listener.connect(), listener.connect()]
            for peer in working:
                await peer.send(request())
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                refused = listener.connect()
                assert (await refused.response()).status == 503
                assert await refused.rest() == b""
            app.go_on.set()
            assert [(await peer.response()).body for peer in working] == [b"done", b"done"]
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["connections at their limit"]


async def test_a_peer_that_does_not_read_its_refusal_does_not_stop_the_next(autojump_clock):
    app = Waiting()
    async with front_door(app, limits=HttpLimits(max_connections=1)) as (listener, _, _):
        await (first := listener.connect()).send(request())
        await app.reached.wait()
        listener.connect(lockstep=True)
        second = listener.connect()
        assert (await second.response()).status == 503
        app.go_on.set()
        assert (await first.response()).body == b"done"


@pytest.mark.skipif(os.geteuid() != 0, reason="connects as root, to show root's reserve")
async def test_root_gets_in_when_all_are_at_work(tmp_path):
    app = Waiting()
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "s"))
        listening.listen()
        async with front_door(app, SocketListener(listening), HttpLimits(max_connections=1)):
            peers = []
            for _ in range(1 + 4):
                peers.append(Peer(await trio.open_unix_socket(str(tmp_path / "s"))))
                await peers[-1].send(request())
                await app.reached.wait()
                app.reached = trio.Event()
            too_many = Peer(await trio.open_unix_socket(str(tmp_path / "s")))
            assert (await too_many.response()).status == 503
            app.go_on.set()
            for peer in peers:
                assert (await peer.response()).body == b"done"
                await peer.stream.aclose()
            await too_many.stream.aclose()


async def test_a_listener_that_fails_is_the_callers_business(autojump_clock):
    class Broken(MemoryListener):
        async def accept(self):
            raise trio.ClosedResourceError

    with pytest.raises(ExceptionGroup) as raised:
        async with front_door(echo, Broken()):
            await trio.sleep_forever()
    assert raised.group_contains(trio.ClosedResourceError)


async def test_many_connections_come_and_go(autojump_clock):
    async with front_door(echo, limits=HttpLimits(max_connections=10)) as (listener, draining, returned):
        for _ in range(50):
            peer = listener.connect()
            await peer.send(request())
            assert (await peer.response()).status == 200
            await peer.vanish()
        draining.set()
        await returned.wait()


async def test_a_peer_that_vanishes_in_mid_response_takes_only_the_application_along(autojump_clock):
    ended = trio.Event()

    async def app(scope, receive, send):
        try:
            await endless(scope, receive, send)
        finally:
            ended.set()

    async with conversation(app, lockstep=True) as peer:
        await peer.send(request())
        await peer.stream.receive_some(10)
        await peer.vanish()
        await ended.wait()
