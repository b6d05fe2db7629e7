"""The reactor over real sockets: what is fed, what is sent, how streams end, and that it never spins.

Over 600 lines, and one file all the same, as reactor.py is; turns, TLS and crowds have files of their own.
"""

from __future__ import annotations

import gc
import os
import socket
import struct
import time
from contextlib import suppress

import pytest
import structlog
import trio

from netd.errors import ProtocolError
from netd.net.linux import SO_TIMESTAMPING, SOF_TIMESTAMPING_OPT_ID, SOF_TIMESTAMPING_SOFTWARE
from netd.net.reactor import WRITE, Reactor, plain_socket
from netd.net.stream import MAX_LOOPED
from tests.net.reactor_lab import PATIENCE, End, connect, echo, exactly, pair, rest, running, send, until
from tests.support.descriptors import room_for

LOOPING = SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_ID | 1 << 1  # TX_SOFTWARE


def reset(peer: trio.socket.SocketType) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


# --- in and out ---


@pytest.mark.parametrize("unix", [False, True])
async def test_what_a_peer_says_is_fed_and_answered(unix):
    async with running() as reactor:
        peer, end = connect(reactor, echo, unix=unix)
        with peer:
            for size in (1, 64, 5000):
                await peer.send(b"x" * size)
                assert await exactly(peer, size) == b"x" * size
            assert (end.stream.bytes_in, end.stream.bytes_out) == (5065, 5065)
            peer.close()
            assert await end.gone() == "peer closed the connection"
        assert reactor.snapshot().streams == 0
        assert end.outbox.stream is None


async def test_megabytes_come_back_byte_for_byte():
    data = os.urandom(3 << 20)
    async with running() as reactor, trio.open_nursery() as nursery:
        peer, _ = connect(reactor, echo, buffers=32768)
        with peer:
            nursery.start_soon(send, peer, data)
            assert await exactly(peer, len(data)) == data


async def test_an_outbox_that_is_marked_from_outside_wakes_the_reactor():
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            for number in range(5):
                await until(lambda: reactor._parked)
                end.outbox.push(b"%d" % number)
                assert await exactly(peer, 1) == b"%d" % number


async def test_what_is_pushed_in_one_batch_leaves_with_one_send():
    def three(end: End, data: bytes) -> None:
        end.outbox.push(b"a", b"b")
        end.outbox.push(b"c")

    async with running() as reactor:
        peer, end = connect(reactor, three)
        with peer:
            batches = reactor.snapshot().batches
            await peer.send(b"?")
            assert await exactly(peer, 3) == b"abc"
            assert end.outbox.taken == 3
            assert reactor.snapshot().batches - batches == 1


async def test_large_chunks_of_one_flush_arrive_in_order():
    chunks = [bytes([number]) * 20_000 for number in range(40)]  # more than WRITE, and than the socket takes
    async with running() as reactor:
        peer, end = connect(reactor, buffers=16384)
        with peer:
            end.outbox.push(*chunks)
            assert await exactly(peer, 800_000) == b"".join(chunks)
            await until(lambda: not end.stream.unsent)
            assert end.stream.bytes_out == 800_000


async def test_bytes_read_before_adoption_come_first():
    async with running() as reactor:
        server, client = pair()
        with client:
            client.send(b"third")
            end = End(reactor)
            end.outbox.push(b"welcome")  # before there is a stream
            reactor.adopt(server, end, end.outbox, received=b"first second ")
            await until(lambda: len(end.received) == 18)
            assert bytes(end.received) == b"first second third"
            assert client.recv(100) == b"welcome"


async def test_bytes_read_before_adoption_need_no_others_to_be_fed():
    async with running() as reactor:
        await until(lambda: reactor._parked)
        peer, end = connect(reactor, echo, received=b"alone")
        with peer:
            assert await exactly(peer, 5) == b"alone"
            end.outbox.push(b"x")
            assert await exactly(peer, 1) == b"x"


async def test_a_paused_stream_keeps_what_it_came_with():
    async with running() as reactor:
        server, client = pair()
        with client:
            client.send(b"later")
            end = End(reactor)
            stream = reactor.adopt(server, end, end.outbox, received=b"sooner ")
            stream.pause()
            other, _ = connect(reactor, echo)
            with other:
                await other.send(b"x")
                await exactly(other, 1)
            assert not end.received
            stream.resume()
            await until(lambda: len(end.received) == 12)
            assert bytes(end.received) == b"sooner later"


