"""What the broker answers in HTTP, and whom it lets in, asked over real sockets.

Over 600 lines, since it goes through the routes one after the other, with what all of them have in common.
"""

from __future__ import annotations

import json
import socket

import pytest
import trio

from netd.hub.config import HubConfig, Namespace
from netd.hub.seams import HttpResponse
from netd.services.broker.config import BrokerConfig
from netd.wire.upgrade import accept_key
from netd.wire.websocket import Decoder, Limits, Messages
from tests.services.broker.site import (
    CLOSED,
    KEY,
    SECRET,
    SWITCH,
    Worker,
    error_of,
    eventually,
    head,
    listening,
    serving,
    until,
)

JSON = "Content-Type: application/json"
TEXT = "Content-Type: text/plain; charset=utf-8"
BEARER = f"Authorization: Bearer {SECRET}"


async def frames_of(peer, count, rest=b""):
    """The payloads of the next messages of a WebSocket."""
    decoder, found = Decoder(Limits(), masked=False), []
    data = rest
    with trio.fail_after(10):
        while True:
            for event in decoder.receive(data):
                if isinstance(event, Messages):
                    found += event.payloads
            if len(found) >= count:
                return found
            data = await peer.stream.receive_some(65536)
            assert data, found


# --- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "data"),
    [
        ([TEXT], "grüß".encode(), {"data": "grüß"}),
        ([JSON], b'{"level": [1, null]}', {"data": {"level": [1, None]}}),
        ([JSON], b'"text"', {"data": "text"}),
        ([], b"\xff\x00", {"data64": "/wA="}),
        (["Content-Type: image/png"], b"png", {"data64": "cG5n"}),
        ([TEXT], b"", {"data": ""}),
    ],
)
async def test_a_body_is_published_as_what_it_says_it_is(headers, body, data):
    async with serving(hub=CLOSED) as house:
        answer = await house.ask("POST", "/channels/open:a", *headers, body=body)
        assert answer.status == 201
        told = json.loads(answer.body)
        assert (told["delivered"], told["offset"]) == (0, 1)
        history = json.loads((await house.ask("GET", "/channels/open:a/history")).body)
        assert history["epoch"] == told["epoch"]
        [message] = history["messages"]
        assert message == {"type": "message", "channel": "open:a", "epoch": told["epoch"], "offset": 1, **data}


async def test_a_compressed_body_is_not_taken_for_what_it_says():
    async with serving() as house:
        answer = await house.ask("POST", "/channels/public:a", "Content-Encoding: gzip", body=b"\x1f\x8b")
        assert (answer.status, error_of(answer)[0]) == (415, "unsupported")
        answer = await house.ask("POST", "/channels/public:a", "Content-Encoding: identity", body=b"x")
        assert (answer.status, house.hub.published) == (201, 1)


async def test_everybody_who_hears_the_channel_is_told():
    async with serving(hub=CLOSED) as house:
        _, plain = await house.socket("/ws/open:a?role=sub")
        stream = await house.client()
        await stream.send(head("GET", "/channels/open:a/events"))
        await until(stream, b"event: subscribed")
        await eventually(lambda: house.hub.channel(b"open:a").subscribers == 2)
        answer = await house.ask("POST", "/channels/open:a?priority=0&ephemeral=1", TEXT, body=b"hello")
        assert json.loads(answer.body) == {"delivered": 2}, "an ephemeral message has no place in a history"
        assert await frames_of(plain, 1) == [b"hello"]
        assert b'"data":"hello"' in await until(stream, b"event: message\ndata: {")


async def test_a_body_in_chunks_is_a_body():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        await peer.send(
            head("POST", "/channels/open:a", [TEXT, "Transfer-Encoding: chunked"]) + b"3\r\nabc\r\n0\r\n\r\n"
        )
        assert (await peer.response("POST")).status == 201


