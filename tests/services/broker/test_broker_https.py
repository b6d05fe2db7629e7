"""The same port over TLS: requests, upgrades, event streams, and origins with https."""

from __future__ import annotations

import json

import pytest
import trio

from netd.section import Tls
from tests.services.broker.site import CLOSED, SWITCH, eventually, head, listening, serving, until
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY
from tests.sessions.lab import proxied, trusting


@pytest.fixture
def tls(tmp_path):
    (tmp_path / "cert").write_text(FIRST_CERTIFICATE)
    (tmp_path / "key").write_text(FIRST_KEY)
    return Tls(certificate=tmp_path / "cert", key=tmp_path / "key")


async def test_requests_and_a_websocket_over_one_listener(tls):
    async with serving(listening(tls=tls), hub=CLOSED) as house:
        peer = await house.client(tls=trusting(FIRST_CERTIFICATE))
        for _ in range(2):
            await peer.send(head("GET", "/healthz"))
            assert json.loads((await peer.response()).body) == {"status": "ok"}
        masked = b"\x81\x85\x00\x00\x00\x00early"
        await peer.send(head("GET", "/ws/open:a?echo=1", SWITCH) + masked)
        data = await until(peer, b"early")
        assert data.startswith(b"HTTP/1.1 101 ")
        assert data.endswith(b"\x81\x05early")
        [session] = house.hub.present()
        assert session.link.tls
        await peer.send(b"\x88\x80\x00\x00\x00\x00")
        await until(peer, b"\x88\x00")


async def test_an_event_stream_over_tls(tls):
    async with serving(listening(tls=tls), hub=CLOSED) as house:
        peer = await house.client(tls=trusting(FIRST_CERTIFICATE))
        await peer.send(head("GET", "/channels/open:a/events"))
        await until(peer, b"event: subscribed")
        house.hub.publish(b"open:a", "x" * 60_000)
        assert b"x" * 60_000 in await until(peer, b'x"')


async def test_an_origin_over_tls_has_https(tls):
    async with serving(listening(tls=tls)) as house:
        for scheme, status in (("https", b"101"), ("http", b"403")):
            peer = await house.client(tls=trusting(FIRST_CERTIFICATE))
            port = house.port()
            await peer.send(
                head("GET", "/ws", [*SWITCH, f"Origin: {scheme}://localhost:{port}"], host=f"localhost:{port}")
            )
            assert (await until(peer, b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)


async def test_a_proxy_protocol_header_says_who_it_is(tls):
    async with serving(listening(proxy_protocol=["127.0.0.0/8"])) as house:
        peer = await house.client()
        await peer.send(proxied("203.0.113.9") + head("GET", "/ws", [*SWITCH, "X-Forwarded-For: 198.51.100.1"]))
        await until(peer, b"\r\n\r\n")
        await eventually(lambda: house.hub.visible)
        assert [session.address for session in house.hub.present()] == ["203.0.113.9:4711"]


async def test_a_client_that_speaks_http_to_tls_costs_itself(tls):
    async with serving(listening(tls=tls)) as house:
        peer = await house.client()
        await peer.send(head("GET", "/healthz"))
        with trio.fail_after(10):
            assert b"HTTP" not in await peer.rest()
        await eventually(lambda: house.exchange.places.total == 0)
        peer = await house.client(tls=trusting(FIRST_CERTIFICATE))
        await peer.send(head("GET", "/healthz"))
        assert (await peer.response()).status == 200
