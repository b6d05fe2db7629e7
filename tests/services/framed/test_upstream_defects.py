"""What the source system does wrong, measured there, and right here. One test each; the rest is in the other files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from netd.hub.outbox import Outbox
from netd.services.framed.config import FramedConfig
from netd.services.framed.doors import Door
from netd.services.framed.notices import Backpressure
from netd.wire.framing import frame
from netd.wire.handshake import plain
from tests.services.framed.lab import eventually, serving

CALLED: list[object] = []


def refuses_all(handshake: object) -> bool:
    CALLED.append(handshake)
    return False


class Nobody:
    """An outbox's owner and flusher."""

    def mark(self, outbox: Outbox) -> None: ...
    def mark_crowd(self, outboxes: list[Outbox], alone: list[bytes]) -> None: ...

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: Any, data: bytes, messages: int) -> Any:
        return outboxes

    def pressure(self, over: bool) -> None: ...
    def overflow(self) -> None: ...


@pytest.mark.parametrize("size", [100, 1500, 70_000])
def test_the_rate_limit_lets_through_its_rate_and_not_twice_that(size: int) -> None:
    rate, burst = 50_000, 20_000
    door = Door(None, "127.0.0.1:1", None)  # type: ignore[arg-type]
    door.configure(FramedConfig(rate=rate, burst=burst, backpressure=64 << 20))
    outbox = Outbox(door.rules, Nobody(), Nobody())
    for _ in range(40_000_000 // size):
        outbox.push(bytes(size))
    now, sent = 0.0, 0
    for _ in range(3000):
        sent += sum(map(len, outbox.take(1 << 18, now)))
        assert sent <= burst + rate * now + max(0, size - burst) + 1
        now += outbox.wait(now) or 0.001
    assert sent >= rate * now * 0.98


async def test_priorities_of_clients_count() -> None:
    async with serving(limits={"rate": 2000, "burst": 1}) as house:
        hears, says = await (await house.client()).hello(), await (await house.client()).hello()
        await hears.ask("subscribe", channel="public:room")
        await says.send(
            *(
                json.dumps(
                    {"type": "publish", "channel": "public:room", "data": data + " " * 200, "priority": priority}
                ).encode()
                for data, priority in (("first", 100), ("late", 200), ("urgent", 0), ("soon", 50))
            )
        )
        order = [(await hears.hear("message"))["data"].strip() for _ in range(4)]
        assert [data for data in order if data != "first"] == ["urgent", "soon", "late"]


async def test_forty_megabytes_for_a_peer_that_does_not_read_trip_the_guard_at_five() -> None:
    async with serving() as house:
        deaf = await (await house.client(buffer=4096)).hello()
        await deaf.ask("subscribe", channel="public:room")
        (connection,) = house.exchange.connections
        most = 0
        for _ in range(640):
            house.hub.publish(b"public:room", "x" * 65_500)
            most = max(most, connection.outbox.size + connection.stream.unsent)
            await trio.lowlevel.checkpoint()
        assert most <= 5 * 1024 * 1024 + 262_144  # and what the reactor had taken to send
        await eventually(lambda: house.exchange.closes[4008] == 1)
        assert len(house.notices(Backpressure)) == 1


@pytest.mark.parametrize("first", [b'{"type": "hello", "version": "1"}', b'{"version": "1", "tags": {}}', b"[]", b"x"])
async def test_a_first_message_that_is_no_handshake_bypasses_nothing(first: bytes) -> None:
    async with serving(mode="echo", handshake="required", version="1") as house:
        client = await house.client(settled=False)
        await client.send(first, b"in?")
        assert await client.rest() == []
        await eventually(lambda: house.exchange.rejections["handshake"] == 1)


@pytest.mark.parametrize("handshake", ["optional", "required"])
async def test_a_missing_version_does_not_pass(handshake: str) -> None:
    async with serving(mode="echo", handshake=handshake, version="1.0.0") as house:
        client = await house.client(settled=False)
        await client.send(plain(None, {"device": "a"}), b"in?")
        assert await client.rest() == []
        await eventually(lambda: house.exchange.rejections["handshake"] == 1)


@pytest.mark.parametrize("handshake", ["optional", "required"])
async def test_a_rejected_handshake_is_delivered_to_nobody(handshake: str) -> None:
    room = {"mode": "channel", "channel": "public:room", "codec": "json"}
    async with serving(**room, handshake=handshake, version="2") as house:
        client = await house.client(settled=False)
        await client.send(plain("1", {"device": "a"}), b'{"and": "this"}')
        assert await client.rest() == []
        await eventually(lambda: not house.hub.sessions)
        assert house.hub.info().published == 0


async def test_an_accepted_handshake_is_no_message_either() -> None:
    async with serving(mode="channel", channel="public:room", codec="json") as house:
        client = await house.client()
        await client.send(plain("1", {"device": "a"}), b"1")
        await eventually(lambda: house.hub.info().published == 1)


async def test_an_oversize_frame_ends_the_connection_and_nothing_behind_it_is_read_as_a_frame() -> None:
    async with serving(mode="echo", handshake="none", limits={"max_frame": 1000}) as house:
        client = await house.client()
        # out of step, the payload's own bytes would be frames
        inner = frame(b"a frame inside the payload")
        await client.raw(frame(b"good") + frame(inner * 100) + frame(b"after"))
        assert await client.rest() == [b"good"]
        await eventually(lambda: house.exchange.closes[1009] == 1)


async def test_a_verifier_is_asked_without_a_version_too() -> None:
    CALLED.clear()
    async with serving(mode="echo", handshake="required", verifier=f"{__name__}:refuses_all") as house:
        client = await house.client(settled=False)
        await client.send(plain(None), b"in?")
        assert await client.rest() == []
        assert len(CALLED) == 1