async def test_a_trio_stream_is_handed_over_as_it_is():
    async with running() as reactor:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listeners[0] as listener:
            peer = await trio.open_tcp_stream(*listener.socket.getsockname())
            accepted = await listener.accept()
            assert accepted.socket.fileno() >= 0
            sock = plain_socket(accepted)
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            end = End(reactor, echo)
            reactor.adopt(sock, end, end.outbox)
            async with peer:
                await peer.send_all(b"hello")
                assert await peer.receive_some(10) == b"hello"


async def test_adoption_needs_a_running_reactor():
    reactor = Reactor()
    server, client = pair()
    with server, client:
        end = End(reactor)
        with pytest.raises(RuntimeError, match="not running"):
            reactor.adopt(server, end, end.outbox)
        assert server.fileno() >= 0, "it stays the caller's"


# --- a socket that is full ---


async def test_what_is_unsent_goes_before_what_is_more_urgent():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            big = b"a" * (WRITE - 1)
            end.outbox.push(big)
            await until(lambda: end.stream.unsent > 0)
            end.outbox.push(b"n" * 10)
            end.outbox.push(b"u" * 10, urgent=True)
            assert await exactly(peer, len(big) + 20) == big + b"u" * 10 + b"n" * 10


async def test_a_peer_that_does_not_read_costs_no_wakeups():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            end.outbox.push(b"x" * 1_000_000)
            await until(lambda: end.stream.unsent > 0)
            await until(lambda: reactor._parked)
            before = reactor.snapshot().batches
            for _ in range(20):
                end.outbox.push(b"y")
                await trio.sleep(0.002)
            assert reactor.snapshot().batches - before <= 2 * 20
            assert await exactly(peer, 1_000_020) == b"x" * 1_000_000 + b"y" * 20


async def test_a_rate_resumes_by_the_clock():
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.outbox.allowance, end.outbox.delay = 10, 0.05
            end.outbox.push(b"x" * 10, b"y" * 10)
            assert await exactly(peer, 10) == b"x" * 10
            await until(lambda: reactor.snapshot().timers == 1)
            assert await exactly(peer, 10) == b"y" * 10
            assert reactor.snapshot().timers == 0


# --- pause ---


@pytest.mark.parametrize("unix", [False, True])
async def test_a_paused_stream_is_not_read_and_does_not_spin(unix):
    async with running() as reactor:
        peer, end = connect(reactor, unix=unix)
        with peer:
            end.stream.pause()
            assert reactor.snapshot().paused == 1
            await peer.send(b"hello")
            await until(lambda: reactor._parked)
            batches = reactor.snapshot().batches
            await trio.sleep(0.05)
            assert reactor.snapshot().batches - batches <= 2
            assert not end.received
            end.stream.resume()
            await until(lambda: bytes(end.received) == b"hello")
            assert reactor.snapshot().paused == 0


@pytest.mark.parametrize("unix", [False, True])
async def test_a_peer_that_leaves_a_paused_stream_is_noticed_at_resume_with_nothing_lost(unix):
    async with running() as reactor:
        peer, end = connect(reactor, unix=unix)
        end.stream.pause()
        await peer.send(b"last words")
        peer.close()
        await trio.sleep(0.01)
        await until(lambda: reactor._parked)
        batches = reactor.snapshot().batches
        await trio.sleep(0.05)
        assert reactor.snapshot().batches - batches <= 2, "an epoll that reports EPOLLHUP again and again"
        assert not end.whys
        end.stream.resume()
        await end.gone()
        assert bytes(end.received) == b"last words"


async def test_a_stream_paused_by_another_in_the_same_batch_is_not_fed():
    fed: list[End] = []
    ends: list[End] = []

    def pause_others(end: End, data: bytes) -> None:
        fed.append(end)
        for other in ends:
            if other is not end:
                other.stream.pause()

    async with running() as reactor:
        peers = []
        for _ in range(5):
            peer, end = connect(reactor, pause_others)
            peers.append(peer)
            ends.append(end)
        for peer in peers:  # no checkpoint between: all of them are in one batch
            os.write(peer.fileno(), b"x")
        await until(lambda: bool(fed))
        await until(lambda: reactor._parked)
        assert len(fed) == 1
        for end in ends:
            end._act = None
            end.stream.resume()
        await until(lambda: all(end.received for end in ends))
        for peer in peers:
            peer.close()


# --- ends ---


async def test_a_peers_end_is_answered_with_what_waits_and_reported_once():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=8192)
        with peer:
            end.outbox.push(b"x" * 500_000)
            peer.shutdown(socket.SHUT_WR)
            assert len(await rest(peer)) == 500_000
        assert await end.gone() == "peer closed the connection"
        await trio.sleep(0.01)
        assert len(end.whys) == 1


