"""What a trace does to the connection it travels in, and what the connection does to the trace."""

from __future__ import annotations

import contextlib
import hashlib
import socket

import pytest
import trio

from netd.net.paths.looped import unacknowledged
from netd.net.paths.path import TraceOptions
from netd.net.sockdiag import tcp_info
from tests.support.carriers import PlainCarrier
from tests.support.lab import Lab, why_no_rules, why_not
from tests.support.tracing import addresses, tracer_in

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_nft = pytest.mark.skipif(why_no_rules() is not None, reason=str(why_no_rules()))

RATE = 25_000_000 / 8
SECONDS = 3.0
CHUNK = 32 * 1024


@pytest.fixture(scope="module")
def lab():
    with Lab(5) as lab:
        yield lab


def error_queue_is_empty(sock: socket.socket) -> bool:
    try:
        sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return True
    return False


async def discard(sock: socket.socket) -> None:
    while True:
        await trio.lowlevel.wait_readable(sock)
        sock.recv(1 << 20)


class StreamingCarrier(PlainCarrier):
    """A session in the middle of a stream: its message takes its turn between two chunks."""

    def __init__(self, stream: trio.SocketStream, sock: socket.socket, syn: bytes, sent) -> None:
        super().__init__(sock, syn)
        self.stream, self.sent, self.turn = stream, sent, trio.Lock()

    async def write(self, data: bytes) -> None:
        async with self.turn:
            self.sent.update(data)
            await self.stream.send_all(data)

    async def carry(self) -> bool:
        await self.write(b"p" * 127)
        return True


class Streams:
    """A connection on which both sides send 25 Mbit/s, and what became of it."""

    def __init__(self, lab: Lab, version: int) -> None:
        self.lab = lab
        self.server, self.client, syn = lab.connect(version)
        # the tracer has the socket itself; the stream a second descriptor of it
        self.ends = [trio.SocketStream(trio.socket.from_stdlib_socket(one.dup())) for one in (self.server, self.client)]
        self.sent = [hashlib.sha256(), hashlib.sha256()]
        self.received = [hashlib.sha256(), hashlib.sha256()]
        self.carrier = StreamingCarrier(self.ends[0], self.server, syn, self.sent[0])
        self.sent_again: list[int] = []
        self.tail_probes: list[int] = []

    async def run(self, meanwhile) -> None:
        before = [node.counters() for node in (self.lab.server, self.lab.client)]
        async with trio.open_nursery() as readers:
            readers.start_soon(self._read, 0)
            readers.start_soon(self._read, 1)
            async with trio.open_nursery() as writers:
                writers.start_soon(self._write, 0)
                writers.start_soon(self._write, 1)
                writers.start_soon(meanwhile)
            for end in self.ends:
                await end.send_eof()
        for end in self.ends:
            await end.aclose()
        self.server.close()
        self.client.close()
        after = [node.counters() for node in (self.lab.server, self.lab.client)]
        both = list(zip(before, after, strict=True))
        self.sent_again = [late["Tcp.RetransSegs"] - early["Tcp.RetransSegs"] for early, late in both]
        self.tail_probes = [late["TcpExt.TCPLossProbes"] - early["TcpExt.TCPLossProbes"] for early, late in both]

    async def _write(self, index: int) -> None:
        block = bytes(range(256)) * (CHUNK // 256)
        start = trio.current_time()
        count = 0
        while (now := trio.current_time()) < start + SECONDS:
            if index == 0:
                await self.carrier.write(block)
            else:
                self.sent[1].update(block)
                await self.ends[1].send_all(block)
            count += CHUNK
            await trio.sleep_until(max(now, start + count / RATE))

    async def _read(self, index: int) -> None:
        async for data in self.ends[1 - index]:
            self.received[index].update(data)


@pytest.mark.parametrize("version", [4, 6])
async def test_both_sides_stream_while_a_trace_runs_every_tenth_of_a_second(lab, version):
    """25 Mbit/s each way: every byte arrives as it was sent, and nothing is sent twice because of the traces.

    On a machine short of processors the kernel may find an acknowledgement late by its own clock and send a tail loss
    probe, with or without traces. It is told from other retransmissions, and one series of three must be free of it.
    """
    for _ in range(3):
        streams = Streams(lab, version)
        paths = []

        async def trace() -> None:
            start = trio.current_time()
            async with tracer_in(lab) as tracer:
                while trio.current_time() < start + SECONDS - 0.2:
                    paths.append(await tracer.trace(streams.carrier, TraceOptions(share=False)))  # noqa: B023
                    await trio.sleep(0.1)

        await streams.run(trace)
        assert [digest.digest() for digest in streams.received] == [digest.digest() for digest in streams.sent]
        assert streams.sent_again == streams.tail_probes
        assert len(paths) >= 15
        assert all(addresses(path) == lab.hops(version) and path.dest_ttl == 6 for path in paths)
        if streams.sent_again == [0, 0]:
            return
    pytest.fail(f"segments were sent again in each of three series, last: {streams.sent_again}")


async def test_a_connection_with_bytes_unacknowledged_is_traced_once_they_are(lab):
    """Much is written at once; the copies wait until the peer has what they are copies of."""
    server, client, syn = lab.connect()
    with server, client:
        async with tracer_in(lab) as tracer, trio.open_nursery() as nursery:
            nursery.start_soon(discard, client)
            for _ in range(3):
                server.send(bytes(300_000))
                path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(share=False))
                assert (path.reason, addresses(path)) == ("destination", lab.hops())
            nursery.cancel_scope.cancel()
        assert tcp_info(server).total_retrans == 0
        assert error_queue_is_empty(server)