@pytest.mark.parametrize(
    ("target", "headers", "body", "status", "kind"),
    [
        ("/channels/open:a", [JSON], b"{", 400, "invalid"),
        ("/channels/open:a", [TEXT], b"\xff", 400, "invalid"),
        ("/channels/open:a", ["Content-Type: text/plain; charset=latin-1"], b"x", 415, "unsupported"),
        ("/channels/open:a", [TEXT, TEXT], b"x", 400, "invalid"),
        ("/channels/open:a", [TEXT], b"x" * 70_000, 413, "too-large"),
        ("/channels/open:a", [JSON], b'"' + b"x" * 70_000 + b'"', 413, "too-large"),
        ("/channels/open:a?priority=x", [TEXT], b"x", 400, "invalid"),
        ("/channels/", [TEXT], b"x", 400, "invalid"),
        ("/channels/some:a", [TEXT], b"x", 403, "denied"),
        ("/channels/none:a", [TEXT], b"x", 403, "denied"),
        ("/channels/nowhere:a", [TEXT], b"x", 403, "denied"),
        ("/channels/open:a/nothing", [TEXT], b"x", 404, "not-found"),
    ],
)
async def test_what_cannot_be_published_is_refused_by_name(target, headers, body, status, kind):
    async with serving(hub=CLOSED) as house:
        answer = await house.ask("POST", target, *headers, body=body)
        assert (answer.status, error_of(answer)[0]) == (status, kind)
        assert house.hub.published == 0


async def test_the_rule_that_refused_is_named():
    async with serving(hub=CLOSED) as house:
        refused = await house.ask("POST", "/channels/some:a", TEXT, body=b"x")
        assert error_of(refused)[1].endswith("namespace 'some' allows publish to tokens only (hub.namespace.1.publish)")
        refused = await house.ask("POST", "/channels/some:b", TEXT, BEARER, body=b"x")
        assert error_of(refused)[1].endswith("token 'alpha' does not permit it (hub.token.0.publish)")
        assert (await house.ask("POST", "/channels/some:a", TEXT, BEARER, body=b"x")).status == 201


async def test_a_body_that_may_not_be_sent_is_not_asked_for():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        expecting = ["Expect: 100-continue", "Content-Length: 10"]
        await peer.send(head("POST", "/channels/none:a", expecting))
        assert (await peer.response("POST")).status == 403
        peer = await house.client()
        await peer.send(head("POST", "/channels/open:a", ["Expect: 100-continue", "Content-Length: 70000"]))
        assert (await peer.response("POST")).status == 413


async def test_a_chunked_body_is_cut_off_at_its_bound():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        await peer.send(head("POST", "/channels/open:a", [TEXT, "Transfer-Encoding: chunked"]))
        await peer.send(b"11171\r\n" + b"x" * 0x11171 + b"\r\n")
        assert (await peer.response("POST")).status == 413


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_history_from_a_position_on():
    async with serving(hub=CLOSED) as house:
        for number in range(5):
            house.hub.publish(b"open:a", f"m{number}")
        epoch = house.hub.channel(b"open:a").epoch
        page = json.loads((await house.ask("GET", f"/channels/open:a/history?since_epoch={epoch}&since=3")).body)
        assert [message["data"] for message in page["messages"]] == ["m3", "m4"]
        assert (page["offset"], page["complete"]) == (5, True)
        page = json.loads((await house.ask("GET", "/channels/open:a/history?limit=2")).body)
        assert [message["data"] for message in page["messages"]] == ["m3", "m4"]
        page = json.loads((await house.ask("GET", "/channels/open:a/history?since_epoch=other&since=3")).body)
        assert page["complete"] is False
        assert (await house.ask("HEAD", "/channels/open:a/history")).status == 200
        assert (await house.ask("GET", "/channels/some:a/history")).status == 403


