"""Descriptors that are no streams', and streams that have said goodbye: what the reactor is asked for besides."""

from __future__ import annotations

import os

import pytest
import trio
import trio.lowlevel

from netd.net.reactor import Reactor
from netd.net.stream import LINGERING
from tests.net.reactor_lab import PATIENCE, connect, exactly, running


async def until(condition) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


@pytest.fixture
def pipe():
    reading, writing = os.pipe2(os.O_NONBLOCK)
    yield reading, writing
    os.close(reading)
    os.close(writing)


async def test_a_descriptor_is_told_of_while_it_can_be_read(pipe) -> None:
    reading, writing = pipe
    read: list[bytes] = []
    async with running() as reactor:
        end = reactor.watch(reading, lambda: read.append(os.read(reading, 1)))
        await trio.lowlevel.checkpoint()
        os.write(writing, b"abc")
        await until(lambda: read == [b"a", b"b", b"c"])
        end()
        end()
        os.write(writing, b"d")
        peer, end_of_stream = connect(reactor, lambda end, data: end.outbox.push(data))
        with peer:
            await peer.send(b"goes on")
            assert await exactly(peer, 7) == b"goes on"
        assert await end_of_stream.gone() == "peer closed the connection"
        assert len(read) == 3


async def test_what_it_raises_ends_nothing(pipe, caplog) -> None:
    reading, writing = pipe
    calls: list[int] = []

    def ready() -> None:
        calls.append(1)
        os.read(reading, 1)
        raise ValueError("broken")

    async with running() as reactor:
        reactor.watch(reading, ready)
        os.write(writing, b"ab")
        await until(lambda: len(calls) == 2)


async def test_nothing_is_watched_where_nobody_looks(pipe) -> None:
    with pytest.raises(RuntimeError, match="not running"):
        Reactor().watch(pipe[0], lambda: None)


async def test_a_watch_of_a_reactor_that_ended_ends_in_peace(pipe) -> None:
    async with running() as reactor:
        end = reactor.watch(pipe[0], lambda: None)
    end()


async def test_many_goodbyes_take_one_timer_and_who_never_answers_is_cut_off() -> None:
    async with running() as reactor:
        crowd = [connect(reactor) for _ in range(20)]
        for _, end in crowd:
            end.outbox.push(b"bye")
            end.stream.close("enough")
        await until(lambda: all(end.stream.state == LINGERING for _, end in crowd))
        assert reactor.snapshot().timers == 1
        for peer, end in crowd[::2]:
            assert await exactly(peer, 3) == b"bye"
            peer.close()
            assert await end.gone() == "enough"
        assert reactor.snapshot().timers == 1
        for peer, end in crowd[1::2]:
            assert await end.gone() == "enough"
            peer.close()
        assert not reactor._lingering
        again, end = connect(reactor)
        end.stream.close("later")
        await until(lambda: end.stream.state == LINGERING)
        assert reactor.snapshot().timers == 1
        again.close()
        assert await end.gone() == "later"


async def test_less_time_than_a_goodbye_takes_is_less() -> None:
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            begun = trio.current_time()
            end.stream.close("soon", within=0.01)
            assert await end.gone() == "soon"
            assert trio.current_time() - begun < 0.9


async def test_a_descriptor_that_lingered_and_serves_another_is_left_alone() -> None:
    async with running() as reactor:
        first, end = connect(reactor)
        number = end.stream.socket.fileno()
        end.stream.close("enough")
        await until(lambda: end.stream.state == LINGERING)
        first.close()
        await end.gone()
        crowd = [connect(reactor) for _ in range(4)]
        assert number in {one.stream.socket.fileno() for _, one in crowd}
        await until(lambda: not reactor._lingering)
        assert all(not one.stream.closed for _, one in crowd)
        for peer, _ in crowd:
            peer.close()
