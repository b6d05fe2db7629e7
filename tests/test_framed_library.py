"""netd.framed: a server of one's own, with the service's exchange under it."""

from __future__ import annotations

import errno
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio
import trio.lowlevel

from netd.client import FramedClient
from netd.errors import PrepareFailed, ProtocolError
from netd.framed import (
    Backpressure,
    CloseCode,
    Closed,
    Connected,
    Connection,
    Drain,
    FramedServer,
    Introduced,
    Received,
    Rejected,
    Tls,
)
from netd.hub.config import HubConfig
from netd.hub.hub import Hub
from netd.wire.framing import frame
from netd.wire.handshake import plain
from tests.services.framed.lab import PATIENCE, Client, eventually, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

E = TypeVar("E")


_opened: list[trio.socket.SocketType] = []


async def connect(server: FramedServer, *, tls: Any = None, buffer: int | None = None) -> Client:
    sock = trio.socket.socket()
    _opened.append(sock)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await sock.connect(("127.0.0.1", server.port))
    stream: trio.abc.Stream = trio.SocketStream(sock)
    if tls is not None:
        stream = trio.SSLStream(stream, tls, server_hostname="127.0.0.1")
    return Client(stream, sock)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[FramedServer]:
    """A server on a free port; the clients of the test hang up before it ends."""
    async with FramedServer("127.0.0.1:0", **options) as server:
        try:
            yield server
        finally:
            while _opened:
                _opened.pop().close()


async def take(server: FramedServer, kind: type[E]) -> E:
    """The next event, which is of this kind."""
    with trio.fail_after(PATIENCE):
        event = await anext(server)
    assert isinstance(event, kind), event
    return event


async def arrived(server: FramedServer, **how: Any) -> tuple[Client, Connection]:
    client = await connect(server, **how)
    return client, (await take(server, Connected)).connection


async def test_a_server_in_eight_lines() -> None:
    async with serving(codec="json") as server, trio.open_nursery() as nursery:

        async def serve() -> None:
            async for event in server:
                match event:
                    case Received(connection, data):
                        connection.send({"echo": data})

        nursery.start_soon(serve)
        client = await connect(server)
        await client.send(b"[1, 2]", b'"three"')
        assert [json.loads(await client.next()) for _ in range(2)] == [{"echo": [1, 2]}, {"echo": "three"}]
        client.socket.close()
        nursery.cancel_scope.cancel()


async def test_what_happens_to_a_connection_comes_in_order() -> None:
    async with serving() as server:
        client, connection = await arrived(server)
        assert server.connection(connection.id) is connection
        assert (server.connections, list(server)) == (1, [connection])
        assert connection.address == f"127.0.0.1:{client.socket.getsockname()[1]}"
        await client.send(plain("1", {"device": "alpha"}), b"one", b"", b"three")
        assert (await take(server, Introduced)).connection is connection
        assert connection.handshake is not None
        assert connection.tags == {"device": "alpha"}
        assert [(await take(server, Received)).data for _ in range(3)] == [b"one", b"", b"three"]
        client.socket.close()
        closed = await take(server, Closed)
        assert (closed.connection, closed.code) == (connection, CloseCode.NORMAL)
        assert connection.closed
        assert connection.send(b"too late") is False
        assert server.connection(connection.id) is None
        assert server.connections == 0
        totals = server.totals()
        assert (totals.connections, totals.messages_in, totals.bytes_in) == (1, 3, connection.view().bytes_in)


async def test_broadcast_to_all_to_some_and_but_for_one() -> None:
    async with serving(codec="text") as server:
        pairs = [await arrived(server) for _ in range(3)]
        for number, (_, connection) in enumerate(pairs):
            connection.tag(parity="odd" if number % 2 else "even", number=str(number))
        assert server.broadcast("all") == 3
        assert server.broadcast("even", tags={"parity": "even"}) == 2
        assert server.broadcast("not 0", but=pairs[0][1]) == 2
        assert server.broadcast("nobody", tags={"parity": "even", "number": "1"}) == 0
        heard = []
        for client, connection in pairs:
            connection.close()
            heard.append([payload.decode() for payload in await client.rest()])
        assert heard == [["all", "even"], ["all", "not 0"], ["all", "even", "not 0"]]


async def test_what_the_codec_cannot_encode_is_the_callers_fault() -> None:
    async with serving(codec="cbor") as server:
        _, connection = await arrived(server)
        with pytest.raises(ProtocolError):
            connection.send(object())
        with pytest.raises(ProtocolError):
            server.broadcast(object())


async def test_what_the_codec_cannot_decode_ends_the_connection_after_what_was_good() -> None:
    async with serving(codec="json") as server:
        client, connection = await arrived(server)
        await client.send(b"1", b"{", b"2")
        assert (await take(server, Received)).data == 1
        assert await client.rest() == []
        assert (await take(server, Closed)).code == CloseCode.INVALID
        assert connection.closed