async def test_history_that_nobody_keeps():
    hub = HubConfig(namespace=[Namespace(name="bare", history="anyone", presence="anyone", track_presence=False)])
    async with serving(hub=hub) as house:
        answer = await house.ask("GET", "/channels/bare:a/history")
        assert (answer.status, error_of(answer)[0]) == (409, "unsupported")
        answer = await house.ask("GET", "/channels/bare:a/presence")
        assert (answer.status, error_of(answer)[0]) == (409, "unsupported")


async def test_a_long_history_is_told_in_parts():
    hub = HubConfig(namespace=[Namespace(name="big", history="anyone", history_size=8, max_message=1 << 20)])
    async with serving(hub=hub) as house:
        for number in range(4):
            house.hub.publish(b"big:a", str(number) * 400_000)
        page = json.loads((await house.ask("GET", "/channels/big:a/history")).body)
        assert [message["data"][0] for message in page["messages"]] == ["2", "3"], "the newest that fit"
        assert page["complete"] is False


async def test_presence():
    async with serving(hub=CLOSED) as house:
        assert json.loads((await house.ask("GET", "/channels/open:a/presence")).body) == {"clients": []}
        await house.socket("/ws/open:a")
        await eventually(lambda: house.hub.channel(b"open:a").subscribers)
        [client] = json.loads((await house.ask("GET", "/channels/open:a/presence")).body)["clients"]
        assert client["transport"] == "websocket"
        assert (await house.ask("GET", "/channels/some:a/presence")).status == 403


async def test_an_answer_that_the_backplane_owes_is_waited_for_and_not_for_ever():
    async with serving(hub=CLOSED, answer_timeout=0.05) as house:
        later = []
        house.hub.backplane.history = lambda channel, since, limit, answer: later.append(answer)
        answer = await house.ask("GET", "/channels/open:a/history")
        assert (answer.status, error_of(answer)[0]) == (504, "timeout")
        await house.live(answer_timeout=10.0)
        async with trio.open_nursery() as nursery:

            async def asks():
                answer = await house.ask("GET", "/channels/open:a/history")
                assert (answer.status, error_of(answer)[0]) == (503, "unavailable")

            nursery.start_soon(asks)
            await eventually(lambda: len(later) == 2)
            later[1](None)


# --- direct -----------------------------------------------------------------------------------------------------------


async def test_a_direct_message():
    async with serving() as house:
        _, peer = await house.socket("/ws", "Sec-WebSocket-Protocol: netd.json")
        await eventually(lambda: house.hub.visible)
        [session] = house.hub.present()
        answer = await house.ask("POST", f"/sessions/{session.id}", JSON, body=b"[1]")
        assert (answer.status, json.loads(answer.body)) == (202, {"delivered": 1})
        assert json.loads((await frames_of(peer, 1))[0]) == {"type": "direct", "data": [1]}
        answer = await house.ask("POST", "/sessions/name:nobody", JSON, body=b"[1]")
        assert (answer.status, error_of(answer)[0]) == (404, "not-found")
    async with serving(hub=CLOSED) as house:
        answer = await house.ask("POST", "/sessions/x", JSON, body=b"[1]")
        assert (answer.status, error_of(answer)[1][-12:]) == (403, "(hub.direct)")


# --- WebSockets -------------------------------------------------------------------------------------------------------


async def test_an_upgrade_is_answered_and_the_connection_is_a_session():
    async with serving() as house:
        answer, peer = await house.socket("/ws", "Sec-WebSocket-Protocol: other, netd.msgpack, netd.json")
        assert answer.status == 101
        assert answer.headers["sec-websocket-accept"] == accept_key(KEY.encode()).decode()
        assert answer.headers["sec-websocket-protocol"] == "netd.json"
        await eventually(lambda: house.hub.visible == 1)
        [session] = house.hub.present()
        assert session.transport == "websocket"
        await peer.vanish()
        await eventually(lambda: house.hub.visible == 0)


