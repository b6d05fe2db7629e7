"""TLS sessions in the reactor: the same rules through a layer of records."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from netd.net.reactor import plain_socket
from netd.net.tls import TlsLayer, handshake
from tests.net.reactor_lab import PATIENCE, End, connect, echo, running, until
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command as a client")


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    """(the server's, the client's)"""
    directory = tmp_path_factory.mktemp("tls")
    (directory / "cert").write_text(FIRST_CERTIFICATE)
    (directory / "key").write_text(FIRST_KEY)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "cert", directory / "key")
    return server, ssl.create_default_context(cadata=FIRST_CERTIFICATE)


class Peer:
    """A TLS client over a socket whose other end is the reactor's."""

    def __init__(self, sock: trio.socket.SocketType, layer: TlsLayer) -> None:
        self.sock = sock
        self.layer = layer
        self.plain = bytearray()

    async def say(self, data: bytes) -> None:
        self.layer.encrypt([data])
        await self.flush()

    async def flush(self) -> None:
        view = memoryview(self.layer.outgoing())
        while view:
            view = view[await self.sock.send(view) :]

    async def hear(self, count: int) -> bytes:
        with trio.fail_after(PATIENCE):
            while len(self.plain) < count:
                data = await self.sock.recv(1 << 16)
                if not data:
                    raise EOFError(bytes(self.plain))
                self.plain += self.layer.receive(data)
        data = bytes(self.plain[:count])
        del self.plain[:count]
        return data

    async def hear_goodbye(self) -> bytes:
        """Everything until close_notify and FIN."""
        with trio.fail_after(PATIENCE):
            while data := await self.sock.recv(1 << 16):
                self.plain += self.layer.receive(data)
        assert self.layer.closed, "no close_notify before the end"
        return bytes(self.plain)


def shaken(contexts, version=None) -> tuple[TlsLayer, TlsLayer]:
    """Two layers that have shaken hands: the server's and the client's."""
    server, client = TlsLayer(contexts[0]), TlsLayer(contexts[1], server_side=False, server_hostname="127.0.0.1")
    data = b""
    while not (server.handshaken and client.handshaken):
        client.receive(data)
        server.receive(client.outgoing())
        data = server.outgoing()
    client.receive(data + server.outgoing())
    return server, client


def tls_connect(reactor, contexts, act=None, **options) -> tuple[Peer, End]:
    server, client = shaken(contexts)
    sock, end = connect(reactor, act, tls=server, **options)
    return Peer(sock, client), end


async def test_what_is_said_inside_tls_is_fed_and_answered(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, echo)
        with peer.sock:
            for size in (1, 64, 5000, 300_000):
                data = os.urandom(size)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(peer.say, data)
                    assert await peer.hear(size) == data
            assert end.stream.bytes_in > 305_065, "bytes of records"
            peer.layer.goodbye()
            await peer.flush()
            assert await peer.hear_goodbye() == b""
        assert await end.gone() == "peer closed the connection"


async def test_a_record_torn_over_many_reads(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, echo)
        with peer.sock:
            peer.layer.encrypt([b"hello"])
            for byte in peer.layer.outgoing():
                reads = end.stream.bytes_in
                await peer.sock.send(bytes([byte]))
                await until(lambda reads=reads: end.stream.bytes_in > reads)
            assert await peer.hear(5) == b"hello"
            assert end.feeds == 1


async def test_close_says_close_notify_after_what_waits(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, buffers=8192)
        with peer.sock:
            end.outbox.push(b"x" * 200_000)
            end.stream.close("enough")
            assert len(await peer.hear_goodbye()) == 200_000
            peer.sock.close()
        assert await end.gone() == "enough"


async def test_a_paused_tls_stream_holds_what_arrives_and_does_not_spin(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, lambda end, data: end.stream.pause())
        with peer.sock:
            await peer.say(b"one")
            await until(lambda: bytes(end.received) == b"one")
            await peer.say(b"two")
            await until(lambda: reactor._parked)
            batches = reactor.snapshot().batches
            await trio.sleep(0.03)
            assert reactor.snapshot().batches - batches <= 2
            assert bytes(end.received) == b"one"
            end.stream.resume()
            await until(lambda: bytes(end.received) == b"onetwo")


async def test_plaintext_decrypted_before_adoption_comes_first(contexts):
    server, client = shaken(contexts)
    client.encrypt([b"with the handshake"])
    plain = server.receive(client.outgoing())
    async with running() as reactor:
        sock, end = connect(reactor, echo, tls=server, received=plain)
        end.stream.pause()
        peer = Peer(sock, client)
        with sock:
            await peer.say(b" and after it")
            await until(lambda: reactor._parked)
            assert not end.received
            end.stream.resume()
            assert await peer.hear(31) == b"with the handshake and after it"


async def test_priorities_and_backpressure_inside_tls(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, buffers=4096)
        with peer.sock:
            end.outbox.push(b"a" * 200_000)
            await until(lambda: end.stream.unsent > 0)
            end.outbox.push(b"n" * 10)
            end.outbox.push(b"u" * 10, urgent=True)
            assert await peer.hear(200_020) == b"a" * 200_000 + b"u" * 10 + b"n" * 10


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [(b"GET / HTTP/1.1\r\n\r\n", "cannot decrypt: "), (b"\x17\x03\x03\x00\x20" + b"\0" * 32, "cannot decrypt: ")],
)
async def test_what_is_no_tls_ends_the_stream_with_an_alert(contexts, nonsense, why):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, echo)
        other, _ = tls_connect(reactor, contexts, echo)
        with peer.sock, other.sock:
            await peer.sock.send(nonsense)
            assert (await end.gone()).startswith(why)
            assert not end.received
            assert (await peer.sock.recv(100))[:1] in (b"\x15", b"\x17"), "an alert, in the clear or not"
            await other.say(b"x")
            assert await other.hear(1) == b"x"