async def test_a_reset_ends_a_stream_whatever_it_does():
    async with running() as reactor:
        peer, end = connect(reactor)
        reset(peer)
        assert await end.gone() == "connection reset by peer"
        peer, end = connect(reactor)
        end.stream.pause()
        reset(peer)
        assert await end.gone() == "connection reset by peer"
        peer, end = connect(reactor, buffers=4096)
        end.outbox.push(b"x" * 1_000_000)
        await until(lambda: end.stream.unsent > 0)
        reset(peer)
        assert await end.gone() == "connection reset by peer"
        assert reactor.snapshot().streams == 0
        assert reactor.snapshot().paused == 0


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), ProtocolError("cannot read a frame: too long")])
async def test_an_endpoint_that_fails_ends_its_own_stream_only(error):
    def fail(end: End, data: bytes) -> None:
        end.outbox.push(b"sorry")
        raise error

    async with running() as reactor:
        other, _ = connect(reactor, echo)
        peer, end = connect(reactor, fail)
        with peer, other, structlog.testing.capture_logs() as logs:
            await peer.send(b"x")
            if isinstance(error, ProtocolError):
                assert await rest(peer) == b"sorry"
                peer.close()
                assert await end.gone() == str(error)
                assert not [entry for entry in logs if entry["log_level"] == "error"]
            else:
                assert await end.gone() == "internal error"
                [entry] = [entry for entry in logs if entry["log_level"] == "error"]
                assert entry["exc_info"] is error
            await other.send(b"still here")
            assert await exactly(other, 10) == b"still here"


async def test_an_outbox_and_an_end_that_fail_harm_nobody_else():
    async with running() as reactor:
        other, _ = connect(reactor, echo)
        peer, end = connect(reactor)
        with peer, other, structlog.testing.capture_logs():
            end.outbox.take = lambda limit, now: 1 / 0
            end.ended = lambda why: 1 / 0
            end.outbox.push(b"x")
            assert await rest(peer) == b""
            await other.send(b"still here")
            assert await exactly(other, 10) == b"still here"


async def test_close_sends_what_waits_and_waits_for_the_peer():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=8192)
        with peer:
            end.outbox.push(b"x" * 300_000)
            end.stream.close("enough")
            end.stream.close("another reason")
            assert end.stream.closed
            assert not end.stream.gone
            assert len(await rest(peer)) == 300_000
            assert not end.whys, "the peer has not closed yet"
        assert await end.gone() == "enough"


async def test_last_words_reach_a_peer_that_is_sending():
    """Unread input at close resets the connection, and the peer loses what it has not read yet."""
    async with running() as reactor, trio.open_nursery() as nursery:
        peer, end = connect(reactor)

        async def flood() -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                while True:
                    await peer.send(b"x" * 10_000)

        with peer:
            nursery.start_soon(flood)
            await until(lambda: len(end.received) > 1_000_000)
            end.outbox.push(b"last words")
            end.stream.close("enough")
            assert await rest(peer) == b"last words"
            nursery.cancel_scope.cancel()
        await end.gone()


async def test_close_cuts_off_a_peer_that_does_not_read():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            end.outbox.push(b"x" * 5_000_000)
            await until(lambda: end.stream.unsent > 0)
            end.stream.close("too slow", within=0.05)
            assert await end.gone() == "too slow"
            assert reactor.snapshot().timers == 0


async def test_close_cuts_off_a_peer_that_keeps_its_end_open():
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.stream.close("bye", within=0.05)
            assert await rest(peer) == b""
            assert await end.gone() == "bye"


async def test_abort_is_heard_of_later_and_only_once():
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.outbox.push(b"lost")
            end.stream.abort("kicked")
            assert not end.whys, "never from within abort"
            end.stream.abort("again")
            end.stream.close("again")
            end.stream.pause()
            end.stream.resume()
            assert await end.gone() == "kicked"
            assert end.stream.gone
        assert reactor.snapshot().streams == 0


async def test_a_stream_may_end_another_of_the_same_batch():
    ends: list[End] = []

    def end_others(end: End, data: bytes) -> None:
        for other in ends:
            if other is not end:
                other.stream.abort("replaced")

    async with running() as reactor:
        peers = []
        for _ in range(10):
            peer, end = connect(reactor, end_others)
            peers.append(peer)
            ends.append(end)
        for peer in peers:
            os.write(peer.fileno(), b"x")
        await until(lambda: reactor.snapshot().streams == 1)
        await until(lambda: sum(len(end.whys) for end in ends) == 9)
        assert sum(end.feeds for end in ends) == 1
        for peer in peers:
            peer.close()


