"""Tracing a session that lives in the reactor: the looped packet reaches the tracer, the session notices nothing."""

from __future__ import annotations

import os
import random
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from netd.net.carrier import StreamCarrier
from netd.net.tls import TlsLayer
from tests.net.reactor_lab import End, connect, exactly, running, until
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY
from tests.support.lab import Lab, why_not
from tests.support.tracing import addresses, tracer_in

if TYPE_CHECKING:
    from netd.net.reactor import Reactor

needs_lab = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PING = b"ping" + b"." * 124


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    (directory / "cert").write_text(FIRST_CERTIFICATE)
    (directory / "key").write_text(FIRST_KEY)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "cert", directory / "key")
    client = ssl.create_default_context(cadata=FIRST_CERTIFICATE)
    client.check_hostname = False
    return server, client


class Session:
    """Both ends of a session whose server's end is in the reactor. What each said is compared with what was heard."""

    def __init__(self, reactor: Reactor, server, client, syn: bytes, layers) -> None:
        self.syn = syn
        self.end = End(reactor)
        self.server_tls, self.client_tls = layers
        self.sock = trio.socket.from_stdlib_socket(client)
        self.said_by_server = bytearray()
        self.said_by_client = bytearray()
        self.heard_by_client = bytearray()
        reactor.adopt(server, self.end, self.end.outbox, tls=self.server_tls)
        self.stream = self.end.outbox.stream

    def say(self, data: bytes) -> bool:
        self.said_by_server += data
        self.end.outbox.push(data)
        return True

    def nudge(self) -> bool:
        return self.say(PING)

    async def answer(self, data: bytes) -> None:
        self.said_by_client += data
        if self.client_tls is not None:
            self.client_tls.encrypt([data])
            data = self.client_tls.outgoing()
        view = memoryview(data)
        while view:
            view = view[await self.sock.send(view) :]

    async def listen(self) -> None:
        while data := await self.sock.recv(1 << 16):
            self.heard_by_client += self.client_tls.receive(data) if self.client_tls is not None else data

    async def talk(self) -> None:
        """Data both ways, of many sizes, now and then."""
        chance = random.Random(7)
        while True:
            self.say(chance.randbytes(chance.choice([1, 40, 96, 500, 20_000])))
            await self.answer(chance.randbytes(chance.choice([1, 40, 5000])))
            await trio.sleep(0.01)

    async def is_whole(self) -> None:
        """Every byte has arrived, and nothing else."""
        await until(lambda: len(self.heard_by_client) >= len(self.said_by_server))
        await until(lambda: len(self.end.received) >= len(self.said_by_client))
        assert self.heard_by_client == self.said_by_server
        assert self.end.received == self.said_by_client
        assert not self.end.whys


@asynccontextmanager
async def session_in(lab: Lab, reactor: Reactor, contexts=None):
    server, client, syn = lab.connect()
    layers = (None, None)
    if contexts is not None:
        layers = TlsLayer(contexts[0]), TlsLayer(contexts[1], server_side=False)
        data = b""
        while not (layers[0].handshaken and layers[1].handshaken):
            layers[1].receive(data)
            layers[0].receive(layers[1].outgoing())
            data = layers[0].outgoing()
        layers[1].receive(data)
    session = Session(reactor, server, client, syn, layers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.listen)
        yield session, nursery
        nursery.cancel_scope.cancel()
    session.sock.close()


@needs_lab
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("nudged", [False, True], ids=["genuine", "nudge"])
async def test_a_session_is_traced_while_data_flows_both_ways(contexts, tls, nudged):
    with Lab(routers=4) as lab:
        async with (
            running() as reactor,
            tracer_in(lab) as tracer,
            session_in(lab, reactor, contexts if tls else None) as (session, nursery),
        ):
            nursery.start_soon(session.talk)
            carrier = StreamCarrier(session.stream, session.syn, session.nudge if nudged else None)
            for _ in range(3):
                path = await tracer.trace(carrier)
                assert path.reason == "destination"
                assert path.method == "tcp"
                assert path.dest_ttl == lab.distance
                assert addresses(path) == lab.hops()
            nursery.cancel_scope.cancel()