async def test_what_comes_right_behind_the_request_is_a_frame():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        masked = b"\x81\x85\x00\x00\x00\x00early"
        await peer.send(head("GET", "/ws/open:a?role=pub", SWITCH) + masked)
        await until(peer, b"101 Switching Protocols")
        await eventually(lambda: house.hub.channel(b"open:a").offset == 1)


async def test_the_format_follows_the_subprotocol():
    async with serving() as house:
        for name, opcode in (("netd.json", 0x81), ("netd.msgpack", 0x82)):
            _, peer = await house.socket("/ws", f"Sec-WebSocket-Protocol: {name}")
            await eventually(lambda: house.hub.visible)
            house.hub.broadcast("x")
            assert (await peer.stream.receive_some(100))[0] == opcode
            await peer.vanish()
            await eventually(lambda: not house.hub.visible)


async def test_a_browser_that_asked_for_a_subprotocol_gets_one_everywhere():
    async with serving(hub=CLOSED) as house:
        answer = await house.upgrade("/ws/some:a?role=pub", f"Sec-WebSocket-Protocol: netd.plain, netd.token.{SECRET}")
        assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "netd.plain")
        answer = await house.upgrade("/app", f"Sec-WebSocket-Protocol: netd.plain, netd.token.{SECRET}")
        assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "netd.plain")


@pytest.mark.parametrize("where", ["query", "header", "subprotocol", "base64"])
async def test_a_token_may_stand_in_several_places(where):
    target, headers = "/ws/some:a?role=pub", []
    if where == "query":
        target += f"&token={SECRET}"
    elif where == "header":
        headers = [BEARER]
    elif where == "subprotocol":
        headers = [f"Sec-WebSocket-Protocol: netd.token.{SECRET}"]
    else:
        headers = ["Sec-WebSocket-Protocol: netd.token64.YS1zZWNyZXQtb2Ytc29tZS1sZW5ndGg"]
    async with serving(hub=CLOSED) as house:
        answer, _ = await house.socket(target, *headers)
        assert answer.status == 101
        assert SECRET not in str(answer.headers)
        await eventually(lambda: house.hub.visible)
        [session] = house.hub.present()
        assert session.token == "alpha"


@pytest.mark.parametrize(
    ("target", "headers", "status", "says"),
    [
        ("/ws/some:a?role=sub", [], 403, "(hub.namespace.1.subscribe)"),
        ("/ws/none:a", [], 403, "(hub.namespace.2.publish)"),
        ("/ws/some:b?role=pub", [BEARER], 403, "(hub.token.0.publish)"),
        ("/app", [], 403, "(hub.application)"),
        ("/channels/some:a/events", [], 403, "(hub.namespace.1.subscribe)"),
        ("/ws", ["Authorization: Bearer wrong-token"], 401, "none of those configured"),
        ("/ws?token=wrong-token", [BEARER], 400, "different ones"),
        ("/ws/open:a?role=boss", [], 400, "there are pub, sub and both"),
        ("/ws/a/b", [], 404, "%2F"),
    ],
)
async def test_an_upgrade_that_may_not_be_is_refused_in_http(target, headers, status, says):
    async with serving(hub=CLOSED) as house:
        answer = await house.upgrade(target, *headers)
        assert answer.status == status
        assert says in error_of(answer)[1]
        assert house.hub.opened == 0


async def test_a_token_that_is_not_accepted_is_challenged():
    async with serving(hub=CLOSED) as house:
        for answer in (
            await house.ask("GET", "/channels/open:a/history?token=wrong"),
            await house.upgrade("/ws", "Authorization: Bearer wrong"),
        ):
            assert (answer.status, error_of(answer)[0]) == (401, "denied")
            assert answer.headers["www-authenticate"].startswith('Bearer realm="netd", error="invalid_token"')


