"""One service's state machine, and the task that drives it.

              want(config)                started()
    stopped ---------------> starting ---------------> running <--.  want(changed): live fields are reconfigured in
       ^                      |    ^                    |    |    |  place; else a new generation is started next to
       |                      |    |                    |    '----'  this one, which drains once the new one serves.
       |      fails or ends   v    | delay over,        |            If the new one fails, this one stays ("kept")
       |      unasked       backoff  want(config)       |
       |     (once running    |    |                    | want(None)
       |      too)            |    '--> failed          v
       |                      |    burst limit       draining ---- want(config) ---> starting, next to what drains
       |                      '----------.              |
       '---------------------------------+--------------'
                  want(None) during a start or backoff: at once; from draining: when it is over

Rules:
- level-triggered: `want` says what should be, and returns a serial; `settled(serial)` says what became of it. What is
  wanted while something else is under way replaces it, and the older serial settles as superseded;
- the task never waits for a generation. It looks at everything there is (`_advance`, which does not wait), acts, and
  sleeps until something changes or a time comes. So it answers `pulse` however a service behaves;
- delays double with jitter up to a limit; a generation that served long enough resets them. Too many failures within
  the window end in `failed`, until somebody wants it again;
- everything is bounded: generations that have not ended yet, outcomes that are remembered.
"""

from __future__ import annotations

import math
import random
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal

import structlog
import trio

from netd.errors import ServiceError, StartFailed
from netd.runtime.bus import Notice
from netd.runtime.diff import changes, strictest
from netd.runtime.generation import Generation
from netd.section import Effect, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.runtime.config import RestartPolicy
    from netd.runtime.generation import Shared
    from netd.runtime.service import Service, ServiceType

_MAX_DRAINING = 2  # generations of one service that drain side by side; an older one is cancelled
_MAX_LEAVING = 8  # generations that have not ended though cancelled; beyond it nothing is started
_OUTCOMES = 64  # serials whose outcome is remembered

log = structlog.get_logger("netd.runtime")


class UnitState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


Outcome = Literal["running", "stopped", "backoff", "failed", "superseded", "kept"]


@dataclass(frozen=True)
class Settled:
    """What became of a `want`.

    running, stopped: as wanted. backoff, failed: `error` says why; in backoff it is going to be tried again.
    superseded: somebody wanted something else before it came to pass, or the daemon is shutting down.
    kept: the new generation could not be started (`error`), and the one before serves on with the config it had.
    """

    outcome: Outcome
    error: ServiceError | None = None


@dataclass(frozen=True)
class UnitSnapshot:
    """A unit as REST shows it. Times are in seconds since the epoch."""

    name: str
    state: str
    since: float
    generation: int
    """Counts from 1; 0 before the first."""
    restarts: int
    """Starts after failures, since somebody last asked for one."""
    error: str | None
    """Why it is in backoff or failed, or why the latest replacement did not come to pass."""
    retry_at: float | None
    addresses: list[str]
    """Where it accepts connections."""
    enabled: bool
    """What the configuration says, whatever was started or stopped by hand."""


@dataclass(frozen=True, kw_only=True)
class UnitChanged(Notice):
    """A unit changed its state, a new generation took over, or (running, with an error) could not."""

    kind: ClassVar[str] = "unitChanged"
    service: str  # type: ignore[misc]  # a field here: units are of many services
    state: str
    generation: int
    error: str | None = None


@dataclass
class _Want:
    serial: int
    config: Section | None
    prepared: Generation | None = None
    fresh: int = 0
    """Only a generation begun for this serial or a later one will do."""