async def test_a_descriptor_that_is_used_again_within_a_batch_gets_nothing_of_the_old():
    """A stream is ended and another adopted while events of the first are still to be looked at."""
    replaced: list[tuple[socket.socket, End]] = []

    async with running() as reactor:

        def replace(end: End, data: bytes) -> None:
            for other in ends:
                if other is not end and not other.stream.gone:
                    other.stream.abort("replaced")
                    server, client = pair()
                    fresh = End(reactor)
                    reactor.adopt(server, fresh, fresh.outbox)
                    replaced.append((client, fresh))

        peers, ends = [], []
        for _ in range(10):
            peer, end = connect(reactor, replace)
            peers.append(peer)
            ends.append(end)
        for peer in peers:
            os.write(peer.fileno(), b"old")
        await until(lambda: len(replaced) == 9)
        for number, (client, _) in enumerate(replaced):
            client.send(b"new %d" % number)
        await until(lambda: all(fresh.received for _, fresh in replaced))
        assert [bytes(fresh.received) for _, fresh in replaced] == [b"new %d" % number for number in range(9)]
        for peer in [*peers, *(client for client, _ in replaced)]:
            peer.close()


async def test_a_socket_closed_by_somebody_else_takes_nothing_with_it():
    async with running() as reactor:
        peer, end = connect(reactor)
        other, _ = connect(reactor, echo)
        with peer, other:
            end.stream.socket.close()
            end.outbox.push(b"x")
            assert await end.gone() == "bad file descriptor"
            assert end.stream not in reactor.streams()
            await other.send(b"x")
            assert await exactly(other, 1) == b"x"


async def test_cancellation_closes_everything():
    ends, peers = [], []
    async with running() as reactor:
        for _ in range(20):
            peer, end = connect(reactor, buffers=4096)
            end.outbox.push(b"x" * 100_000)
            peers.append(peer)
            ends.append(end)
        ends[0].stream.close("bye")
        ends[1].stream.pause()
        await trio.sleep(0.01)
    assert [end.whys for end in ends] == [["bye"]] + [["netd is stopping"]] * 19
    assert (reactor.snapshot().streams, reactor.snapshot().timers, reactor.snapshot().paused) == (0, 0, 0)
    for end in ends:
        assert end.stream.socket.fileno() == -1
    for peer in peers:
        peer.close()
    ends[3].outbox.push(b"nobody is there any more")
    gc.collect()  # a socket left open would be a ResourceWarning, and those are errors


# --- the error queue ---


def loop_packets(sock: socket.socket, flags: int = LOOPING) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, flags)


async def test_looped_packets_are_kept_for_a_carrier_while_it_listens_and_do_not_spin():
    async with running() as reactor:
        peer, end = connect(reactor, echo)
        with peer:
            loop_packets(end.stream.socket)
            before = reactor.snapshot().batches
            for number in range(20):
                await peer.send(b"%03d" % number)
                await exactly(peer, 3)
            await until(lambda: reactor._parked)
            assert reactor.snapshot().batches - before <= 3 * 20
            packets = []
            while (packet := end.stream.read_errors()) is not None:
                packets.append(packet[-3:])
            assert packets == [b"%03d" % number for number in range(20)]
            loop_packets(end.stream.socket, 0)


async def test_looped_packets_are_bounded_and_the_newest_stay():
    async with running() as reactor:
        peer, end = connect(reactor, echo)
        with peer:
            loop_packets(end.stream.socket)
            for number in range(MAX_LOOPED * 2):
                await peer.send(b"%03d" % number)
                await exactly(peer, 3)
            await until(lambda: reactor._parked)
            packets = []
            while (packet := end.stream.read_errors()) is not None:
                packets.append(packet[-3:])
            assert packets == [b"%03d" % number for number in range(MAX_LOOPED, MAX_LOOPED * 2)]


async def test_looped_packets_that_nobody_wants_are_thrown_away():
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            end.outbox.push(b"x" * 200_000)
            await until(lambda: end.stream.unsent > 0)
            loop_packets(end.stream.socket)
            await exactly(peer, 100_000)  # segments are looped as the window opens
            loop_packets(end.stream.socket, 0)
            await exactly(peer, 100_000)
            await until(lambda: reactor._parked)
            while end.stream.read_errors() is not None:
                pass
            batches = reactor.snapshot().batches
            await trio.sleep(0.02)
            assert reactor.snapshot().batches - batches <= 4


