"""What workers are asked over HTTP, and what becomes of their answers; and clients behind proxies."""

from __future__ import annotations

import pytest
import trio

from netd.errors import ApplicationError
from netd.hub.seams import Echo, HttpResponse
from netd.services.broker.config import BrokerHttp
from tests.services.broker.site import CLOSED, Worker, error_of, eventually, head, listening, serving, until


async def test_without_workers_there_is_nobody_to_answer():
    async with serving() as house:
        answer = await house.ask("GET", "/")
        assert (answer.status, error_of(answer)) == (503, ("application", "cannot answer: no worker is connected"))


async def test_a_request_is_passed_on_whole_and_as_it_came():
    async with serving(hub=CLOSED) as house:
        worker = house.hub.application = Worker(HttpResponse(201, [(b"Content-Type", b"text/html")], b"<p>"))
        answer = await house.ask(
            "PUT",
            "/a/../b%2Fc?x=1&token=mine&%zz",
            "X-Own: a",
            "x-own: b",
            "Authorization: Bearer theirs",
            body=b"body",
        )
        assert (answer.status, answer.body, answer.headers["content-type"]) == (201, b"<p>", "text/html")
        assert answer.headers["content-length"] == "3"
        [request] = worker.requests
        assert (request.method, request.target, request.body) == ("PUT", "/a/../b%2Fc?x=1&token=mine&%zz", b"body")
        assert [value for name, value in request.headers if name == b"x-own"] == [b"a", b"b"]
        assert (b"authorization", b"Bearer theirs") in request.headers, "it is the application's"
        assert request.client.startswith("127.0.0.1:")
        assert (request.scheme, request.http_version) == ("http", "1.1")


async def test_head_of_the_application():
    async with serving() as house:
        house.hub.application = Worker(HttpResponse(200, [(b"content-length", b"77")]))
        answer = await house.ask("HEAD", "/page")
        assert answer.headers["content-length"] == "77"
        assert (await house.ask("GET", "/page")).headers["content-length"] == "0", "ours, where there is a body"


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_an_application_that_does_not_answer(status):
    async with serving() as house:
        house.hub.application = Worker(error=ApplicationError(status, "cannot answer: it went down over it"))
        answer = await house.ask("GET", "/")
        assert (answer.status, error_of(answer)[0]) == (status, "application")


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200, [(b"x", b"1\r\nset-cookie: a=b")]),
        HttpResponse(200, [(b"x\r\ny", b"1")]),
        HttpResponse(200, [(b"x", b"1\n")]),
        HttpResponse(200, [(b"x", b"\x00")]),
        HttpResponse(200, [(b"", b"1")]),
        HttpResponse(200, [(b"a b", b"1")]),
        HttpResponse(200, [(b"a:", b"1")]),
        HttpResponse(200, [(b"a", b"b")] * 300),
        HttpResponse(200, [(b"a", b"b" * 70_000)]),
        HttpResponse(101),
        HttpResponse(99),
        HttpResponse(600),
        HttpResponse("200"),
    ],
)
async def test_an_answer_that_is_none_is_not_passed_on(response):
    async with serving() as house:
        house.hub.application = Worker(response)
        answer = await house.ask("GET", "/")
        assert (answer.status, error_of(answer)[0]) == (502, "application")
        assert "set-cookie" not in answer.headers


