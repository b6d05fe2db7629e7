"""Supervisor: order, independence of services, the closing latch, drain within a deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from netd.errors import Conflict, NotFound, PrepareFailed, StartFailed
from netd.runtime.config import RestartPolicy
from netd.runtime.supervisor import Supervisor
from netd.runtime.unit import UnitState
from tests.support.scripted import Behaviour, Mishap, Script, ScriptConfig

if TYPE_CHECKING:
    from trio.testing import MockClock

    from netd.runtime.generation import Shared

POLICY = RestartPolicy(backoff_initial=1, jitter=0, burst=3, drain=9)
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture
def scripts() -> dict[str, Script]:
    return {name: Script(name) for name in NAMES}


@pytest.fixture
async def supervisor(shared: Shared, scripts: dict[str, Script], nursery: trio.Nursery) -> Supervisor:
    supervisor = Supervisor(shared, POLICY)
    for script in scripts.values():
        supervisor.add(script.type, ScriptConfig())
    await nursery.start(supervisor.run)
    return supervisor


def states(supervisor: Supervisor) -> list[str]:
    return [snapshot.state for snapshot in supervisor.snapshot()]


async def test_starts_in_order_and_stops_in_reverse(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    events: list[str] = []
    for name, script in scripts.items():
        script.events = _Tagged(name, events)  # type: ignore[assignment]
        script.then(Behaviour(start_takes=1, drain_takes=1))
    outcomes = await supervisor.start_all()
    assert list(outcomes) == list(NAMES)
    assert {settled.outcome for settled in outcomes.values()} == {"running"}
    assert supervisor.waiting() == []
    await supervisor.stop_all()
    assert [event for event in events if event.endswith(("serving", "drained"))] == [
        "alpha 1 serving",
        "beta 1 serving",
        "gamma 1 serving",
        "gamma 1 drained",
        "beta 1 drained",
        "alpha 1 drained",
    ]
    assert events.index("gamma 1 drained") < events.index("beta 1 draining")


class _Tagged(list):
    """Events of several scripts in one list."""

    def __init__(self, name: str, into: list[str]) -> None:
        self._name, self._into = name, into

    def append(self, event: str) -> None:
        self._into.append(f"{self._name} {event}")


async def test_a_disabled_service_is_not_started(
    autojump_clock: MockClock, shared: Shared, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor(shared, POLICY)
    supervisor.add(Script("alpha").type, ScriptConfig(enabled=False))
    supervisor.add(Script("beta").type, ScriptConfig())
    await nursery.start(supervisor.run)
    assert list(await supervisor.start_all()) == ["beta"]
    assert states(supervisor) == ["stopped", "running"]
    assert [snapshot.enabled for snapshot in supervisor.snapshot()] == [False, True]
    assert supervisor.waiting() == []
    assert (await supervisor.start("alpha")).state == "running", "by hand it may be started all the same"


async def test_a_crash_loop_disturbs_nobody(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    scripts["beta"].then(*[Behaviour(crash_after=0.1)] * 10)
    await supervisor.start_all()
    await trio.sleep(100)
    assert states(supervisor) == ["running", "failed", "running"]
    assert supervisor.waiting() == ["beta"]
    assert scripts["alpha"].events == scripts["gamma"].events == ["1 prepared", "1 serving"]
    await supervisor.pulse()


async def test_one_that_cannot_start_does_not_keep_the_others_from_it(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    scripts["alpha"].then(*[Behaviour(prepare_fails=OSError(98, "Address already in use"))] * 10)
    outcomes = await supervisor.start_all()
    assert [settled.outcome for settled in outcomes.values()] == ["backoff", "running", "running"]


async def test_nothing_more_is_started_after_what_is_fatal(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    scripts["beta"].then(Behaviour(prepare_fails=OSError(98, "Address already in use")))
    outcomes = await supervisor.start_all(fatal=PrepareFailed)
    assert [settled.outcome for settled in outcomes.values()] == ["running", "backoff"]
    assert scripts["gamma"].events == []


async def test_verbs_by_name(autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]) -> None:
    assert (await supervisor.start("beta")).state == "running"
    assert (await supervisor.stop("beta")).state == "stopped"
    scripts["beta"].then(Behaviour(start_fails=Mishap("no disk")))
    with pytest.raises(StartFailed, match="no disk"):
        await supervisor.start("beta")
    assert states(supervisor) == ["stopped", "backoff", "stopped"]
    with pytest.raises(NotFound, match="cannot find service 'delta': there are alpha, beta, gamma"):
        await supervisor.start("delta")


async def test_restart_replaces_and_keeps_what_it_cannot_replace(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    await supervisor.start("alpha")
    assert (await supervisor.restart("alpha")).generation == 2
    scripts["alpha"].then(Behaviour(start_fails=Mishap("no")))
    with pytest.raises(StartFailed, match="no"):
        await supervisor.restart("alpha")
    snapshot = supervisor.unit("alpha").snapshot()
    assert (snapshot.state, snapshot.generation) == ("running", 2)
    assert scripts["alpha"].serving == 1
    assert (await supervisor.restart("gamma")).state == "running", "a stopped one is started"


async def test_a_request_that_is_overtaken_is_told_so(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script], nursery: trio.Nursery
) -> None:
    scripts["alpha"].then(Behaviour(start_takes=5))
    overtaken = trio.Event()

    async def start() -> None:
        with pytest.raises(Conflict, match="cannot start alpha: superseded"):
            await supervisor.start("alpha")
        overtaken.set()

    nursery.start_soon(start)
    await trio.sleep(1)
    assert (await supervisor.stop("alpha")).state == "stopped"
    await overtaken.wait()


async def test_nothing_starts_once_it_closes(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script], nursery: trio.Nursery
) -> None:
    await supervisor.start("alpha")
    scripts["alpha"].then(Behaviour(start_takes=5))
    scripts["beta"].then(Behaviour(start_takes=5))
    refused: list[str] = []

    async def verb(which, name: str) -> None:
        with pytest.raises(Conflict) as caught:
            await which(name)
        refused.append(str(caught.value))

    nursery.start_soon(verb, supervisor.restart, "alpha")
    nursery.start_soon(verb, supervisor.start, "beta")
    await trio.sleep(1)
    await supervisor.stop_all()
    await verb(supervisor.start, "gamma")
    assert len(refused) == 3
    assert all("superseded" in why for why in refused)
    assert states(supervisor) == ["stopped"] * 3
    assert await supervisor.start_all() == {}
    assert scripts["gamma"].events == []


async def test_stopping_stays_within_its_deadline(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    for script in scripts.values():
        script.then(Behaviour(drain_takes=1000))
    await supervisor.start_all()
    begun = trio.current_time()
    await supervisor.stop_all(6)
    assert trio.current_time() == pytest.approx(begun + 6)
    assert all(script.events[-1] == "1 cancelled" for script in scripts.values())


async def test_time_that_one_does_not_use_goes_to_the_next(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    scripts["alpha"].then(Behaviour(drain_takes=5))
    await supervisor.start_all()
    await supervisor.stop_all(6)
    assert scripts["alpha"].events[-1] == "1 drained"


async def test_a_service_that_never_ends_does_not_hold_up_the_rest(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    stuck = trio.Event()
    scripts["gamma"].then(Behaviour(drain_takes=1000, stuck=stuck))
    await supervisor.start_all()
    begun = trio.current_time()
    await supervisor.stop_all(6)
    assert trio.current_time() <= begun + 8
    assert states(supervisor) == ["stopped", "stopped", "draining"]
    stuck.set()


async def test_a_new_policy_counts_from_the_next_failure_on(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    supervisor.policy = RestartPolicy(burst=1)
    scripts["alpha"].then(Behaviour(crash_after=1))
    await supervisor.start("alpha")
    await trio.sleep(2)
    assert supervisor.unit("alpha").state is UnitState.FAILED


async def test_burst_zero_never_gives_up(
    autojump_clock: MockClock, supervisor: Supervisor, scripts: dict[str, Script]
) -> None:
    supervisor.policy = RestartPolicy(burst=0, backoff_max=1, jitter=0)
    scripts["alpha"].then(*[Behaviour(start_fails=Mishap())] * 300)
    supervisor.unit("alpha").want(ScriptConfig())
    await trio.sleep(250)
    assert supervisor.unit("alpha").state is not UnitState.FAILED
    assert len(scripts["alpha"].services) > 200


async def test_two_services_of_one_name_are_a_mistake(shared: Shared) -> None:
    supervisor = Supervisor(shared)
    supervisor.add(Script("alpha").type, ScriptConfig())
    with pytest.raises(ValueError, match="cannot add service alpha twice"):
        supervisor.add(Script("alpha").type, ScriptConfig())
