"""`netctl channels` over several machines: what is heard on any, where it is, and who did not say so in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydantic import ValidationError

from netd.backplane import envelopes
from netd.backplane.config import BackplaneConfig
from netd.backplane.envelopes import MAX_BEGUN, MAX_SOUGHT, Began, Seek, Sought
from netd.control.answers import SECONDS
from netd.errors import RequestFailed
from netd.wire.messages import AskPresence, Presence, Unsubscribe
from tests.backplane.followers import Follower, level
from tests.backplane.lab import FREE, HUB, Node, Redis, needs_redis, node, nodes
from tests.backplane.test_backplane_api import controlled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = needs_redis


async def listed(
    node: Node, prefix: bytes = b"", after: bytes | None = None, limit: int = 100
) -> tuple[list[Any], int]:
    answers: list[tuple[list[Any], int]] = []
    node.hub.backplane.channels(prefix, after, limit, lambda *answer: answers.append(answer))
    await node.becomes(lambda: bool(answers))
    return answers[0]


async def rows(node: Node, *part: Any) -> list[tuple[str, int]]:
    found, silent = await listed(node, *part)
    assert not silent
    return [(each.name.decode(), each.subscribers) for each in found]


async def test_channels_of_all_machines_are_listed_in_one_order_with_all_their_subscribers(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        for who, *names in ((a, "kept:b", "brief:z"), (b, "kept:b", "kept:a"), (c, "kept:b", "kept:c", "brief:z")):
            for name in names:
                await who.person().hear(name)
        everything = [("brief:z", 2), ("kept:a", 1), ("kept:b", 3), ("kept:c", 1)]
        for each in (a, b, c):
            assert await rows(each) == everything
        assert await rows(a, b"kept:") == everything[1:]
        assert await rows(a, b"", None, 2) == everything[:2]
        assert await rows(a, b"", b"kept:a", 1) == everything[2:3]
        assert await rows(a, b"none") == []
        assert not a.plane._sought


async def test_where_each_channel_is_and_how_much_is_kept_comes_from_redis(redis, tmp_path: Path):
    async with controlled(redis, tmp_path, "a") as (a, client), controlled(redis, tmp_path, "b") as (b, _):
        await a.online(1)
        await b.online(1)
        there = await Follower(b.person(), "short:x").begin()
        await b.person().hear("brief:x")
        for number in range(8):  # of which five are kept
            a.hub.publish(b"short:x", number)
        await there.has(8)
        await level(a, b)
        page = await client.channels()
        assert page["silent"] == 0
        brief, short = page["channels"]
        assert (brief["name"], brief["subscribers"], brief["epoch"], brief["history"]) == ("brief:x", 1, None, 0)
        assert (short["name"], short["subscribers"], short["offset"], short["history"]) == ("short:x", 1, 8, 5)
        assert short["epoch"] == there.place.epoch
        shown = await client.channel("short:x")
        assert (shown["epoch"], shown["offset"], shown["history"]) == (there.place.epoch, 8, 5)
        there.person.leave()
        await level(a, b)
        # nobody hears it, and what was said is there
        assert (await client.channel("short:x"))["history"] == 5
        with pytest.raises(RequestFailed, match="nobody hears it"):
            await client.channel("short:never")
        assert redis.say("EXISTS", "netd:c:short:never") == "0"  # looking makes no channel
        redis.say("SET", "netd:era", "another")
        with pytest.raises(RequestFailed, match="nobody hears it"):
            await client.channel("short:x")


async def test_pages_of_many_channels_have_each_once(redis, tmp_path: Path):
    async with controlled(redis, tmp_path, "a") as (a, client), controlled(redis, tmp_path, "b") as (b, _):
        await a.online(1)
        await b.online(1)
        for who, step in ((a, 2), (b, 3)):
            one, two = who.person(), who.person()
            for number in range(0, 1500, step):
                who.hub.subscribe((one if number < 700 else two).session, b"kept:%04d" % number)
        await level(a, b)
        found = [(row["name"], row["subscribers"]) async for row in client.every_channel(most=5000)]
        wanted = [(f"kept:{n:04}", (n % 2 == 0) + (n % 3 == 0)) for n in range(1500) if n % 2 == 0 or n % 3 == 0]
        assert found == wanted


async def test_patterns_are_among_them_and_have_no_place(redis):
    wild = {"name": "wild", **FREE, "history_size": 10, "wildcards": True}
    async with nodes(redis, "a", "b", hub={"namespace": [*HUB["namespace"], wild]}) as (a, b):
        await a.person().hear("wild:*.x")
        await b.person().hear("wild:*.x")
        [[found], _] = await listed(a)
        assert (found.name, found.subscribers, found.pattern, found.epoch) == (b"wild:*.x", 2, True, None)


async def test_who_does_not_answer_in_time_is_counted_and_not_waited_for(redis):
    async with node(redis, "a", answers=0.2) as a, node(redis, "b") as b:
        await a.online(1)
        await a.person().hear("brief:here")
        await b.person().hear("brief:there")
        b.plane._seek = lambda seek: None
        found, silent = await listed(a)
        assert ([each.name for each in found], silent) == ([b"brief:here"], 1)
        del b.plane._seek
        found, silent = await listed(a)
        assert (len(found), silent) == (2, 0)


async def test_while_redis_is_away_this_machine_answers_alone(tmp_path: Path):
    redis = Redis(tmp_path)
    redis.start()
    try:
        await redis.ready()
        async with nodes(redis, "a", "b") as (a, b):
            here = await Follower(a.person()).begin()
            await b.person().hear("kept:there")
            a.hub.publish(b"kept:room", 1)
            await here.has(1)
            answers: list[tuple[list[Any], int]] = []
            redis.freeze()
            a.plane.channels(b"", None, 10, lambda *answer: answers.append(answer))
            await a.offline()
            assert answers[0][1] == 1  # it was asked, and has not answered
            [found], silent = await listed(a)
            assert (found.name, found.epoch, found.offset) == (b"kept:room", here.place.epoch, 1)
            assert silent == 0
            assert not a.plane._sought
    finally:
        redis.kill()


@pytest.fixture
async def alone(redis: Redis) -> AsyncIterator[Node]:
    async with node(redis, "a") as a:
        yield a


async def test_answers_that_nobody_asked_for_or_that_come_twice_count_for_nothing(alone, redis):
    async with node(redis, "b") as b, node(redis, "c") as c:
        await alone.online(2)
        for silent in (b, c):
            silent.plane._seek = lambda seek: None
        answers: list[tuple[list[Any], int]] = []
        alone.plane.channels(b"", None, 10, lambda *answer: answers.append(answer))
        [number] = alone.plane._sought

        def say(ask: int, who: str, name: bytes) -> None:
            alone.plane.arrived(b"\n" + envelopes.encode(Sought(who, ask, [(name, 1, False)])))

        say(number + 1, b.plane.node, b"brief:other")
        say(number, "forger.1", b"brief:forged")
        say(number, b.plane.node, b"brief:b")
        say(number, b.plane.node, b"brief:b")
        assert not answers
        say(number, c.plane.node, b"brief:b")
        await alone.becomes(lambda: bool(answers))
        [found], silent_ones = answers[0]
        assert (found.name, found.subscribers, silent_ones) == (b"brief:b", 2, 0)
        say(number, c.plane.node, b"brief:late")


@pytest.mark.parametrize(
    "wrong",
    [
        Seek("n.1", 1, b"x" * 300, None, 10),
        Seek("n.1", 1, b"", b"x" * 300, 10),
        Seek("n.1", 1, b"", None, MAX_SOUGHT + 1),
        Seek("n.1", -1, b"", None, 1),
        Sought("n.1", 1, [(b"x", 1, False)] * (MAX_SOUGHT + 1)),
        Sought("n.1", 1, [(b"", 1, False)]),
        Sought("n.1", 1, [(b"x", -1, False)]),
        Began("n.1", [b"x"] * (MAX_BEGUN + 1)),
        Began("n.1", [b""]),
    ],
)
async def test_what_asks_or_answers_for_too_much_is_not_understood(wrong):
    with pytest.raises(ValueError, match=r"Expected|cannot|length"):
        envelopes.decode(envelopes.encode(wrong))


def test_the_longest_answer_there_may_be_is_understood():
    rows = [(b"%04d" % number + b"\xff" * 250, 2**53 - 1, True) for number in range(MAX_SOUGHT)]
    sought = Sought("n.1", 1, rows)
    assert envelopes.decode(envelopes.encode(sought)) == sought


async def test_questions_that_redis_does_not_take_are_answered_by_this_machine(redis):
    async with node(redis, "a", timeout=30, queue_bytes=2000) as a, node(redis, "b"):
        await a.online(1)
        redis.freeze()
        answers: list[int] = []
        for _ in range(200):
            a.plane.channels(b"brief:", None, 10, lambda found, silent: answers.append(silent))
        assert len(answers) > 100
        assert set(answers) == {1}
        assert a.plane.waiting < 3000
        redis.thaw()
        with trio.fail_after(30):
            await a.becomes(lambda: len(answers) == 200)


async def test_a_prefix_longer_than_any_name_is_no_question_for_others(redis):
    async with node(redis, "a", answers=0.2) as a, node(redis, "b") as b:
        await a.online(1)
        await b.person().hear("brief:x")
        before = b.plane.figures.unreadable
        assert await listed(a, "é".encode() * 200) == ([], 0)
        await b.rest()
        assert b.plane.figures.unreadable == before


async def test_names_that_nobody_asked_for_are_not_listed_and_no_answer_makes_the_list_longer(alone, redis):
    async with node(redis, "b") as b, node(redis, "c") as c:
        await alone.online(2)
        for silent in (b, c):
            silent.plane._seek = lambda seek: None
        answers: list[tuple[list[Any], int]] = []
        alone.plane.channels(b"brief:", b"brief:b", 2, lambda *answer: answers.append(answer))
        [(number, search)] = alone.plane._sought.items()

        def say(who: Node, *names: bytes) -> None:
            rows = [(name, 1, False) for name in names]
            alone.plane.arrived(b"\n" + envelopes.encode(Sought(who.plane.node, number, rows)))

        say(b, b"brief:a", b"brief:b", b"kept:x", b"brief:e", b"brief:d", b"brief:e", b"brief:c")
        assert sorted(search.found) == [b"brief:c", b"brief:d"]
        say(c, b"brief:d", b"brief:f")
        await alone.becomes(lambda: bool(answers))
        found, silent_ones = answers[0]
        assert [(each.name, each.subscribers) for each in found] == [(b"brief:c", 1), (b"brief:d", 2)]
        assert silent_ones == 0


async def test_one_channel_that_is_heard_elsewhere_is_found_though_nobody_tracks_who_is_there(redis, tmp_path: Path):
    bare = {"name": "bare", **FREE, "track_presence": False}
    wild = {"name": "wild", **FREE, "wildcards": True}
    hub = {**HUB, "namespace": [*HUB["namespace"], bare, wild]}
    async with (
        controlled(redis, tmp_path, "a", hub=hub) as (a, client),
        controlled(redis, tmp_path, "b", hub=hub) as (b, _),
    ):
        await a.online(1)
        await b.online(1)
        for name in ("bare:x", "bare:xy", "wild:*.x", "brief:x"):
            await b.person().hear(name)
            await b.person().hear(name)
        await a.person().hear("bare:x")
        await level(a, b)
        for row in (await client.channels())["channels"]:
            one = await client.channel(row["name"])
            assert {key: one[key] for key in row} == row
        assert (await client.channel("bare:x"))["subscribers"] == 3
        assert len((await client.channel("wild:*.x"))["presence"]) == 2
        with pytest.raises(RequestFailed, match="nobody hears it"):
            await client.channel("bare:")


def test_whoever_waits_for_a_backplane_waits_longer_than_that_may_take():
    with pytest.raises(ValidationError, match="answers"):
        BackplaneConfig(answers=SECONDS / 1.25)


async def test_who_hears_a_pattern_is_known_elsewhere_for_as_long_as_that_is_so(redis):
    wild = {"name": "wild", **FREE, "wildcards": True}
    async with nodes(redis, "a", "b", hub={"namespace": [wild]}) as (a, b):
        one, two = b.person(), b.person()
        asks = a.person()

        async def present() -> set[str]:
            await b.rest()
            answer = await asks.answer(AskPresence(channel="wild:*.x", ref=7), Presence)
            return {each.session for each in answer.clients}

        await one.hear("wild:*.x")
        await two.hear("wild:*.x")
        assert await present() == {one.session.id, two.session.id}
        b.hub.tag(one.session, own={"new": "tag"})
        one.ask(Unsubscribe(channel="wild:*.x"))
        assert await present() == {two.session.id}
        b.hub.tag(two.session, own={"new": "tag"})
        two.leave()
        assert await present() == set()
        assert redis.say("KEYS", "netd:p:*wild*") == ""