async def test_what_is_of_one_connection_only_is_dropped():
    headers = [
        (b"Connection", b"X-Hop, close"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"999"),
        (b"Upgrade", b"h2c"),
        (b"TE", b"trailers"),
        (b"Trailer", b"X-Sum"),
        (b"Proxy-Connection", b"close"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Kept", b"\xfcml\xe4ut"),
    ]
    async with serving() as house:
        house.hub.application = Worker(HttpResponse(200, headers, b"abc"))
        peer = await house.client()
        for _ in range(2):
            await peer.send(head("GET", "/"))
            data = await until(peer, b"\r\n\r\nabc")
            assert data.lower().count(b"set-cookie") == 2
            assert b"X-Kept: \xfcml\xe4ut" in data or b"x-kept: \xfcml\xe4ut" in data
            for name in (
                b"x-hop",
                b"keep-alive",
                b"transfer-encoding",
                b"upgrade",
                b"\nte:",
                b"999",
                b"trail",
                b"proxy",
            ):
                assert name not in data.lower()


async def test_one_answer_says_which_pages_may_read_it():
    headers = [(b"Access-Control-Allow-Origin", b"*"), (b"Access-Control-Allow-Credentials", b"true")]
    async with serving(origins=["https://page.example"]) as house:
        house.hub.application = Worker(HttpResponse(200, headers, b"abc"))
        answer = await house.ask("GET", "/", "Origin: https://page.example")
        assert answer.headers["access-control-allow-origin"] == "https://page.example"


async def test_a_client_that_goes_takes_its_request_with_it():
    async with serving() as house:
        worker = house.hub.application = Worker(HttpResponse(200))
        worker.waiting = trio.Event()
        peer = await house.client()
        await peer.send(head("GET", "/"))
        await eventually(lambda: worker.requests)
        await peer.vanish()
        await eventually(lambda: worker.cancelled == 1)
        await eventually(lambda: house.exchange.site.requests.waiting.total == 0)


async def test_so_many_requests_wait_and_no_more():
    two = [listening(), listening(forwarded=["127.0.0.0/8"])]
    async with serving(*two, requests_per_address=2, max_requests_waiting=3) as house:
        worker = house.hub.application = Worker(HttpResponse(200, [], b"late"))
        worker.waiting = trio.Event()
        peers = []
        for address in ("203.0.113.1", "203.0.113.1", "203.0.113.2"):
            peers.append(await house.client(1))
            await peers[-1].send(head("GET", "/", [f"X-Forwarded-For: {address}"]))
        await eventually(lambda: len(worker.requests) == 3)
        answer = await house.ask("GET", "/", "X-Forwarded-For: 203.0.113.1", number=1)
        assert (answer.status, error_of(answer)[0]) in ((429, "rate"), (503, "too-busy"))
        answer = await house.ask("GET", "/", "X-Forwarded-For: 203.0.113.3", number=1)
        assert (answer.status, error_of(answer)[0], answer.headers["retry-after"]) == (503, "too-busy", "1")
        worker.waiting.set()
        assert [(await peer.response()).body for peer in peers] == [b"late"] * 3


async def test_a_body_for_the_application_is_bounded():
    async with serving(http=BrokerHttp(max_body=1000)) as house:
        worker = house.hub.application = Worker(HttpResponse(200))
        assert (await house.ask("POST", "/", body=b"x" * 1000)).status == 200
        assert (await house.ask("POST", "/", body=b"x" * 1001)).status == 413
        peer = await house.client()
        await peer.send(head("POST", "/", ["Transfer-Encoding: chunked"]) + b"3e9\r\n" + b"x" * 1001 + b"\r\n")
        assert (await peer.response("POST")).status == 413
        assert len(worker.requests) == 1


async def test_an_application_that_breaks_is_an_error_inside(capfd):
    async with serving() as house:
        house.hub.application = Worker(error=ValueError("broken"))
        answer = await house.ask("GET", "/")
        assert (answer.status, error_of(answer)[0]) == (500, "internal")


# --- behind a proxy ---------------------------------------------------------------------------------------------------


async def test_who_the_client_is_counts_from_trusted_proxies_only():
    two = [listening(), listening(forwarded=["127.0.0.0/8"])]
    forged = "X-Forwarded-For: 203.0.113.9"
    async with serving(*two) as house:
        await house.socket("/ws", forged, number=0)
        await house.socket("/ws", "X-Forwarded-For: 1.1.1.1, 203.0.113.9", number=1)
        await eventually(lambda: house.hub.visible == 2)
        assert [session.address.rpartition(":")[0] or session.address for session in house.hub.present()] == [
            "127.0.0.1",
            "203.0.113.9",
        ]
        answer = await house.ask("GET", "/healthz", forged, "Forwarded: for=203.0.113.10", number=1)
        assert answer.status == 200
        answer = await house.ask("GET", "/", forged, "Forwarded: for=203.0.113.10", number=1)
        assert (answer.status, error_of(answer)[0]) == (400, "invalid")


async def test_limits_are_those_of_the_client_that_a_proxy_names():
    async with serving(listening(forwarded=["127.0.0.0/8"]), connections_per_address=2) as house:
        for _ in range(2):
            assert (await house.socket("/ws", "X-Forwarded-For: 203.0.113.9"))[0].status == 101
        answer = await house.upgrade("/ws", "X-Forwarded-For: 203.0.113.9")
        assert (answer.status, error_of(answer)[0]) == (429, "rate")
        assert (await house.socket("/ws", "X-Forwarded-For: 203.0.113.10"))[0].status == 101


async def test_one_connection_of_a_proxy_has_many_clients():
    seen = []

    class Who(Echo):
        async def request(self, request):
            seen.append(request.client)
            return HttpResponse(body=b"")

    async with serving(listening(forwarded=["127.0.0.0/8"])) as house:
        house.hub.application = Who()
        peer = await house.client()
        for address in ("203.0.113.9", "203.0.113.10", None):
            await peer.send(head("GET", "/", [f"X-Forwarded-For: {address}"] if address else []))
            assert (await peer.response()).status == 200
        assert seen[:2] == ["203.0.113.9", "203.0.113.10"]
        assert seen[2].startswith("127.0.0.1:")
        assert house.exchange.places.total == 1
        await peer.vanish()
        await eventually(lambda: house.exchange.places.total == 0)


async def test_a_page_behind_a_proxy_with_tls_is_of_the_same_origin():
    async with serving(listening(forwarded=["127.0.0.0/8"]), hosts=["chat.example"]) as house:
        page = ["Origin: https://chat.example", "X-Forwarded-For: 203.0.113.9"]
        assert (await house.upgrade("/ws", *page, host="chat.example")).status == 403
        assert (await house.upgrade("/ws", *page, "X-Forwarded-Proto: https", host="chat.example")).status == 101
