"""Reload: all of a configuration comes into force, or none of it does and the answer says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from netd.errors import ConfigError, ConfigProblem, Conflict, ReloadRefused
from netd.runtime.config import RestartPolicy
from netd.runtime.reload import Plan, Reload, plan
from netd.runtime.supervisor import Supervisor
from netd.section import Effect, Listen, Section, fixed, live
from tests.support.scripted import Behaviour, Mishap, Script, ScriptConfig

if TYPE_CHECKING:
    from trio.testing import MockClock

    from netd.runtime.generation import Shared

NAMES = ("alpha", "beta", "gamma")


class Settings(Section):
    state: str = fixed("/var/lib/netd")
    level: str = live("info")
    alpha: ScriptConfig = ScriptConfig()
    beta: ScriptConfig = ScriptConfig()
    gamma: ScriptConfig = ScriptConfig()


class House:
    """Three services, what they run with, and the way a daemon reloads them."""

    def __init__(self, shared: Shared) -> None:
        self.scripts = {name: Script(name) for name in NAMES}
        self.supervisor = Supervisor(shared, RestartPolicy(backoff_initial=1, jitter=0, start_timeout=30, drain=5))
        for name in NAMES:
            self.supervisor.add(self.scripts[name].type, ScriptConfig())
        self.running = Settings()
        self._reload = Reload(self.supervisor)
        self.full_disk = False
        """What `commit` then fails with."""

    async def reload(self, new: Settings, *, loading: float = 0) -> list[str]:
        """The paths that changed."""

        async def make_plan() -> Plan:
            await trio.sleep(loading)
            return plan(self.running, new, {name: (getattr(self.running, name), getattr(new, name)) for name in NAMES})

        def commit() -> None:
            if self.full_disk:
                raise ConfigError([ConfigProblem("", "cannot write it: no space left on device", "override.toml")])
            self.running = new

        made = await self._reload.carry_out(make_plan, commit=commit)
        return [change.path for change in made.changes]

    def forget(self) -> None:
        for script in self.scripts.values():
            script.events.clear()

    def events(self, name: str) -> list[str]:
        return self.scripts[name].events

    def runs_with(self) -> list[ScriptConfig | None]:
        return [unit.service.config if unit.service else None for unit in self.supervisor]


@pytest.fixture
async def house(shared: Shared, nursery: trio.Nursery) -> House:
    house = House(shared)
    await nursery.start(house.supervisor.run)
    await house.supervisor.start_all()
    house.forget()
    return house


# --- what goes through ------------------------------------------------------------------------------------------------


async def test_nothing_changed_disturbs_nothing(autojump_clock: MockClock, house: House) -> None:
    assert await house.reload(Settings()) == []
    assert [house.events(name) for name in NAMES] == [[], [], []]


async def test_live_fields_are_reconfigured(autojump_clock: MockClock, house: House) -> None:
    new = Settings(level="debug", beta=ScriptConfig(rate=9))
    assert await house.reload(new) == ["level", "beta.rate"]
    assert house.running is new
    assert house.events("beta") == ["1 reconfigured"]
    assert house.events("alpha") == house.events("gamma") == []


async def test_other_fields_take_a_new_generation_prepared_before_anything_moves(
    autojump_clock: MockClock, house: House
) -> None:
    new = Settings(alpha=ScriptConfig(size=2), gamma=ScriptConfig(size=3))
    house.scripts["gamma"].then(Behaviour(prepare_takes=5))
    moved: list[str] = []

    async def watch() -> None:
        await trio.sleep(4)
        moved.extend(house.events("alpha"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        assert await house.reload(new) == ["alpha.size", "gamma.size"]
    assert moved == ["2 prepared"], "alpha waited until gamma was prepared too"
    await trio.sleep(1)
    assert house.events("alpha") == ["2 prepared", "2 serving", "1 draining", "1 drained"]
    assert house.runs_with() == [ScriptConfig(size=2), ScriptConfig(), ScriptConfig(size=3)]


async def test_services_are_enabled_and_disabled(autojump_clock: MockClock, house: House) -> None:
    await house.reload(Settings(beta=ScriptConfig(enabled=False)))
    assert [snapshot.state for snapshot in house.supervisor.snapshot()] == ["running", "stopped", "running"]
    house.forget()
    await house.reload(Settings(beta=ScriptConfig(enabled=True, size=4)))
    assert house.events("beta") == ["2 prepared", "2 serving"]
    assert house.runs_with()[1] == ScriptConfig(size=4)


async def test_what_was_stopped_by_hand_stays_stopped_and_learns(autojump_clock: MockClock, house: House) -> None:
    await house.supervisor.stop("beta")
    house.forget()
    await house.reload(Settings(beta=ScriptConfig(size=2)))
    assert house.events("beta") == []
    await house.supervisor.start("beta")
    assert house.runs_with()[1] == ScriptConfig(size=2)


async def test_a_failing_service_is_mended_by_a_reload(autojump_clock: MockClock, house: House) -> None:
    house.scripts["alpha"].then(*[Behaviour(start_fails=Mishap())] * 100)
    with pytest.raises(Exception, match="Mishap"):
        await house.supervisor.restart("alpha")
    await house.supervisor.stop("alpha")
    house.supervisor.unit("alpha").want(ScriptConfig())
    await trio.sleep(100)
    assert house.supervisor.unit("alpha").state == "failed"
    house.scripts["alpha"]._behaviours.clear()
    await house.reload(Settings(alpha=ScriptConfig(rate=2)))
    assert house.runs_with()[0] == ScriptConfig(rate=2)


async def test_two_reloads_take_turns_and_the_second_plans_last(autojump_clock: MockClock, house: House) -> None:
    found: dict[str, list[str]] = {}

    async def reload(name: str, new: Settings, loading: float) -> None:
        found[name] = await house.reload(new, loading=loading)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload, "first", Settings(alpha=ScriptConfig(rate=2)), 5)
        await trio.sleep(1)
        nursery.start_soon(reload, "second", Settings(alpha=ScriptConfig(rate=2, size=2)), 0)
    assert found == {"first": ["alpha.rate"], "second": ["alpha.size"]}


# --- what is refused --------------------------------------------------------------------------------------------------


async def nothing_moved(house: House) -> None:
    """No service noticed anything, now or later, and what runs is what ran."""
    await trio.sleep(100)
    assert house.running == Settings()
    assert house.runs_with() == [ScriptConfig()] * 3
    for unit in house.supervisor:
        assert unit.configured == unit.wanted == ScriptConfig()
    for script in house.scripts.values():
        assert script.serving == 1


async def test_a_fixed_field_is_refused_by_name(autojump_clock: MockClock, house: House) -> None:
    new = Settings(state="/srv", alpha=ScriptConfig(size=2), beta=ScriptConfig(root="/tmp"))
    with pytest.raises(ReloadRefused, match=r"cannot change state, beta.root while netd runs") as caught:
        await house.reload(new)
    assert caught.value.path == "state"
    assert [house.events(name) for name in NAMES] == [[], [], []]
    await nothing_moved(house)


async def test_a_configuration_that_does_not_load_changes_nothing(autojump_clock: MockClock, house: House) -> None:
    async def make_plan() -> Plan:
        raise ConfigError([ConfigProblem("alpha.size", "cannot be blue", "netd.toml:3")])

    with pytest.raises(ConfigError, match=r"netd.toml:3: alpha.size: cannot be blue"):
        await house._reload.carry_out(make_plan)
    await nothing_moved(house)
    assert await house.reload(Settings(level="debug")) == ["level"], "and the next one goes through"


async def test_a_prepare_that_fails_closes_what_others_prepared(autojump_clock: MockClock, house: House) -> None:
    house.scripts["gamma"].then(Behaviour(prepare_fails=OSError(98, "Address already in use")))
    with pytest.raises(ReloadRefused, match="nothing was changed: cannot prepare gamma: address already") as caught:
        await house.reload(Settings(alpha=ScriptConfig(size=2), gamma=ScriptConfig(size=2)))
    assert caught.value.path == "gamma"
    assert house.events("alpha") == ["2 prepared", "2 closed"]
    await nothing_moved(house)


async def test_a_refused_reload_leaves_no_new_listener(autojump_clock: MockClock, house: House, shared: Shared) -> None:
    house.scripts["gamma"].then(Behaviour(prepare_fails=Mishap()))
    listening = ScriptConfig(listen=[Listen(address="127.0.0.1:0")])
    with pytest.raises(ReloadRefused):
        await house.reload(Settings(alpha=listening, gamma=ScriptConfig(size=2)))
    assert shared.listeners._bound == {}


async def test_a_generation_that_does_not_start_keeps_the_one_before(autojump_clock: MockClock, house: House) -> None:
    house.scripts["beta"].then(Behaviour(start_fails=Mishap("too big")))
    with pytest.raises(ReloadRefused, match="beta does not run with its new configuration and keeps") as caught:
        await house.reload(Settings(beta=ScriptConfig(size=2)))
    assert caught.value.path == "beta"
    assert "too big" in str(caught.value)
    assert "1 draining" not in house.events("beta"), "the generation before never noticed"
    await nothing_moved(house)


async def test_a_commit_that_fails_rolls_the_services_back(autojump_clock: MockClock, house: House) -> None:
    house.full_disk = True
    with pytest.raises(ConfigError, match="no space left"):
        await house.reload(Settings(alpha=ScriptConfig(size=2), beta=ScriptConfig(rate=2)))
    assert house.running == Settings()
    assert house.events("beta") == ["1 reconfigured", "1 reconfigured"]
    assert house.supervisor.unit("alpha").wanted == ScriptConfig()
    assert [unit.state for unit in house.supervisor] == ["running"] * 3


async def test_those_already_committed_are_rolled_back(autojump_clock: MockClock, house: House) -> None:
    house.scripts["gamma"].then(Behaviour(start_takes=2, start_fails=Mishap("late")))
    with pytest.raises(ReloadRefused, match="late"):
        await house.reload(Settings(alpha=ScriptConfig(size=2), beta=ScriptConfig(rate=2), gamma=ScriptConfig(size=2)))
    assert house.events("beta") == ["1 reconfigured", "1 reconfigured"]
    assert house.events("alpha")[:3] == ["2 prepared", "2 serving", "1 draining"]
    await nothing_moved(house)


async def test_a_roll_back_that_fails_is_said(autojump_clock: MockClock, house: House) -> None:
    house.scripts["alpha"].then(Behaviour(crash_after=1), *[Behaviour(start_fails=Mishap("gone"))] * 100)
    house.scripts["gamma"].then(Behaviour(start_takes=2, start_fails=Mishap("late")))
    with pytest.raises(ReloadRefused, match="late; and alpha did not come back as before"):
        await house.reload(Settings(alpha=ScriptConfig(size=2), gamma=ScriptConfig(size=2)))
    assert house.supervisor.unit("alpha").wanted == ScriptConfig(), "it is still tried, with what it had"


async def test_enabling_what_does_not_start_leaves_it_disabled(autojump_clock: MockClock, house: House) -> None:
    await house.reload(Settings(beta=ScriptConfig(enabled=False)))
    house.scripts["beta"].then(Behaviour(start_fails=Mishap("no")))
    with pytest.raises(ReloadRefused, match="beta does not run with its new configuration and is put back"):
        await house.reload(Settings())
    unit = house.supervisor.unit("beta")
    assert unit.state == "stopped"
    assert unit.configured == ScriptConfig(enabled=False)


# --- what comes between -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour", [Behaviour(prepare_takes=20), Behaviour(start_takes=20)], ids=["preparing", "starting"]
)
async def test_a_shutdown_meanwhile_answers_superseded_and_does_not_wait(
    autojump_clock: MockClock, house: House, behaviour: Behaviour
) -> None:
    house.scripts["beta"].then(behaviour)
    new = Settings(alpha=ScriptConfig(rate=2), beta=ScriptConfig(size=2))
    answered = trio.Event()

    async def reload() -> None:
        with pytest.raises(Conflict, match="superseded by the shutdown"):
            await house.reload(new)
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload)
        await trio.sleep(1)
        begun = trio.current_time()
        await house.supervisor.stop_all()
        await answered.wait()
        assert trio.current_time() == begun
    assert house.running == Settings()
    assert all(script.serving == 0 for script in house.scripts.values())


async def test_a_reload_after_the_shutdown_is_superseded(autojump_clock: MockClock, house: House) -> None:
    await house.supervisor.stop_all()
    with pytest.raises(Conflict, match="superseded by the shutdown"):
        await house.reload(Settings(level="debug"))


async def test_a_reload_that_waits_its_turn_is_superseded_too(autojump_clock: MockClock, house: House) -> None:
    house.scripts["beta"].then(Behaviour(start_takes=20))
    answers: list[str] = []

    async def reload(new: Settings) -> None:
        with pytest.raises(Conflict) as caught:
            await house.reload(new)
        answers.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload, Settings(beta=ScriptConfig(size=2)))
        await trio.sleep(1)
        nursery.start_soon(reload, Settings(level="debug"))
        await trio.sleep(1)
        await house.supervisor.stop_all()
    assert answers == ["cannot reload: superseded by the shutdown"] * 2


async def test_stopping_a_service_meanwhile_wins(autojump_clock: MockClock, house: House) -> None:
    house.scripts["beta"].then(Behaviour(start_takes=20))
    async with trio.open_nursery() as nursery:

        async def reload() -> None:
            with pytest.raises(Conflict, match="a later request for beta superseded it"):
                await house.reload(Settings(alpha=ScriptConfig(size=2), beta=ScriptConfig(size=2)))

        nursery.start_soon(reload)
        await trio.sleep(1)
        await house.supervisor.stop("beta")
    await trio.sleep(10)
    assert house.runs_with() == [ScriptConfig(), None, ScriptConfig()]
    assert house.running == Settings()


async def test_stopping_a_service_while_others_are_prepared_wins(autojump_clock: MockClock, house: House) -> None:
    house.scripts["gamma"].then(Behaviour(prepare_takes=20))
    async with trio.open_nursery() as nursery:

        async def reload() -> None:
            with pytest.raises(Conflict, match="beta was started or stopped meanwhile"):
                await house.reload(
                    Settings(alpha=ScriptConfig(size=2), beta=ScriptConfig(size=2), gamma=ScriptConfig(size=2))
                )

        nursery.start_soon(reload)
        await trio.sleep(1)
        await house.supervisor.stop("beta")
    await trio.sleep(10)
    assert house.runs_with() == [ScriptConfig(), None, ScriptConfig()]
    assert "2 closed" in house.events("beta")
    assert "2 closed" in house.events("gamma") or "1 closed" in house.events("gamma")


async def test_cancelling_a_reload_leaves_nothing_half_done(autojump_clock: MockClock, house: House) -> None:
    house.scripts["gamma"].then(Behaviour(start_takes=20))
    with trio.move_on_after(5) as scope:
        await house.reload(Settings(alpha=ScriptConfig(size=2), gamma=ScriptConfig(size=2)))
    assert scope.cancelled_caught
    await nothing_moved(house)


def test_a_plan_names_only_services_that_differ() -> None:
    new = Settings(beta=ScriptConfig(rate=2))
    made = plan(Settings(), new, {name: (ScriptConfig(), getattr(new, name)) for name in NAMES})
    assert list(made.services) == ["beta"]
    assert [change.effect for change in made.changes] == [Effect.LIVE]
