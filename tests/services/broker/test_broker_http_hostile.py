"""The broker's port and those who mean it harm in HTTP: each costs its own connection, and the others are served."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netd.hub.seams import Echo, HttpResponse
from netd.services.broker.config import BrokerHttp
from tests.services.broker.site import CLOSED, SWITCH, error_of, eventually, head, listening, serving


class Worker(Echo):
    """An application that says what it was asked."""

    def __init__(self):
        self.requests = []

    async def request(self, request):
        self.requests.append(request)
        return HttpResponse(200, [], request.target.encode("latin-1"))


async def rest(peer) -> bytes:
    with trio.fail_after(15):
        try:
            return await peer.rest()
        except trio.BrokenResourceError:  # reset, since it had not read all that was sent
            return b""


async def alive(house) -> None:
    """Somebody honest is served."""
    answer = await house.ask("GET", "/channels/open:a/presence")
    assert answer.status == 200


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        (b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        (b"Content-Length: 4, 5\r\n\r\nabcd", 400),
        (b"Content-Length: +4\r\n\r\nabcd", 400),
        (b"Content-Length: 4 \x00\r\n\r\nabcd", 400),
        (b"Content-Length : 4\r\n\r\nabcd", 400),
        (b"Content-Length: 4\n\r\nabcd", 400),
        (b"X: a\n\r\n", 400),
        (b"X: a\n\n", 400),
        (b"X: a\r\n b\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"X: a\r\n\tContent-Length: 4\r\n\r\n", 400),
        (b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
        (b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501),
        (b"Transfer-Encoding\x00: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"X: a\x00b\r\n\r\n", 400),
        (b"X: a\rb\r\n\r\n", 400),
        (b"Host: other\r\n\r\n", 400),
        (b"X Y: a\r\n\r\n", 400),
        (b": a\r\n\r\n", 400),
    ],
)
async def test_nothing_is_smuggled_behind_a_request_that_could_be_read_in_two_ways(request_, status):
    async with serving(hub=CLOSED) as house:
        worker = house.hub.application = Worker()
        peer = await house.client()
        await peer.send(b"POST /front HTTP/1.1\r\nHost: localhost\r\n" + request_ + SMUGGLED)
        answer = await rest(peer)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
        assert answer.count(b"HTTP/1.1 ") == 1
        assert worker.requests == []
        await alive(house)


@pytest.mark.parametrize(
    "chunks",
    [
        b'3;a="\r\n"\r\nabc\r\n0\r\n\r\n',
        b"3;a=\rb\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0;\r\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcX0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\r\nX: y\n\n",
        b"3\r\nabc\r\n0\r\nX: y\r\n\n",
        b"3\r\nabc\r\n0\r\nX: y\r\n z\r\n\r\n",
    ],
)
async def test_a_broken_chunk_does_not_become_a_request(chunks):
    async with serving() as house:
        worker = house.hub.application = Worker()
        peer = await house.client()
        await peer.send(head("POST", "/front", ["Transfer-Encoding: chunked"]) + chunks + SMUGGLED)
        await peer.half_close()
        answer = await rest(peer)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert worker.requests == []


async def test_chunk_extensions_and_trailers_are_passed_over():
    async with serving(hub=CLOSED) as house:
        peer = await house.client()
        await peer.send(head("POST", "/channels/open:a", ["Transfer-Encoding: chunked", "Content-Type: text/plain"]))
        await peer.send(b'3;x="y";' + b"z" * 500 + b"\r\nabc\r\n0\r\nContent-Length: 9\r\nHost: evil\r\n\r\n")
        assert (await peer.response("POST")).status == 201
        await peer.send(head("GET", "/channels/open:a/history"))
        assert b'"data":"abc"' in (await peer.response()).body


async def test_what_was_sent_behind_an_upgrade_that_is_refused_is_read_as_http():
    async with serving(hub=CLOSED) as house:
        worker = house.hub.application = Worker()
        peer = await house.client()
        await peer.send(head("GET", "/ws/none:a", SWITCH) + head("GET", "/next"))
        assert (await peer.response()).status == 403
        assert (await peer.response()).body == b"/next"
        assert [request.target for request in worker.requests] == ["/next"]
        assert house.hub.opened == 0


async def test_an_upgrade_with_a_body_is_no_upgrade():
    async with serving() as house:
        for more in ("Content-Length: 5", "Transfer-Encoding: chunked"):
            peer = await house.client()
            await peer.send(head("GET", "/ws", [*SWITCH, more]) + b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED)
            answer = await rest(peer)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1 ") == 1, "and the connection ends, since nobody read the body"
        assert house.hub.opened == 0


@pytest.mark.parametrize(
    "target", ["/../ws", "/a/../../etc/passwd", "/%2e%2e/x", "/a%2Fb", "//evil.example/x", "/.%00", "/a;b=c?d#"]
)
async def test_a_path_is_nobodys_but_the_applications_and_stays_as_it_is(target):
    async with serving() as house:
        worker = house.hub.application = Worker()
        assert (await house.ask("GET", target)).status == 200
        assert worker.requests[0].target == target


@pytest.mark.parametrize(
    "target", ["/channels/%2e%2e/history", "/ws/%2e%2e", "/ws/..", "/channels/..%2Fopen:a/history"]
)
async def test_dots_in_a_channels_name_lead_nowhere(target):
    async with serving(hub=CLOSED) as house:
        answer = await house.ask("GET", target, *SWITCH)
        assert (answer.status, error_of(answer)[0]) == (403, "denied"), "a channel of no namespace"


async def test_heads_that_are_too_large():
    async with serving(hub=CLOSED, http=BrokerHttp(max_head=4096, max_headers=20)) as house:
        for request in (
            head("GET", "/" + "a" * 5000),
            head("GET", "/channels/open:a/presence?" + "x=1&" * 2000),
            head("GET", "/", ["X: " + "y" * 5000]),
            head("GET", "/", [f"X-{n}: y" for n in range(30)]),
            b"GET / HTTP/1.1\r\nX: " + b"y" * 10_000,
        ):
            peer = await house.client()
            await peer.send(request)
            assert (await peer.response()).status == 431
        await alive(house)


async def test_who_dribbles_a_head_or_a_body_is_cut_off_and_holds_up_nobody():
    http = BrokerHttp(head_timeout=0.2, body_timeout=0.2, max_connections=8)
    async with serving(hub=CLOSED, http=http) as house:
        peers = []
        for number in range(8):
            peer = await house.client()
            peers.append(peer)
            whole = head("POST", "/channels/open:a", ["Content-Length: 100"]) if number % 2 else b"GET / HTT"
            await peer.send(whole)
        await alive(house)
        answers = [await rest(peer) for peer in peers]
        assert all(answer == b"" or answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        assert answers.count(b"") <= 1, "who made room for the honest one was not waited for"
        await eventually(lambda: house.exchange.places.total == 0)


async def test_half_handshakes_make_room_for_those_who_come():
    async with serving(hub=CLOSED, http=BrokerHttp(max_connections=4)) as house:
        slow = []
        for _ in range(12):
            peer = await house.client()
            await peer.send(head("GET", "/ws", SWITCH)[:-4])
            slow.append(peer)
        answer, _ = await house.socket("/ws")
        assert answer.status == 101
        await eventually(lambda: house.hub.visible == 1)


async def test_a_client_that_resets_in_mid_upgrade_leaves_nothing():
    async with serving(hub=CLOSED) as house:
        for cut in (10, 60, 200):
            peer = await house.client()
            await peer.send(head("GET", "/ws/open:a", SWITCH)[:cut])
            await peer.vanish()
        for _ in range(5):
            peer = await house.client()
            await peer.send(head("GET", "/ws/open:a", SWITCH) + b"\x81")
            await peer.vanish()
        await eventually(lambda: house.exchange.places.total == 0 and house.hub.visible == 0)
        await alive(house)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost@evil.example", "localhost:3000:80", "localhost/", "[::1", "localhost,evil"]
)
async def test_forged_hosts(host):
    async with serving(hub=CLOSED) as house:
        for answer in (
            await house.ask("POST", "/channels/open:a", host=host, body=b"x"),
            await house.upgrade("/ws", host=host),
            await house.ask("GET", "/channels/open:a/events", host=host),
        ):
            assert answer.status in (400, 421)
        assert house.hub.published == house.hub.opened == 0


@pytest.mark.parametrize(
    "origin",
    ["http://localhost.evil.example", "http://evil.example#localhost", "http://localhost@evil.example", "null", "file://",
     "http://localhost, http://evil.example", "http://[::ffff:127.0.0.1]", "javascript:alert(1)", " "],
)  # fmt: skip
async def test_forged_origins(origin):
    async with serving(hub=CLOSED) as house:
        for answer in (
            await house.ask("POST", "/channels/open:a", f"Origin: {origin}", body=b"x"),
            await house.upgrade("/ws", f"Origin: {origin}"),
        ):
            assert answer.status == 403
        assert house.hub.published == house.hub.opened == 0


async def test_an_address_that_is_forged_buys_no_budget():
    async with serving(listening(), hub=CLOSED, http_rate=0.001, http_burst=3) as house:
        statuses = []
        for number in range(6):
            answer = await house.ask("GET", "/channels/open:a/presence", f"X-Forwarded-For: 203.0.113.{number}")
            statuses.append(answer.status)
        assert statuses == [200] * 3 + [429] * 3


async def test_an_address_in_front_of_the_proxys_own_word_buys_no_budget():
    async with serving(listening(forwarded=["127.0.0.0/8"]), hub=CLOSED, http_rate=0.001, http_burst=3) as house:
        statuses = []
        for number in range(6):
            forged = f"X-Forwarded-For: 198.51.100.{number}, 203.0.113.9"
            statuses.append((await house.ask("GET", "/channels/open:a/presence", forged)).status)
        assert statuses == [200] * 3 + [429] * 3


WORDS = [
    *(b"GET ", b"POST ", b"/ws", b"/channels/open:a", b"/channels/", b"/history", b"%", b"%00", b"?token=", b"?"),
    *(b" HTTP/1.1\r\n", b"Host: localhost\r\n", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n"),
    *(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"Sec-WebSocket-Version: 13\r\n", b"Origin: null\r\n"),
    *(b'Forwarded: for="\r\n', b"Authorization: Bearer \r\n", b"Content-Length: 3\r\n", b"\r\n", b"abc"),
    *(b"\xff", b"\x00", b"\n"),
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=14).map(b"".join), min_size=8, max_size=8))
def test_garbage_is_answered_or_forgotten_and_others_are_served(garbage):
    async def test():
        async with serving(hub=CLOSED, listen={"forwarded": ["127.0.0.0/8"]}) as house:

            async def throw(bytes_):
                peer = await house.client()
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await peer.send(bytes_)
                    await peer.half_close()
                answer = await rest(peer)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
                assert b"HTTP/1.1 500" not in answer

            async with trio.open_nursery() as nursery:
                for bytes_ in garbage:
                    nursery.start_soon(throw, bytes_)
            await alive(house)

    trio.run(test)


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["", "text/plain", "application/json"]), st.binary(max_size=80))
def test_no_body_and_no_name_breaks_anything_inside(name, kind, body):
    async def test():
        async with serving(hub=CLOSED) as house:
            written = "".join(f"%{byte:02X}" for byte in b"open:" + name)
            answer = await house.ask("POST", f"/channels/{written}", f"Content-Type: {kind}", body=body)
            assert answer.status in (201, 400)
            if answer.status == 201:
                page = json.loads((await house.ask("GET", f"/channels/{written}/history")).body)
                assert len(page["messages"]) == 1

    trio.run(test)