async def test_what_is_no_handshake_is_told_what_would_be():
    async with serving() as house:
        answer = await house.ask("GET", "/ws")
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
        answer = await house.ask("GET", "/ws", *SWITCH[:3], "Sec-WebSocket-Version: 8")
        assert (answer.status, answer.headers["sec-websocket-version"]) == (426, "13")
        answer = await house.ask("GET", "/ws", *SWITCH[:2], SWITCH[3])
        assert (answer.status, error_of(answer)[0]) == (400, "invalid")
        answer = await house.ask("POST", "/ws", *SWITCH, body=b"")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, OPTIONS")


async def test_compression_is_agreed_on_where_it_is_configured():
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with serving() as house:
        assert "sec-websocket-extensions" not in (await house.upgrade("/ws", offer)).headers
    async with serving(deflate=True) as house:
        assert "permessage-deflate" in (await house.upgrade("/ws", offer)).headers["sec-websocket-extensions"]


# --- event streams ----------------------------------------------------------------------------------------------------


async def test_an_event_stream_recovers_what_was_missed():
    async with serving(hub=CLOSED) as house:
        for number in range(3):
            house.hub.publish(b"open:a", f"m{number}")
        epoch = house.hub.channel(b"open:a").epoch
        peer = await house.client()
        await peer.send(head("GET", "/channels/open:a/events", [f"Last-Event-ID: {epoch}:1"]))
        data = await until(peer, b'"data":"m2"')
        first, _, events = data.partition(b"\r\n\r\n")
        assert b"content-type: text/event-stream" in first
        assert b"connection: close" in first.lower()
        assert b"transfer-encoding" not in first.lower()
        assert b'"recovered":true' in events
        assert f"id: {epoch}:2\n".encode() in events
        [session] = house.hub.present()
        assert session.transport == "sse"


async def test_an_event_stream_of_several_channels():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        await peer.send(head("GET", "/channels/open:a/events?channel=open:b"))
        await eventually(lambda: house.hub.channel(b"open:b").subscribers)
        house.hub.publish(b"open:b", "b")
        house.hub.publish(b"open:a", "a")
        assert b'"data":"a"' in await until(peer, b'"data":"a"')
        answer = await house.ask("GET", "/channels/open:a/events?channel=some:b")
        assert answer.status == 403, "all of them, or none"


async def test_head_and_bodies_of_an_event_stream():
    async with serving(hub=CLOSED) as house:
        answer = await house.ask("HEAD", "/channels/open:a/events")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert house.hub.opened == 0
        answer = await house.ask("GET", "/channels/open:a/events", body=b"x")
        assert (answer.status, error_of(answer)[0]) == (400, "invalid")
        answer = await house.ask("GET", "/channels/open:a/events", "Last-Event-ID: rubbish")
        assert answer.status == 400


# --- hosts and pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/ws", "/channels/public:a/history", "/", "/netd.js", "/anything"])
async def test_a_host_that_is_not_ours_is_refused_everywhere(target):
    async with serving() as house:
        for host in ("evil.example", "localhost.evil.example:3000"):
            for answer in (await house.ask("GET", target, host=host), await house.upgrade(target, host=host)):
                assert (answer.status, error_of(answer)[0]) == (421, "denied")
                assert "broker.hosts" in error_of(answer)[1]
        assert (await house.ask("GET", "/healthz", host="evil.example")).status == 200
        await house.live(hosts=["*.example"])
        assert (await house.upgrade("/ws", host="evil.example")).status == 101


async def test_the_host_of_an_absolute_target_counts():
    async with serving() as house:
        answer = await house.ask("GET", "http://evil.example/channels/public:a/presence", host="localhost")
        assert answer.status == 421
        answer = await house.ask("GET", "http://localhost/channels/public:a/presence", host="evil.example")
        assert answer.status == 200
        assert (await house.ask("GET", "/", host="two hosts")).status == 400
        peer = await house.client()
        await peer.send(b"GET http://evil.example/channels/public:a/presence HTTP/1.0\r\n\r\n")
        assert (await peer.response()).status == 421, "also where there is no Host besides"