# --- time ---


async def test_timers_ring_in_order_once_and_not_when_cancelled():
    rang: list[str] = []
    async with running() as reactor:
        now = reactor.now
        reactor.call_at(now + 0.03, lambda: rang.append("third"))
        timer = reactor.call_at(now + 0.02, lambda: rang.append("cancelled"))
        reactor.call_at(now + 0.01, lambda: rang.append("second"))
        reactor.call_at(now - 1.0, lambda: rang.append("first"))
        assert reactor.snapshot().timers == 4
        timer.cancel()
        timer.cancel()
        assert reactor.snapshot().timers == 3
        await until(lambda: len(rang) == 3)
        assert rang == ["first", "second", "third"]
        assert reactor.snapshot().timers == 0


async def test_a_timer_that_fails_and_one_that_makes_another():
    rang = trio.Event()
    async with running() as reactor:
        with structlog.testing.capture_logs() as logs:
            reactor.call_at(reactor.now, lambda: 1 / 0)
            reactor.call_at(reactor.now, lambda: reactor.call_at(reactor.now + 0.001, rang.set))
            with trio.fail_after(PATIENCE):
                await rang.wait()
        assert [entry["event"] for entry in logs] == ["a timer's function failed"]


async def test_cancelled_timers_do_not_pile_up():
    async with running() as reactor:
        for _ in range(10_000):
            reactor.call_at(reactor.now + 3600, lambda: None).cancel()
        assert len(reactor._timers._heap) <= 130
        assert reactor.snapshot().timers == 0


async def test_now_is_the_batchs_time_within_one_and_the_time_outside():
    seen: list[tuple[float, float]] = []

    def look(end: End, data: bytes) -> None:
        before = end.stream.reactor.now
        while time.monotonic() <= before:
            pass
        seen.append((before, end.stream.reactor.now))

    async with running() as reactor:
        peer, _ = connect(reactor, look)
        with peer:
            await peer.send(b"x")
            await until(lambda: bool(seen))
            assert seen[0][0] == seen[0][1]
            first = reactor.now
            while time.monotonic() <= first:
                pass
            assert reactor.now > first


# --- sharing the thread ---


async def test_a_flood_leaves_other_tasks_their_turn():
    """Streams that talk to each other within the reactor never let its epoll come to rest."""
    async with running() as reactor:
        ends = []
        for _ in range(4):
            for sock in pair():
                end = End(reactor, echo)
                reactor.adopt(sock, end, end.outbox)
                ends.append(end)
            end.outbox.push(b"x" * 1000)
        await until(lambda: reactor.snapshot().batches > 100)
        turns, batches = 0, reactor.snapshot().batches
        while reactor.snapshot().batches < batches + 2000:
            turns += 1
            await trio.lowlevel.checkpoint()
        assert turns >= 2000 // 16 - 1  # the first and the last are not whole
        for end in ends:
            end.outbox.stream.abort("enough")


async def test_a_stream_that_marks_itself_for_ever_leaves_other_tasks_their_turn():
    """Not even sockets are needed for a flood: an outbox that is never empty."""
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.outbox.take = lambda limit, now: []
            end.outbox.wait = lambda now: 0.0
            end.outbox.push(b"x")
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert reactor.snapshot().streams == 1


async def test_looking_again_instead_of_waiting_stops_where_it_finds_nothing():
    async with running() as reactor:
        peer, _ = connect(reactor, echo)
        with peer:
            reactor._eager = 16  # as after a long ping-pong
            for _ in range(20):
                await peer.send(b"x")
                await exactly(peer, 1)
                await trio.sleep(0.003)
            polls = reactor.snapshot().polls
            for _ in range(5):
                await peer.send(b"x")
                await exactly(peer, 1)
                await trio.sleep(0.003)
            assert reactor.snapshot().polls - polls <= 5 * 4


async def test_5000_streams():
    with room_for(10_200):
        async with running() as reactor:
            both = [connect(reactor, echo, unix=True) for _ in range(5000)]
            assert reactor.snapshot().streams == 5000
            for number, (peer, _) in enumerate(both):
                os.write(peer.fileno(), b"%d" % number)
            await until(lambda: all(end.received for _, end in both))
            for number, (peer, end) in enumerate(both):
                assert bytes(end.received) == b"%d" % number
                assert await exactly(peer, len(end.received)) == end.received
            for peer, _ in both[:2500]:
                peer.close()
            await until(lambda: reactor.snapshot().streams == 2500)
        assert all(len(end.whys) == 1 for _, end in both)
        for peer, _ in both:
            peer.close()
