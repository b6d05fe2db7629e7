"""Who hears a channel only through a pattern, while others come to the channel itself and leave it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from netd.wire.messages import Message, Ok, Position, Subscribe
from tests.backplane.followers import level
from tests.backplane.lab import FREE, HUB, Node, Person, Redis, needs_redis, nodes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = needs_redis

WILD = {"name": "wild", **FREE, "history_size": 100, "wildcards": True}
HELD = {"namespace": [*HUB["namespace"], WILD]}


def offsets(person: Person) -> list[int | None]:
    """Of the messages that it has now."""
    return [event.offset for event in person.heard() if isinstance(event, Message)]


class Lane:
    """What comes to a machine, until it is let in."""

    def __init__(self, node: Node) -> None:
        self._plane: Any = node.plane
        self._own = node.plane.arrived
        self.late: list[bytes] = []
        self._plane.arrived = self.late.append

    def open(self) -> None:
        self._plane.arrived = self._own
        for payload in self.late:
            self._own(payload)


@asynccontextmanager
async def behind(redis: Redis) -> AsyncIterator[tuple[Node, Node, Person, Lane]]:
    """Two machines; of the second, one who hears the channel through a pattern, and had one message when its lane fell
    behind: Redis has taken two more, the last of them from itself."""
    async with nodes(redis, "a", "b", hub=HELD) as (a, b):
        wild = b.person()
        await wild.hear("wild:*.x")
        a.hub.publish(b"wild:a.x", 0)
        await wild.messages(1)
        lane = Lane(b)
        for who, number in ((a, 1), (b, 2)):
            who.hub.publish(b"wild:a.x", number)
            await b.becomes(lambda number=number: sum(b"wild:a.x" in each for each in lane.late) == number)
        yield a, b, wild, lane


@pytest.mark.parametrize("since", [None, 0, 1, 3])
async def test_what_redis_took_before_somebody_came_to_the_channel_itself_is_heard_through_patterns(redis, since):
    async with behind(redis) as (a, b, wild, lane):
        epoch = redis.say("HGET", "netd:c:wild:a.x", "e")
        exact, before = b.person(), len(lane.late)
        recover = None if since is None else Position(epoch, since)
        exact.ask(Subscribe(channel="wild:a.x", recover=recover, ref=7))
        await b.becomes(lambda: len(lane.late) > before or len(exact.events) > 0)  # Redis has told where it is
        lane.open()
        a.hub.publish(b"wild:a.x", 3)
        await level(a, b)
        assert offsets(wild) == [2, 3, 4]
        ok, *told = exact.heard()
        assert isinstance(ok, Ok)
        start = ok.offset if since is None else since
        assert ok.recovered is (None if since is None else True)
        assert [each.offset for each in told] == list(range(start + 1, 5))


async def test_who_heard_messages_without_offsets_through_a_pattern_is_not_told_that_all_is_well_where_it_missed_some(
    redis,
):
    """Of the other machine; and whether or not somebody comes to the channel itself."""
    async with nodes(redis, "a", "b", hub=HELD) as (a, b):
        for name, comes in (("wild:one.x", False), ("wild:two.x", True)):
            channel = name.encode()
            wild = b.person()
            await wild.hear("wild:*.x")
            b.hub.publish(channel, 0)
            await wild.messages(1)
            await b.daemon.service_stop("backplane")
            a.hub.publish(channel, "missed")
            await a.becomes(lambda: not len(a.plane.outgoing))
            b.hub.publish(channel, 1)
            await b.daemon.service_start("backplane")
            await level(a, b)
            if comes:
                assert (await b.person().hear(name)).offset == 3
            b.hub.publish(channel, 2)
            await level(a, b)
            told = [(event.offset, type(event)) for event in wild.heard()]
            assert told == [(None, Message), (4, Message)]
            wild.leave()


async def test_where_it_missed_none_it_is_told_where_it_is(redis):
    async with nodes(redis, "a", "b", hub=HELD) as (a, b):
        wild = b.person()
        await wild.hear("wild:*.x")
        for number in range(3):
            b.hub.publish(b"wild:a.x", number)
            await wild.messages(1)
            exact = b.person()
            await exact.hear("wild:a.x")
            exact.leave()
            await b.daemon.service_stop("backplane")
            b.hub.publish(b"wild:a.x", "loose")
            await b.daemon.service_start("backplane")
            await level(a, b)
            loose, ok = wild.heard()
            assert (loose.offset, type(ok), ok.offset) == (None, Ok, 2 * number + 2)
