"""Nodes that die, freeze, come back or have a wrong clock; what is revoked; and what waits for them is bounded."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from netd.backplane import company, desk, envelopes, ledger
from netd.backplane import redis as connection
from netd.backplane.desk import Call, ignore
from netd.hub.revocations import Revocation
from netd.wire.messages import AskHistory, AskPresence, Direct, History, Joined, Left, Message, Presence
from tests.backplane.followers import Follower, level
from tests.backplane.lab import FREE, Node, Person, Redis, needs_redis, node, nodes, numbers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = needs_redis


@asynccontextmanager
async def three(redis: Redis) -> AsyncIterator[tuple[Node, Node, Node, Person, Person]]:
    """Three machines of which one that is silent is soon taken for dead, and somebody on the first and the second."""
    async with nodes(redis, "a", "b", "c", expiry=0.6) as (a, b, c):
        one, two = a.person(name="one"), b.person(name="two")
        await one.hear("kept:room")
        await two.hear("kept:room")
        await one.until(Joined)
        yield a, b, c, one, two


async def names(node: Node) -> set[str | None]:
    there = await node.person(name="asks").answer(AskPresence(channel="kept:room", ref=7), Presence)
    return {each.name for each in there.clients}


async def test_a_node_that_was_taken_for_dead_and_lives_is_back_and_so_are_its_clients(redis):
    async with three(redis) as (a, b, c, one, two):
        # as if it were frozen, but for its socket: no heartbeats
        b.plane.beat = lambda answer: trio.lowlevel.current_trio_token().run_sync_soon(answer, None)
        assert (await one.until(Left)).session == two.session.id
        del b.plane.beat
        assert (await one.until(Joined)).session == two.session.id
        for each in (a, b, c):
            await each.online(2)
        await b.rest()
        assert await names(a) == await names(c) == {"one", "two"}
        assert not [event for event in two.heard() if isinstance(event, Left)]  # of itself


async def test_a_node_that_was_cut_off_for_longer_than_its_expiry_is_back_and_so_are_its_clients(redis):
    async with three(redis) as (a, b, c, one, two):
        b.plane.leave = lambda: Call("beat", [b"x", b"y"], [b"", b"", 1, 0, 1], ignore)  # it cannot say goodbye
        b.plane.goodbye = lambda: b"\n"
        await b.daemon.service_stop("backplane")
        assert (await one.until(Left)).session == two.session.id
        assert await names(c) == {"one"}
        assert await names(b) == {"two"}
        await b.daemon.service_start("backplane")
        assert (await one.until(Joined)).session == two.session.id
        await level(a, b, c)
        assert await names(a) == await names(b) == {"one", "two"}
        del b.plane.leave, b.plane.goodbye


async def test_presence_in_redis_ends_with_its_node_though_no_other_is_there(redis, monkeypatch):
    monkeypatch.setattr(company, "PRESENCE", 100)
    monkeypatch.setattr("netd.backplane.plane.PRESENCE", 100)
    async with node(redis, "a") as a:
        for number in range(1200):
            a.hub.subscribe(a.person().session, b"kept:%d" % number)
        await a.becomes(lambda: redis.say("TTL", "netd:nodes") == "100")
        await a.becomes(lambda: redis.say("SCARD", f"netd:i:{a.plane.node}") == "1201")

        def lasting() -> list[int]:
            keys = redis.say("--scan", "--pattern", f"netd:?:{a.plane.node}*").split()
            text = "local o = {} for i, k in ipairs(KEYS) do o[i] = redis.call('TTL', k) end return o"
            return [int(each) for each in redis.say("EVAL", text, str(len(keys)), *keys).split()]

        found = lasting()
        assert len(found) == 1202
        assert all(0 < each <= 100 for each in found)
        keys = redis.say("--scan", "--pattern", f"netd:?:{a.plane.node}*").split()
        redis.say("EVAL", "for _, k in ipairs(KEYS) do redis.call('EXPIRE', k, 50) end", str(len(keys)), *keys)
        a.plane._lasting = 0.0  # the next heartbeat renews them
        await a.becomes(lambda: min(lasting()) > 90)


async def test_two_nodes_of_one_name_are_two(redis):
    async with nodes(redis, "same", "same") as (a, b):
        one, two = a.person(name="one"), b.person(name="two")
        await one.hear("kept:room")
        await two.hear("kept:room")
        await b.rest()
        assert await names(a) == {"one", "two"}
        b.hub.publish(b"kept:room", 1)
        assert (await one.until(Message)).data == (await two.until(Message)).data == 1


async def test_a_clock_that_is_wrong_ends_nothing_of_the_others(redis):
    aged = [{"name": "aged", **FREE, "history_size": 100, "history_seconds": 3600}]
    async with nodes(redis, "a", "b", hub={"namespace": aged}) as (a, b):
        for number in range(5):
            a.hub.publish(b"aged:x", number)
        a.hub.revoke("sub", "mallory", 1000)
        await level(a, b)
        b.hub.clock = lambda: time.time() + 1e6
        b.hub.publish(b"aged:x", 5)
        await level(a, b)
        for each in (b, a):
            history = await each.person().answer(AskHistory(channel="aged:x", ref=7), History)
            assert numbers(history.messages) == list(range(6))
        await b.daemon.service_stop("backplane")
        await b.daemon.service_start("backplane")
        await b.online(1)
        async with node(redis, "c") as c:
            assert [each.value for each in c.hub.revocations.all()] == ["mallory"]
        b.hub.clock = time.time


async def test_what_is_revoked_anew_while_redis_is_away_counts_from_then(redis):
    """Or a token that was issued in between would be good on the other machines."""
    async with nodes(redis, "a", "b") as (a, b):
        a.hub.revoke("sub", "mallory", 1000)
        await b.becomes(lambda: len(b.hub.revocations) == 1)
        await a.daemon.service_stop("backplane")
        made, _ = a.hub.revoke("sub", "mallory", 1000)
        await a.daemon.service_start("backplane")
        await b.becomes(lambda: b.hub.revocations.all() == [made])
        async with node(redis, "c") as c:
            assert c.hub.revocations.all() == [made]


async def test_revocations_whose_time_is_over_do_not_hide_those_that_count(redis):
    async with node(redis, "a", hub={"max_revocations": 10}) as a:
        a.hub.revoke("sub", "mallory", 1000)
        for number in range(20):
            a.plane._store_revocation(Revocation("jti", str(number), 1.0, 2.0))
            redis.say("HSET", "netd:revoked", f"jti:x{number}", "garbage")
        await a.rest()
        async with node(redis, "b", hub={"max_revocations": 10}) as b:
            assert [each.value for each in b.hub.revocations.all()] == ["mallory"]
        assert redis.say("HLEN", "netd:revoked") == "1"
        for number in range(600):
            a.plane._store_revocation(Revocation("jti", str(number), 1.0, 2.0))
        await a.rest()
        assert int(redis.say("HLEN", "netd:revoked")) < 256


async def test_who_subscribes_while_redis_is_away_gets_what_others_said_since(redis):
    async with nodes(redis, "a", "b") as (a, b):
        a.hub.publish(b"kept:room", "long ago")
        async with node(redis, "c") as gone:
            gone.hub.publish(b"kept:room", "of somebody who is gone")
            await gone.becomes(lambda: not len(gone.plane.outgoing))
        await level(a, b)
        await b.daemon.service_stop("backplane")
        there = await Follower(b.person()).begin()
        assert there.place is None
        b.hub.publish(b"kept:room", "here")
        async with node(redis, "d") as new:
            new.hub.publish(b"kept:room", "of somebody new")
            await new.becomes(lambda: not len(new.plane.outgoing))
        for number in range(3):
            a.hub.publish(b"kept:room", number)
        await a.becomes(lambda: not len(a.plane.outgoing))
        await b.daemon.service_start("backplane")
        await there.has(5)
        await level(a, b)
        there.look()
        assert there.told == ["here", "of somebody new", 0, 1, 2]
        a.hub.publish(b"kept:room", 3)
        await there.has(6)
        assert there.place is not None
        assert there.place.offset == 8
        assert not there.holes


async def test_what_is_lost_to_the_others_while_redis_is_there_begins_a_new_epoch_too(redis):
    async with node(redis, "b") as b, node(redis, "a", queue_messages=10) as a:
        await a.online(1)
        here, there = await Follower(a.person()).begin(), await Follower(b.person()).begin()
        a.hub.publish(b"kept:room", 0)
        await there.has(1)
        before = there.place
        for number in range(1, 31):
            a.hub.publish(b"kept:room", number)
        await here.has(31)
        await a.becomes(lambda: redis.say("HGET", "netd:c:kept:room", "e") != before.epoch)
        a.hub.publish(b"kept:room", 31)
        await there.has(12)
        await here.has(32)
        assert (here.told, there.told) == (list(range(32)), [0, *range(21, 32)])
        assert here.place.epoch == there.place.epoch != before.epoch
        assert (await b.person().hear("kept:room", before)).recovered is False
        await a.becomes(lambda: "backplane.overflow" not in a.warnings)


async def test_what_is_said_last_reaches_the_others_before_the_goodbye(redis):
    async with node(redis, "b") as b:
        there = b.person(name="x")
        await there.hear("kept:room")
        async with node(redis, "a") as a:
            await a.online(1)
            for number in range(300):
                a.hub.direct("name:x", number)
                a.hub.publish(b"kept:room", number)
        await b.becomes(lambda: not b.plane.nodes)
        heard = there.heard()
        assert [each.data for each in heard if isinstance(each, Direct)] == list(range(300))
        assert numbers(heard) == list(range(300))
        assert redis.say("--scan", "--pattern", "netd:p:a.*") == ""


async def test_letters_that_redis_does_not_take_fast_enough_are_bounded(redis):
    async with node(redis, "b") as b, node(redis, "a", timeout=30, queue_bytes=10_000) as a:
        await a.online(1)
        redis.freeze()
        counts: list[int] = []
        for _ in range(200):
            a.hub.direct("name:x", "x" * 1000, answer=counts.append)
        assert a.plane.waiting < 12_000
        assert a.plane.figures.refused == len(counts) > 100
        redis.thaw()
        await a.becomes(lambda: len(counts) == 200)
        assert a.plane.waiting == 0
        assert b.plane.online


async def test_more_questions_than_redis_takes_end_in_beginning_anew(redis, monkeypatch):
    monkeypatch.setattr(desk, "MAX_CALLS", 500)
    async with node(redis, "b") as b, node(redis, "a", timeout=30) as a:
        await a.online(1)
        redis.freeze()
        people = [a.person() for _ in range(1000)]
        await a.becomes(lambda: "more is asked of it than it answers" in a.warnings.get("backplane.redis", ""))
        assert not a.plane.asking
        redis.thaw()
        await a.online(1)
        await a.becomes(lambda: redis.say("HLEN", f"netd:p:{a.plane.node}:") == str(len(people)))
        assert b.plane.online


async def test_nodes_that_came_and_went_are_not_remembered_for_ever(redis):
    async with node(redis, "a") as a:
        one = await Follower(a.person()).begin()
        for number in range(3 * ledger.MAX_SPEAKERS):
            said = envelopes.encode(envelopes.Said(f"n.{number}", 1, b"kept:room", number))
            a.plane.arrived(b"e\t%d\n" % (number + 1) + said)
            if not number:
                track = a.plane.tracks.get(b"kept:room")
                track.epoch, track.offset, track.fetching = "e", 1, False
        await one.has(3 * ledger.MAX_SPEAKERS - 1)
        assert len(track.said) <= ledger.MAX_SPEAKERS
        assert len(a.plane.tracks._latest) <= ledger.MAX_SPEAKERS


async def test_without_what_coredis_does_not_promise_it_works_all_the_same(redis, monkeypatch):
    monkeypatch.setattr(connection, "PUSHED", "_no_such_buffer")
    async with nodes(redis, "a", "b") as (a, b):
        there = await Follower(b.person()).begin()
        for number in range(500):
            a.hub.publish(b"kept:room", number)
        await there.has(500)
        assert there.told == list(range(500))


def test_coredis_keeps_what_it_was_pushed_where_it_did():
    """If this fails: netd works without, but a flood is bounded by less. See PUSHED in netd/backplane/redis.py."""
    from coredis.connection import TCPConnection, TCPLocation

    lanes = TCPConnection(TCPLocation("127.0.0.1", 1))
    try:
        assert hasattr(getattr(lanes, connection.PUSHED, None), "receive_nowait")
    finally:
        for each in vars(lanes).values():
            if hasattr(each, "close"):
                each.close()


async def test_who_was_not_there_while_redis_was_away_recovers_all_of_it_where_it_was_said(redis):
    """Nobody who heard it without offsets has gone, so nobody can come back who has it already."""
    async with nodes(redis, "a", "b") as (a, b):
        here, gone = await Follower(a.person()).begin(), await Follower(a.person()).begin()
        a.hub.publish(b"kept:room", 0)
        await here.has(1)
        await gone.has(1)
        gone.person.leave()
        await a.daemon.service_stop("backplane")
        for number in range(1, 6):
            a.hub.publish(b"kept:room", number)
        await here.has(6)
        await a.daemon.service_start("backplane")
        await level(a, b)
        again = await Follower(a.person()).begin()
        assert again.place.offset == 6
        await gone.again(a.person())
        await gone.has(6)
        assert (gone.told, gone.fresh) == (list(range(6)), 0)
        # one of those who had heard it leaves: it may come back from before
        place = here.place
        here.person.leave()
        late = await a.person().hear("kept:room", type(place)(place.epoch, 1))
        assert late.recovered is False


async def test_what_has_come_when_a_connection_ends_is_delivered_still():
    async with node("unix:/nowhere/at/all.sock", "a") as a:
        await a.daemon.service_stop("backplane")
        one = a.person()
        await one.hear("brief:room")
        life = connection._Life(a.plane, a.plane.config, None, None)
        life._inbound.put(b"\n" + envelopes.encode(envelopes.Said("n.1", 1, b"brief:room", "late")))
        a.plane.online = True
        with pytest.raises(ExceptionGroup):
            await life.run(lambda: None, trio.Event(), lambda: False)
        a.plane.cut()
        assert (await one.until(Message)).data == "late"


async def test_what_redis_took_and_never_gave_back_is_delivered_here_in_the_end(redis):
    async with node(redis, "a", timeout=0.1) as a:
        one = a.person()
        await one.hear("kept:room")
        a.plane.arrived = lambda payload: None
        a.plane._fetch = lambda channel: None
        a.hub.publish(b"kept:room", "strayed")
        assert (await one.until(Message)).data == "strayed"
        assert not len(a.plane.outgoing)
        assert a.plane.online
        del a.plane.arrived, a.plane._fetch


async def test_who_comes_while_a_heartbeat_is_on_its_way_is_not_forgotten_over_it():
    async with node("unix:/nowhere/at/all.sock", "a") as a:
        await a.daemon.service_stop("backplane")
        plane = a.plane
        for known in (True, False):  # the next heartbeat knows better
            plane.beat(ignore)
            call = plane._pop()
            if known:
                plane.arrived(b"\n" + envelopes.encode(envelopes.Alive("new.1")))
            call.answer([1, 0, plane.node.encode(), b""])
            assert ("new.1" in plane.nodes) is known
            while plane.asking:
                plane._pop()


async def test_a_connection_that_breaks_as_it_is_cancelled_is_no_failure(redis, monkeypatch):
    """Its tasks may find the socket closed before they find that they are to end."""

    async def breaks(self: connection._Life, *how: object) -> None:
        async def lost() -> None:
            try:
                await self._hold(self._calls, task_status=trio.TASK_STATUS_IGNORED)
            finally:
                raise connection.Away("the connection was lost", "")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            await trio.sleep_forever()

    async with node(redis, "a") as a:
        await a.daemon.service_stop("backplane")
        monkeypatch.setattr(connection._Life, "run", breaks)
        ended = trio.Event()
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.serve(
                a.plane, a.plane.config, None, None, online=ended.set, leaving=ended, stays=lambda: False
            )
        assert scope.cancelled_caught


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_of_what_several_find_at_once_the_reason_is_told(order):
    """A refusal closes the connection, and then its other users only find that it is lost."""
    lost, refused = connection._Lost("lost", ""), connection.exceptions.ResponseError("WRONGPASS")
    away, odd = connection.Away("it is a cluster", ""), ValueError("a mistake")
    assert connection._first(ExceptionGroup("", [lost, OSError()][order])) is lost
    assert connection._first(ExceptionGroup("", [lost, ExceptionGroup("", [refused])][order])) is refused
    assert connection._first(ExceptionGroup("", [lost, refused, away][order])) is away
    strange = ExceptionGroup("", [lost, odd][order])
    assert connection._first(strange) is strange
