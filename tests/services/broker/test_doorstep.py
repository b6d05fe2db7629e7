"""The short way in: who waits there, for how long, and that whatever is no WebSocket is answered all the same."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netd.services.broker.config import BrokerHttp
from tests.services.broker.lab import KEY, PATIENCE, House, eventually, listening, serving

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = (
    b"GET /app HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n" % KEY
)
HELLO = b"\x81\x82" + bytes(4) + b"hi"


async def asked(house: House, *parts: bytes, done: Callable[[bytes], bool] = lambda heard: False) -> bytes:
    """What is heard by somebody who sends these parts, one after the other, until `done` or the end."""
    stream, _ = await house.connect()
    heard = b""
    with trio.fail_after(PATIENCE):
        for part in parts:
            await stream.send_all(part)
            await eventually(lambda: house.service.snapshot().connections > 0)
            await trio.testing.wait_all_tasks_blocked(0.001)
        while not done(heard):
            data = await stream.receive_some(65536)
            if not data:
                break
            heard += data
    await stream.aclose()
    return heard


@pytest.mark.parametrize("cut", [1, 3, 16, len(HEAD) - 2, len(HEAD) - 1, len(HEAD), len(HEAD) + 3])
async def test_a_handshake_may_come_in_pieces(cut: int) -> None:
    async with serving() as house:
        sent = HEAD + HELLO
        heard = await asked(house, sent[:cut], sent[cut:], done=lambda heard: heard.endswith(b"\x81\x02hi"))
        assert heard.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert heard.endswith(b"\r\n\r\n\x81\x02hi")
        assert not house.exchange.doorsteps


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200),
        (b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 503),
        (HEAD.replace(b"Version: 13", b"Version: 8"), 426),
        (HEAD.replace(b"/app", b"/ws/closed:room"), 403),
        (HEAD.replace(b"127.0.0.1", b"evil.example"), 421),
        (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"), 400),
        (HEAD.replace(b"\r\nUpgrade", b"\nUpgrade"), 400),
        (HEAD.replace(b"HTTP/1.1", b"HTTP/9.9"), 505),
        (HEAD.replace(b"GET", b"POST"), 405),
        (b"GET /ws " + b"x" * 70_000, 431),
        (b"\x16\x03\x01\x00\x00\r\n\r\n", 400),
    ],
    ids=["health", "no worker", "version", "denied", "host", "body", "lf", "http", "method", "long", "tls"],
)
async def test_what_is_no_websocket_is_answered_by_the_front_door(sent: bytes, status: int) -> None:
    async with serving() as house:
        heard = await asked(house, sent, done=lambda heard: b"}" in heard)
        assert heard.split(b" ")[1] == str(status).encode(), heard
        await eventually(lambda: house.exchange.places.total == 0)
        assert not house.exchange.doorsteps


async def test_what_is_refused_is_asked_for_once_and_told_once() -> None:
    """One of its budget, one look at its token, one count: the front door only tells."""
    refused = HEAD.replace(b"/app", b"/ws/closed:room?token=nobodys")
    async with serving(http_rate=0.001, http_burst=2) as house:
        looked, resolve = [], house.hub.resolve
        house.hub.resolve = lambda token: looked.append(token) or resolve(token)  # type: ignore[func-returns-value,method-assign]
        for status in (401, 401, 429):
            heard = await asked(house, refused, done=lambda heard: b"}" in heard)
            assert heard.startswith(b"HTTP/1.1 %d " % status), heard
            assert heard.count(b"HTTP/1.1") == 1
        assert looked == ["nobodys", "nobodys"]
        assert house.counted("netd_broker_requests_total", route="channel", status="401") == 2
        assert house.counted("netd_broker_requests_total", route="channel", status="429") == 1


async def test_after_a_refusal_the_connection_goes_on_and_counts_for_its_client() -> None:
    async with serving(listening(forwarded=["127.0.0.0/8"])) as house:
        stream, _ = await house.connect()
        refused = HEAD.replace(b"/app", b"/ws/closed:room").replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: %b\r\n\r\n")
        heard = b""
        for number, client in enumerate((b"203.0.113.9", b"203.0.113.9", b"203.0.113.10"), 1):
            await stream.send_all(refused % client)
            with trio.fail_after(PATIENCE):
                while heard.count(b"}}") < number:
                    heard += await stream.receive_some(65536)
            places = house.exchange.places
            assert (places.total, places.enter(client.decode(), limit=9, limit_per_key=1)) == (1, "address")
        assert heard.count(b"HTTP/1.1 403 ") == 3
        await stream.aclose()
        await eventually(lambda: house.exchange.places.total == 0)


async def test_half_a_head_is_not_waited_for_for_ever() -> None:
    async with serving(http=BrokerHttp(head_timeout=0.05)) as house:
        assert (await asked(house, HEAD[:40])).startswith(b"HTTP/1.1 408 ")
        assert await asked(house) == b""
        await eventually(lambda: house.exchange.places.total == 0)


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00\x00\x00\x05hello", b"GET /ws HTTP/1.1\nHost: a\n", b"\n"],
    ids=["TLS", "a frame", "bare LF", "an empty line"],
)
async def test_what_will_never_be_a_head_is_not_waited_for(sent: bytes) -> None:
    """In one piece or two, and long before `head_timeout`."""
    async with serving(http=BrokerHttp(head_timeout=600.0)) as house:
        for cut in (0, len(sent) - 1):
            stream, _ = await house.connect()
            async with stream:
                await stream.send_all(sent[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await stream.send_all(sent[cut:] + b"\n")
                with trio.fail_after(PATIENCE):
                    assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 400 ")


async def test_past_the_limit_the_one_who_waits_longest_has_to_go() -> None:
    async with serving(http=BrokerHttp(max_connections=2)) as house:
        waiting = []
        for number in range(3):
            stream, _ = await house.connect()
            await eventually(lambda number=number: house.service.snapshot().connections > min(number, 1))
            waiting.append(stream)
        with trio.fail_after(PATIENCE):
            assert await waiting[0].receive_some(1) == b""
        await waiting[2].send_all(HEAD)
        assert (await waiting[2].receive_some(100)).startswith(b"HTTP/1.1 101 ")


async def test_who_waits_during_a_reload_is_let_in_by_the_next_generation() -> None:
    async with serving() as house:
        stream, _ = await house.connect()
        other, _ = await house.connect()
        for one in (stream, other):
            await one.send_all(b"GET ")
        await eventually(lambda: len(house.exchange.doorsteps) == 2)
        config = house.service.config
        assert await house.settle(config.model_copy(update={"listen": [*config.listen, listening()]})) == "running"
        await stream.send_all(HEAD[4:])
        await other.send_all(b"/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with trio.fail_after(PATIENCE):
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 101 ")
            assert (await other.receive_some(100)).startswith(b"HTTP/1.1 200 ")


async def test_who_waits_does_not_hold_a_stop_up() -> None:
    async with serving() as house:
        gateway = house.exchange
        stream, _ = await house.connect()
        await stream.send_all(HEAD[:40])
        await eventually(lambda: gateway.doorsteps)
        assert await house.settle(None) == "stopped"
        heard = b""
        with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
            heard = bytes(await stream.receive_some(1))
        assert heard == b""
        await eventually(lambda: gateway.places.total == 0)
        assert not gateway.doorsteps
