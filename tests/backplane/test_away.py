"""Redis goes away and comes back: frozen, killed, emptied, with what it kept and without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from coredis import exceptions

from netd.backplane import envelopes
from netd.backplane.redis import _Life
from netd.wire.messages import AskHistory, Error, History, Left, Message, Ok, Position, SendDirect, Subscribe
from tests.backplane.followers import Follower, level
from tests.backplane.lab import Node, Redis, needs_redis, node, nodes, numbers

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_redis


@pytest.fixture
async def redis(tmp_path: Path):
    """One of its own, that writes down everything before it answers."""
    redis = Redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    await redis.ready()
    yield redis
    redis.kill()


async def test_while_it_is_frozen_messages_go_on_here_and_reach_the_others_later(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
        a.hub.publish(b"kept:room", "before")
        await here.has(1)
        await there.has(1)
        redis.freeze()
        a.hub.publish(b"kept:room", 0)
        await a.offline()
        for number in range(1, 50):
            a.hub.publish(b"kept:room", number)
            assert a.hub.publish(b"brief:room", number) == 0
        await here.has(51)
        assert here.told == ["before", *range(50)]
        assert "backplane.redis" in a.warnings
        assert "no answer within 1 s" in a.warnings["backplane.redis"]
        redis.thaw()
        await level(a, b)
        a.hub.publish(b"kept:room", "after")
        await here.has(52)
        await there.has(52)
        assert here.told == there.told == ["before", *range(50), "after"]
        assert not here.holes
        assert not there.holes
        assert here.place == there.place
        assert "backplane.redis" not in a.warnings


async def test_who_heard_messages_without_offsets_is_told_where_they_are(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here = a.person()
        ok = await here.hear("kept:room")
        redis.kill()
        await a.offline()
        a.hub.publish(b"kept:room", 1)
        assert (await here.until(Message)).offset is None
        redis.start()
        await level(a, b)
        place = await here.until(Ok)
        assert (place.ref, place.channel, place.epoch, place.offset) == (None, "kept:room", ok.epoch, 1)


async def test_both_sides_say_things_while_it_is_away_and_nothing_is_lost_or_comes_twice(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        people = [await Follower(one.person()).begin() for one in (a, b, c)]
        every = []

        async def talk(node: Node, name: str) -> None:
            for number in range(300):
                data = f"{name}{number}"
                every.append(data)
                node.hub.publish(b"kept:room", data)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, a, "a")
            nursery.start_soon(talk, b, "b")
            await people[0].has(100)
            redis.kill()
            await a.offline()
            redis.start()
        await level(a, b, c)
        for one in people:
            await one.has(600)
            one.look()
            assert not one.twice
            assert sorted(one.told) == sorted(every)
            assert not one.holes
            for name in ("a", "b"):
                assert [each for each in one.told if each[0] == name] == [f"{name}{number}" for number in range(300)]
        assert people[0].place == people[1].place == people[2].place
        assert people[0].place.offset == 600


async def test_who_was_away_meanwhile_gets_what_the_others_said(redis):
    async with nodes(redis, "a", "b") as (a, b):
        there = await Follower(b.person()).begin()
        a.hub.publish(b"kept:room", 1)
        await there.has(1)
        redis.kill()
        await a.offline()
        for number in range(2, 20):
            a.hub.publish(b"kept:room", number)
        redis.start()
        await level(a, b)
        fresh = b.person()
        await there.again(fresh)
        await there.has(19)
        assert there.told == list(range(1, 20))
        assert not there.fresh


async def test_who_comes_back_where_messages_had_no_offsets_is_told_that_something_may_be_missing(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here = await Follower(a.person()).begin()
        a.hub.publish(b"kept:room", 1)
        await here.has(1)
        redis.kill()
        await a.offline()
        a.hub.publish(b"kept:room", 2)
        await here.has(2)
        await here.again(a.person())  # Redis is still away, and the place of 2 is not known
        assert here.fresh == 1
        redis.start()
        await level(a, b)
        a.hub.publish(b"kept:room", 3)
        await here.has(3)
        assert here.told == [1, 2, 3]
        assert not here.twice
        behind = await Follower(a.person()).begin()
        ok = await a.person().hear("kept:room", Position(behind.place.epoch, 1))
        assert ok.recovered is False


async def test_what_it_lost_over_a_restart_begins_new_epochs(tmp_path):
    redis = Redis(tmp_path)  # it keeps nothing
    redis.start()
    try:
        await redis.ready()
        async with nodes(redis, "a", "b") as (a, b):
            here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
            for number in range(10):
                a.hub.publish(b"kept:room", number)
            await there.has(10)
            before = there.place
            redis.kill()
            await a.offline()
            a.hub.publish(b"kept:room", 10)
            redis.start()
            await level(a, b)
            a.hub.publish(b"kept:room", 11)
            await here.has(12)
            await there.has(12)
            assert here.told == there.told == list(range(12))
            assert there.place.epoch != before.epoch
            late = await b.person().hear("kept:room", before)
            assert late.recovered is False
    finally:
        redis.kill()


async def test_emptied_under_way_it_begins_new_epochs_and_knows_everybody_again(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here, there = await Follower(a.person(name="one")).begin(), await Follower(b.person()).begin()
        for number in range(10):
            a.hub.publish(b"kept:room", number)
        await there.has(10)
        before = there.place
        redis.say("FLUSHALL")
        for number in range(10, 20):
            b.hub.publish(b"kept:room", number)
        await here.has(20)
        await there.has(20)
        assert here.told == there.told == list(range(20))
        assert there.place.epoch != before.epoch
        assert (await a.person().hear("kept:room", before)).recovered is False
        await a.becomes(lambda: int(redis.say("HLEN", f"netd:p:{a.plane.node}:kept:room")) == 2)


async def test_a_lagging_copy_in_its_place_begins_new_epochs(redis):
    """What a failover to a replica does that had not everything yet."""
    async with nodes(redis, "a", "b") as (a, b):
        there = await Follower(b.person()).begin()
        for number in range(10):
            a.hub.publish(b"kept:room", number)
        await there.has(10)
        await level(a, b)
        before = there.place
        redis.freeze()
        await a.offline()
        await b.offline()
        redis.thaw()
        redis.say("HSET", "netd:c:kept:room", "o", "5")
        redis.say("SET", f"netd:q:{a.plane.node}", "5")
        for number in range(6, 11):
            redis.say("XDEL", "netd:h:kept:room", f"{number}-0")
        await level(a, b)
        for number in range(10, 15):
            a.hub.publish(b"kept:room", number)
        await there.has(15)
        assert there.told == list(range(15))
        assert there.place.epoch != before.epoch
        assert (await a.person().hear("kept:room", before)).recovered is False


async def test_past_its_bound_the_queue_gives_up_the_oldest_and_its_channel_begins_anew(redis):
    async with node(redis, "b") as b, node(redis, "a", queue_messages=10) as a:
        await a.online(1)
        await b.online(1)
        here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
        other = await Follower(b.person(), "short:calm").begin()
        a.hub.publish(b"kept:room", 0)
        a.hub.publish(b"short:calm", 0)
        await there.has(1)
        await other.has(1)
        before, calm = there.place, other.place
        redis.kill()
        await a.offline()
        for number in range(1, 31):
            a.hub.publish(b"kept:room", number)
        await here.has(31)
        redis.start()
        await level(a, b)
        a.hub.publish(b"kept:room", 31)
        await here.has(32)
        await there.has(12)
        assert here.told == list(range(32))
        assert there.told == [0, *range(21, 32)]
        assert there.place.epoch != before.epoch
        assert (await b.person().hear("kept:room", before)).recovered is False
        assert (await b.person().hear("short:calm", calm)).recovered is True


async def test_past_its_bound_what_comes_is_fetched_from_history(redis):
    async with node(redis, "a") as a, node(redis, "b", inbound_messages=16) as b:
        await b.online(1)
        there = await Follower(b.person()).begin()
        for number in range(800):
            a.hub.publish(b"kept:room", number)
        await there.has(800)
        assert there.told == list(range(800))
        assert not there.holes
        assert b.plane.figures.dropped
        assert not b.plane.figures.missed


async def test_the_clients_of_a_dead_machine_have_left(redis):
    async with node(redis, "a") as a:
        one = a.person()
        await one.hear("kept:room")
        async with node(redis, "b", expiry=0.5) as b:
            await b.online(1)
            two = b.person(name="two")
            await two.hear("kept:room")
            await a.online(1)
            await b.rest()
            # it dies: no goodbye, and nothing it does reaches Redis any more
            b.plane.config = b.plane.config.model_copy(update={"prefix": "x"})
            b.plane.online = False
            b.plane.next_call = lambda: None
            left = await one.until(Left)
            assert left.session == two.session.id
            assert not a.plane.nodes
            assert redis.say("KEYS", "netd:p:b*") == ""
            del b.plane.next_call


async def test_a_daemon_starts_without_it_and_joins_when_it_is_there(tmp_path):
    redis = Redis(tmp_path)
    async with node(redis, "a") as a:
        assert "backplane.redis" in a.warnings
        here = a.person()
        ok = await here.hear("kept:room", Position("some", 3))
        assert (ok.recovered, ok.epoch) == (False, None)
        a.hub.publish(b"kept:room", "alone")
        assert (await here.until(Message)).data == "alone"
        refused = await here.answer(AskHistory(channel="kept:room", ref=7), Error)
        assert refused.code == "unavailable"
        assert (await here.answer(SendDirect(to="name:x", data="", ref=7), Error)).code == "not-found"
        redis.start()
        try:
            await a.online()
            assert "backplane.redis" not in a.warnings
            await a.becomes(lambda: not len(a.plane.outgoing))
            history = await here.answer(AskHistory(channel="kept:room", ref=7), History)
            assert numbers(history.messages) == ["alone"]
        finally:
            redis.kill()


async def test_who_is_subscribing_when_it_goes_away_is_answered(redis):
    async with nodes(redis, "a", "b") as (a, b):
        redis.freeze()
        one = a.person()
        one.ask(Subscribe(channel="kept:room", ref=7))
        one.ask(AskHistory(channel="kept:other", ref=8))
        ok = await one.until(Ok)
        assert (ok.ref, ok.epoch) == (7, None)
        redis.thaw()
        await level(a, b)
        b.hub.publish(b"kept:room", 1)
        assert (await one.until(Message)).offset == 1


async def test_who_heard_messages_without_offsets_is_not_told_that_all_is_well_where_others_messages_are_lost(redis):
    """Where it is comes with its next message then, so that it sees another epoch."""
    async with node(redis, "b") as b, node(redis, "a", queue_messages=10) as a:
        await a.online(1)
        await b.online(1)
        here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
        a.hub.publish(b"kept:room", 0)
        await there.has(1)
        await here.has(1)
        redis.freeze()
        b.hub.publish(b"kept:room", "of b")
        for number in range(1, 31):
            a.hub.publish(b"kept:room", number)
        await b.offline()
        await a.offline()
        await there.has(2)
        redis.thaw()
        await level(a, b)
        b.hub.publish(b"kept:room", "last")
        await there.has(13)
        await here.has(33)
        assert there.told == [0, "of b", *range(21, 31), "last"]
        assert there.breaks
        assert not there.holes


async def test_a_page_that_was_asked_for_before_another_counts_for_nothing(redis):
    """It may be behind what has come since, and look like a history that has lost something."""
    async with node(redis, "a") as a:
        here = await Follower(a.person()).begin()
        for number in range(3):
            a.hub.publish(b"kept:room", number)
        await here.has(3)
        plane, asked = a.plane, []
        epoch = here.place.epoch.encode()
        push, plane._push = plane._push, lambda call, **more: asked.append(call)
        plane.resync()
        plane.resync()
        asked[1].answer([epoch, 3, b"x"])
        said = envelopes.encode(envelopes.Said("other.1", 1, b"kept:room", 3))
        plane.arrived(epoch + b"\t4\n" + said)
        await here.has(4)
        plane.resync()
        asked[0].answer([epoch, 3, b"x"])
        asked[2].answer([epoch, 4, b"x", b"4", said])
        plane._push = push
        assert [call.script for call in asked if call.script != "beat"] == ["history"] * 3
        assert here.place.offset == 4
        here.look()
        assert here.told == [0, 1, 2, 3]


async def test_a_channel_that_begins_new_epochs_all_the_time_is_not_read_from_its_beginning_each_time(redis):
    """Or who hears a long one would never catch up."""
    async with nodes(redis, "a", "b") as (a, b):
        there = await Follower(b.person()).begin()
        for number in range(900):
            a.hub.publish(b"kept:room", number)
        await there.has(900)
        before = b.plane.figures.fetched
        read: list[int] = []
        take = b.plane._read_page

        def see(channel: bytes, result: Any) -> Any:
            found = take(channel, result)
            read.append(len(found[2]))
            return found

        await b.person().answer(AskHistory(channel="kept:room", ref=7), History)
        b.plane._read_page = see
        for number in range(900, 910):
            redis.say("HSET", "netd:c:kept:room", "e", f"another{number}~")  # and nobody is told
            a.hub.publish(b"kept:room", number)
            await there.has(number + 1)
        del b.plane._read_page
        assert there.told == list(range(910))
        assert b.plane.figures.fetched - before == 10
        assert sum(read) <= 20
        assert len(there.breaks) == 10
        assert not there.holes
        assert (await b.person().hear("kept:room", Position("another", 3))).recovered is False


async def test_who_hears_nothing_more_is_told_all_the_same_that_messages_are_lost(redis):
    """On every machine, and only of the channel that lost some."""
    async with node(redis, "b") as b, node(redis, "a", queue_messages=10) as a:
        await a.online(1)
        await b.online(1)
        people = [await Follower(each.person()).begin() for each in (a, b)]
        calm = [await Follower(each.person(), "short:calm").begin() for each in (a, b)]
        for channel in (b"kept:room", b"short:calm"):
            a.hub.publish(channel, 0)
        for one in (*people, *calm):
            await one.has(1)
        redis.kill()
        await a.offline()
        for number in range(1, 31):
            a.hub.publish(b"kept:room", number)
        redis.start()
        await level(a, b)
        for one in people:
            await one.person.node.becomes(lambda one=one: one.look() or bool(one.breaks))
        await level(a, b)
        for one in people:
            one.look()
            assert len(one.breaks) == 1
            assert one.place.offset == 11
        assert people[0].place == people[1].place
        for one in calm:
            one.look()
            assert not one.breaks


async def test_that_messages_are_lost_is_told_after_the_next_outage_if_redis_goes_away_again_before_it_knows(redis):
    async with node(redis, "b") as b, node(redis, "a", queue_messages=10) as a:
        await a.online(1)
        await b.online(1)
        there = await Follower(b.person()).begin()
        a.hub.publish(b"kept:room", 0)
        await there.has(1)
        before = there.place
        redis.kill()
        await a.offline()
        for number in range(1, 31):
            a.hub.publish(b"kept:room", number)
        push, away = a.plane._push, []

        def lose(call: Any, **more: Any) -> None:
            """The connection ends before Redis has heard this."""
            if call.script == "renew" and not away:
                away.append(call)
                call.answer(None)
            else:
                push(call, **more)

        a.plane._push = lose
        redis.start()
        await level(a, b)
        assert away
        redis.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await b.becomes(lambda: there.look() or bool(there.breaks))
        assert (await b.person().hear("kept:room", before)).recovered is False


async def test_who_hears_nothing_more_is_told_too_where_another_machine_sees_that_redis_lost_something(redis):
    """It is behind what that machine knows; this one was there all the time, and had no reason to ask."""
    async with nodes(redis, "a", "b") as (a, b):
        here = await Follower(a.person()).begin()
        b.hub.publish(b"kept:room", 1)
        await here.has(1)
        before = here.place
        await b.daemon.service_stop("backplane")
        redis.say("SET", f"netd:q:{b.plane.node}", "0")
        await b.daemon.service_start("backplane")
        await a.becomes(lambda: here.look() or bool(here.breaks))
        assert here.place == Position(here.breaks[0].epoch, before.offset)
        assert here.told == [1]


async def test_what_was_delivered_already_and_is_said_again_under_another_offset_is_no_hole(redis):
    """Redis has lost what it had, and those who were heard say again what it may not have."""
    async with node(redis, "a") as a:
        here = await Follower(a.person()).begin()
        plane, asked = a.plane, []
        epoch = here.place.epoch.encode()
        said = [envelopes.encode(envelopes.Said("other.1", number, b"kept:room", number)) for number in range(9)]
        for number in (1, 2, 3):
            plane.arrived(epoch + b"\t%d\n" % number + said[number])
        await here.has(3)
        push, plane._push = plane._push, lambda call, **more: asked.append(call)
        plane.resync()
        page = [said[each] for each in (2, 4, 3, 5, 1)]
        rows = [part for offset, body in enumerate(page, 1) for part in (b"%d" % offset, body)]
        asked[-1].answer([b"new", 5, b"new", *rows])
        plane._push = push
        plane.arrived(b"new\t6\n" + said[6])
        plane.arrived(b"new\t7\n" + said[2])
        plane.arrived(b"new\t8\n" + said[7])
        await here.has(7)
        assert here.told == [1, 2, 3, 4, 5, 6, 7]
        assert not here.holes
        assert len(here.breaks) == 1
        asked.clear()
        plane._push = lambda call, **more: asked.append(call)
        plane.resync()  # what no history has any more is one
        asked[-1].answer([b"new", 11, b"new", b"10", said[3], b"11", said[8]])
        plane._push = push
        await here.has(8)
        assert len(here.holes) == 1


async def test_what_was_to_be_asked_as_the_connection_broke_is_answered(redis, monkeypatch):
    request, broken = _Life._request, []

    def breaks(life: Any, call: Any) -> Any:
        if call.script == "history" and not broken:
            broken.append(call)
            raise exceptions.ConnectionError("it has ended")
        return request(life, call)

    monkeypatch.setattr(_Life, "_request", breaks)
    async with node(redis, "a") as a:
        one = a.person()
        one.ask(Subscribe(channel="kept:room", ref=7))
        assert (await one.until(Ok)).epoch is None
        await a.online()
        a.hub.publish(b"kept:room", 1)
        assert (await one.until(Message)).data == 1