@needs_lab
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_a_traced_session_says_arrives_byte_for_byte(contexts, tls):
    with Lab(routers=3) as lab:
        async with (
            running() as reactor,
            tracer_in(lab) as tracer,
            session_in(lab, reactor, contexts if tls else None) as (session, nursery),
        ):
            carrier = StreamCarrier(session.stream, session.syn, session.nudge)
            async with trio.open_nursery() as talking:
                talking.start_soon(session.talk)
                for _ in range(5):
                    assert (await tracer.trace(carrier)).reason == "destination"
                talking.cancel_scope.cancel()
            assert session.said_by_server.count(PING) == 5
            await session.is_whole()
            await until(lambda: reactor._parked)
            batches = reactor.snapshot().batches
            await trio.sleep(0.05)
            assert reactor.snapshot().batches - batches <= 4, "something is left in the error queue"
            nursery.cancel_scope.cancel()


@needs_lab
async def test_a_quiet_session_is_traced_by_its_nudge_alone():
    with Lab(routers=5, delay=0.002) as lab:
        async with running() as reactor, tracer_in(lab) as tracer, session_in(lab, reactor) as (session, _):
            carrier = StreamCarrier(session.stream, session.syn, session.nudge)
            path = await tracer.trace(carrier)
            assert (path.reason, path.est_ttl, addresses(path)) == ("destination", 6, lab.hops())
            await session.is_whole()
            assert session.heard_by_client == PING


@needs_lab
async def test_a_session_that_ends_meanwhile_is_closed_to_the_tracer():
    with Lab(routers=3) as lab:
        async with (
            running() as reactor,
            tracer_in(lab) as tracer,
            session_in(lab, reactor) as (session, nursery),
        ):
            carrier = StreamCarrier(session.stream, session.syn)  # nothing to say: it waits
            found = []

            async def trace() -> None:
                found.append(await tracer.trace(carrier))

            async with trio.open_nursery() as tracing:
                tracing.start_soon(trace)
                await until(lambda: session.stream.slow)
                session.stream.abort("kicked")
            assert found[0].reason in ("closed", "no-carrier")
            nursery.cancel_scope.cancel()


async def test_a_session_with_nothing_to_say_offers_no_carrier(monkeypatch):
    monkeypatch.setattr("netd.net.carrier._PATIENCE", 0.05)
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            assert await StreamCarrier(end.stream, b"syn").carry() is False
            assert await StreamCarrier(end.stream, b"syn", lambda: False).carry() is False
            assert not end.stream.slow, "nobody waits any more"
            end.outbox.push(b"x")
            assert await exactly(peer, 1) == b"x"


async def test_only_a_write_that_is_long_enough_and_new_serves():
    async with running() as reactor:
        peer, end = connect(reactor)
        carried: list[bool] = []

        async def carry() -> None:
            carried.append(await StreamCarrier(end.stream, b"").carry())

        with peer:
            end.outbox.push(b"x" * 200)
            await exactly(peer, 200)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry)
                await until(lambda: end.stream.slow)
                for _ in range(5):
                    end.outbox.push(b"x" * 90)
                    await exactly(peer, 90)
                assert not carried
                end.outbox.push(b"x" * 96)
            assert carried == [True]


async def test_a_carrier_of_a_stream_that_is_gone():
    async with running() as reactor:
        peer, end = connect(reactor)
        peer.close()
        await end.gone()
        carrier = StreamCarrier(end.stream, b"", lambda: True)
        assert await carrier.carry() is False
        with pytest.raises(OSError, match="Bad file descriptor"):
            carrier.read_errors()


async def test_several_may_wait_for_writes_and_each_may_give_up():
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer, end.stream.written(10) as small, end.stream.written(1000) as large:
            with end.stream.written(5):
                pass
            end.outbox.push(os.urandom(100))
            assert await small.wait()
            end.stream.abort("over")
            assert not await large.wait()
