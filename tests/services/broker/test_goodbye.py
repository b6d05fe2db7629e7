"""A goodbye of the client's, whatever state its connection is in: it is answered, TCP ends, and nothing stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.net.stream import CLOSING, LINGERING
from netd.sessions.connection import Held
from netd.wire.websocket import BINARY, close, frame
from tests.services.broker.lab import Client, House, eventually, listening, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE

if TYPE_CHECKING:
    from pathlib import Path

    from netd.section import Tls

MASK = b"abcd"
GOODBYE = close(4321, "enough", key=MASK)


async def ended(house: House, client: Client, code: int = 4321) -> None:
    """It has its answer, and of its connection nothing is left."""
    gateway = house.exchange
    assert (await client.ended()).code == code
    await trio.aclose_forcefully(client.stream)
    await eventually(lambda: gateway.places.total == 0)
    assert not gateway.connections
    assert not house.hub.sessions
    assert (house.reactor.snapshot().streams, house.reactor.paused) == (0, 0)
    assert not house.reactor._lingering
    assert sum(door.connections for door in gateway.doors.values()) == 0


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("fin", [False, True])
async def test_over_whatever_it_came(kind: str, fin: bool, tls: Tls, tmp_path: Path) -> None:
    how: dict[str, Any] = {"unix": {"address": f"unix:{tmp_path}/broker"}, "tls": {"tls": tls}}.get(kind, {})
    async with serving(listening(**how)) as house:
        client = await house.client("/ws/public:room", tls=trusting(FIRST_CERTIFICATE) if kind == "tls" else None)
        await client.raw(GOODBYE)
        if fin and kind != "tls":
            await client.stream.send_eof()  # type: ignore[attr-defined]
        await ended(house, client)
        assert house.exchange.closes[0] == 1


async def test_while_a_tracer_waits_for_a_write() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        [connection] = house.exchange.connections
        with connection.stream.written(4096) as written:
            await client.raw(GOODBYE)
            await ended(house, client)
            assert not await written.wait()


async def test_behind_what_came_too_fast() -> None:
    """It is read when its bytes are made up for, and answered then."""
    async with serving(input_rate=200_000, input_burst=1000) as house:
        client = await house.client("/ws/public:room?role=pub")
        [connection] = house.exchange.connections
        await client.raw(frame(BINARY, bytes(30_000), key=MASK) + GOODBYE)
        await eventually(lambda: connection.held & Held.RATE or connection.closing)
        await ended(house, client)
        assert house.hub.published == 1


async def test_behind_what_blew_up() -> None:
    async with serving(deflate=True, client_takeover=True) as house:
        client = await house.client("/ws/public:room?role=pub", offer="permessage-deflate")
        assert client.packer is not None
        bombs = [frame(BINARY, client.packer.message(bytes(100_000)), key=MASK, compressed=True) for _ in range(20)]
        await client.raw(b"".join(bombs) + GOODBYE)
        await ended(house, client)
        assert house.hub.published == 20


async def test_while_the_hub_has_it_wait() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room?role=pub")
        [connection] = house.exchange.connections
        connection.pause()
        await client.raw(GOODBYE)
        connection._earned()  # nothing that is not held is let go by that
        assert house.reactor.paused == 1
        connection.resume()
        await ended(house, client)


async def test_while_everybody_is_sent_away() -> None:
    """Who says goodbye first is not told another one, and the stop does not wait for longer than it lingers."""
    async with serving() as house:
        gateway = house.exchange
        client = await house.client("/ws/public:room")
        [connection] = gateway.connections
        await client.raw(GOODBYE)
        await eventually(lambda: connection.stream.state == LINGERING)
        assert await house.settle(None) == "stopped"
        assert (await client.ended()).code == 4321
        assert (gateway.places.total, gateway.orphaned, len(gateway.connections)) == (0, 0, 0)


async def test_while_much_waits_for_it() -> None:
    async with serving(send_buffer=4096) as house:
        client = await house.client("/ws/public:room?role=sub", buffer=4096)
        [connection] = house.exchange.connections
        for _ in range(20):
            house.hub.publish(b"public:room", bytes(50_000))
        await client.raw(GOODBYE)
        await eventually(lambda: connection.stream.state == CLOSING)
        await ended(house, client)
