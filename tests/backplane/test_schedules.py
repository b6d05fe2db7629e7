"""Outages one after another in an order that a seed gives, while people talk and one moves between three machines.

NETD_TEST_SEEDS="100:120" tries others than those three.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from tests.backplane import test_outages as outages
from tests.backplane.followers import Follower, Traveller, level
from tests.backplane.lab import Node, needs_redis, node

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_redis

FIRST, _, LAST = os.environ.get("NETD_TEST_SEEDS", "1:4").partition(":")
FAULTS = [
    outages.frozen,
    outages.killed,
    outages.subscribers_reset,
    outages.publishers_reset,
    outages.one_reset,
    outages.one_swallowed,
    outages.scripts_forgotten,
]
STEPS = 4
PAUSE = 0.02
"""Seconds between two messages of a speaker: the history holds what is said in the longest schedule."""


@pytest.mark.parametrize("seed", range(int(FIRST), int(LAST)))
async def test_whatever_happens_one_after_another_everybody_has_everything_once_and_in_order(tmp_path: Path, seed: int):
    random = Random(seed)
    async with outages.talk(tmp_path) as both, node(both.redis, "c", timeout=0.4) as c:
        all_three = a, b, _ = both.a, both.b, c
        stay = [await Follower(each.person()).begin() for each in all_three]
        moves = await Traveller(a.person()).begin()
        said: list[str] = []
        over = trio.Event()

        async def speak(who: Node, name: str) -> None:
            number = 0
            while not over.is_set():
                said.append(f"{name}{number}")
                who.hub.publish(b"kept:room", said[-1])
                number += 1
                await trio.sleep(PAUSE * random.random())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, a, "a")
            nursery.start_soon(speak, b, "b")
            for _ in range(STEPS):
                await random.choice(FAULTS)(both)
                if random.random() < 0.5:
                    await moves.again(random.choice(all_three).person())
                for each in all_three:
                    await each.online(2)
                await moves.again(random.choice(all_three).person())
            over.set()
        for each, last in ((a, "a-1"), (b, "b-1")):
            said.append(last)
            each.hub.publish(b"kept:room", last)
        await level(*all_three)
        for one in stay:
            await one.has(len(said))
        for one in (*stay, moves):
            await one.person.node.rest()
            one.look()
            assert len(one.told) == len(set(one.told))
            assert one.place == stay[0].place
        assert moves.missed or set(moves.told) == set(said)
        for one in stay:
            assert not one.holes
            assert not one.breaks
            assert not one.fresh
            assert sorted(one.told) == sorted(said)
            assert one.place.offset == len(said)
            for name in ("a", "b"):
                numbers = [int(each[1:]) for each in one.told if each[0] == name][:-1]
                assert numbers == sorted(numbers)