async def test_a_port_that_the_scheme_has_anyway_need_not_be_said():
    proxied = ["X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https"]
    async with serving(listening(forwarded=["127.0.0.0/8"]), hosts=["chat.example:443"]) as house:
        for host in ("chat.example", "chat.example:443"):
            assert (await house.ask("GET", "/netd.js", *proxied, host=host)).status == 200, host
        assert (await house.ask("GET", "/netd.js", *proxied, host="chat.example:80")).status == 421
        assert (await house.ask("GET", "/netd.js", host="chat.example")).status == 421, "which is port 80"


async def test_a_page_of_another_origin_is_refused_everywhere():
    async with serving() as house:
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            for answer in (
                await house.upgrade("/ws", f"Origin: {origin}"),
                await house.ask("POST", "/channels/public:a", TEXT, f"Origin: {origin}", body=b"x"),
                await house.ask("GET", "/channels/public:a/events", f"Origin: {origin}"),
                await house.ask("GET", "/anything", f"Origin: {origin}"),
                await house.ask(
                    "OPTIONS", "/channels/public:a", f"Origin: {origin}", "Access-Control-Request-Method: POST"
                ),
            ):
                assert (answer.status, error_of(answer)[0]) == (403, "denied")
                assert "access-control-allow-origin" not in answer.headers
                assert "another origin than http://localhost:80 (broker.origins" in error_of(answer)[1]
        assert (await house.ask("GET", "/", "Origin: a", "Origin: b")).status == 400
        assert house.hub.opened == house.hub.published == 0
        port = house.port()
        answer = await house.upgrade("/ws", f"Origin: http://localhost:{port}", host=f"localhost:{port}")
        assert answer.status == 101, "its own origin"


async def test_a_page_that_is_welcome_may_read_the_answers():
    page = "Origin: https://page.example"
    async with serving(hub=CLOSED, origins=["https://page.example"]) as house:
        for answer in (
            await house.ask("POST", "/channels/open:a", TEXT, page, body=b"x"),
            await house.ask("GET", "/channels/none:a/history", page),
            await house.ask("GET", "/netd.js", page),
            await house.ask("GET", "/nothing", page),
            await house.ask("HEAD", "/channels/open:a/events", page),
        ):
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
            assert answer.headers["vary"] == "Origin"
        peer = await house.client()
        await peer.send(head("GET", "/channels/open:a/events", [page]))
        assert b"access-control-allow-origin: https://page.example" in await until(peer, b"\r\n\r\n")
        answer = await house.ask("GET", "/channels/open:a/history")
        assert (answer.headers["vary"], answer.headers.get("access-control-allow-origin")) == ("Origin", None)


async def test_a_preflight():
    asks = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type"]
    async with serving(hub=CLOSED, origins=["*"], cors_max_age=77) as house:
        answer = await house.ask("OPTIONS", "/channels/open:a", "Origin: https://page.example", *asks)
        assert (answer.status, answer.body) == (204, b"")
        told = answer.headers
        assert told["access-control-allow-origin"] == "*"
        assert told["access-control-allow-methods"] == "POST, OPTIONS"
        assert told["access-control-allow-headers"] == "authorization, content-type"
        assert told["access-control-max-age"] == "77"
        answer = await house.ask("OPTIONS", "/workers/own", "Origin: https://page.example", *asks)
        assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, "POST")
        answer = await house.ask("OPTIONS", "/channels/open:a")
        assert (answer.status, answer.headers["allow"]) == (204, "POST, OPTIONS")
        assert (await house.ask("OPTIONS", "/workers/own")).status == 503, "that is the workers' to answer"


