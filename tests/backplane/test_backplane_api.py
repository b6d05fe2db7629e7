"""The control API of daemons that are one hub: nodes, presence, history, messages and kicks of all of them."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

import netd
from netd.backplane.nodes import found_at
from netd.client import ControlClient
from netd.errors import RequestFailed
from netd.wire.messages import Direct
from tests.backplane.lab import HUB, QUICK, Node, Redis, needs_redis
from tests.support.process import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def controlled(
    redis: Redis, directory: Path, name: str, hub: dict[str, Any] = HUB, **more: str
) -> AsyncIterator[tuple[Node, ControlClient]]:
    socket = directory / f"{name}.sock"
    settings = {
        "control": {"socket": str(socket), "group": ""},
        "hub": hub,
        "backplane": {"url": redis.url, "node": name, **QUICK, **more},
    }
    async with netd.open(settings) as daemon, ControlClient(socket) as client:
        yield Node(daemon), client


@needs_redis
async def test_what_one_is_asked_is_answered_for_all(redis, tmp_path):
    async with (
        controlled(redis, tmp_path, "a", address="10.0.0.1") as (a, client),
        controlled(redis, tmp_path, "b") as (b, other),
    ):
        await a.online(1)
        await b.online(1)
        two = b.person(name="two")
        await two.hear("kept:room")
        await b.rest()
        channel = await client.channel("kept:room")
        assert (channel["subscribers"], [one["name"] for one in channel["presence"]]) == (1, ["two"])
        assert await client.channel_publish("kept:room", "hi") is None, "it is under way"
        assert await client.channel_publish("brief:room", "hi") == 0
        await a.rest()
        assert [one["data"] for one in (await client.channel_history("kept:room"))["messages"]] == ["hi"]
        assert await client.session_send("name:two", "direct") == 1
        assert (await two.until(Direct)).data == "direct"
        with pytest.raises(RequestFailed, match="there is no such session"):
            await client.session_send("name:three", "direct")
        assert await client.session_kick("name:two") == 1
        assert two.closed is not None

        found = await other.nodes()
        assert found["backplane"] == "redis"
        assert [(one["name"], one["here"]) for one in found["nodes"]] == [("b", True), ("a", False)]
        with trio.fail_after(PATIENCE):
            while (await other.nodes())["nodes"][1]["address"] != "10.0.0.1":  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert found["redis"]["online"]


@needs_redis
async def test_nodes_of_one_host_are_found_by_their_ports(redis, tmp_path):
    def settings(name: str, **more: object) -> dict[str, object]:
        control = {"socket": str(tmp_path / f"{name}.sock"), "group": ""}
        framed = {"listen": [{"address": f"unix:{tmp_path}/framed-{name}.sock"}, {"address": "127.0.0.1:0"}]}
        return {"control": control, "hub": HUB, "backplane": {"url": redis.url, **QUICK}, "framed": framed, **more}

    broker = {"listen": [{"address": "0.0.0.0:0"}]}
    async with netd.open(settings("a")) as a, netd.open(settings("b", broker=broker)) as b:
        expected = {a.addresses("framed")[1], f"{socket.gethostname()}:{b.addresses('broker')[0].rpartition(':')[2]}"}
        async with ControlClient(tmp_path / "a.sock") as client:
            with trio.fail_after(PATIENCE):
                while {one["address"] for one in (await client.nodes())["nodes"]} != expected:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            found = (await client.nodes())["nodes"]
    assert [one["name"] for one in found] == 2 * [socket.gethostname()]
    assert len({one["node"] for one in found}) == 2


@pytest.mark.parametrize(
    ("listening", "address"),
    [
        ([], None),
        (["unix:/run/netd/broker.sock", "unix:/run/x:3000"], None),
        (["unix:/run/netd/broker.sock", "[::]:3000", "10.0.0.1:1"], "host.example:3000"),
        (["0.0.0.0:9000"], "host.example:9000"),
        (["[2001:db8::1]:3000", "10.0.0.1:3000"], "[2001:db8::1]:3000"),
    ],
)
def test_where_a_node_is_found(listening, address):
    assert found_at(listening, "host.example") == address


@needs_redis
async def test_a_token_that_one_revokes_counts_nowhere_and_is_remembered_by_redis(redis, tmp_path):
    async with controlled(redis, tmp_path, "a") as (a, client):
        async with controlled(redis, tmp_path, "b") as (b, _):
            await a.online(1)
            await client.token_revoke(sub="mallory")
            await b.becomes(lambda: len(b.hub.revocations) == 1)
        async with controlled(redis, tmp_path, "c") as (c, _):
            assert [one.value for one in c.hub.revocations.all()] == ["mallory"]
        redis.say("FLUSHALL")
        await a.becomes(lambda: redis.say("HLEN", "netd:revoked") == "1")


async def test_without_it_there_is_one_machine(tmp_path):
    socket = tmp_path / "x.sock"
    async with netd.open({"control": {"socket": str(socket), "group": ""}}), ControlClient(socket) as client:
        assert await client.nodes() == {"backplane": "memory", "nodes": [], "redis": None}


async def test_without_redis_history_is_out_of_reach_and_the_api_answers(tmp_path):
    redis = Redis(tmp_path)
    async with controlled(redis, tmp_path, "a") as (a, client):
        with pytest.raises(RequestFailed, match="it is out of reach now") as caught:
            await client.channel_history("kept:room")
        assert caught.value.kind == "too-busy"
        assert not (await client.nodes())["redis"]["online"]
        assert "backplane.redis" in a.warnings
