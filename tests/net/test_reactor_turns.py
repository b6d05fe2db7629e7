"""How the reactor shares the thread: with other tasks, and between its streams. Time is the tests' own here.

Over 600 lines, and one file all the same: every case is a few rounds of the same reactor under the same clock.

What takes long says so (`clock.spend`); nothing really does, and no assertion is about seconds.
"""

from __future__ import annotations

import errno
import os
import select
import ssl
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.net.reactor import Reactor
from netd.net.stream import READ, Stream
from netd.net.timers import SLICE
from netd.net.tls import TlsLayer
from tests.net.reactor_lab import Box, End, connect, echo, exactly, pair, rest, running, until
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = 2 * SLICE


class Clock:
    """Goes as time does, and faster where a test says so."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self) -> float:
        return monotonic() + self.spent

    def spend(self, seconds: float) -> None:
        self.spent += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("netd.net.reactor.monotonic", clock)
    return clock


class Turns(trio.abc.Instrument):
    """Counts the steps of tasks, and writes down in which of them something happened.

    Between two steps of the reactor's task every other has its own.
    """

    def __init__(self) -> None:
        self.count = 0
        self.log: list[tuple[int, Any]] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1

    def note(self, what: Any) -> None:
        self.log.append((self.count, what))

    @property
    def what(self) -> list[Any]:
        return [what for _, what in self.log]

    def most(self) -> int:
        """Things that happened within one step."""
        turns = [turn for turn, _ in self.log]
        return max(turns.count(turn) for turn in turns)


@asynccontextmanager
async def counting() -> AsyncIterator[tuple[Reactor, Turns]]:
    turns = Turns()
    async with running() as reactor:
        trio.lowlevel.add_instrument(turns)
        try:
            yield reactor, turns
        finally:
            trio.lowlevel.remove_instrument(turns)


def slow(clock: Clock, turns: Turns, name: Any):
    def act(end: End, data: bytes) -> None:
        turns.note(name)
        clock.spend(LONG)

    return act


# --- reading ---


async def test_every_receive_that_took_long_is_followed_by_a_turn_of_others(clock):
    async with counting() as (reactor, turns):
        peers = [connect(reactor, slow(clock, turns, number))[0] for number in range(50)]
        await until(lambda: reactor._parked)
        for peer in peers:  # no checkpoint between: epoll says all of it at once
            os.write(peer.fileno(), b"x" * 5000)
        await until(lambda: len(turns.log) == 50)
        assert turns.what == list(range(50))
        assert turns.most() == 1
        for peer in peers:
            peer.close()


async def test_small_messages_that_cost_much_are_followed_by_a_turn_too(clock):
    async with counting() as (reactor, turns):
        peers = [connect(reactor, slow(clock, turns, number))[0] for number in range(50)]
        await until(lambda: reactor._parked)
        for peer in peers:
            os.write(peer.fileno(), b"x")
        await until(lambda: len(turns.log) == 50)
        assert turns.what == list(range(50))
        assert turns.most() <= 4
        for peer in peers:
            peer.close()


async def test_streams_late_in_the_list_get_their_turn_while_others_flood(clock):
    """More streams than one poll tells of, and all of them always have something."""
    async with counting() as (reactor, turns):
        peers = [connect(reactor, slow(clock, turns, number), unix=True)[0] for number in range(200)]
        await until(lambda: reactor._parked)
        for peer in peers:
            os.write(peer.fileno(), b"x" * 150_000)
        await until(lambda: len(turns.log) >= 800)
        counts = [turns.what[:800].count(number) for number in range(200)]
        assert min(counts) >= 3
        assert max(counts) <= 5
        for peer in peers:
            peer.close()


async def test_a_stream_that_ends_while_its_event_waits_is_not_fed(clock):
    async with counting() as (reactor, turns):
        made = [connect(reactor, slow(clock, turns, number)) for number in range(10)]
        await until(lambda: reactor._parked)
        for peer, _ in made:
            os.write(peer.fileno(), b"x" * 5000)
        while not turns.log:
            await trio.lowlevel.checkpoint()
        for _, end in made[5:]:
            end.stream.abort("kicked")
        for _, end in made[5:]:
            assert await end.gone() == "kicked"
        await until(lambda: len(turns.log) == 5)
        assert turns.what == list(range(5))
        for peer, _ in made:
            peer.close()


async def test_an_event_that_waits_is_not_for_the_next_stream_with_that_descriptor():
    async with running() as reactor:
        server, client = pair(buffers=4096)
        with trio.socket.from_stdlib_socket(client) as peer:
            client.setblocking(False)
            await until(lambda: reactor._parked)
            reactor._rest = [(server.fileno(), select.EPOLLHUP)]
            end = End(reactor)
            stream = reactor.adopt(server, end, end.outbox)
            end.outbox.push(b"x" * 200_000)
            stream.close("enough")
            assert len(await rest(peer)) == 200_000
        assert await end.gone() == "enough"


async def test_a_stream_resumed_after_epoll_told_of_its_peers_end_loses_nothing():
    async with running() as reactor:
        peer, end = connect(reactor, unix=True)
        other, _ = connect(reactor, lambda _, data: end.stream.resume(), unix=True)
        with other:
            end.stream.pause()
            await until(lambda: reactor._parked)
            os.write(other.fileno(), b"x")  # told of first, in the same poll
            os.write(peer.fileno(), b"last words")
            peer.close()
            assert await end.gone() == "peer closed the connection"
            assert bytes(end.received) == b"last words"


async def test_what_many_streams_came_with_leaves_others_their_turn(clock):
    async with counting() as (reactor, turns):
        peers = [connect(reactor, slow(clock, turns, number), received=b"x")[0] for number in range(50)]
        await until(lambda: len(turns.log) == 50)
        assert turns.what == list(range(50))
        assert turns.most() == 1
        for peer in peers:
            peer.close()


# --- sending, ending ---


def slowly(clock: Clock, turns: Turns, box: Box, name: Any) -> None:
    """Have an outbox take its time."""
    take = box.take

    def taking(limit: int, now: float) -> list[bytes]:
        turns.note(name)
        clock.spend(LONG)
        return take(limit, now)

    box.take = taking


@pytest.mark.parametrize(("size", "most"), [(5000, 1), (1, 16)])
async def test_many_outboxes_that_are_flushed_leave_others_their_turn(clock, size, most):
    async with counting() as (reactor, turns):
        made = [connect(reactor) for _ in range(100)]
        await until(lambda: reactor._parked)
        for number, (_, end) in enumerate(made):
            slowly(clock, turns, end.outbox, number)
            end.outbox.push(b"x" * size)
        await until(lambda: len(turns.log) == 100)
        assert turns.what == list(range(100))
        assert turns.most() <= most
        assert reactor.snapshot().dirty == 0
        for peer, _ in made:
            assert len(await exactly(peer, size)) == size
            peer.close()


async def test_nothing_more_is_read_before_what_was_marked_is_flushed(clock):
    async with counting() as (reactor, turns):
        peer, _ = connect(reactor, lambda end, data: turns.note("read"))
        made = [connect(reactor) for _ in range(20)]
        await until(lambda: reactor._parked)
        for _, end in made:
            slowly(clock, turns, end.outbox, "flush")
            end.outbox.push(b"x" * 5000)
        while not turns.log:
            await trio.lowlevel.checkpoint()
        await peer.send(b"x")
        await until(lambda: len(turns.log) == 21)
        assert turns.what == ["flush"] * 20 + ["read"]
        for one in (peer, *(peer for peer, _ in made)):
            one.close()


async def test_outboxes_that_are_never_empty_do_not_keep_anybody_from_being_read(clock):
    async with counting() as (reactor, turns):
        peer, _ = connect(reactor, echo)
        made = [connect(reactor, unix=True) for _ in range(5)]

        async def drain(sink: trio.socket.SocketType) -> None:
            while await sink.recv(1 << 18):
                pass

        async with trio.open_nursery() as nursery:
            for sink, end in made:
                nursery.start_soon(drain, sink)
                end.outbox.take = lambda limit, now: [b"x" * 1000]  # half of it, and its size stays what it is
                slowly(clock, turns, end.outbox, "flush")
                end.outbox.push(b"x" * 2000)
            await until(lambda: len(turns.log) > 100)
            for _ in range(20):
                await peer.send(b"x")
                assert await exactly(peer, 1) == b"x"
            nursery.cancel_scope.cancel()
        for _, end in made:
            end.stream.abort("enough")
        for one in (peer, *(peer for peer, _ in made)):
            one.close()


async def test_what_is_marked_while_others_wait_to_be_flushed_comes_after_them(clock):
    async with counting() as (reactor, turns):
        made = [connect(reactor) for _ in range(20)]
        await until(lambda: reactor._parked)
        for number, (_, end) in enumerate(made):
            slowly(clock, turns, end.outbox, number)
            if number < 19:
                end.outbox.push(b"x" * 5000)
        while not turns.log:
            await trio.lowlevel.checkpoint()
        made[19][1].outbox.push(b"x" * 5000)
        assert reactor.snapshot().dirty > 1
        await until(lambda: len(turns.log) == 20)
        assert turns.what == list(range(20))
        for peer, _ in made:
            assert len(await exactly(peer, 5000)) == 5000
            peer.close()


async def test_many_streams_that_end_at_once_leave_others_their_turn(clock):
    async with counting() as (reactor, turns):
        made = [connect(reactor) for _ in range(50)]
        await until(lambda: reactor._parked)
        for number, (_, end) in enumerate(made):
            end.ended = lambda why, number=number: (turns.note(number), clock.spend(LONG))
            end.stream.abort("kicked")
        await until(lambda: len(turns.log) == 50)
        assert turns.what == list(range(50))
        assert turns.most() == 1
        assert all(end.stream.socket.fileno() < 0 for _, end in made)
        for peer, _ in made:
            peer.close()


async def test_cancellation_in_the_middle_of_a_turn_tells_everybody(clock):
    ends = []
    async with counting() as (reactor, turns):
        made = [connect(reactor, slow(clock, turns, number)) for number in range(20)]
        ends = [end for _, end in made]
        await until(lambda: reactor._parked)
        for peer, end in made:
            os.write(peer.fileno(), b"x" * 5000)
            slowly(clock, turns, end.outbox, "flush")
            end.outbox.push(b"x" * 5000)
        while not turns.log:
            await trio.lowlevel.checkpoint()
        for end in ends[10:]:
            end.stream.abort("kicked")
    assert [end.whys for end in ends] == [["netd is stopping"]] * 10 + [["kicked"]] * 10
    assert reactor.snapshot().dirty == 0
    for peer, _ in made:
        peer.close()


# --- how much is read at once ---


def bare() -> Stream:
    return Stream(Reactor(), None, None, None, None, 0.0)


def test_reads_that_are_full_and_cheap_grow_to_a_whole_frame():
    stream = bare()
    sizes = []
    for _ in range(10):
        sizes.append(stream.read)
        stream.pace(stream.read, 1e-5)
    assert sizes[0] <= 16384
    assert sizes[-1] == READ >= 65536 + 4
    assert sizes == sorted(sizes)
    stream.pace(100, 1e-5)
    assert stream.read == READ, "a small read says nothing"
    stream.pace(READ, SLICE * 0.9)
    assert stream.read == READ


def test_a_read_that_took_long_is_cut_to_what_fits():
    stream = bare()
    while stream.read < READ:
        stream.pace(stream.read, 0.0)
    stream.pace(READ, SLICE * 10)
    assert READ / 20 <= stream.read <= READ / 10
    stream.pace(stream.read, 3600.0)
    least = stream.read
    assert 512 <= least <= 1024
    stream.pace(least, 3600.0)
    assert stream.read == least
    fresh = bare()
    before = fresh.read
    fresh.pace(100, 3600.0)
    assert fresh.read == before, "one expensive message becomes no cheaper by reading less"


async def test_a_flood_of_expensive_messages_is_read_in_small_pieces(clock):
    feeds: list[int] = []

    def fan_out(end: End, data: bytes) -> None:
        feeds.append(len(data))
        clock.spend(len(data) * 1e-6)

    async with counting() as (reactor, _):
        peer, _ = connect(reactor, fan_out, unix=True)
        with peer:
            os.write(peer.fileno(), b"x" * 131_072)
            await until(lambda: sum(feeds) == 131_072)
        assert feeds[0] <= 16384
        assert max(feeds[1:]) * 1e-6 <= SLICE


# --- TLS ---


@pytest.fixture(scope="module")
def shake(tmp_path_factory):
    """Makes two layers that have shaken hands: the server's and the client's."""
    directory = tmp_path_factory.mktemp("tls")
    (directory / "cert").write_text(FIRST_CERTIFICATE)
    (directory / "key").write_text(FIRST_KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert", directory / "key")
    trusting = ssl.create_default_context(cadata=FIRST_CERTIFICATE)

    def shaken() -> tuple[TlsLayer, TlsLayer]:
        server, client = TlsLayer(context), TlsLayer(trusting, server_side=False, server_hostname="127.0.0.1")
        data = b""
        while not (server.handshaken and client.handshaken):
            client.receive(data)
            server.receive(client.outgoing())
            data = server.outgoing()
        client.receive(data + server.outgoing())
        return server, client

    return shaken


async def test_a_tls_peer_that_sends_fast_and_reads_nothing_keeps_nobody_waiting(clock, shake):
    async with counting() as (reactor, turns):

        def flooded(end: End, data: bytes) -> None:
            turns.note("flood")
            clock.spend(LONG)
            end.outbox.push(data)

        server, client = shake()
        flooder, end = connect(reactor, flooded, tls=server, buffers=1 << 17)

        async def flood() -> None:
            while True:
                client.encrypt([b"x" * 16_000])
                view = memoryview(client.outgoing())
                while view:
                    view = view[await flooder.send(view) :]

        peer, _ = connect(reactor, lambda end, data: (turns.note("other"), end.outbox.push(data)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await until(lambda: end.stream.unsent > 0)
            for _ in range(20):
                before = len(turns.log)
                os.write(peer.fileno(), b"x")
                await exactly(peer, 1)
                assert turns.what[before:].count("flood") <= 4
            nursery.cancel_scope.cancel()
        turns.log = [(turn, what) for turn, what in turns.log if what == "flood"]
        assert turns.most() == 1
        flooder.close()
        peer.close()


@pytest.mark.parametrize("words", [b"", b"last words"])
@pytest.mark.parametrize("paused", [False, True])
async def test_a_goodbye_that_came_with_the_handshake_is_answered(shake, words, paused):
    server, client = shake()
    if words:
        client.encrypt([words])
    client.goodbye()
    plain = server.receive(client.outgoing())
    assert (plain, server.closed) == (words, True)
    async with running() as reactor:
        await until(lambda: reactor._parked)
        peer, end = connect(reactor, echo, tls=server, received=plain)
        with peer:
            if paused:
                end.stream.pause()
                await until(lambda: reactor._parked)
                assert not end.received
                assert not end.whys
                end.stream.resume()
            assert client.receive(await rest(peer)) == words
            assert client.closed, "close_notify"
            peer.close()
        assert await end.gone() == "peer closed the connection"
        assert bytes(end.received) == words


# --- rates that change ---


async def held_back(reactor: Reactor) -> tuple[trio.socket.SocketType, End]:
    peer, end = connect(reactor)
    end.outbox.allowance = 0
    end.outbox.wait = lambda now: 1047.0
    end.outbox.push(b"x" * 10)
    await until(lambda: end.stream.rare is not None and end.stream.rare.again is not None)
    return peer, end


@pytest.mark.parametrize("all_of_them", [False, True])
async def test_a_rate_that_is_lifted_holds_at_once(all_of_them):
    async with running() as reactor:
        peer, end = await held_back(reactor)
        idle, _ = connect(reactor)
        with peer, idle:
            await until(lambda: reactor._parked)
            end.outbox.allowance = None
            if all_of_them:
                reactor.reconsider()
            else:
                end.stream.reconsider()
            assert reactor.snapshot().timers == 0
            assert reactor.snapshot().dirty == 1, "nobody else is asked"
            assert await exactly(peer, 10) == b"x" * 10
            end.stream.reconsider()
            assert reactor.snapshot().dirty == 0


async def test_an_outbox_that_is_held_back_for_long_is_asked_again_soon(monkeypatch):
    async with running() as reactor:
        peer, end = await held_back(reactor)
        with peer:
            assert end.stream.rare.again.when <= reactor.now + 1.0
            monkeypatch.setattr("netd.net.reactor._AGAIN", 0.01)
            end.stream.reconsider()
            takes = Turns()
            slowly(Clock(), takes, end.outbox, "take")
            await until(lambda: len(takes.log) > 3)
            assert reactor.snapshot().timers == 1
            end.outbox.allowance = None
            assert await exactly(peer, 10) == b"x" * 10


# --- nothing is left behind ---


class FullEpoll:
    """An epoll that takes no more."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll

    def register(self, fd: int, mask: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


async def test_a_connection_that_epoll_does_not_take_leaves_no_trace(shake):
    async with running() as reactor:
        server, client = pair()
        with client:
            end = End(reactor)
            end.outbox.push(b"welcome")
            reactor._dirty.clear()
            epoll = reactor._epoll
            reactor._epoll = FullEpoll(epoll)
            before = reactor.snapshot()
            with pytest.raises(OSError, match="No space left"):
                reactor.adopt(server, end, end.outbox, tls=shake()[0], received=b"x")
            reactor._epoll = epoll
            assert reactor.snapshot() == before
            assert reactor.streams() == []
            assert end.outbox.stream is None
            assert not reactor._fresh
            reactor.adopt(server, end, end.outbox)
            await until(lambda: end.outbox.taken == 1)
            assert client.recv(10) == b"welcome"


async def test_a_paused_stream_that_epoll_does_not_take_back_ends():
    async with running() as reactor:
        peer, end = connect(reactor, unix=True)
        end.stream.pause()
        peer.close()
        await until(lambda: end.stream.events < 0)
        epoll = reactor._epoll
        reactor._epoll = FullEpoll(epoll)
        end.stream.resume()
        reactor._epoll = epoll
        assert await end.gone() == "no space left on device"
        assert reactor.snapshot().paused == 0


def watched(reactor: Reactor) -> int:
    """Descriptors that its epoll looks at."""
    assert reactor._epoll is not None
    return Path(f"/proc/self/fdinfo/{reactor._epoll.fileno()}").read_text().count("tfd:")


async def test_5000_streams_that_come_and_go_leave_nothing_behind():
    async with running() as reactor:
        for _ in range(20):
            made = [connect(reactor, echo, unix=True) for _ in range(250)]
            for number, (_, end) in enumerate(made):
                if number % 3 == 0:
                    end.outbox.allowance, end.outbox.delay = 0, 3600.0
                end.outbox.push(b"x")
                if number % 5 == 0:
                    end.stream.pause()
            await trio.lowlevel.checkpoint()
            assert watched(reactor) == 251
            for number, (peer, end) in enumerate(made):
                if number % 2:
                    peer.close()
                if number % 4:
                    end.stream.close("bye", within=0.001)
                else:
                    end.stream.abort("kicked")
            for peer, end in made:
                await end.gone()
                peer.close()
        assert watched(reactor) == 1, "the eventfd"
        await until(lambda: reactor._parked)
        assert (reactor.snapshot().streams, reactor.snapshot().paused, reactor.snapshot().dirty) == (0, 0, 0)
        assert reactor.snapshot().timers == 0
        assert len(reactor._timers._heap) <= 130
        assert not any((reactor._rest, reactor._fresh, reactor._buried, reactor._unflushed))
        assert len(reactor._streams) < 2000
