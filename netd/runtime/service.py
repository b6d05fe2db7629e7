"""What a service is, and what it is handed.

A service is described once, by a `ServiceType`, and built anew for every generation:

    prepare(config, context) -> prepared     acquires everything that can fail; touches nothing live
    build(config, prepared, context) -> Service
    service.run(task_status=...)             started() means "a client connecting now would be served"

Rules:
- a Service object is single use: a restart builds a new one;
- `run` returning before `context.draining` is set is a failure (ReturnedEarly); an exception is a failure;
- when `context.draining` is set, `run` stops accepting, tells its sessions, lets them finish and returns; what is
  left at the drain deadline is cancelled from outside;
- `reconfigure` takes a config that differs in live fields only. It must not wait and must not fail;
- whatever a service prepared and never ran is given back through `prepared.close()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import structlog
    import trio

    from netd.runtime.bus import Bus
    from netd.runtime.health import ServiceHealth
    from netd.runtime.listeners import Leases
    from netd.runtime.metrics import Metrics
    from netd.runtime.store import Store
    from netd.section import Section


class Prepared(Protocol):
    """What `prepare` acquired."""

    def close(self) -> None:
        """Give everything back. Called only when no generation took it over; must not fail."""


class Service(Protocol):
    """One generation of a service."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None: ...

    def reconfigure(self, config: Any) -> None:
        """Take over a config that differs in live fields only."""

    def snapshot(self) -> Any:
        """A typed, synchronous view of the service for REST (a frozen dataclass)."""


@dataclass(frozen=True)
class Context:
    """What one generation of a service is handed."""

    name: str
    bus: Bus
    health: ServiceHealth
    metrics: Metrics
    store: Store
    listeners: Leases
    """This generation's view of the listening sockets; released for it when it drains or ends."""
    log: structlog.typing.FilteringBoundLogger
    state_directory: Path | None
    """Where files may be kept; None when nothing may be written (an embedded daemon without one)."""
    draining: trio.Event
    """Set when this generation is to finish."""
    drain_deadline: Callable[[], float]
    """trio time at which whatever still runs is cancelled; inf while not draining."""


@dataclass(frozen=True)
class ServiceType:
    """A kind of service: everything the runtime knows of it."""

    name: str
    config: type[Section]
    prepare: Callable[[Any, Context], Awaitable[Prepared]]
    build: Callable[[Any, Any, Context], Service]
