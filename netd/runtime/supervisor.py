"""The set of units: who starts before whom, how failures are retried, and the latch that closes it all.

Rules:
- units start in the order of their registration, each once the one before has settled, and stop in reverse;
- a unit that fails never takes another down: its neighbours start, run and stop as if it were not there;
- once `stop_all` was called nothing starts any more: whatever somebody still waits for settles as superseded.

Left out: when to reload (reload.py) and what to run at all (the daemon).
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import Conflict, NotFound, ServiceError
from netd.runtime.config import RestartPolicy
from netd.runtime.unit import Unit, UnitSnapshot, UnitState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netd.runtime.generation import Shared
    from netd.runtime.service import ServiceType
    from netd.runtime.unit import Settled
    from netd.section import Section

_CANCELLED_GRACE = 1.0  # seconds in which what was cancelled should have ended

log = structlog.get_logger("netd.runtime")


class Supervisor:
    """All units of a daemon. All methods are for the Trio thread."""

    def __init__(
        self, shared: Shared, policy: RestartPolicy | None = None, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy or RestartPolicy()
        """May be replaced at any time; what is under way keeps the times it was given."""
        self.closing = trio.Event()
        """Set once nothing starts any more."""
        self._shared = shared
        self._jitter = jitter
        self._units: dict[str, Unit] = {}
        self._until_closing: set[trio.CancelScope] = set()

    def add(self, service_type: ServiceType, config: Section) -> Unit:
        """Register a service, stopped. Only before `run`."""
        if service_type.name in self._units:
            raise ValueError(f"cannot add service {service_type.name} twice")
        unit = Unit(service_type, config, self._shared, policy=lambda: self.policy, jitter=self._jitter)
        self._units[unit.name] = unit
        return unit

    def __iter__(self) -> Iterator[Unit]:
        """The units in the order of their registration."""
        return iter(tuple(self._units.values()))

    def unit(self, name: str) -> Unit:
        """Raises NotFound for a name that no service has."""
        try:
            return self._units[name]
        except KeyError:
            known = ", ".join(self._units) or "none"
            raise NotFound(f"cannot find service {name!r}: there are {known}") from None

    def snapshot(self) -> list[UnitSnapshot]:
        return [unit.snapshot() for unit in self]

    def waiting(self) -> list[str]:
        """The names of the services that should be running and are not serving: readiness is when there are none."""
        return [unit.name for unit in self if unit.wanted is not None and unit.state is not UnitState.RUNNING]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive every unit until cancelled."""
        async with trio.open_nursery() as nursery:
            for unit in self:
                await nursery.start(unit.run)
            task_status.started()

    async def start_all(self, *, fatal: type[ServiceError] | None = None) -> dict[str, Settled]:
        """Start every service that its configuration enables, one after the other, and say what became of each.

        Once one has failed with an error of the class `fatal`, no more are started.
        """
        outcomes: dict[str, Settled] = {}
        for unit in self:
            if getattr(unit.configured, "enabled", True) and not self.closing.is_set():
                outcomes[unit.name] = settled = await unit.settled(unit.want(unit.configured))
                if fatal is not None and isinstance(settled.error, fatal):
                    break
        return outcomes

    async def start(self, name: str) -> UnitSnapshot:
        """Have a service run. Raises ServiceError when it does not get started, Conflict when superseded."""
        unit = self.unit(name)
        return _result(unit, "start", await unit.settled(unit.want(unit.configured)))

    async def stop(self, name: str) -> UnitSnapshot:
        """Have a service drain and stay stopped. Raises Conflict when superseded."""
        unit = self.unit(name)
        return _result(unit, "stop", await unit.settled(unit.want(None)))

    async def restart(self, name: str) -> UnitSnapshot:
        """Replace a service by a new generation with the same config; start it if it is stopped.

        The new one serves before the old one drains. If it does not get started the old one serves on, and the error
        is raised nevertheless.
        """
        unit = self.unit(name)
        return _result(unit, "restart", await unit.settled(unit.want(unit.configured, fresh=True)))

    async def stop_all(self, seconds: float | None = None) -> None:
        """Close the latch and stop every unit, the last registered first, all within `seconds` (default: policy.drain).

        Each may use an even share of the time that is left, and what it does not use goes to those after it.
        """
        self.closing.set()
        self._shared.listeners.leave_behind()
        for scope in self._until_closing:
            scope.cancel()
        for unit in self:
            unit.close()
        deadline = trio.current_time() + (self.policy.drain if seconds is None else seconds)
        units = list(self)
        while units:
            unit = units.pop()
            now = trio.current_time()
            share = now + max(0.0, deadline - now) / (len(units) + 1)
            serial = unit.want(None)
            await unit.pulse()  # it is draining now
            unit.drain_by(share)
            with trio.move_on_at(share + _CANCELLED_GRACE):
                await unit.settled(serial)
                continue
            log.error("service does not end though it was cancelled", service=unit.name)

    @contextmanager
    def until_closing(self) -> Iterator[trio.CancelScope]:
        """A scope that `stop_all` cancels: for what must not hold up a shutdown."""
        with trio.CancelScope() as scope:
            self._until_closing.add(scope)
            try:
                yield scope
            finally:
                self._until_closing.discard(scope)

    async def pulse(self) -> None:
        """Return once every unit's task has answered: what the watchdog asks for."""
        for unit in self:
            await unit.pulse()


def _result(unit: Unit, verb: str, settled: Settled) -> UnitSnapshot:
    if settled.outcome == "superseded":
        raise Conflict(f"cannot {verb} {unit.name}: superseded by a later request or by the shutdown")
    if settled.error is not None:
        raise settled.error
    if settled.outcome in ("backoff", "failed"):
        raise ServiceError(unit.name, f"cannot {verb} {unit.name}: it is {settled.outcome}")
    return unit.snapshot()
