"""Two and three daemons over one Redis, while all is well."""

from __future__ import annotations

from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Broadcast,
    Clients,
    Direct,
    Error,
    Hello,
    History,
    Joined,
    Left,
    ListClients,
    Ok,
    Position,
    Presence,
    Publish,
    SendBroadcast,
    SendDirect,
    Welcome,
)
from netd.wire.rows import Row
from tests.backplane.lab import needs_redis, nodes, numbers

pytestmark = needs_redis


async def test_a_message_reaches_those_who_hear_its_channel_on_every_machine(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        people = [one.person() for one in (a, b, c)]
        for person in people:
            await person.hear("kept:room")
            await person.hear("brief:room")
        people[0].say("kept:room", "one")
        people[1].say("kept:room", b"two")
        people[2].say("brief:room", {"three": 3})
        for person in people:
            heard = await person.messages(3)
            kept = [one for one in heard if one.channel == "kept:room"]
            assert [one.offset for one in kept] == [1, 2]
            assert sorted(map(repr, numbers(heard))) == ["'one'", "b'two'", "{'three': 3}"]
            assert {one.from_ for one in heard} == {each.session.id for each in people}


async def test_an_answer_counts_only_those_that_a_message_has_reached(redis):
    """What has to come back first, with its offset, is still under way."""
    async with nodes(redis, "a") as (a,):
        one = a.person()
        for channel, reached in (("kept:room", None), ("brief:room", 1)):
            await one.hear(channel)
            assert (await one.answer(Publish(channel=channel, data="hi", ref=7), Ok)).delivered == reached
            a.hub.publish_row(one.session, Row(channel.encode(), str, ["in", "a row"], [b"", b""], [7, 7]))
            assert [(await one.until(Ok)).delivered for _ in range(2)] == [reached] * 2


async def test_all_machines_deliver_a_channel_in_one_order(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one, two = a.person(), b.person()
        await one.hear("kept:room")
        await two.hear("kept:room")
        for number in range(200):
            one.say("kept:room", number)
            two.say("kept:room", 1000 + number)
        heard, also = await one.messages(400), await two.messages(400)
        assert [each.offset for each in heard] == list(range(1, 401))
        assert numbers(heard) == numbers(also)
        assert [each for each in numbers(heard) if each < 1000] == list(range(200))


async def test_a_direct_message_finds_its_session_anywhere(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one, two = a.person(name="one"), b.person(name="two")
        also = a.person(name="two")
        assert (await one.answer(SendDirect(to=two.session.id, data="hi", ref=7), Ok)).delivered == 1
        assert (await two.until(Direct)).data == "hi"
        assert (await one.answer(SendDirect(to="name:two", data="both", ref=7), Ok)).delivered == 2
        assert (await two.until(Direct)).data == (await also.until(Direct)).data == "both"
        refused = await one.answer(SendDirect(to="name:three", data="?", ref=7), Error)
        assert refused.code == "not-found"


async def test_a_broadcast_reaches_all_but_its_sender(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one, here, there = a.person(), a.person(), b.person()
        assert (await one.answer(SendBroadcast(data=[1], ref=7), Ok)).delivered == 2
        assert (await here.until(Broadcast)).data == (await there.until(Broadcast)).data == [1]


async def test_who_is_there_and_who_comes_and_goes(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person(name="one")
        await one.hear("kept:room")
        two = b.person(tags={"k": "v"})
        await two.answer(Hello(version=1, name="two", ref=7), Ok)
        await two.hear("kept:room")
        joined = await one.until(Joined)
        assert (joined.session, joined.name, joined.channel) == (two.session.id, "two", "kept:room")
        await b.rest()
        there = (await one.answer(AskPresence(channel="kept:room", ref=7), Presence)).clients
        assert {(each.name, str(each.tags)) for each in there} == {("one", "None"), ("two", "{'k': 'v'}")}
        assert len((await two.answer(ListClients(ref=7), Clients)).clients) == 2
        two.leave()
        assert (await one.until(Left)).session == two.session.id
        await b.rest()
        there = (await one.answer(AskPresence(channel="kept:room", ref=7), Presence)).clients
        assert [each.name for each in there] == ["one"]
        assert len((await one.answer(ListClients(ref=7), Clients)).clients) == 1


async def test_history_is_one_for_all_and_who_comes_back_elsewhere_misses_nothing(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        await one.hear("kept:room")
        for number in range(10):
            one.say("kept:room", number)
        (*_, last) = await one.messages(5)
        history = await b.person().answer(AskHistory(channel="kept:room", limit=3, ref=7), History)
        assert (numbers(history.messages), history.offset) == ([7, 8, 9], 10)
        again = b.person()
        ok = await again.hear("kept:room", Position(last.epoch, last.offset))
        assert ok.recovered
        assert [(each.data, each.offset) for each in await again.messages(5)] == [(n, n + 1) for n in range(5, 10)]
        nothing = await b.person().hear("kept:room", Position(last.epoch, 10))
        assert (nothing.recovered, nothing.offset) == (True, 10)
        other = await b.person().hear("kept:room", Position("another", 3))
        assert (other.recovered, other.offset) == (False, 10)


async def test_only_as_much_is_kept_as_the_namespace_says(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        first = await one.hear("short:room")
        for number in range(20):
            one.say("short:room", number)
        await one.messages(20)
        history = await b.person().answer(AskHistory(channel="short:room", ref=7), History)
        assert numbers(history.messages) == list(range(15, 20))
        late = await b.person().hear("short:room", Position(first.epoch, 3))
        assert (late.recovered, late.offset) == (False, 20)


async def test_a_kick_reaches_every_machine(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one, two = a.person(name="x"), b.person(name="x")
        counts: list[int] = []
        a.hub.kick("name:x", 4010, "out", answer=counts.append)
        await b.becomes(lambda: bool(counts))
        assert counts == [2]
        assert one.closed == two.closed == (4010, "out")


async def test_a_name_that_was_taken_later_is_known_elsewhere(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        await one.hear("kept:room")
        welcome = await one.answer(Hello(version=1, name="late", ref=7), Ok)
        assert welcome
        await a.rest()
        there = (await b.person().answer(AskPresence(channel="kept:room", ref=7), Presence)).clients
        assert [each.name for each in there] == ["late"]
        assert Welcome


async def test_a_resumed_session_is_known_by_its_id_elsewhere(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        one.ask(Hello(version=1))
        welcome = await one.until(Welcome)
        one.leave()
        again = a.person()
        again.ask(Hello(version=1, resume=welcome.resume))
        assert (await again.until(Welcome)).session == welcome.session
        await a.rest()
        two = b.person()
        there = (await two.answer(ListClients(ref=7), Clients)).clients
        assert {each.session for each in there} == {welcome.session, two.session.id}


async def test_tags_find_sessions_on_every_machine(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        found = [b.person(), c.person()]
        for person in found:
            person.node.hub.tag(person.session, {"device": "x"})
        counts: list[int] = []
        a.hub.direct("tag:device=x", "hi", answer=counts.append)
        await a.becomes(lambda: counts == [2])
        a.hub.kick("tag:device=x", 4001, "out", answer=counts.append)
        await a.becomes(lambda: counts == [2, 2])
        assert [person.closed for person in found] == [(4001, "out")] * 2
        assert (await found[0].until(Direct)).data == "hi"
