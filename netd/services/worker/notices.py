"""What the worker service tells the host: notices on the bus, and from there SSE. Plain values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from netd.runtime.bus import Notice


@dataclass(frozen=True, kw_only=True)
class WorkerNotice(Notice):
    """Base of the worker service's notices. `worker` is the number that it has here, `name` what it calls itself."""

    service: ClassVar[str] = "worker"
    worker: int
    name: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Joined(WorkerNotice):
    """A worker is there."""

    kind: ClassVar[str] = "joined"


@dataclass(frozen=True, kw_only=True)
class Left(WorkerNotice):
    """A worker has gone. `code` is that of its goodbye, or "crashed"; `lost` is what it had in hand."""

    kind: ClassVar[str] = "left"
    code: str
    why: str
    lost: int
