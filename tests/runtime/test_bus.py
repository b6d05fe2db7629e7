"""Bus: nobody waits for a slow reader, who is told what it missed; history to resume from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from netd.runtime.bus import Bus, Missed, Notice, Stamped, Subscription


@dataclass(frozen=True, kw_only=True)
class Hop(Notice):
    kind: ClassVar[str] = "hop"
    service: ClassVar[str] = "trace"
    ttl: int
    rtt_ms: float | None = None
    client_id: str = "c1"


@dataclass(frozen=True, kw_only=True)
class Other(Notice):
    kind: ClassVar[str] = "other"


@pytest.fixture
def bus() -> Bus:
    return Bus(history=10, clock=lambda: 1000.0)


def publish(bus: Bus, *ttls: int) -> None:
    for ttl in ttls:
        bus.publish(Hop(ttl=ttl))


async def read(subscription: Subscription, count: int) -> list[int | str]:
    """TTLs, and "missed N"."""
    found: list[int | str] = []
    with trio.fail_after(5):
        for _ in range(count):
            notice = (await anext(subscription)).notice
            found.append(f"missed {notice.count}" if isinstance(notice, Missed) else notice.ttl)
    return found


def test_notices_travel_in_camel_case_without_what_is_absent() -> None:
    assert Hop(ttl=3, rtt_ms=1.5).as_json() == {"ttl": 3, "rttMs": 1.5, "clientId": "c1"}
    assert Hop(ttl=3).as_json() == {"ttl": 3, "clientId": "c1"}


async def test_readers_get_what_is_published_from_now_on(bus: Bus) -> None:
    publish(bus, 1)
    with bus.subscribe() as first, bus.subscribe() as second:
        publish(bus, 2, 3)
        assert await anext(first) == Stamped(2, 1000.0, Hop(ttl=2))
        assert await read(first, 1) == [3]
        assert await read(second, 2) == [2, 3]


async def test_readers_choose_classes(bus: Bus) -> None:
    with bus.subscribe(Other) as others, bus.subscribe(Hop, Other) as both:
        publish(bus, 1)
        bus.publish(Other())
        assert isinstance((await anext(others)).notice, Other)
        assert [(await anext(both)).serial for _ in range(2)] == [1, 2]


async def test_a_reader_waits(bus: Bus, nursery: trio.Nursery) -> None:
    found: list[int | str] = []

    async def reader(subscription: Subscription) -> None:
        found.extend(await read(subscription, 2))

    with bus.subscribe() as subscription:
        async with trio.open_nursery() as inner:
            inner.start_soon(reader, subscription)
            await trio.testing.wait_all_tasks_blocked()
            publish(bus, 1)
            await trio.testing.wait_all_tasks_blocked()
            publish(bus, 2)
    assert found == [1, 2]


async def test_a_slow_reader_loses_its_oldest_and_is_told(bus: Bus) -> None:
    with bus.subscribe(buffer=3) as slow:
        publish(bus, 1, 2, 3, 4, 5)
        assert await read(slow, 4) == ["missed 2", 3, 4, 5]
        publish(bus, 6)
        assert await read(slow, 1) == [6]


async def test_a_missed_notice_is_stamped_so_that_resuming_from_it_loses_nothing(bus: Bus) -> None:
    with bus.subscribe(buffer=3) as slow:
        publish(bus, 1, 2, 3, 4, 5)
        missed = await anext(slow)
    with bus.subscribe(since=missed.serial) as resumed:
        assert await read(resumed, 3) == [3, 4, 5]


async def test_resuming_from_a_serial(bus: Bus) -> None:
    publish(bus, *range(1, 6))
    with bus.subscribe(since=3) as resumed:
        publish(bus, 6)
        assert await read(resumed, 3) == [4, 5, 6]
    with bus.subscribe(since=bus.serial) as nothing_yet:
        publish(bus, 7)
        assert await read(nothing_yet, 1) == [7]


async def test_resuming_from_before_the_history(bus: Bus) -> None:
    publish(bus, *range(1, 31))
    with bus.subscribe(since=5) as resumed:
        assert await read(resumed, 11) == ["missed 15", *range(21, 31)]


async def test_resuming_from_the_future_is_from_now_on(bus: Bus) -> None:
    publish(bus, 1)
    with bus.subscribe(since=99) as resumed:
        publish(bus, 2)
        assert await read(resumed, 1) == [2]


async def test_closing_ends_the_reader_after_what_waits(bus: Bus, nursery: trio.Nursery) -> None:
    subscription = bus.subscribe()
    publish(bus, 1)
    subscription.close()
    subscription.close()
    publish(bus, 2)
    assert [stamped.serial async for stamped in subscription] == [1]
    waiting = bus.subscribe()
    nursery.start_soon(_close_when_blocked, waiting)
    assert [stamped.serial async for stamped in waiting] == []


async def _close_when_blocked(subscription: Subscription) -> None:
    await trio.testing.wait_all_tasks_blocked()
    subscription.close()


async def test_a_cancelled_reader_loses_nothing(bus: Bus) -> None:
    with bus.subscribe() as subscription:
        publish(bus, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await anext(subscription)
        assert scope.cancelled_caught
        assert await read(subscription, 1) == [1]


steps = st.lists(st.one_of(st.just("publish"), st.integers(1, 5)), max_size=60)


@given(steps, st.integers(1, 8))
def test_nothing_is_lost_without_being_counted(todo: list[str | int], buffer: int) -> None:
    """Whatever is published and read in whatever order: what was read and what was missed add up."""

    async def act() -> None:
        bus = Bus(history=4)
        with bus.subscribe(buffer=buffer) as subscription:
            accounted = last = 0
            for step in (*todo, 100):
                if step == "publish":
                    bus.publish(Hop(ttl=1))
                    continue
                for stamped in await _available(subscription, int(step)):
                    if isinstance(stamped.notice, Missed):
                        accounted += stamped.notice.count
                    else:
                        accounted += 1
                        assert stamped.serial > last
                        last = stamped.serial
            assert accounted == bus.serial

    trio.run(act)


async def _available(subscription: Subscription, at_most: int) -> list[Stamped]:
    found = []
    while len(found) < at_most and (subscription._waiting or subscription._missed):
        found.append(await anext(subscription))
    return found


def test_history_is_bounded(bus: Bus) -> None:
    publish(bus, *range(1000))
    assert len(bus._history) == 10