async def test_a_peer_that_leaves_without_goodbye(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, echo)
        with peer.sock:
            await peer.say(b"x")
            await peer.hear(1)
            peer.sock.shutdown(socket.SHUT_WR)
            assert await peer.hear_goodbye() == b""
        assert await end.gone() == "peer closed the connection"


class Openssl:
    """`openssl s_client`, which can do what Python's ssl has no call for; in words like the others here."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.said = bytearray()

    async def type(self, line: bytes) -> None:
        await self._process.stdin.send_all(line + b"\n")

    async def hear(self, words: bytes) -> None:
        with trio.fail_after(PATIENCE):
            while words not in self.said:
                more = await self._process.stdout.receive_some(65536)
                assert more, bytes(self.said)
                self.said += more


@asynccontextmanager
async def openssl(reactor, context, *options: str):
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, adopting(reactor, context), 0)
        port = listeners[0].socket.getsockname()[1]
        command = ["openssl", "s_client", "-connect", f"localhost:{port}", "-msg", *options]
        process = await trio.lowlevel.open_process(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL)
        async with process.stdin, process.stdout:
            try:
                yield Openssl(process)
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
        nursery.cancel_scope.cancel()


@needs_openssl
async def test_a_key_update_is_answered_and_the_stream_goes_on(contexts):
    """RFC 8446 4.6.3. A line "K" has the client ask for new keys of both sides."""
    async with running() as reactor, openssl(reactor, contexts[0], "-tls1_3") as peer:
        await peer.type(b"before")
        await peer.hear(b"echo before")
        await peer.type(b"K")
        await peer.hear(b">>> TLS 1.3, Handshake [length 0005], KeyUpdate")
        await peer.type(b"after")
        await peer.hear(b"echo after")
        assert b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate" in peer.said


@needs_openssl
async def test_a_flood_of_key_updates_keeps_nobody_else_waiting(contexts):
    async with running() as reactor, openssl(reactor, contexts[0], "-tls1_3") as peer:
        other, _ = tls_connect(reactor, contexts, echo)
        with other.sock:
            await peer.type(b"before")
            await peer.hear(b"echo before")
            for _ in range(300):
                await peer.type(b"K")
            for _ in range(20):
                await other.say(b"x")
                assert await other.hear(1) == b"x"


@needs_openssl
async def test_renegotiation_is_refused_without_harm(contexts):
    """TLS 1.2 only (RFC 5746); OpenSSL's server refuses it with an alert, and its client then gives up."""
    async with running() as reactor, openssl(reactor, contexts[0], "-tls1_2") as peer:
        other, _ = tls_connect(reactor, contexts, echo)
        with other.sock, structlog.testing.capture_logs() as logs:
            await peer.type(b"before")
            await peer.hear(b"echo before")
            assert reactor.snapshot().streams == 2
            await peer.type(b"R")
            await until(lambda: reactor.snapshot().streams == 1)
            await other.say(b"x")
            assert await other.hear(1) == b"x"
        assert not [entry for entry in logs if entry["log_level"] == "error"]


def adopting(reactor, context):
    """What a listener's task does: shakes hands, then hands over."""

    async def arrive(stream: trio.SocketStream) -> None:
        layer = TlsLayer(context)
        received = await handshake(layer, stream)
        end = End(reactor, lambda end, data: end.outbox.push(b"echo " + data))
        reactor.adopt(plain_socket(stream), end, end.outbox, tls=layer, received=received)

    return arrive


async def test_answers_that_a_peer_does_not_read_are_bounded(contexts, monkeypatch):
    """Key updates ask for answers; a peer that asks and never reads is cut off."""
    monkeypatch.setattr("netd.net.reactor._CONTROL", 2000)
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, buffers=4096)
        with peer.sock:
            end.outbox.push(b"x" * 500_000)
            await until(lambda: end.stream.unsent > 0)
            layer = end.stream.tls
            receive = layer.receive

            def answering(data: bytes) -> bytes:  # what OpenSSL does for a key update, and cheaper to ask for here
                layer.encrypt([b"k" * 50])
                return receive(data)

            class Answering:
                closed = False
                pending = property(lambda self: layer.pending)
                receive = staticmethod(answering)
                outgoing = staticmethod(layer.outgoing)
                goodbye = staticmethod(layer.goodbye)
                encrypt = staticmethod(layer.encrypt)

            end.stream.tls = Answering()
            with trio.fail_after(PATIENCE):
                while not end.whys:
                    await peer.say(b"?")
                    await trio.lowlevel.checkpoint()
            assert end.whys == ["did not read answers of TLS"]


async def test_an_idle_echo_of_many_tls_streams(contexts):
    async with running() as reactor:
        peers = [tls_connect(reactor, contexts, echo)[0] for _ in range(50)]
        for number, peer in enumerate(peers):
            await peer.say(b"%02d" % number)
        for number, peer in enumerate(peers):
            assert await peer.hear(2) == b"%02d" % number
            peer.sock.close()
        await until(lambda: reactor.snapshot().streams == 0)


async def test_bytes_after_close_notify_count_for_nothing(contexts):
    async with running() as reactor:
        peer, end = tls_connect(reactor, contexts, echo)
        with peer.sock:
            peer.layer.encrypt([b"last"])
            peer.layer.goodbye()
            await peer.sock.send(peer.layer.outgoing() + b"\x17\x03\x03\x00\x20" + b"\0" * 32)
            assert await peer.hear_goodbye() == b"last"
        assert await end.gone() == "peer closed the connection"
        assert bytes(end.received) == b"last"
