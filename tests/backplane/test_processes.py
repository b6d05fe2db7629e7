"""Two daemons as processes of their own over one Redis, and one of them dies."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio

from netd.client import FramedClient
from netd.wire.messages import Joined, Left
from tests.backplane.lab import Redis, needs_redis
from tests.support.process import PATIENCE, NetdProcess

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_redis

TOML = """
[hub]
backplane = "redis"

[[hub.namespace]]
name = "room"
subscribe = "anyone"
publish = "anyone"
presence = "anyone"
history = "anyone"
history_size = 100
join_leave = true

[backplane]
url = "{url}"
node = "{name}"
heartbeat = 0.2
expiry = 1.0
timeout = 0.8

[[framed.listen]]
address = "127.0.0.1:0"
"""


def process(directory: Path, redis: Redis, name: str) -> NetdProcess:
    (directory / name).mkdir()
    return NetdProcess(directory / name, TOML.format(url=redis.url, name=name))


async def test_who_was_on_a_machine_that_died_has_left_and_the_others_go_on(redis, tmp_path):
    async with process(tmp_path, redis, "a") as a, process(tmp_path, redis, "b") as b:
        async with a.client() as one, b.client() as two:
            with trio.fail_after(PATIENCE):
                while [len((await each.nodes())["nodes"]) for each in (one, two)] != [2, 2]:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            [here] = (await one.service("framed"))["addresses"]
            [there] = (await two.service("framed"))["addresses"]
        async with (
            FramedClient(here, name="here") as stays,
            FramedClient(there, name="there", reconnect=False) as goes,
        ):
            room = await stays.subscribe("room:x")
            await goes.subscribe("room:x")
            assert (await told(stays, Joined)).name == "there"
            assert {each.name for each in await stays.presence("room:x")} == {"here", "there"}
            await goes.publish("room:x", "hello")
            with trio.fail_after(PATIENCE):
                async for message in room:
                    assert message.data == "hello"
                    break
            b.signal(signal.SIGKILL)
            await b.exited()
            assert (await told(stays, Left)).name == "there"
            assert [each.name for each in await stays.presence("room:x")] == ["here"]
            async with a.client() as one:
                assert [each["name"] for each in (await one.nodes())["nodes"]] == ["a"]
            await stays.publish("room:x", "alone")
            with trio.fail_after(PATIENCE):
                async for message in room:
                    assert (message.data, message.offset) == ("alone", 2)
                    break
        keys = redis.say("--scan", "--pattern", "netd:p:b.*")
        assert not keys


async def told(client: FramedClient, kind: type) -> Any:
    """The first event of this kind."""
    with trio.fail_after(PATIENCE):
        while True:
            event = await client.receive()
            if isinstance(event, kind):
                return event
