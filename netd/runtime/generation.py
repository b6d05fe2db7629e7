"""One generation of a service: from prepare to its end, with whatever goes wrong on the way turned into one error.

    made --prepare--> prepared --live: build, run--> (started()) serving --drain--> draining --> ended
                  \\--close-------------------------------------------------------------------> given back, never ran

Rules:
- whatever `prepare`, `build` or `run` raises ends up in `error` as a ServiceError, logged with its traceback unless it
  was a NetdError, whose sentence says all; it never goes further;
- a generation is used once. It reports by calling `wake` and leaves all decisions to its unit;
- its listeners are released the moment it drains: from then on only its successor accepts;
- what was prepared and never run is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import NetdError, PrepareFailed, ReturnedEarly, ServiceError, StartFailed, sole
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.service import Context
from netd.runtime.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.runtime.service import Prepared, Service, ServiceType
    from netd.section import Section

log = structlog.get_logger("netd.runtime")


@dataclass(frozen=True)
class Shared:
    """What all services of a daemon have in common."""

    bus: Bus
    health: Health
    metrics: Metrics
    store: Store
    listeners: Listeners
    state_directory: Path | None = None


class Generation:
    """One life of a service. It stands in for trio's task status: `run` calls `started` on it."""

    def __init__(
        self, number: int, service_type: ServiceType, config: Section, shared: Shared, wake: Callable[[], None]
    ) -> None:
        self.number = number
        self.config = config
        """What it runs with; its unit moves it on when it reconfigures the service."""
        self.serial = 0
        """The `want` that it was begun for."""
        self.start_by = math.inf
        """trio time by which it has to be serving."""
        self.service: Service | None = None
        self.error: ServiceError | None = None
        """Why it ended, or does not get started; None when it ended because it was asked to."""
        self.serving = False
        self.serving_since = math.inf
        self.ended = False
        self._type = service_type
        self._wake = wake
        self._scope = trio.CancelScope()
        self._prepared: Prepared | None = None
        self._ran = False
        self._cancelled = False
        self.context = Context(
            name=service_type.name,
            bus=shared.bus,
            health=shared.health.for_service(service_type.name),
            metrics=shared.metrics,
            store=shared.store,
            listeners=shared.listeners.lease(service_type.name),
            log=structlog.get_logger(f"netd.{service_type.name}"),
            state_directory=shared.state_directory,
            draining=trio.Event(),
            drain_deadline=lambda: self._scope.deadline if self.draining else math.inf,
        )

    @property
    def draining(self) -> bool:
        return self.context.draining.is_set()

    @property
    def addresses(self) -> list[str]:
        """Where it accepts connections."""
        return self.context.listeners.addresses

    async def prepare(self, seconds: float) -> None:
        """Acquire what can fail, within `seconds`. Raises ServiceError; then nothing is left acquired."""
        try:
            with trio.move_on_after(seconds) as scope:
                await self._prepare()
            if scope.cancelled_caught:
                raise PrepareFailed(self._type.name, f"cannot prepare {self._type.name} within {seconds:g} s")
        except BaseException:
            self.close()
            raise

    async def live(self) -> None:
        """Build the service and run it to its end. Raises nothing but Cancelled."""
        try:
            with self._scope:
                if self._prepared is None:
                    await self._prepare()
                self.service = self._type.build(self.config, self._prepared, self.context)
                self._ran = True
                await self.service.run(task_status=self)
        except* Exception as group:  # noqa: BLE001  # whatever a service raises ends here, logged by _went_wrong
            self._went_wrong(sole(group))
        finally:
            if self.draining and self._scope.cancelled_caught:
                log.warning("drain deadline passed, the rest was cancelled", service=self._type.name)
            from_outside = trio.current_effective_deadline() == -math.inf
            if self.error is None and not (self.draining or self._cancelled or from_outside):
                self.error = self._returned()
            self._give_back(abandon=not self.serving)

    def started(self, value: None = None) -> None:
        """Called by `run` once a client that connects would be served."""
        if self.serving:
            raise RuntimeError("called started() twice")
        self.serving = True
        self.serving_since = trio.current_time()
        self._wake()

    def drain(self, deadline: float) -> None:
        """Have it finish by `deadline` (trio time). Called again it can only bring the deadline forward."""
        self._scope.deadline = min(self._scope.deadline, deadline)
        if not self.draining:
            self.context.draining.set()
            self.context.listeners.release()

    def cancel(self, error: ServiceError | None = None) -> None:
        """End it now. `error` is the reason, when the reason is that it does not get started."""
        self._cancelled = True
        self.error = self.error or error
        self._scope.cancel()

    def close(self) -> None:
        """Give back what was prepared; it is not going to run. May be called twice."""
        self._give_back(abandon=True)

    async def _prepare(self) -> None:
        name = self._type.name
        try:
            self._prepared = await self._type.prepare(self.config, self.context)
        except ServiceError:
            raise
        except Exception as error:
            if not isinstance(error, (NetdError, OSError)):
                log.exception("service broke while preparing", service=name)
            raise PrepareFailed(name, f"cannot prepare {name}: {_reason(error)}") from error

    def _went_wrong(self, error: BaseException) -> None:
        name = self._type.name
        expected = isinstance(error, NetdError)
        if self.draining or self._cancelled:
            log.error("service failed while ending", service=name, why=_reason(error), exc_info=error)
            return
        if isinstance(error, ServiceError):
            self.error = error
        elif self.serving:
            self.error = ServiceError(name, f"cannot keep {name} running: {_reason(error)}")
        else:
            self.error = StartFailed(name, f"cannot start {name}: {_reason(error)}")
        log.error("service failed", service=name, why=str(self.error), exc_info=None if expected else error)

    def _returned(self) -> ServiceError:
        name = self._type.name
        if self.serving:
            return ReturnedEarly(name, f"cannot keep {name} running: it returned although nobody asked it to stop")
        return StartFailed(name, f"cannot start {name}: it returned before it was serving")

    def _give_back(self, *, abandon: bool) -> None:
        if self.ended:
            return
        self.ended = True
        if self._prepared is not None and not self._ran:
            try:
                self._prepared.close()
            except Exception:
                log.exception("prepared things could not be given back", service=self._type.name)
        self._prepared = None
        self.context.listeners.release(abandon=abandon)
        self.context.health.clear_all()
        self._wake()


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_reason(one) for one in error.exceptions)
    if isinstance(error, NetdError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
