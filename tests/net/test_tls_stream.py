"""TLS as a Trio stream: half-closing, truncation, torn records, HTTPS with a real client, the way to the reactor."""

from __future__ import annotations

import http.client
import socket
import ssl
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.net.certificates import load
from netd.net.http import HttpLimits, serve_connection
from netd.net.tls import TlsLayer, TlsStream, handshake
from netd.section import Tls
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY
from tests.support.http import Peer, echo, request


@pytest.fixture(scope="module")
def server_context(tmp_path_factory) -> ssl.SSLContext:
    directory = tmp_path_factory.mktemp("tls")
    (directory / "cert").write_text(FIRST_CERTIFICATE)
    (directory / "key").write_text(FIRST_KEY)
    return load(Tls(certificate=directory / "cert", key=directory / "key"), service="broker")


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=FIRST_CERTIFICATE)


async def shaken(server_context) -> tuple[TlsStream, TlsStream]:
    """A client's stream and a server's."""
    ours, theirs = trio.testing.memory_stream_pair()
    made: list[TlsStream] = []

    async def serve() -> None:
        layer = TlsLayer(server_context)
        plain = await handshake(layer, theirs)
        made.append(TlsStream(layer, theirs, plain))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        layer = TlsLayer(client_context(), server_side=False, server_hostname="127.0.0.1")
        client = TlsStream(layer, ours, await handshake(layer, ours))
    return client, made[0]


async def all_of(stream) -> bytes:
    data = b""
    while more := await stream.receive_some():
        data += more
    return data


async def test_it_is_a_stream_that_can_be_half_closed(server_context):
    client, server = await shaken(server_context)
    await client.send_all(b"question")
    await client.send_eof()
    assert await all_of(server) == b"question"
    assert await server.receive_some() == b"", "and so it stays"
    await server.send_all(b"answer")
    await server.send_eof()
    await server.send_eof()
    assert await all_of(client) == b"answer"
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"more")
    for stream in (client, server):
        await stream.aclose()
        await stream.aclose()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=90_000), max_size=4), st.integers(1, 70_000))
def test_whatever_is_said_arrives_in_pieces_of_any_size(server_context, messages, size):
    async def test():
        client, server = await shaken(server_context)
        heard = b""

        async def say():
            for message in messages:
                await client.send_all(message)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            while data := await server.receive_some(size):
                assert len(data) <= size
                heard += data
        assert heard == b"".join(messages)

    trio.run(test)


async def test_what_was_deciphered_and_not_read_can_be_taken_along(server_context):
    client, server = await shaken(server_context)
    await client.send_all(b"0123456789")
    assert await server.receive_some(4) == b"0123"
    assert server.unread() == b"456789"
    assert server.unread() == b""
    await client.send_all(b"next")
    assert server.layer.receive(bytes(await server.transport.receive_some())) == b"next"


async def test_a_connection_that_is_cut_off_has_not_ended(server_context):
    client, server = await shaken(server_context)
    await client.send_all(b"all that mat")
    await client.transport.aclose()
    assert await server.receive_some() == b"all that mat"
    with pytest.raises(trio.BrokenResourceError, match="no close_notify"):
        await server.receive_some()


async def test_a_forged_record_is_answered_with_an_alert_and_ends_it(server_context):
    client, server = await shaken(server_context)
    await client.transport.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError, match="cannot go on with TLS"):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError, match="cannot go on with TLS"):
        await client.receive_some()


async def test_an_end_that_nobody_protected_does_not_count(server_context):
    """A close_notify in the clear, as whoever sits in between could send it."""
    client, server = await shaken(server_context)
    await client.transport.send_all(b"\x15\x03\x03\x00\x02\x01\x00")
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()


async def test_what_was_torn_is_not_gone_on_with(server_context, autojump_clock):
    client, server = await shaken(server_context)
    server.transport = trio.testing.lockstep_stream_pair()[0]
    with trio.move_on_after(1):
        await server.send_all(b"x" * 100)
    with pytest.raises(trio.BrokenResourceError, match="cut short"):
        await server.send_all(b"y")
    await client.aclose()


async def test_a_cancelled_close_closes(server_context):
    client, server = await shaken(server_context)
    await trio.aclose_forcefully(server)
    with pytest.raises(trio.BrokenResourceError):
        await all_of(client)