# --- methods, files, health -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("GET", "/channels/open:a", "POST, OPTIONS"),
        ("PUT", "/channels/open:a", "POST, OPTIONS"),
        ("POST", "/channels/open:a/history", "GET, HEAD, OPTIONS"),
        ("DELETE", "/channels/open:a/presence", "GET, HEAD, OPTIONS"),
        ("POST", "/channels/open:a/events", "GET, HEAD, OPTIONS"),
        ("GET", "/sessions/x", "POST, OPTIONS"),
        ("HEAD", "/ws", "GET, OPTIONS"),
        ("POST", "/netd.js", "GET, HEAD, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_there(method, target, allow):
    async with serving(hub=CLOSED) as house:
        answer = await house.ask(method, target)
        assert (answer.status, answer.headers["allow"]) == (405, allow)


async def test_the_client_for_browsers():
    async with serving() as house:
        for name, kind in (("netd.js", "text/javascript"), ("netd.d.ts", "application/typescript")):
            answer = await house.ask("GET", f"/{name}")
            assert (answer.status, answer.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
            assert len(answer.body) > 1000
            tag = answer.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = await house.ask("GET", f"/{name}", f"If-None-Match: {known}")
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
            assert (await house.ask("GET", f"/{name}", 'If-None-Match: "other"')).status == 200
            first = await house.ask("HEAD", f"/{name}")
            assert first.headers["content-length"] == str(len(answer.body))
        await house.live(client=False)
        assert (await house.ask("GET", "/netd.js")).status == 404


async def test_health():
    async with serving() as house:
        answer = await house.ask("GET", "/healthz")
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})
        assert (await house.ask("HEAD", "/healthz")).status == 200


async def test_nobody_keeps_an_answer_nor_takes_it_for_a_script():
    async with serving(hub=CLOSED) as house:
        asked = [
            ("POST", "/channels/some:a", [BEARER, TEXT], b"x", 201),
            ("GET", "/channels/open:a/history", [BEARER], None, 200),
            ("GET", f"/channels/open:a/presence?token={SECRET}", [], None, 200),
            ("GET", f"/channels/none:a/history?token={SECRET}", [], None, 403),
            ("GET", "/channels/some:a/history?token=nobodys", [], None, 401),
            ("GET", "/healthz", [], None, 200),
        ]
        for method, target, headers, body, status in asked:
            answer = await house.ask(method, target, *headers, body=body)
            assert answer.status == status, target
            assert answer.headers["cache-control"] == "no-store", target
            assert answer.headers["x-content-type-options"] == "nosniff", target
        answer = await house.ask("HEAD", "/channels/some:a/events", BEARER)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")


async def test_answers_are_counted_by_route_and_status():
    async with serving(hub=CLOSED) as house:
        await house.ask("GET", "/healthz", host="evil.example")
        await house.ask("GET", "/netd.js", host="evil.example")
        await house.ask("GET", "/channels/a/b")
        await house.ask("POST", "/channels/open:a", TEXT, body=b"x")
        await house.ask("POST", "/channels/none:a", TEXT, body=b"x")
        await house.ask("GET", "/channels/open:a")
        await house.ask("GET", "/work")
        for _ in range(3):  # the second is one that recurs
            await house.upgrade("/ws")
        metric = house.metrics.registry.collect()
        found = {
            (sample.labels["route"], int(sample.labels["status"])): sample.value
            for family in metric
            for sample in family.samples
            if sample.name == "netd_broker_requests_total"
        }
        assert found == {
            ("health", 200): 1,
            ("none", 421): 1,
            ("none", 404): 1,
            ("publish", 201): 1,
            ("publish", 403): 1,
            ("publish", 405): 1,
            ("workers", 503): 1,
            ("operations", 101): 3,
        }


# --- how much -----------------------------------------------------------------------------------------------------


