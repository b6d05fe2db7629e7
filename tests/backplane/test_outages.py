"""Every way in which Redis may be out of reach while people talk: all of them get everything, once, in order.

One speaker's messages stay in their order; the machines' own are in one order but for what was said meanwhile.
How long it takes differs by kind. The issue says 10 s: NETD_TEST_OUTAGE=10 has those that only last take so long.
"""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.backplane.followers import Follower, level
from tests.backplane.lab import Node, Redis, needs_redis, node
from tests.support.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = needs_redis

SECONDS = float(os.environ.get("NETD_TEST_OUTAGE", "0.6"))
CALLS = 60


class Talk:
    """Two machines, somebody on each who follows the channel, and both say something all the time."""

    def __init__(self, redis: Redis, a: Node, b: Node, way: Relay, port: int) -> None:
        self.redis, self.a, self.b, self.way, self.port = redis, a, b, way, port

    async def until_away(self, *who: Node) -> None:
        for one in who or (self.a, self.b):
            await one.offline()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def talk(directory: Path, *options: str) -> AsyncIterator[Talk]:
    """`b` reaches Redis by a relay, `a` does not."""
    port = _free_port()
    redis = Redis(directory, "--port", str(port), "--appendonly", "yes", "--appendfsync", "always", *options)
    redis.start()
    try:
        await redis.ready()
        async with Relay(port) as way:
            quick = {"timeout": 0.4, "password": "old" if "--requirepass" in options else None}
            async with node(redis, "a", **quick) as a, node(f"redis://127.0.0.1:{way.port}", "b", **quick) as b:
                await a.online(1)
                await b.online(1)
                yield Talk(redis, a, b, way, port)
    finally:
        redis.kill()


async def frozen(talk: Talk) -> None:
    talk.redis.freeze()
    await talk.until_away()
    await trio.sleep(SECONDS)
    talk.redis.thaw()


async def killed(talk: Talk) -> None:
    talk.redis.kill()
    await talk.until_away()
    talk.redis.start()


async def killed_and_emptied(talk: Talk) -> None:
    """Once all is said, as what only Redis had is lost for good."""
    await level(talk.a, talk.b)
    talk.redis.kill()
    await talk.until_away()
    for file in (talk.redis.directory / "appendonlydir").iterdir():
        file.unlink()
    talk.redis.start()


async def emptied(talk: Talk) -> None:
    await level(talk.a, talk.b)
    talk.redis.say("FLUSHALL")


async def subscribers_reset(talk: Talk) -> None:
    talk.redis.say("CLIENT", "KILL", "TYPE", "pubsub")


async def publishers_reset(talk: Talk) -> None:
    talk.redis.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def one_reset(talk: Talk) -> None:
    talk.way.reset()


async def one_swallowed(talk: Talk) -> None:
    """Half-open: what it says reaches nobody, and nobody is told; the other machine goes on."""
    talk.way.hold()
    talk.way.silent = True
    await talk.until_away(talk.b)
    await trio.sleep(SECONDS)
    talk.way.silent = False
    talk.way.reset()


async def scripts_forgotten(talk: Talk) -> None:
    talk.redis.say("SCRIPT", "FLUSH")


async def made_a_replica(talk: Talk) -> None:
    talk.redis.say("REPLICAOF", "127.0.0.1", "1")
    await talk.until_away()
    assert "replica" in talk.a.warnings["backplane.redis"]
    talk.redis.say("REPLICAOF", "NO", "ONE")


async def out_of_memory(talk: Talk) -> None:
    talk.redis.say("CONFIG", "SET", "maxmemory", "1")
    await talk.until_away()
    assert "maxmemory" in talk.a.warnings["backplane.redis"]
    talk.redis.say("CONFIG", "SET", "maxmemory", "0")


async def refused(talk: Talk) -> None:
    talk.redis.say("CONFIG", "SET", "requirepass", "secret")
    talk.redis.say("-a", "secret", "CLIENT", "KILL", "TYPE", "pubsub")
    await talk.until_away()
    await talk.a.becomes(lambda: "auth" in talk.a.warnings["backplane.redis"].lower())
    talk.redis.say("-a", "secret", "CONFIG", "SET", "requirepass", "")


async def busy(talk: Talk) -> None:
    """A script of somebody else's that does not end, until it is killed."""
    talk.redis.say("CONFIG", "SET", "busy-reply-threshold", "100")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: talk.redis.say("EVAL", "while true do end", "0"))
        await talk.until_away()
        talk.redis.say("SCRIPT", "KILL")


OUTAGES = [
    frozen,
    killed,
    killed_and_emptied,
    emptied,
    subscribers_reset,
    publishers_reset,
    one_reset,
    one_swallowed,
    scripts_forgotten,
    made_a_replica,
    out_of_memory,
    refused,
    busy,
]


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda each: each.__name__)
async def test_whatever_happens_to_redis_nothing_is_lost_and_nothing_comes_twice(tmp_path, outage):
    async with talk(tmp_path) as both:
        a, b = both.a, both.b
        here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
        said: list[str] = []
        over = trio.Event()

        async def speak(node: Node, name: str) -> None:
            number = 0
            while not over.is_set() or number < CALLS:
                said.append(f"{name}{number}")
                node.hub.publish(b"kept:room", said[-1])
                number += 1
                await trio.sleep(max(0.002, SECONDS / 200))  # history has a bound

        async with trio.open_nursery() as nursery:
            if outage not in (emptied, killed_and_emptied):
                nursery.start_soon(speak, a, "a")
                nursery.start_soon(speak, b, "b")
                await here.has(20)
                await there.has(20)
            else:
                over.set()
                await speak(a, "x")
            await outage(both)
            over.set()
        a.hub.publish(b"kept:room", "last of a")
        b.hub.publish(b"kept:room", "last of b")
        said += ["last of a", "last of b"]
        await a.online(1)
        await b.online(1)
        await level(a, b)
        for one in (here, there):
            await one.has(len(said))
            await one.person.node.rest()
            one.look()
            assert not one.twice
            assert sorted(one.told) == sorted(said)
            assert not one.holes
            for name in ("a", "b", "x"):
                numbers = [int(each[1:]) for each in one.told if each[0] == name]
                assert numbers == sorted(numbers)
        assert here.place == there.place
        assert not a.warnings.keys() & {"backplane.redis", "backplane.overflow"}
