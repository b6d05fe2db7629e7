"""A reload: from two configurations to the second one running, or to nothing having changed.

    plan      what differs (diff.py); a `fixed` field refuses the whole, by name
    prepare   every service that needs a new generation acquires what can fail; live ones are not touched
    commit    service by service: hand the config over, and wait until it runs
    roll back if one of them does not get started, those before it go back to what they had

Rules:
- it either returns and all of the new configuration is in force, or raises and none of it is: never a false success;
- a service that somebody stopped by hand stays stopped, and starts with the new config when it is started;
- one at a time: a second reload waits, and makes its plan only then;
- a shutdown meanwhile ends it with Conflict "superseded".

SIGHUP, `netctl reload` and REST all come here. Left out: reading files (settings.py) and asking whether what they name
is there (checks.py), both of which `make_plan` does first; and the sections that are no service's, which the caller
applies in `commit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import Conflict, NetdError, ReloadRefused, ServiceError
from netd.runtime.diff import FieldChange, changes, strictest
from netd.runtime.generation import Generation
from netd.runtime.unit import Unit, UnitState
from netd.section import Effect, Section

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.runtime.supervisor import Supervisor

__all__ = ["FieldChange", "Plan", "Reload", "changes", "plan", "refuse_fixed"]

log = structlog.get_logger("netd.runtime")


@dataclass(frozen=True)
class Plan:
    """What a reload is going to do."""

    changes: tuple[FieldChange, ...]
    """All that differs; paths are dotted from the root of the configuration."""
    services: dict[str, tuple[Section, Section]]
    """The services whose section differs: (running, wanted)."""


def plan(old: Section, new: Section, services: dict[str, tuple[Section, Section]]) -> Plan:
    """Compare two root configurations; `services` maps each service to its section in the old and in the new one."""
    differing = {name: pair for name, pair in services.items() if pair[0] != pair[1]}
    return Plan(tuple(changes(old, new)), differing)


def refuse_fixed(found: tuple[FieldChange, ...]) -> None:
    """Raise ReloadRefused if one of the changes takes a restart of the daemon; the message names every such field."""
    fixed = [change.path for change in found if change.effect is Effect.FIXED]
    if fixed:
        raise ReloadRefused(
            f"cannot change {', '.join(fixed)} while netd runs: put the old value back, or restart netd", fixed[0]
        )


@dataclass
class _Step:
    """One service's part of a reload."""

    unit: Unit
    old: Section
    new: Section
    before: Section | None
    """What the unit was wanted to run with as the reload began; None: to be stopped."""
    target: Section | None
    """What it is to be wanted to run with; None: to be stopped."""
    prepared: Generation | None = None


class Reload:
    """The daemon's reloads, one at a time."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._lock = trio.Lock()

    @property
    def under_way(self) -> bool:
        return self._lock.locked()

    async def carry_out(
        self, make_plan: Callable[[], Awaitable[Plan]], *, commit: Callable[[], None] | None = None
    ) -> Plan:
        """Make a plan and put it in force; `commit` is called once all services run with theirs.

        A NetdError out of `commit` rolls the services back, so its last step that may fail has to come first.
        Raises whatever `make_plan` and `commit` raise; ReloadRefused (its path names the field or the service) when
        nothing was changed, or all was changed back; Conflict when a shutdown, or a request for one of the services,
        came between.
        """
        async with self._lock:
            self._check_open()
            made: Plan | None = None
            with self._supervisor.until_closing():
                made = await self._carry_out(make_plan, commit)
            if made is None:
                raise _superseded()
            log.info("reloaded", changed=[change.path for change in made.changes], services=list(made.services))
            return made

    async def _carry_out(self, make_plan: Callable[[], Awaitable[Plan]], commit: Callable[[], None] | None) -> Plan:
        made = await make_plan()
        refuse_fixed(made.changes)
        steps = self._steps(made)
        try:
            for step in steps:
                if self._needs_preparing(step):
                    step.prepared = await self._prepare(step)
            self._check_open()
            await self._commit(steps, commit)
        finally:
            for step in steps:
                if step.prepared is not None:
                    step.prepared.close()
        return made

    def _steps(self, made: Plan) -> list[_Step]:
        """In the order of registration, whatever the plan's."""
        steps = []
        for unit in self._supervisor:
            if unit.name not in made.services:
                continue
            old, new = made.services[unit.name]
            was_on, is_on = getattr(old, "enabled", True), getattr(new, "enabled", True)
            runs = is_on and (unit.wanted is not None or not was_on)
            steps.append(_Step(unit, old, new, unit.wanted, new if runs else None))
        return steps

    def _needs_preparing(self, step: _Step) -> bool:
        if step.target is None:
            return False
        live_only = strictest(changes(step.old, step.new)) in (None, Effect.LIVE)
        return not (live_only and step.unit.state is UnitState.RUNNING)

    async def _prepare(self, step: _Step) -> Generation:
        try:
            return await step.unit.prepare(step.new)
        except ServiceError as error:
            raise ReloadRefused(f"cannot reload, nothing was changed: {error}", step.unit.name) from error

    async def _commit(self, steps: list[_Step], commit: Callable[[], None] | None) -> None:
        """Hand every service its config and then commit the rest; all or, if something of it fails, nothing."""
        done: list[_Step] = []
        try:
            for step in steps:
                done.append(step)
                await self._hand_over(step)
            if commit is not None:
                commit()
        except NetdError as error:
            failed = await self._roll_back(done)
            if failed and isinstance(error, ReloadRefused):
                names = ", ".join(failed)
                raise ReloadRefused(f"{error}; and {names} did not come back as before", error.path) from error
            raise
        except BaseException:
            # cancelled: no waiting any more, but nobody shall go on with half of a configuration
            for step in reversed(done):
                self._put_back(step)
            raise

    async def _hand_over(self, step: _Step) -> None:
        unit = step.unit
        if unit.wanted != step.before:
            raise Conflict(f"cannot reload: {unit.name} was started or stopped meanwhile, which superseded it")
        prepared, step.prepared = step.prepared, None
        serial = unit.want(step.target, prepared=prepared)
        unit.configured = step.new
        settled = await unit.settled(serial)
        if settled.outcome == "superseded":
            self._check_open()
            raise Conflict(f"cannot reload: a later request for {unit.name} superseded it")
        if settled.outcome not in ("running", "stopped"):
            kept = "keeps the configuration before" if settled.outcome == "kept" else "is put back to the one before"
            raise ReloadRefused(
                f"cannot reload: {unit.name} does not run with its new configuration and {kept}: {settled.error}",
                unit.name,
            )

    async def _roll_back(self, done: list[_Step]) -> list[str]:
        """Put back what was handed over, last first. Returns the names of those that do not run as they did."""
        failed = []
        serials = [(step, self._put_back(step)) for step in reversed(done)]
        for step, serial in serials:
            if serial is None:
                continue
            settled = await step.unit.settled(serial)
            if settled.outcome not in ("running", "stopped", "superseded"):
                log.error("service did not come back after a reload", service=step.unit.name, why=str(settled.error))
                failed.append(step.unit.name)
        return failed

    def _put_back(self, step: _Step) -> int | None:
        """Want what was wanted before, unless somebody has asked for something else since."""
        unit = step.unit
        if unit.wanted not in (step.target, step.before):
            return None
        unit.configured = step.old
        return unit.want(step.before) if unit.wanted != step.before else None

    def _check_open(self) -> None:
        if self._supervisor.closing.is_set():
            raise _superseded()


def _superseded() -> Conflict:
    return Conflict("cannot reload: superseded by the shutdown")