async def test_a_peer_that_does_not_read_is_traced_all_the_same(lab):
    """A closed window: the message cannot leave, which ends the trace in time and leaves nothing behind."""
    server, client, syn = lab.connect(client_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    with server, client:
        try:
            while True:
                server.send(bytes(65536))
        except BlockingIOError:
            pass

        class Full(PlainCarrier):
            async def carry(self) -> bool:
                return True  # the session's outbox took it; the kernel has no room

        async with tracer_in(lab) as tracer:
            path = await tracer.trace(Full(server, syn), TraceOptions(timeout=0.3))
            assert path.reason == "timeout", "it is the peer's doing, not the kernel's"
        assert error_queue_is_empty(server)


async def test_a_message_that_leaves_long_after_its_trace_does_not_stay_in_the_error_queue(lab):
    """Or epoll would report the connection again and again, and its reader spin, for as long as it lasts."""
    server, client, syn = lab.connect(client_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)])
    with server, client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        server.send(bytes(65536))  # more than the peer has room for, less than we have
        async with tracer_in(lab) as tracer:
            path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(timeout=0.3))
            assert path.reason == "timeout"
            with trio.fail_after(20):
                while unacknowledged(server):
                    with contextlib.suppress(BlockingIOError):
                        client.recv(65536)
                    await trio.sleep(0.01)
                # only now was it sent, and looped; the tracer has it taken out, although its trace is over
                while tracer.sweeping:  # noqa: ASYNC110  # polled there too
                    await trio.sleep(0.01)
            assert error_queue_is_empty(server)


@needs_nft
async def test_the_client_closes_in_the_middle(lab):
    """Silent from r2 on for ever: only the close can end it early."""
    with Lab(4, silent={1, 2, 3}, delay=0.005) as slow:
        server, client, syn = slow.connect()
        with server, client:
            heard = trio.Event()
            async with tracer_in(slow) as tracer, trio.open_nursery() as nursery:

                async def close() -> None:
                    await heard.wait()
                    client.close()

                nursery.start_soon(close)
                path = await tracer.trace(PlainCarrier(server, syn), on_hop=lambda hop: heard.set())
            assert path.reason == "closed"
            assert addresses(path) == slow.hops()[:1]


@needs_nft
async def test_our_side_closes_in_the_middle(lab):
    with Lab(3, silent={1, 2}, delay=0.005) as slow:
        server, client, syn = slow.connect()
        with client:
            async with tracer_in(slow) as tracer:
                path = await tracer.trace(PlainCarrier(server, syn), on_hop=lambda hop: server.close())
            assert path.reason == "closed"


async def test_a_closed_socket_is_no_error(lab):
    server, client, syn = lab.connect()
    client.close()
    server.close()
    async with tracer_in(lab) as tracer:
        path = await tracer.trace(PlainCarrier(server, syn))
    assert (path.reason, path.hops) == ("closed", ())


async def test_the_error_queue_is_left_empty(lab):
    """Whoever waits for the socket would be woken for ever by what lies there."""
    server, client, syn = lab.connect()
    with server, client:
        async with tracer_in(lab) as tracer:
            for _ in range(5):
                await tracer.trace(PlainCarrier(server, syn))
                assert error_queue_is_empty(server)
                assert tcp_info(server).total_retrans == 0
            with trio.move_on_after(0.001):  # cancelled wherever it may be
                await tracer.trace(PlainCarrier(server, syn))
            assert error_queue_is_empty(server)


async def test_an_exception_from_the_listener_ends_its_own_trace_only(lab):
    def fail(hop) -> None:
        raise OSError("the listener's own")

    first, second = lab.connect(), lab.connect()
    async with tracer_in(lab) as tracer:
        with pytest.raises(OSError, match="the listener's own"):
            await tracer.trace(PlainCarrier(first[0], first[2]), on_hop=fail)
        path = await tracer.trace(PlainCarrier(second[0], second[2]))
        assert path.reason == "destination"
        assert tracer.snapshot().running == 0
    for sock in (*first[:2], *second[:2]):
        sock.close()


async def test_a_tracer_that_does_not_run_says_so(lab):
    from netd.net.paths.tracer import Tracer

    server, client, syn = lab.connect()
    with server, client, pytest.raises(RuntimeError, match="cannot trace"):
        await Tracer().trace(PlainCarrier(server, syn))
