"""What a service is, and what it is handed.

A service is described once, by a `ServiceType`, and built anew for every generation:

    check(config) -> problems                what prepare would refuse of it, as far as can be told without acquiring
    prepare(config, context) -> prepared     acquires everything that can fail; touches nothing live
    build(config, prepared, context) -> Service
    service.run(task_status=...)             started() means "a client connecting now would be served"

Rules:
- `check` blocks and is called in a thread, of a daemon that runs or of none: it binds nothing and changes nothing. It
  asks the functions that `prepare` asks, so that both say the same. What only binding can tell it leaves out;
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

from netd.errors import ConfigProblem, ServiceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
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


def nothing_to_check(config: Any) -> Iterable[ConfigProblem]:
    """Of a service for which a valid configuration is all that can be told beforehand."""
    return ()


def refusals(path: str, acquire: Callable[[], object]) -> Iterator[ConfigProblem]:
    """For a `check`: the problem at `path` if `acquire` refuses with a ServiceError; what it gives is let go."""
    try:
        acquire()
    except ServiceError as error:
        yield ConfigProblem(path, str(error))


@dataclass(frozen=True)
class ServiceType:
    """A kind of service: everything the runtime knows of it."""

    name: str
    config: type[Section]
    prepare: Callable[[Any, Context], Awaitable[Prepared]]
    build: Callable[[Any, Any, Context], Service]
    check: Callable[[Any], Iterable[ConfigProblem]] = nothing_to_check
    """Paths are relative to the section ("listen.0.tls"); what is common to all listeners is looked at elsewhere."""
