"""The front door with peers that behave: what ASGI applications and HTTP clients may rely on."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

import pytest
import trio
import trio.testing

from netd.net.http import HttpLimits, Peer
from tests.support.http import Peer as Client
from tests.support.http import SocketListener, conversation, echo, front_door, request, say


async def test_answers_a_request_with_what_the_application_says():
    async with conversation(echo) as peer:
        await peer.send(request("GET", "/a%20b?c=d"))
        response = await peer.response()
    assert (response.status, response.body) == (200, b"GET /a b c=d|")
    assert response.headers["content-length"] == str(len(response.body))
    assert response.headers["date"].endswith("GMT")


async def test_keeps_the_connection_for_the_next_request():
    async with conversation(echo) as peer:
        for number in range(3):
            await peer.send(request("POST", f"/{number}", b"x" * number))
            response = await peer.response("POST")
            assert response.body == f"POST /{number} |".encode() + b"x" * number


async def test_answers_pipelined_requests_in_order():
    async with conversation(echo) as peer:
        await peer.send(request("POST", "/1", b"one") + request("GET", "/2") + request("POST", "/3", b"three"))
        bodies = [(await peer.response()).body for _ in range(3)]
    assert bodies == [b"POST /1 |one", b"GET /2 |", b"POST /3 |three"]


async def test_takes_a_chunked_body_with_extensions_and_trailers():
    async with conversation(echo) as peer:
        await peer.send(request("POST", "/", headers=["Transfer-Encoding: chunked"]))
        await peer.send(b"3;name=value\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n")
        assert (await peer.response("POST")).body == b"POST / |abcd"
        await peer.send(request("GET", "/next"))
        assert (await peer.response()).body == b"GET /next |"


async def test_invites_the_body_of_a_client_that_waits_for_it():
    async with conversation(echo) as peer:
        await peer.send(request("POST", "/", headers=["Content-Length: 2", "Expect: 100-continue"]))
        assert (await peer.stream.receive_some(100)).startswith(b"HTTP/1.1 100 ")
        await peer.send(b"ok")
        assert (await peer.response("POST")).body == b"POST / |ok"


async def test_does_not_invite_a_body_that_the_application_does_not_want():
    async def deny(scope, receive, send):
        await say(send, b"no", 403)

    async with conversation(deny) as peer:
        await peer.send(request("POST", "/", headers=["Content-Length: 2", "Expect: 100-continue"]))
        data = await peer.rest()
    assert data.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in data.lower()


async def test_answers_head_without_a_body_but_with_its_length():
    async with conversation(echo) as peer:
        await peer.send(request("HEAD", "/") + request("GET", "/"))
        head = await peer.response("HEAD")
        assert (head.body, head.headers["content-length"]) == (b"", str(len(b"HEAD / |")))
        assert (await peer.response()).body == b"GET / |"


@pytest.mark.parametrize("status", [204, 304])
async def test_sends_no_body_where_there_can_be_none(status):
    async def app(scope, receive, send):
        await say(send, b"stray", status)

    async with conversation(app) as peer:
        await peer.send(request() + request())
        first, second = await peer.response(), await peer.response()
    assert (first.status, first.body, second.status) == (status, b"", status)


async def test_streams_a_response_of_unknown_length_in_chunks():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one ", b"", b"two ", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async with conversation(app) as peer:
        await peer.send(request())
        response = await peer.response()
        assert (response.body, response.headers["transfer-encoding"]) == (b"one two three", "chunked")
        await peer.send(request())
        assert (await peer.response()).status == 200


async def test_a_stream_reaches_the_client_as_it_is_sent():
    go_on = trio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async with conversation(app) as peer:
        await peer.send(request())
        data = b""
        while b"first" not in data:
            data += await peer.stream.receive_some(1000)
        go_on.set()
        while not data.endswith(b"0\r\n\r\n"):
            data += await peer.stream.receive_some(1000)
    assert b"last" in data


async def test_speaks_http_1_0():
    async with conversation(echo) as peer:
        await peer.send(b"GET /old HTTP/1.0\r\n\r\n")
        data = await peer.rest()
    assert data.endswith(b"GET /old |")
    assert b"connection: close" in data.lower()


async def test_closes_when_the_client_asks_for_it():
    async with conversation(echo) as peer:
        await peer.send(request(headers=["Connection: close"]))
        assert (await peer.rest()).endswith(b"GET / |")


async def test_closes_after_the_last_request_it_allows_and_says_so():
    async with conversation(echo, HttpLimits(max_requests=2)) as peer:
        await peer.send(request() * 3)
        assert "connection" not in (await peer.response()).headers
        assert (await peer.response()).headers["connection"] == "close"
        assert await peer.rest() == b""


async def test_takes_an_absolute_target():
    async with conversation(echo) as peer:
        await peer.send(request("GET", "http://elsewhere/p?q=1") + request("GET", "http://elsewhere"))
        assert (await peer.response()).body == b"GET /p q=1|"
        assert (await peer.response()).body == b"GET / |"


async def test_does_not_let_the_application_speak_for_the_connection():
    async def app(scope, receive, send):
        await say(send, b"x", headers=[(b"Connection", b"upgrade"), (b"Transfer-Encoding", b"gzip"), (b"x-own", b"1")])

    async with conversation(app) as peer:
        await peer.send(request() * 2)
        headers = (await peer.response()).headers
        assert "connection" not in headers
        assert "transfer-encoding" not in headers
        assert headers["x-own"] == "1"
        assert (await peer.response()).status == 200


async def test_ignores_an_upgrade_and_goes_on_in_http():
    async with conversation(echo) as peer:
        await peer.send(request(headers=["Connection: Upgrade", "Upgrade: websocket"]) + request("GET", "/2"))
        assert (await peer.response()).status == 200
        assert (await peer.response()).body == b"GET /2 |"


async def test_a_body_nobody_read_ends_the_connection_after_the_answer():
    async def app(scope, receive, send):
        await say(send, b"did not look")

    async with conversation(app) as peer:
        await peer.send(request("POST", "/", b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"))
        response = await peer.response("POST")
        assert response.headers["connection"] == "close"
        assert await peer.rest() == b""


async def test_an_empty_body_nobody_read_ends_nothing():
    async def app(scope, receive, send):
        await say(send, b"x")

    async with conversation(app) as peer:
        for _ in range(2):
            await peer.send(request("POST", "/", b""))
            assert "connection" not in (await peer.response("POST")).headers


async def test_tells_a_waiting_application_that_the_client_hung_up():
    heard = trio.Event()

    async def app(scope, receive, send):
        await receive()
        assert (await receive()) == {"type": "http.disconnect"}
        heard.set()

    async with conversation(app) as peer:
        await peer.send(request())
        await peer.vanish()
        with trio.fail_after(5):
            await heard.wait()


async def test_holds_back_what_is_sent_ahead_while_the_application_watches_the_client():
    async def app(scope, receive, send):
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await say(send, scope["path"].encode())
            nursery.cancel_scope.cancel()

    async with conversation(app) as peer:
        await peer.send(request("GET", "/1"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(request("GET", "/2"))
        assert (await peer.response()).body == b"/1"
        assert (await peer.response()).body == b"/2"


async def test_answers_a_client_that_has_shut_down_its_sending_side():
    """As `printf ... | nc -N` does."""
    async with conversation(echo) as peer:
        await peer.send(request("POST", "/", b"x"))
        await peer.half_close()
        assert (await peer.response("POST")).body == b"POST / |x"
        assert await peer.rest() == b""


async def test_limits_may_change_while_it_serves():
    limits = [HttpLimits(max_headers=4), HttpLimits()]
    many = request(headers=[f"x-{n}: 1" for n in range(10)])
    async with front_door(echo, limits=partial(limits.pop, 0)) as (listener, _, _):
        first, second = listener.connect(), listener.connect()
        await first.send(many)
        assert (await first.response()).status == 431
        await second.send(many)
        assert (await second.response()).status == 200
        limits.append(HttpLimits())


# --- what the application is told of the connection -----------------------------------------------------------------


async def test_tells_the_credentials_of_a_unix_peer(tmp_path):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await say(send, b"")

    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(tmp_path / "s"))
        listening.listen()
        async with front_door(app, SocketListener(listening)):
            client = Client(await trio.open_unix_socket(str(tmp_path / "s")))
            await client.send(request())
            assert (await client.response()).status == 200
            await client.stream.aclose()
    [scope] = scopes
    assert scope["extensions"]["netd.peer"] == Peer(os.getpid(), os.geteuid(), os.getegid())
    assert (scope["client"], scope["server"]) == (None, None)


async def test_tells_the_addresses_of_a_tcp_peer_and_no_credentials():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await say(send, b"")

    with trio.socket.socket() as listening:
        await listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        async with front_door(app, SocketListener(listening)):
            client = Client(await trio.open_tcp_stream("127.0.0.1", port))
            own = client.stream.socket.getsockname()
            await client.send(request())
            assert (await client.response()).status == 200
            await client.stream.aclose()
    [scope] = scopes
    assert (scope["client"], scope["server"]) == (own, ("127.0.0.1", port))
    assert scope["extensions"]["netd.peer"] is None


async def test_importing_the_front_door_imports_no_web_framework():
    code = "import sys, netd.net.http; print([m for m in ('fastapi', 'starlette', 'anyio') if m in sys.modules])"
    process = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert process.stdout == b"[]\n"
