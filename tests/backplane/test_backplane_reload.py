"""Settings that change under way: of the backplane itself, and of namespaces whose history Redis has."""

from __future__ import annotations

import pytest

from netd.wire.messages import AskHistory, AskPresence, Direct, History, Message, Position, Presence
from tests.backplane.followers import Follower, level
from tests.backplane.lab import FREE, Redis, needs_redis, node, nodes, numbers

pytestmark = needs_redis


async def test_another_heartbeat_costs_nobody_a_message(redis):
    """It makes a new generation, which serves before the old one leaves; the plane is one."""
    async with nodes(redis, "a", "b") as (a, b):
        here, there, one = await Follower(a.person()).begin(), await Follower(b.person()).begin(), a.person(name="one")
        for number in range(100):
            a.hub.publish(b"kept:room", number)
            if number == 50:
                await a.change("backplane", heartbeat=0.15)
        await level(a, b)
        a.hub.publish(b"kept:room", 100)
        b.hub.direct("name:one", "once")
        await one.until(Direct)
        for each in (here, there):
            await each.has(101)
            await each.person.node.rest()
            each.look()
            assert each.told == list(range(101))
            assert not each.holes
        assert a.plane.online
        assert not one.heard()
        assert set(b.plane.nodes) == {a.plane.node}


async def test_a_redis_that_is_elsewhere_now_is_found_and_a_wrong_one_is_told(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first, second = Redis(tmp_path / "1"), Redis(tmp_path / "2")
    first.start()
    second.start()
    try:
        await first.ready()
        await second.ready()
        async with node(first, "a") as a, node(second, "b") as b:
            there = b.person()
            await there.hear("kept:room")
            await a.change("backplane", url="unix:/nowhere/at/all.sock")
            await a.becomes(lambda: "/nowhere/at/all.sock" in a.warnings.get("backplane.redis", ""))
            a.hub.publish(b"kept:room", "waits")
            await a.change("backplane", url=second.url)
            await a.online(1)
            assert "backplane.redis" not in a.warnings
            assert (await there.until(Message)).data == "waits"
    finally:
        first.kill()
        second.kill()


async def test_switched_off_it_is_as_if_redis_were_away(redis):
    async with nodes(redis, "a", "b") as (a, b):
        there = b.person()
        await there.hear("kept:room")
        await a.change("backplane", enabled=False)
        await a.offline()
        await b.becomes(lambda: not b.plane.nodes)
        a.hub.publish(b"kept:room", "waits")
        await a.change("backplane", enabled=True)
        await a.online(1)
        assert (await there.until(Message)).data == "waits"


async def test_a_password_that_is_another_one_in_its_file_is_read_again(tmp_path):
    redis = Redis(tmp_path, "--requirepass", "old")
    redis.start()
    secret = tmp_path / "password"
    secret.write_text("old")
    try:
        async with node(redis, "a", password_file=secret) as a:
            await a.online()
            redis.say("-a", "old", "CONFIG", "SET", "requirepass", "new", quiet=True)
            redis.say("-a", "new", "CLIENT", "KILL", "TYPE", "pubsub", quiet=True)
            await a.becomes(lambda: "backplane.username and .password" in str(a.daemon.health.warnings()))
            secret.write_text("new")
            await a.online()
            assert "backplane.redis" not in a.warnings
    finally:
        redis.kill()


@pytest.mark.parametrize("size", [5, 50])
async def test_a_history_is_as_long_as_its_namespace_says_now(redis, size):
    async with nodes(redis, "a", "b") as (a, b):
        one = b.person()
        first = await one.hear("kept:room")
        for number in range(20):
            a.hub.publish(b"kept:room", number)
        await one.messages(20)
        for each in (a, b):
            await each.change("hub", namespace=[{"name": "kept", **FREE, "history_size": size}])
        history = await a.person().answer(AskHistory(channel="kept:room", ref=7), History)
        assert numbers(history.messages) == list(range(20))[-size:]
        late = await b.person().hear("kept:room", Position(first.epoch, 10))
        assert late.recovered is (size == 50)


async def test_who_is_there_is_as_its_namespace_says_now(redis):
    def rules(tracked: bool) -> list[dict[str, object]]:
        return [{"name": "kept", **FREE, "track_presence": tracked, "wildcards": True}]

    async with nodes(redis, "a", "b", hub={"namespace": rules(True)}) as (a, b):
        one, two, asks = b.person(), b.person(), a.person()
        key = f"netd:p:{b.plane.node}:kept:"

        async def present(channel: str) -> set[str]:
            await b.rest()
            answer = await asks.answer(AskPresence(channel=channel, ref=7), Presence)
            return {each.session for each in answer.clients}

        for channel in ("kept:x", "kept:*"):
            await one.hear(channel)
            assert await present(channel) == {one.session.id}
        await b.change("hub", namespace=rules(False))
        await b.becomes(lambda: redis.say("EXISTS", key + "x", key + "*") == "0")
        one.leave()
        for channel in ("kept:x", "kept:*"):
            await two.hear(channel)
            assert await present(channel) == set()
        await b.change("hub", namespace=rules(True))
        await b.becomes(lambda: redis.say("EXISTS", key + "x", key + "*") == "2")
        for channel in ("kept:x", "kept:*"):
            assert await present(channel) == {two.session.id}
        assert redis.say("HLEN", f"netd:p:{b.plane.node}:") == "1"


async def test_a_channel_that_has_a_history_since_a_reload_is_brought_level_too(redis):
    async with nodes(redis, "a", "b") as (a, b):
        there = await Follower(b.person(), "brief:room").begin()
        for each in (a, b):
            await each.change("hub", namespace=[{"name": "brief", **FREE, "history_size": 50}])
        a.hub.publish(b"brief:room", 0)
        await there.has(1)
        await b.daemon.service_stop("backplane")
        a.hub.publish(b"brief:room", 1)
        await a.becomes(lambda: not len(a.plane.outgoing))
        await b.daemon.service_start("backplane")
        await there.has(2)
        assert there.told == [0, 1]
        assert not there.holes


async def test_without_a_place_the_newest_of_a_long_history_come(redis, monkeypatch):
    async with node(redis, "a", hub={"namespace": [{"name": "kept", **FREE, "history_size": 100}]}) as a:
        for number in range(150):
            a.hub.publish(b"kept:room", f"{number:0>60000}")
        await a.becomes(lambda: not len(a.plane.outgoing))
        pages = []
        a.hub.ask_history(b"kept:room", None, 100, pages.append)
        a.hub.ask_history(b"kept:room", None, 3, pages.append)
        await a.becomes(lambda: len(pages) == 2)
        assert [each.offset for each in pages[0].messages] == list(range(51, 151))
        assert [each.offset for each in pages[1].messages] == [148, 149, 150]
        monkeypatch.setattr("netd.backplane.channels.PAGE_BYTES", 200_000)
        a.hub.ask_history(b"kept:room", None, 100, pages.append)
        await a.becomes(lambda: len(pages) == 3)
        assert [each.offset for each in pages[2].messages] == [148, 149, 150]  # as many as a page takes
