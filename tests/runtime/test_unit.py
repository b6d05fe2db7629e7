"""Unit: every way through the diagram, on a clock that jumps.

Over 600 lines, and one file all the same: the tests follow the diagram in unit.py, one way after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from netd.errors import PrepareFailed, ReturnedEarly, ServiceError, StartFailed
from netd.runtime.config import RestartPolicy
from netd.runtime.unit import Unit, UnitChanged, UnitState
from netd.section import Listen
from tests.support.scripted import Behaviour, Inner, Mishap, Script, ScriptConfig

if TYPE_CHECKING:
    from trio.testing import MockClock

    from netd.runtime.generation import Shared

# the smallest numbers that show everything: delays 1, 2, 4, 8 and given up at the fifth failure
POLICY = RestartPolicy(
    backoff_initial=1,
    backoff_max=8,
    jitter=0,
    healthy_after=10,
    burst=5,
    burst_window=60,
    start_timeout=30,
    drain=10,
)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def unit(shared: Shared, script: Script, nursery: trio.Nursery) -> Unit:
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY, jitter=lambda: 0.5)
    await nursery.start(unit.run)
    return unit


async def outcome(unit: Unit, serial: int) -> str:
    return (await unit.settled(serial)).outcome


async def until(unit: Unit, state: UnitState) -> None:
    with unit._shared.bus.subscribe(UnitChanged) as notices:
        while unit.state is not state:
            await anext(notices)


# --- start and stop ---------------------------------------------------------------------------------------------------


async def test_is_stopped_until_somebody_wants_it(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert unit.snapshot().state == "stopped"
    assert unit.snapshot().generation == 0
    assert script.events == []


async def test_starts_serves_and_stops(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    assert await outcome(unit, unit.want(ScriptConfig())) == "running"
    assert unit.service is script.services[0]
    assert unit.snapshot().state == "running"
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert unit.service is None
    assert script.events == ["1 prepared", "1 serving", "1 draining", "1 drained"]


async def test_settled_may_be_asked_late_and_often(autojump_clock: MockClock, unit: Unit) -> None:
    serial = unit.want(ScriptConfig())
    assert await outcome(unit, serial) == "running"
    await trio.sleep(100)
    assert await outcome(unit, serial) == "running"
    unit.want(None)
    assert await outcome(unit, serial) == "running", "what came to pass stays so"


async def test_a_serial_of_the_future_is_a_mistake(autojump_clock: MockClock, unit: Unit) -> None:
    with pytest.raises(ValueError, match="cannot wait for serial 99"):
        await unit.settled(99)


async def test_only_its_own_kind_of_config_will_do(autojump_clock: MockClock, unit: Unit) -> None:
    with pytest.raises(TypeError, match="cannot run alpha with a Inner"):
        unit.want(Inner())


async def test_wanting_the_same_twice_is_one_start(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(start_takes=5))
    first, second = unit.want(ScriptConfig()), unit.want(ScriptConfig())
    assert first == second
    await trio.sleep(1)
    assert unit.want(ScriptConfig()) == first
    assert await outcome(unit, first) == "running"
    assert unit.want(ScriptConfig()) == first
    assert script.events == ["1 prepared", "1 serving"]


async def test_stopping_during_a_start_is_immediate(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(start_takes=20))
    starting = unit.want(ScriptConfig())
    await trio.sleep(1)
    assert unit.state is UnitState.STARTING
    begun = trio.current_time()
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert trio.current_time() == begun
    assert await outcome(unit, starting) == "superseded"
    assert script.events == ["1 prepared", "1 cancelled"]


async def test_stopping_during_a_prepare_is_immediate(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(prepare_takes=20))
    unit.want(ScriptConfig())
    await trio.sleep(1)
    begun = trio.current_time()
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert trio.current_time() == begun
    assert script.events == []


async def test_stopping_during_backoff_is_immediate(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(start_fails=Mishap()))
    assert await outcome(unit, unit.want(ScriptConfig())) == "backoff"
    begun = trio.current_time()
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert trio.current_time() == begun
    await trio.sleep(100)
    assert script.events == ["1 prepared", "1 unstarted"]
    assert unit.snapshot().retry_at is None
    assert unit.snapshot().error is None


async def test_starting_during_a_drain_does_not_wait_for_it(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(drain_takes=8))
    await unit.settled(unit.want(ScriptConfig()))
    stopping = unit.want(None)
    await trio.sleep(1)
    assert unit.state is UnitState.DRAINING
    begun = trio.current_time()
    assert await outcome(unit, unit.want(ScriptConfig())) == "running"
    assert trio.current_time() == begun
    assert await outcome(unit, stopping) == "superseded"
    await trio.sleep(10)
    assert script.events[-3:] == ["2 prepared", "2 serving", "1 drained"]


async def test_drain_is_cut_off_at_its_deadline(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(drain_takes=1000))
    await unit.settled(unit.want(ScriptConfig()))
    begun = trio.current_time()
    stopping = unit.want(None)
    await until(unit, UnitState.DRAINING)
    assert script.contexts[0].drain_deadline() == begun + POLICY.drain
    assert await outcome(unit, stopping) == "stopped"
    assert trio.current_time() == pytest.approx(begun + POLICY.drain, abs=0.02)
    assert script.events[-2:] == ["1 draining", "1 cancelled"]


async def test_a_deadline_can_be_brought_forward_and_not_back(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(drain_takes=1000))
    await unit.settled(unit.want(ScriptConfig()))
    begun = trio.current_time()
    stopping = unit.want(None)
    await unit.pulse()
    unit.drain_by(begun + 3)
    unit.drain_by(begun + 300)
    assert await outcome(unit, stopping) == "stopped"
    assert trio.current_time() == begun + 3


async def test_failing_while_draining_is_logged_and_no_failure(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(drain_fails=Mishap("late")))
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(None)) == "stopped"
    assert unit.snapshot().error is None


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        (Behaviour(prepare_fails=OSError(13, "Permission denied")), PrepareFailed, "cannot prepare alpha: permission"),
        (Behaviour(prepare_fails=Mishap("no")), PrepareFailed, "cannot prepare alpha: Mishap: no"),
        (Behaviour(build_fails=Mishap("no")), StartFailed, "cannot start alpha: Mishap: no"),
        (Behaviour(start_fails=Mishap("no")), StartFailed, "cannot start alpha: Mishap: no"),
        (Behaviour(start_fails=StartFailed("alpha", "cannot find it")), StartFailed, "cannot find it"),
        (Behaviour(start_fails=ExceptionGroup("", [Mishap("a"), Mishap("b")])), StartFailed, "Mishap: a; Mishap: b"),
        (Behaviour(prepare_takes=1000), StartFailed, "cannot start alpha: it was not serving after 30 s"),
        (Behaviour(start_takes=1000), StartFailed, "cannot start alpha: it was not serving after 30 s"),
    ],
    ids=["permission", "prepare", "build", "start", "own words", "group", "slow prepare", "slow start"],
)
async def test_a_failure_to_start_is_told_and_tried_again(
    autojump_clock: MockClock, unit: Unit, script: Script, behaviour: Behaviour, error: type[ServiceError], says: str
) -> None:
    script.then(behaviour)
    settled = await unit.settled(unit.want(ScriptConfig()))
    assert settled.outcome == "backoff"
    assert type(settled.error) is error
    assert says in str(settled.error)
    assert unit.snapshot().retry_at is not None
    await until(unit, UnitState.RUNNING)
    assert unit.snapshot().restarts == 1
    assert unit.snapshot().error is None


async def test_what_was_prepared_and_not_built_is_given_back(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(build_fails=Mishap()))
    await unit.settled(unit.want(ScriptConfig()))
    assert script.events == ["1 prepared", "1 closed"]


async def test_returning_unasked_is_a_failure(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(return_after=5))
    await unit.settled(unit.want(ScriptConfig()))
    await until(unit, UnitState.BACKOFF)
    assert "cannot keep alpha running: it returned although nobody asked it to stop" in str(unit.snapshot().error)
    assert isinstance(unit._error, ReturnedEarly)


async def test_returning_before_it_serves_is_a_failed_start(
    autojump_clock: MockClock, shared: Shared, nursery: trio.Nursery
) -> None:
    script = Script()
    script.type = type(script.type)("alpha", ScriptConfig, script._prepare, lambda *_: _Returns())
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY)
    await nursery.start(unit.run)
    settled = await unit.settled(unit.want(ScriptConfig()))
    assert isinstance(settled.error, StartFailed)
    assert "it returned before it was serving" in str(settled.error)


class _Returns:
    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_crash_loop_backs_off_and_ends_failed(
    autojump_clock: MockClock, unit: Unit, script: Script, shared: Shared
) -> None:
    script.then(*[Behaviour(crash_after=0.5)] * 20)
    begun = trio.current_time()
    with shared.bus.subscribe(UnitChanged) as notices:
        serial = unit.want(ScriptConfig())
        await until(unit, UnitState.FAILED)
        # 5 lives of half a second, and delays of 1, 2, 4 and 8 between them
        assert trio.current_time() == pytest.approx(begun + 5 * 0.5 + 15, abs=0.02)
        assert [stamped.notice.state for stamped in _drain(notices)] == [
            *["starting", "running", "backoff"] * 4,
            *["starting", "running", "failed"],
        ]
    assert await outcome(unit, serial) == "running", "it did come to run"
    assert unit.snapshot().restarts == 4
    assert [warning.code for warning in shared.health.warnings()] == ["alpha.failed"]
    assert shared.health.status == "failing"
    await trio.sleep(1000)
    assert unit.state is UnitState.FAILED, "and stays so"

    script._behaviours.clear()
    assert await outcome(unit, unit.want(ScriptConfig())) == "running", "until somebody wants it again"
    assert shared.health.status == "ok"
    assert unit.snapshot().restarts == 0


def _drain(subscription):
    """What a subscription has waiting, without waiting for more."""
    found = list(subscription._waiting)
    subscription._waiting.clear()
    return found


async def test_a_start_that_never_works_ends_failed(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(*[Behaviour(start_fails=Mishap("always"))] * 20)
    assert await outcome(unit, unit.want(ScriptConfig())) == "backoff"
    await until(unit, UnitState.FAILED)
    assert len(script.services) == 5
    assert "always" in str(unit.snapshot().error)


async def test_wanting_it_during_backoff_tries_at_once(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(*[Behaviour(start_fails=Mishap())] * 3)
    await unit.settled(unit.want(ScriptConfig()))
    begun = trio.current_time()
    assert await outcome(unit, unit.want(ScriptConfig())) == "backoff"
    assert await outcome(unit, unit.want(ScriptConfig())) == "backoff"
    assert await outcome(unit, unit.want(ScriptConfig())) == "running"
    assert trio.current_time() == begun


async def test_a_healthy_life_resets_the_delay(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(
        Behaviour(crash_after=0.1), Behaviour(crash_after=0.1), Behaviour(crash_after=11), Behaviour(crash_after=0.1)
    )
    delays = []
    unit.want(ScriptConfig())
    for _ in range(4):
        await until(unit, UnitState.BACKOFF)
        begun = trio.current_time()
        await until(unit, UnitState.RUNNING)
        delays.append(round(trio.current_time() - begun))
    assert delays == [1, 2, 1, 2]


async def test_failures_far_apart_are_no_burst(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(*[Behaviour(crash_after=20)] * 30)
    unit.want(ScriptConfig())
    await trio.sleep(600)
    assert unit.state in (UnitState.RUNNING, UnitState.BACKOFF)
    assert len(script.services) > 20


@pytest.mark.parametrize(("random", "delay"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_delays_are_jittered(random: float, delay: float) -> None:
    assert RestartPolicy(backoff_initial=1, jitter=0.2).delay(1, random) == pytest.approx(delay)


def test_a_delay_never_overflows() -> None:
    policy = RestartPolicy(backoff_initial=1, backoff_factor=10, backoff_max=30, jitter=0)
    assert policy.delay(1_000_000, 0.5) == 30


async def test_a_crash_with_company_does_not_escape_on_the_way_out(autojump_clock: MockClock, shared: Shared) -> None:
    """Cancelled from outside while the service raises: the unit ends, and the exception goes no further."""
    script = Script()
    script.then(Behaviour(crash_after=5, crash=lambda: ExceptionGroup("", [Mishap("a")])))
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY)

    class Clumsy:
        async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._fail_late)
                task_status.started()
                await trio.sleep_forever()

        async def _fail_late(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise Mishap("while being cancelled")

    script.type = type(script.type)("alpha", ScriptConfig, script._prepare, lambda *_: Clumsy())
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY)
    async with trio.open_nursery() as nursery:
        await nursery.start(unit.run)
        assert await outcome(unit, unit.want(ScriptConfig())) == "running"
        nursery.cancel_scope.cancel()
    assert unit.state is UnitState.STOPPED


# --- reconfiguration and replacement ----------------------------------------------------------------------------------


async def test_live_fields_reach_the_running_generation(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(ScriptConfig(rate=5))) == "running"
    assert script.events == ["1 prepared", "1 serving", "1 reconfigured"]
    assert script.services[0].config.rate == 5


async def test_live_fields_wait_for_a_start_that_is_under_way(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(start_takes=5))
    first = unit.want(ScriptConfig())
    await trio.sleep(1)
    second = unit.want(ScriptConfig(rate=5))
    assert await outcome(unit, second) == "running"
    assert await outcome(unit, first) == "superseded"
    assert script.events == ["1 prepared", "1 serving", "1 reconfigured"]


async def test_a_service_that_cannot_reconfigure_is_replaced(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(reconfigure_fails=True))
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(ScriptConfig(rate=5))) == "running"
    assert script.services[-1].number == 2
    assert script.services[-1].config.rate == 5


async def test_a_replacement_serves_before_the_old_one_drains(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    script.then(Behaviour(start_takes=3))
    serial = unit.want(ScriptConfig(size=2))
    await trio.sleep(2)
    assert unit.state is UnitState.RUNNING
    assert script.serving == 1
    assert await outcome(unit, serial) == "running"
    await trio.sleep(1)
    assert script.events[2:] == ["2 prepared", "2 serving", "1 draining", "1 drained"]
    assert unit.snapshot().generation == 2


async def test_a_replacement_that_does_not_start_leaves_the_old_one(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    script.then(Behaviour(start_fails=Mishap("bad size")))
    settled = await unit.settled(unit.want(ScriptConfig(size=2)))
    assert settled.outcome == "kept"
    assert "bad size" in str(settled.error)
    await trio.sleep(1000)
    assert unit.state is UnitState.RUNNING
    assert unit.service is script.services[0]
    assert unit.wanted == unit.configured == ScriptConfig()
    assert script.events == ["1 prepared", "1 serving", "2 prepared", "2 unstarted"]
    assert "bad size" in str(unit.snapshot().error)
    assert await outcome(unit, unit.want(ScriptConfig())) == "running"
    assert unit.snapshot().error is None


async def test_a_replacement_that_serves_and_crashes_at_once_leaves_the_old_one(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    script.then(Behaviour(crash_after=0))
    settled = await unit.settled(unit.want(ScriptConfig(size=2)))
    # whether the unit sees it serve for a moment is up to the scheduler; it must never end without a generation
    assert settled.outcome in ("kept", "running")
    await trio.sleep(5)
    assert unit.state is UnitState.RUNNING


async def test_the_old_one_crashing_meanwhile_does_not_disturb_the_replacement(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(crash_after=2), Behaviour(start_takes=5))
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(ScriptConfig(size=2))) == "running"
    assert script.events == ["1 prepared", "1 serving", "2 prepared", "1 crashed", "2 serving"]


async def test_both_crashing_ends_in_backoff(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(crash_after=2), Behaviour(start_takes=5, start_fails=Mishap("too")))
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(ScriptConfig(size=2))) == "backoff"
    await until(unit, UnitState.RUNNING)
    assert script.services[-1].config.size == 2


async def test_fresh_replaces_a_generation_with_the_same_config(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    assert await outcome(unit, unit.want(ScriptConfig(), fresh=True)) == "running"
    assert script.services[-1].number == 2


async def test_generations_that_drain_are_bounded(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(*[Behaviour(drain_takes=1000)] * 10)
    for size in range(1, 8):
        assert await outcome(unit, unit.want(ScriptConfig(size=size))) == "running"
    await unit.pulse()
    assert script.serving <= 3
    assert unit.service is not None
    assert unit.service.config.size == 7


async def test_a_generation_that_ignores_cancellation_stops_neither_unit_nor_pulse(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    stuck = trio.Event()
    script.then(Behaviour(start_takes=1000, stuck=stuck))
    unit.want(ScriptConfig())
    await trio.sleep(1)
    serial = unit.want(ScriptConfig(size=2))
    assert await outcome(unit, serial) == "running"
    await unit.pulse()
    stopping = unit.want(None)
    with trio.move_on_after(100) as scope:
        await unit.settled(stopping)
    assert scope.cancelled_caught
    assert unit.state is UnitState.DRAINING, "it says that something is still there"
    stuck.set()
    assert await outcome(unit, stopping) == "stopped"


async def test_too_many_stuck_generations_end_it(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    stuck = trio.Event()
    script.then(*[Behaviour(start_takes=1000, stuck=stuck)] * 30)
    for size in range(1, 12):
        serial = unit.want(ScriptConfig(size=size))
        await trio.sleep(1)
    settled = await unit.settled(serial)
    assert settled.outcome == "backoff"
    assert "earlier generations do not end" in str(settled.error)
    assert len(script.services) <= 9
    unit.want(None)
    stuck.set()


# --- prepared ahead ---------------------------------------------------------------------------------------------------


async def test_a_prepared_generation_is_taken_over(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    config = ScriptConfig(size=2)
    prepared = await unit.prepare(config)
    assert script.serving == 1
    assert await outcome(unit, unit.want(config, prepared=prepared)) == "running"
    assert script.events.count("2 prepared") == 1
    assert unit.snapshot().generation == 2


async def test_a_prepared_generation_that_is_superseded_is_closed(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    prepared = await unit.prepare(ScriptConfig(size=2))
    serial = unit.want(ScriptConfig(size=2), prepared=prepared)
    unit.want(None)
    assert await outcome(unit, serial) == "superseded"
    assert "2 closed" in script.events


async def test_preparing_in_vain_is_bounded_in_time(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(prepare_takes=1000))
    with pytest.raises(PrepareFailed, match="cannot prepare alpha within 30 s"):
        await unit.prepare(ScriptConfig())


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_nothing_starts_after_closing(autojump_clock: MockClock, unit: Unit, script: Script) -> None:
    script.then(Behaviour(start_takes=5))
    pending = unit.want(ScriptConfig())
    await trio.sleep(1)
    prepared = await unit.prepare(ScriptConfig(size=2))
    unit.close()
    assert await outcome(unit, pending) == "superseded"
    assert await outcome(unit, unit.want(ScriptConfig(size=2), prepared=prepared)) == "superseded"
    assert await outcome(unit, unit.want(None)) == "stopped"
    for _ in range(200):
        assert await outcome(unit, unit.want(ScriptConfig())) == "superseded"
    assert unit.state is UnitState.STOPPED
    assert "2 closed" in script.events


async def test_ending_the_task_ends_everything(autojump_clock: MockClock, shared: Shared, script: Script) -> None:
    unit = Unit(script.type, ScriptConfig(), shared, policy=lambda: POLICY)
    async with trio.open_nursery() as nursery:
        await nursery.start(unit.run)
        await unit.settled(unit.want(ScriptConfig()))
        pending = unit.want(ScriptConfig(size=2))
        nursery.cancel_scope.cancel()
    assert script.serving == 0
    assert await outcome(unit, pending) == "superseded"
    assert await outcome(unit, unit.want(None)) == "stopped"
    await unit.pulse()


# --- what others see --------------------------------------------------------------------------------------------------


async def test_listeners_outlive_a_crash_and_keep_their_port(
    autojump_clock: MockClock, unit: Unit, script: Script
) -> None:
    script.then(Behaviour(crash_after=1))
    config = ScriptConfig(listen=[Listen(address="127.0.0.1:0")])
    await unit.settled(unit.want(config))
    (address,) = unit.snapshot().addresses
    port = int(address.rpartition(":")[2])
    await until(unit, UnitState.BACKOFF)
    assert unit.snapshot().addresses == []
    async with await trio.open_tcp_stream("127.0.0.1", port):  # nobody accepts, and nobody is refused
        await until(unit, UnitState.RUNNING)
        assert unit.snapshot().addresses == [address]
    await unit.settled(unit.want(None))
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_failed_replacement_leaves_no_listener_behind(
    autojump_clock: MockClock, unit: Unit, script: Script, shared: Shared
) -> None:
    await unit.settled(unit.want(ScriptConfig(listen=[Listen(address="127.0.0.1:0")])))
    addresses = unit.snapshot().addresses
    script.then(Behaviour(start_fails=Mishap()))
    both = [Listen(address="127.0.0.1:0"), Listen(address="[::1]:0")]
    assert await outcome(unit, unit.want(ScriptConfig(listen=both))) == "kept"
    assert unit.snapshot().addresses == addresses
    assert [bound.address for bound in shared.listeners._bound.values()] == addresses


async def test_restarts_are_counted(autojump_clock: MockClock, unit: Unit, script: Script, shared: Shared) -> None:
    script.then(*[Behaviour(crash_after=0.5)] * 2)
    unit.want(ScriptConfig())
    await trio.sleep(10)
    text = shared.metrics.render().decode()
    assert 'netd_service_restarts_total{service="alpha"} 2.0' in text
    assert 'netd_service_up{service="alpha"} 1.0' in text


async def test_its_own_warnings_go_with_a_generation(
    autojump_clock: MockClock, unit: Unit, script: Script, shared: Shared
) -> None:
    await unit.settled(unit.want(ScriptConfig()))
    script.contexts[0].health.warn("slow", "cannot keep up")
    assert [warning.code for warning in shared.health.warnings()] == ["alpha.slow"]
    await unit.settled(unit.want(None))
    assert shared.health.warnings() == ()
