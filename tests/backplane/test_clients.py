"""Real clients over two daemons and Redis: what a person would see."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import netd
from netd.client import FramedClient, Gap, Reconnect
from tests.backplane.followers import level
from tests.backplane.lab import FREE, HUB, QUICK, Node, Redis, needs_redis
from tests.support.process import PATIENCE
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = needs_redis

SOON = Reconnect(first=0.01, longest=0.05)


@asynccontextmanager
async def served(redis: Redis, name: str) -> AsyncIterator[tuple[Node, str]]:
    wild = {"name": "wild", **FREE, "history_size": 100, "wildcards": True}
    settings = {
        "hub": {**HUB, "namespace": [*HUB["namespace"], wild]},
        "framed": {"listen": [{"address": "127.0.0.1:0"}]},
        "backplane": {"url": redis.url, "node": name, **QUICK},
    }
    async with netd.open(settings) as daemon:
        yield Node(daemon), daemon.addresses("framed")[0]


async def read(subscription: Any, count: int) -> list[Any]:
    found = []
    with trio.fail_after(PATIENCE):
        async for item in subscription:
            found.append(item)
            if len(found) == count:
                break
    return found


async def test_a_client_sees_no_gap_when_redis_was_away(tmp_path: Path):
    redis = Redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    try:
        await redis.ready()
        async with served(redis, "a") as (a, address), served(redis, "b") as (b, other):
            await a.online(1)
            await b.online(1)
            async with FramedClient(address) as one, FramedClient(other) as two:
                here = await one.subscribe("kept:room")
                there = await two.subscribe("kept:room")
                wild = await two.subscribe("wild:*.room")
                await one.publish("kept:room", 0)
                await one.publish("wild:a.room", 0)
                assert [each.data for each in await read(here, 1)] == [0]
                assert [each.data for each in await read(there, 1)] == [0]
                assert [each.data for each in await read(wild, 1)] == [0]
                redis.kill()
                await a.offline()
                await b.offline()
                for number in range(1, 5):
                    await one.publish("kept:room", number)
                    await two.publish("wild:a.room", number)
                assert [each.offset for each in await read(here, 4)] == [None] * 4
                redis.start()
                for each in (a, b):
                    await each.online(1)
                    await each.becomes(lambda each=each: not len(each.plane.outgoing))
                await a.rest()
                await b.rest()
                await one.publish("kept:room", 5)
                await one.publish("wild:a.room", 5)
                # a Gap would be among these, and has no data
                assert [(each.data, each.offset) for each in await read(here, 1)] == [(5, 6)]
                assert [(each.data, each.offset) for each in await read(there, 5)] == [(n, n + 1) for n in range(1, 6)]
                assert [each.data for each in await read(wild, 5)] == [1, 2, 3, 4, 5]
    finally:
        redis.kill()


async def test_what_only_a_pattern_hears_and_was_missed_is_told_once(redis):
    async with served(redis, "a") as (a, address), served(redis, "b") as (b, other):
        await a.online(1)
        await b.online(1)
        async with FramedClient(address) as one, FramedClient(other) as two:
            wild = await two.subscribe("wild:*.room")
            await one.publish("wild:a.room", 0)
            assert [each.data for each in await read(wild, 1)] == [0]
            await b.daemon.service_stop("backplane")
            for number in range(1, 5):
                await one.publish("wild:a.room", number)
            await a.becomes(lambda: not len(a.plane.outgoing))
            await b.daemon.service_start("backplane")
            await b.online(1)
            for number in range(5, 8):
                await one.publish("wild:a.room", number)
            gap, *rest = await read(wild, 4)
            assert isinstance(gap, Gap)
            assert gap.missed == 4
            assert [each.data for each in rest] == [5, 6, 7]


@asynccontextmanager
async def between(redis: Redis) -> AsyncIterator[tuple[Node, Node, FramedClient, Callable[[], None]]]:
    """Two machines, and a client of the first, until it is called to move to the second."""
    async with served(redis, "a") as (a, address), served(redis, "b") as (b, other):
        await a.online(1)
        await b.online(1)
        here, there = (int(each.rpartition(":")[2]) for each in (address, other))
        async with Relay(here) as way:

            def move() -> None:
                way.target = there
                way.reset()

            async with FramedClient(("127.0.0.1", way.port), reconnect=SOON) as client:
                yield a, b, client, move


async def test_who_heard_messages_without_offsets_and_moves_hears_them_once(redis):
    """The other machine has Redis, and is told of them later."""
    async with between(redis) as (a, b, client, move):
        heard = await client.subscribe("kept:room")
        a.hub.publish(b"kept:room", 0)
        assert [each.data for each in await read(heard, 1)] == [0]
        await a.daemon.service_stop("backplane")
        b.hub.publish(b"kept:room", "of b")
        for number in range(1, 5):
            a.hub.publish(b"kept:room", number)
        assert [each.data for each in await read(heard, 4)] == [1, 2, 3, 4]
        move()
        assert [each.data for each in await read(heard, 1)] == ["of b"]  # without a Gap
        await a.daemon.service_start("backplane")
        await level(a, b)
        b.hub.publish(b"kept:room", 5)
        (last,) = await read(heard, 1)
        assert (last.data, last.offset, last.origin) == (5, 7, None)
        assert client.telemetry().counters.duplicates == 4
        assert client.telemetry().counters.gaps == 0
        assert not a.plane.outgoing.size


async def test_so_it_is_where_they_are_in_the_history_already(redis):
    async with between(redis) as (a, b, client, move):
        heard = await client.subscribe("kept:room")
        a.hub.publish(b"kept:room", 0)
        assert [each.data for each in await read(heard, 1)] == [0]
        own = a.plane.arrived
        a.plane.arrived = lambda payload: None  # what it has said does not come back in time
        for number in range(1, 5):
            a.hub.publish(b"kept:room", number)
        await a.becomes(lambda: a.plane.outgoing.acknowledged == 5)
        await a.daemon.service_stop("backplane")
        a.plane.arrived = own
        assert [each.offset for each in await read(heard, 4)] == [None] * 4
        move()
        b.hub.publish(b"kept:room", 5)
        assert [(each.data, each.offset) for each in await read(heard, 1)] == [(5, 6)]
        assert client.telemetry().counters.gaps == 0


async def test_so_it_is_where_both_were_without_redis_and_it_had_taken_some(tmp_path: Path):
    """The one that it moves to cannot tell what it missed, and says so."""
    redis = Redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    try:
        await redis.ready()
        async with between(redis) as (a, b, client, move):
            heard = await client.subscribe("kept:room")
            a.hub.publish(b"kept:room", 0)
            assert [each.data for each in await read(heard, 1)] == [0]
            redis.freeze()
            a.hub.publish(b"kept:room", 1)  # on its way as it froze
            await a.offline()
            await b.offline()
            a.hub.publish(b"kept:room", 2)
            assert [each.data for each in await read(heard, 2)] == [1, 2]
            move()
            assert isinstance((await read(heard, 1))[0], Gap)
            redis.thaw()
            await level(a, b)
            b.hub.publish(b"kept:room", 3)
            assert [each.data for each in await read(heard, 1)] == [3]
    finally:
        redis.kill()


async def test_a_channel_that_has_another_epoch_now_is_a_gap_though_nothing_more_is_said(redis):
    async with served(redis, "a") as (a, address):
        await a.online()
        async with FramedClient(address) as client:
            heard = await client.subscribe("kept:room")
            wild = await client.subscribe("wild:*.room")
            for channel in (b"kept:room", b"wild:a.room"):
                a.hub.publish(channel, 0)
            assert [each.data for each in await read(heard, 1)] == [0]
            assert [each.data for each in await read(wild, 1)] == [0]
            a.plane._renew([b"kept:room"])
            (gap,) = await read(heard, 1)
            assert isinstance(gap, Gap)
            a.hub.publish(b"kept:room", 1)
            (after,) = await read(heard, 1)
            assert (after.data, after.offset, after.epoch) == (1, 2, gap.epoch)
            assert client.telemetry().counters.gaps == 1


async def test_who_moves_to_a_machine_that_is_behind_hears_everything_once(redis):
    async with between(redis) as (a, b, client, move):
        stays = b.person()
        await stays.hear("kept:room")
        heard = await client.subscribe("kept:room")
        a.hub.publish(b"kept:room", 0)
        assert [each.data for each in await read(heard, 1)] == [0]
        await stays.messages(1)
        own, late = b.plane.arrived, []
        b.plane.arrived = late.append
        for number in range(1, 5):
            a.hub.publish(b"kept:room", number)
        assert [each.data for each in await read(heard, 4)] == [1, 2, 3, 4]
        await b.becomes(lambda: len(late) == 4)
        move()
        await b.becomes(lambda: len(b.hub.heard[b"kept:room"].subscribers) == 2)
        b.plane.arrived = own
        for payload in late:
            own(payload)
        a.hub.publish(b"kept:room", 5)
        assert [(each.data, each.offset) for each in await read(heard, 1)] == [(5, 6)]
        counters = client.telemetry().counters
        assert (counters.recovered, counters.gaps) == (1, 0)