async def test_a_peer_that_takes_nothing_holds_up_a_close_for_a_second(server_context, autojump_clock):
    _, server = await shaken(server_context)
    server.transport = trio.testing.lockstep_stream_pair()[0]
    began = trio.current_time()
    await server.aclose()
    assert trio.current_time() - began <= 1.0


async def test_two_tasks_send_and_one_receives(server_context):
    client, server = await shaken(server_context)
    size, heard = 200_000, [b""]
    pump = server.transport.send_stream.send_all_hook

    async def slowly():
        await trio.testing.wait_all_tasks_blocked()
        await pump()

    server.transport.send_stream.send_all_hook = slowly

    async def hear():
        while len(heard[0]) < 2 * size:
            heard[0] += await client.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        nursery.start_soon(server.send_all, b"a" * size)
        nursery.start_soon(server.send_all, b"b" * size)
    assert (heard[0].count(b"a"), heard[0].count(b"b")) == (size, size)


# --- HTTPS ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def secure_door(server_context, app, hosts=None):
    """A front door behind TLS, one connection after the other."""
    listening = trio.socket.socket()
    await listening.bind(("127.0.0.1", 0))
    listening.listen()
    results = []

    async def serve_all():
        while True:
            accepted, _ = await listening.accept()
            stream = trio.SocketStream(accepted)
            layer = TlsLayer(server_context)
            plain = await handshake(layer, stream)
            results.append(await serve_connection(TlsStream(layer, stream, plain), app, HttpLimits(), trio.Event()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_all)
        yield listening.getsockname()[1], results
        nursery.cancel_scope.cancel()
    listening.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_of_the_standard_library_speaks_https(server_context, version):
    context = client_context()
    context.maximum_version = version
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await echo(scope, receive, send)

    def talk(port):
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        answers = []
        for number in range(3):
            connection.request("POST", f"/{number}", body=b"x" * 100_000 * number)
            answers.append(connection.getresponse().read())
        connection.close()
        return answers

    async with secure_door(server_context, app) as (port, _):
        answers = await trio.to_thread.run_sync(talk, port)
    assert [len(answer) for answer in answers] == [len(b"POST /0 |") + 100_000 * number for number in range(3)]
    assert {scope["scheme"] for scope in scopes} == {"https"}
    assert scopes[0]["client"][0] == scopes[0]["server"][0] == "127.0.0.1"


async def test_the_last_answer_ends_with_close_notify(server_context):
    def talk(port):
        raw = socket.create_connection(("127.0.0.1", port), timeout=10)
        # suppress_ragged_eofs=False: an end without close_notify is an error
        with client_context().wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secure:
            secure.sendall(request(headers=["Connection: close"]))
            data = b""
            while more := secure.recv(1000):
                data += more
        return data

    async with secure_door(server_context, echo) as (port, _):
        assert (await trio.to_thread.run_sync(talk, port)).endswith(b"GET / |")


async def test_a_layer_that_was_handed_over_goes_on_where_http_ended(server_context):
    """What the reactor gets: the layer, the socket below, and the plaintext behind the request."""
    handed = []

    async def app(scope, receive, send):
        taken = await scope["extensions"]["netd.handover"](101, [(b"upgrade", b"websocket")])
        handed.append(taken)

    client, server = await shaken(server_context)
    async with trio.open_nursery() as nursery:

        async def serve():
            assert await serve_connection(server, app, HttpLimits(), trio.Event()) is True

        nursery.start_soon(serve)
        await client.send_all(request("GET", "/ws", headers=["Connection: Upgrade", "Upgrade: websocket"]) + b"behind")
    [taken] = handed
    assert taken.stream is server
    assert taken.received == b"behind"
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await client.receive_some()
    await client.send_all(b"frame")
    assert server.layer.receive(bytes(await server.transport.receive_some())) == b"frame"
    server.layer.encrypt([b"reply"])
    await server.transport.send_all(server.layer.outgoing())
    assert await client.receive_some() == b"reply"


async def test_http_that_is_cut_off_under_tls_is_an_unfinished_request(server_context):
    client, server = await shaken(server_context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, server, echo, HttpLimits(), trio.Event())
        await client.send_all(request("POST", "/", headers=["Content-Length: 10"]) + b"half")
        await client.transport.send_eof()
        peer = Peer(client)
        assert (await peer.response("POST")).status == 400
        await client.aclose()
