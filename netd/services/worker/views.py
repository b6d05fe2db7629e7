"""What REST and metrics are shown of the worker service: plain values, as of a moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One connected worker. Times are in seconds, `connected` since the epoch."""

    id: int
    name: str
    state: str
    """serving, leaving (it gets no new work), hung."""
    pid: int
    """As the kernel has it; 0 where it is of another pid namespace."""
    uid: int
    library: str
    handlers: list[str]
    program: int | None
    """Which of the daemon's own it is; None: somebody else started it."""
    connected: float
    age: float
    sessions: int
    """Sessions that are its own."""
    in_flight: int
    """Events and requests that it has in hand."""
    requests: int
    """How many of these are requests."""
    waiting: int
    """Sessions that wait for it to have a hand free."""
    queued_bytes: int
    """Bytes that wait for it to read."""
    handled: int
    cancelled: int
    """What it was told to cancel, as its time was up or its client had gone."""
    refused: int
    """What was too long to be handed over."""


@dataclass(frozen=True, slots=True)
class ProgramView:
    """A place of the daemon's own workers."""

    place: int
    pid: int | None
    """None: it does not run at the moment."""
    starts: int
    ended: str
    """How the last one ended, unless one works now."""


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """The service at a moment; sums are since the daemon started."""

    socket: str | None
    workers: list[WorkerView]
    programs: list[ProgramView]
    sessions: int
    """Sessions that workers know of, or will."""
    unassigned: int
    """Those of them that have no worker at the moment: they get one as they need one."""
    waiting_events: int
    waiting_bytes: int
    waiting_requests: int
    joined: int
    crashed: int
    """Workers that went without a word."""
    hung: int
    rejected: int
    """Connections that did not become workers."""
    handled: int
    cancelled: int
    lost: int
    """Events that a worker had in hand as it went."""
    dropped: int
    """Events that no worker will be told of: too long, or of too many sessions that are over."""
    moved: int
    """Times that a session got another worker."""
    pauses: int
    """Times that nothing more was read from a client, as its worker was behind."""
    requests: dict[str, int]
    """HTTP requests by what came of them: answered, failed (502, 504: its worker went), refused (503, 413), timeout."""
