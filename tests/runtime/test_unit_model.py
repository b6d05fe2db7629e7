"""Unit against a simple model: whatever is asked in whatever order, and however services behave.

The model is what the unit's contract says in one sentence each: every `want` settles; what settles as running runs with
what was wanted; in the end the unit is where the last `want` left it; nothing that was prepared is lost.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from netd.errors import ServiceError
from netd.runtime.bus import Bus
from netd.runtime.config import RestartPolicy
from netd.runtime.generation import Shared
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.unit import Unit, UnitState
from tests.support.scripted import Behaviour, Mishap, Script, ScriptConfig

POLICY = RestartPolicy(
    backoff_initial=1, backoff_max=4, healthy_after=5, burst=4, burst_window=20, start_timeout=6, drain=3
)

seconds = st.sampled_from([0.0, 0.0, 0.5, 2.0, 5.0, 9.0])
failures = st.sampled_from([None, None, None, Mishap("scripted")])
behaviours = st.builds(
    Behaviour,
    prepare_takes=seconds,
    prepare_fails=failures,
    build_fails=failures,
    start_takes=seconds,
    start_fails=failures,
    crash_after=st.sampled_from([float("inf"), float("inf"), 0.0, 1.0, 7.0]),
    return_after=st.sampled_from([float("inf"), float("inf"), 2.0]),
    drain_takes=seconds,
    drain_fails=failures,
    reconfigure_fails=st.booleans(),
)
configs = st.builds(ScriptConfig, rate=st.integers(1, 2), size=st.integers(1, 2))
steps = st.one_of(
    st.tuples(st.just("want"), configs),
    st.tuples(st.just("fresh"), configs),
    st.tuples(st.just("prepared"), configs),
    st.tuples(st.just("stop"), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 40.0])),
)


@given(st.lists(steps, max_size=12), st.lists(behaviours, max_size=12))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_unit_keeps_its_promises(todo: list[tuple[str, object]], misbehaved: list[Behaviour]) -> None:
    trio.run(_act, todo, misbehaved, clock=MockClock(autojump_threshold=0))


async def _act(todo: list[tuple[str, object]], misbehaved: list[Behaviour]) -> None:
    bus = Bus()
    health = Health(bus)
    shared = Shared(bus, health, Metrics(), cast("Any", None), Listeners(health=health))
    script = Script()
    script.then(*misbehaved)
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY, jitter=lambda: 0.5)
    unsettled: set[int] = set()

    async def watch(serial: int, config: ScriptConfig | None) -> None:
        unsettled.add(serial)
        settled = await unit.settled(serial)
        unsettled.discard(serial)
        assert (settled.outcome in ("backoff", "failed", "kept")) == (settled.error is not None)
        if config is None:
            assert settled.outcome in ("stopped", "superseded")
        else:
            assert settled.outcome != "stopped"

    async with trio.open_nursery() as nursery:
        await nursery.start(unit.run)
        for what, argument in todo:
            config = cast("ScriptConfig", argument)
            if what == "wait":
                await trio.sleep(cast("float", argument))
            elif what == "stop":
                nursery.start_soon(watch, unit.want(None), None)
            elif what == "prepared":
                with suppress(ServiceError):
                    generation = await unit.prepare(config)
                    nursery.start_soon(watch, unit.want(config, prepared=generation), config)
            else:
                nursery.start_soon(watch, unit.want(config, fresh=what == "fresh"), config)
            assert script.serving <= 4
        # longer than every start, backoff, drain and crash that may still come
        await trio.sleep(1000)
        assert not unsettled
        wanted = unit.wanted
        if wanted is None:
            assert unit.state is UnitState.STOPPED
            assert script.serving == 0
            assert health.warnings() == ()
        elif unit.state is UnitState.RUNNING:
            assert script.serving == 1
            assert unit.service is not None
            assert unit.service.config == wanted
        else:
            assert unit.state is UnitState.FAILED
            assert script.serving == 0
            assert health.status == "failing"
        await unit.settled(unit.want(None))
        assert script.serving == 0
        nursery.cancel_scope.cancel()
    for number in range(1, script._count + 1):
        fates = [event for event in script.events if event.split()[0] == str(number)]
        if f"{number} prepared" in fates:
            assert len([fate for fate in fates if fate.split()[1] in _ENDINGS]) == 1, f"one ending each: {fates}"


_ENDINGS = {"closed", "cancelled", "crashed", "returned", "drained", "unstarted"}


def test_a_failure_of_what_is_no_longer_wanted_is_not_held_against_what_is() -> None:
    """Both come at the same moment, in either order; the prepared generation was lost in one of them."""

    async def once() -> None:
        health = Health(bus := Bus())
        shared = Shared(bus, health, Metrics(), cast("Any", None), Listeners(health=health))
        script = Script()
        script.then(Behaviour(), Behaviour(prepare_takes=1, build_fails=Mishap("old")), Behaviour(prepare_takes=1))
        unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY, jitter=lambda: 0.5)
        async with trio.open_nursery() as nursery:
            await nursery.start(unit.run)
            await unit.settled(unit.want(ScriptConfig()))
            unit.want(ScriptConfig(size=2))
            while script._count < 2:  # the one that is going to fail is being prepared
                await trio.lowlevel.checkpoint()
            generation = await unit.prepare(ScriptConfig(size=3))
            settled = await unit.settled(unit.want(ScriptConfig(size=3), prepared=generation))
            assert settled.outcome == "running"
            assert unit.service is not None
            assert unit.service.config == ScriptConfig(size=3)
            nursery.cancel_scope.cancel()

    for _ in range(20):
        trio.run(once, clock=MockClock(autojump_threshold=0))
