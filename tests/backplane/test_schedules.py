"""Outages one after another in an order that a seed gives, while people talk and one moves between the machines.

NETD_TEST_SEEDS="100:120" tries others than those three.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from tests.backplane import test_outages as outages
from tests.backplane.lab import Node, needs_redis
from tests.backplane.test_away import Follower, level

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
    async with outages.talk(tmp_path) as both:
        a, b = both.a, both.b
        stay = [await Follower(each.person()).begin() for each in (a, b)]
        moves = await Follower(a.person()).begin()
        said: list[str] = []
        over = trio.Event()

        async def speak(node: Node, name: str) -> None:
            number = 0
            while not over.is_set():
                said.append(f"{name}{number}")
                node.hub.publish(b"kept:room", said[-1])
                number += 1
                await trio.sleep(PAUSE * random.random())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, a, "a")
            nursery.start_soon(speak, b, "b")
            for _ in range(STEPS):
                await random.choice(FAULTS)(both)
                await a.online(1)
                await b.online(1)
                # who has heard messages without offsets, and not where they are, would hear them twice elsewhere
                await moves.person.node.becomes(lambda: _placed(moves))
                await moves.again(random.choice((a, b)).person())
            over.set()
        for node, last in ((a, "a-1"), (b, "b-1")):
            said.append(last)
            node.hub.publish(b"kept:room", last)
        await level(a, b)
        # who moved to a machine that was without Redis just then was told that anything may be missing or come again
        for one in stay if moves.fresh else (*stay, moves):
            await one.has(len(said))
            await one.person.node.rest()
            one.look()
            assert not one.twice
            assert not one.holes
            assert not one.breaks
            assert not one.fresh
            assert sorted(one.told) == sorted(said)
            assert one.place == stay[0].place
            assert one.place.offset == len(said)
            for name in ("a", "b"):
                numbers = [int(each[1:]) for each in one.told if each[0] == name][:-1]
                assert numbers == sorted(numbers)


def _placed(follower: Follower) -> bool:
    """Whether it knows where all that it heard is."""
    plane = follower.person.node.plane
    track = plane.tracks.get(b"kept:room")
    follower.look()
    return not (follower.loose or len(plane.outgoing) or track is None or track.loose)