async def test_handshakes_verified_by_the_program() -> None:
    async def verify(handshake: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return handshake.tags.get("password") == "sesame"

    async with serving(handshake="required", version="1", verify=verify) as server:
        bad, good = await connect(server), await connect(server)
        await bad.send(plain("1", {"password": "guess"}), b"in?")
        assert await bad.rest() == []
        assert (await take(server, Rejected)).why == "verifier"
        await good.send(plain("1", {"password": "sesame"}), b"in")
        connection = (await take(server, Connected)).connection
        assert connection.tags == {"password": "sesame"}
        assert (await take(server, Received)).data == b"in"


async def test_events_that_nobody_takes_stop_the_reading() -> None:
    async with serving(waiting=10) as server:
        client, connection = await arrived(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, *[b"x" * 10_000] * 1000)
            await eventually(lambda: connection.view().paused == ["reader"])
            # what was read with the last of them comes too, and no more
            assert 10 <= len(server._events) <= 10 + 131_072 // 10_000
            for _ in range(1000):
                assert (await take(server, Received)).data == b"x" * 10_000
        assert connection.view().paused == []


async def test_the_bytes_that_wait_are_bounded_too() -> None:
    async with serving(waiting=1_000_000) as server:
        client, connection = await arrived(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, *[b"x" * 100_000] * 100)
            await eventually(lambda: connection.view().paused == ["reader"])
            assert sum(len(event.data) for event in server._events if isinstance(event, Received)) < 1_500_000
            for _ in range(100):
                await take(server, Received)


async def test_connections_that_come_and_go_cannot_pile_up_events() -> None:
    async with serving(max_connections=5) as server:
        for _ in range(50):
            client = await connect(server)
            client.socket.close()
        await eventually(lambda: server.totals().connections == 5 and server.connections == 0)
        await eventually(lambda: server._exchange.rejections["clients"] == 45)
        kinds = [type(event) for event in server._events]
        assert kinds.count(Connected) == kinds.count(Closed) == 5
        assert kinds.count(Rejected) == 45
        for _ in range(55):
            await anext(server)
        await arrived(server)


async def test_backpressure_and_drain() -> None:
    async with serving(backpressure=100_000, max_frame=30_000, send_buffer=4096) as server:
        client, connection = await arrived(server, buffer=4096)
        sent = 0
        while not server._events:
            assert connection.send(b"x" * 1000)
            sent += 1
        told = await take(server, Backpressure)
        assert told.queued > 50_000
        assert connection.queued > 50_000
        for _ in range(sent):
            await client.next()
        assert (await take(server, Drain)).queued <= 12_500


async def test_one_that_never_reads_is_cut_off_and_told_of() -> None:
    async with serving(backpressure=100_000, max_frame=30_000, send_buffer=4096) as server:
        _, connection = await arrived(server, buffer=4096)
        while connection.send(b"x" * 1000):
            pass
        assert connection.closed
        await take(server, Backpressure)
        with trio.fail_after(PATIENCE):
            while not isinstance(event := await anext(server), Closed):
                assert isinstance(event, Drain)
        assert (event.connection, event.code, event.why) == (connection, CloseCode.SLOW, "did not read")


async def test_priorities_and_a_rate() -> None:
    async with serving(rate=2000, burst=1) as server:
        client, connection = await arrived(server)
        connection.send(b"0" * 500)
        for number, priority in enumerate((200, 128, 3), 1):
            connection.send(str(number).encode() * 100, priority=priority)
        heard = [(await client.next())[:1] for _ in range(4)]
        assert [number for number in heard if number != b"0"] == [b"3", b"2", b"1"]


async def test_limits_are_changed_for_who_is_there() -> None:
    async with serving(max_frame=1000) as server:
        client, _ = await arrived(server)
        await client.send(b"x" * 1000)
        await take(server, Received)
        server.configure(max_frame=100)
        await client.send(b"x" * 101)
        assert (await take(server, Closed)).code == CloseCode.TOO_LARGE
        with pytest.raises(ValueError, match="max_frame"):
            server.configure(max_frame=1)


async def test_tls(tmp_path: Path) -> None:
    tls = Tls(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    tls.certificate.write_text(FIRST_CERTIFICATE)
    tls.key.write_text(FIRST_KEY)
    async with serving(tls=tls) as server:
        client = await connect(server, tls=trusting(FIRST_CERTIFICATE))
        await client.send(b"secret")
        await take(server, Connected)
        received = await take(server, Received)
        assert received.data == b"secret"
        received.connection.send(b"heard")
        assert await client.next() == b"heard"
        assert received.connection.peer_certificate is None


async def test_a_unix_socket_and_no_framing(tmp_path: Path) -> None:
    async with FramedServer(f"unix:{tmp_path}/own.sock", framing="none") as server:
        stream = await trio.open_unix_socket(f"{tmp_path}/own.sock")
        await stream.send_all(b"a line\n")
        connection = (await take(server, Connected)).connection
        assert (await take(server, Received)).data == b"a line\n"
        connection.send(b"another\n")
        assert await stream.receive_some() == b"another\n"
        assert (connection.view().address, server.port) == ("unix:", 0)
        await stream.aclose()


async def test_sessions_of_a_hub() -> None:
    hub = Hub(HubConfig(), clock=lambda: 1.0)
    async with serving(codec="text", hub=hub) as server:
        client, connection = await arrived(server)
        connection.tag(device="alpha")
        assert hub.direct("tag:device=alpha", "hello") == 1
        assert await client.next() == b"hello"
        assert hub.kick(connection.id, reason="enough") == 1
        assert (await take(server, Closed)).why == "enough"
    assert hub.sessions == {}


async def test_a_tag_for_one_that_has_ended_leaves_nothing_behind() -> None:
    hub = Hub(HubConfig(), clock=lambda: 1.0)
    async with serving(codec="text", hub=hub, handshake="required") as server:
        client = await connect(server)
        await client.send(plain("1", {"device": "claimed"}))
        connection = (await take(server, Connected)).connection
        connection.tag(device="alpha")
        assert connection.tags == {"device": "alpha"}
        assert hub.find("tag:device=claimed") == []
        connection.close()
        connection.tag(device="beta")
        assert hub.find("tag:device=alpha") == hub.find("tag:device=beta") == []
        await take(server, Closed)
        connection.tag(device="gamma")
        assert hub.find("tag:device=gamma") == []
        assert connection.tags == {"device": "alpha"}


class Full:
    """An epoll of which the user has as many watches as may be (epoll(7), max_user_watches)."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.is_full = True

    def register(self, *args: Any) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._epoll.register(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("handshake", ["none", "required"])
async def test_a_kernel_that_takes_no_more_costs_one_client_and_not_the_server(handshake: Any) -> None:
    async with serving(codec="text", handshake=handshake) as server:

        async def come() -> Client:
            client = await connect(server)
            if handshake == "required":
                await client.send(plain("1"))
            return client

        client = await come()
        await take(server, Connected)
        reactor = server._exchange.reactor
        full: Any = Full(reactor._epoll)
        reactor._epoll = full
        late = await come()
        assert (await take(server, Rejected)).why == "broken"
        assert await late.over() == b""
        assert (server._exchange.places.total, server.connections) == (1, 1)
        full.is_full = False
        await client.send(b"still here")
        assert (await take(server, Received)).data == "still here"
        await come()
        await take(server, Connected)


async def test_leaving_sends_what_waits_and_then_ends() -> None:
    async with FramedServer("127.0.0.1:0") as server:
        client, connection = await arrived(server)
        for number in range(100):
            connection.send(str(number).encode() * 1000)
    assert len(await client.rest()) == 100
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", server.port)


async def test_leaving_does_not_wait_for_who_does_not_read() -> None:
    async with FramedServer("127.0.0.1:0", drain=0.5, send_buffer=4096) as server:
        client, connection = await arrived(server, buffer=4096)
        connection.send(b"x" * 2_000_000)
        begun = trio.current_time()
    assert trio.current_time() - begun < 5
    client.socket.close()


async def test_closing_ends_the_iteration() -> None:
    async with serving() as server:
        await arrived(server)
        server.close()
        with trio.fail_after(PATIENCE):
            assert [type(event) async for event in server] == [Closed]


async def test_an_error_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012
        async with serving() as server:
            await arrived(server)
            raise RuntimeError("mine")


async def test_an_address_that_is_taken() -> None:
    async with serving() as server:
        with pytest.raises(PrepareFailed, match="cannot listen"):
            async with FramedServer(server.address):
                pass


@pytest.mark.parametrize(
    "options",
    [{"verify": bool}, {"codec": "json", "max_frame": 1}, {"version": "1", "handshake": "none"}, {"nonsense": 1}],
)
async def test_what_does_not_fit_together_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot|greater|extra|Extra"):
        FramedServer("127.0.0.1:0", **options)


async def test_a_client_abandoned_in_a_frame_is_closed_without_one() -> None:
    async with serving() as server:
        client, _ = await arrived(server)
        await client.raw(frame(b"whole") + frame(b"half")[:-2])
        client.socket.close()
        assert (await take(server, Received)).data == b"whole"
        await take(server, Closed)


async def test_with_the_client_library_at_the_other_end() -> None:
    async with serving(codec="cbor", handshake="required", version="7") as server:
        options = {"codec": "cbor", "version": "7", "tags": {"device": "alpha"}}
        async with FramedClient(server.address, **options) as client:
            await client.send({"n": [1, b"\x00", 2.5]})
            connection = (await take(server, Connected)).connection
            assert (connection.tags, (await take(server, Received)).data) == (
                {"device": "alpha"},
                {"n": [1, b"\x00", 2.5]},
            )
            assert server.broadcast({"to": "alpha"}, tags={"device": "alpha"}) == 1
            with trio.fail_after(PATIENCE):
                assert await anext(aiter(client)) == {"to": "alpha"}
        assert (await take(server, Closed)).connection is connection