async def test_one_address_has_a_budget_of_requests():
    async with serving(hub=CLOSED, http_rate=0.001, http_burst=3) as house:
        answers = [await house.ask("GET", "/channels/open:a/history") for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert error_of(answers[3])[0] == "rate"
        assert int(answers[3].headers["retry-after"]) > 100
        assert (await house.upgrade("/ws")).status == 429
        assert (await house.ask("GET", "/healthz")).status == 200
        await house.live(http_rate=0.0)
        assert (await house.upgrade("/ws")).status == 101


async def test_a_token_has_a_budget_wherever_it_is_shown():
    two = [listening(), listening(forwarded=["127.0.0.0/8"])]
    async with serving(*two, hub=CLOSED, http_rate=0.001, http_burst=2) as house:
        answers = [
            await house.ask("GET", "/channels/open:a/history", BEARER, f"X-Forwarded-For: 203.0.113.{n}", number=1)
            for n in range(3)
        ]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert "one token" in error_of(answers[2])[1]
        assert (await house.ask("GET", "/channels/open:a/history")).status == 200


async def test_a_namespaces_rate_holds_for_who_publishes_over_http():
    hub = HubConfig(namespace=[Namespace(name="slow", publish="anyone", rate=0.001, burst=2)])
    async with serving(hub=hub) as house:
        answers = [await house.ask("POST", "/channels/slow:a", body=b"x") for _ in range(3)]
        assert [answer.status for answer in answers] == [201, 201, 429]
        assert "(hub.namespace.0.rate)" in error_of(answers[2])[1]


# --- over Unix sockets ------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_asked_like_any(tmp_path):
    address = f"unix:{tmp_path / 's'}"
    async with serving(listening(address=address, forwarded=["10.0.0.0/8"])) as house:
        assert (await house.ask("GET", "/channels/public:a/presence")).status == 200
        answer, _ = await house.socket("/ws", "X-Forwarded-For: 203.0.113.9")
        assert answer.status == 101
        await eventually(lambda: house.hub.visible)
        [session] = house.hub.present()
        assert session.address == "203.0.113.9"
        assert session.link.socket.family == socket.AF_UNIX


def test_the_config_has_what_the_routes_need():
    config = BrokerConfig()
    assert (config.application, config.client, config.hosts, config.origins) == ("/app", True, [], [])


async def test_a_websocket_elsewhere_is_nobodys():
    async with serving() as house:
        worker = house.hub.application = Worker(HttpResponse(200))
        answer = await house.upgrade("/socket.io/")
        assert (answer.status, error_of(answer)[0]) == (404, "not-found")
        assert "/ws, /ws/{channel} and /app" in error_of(answer)[1]
        assert worker.requests == []


async def test_a_broker_that_stops_says_so_to_those_who_are_here_still():
    async with serving(hub=CLOSED) as house:
        worker = house.hub.application = Worker(HttpResponse(200, [], b"done"))
        worker.waiting = trio.Event()
        draining = house.exchange.draining
        busy = await house.client()
        await busy.send(head("GET", "/") + head("GET", "/healthz") + head("GET", "/ws", SWITCH))
        await eventually(lambda: worker.requests)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.settle, None)
            await eventually(draining.is_set)
            worker.waiting.set()
            answer = await busy.response()
            assert (answer.body, answer.headers["connection"]) == (b"done", "close")
            assert await busy.rest() == b"", "and nothing more is answered"


async def test_health_and_upgrades_while_it_drains():
    async with serving(hub=CLOSED) as house:
        site, visits = house.exchange.site, []

        async def late(scope, receive, send):
            scope["extensions"]["netd.draining"] = drained
            visits.append(scope["path"])
            await site(scope, receive, send)

        drained = trio.Event()
        drained.set()
        house.exchange.site = late
        answer = await house.ask("GET", "/healthz")
        assert (answer.status, json.loads(answer.body), answer.headers["retry-after"]) == (
            503,
            {"status": "draining"},
            "1",
        )
        for target, headers in (("/ws", SWITCH), ("/channels/open:a/events", ())):
            answer = await house.ask("GET", target, *headers)
            assert (answer.status, error_of(answer)[0]) == (503, "too-busy")
        assert visits
