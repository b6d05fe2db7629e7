"""Real clients over two daemons and Redis: what a person would see."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

import netd
from netd.client import FramedClient, Gap
from tests.backplane.lab import FREE, HUB, QUICK, Node, Redis, needs_redis
from tests.support.process import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = needs_redis


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