class Unit:
    """One service of the daemon. All methods are for the Trio thread."""

    def __init__(
        self,
        service_type: ServiceType,
        config: Section,
        shared: Shared,
        *,
        policy: Callable[[], RestartPolicy],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Stopped at first. `policy` is asked each time, so that a reload of it takes effect; `jitter` gives 0..1."""
        self.name = service_type.name
        self.state = UnitState.STOPPED
        self.configured = config
        """What a start would use, and what is running unless the unit was stopped."""
        self._type = service_type
        self._shared = shared
        self._policy = policy
        self._jitter = jitter
        self._want = _Want(0, None)
        self._serial = 0
        self._outcomes: OrderedDict[int, Settled] = OrderedDict({0: Settled("stopped")})
        self._waiting: dict[int, trio.Event] = {}
        self._current: Generation | None = None
        self._next: Generation | None = None
        self._leaving: list[Generation] = []
        self._generations = 0
        self._announced = 0
        self._failures: deque[float] = deque(maxlen=1024)
        self._strikes = 0
        self._restarts = 0
        self._error: ServiceError | None = None
        self._retry_at: float | None = None
        self._since = time.time()
        self._wake = trio.Event()
        self._pulses: list[trio.Event] = []
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._health = shared.health.for_service(self.name)
        self._up = shared.metrics.gauge("netd_service_up", "1 while the service is serving", ("service",)).labels(
            self.name
        )
        self._restarted = shared.metrics.counter(
            "netd_service_restarts_total", "Starts after a failure", ("service",)
        ).labels(self.name)

    # --- wanting ---

    @property
    def wanted(self) -> Section | None:
        """The config that it should be running with; None while it should be stopped."""
        return self._want.config

    @property
    def service(self) -> Service | None:
        """The object of the generation that serves; None while none does."""
        return self._current.service if self._current is not None else None

    def want(self, config: Section | None, *, prepared: Generation | None = None, fresh: bool = False) -> int:
        """Have the service run with `config`, or not run (None). Returns the serial to wait for with `settled`.

        `prepared` is a generation from `prepare(config)`; the unit takes it over. `fresh` asks for a new generation
        even if the one that runs has this config. Wanting what is wanted already gives the same serial again, unless
        it has failed since: then it is tried again at once. After `close` nothing is started any more: superseded.
        """
        if config is not None and not isinstance(config, self._type.config):
            raise TypeError(f"cannot run {self.name} with a {type(config).__name__}")
        if self._closed and config is not None:
            self._serial += 1  # a serial that is neither wanted nor has an outcome reads superseded
            if prepared is not None:
                prepared.close()
            return self._serial
        if config is not None:
            self.configured = config
        if prepared is None and not fresh and config == self._want.config and self._holds():
            return self._want.serial
        self._serial += 1
        before = self._want
        self._want = _Want(self._serial, config, prepared, self._serial if fresh or prepared is not None else 0)
        if before.prepared is not None:
            before.prepared.close()
        self._settle(before.serial, Settled("superseded"))
        self._forgive()
        self._poke()
        return self._serial

    async def settled(self, serial: int) -> Settled:
        """Wait until what was wanted under `serial` came to pass or did not. An outcome long past reads superseded."""
        await trio.lowlevel.checkpoint()
        if serial > self._serial:
            raise ValueError(f"cannot wait for serial {serial} of {self.name}: the latest is {self._serial}")
        if serial not in self._outcomes and serial == self._want.serial:
            await self._waiting.setdefault(serial, trio.Event()).wait()
        return self._outcomes.get(serial, Settled("superseded"))

    async def prepare(self, config: Section) -> Generation:
        """Prepare a generation and leave everything that is live alone. Raises ServiceError.

        It goes to `want(config, prepared=...)`, or is given back with its `close()`.
        """
        generation = self._generation(config)
        await generation.prepare(self._policy().start_timeout)
        return generation

    def drain_by(self, deadline: float) -> None:
        """Bring the deadline (trio time) of whatever drains forward."""
        for generation in self._leaving:
            generation.drain(deadline)

    def close(self) -> None:
        """The closing latch: from now on it can only be stopped. What was still to start settles as superseded."""
        self._closed = True
        if self._want.config is not None:
            self._settle(self._want.serial, Settled("superseded"))

    async def pulse(self) -> None:
        """Return once the unit's task was awake; at once when it does not run."""
        if self._nursery is None:
            await trio.lowlevel.checkpoint()
            return
        pulse = trio.Event()
        self._pulses.append(pulse)
        self._poke()
        try:
            await pulse.wait()
        finally:
            if pulse in self._pulses:
                self._pulses.remove(pulse)

    def snapshot(self) -> UnitSnapshot:
        retry_at = None if self._retry_at is None else time.time() + self._retry_at - trio.current_time()
        shown = self._current or self._next
        return UnitSnapshot(
            name=self.name,
            state=self.state.value,
            since=self._since,
            generation=shown.number if shown is not None else self._announced,
            restarts=self._restarts,
            error=None if self._error is None else str(self._error),
            retry_at=retry_at,
            addresses=self._current.addresses if self._current is not None else [],
            enabled=bool(getattr(self.configured, "enabled", True)),
        )

    # --- the task ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make what is wanted so, until cancelled. Nothing that a service does ends it."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    alarm = self._advance()
                    for pulse in self._pulses:
                        pulse.set()
                    self._pulses.clear()
                    with trio.move_on_at(alarm):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    # generations that end because everything is cancelled have not failed
                    await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            self._nursery = None
            self.close()
            if self._want.prepared is not None:
                self._want.prepared.close()
            self._serial += 1
            self._want = _Want(self._serial, None)
            self._current = self._next = None
            self._shared.listeners.let_go(self.name)
            self._enter(UnitState.STOPPED)
            self._settle(self._want.serial, Settled("stopped"))

    def _advance(self) -> float:
        """Take the step that is due. Returns the trio time at which the next one may be, if nothing wakes us before."""
        now = trio.current_time()
        self._leaving = [generation for generation in self._leaving if not generation.ended]
        if self._current is not None and self._current.ended:
            crashed, self._current = self._current, None
            if self._want.config is not None:
                self._failed(crashed, now)
        if self._next is not None:
            self._look_at_next(self._next, now)
        if self._want.config is None:
            self._bring_down(now)
        else:
            self._bring_up(self._want.config, now)
        return min(
            self._next.start_by if self._next is not None else math.inf,
            self._retry_at if self._retry_at is not None else math.inf,
        )

    def _look_at_next(self, coming: Generation, now: float) -> None:
        """Whether the generation that is being started serves, fails, or is still at it."""
        if not coming.ended and not coming.serving and now < coming.start_by:
            return
        self._next = None
        if coming.serving and not coming.ended:
            before, self._current = self._current, coming
            if before is not None:
                self._retire(before, now)
            self._error = None
            self._enter(UnitState.RUNNING)
            self._shared.listeners.trim(self.name)
            return
        if not coming.ended:
            seconds = self._policy().start_timeout
            message = f"cannot start {self.name}: it was not serving after {seconds:g} s"
            log.error("service failed", service=self.name, why=message)
            self._cancel(coming, StartFailed(self.name, message))
        if self._want.config is None or not self._will_do(coming, self._want.config):
            return  # what is wanted by now is another, which has yet to be begun: this failure says nothing of it
        if self._current is None:
            self._failed(coming, now)
        else:
            self._keep(self._current, coming.error)

    def _keep(self, current: Generation, error: ServiceError | None) -> None:
        """The replacement failed; what runs is what is wanted again."""
        log.warning("replacement failed, the generation before serves on", service=self.name, why=str(error))
        self._error = error
        serial, self._want = self._want.serial, _Want(self._want.serial, current.config)
        self.configured = current.config
        self._settle(serial, Settled("kept", error))
        self._announce()

    def _bring_up(self, config: Section, now: float) -> None:
        if self._next is not None:
            if self._will_do(self._next, config):
                return  # live differences are made up for once it serves
            self._cancel(self._next)
            self._next = None
        elif self._current is not None:
            if self._will_do(self._current, config) and self._reconfigure(self._current, config):
                if self._settle(self._want.serial, Settled("running")):
                    self._error = None
                return
        elif self._given_up() or (self._retry_at is not None and now < self._retry_at):
            return
        self._begin(config, now)

    def _bring_down(self, now: float) -> None:
        if self._next is not None:
            self._cancel(self._next)
            self._next = None
        if self._current is not None:
            self._retire(self._current, now)
            self._current = None
        if self._leaving:
            self._enter(UnitState.DRAINING)
            return
        self._shared.listeners.let_go(self.name)
        self._enter(UnitState.STOPPED)
        self._settle(self._want.serial, Settled("stopped"))

    def _begin(self, config: Section, now: float) -> None:
        self._retry_at = None
        prepared, self._want.prepared = self._want.prepared, None
        if len(self._leaving) >= _MAX_LEAVING:
            message = f"cannot start {self.name}: {len(self._leaving)} earlier generations do not end"
            generation = prepared or self._generation(config)
            generation.error = StartFailed(self.name, message)
            generation.close()
        else:
            generation = prepared or self._generation(config)
            generation.start_by = now + self._policy().start_timeout
            self._shared.listeners.hold(self.name)
            assert self._nursery is not None
            self._nursery.start_soon(generation.live, name=f"{self.name} generation {generation.number}")
        generation.serial = self._want.serial
        self._next = generation
        if self._strikes and self._current is None:
            self._restarts += 1
            self._restarted.inc()
        if self._current is None:
            self._enter(UnitState.STARTING)

    def _failed(self, generation: Generation, now: float) -> None:
        """Count a failure and decide when, and whether, to try again."""
        policy = self._policy()
        self._error = generation.error
        if now - generation.serving_since >= policy.healthy_after:
            self._strikes = 0
        self._strikes += 1
        self._failures.append(now)
        while self._failures and now - self._failures[0] > policy.burst_window:
            self._failures.popleft()
        if self._next is not None:
            return  # what ran is gone, its replacement is on its way
        if policy.burst and len(self._failures) >= policy.burst:
            self._shared.listeners.let_go(self.name)
            self._enter(UnitState.FAILED)
            self._settle(self._want.serial, Settled("failed", self._error))
            return
        self._retry_at = now + policy.delay(self._strikes, self._jitter())
        self._enter(UnitState.BACKOFF)
        self._settle(self._want.serial, Settled("backoff", self._error))

    def _reconfigure(self, generation: Generation, config: Section) -> bool:
        """Let a running generation take over a config that differs in live fields only; False if it could not."""
        if generation.config == config:
            return True
        assert generation.service is not None
        try:
            generation.service.reconfigure(config)
        except Exception:
            log.exception("service could not take over live changes, it is replaced", service=self.name)
            return False
        generation.config = config
        return True

    # --- small steps ---

    def _will_do(self, generation: Generation, config: Section) -> bool:
        if generation.serial < self._want.fresh:
            return False
        return strictest(changes(generation.config, config)) in (None, Effect.LIVE)

    def _generation(self, config: Section) -> Generation:
        self._generations += 1
        return Generation(self._generations, self._type, config, self._shared, self._poke)

    def _retire(self, generation: Generation, now: float) -> None:
        draining = [leaving for leaving in self._leaving if leaving.draining]
        for crowd in draining[: max(0, len(draining) - _MAX_DRAINING + 1)]:
            crowd.cancel()
        generation.drain(now + self._policy().drain)
        self._leaving.append(generation)

    def _cancel(self, generation: Generation, error: ServiceError | None = None) -> None:
        generation.cancel(error)
        self._leaving.append(generation)

    def _holds(self) -> bool:
        """Whether the present want is on its way or came to pass, and has not been undone by a failure since."""
        outcome = self._outcomes.get(self._want.serial)
        if outcome is None:
            return True
        if outcome.outcome == "running":
            return self._current is not None and not self._current.ended
        return outcome.outcome == "stopped" and self.state is UnitState.STOPPED

    def _given_up(self) -> bool:
        return self.state is UnitState.FAILED and self._want.serial in self._outcomes

    def _forgive(self) -> None:
        """Somebody asked: earlier failures do not delay it."""
        self._failures.clear()
        self._strikes = 0
        self._restarts = 0
        self._retry_at = None

    def _poke(self) -> None:
        self._wake.set()

    def _settle(self, serial: int, settled: Settled) -> bool:
        """True when this is news: the first outcome of a serial stays."""
        if serial in self._outcomes:
            return False
        self._outcomes[serial] = settled
        while len(self._outcomes) > _OUTCOMES:
            self._outcomes.popitem(last=False)
        waiting = self._waiting.pop(serial, None)
        if waiting is not None:
            waiting.set()
        return True

    def _enter(self, state: UnitState) -> None:
        shown = self._current or self._next
        number = shown.number if shown is not None else self._announced
        if state is self.state and number == self._announced:
            return
        if state is not self.state:
            self._since = time.time()
        self.state, self._announced = state, number
        if state is UnitState.STOPPED:
            self._error = None
        why = None if self._error is None else str(self._error)
        log.info("unit changed", service=self.name, state=state.value, generation=number, why=why)
        self._up.set(1 if state is UnitState.RUNNING else 0)
        self._warn(state, why)
        self._announce()

    def _announce(self) -> None:
        self._shared.bus.publish(
            UnitChanged(
                service=self.name,
                state=self.state.value,
                generation=self._announced,
                error=None if self._error is None else str(self._error),
            )
        )

    def _warn(self, state: UnitState, why: str | None) -> None:
        if state is UnitState.FAILED:
            self._health.clear("restarting")
            self._health.warn(
                "failed",
                f"{why}; given up",
                advice=f"mend it, then: netctl services start {self.name}",
                severity="error",
            )
        elif state is UnitState.BACKOFF:
            self._health.warn("restarting", f"{why}; it is tried again")
        elif state in (UnitState.RUNNING, UnitState.STOPPED):
            self._health.clear_all()
