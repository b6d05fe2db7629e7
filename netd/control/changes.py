"""Changes: the slow operations of the control API, run in the daemon's nursery and followed by id.

    begin --> doing --> done
                  +---> failed

Rules:
- a change belongs to the daemon: the connection that asked for it may go away;
- the table is bounded: RUNNING at once (beyond, TooBusy), and the last KEPT that ended;
- an operation that fails inside is logged with its traceback and ends as `internal`: it has no one else to tell, and an
  exception in the daemon's nursery would end the daemon.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog
import trio
from pydantic_core import to_jsonable_python

from netd.errors import Conflict, NetdError, NotFound, TooBusy
from netd.net.rest import ErrorDetail, error_detail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.net.rest import Caller

RUNNING = 32
KEPT = 256

log = structlog.get_logger("netd.control")


@dataclass(frozen=True)
class ChangeView:
    """A change as it stands. Times are seconds since the epoch; `result` is what the operation returned, as JSON."""

    id: str
    kind: str
    target: str | None
    status: Literal["doing", "done", "failed"]
    since: float
    ended: float | None
    error: ErrorDetail | None
    result: dict[str, Any] | None


class Change:
    """One slow operation. Read its `view`; `error` is what it failed with."""

    def __init__(self, id: str, kind: str, target: str | None) -> None:
        self.view = ChangeView(id, kind, target, "doing", time.time(), None, None, None)
        self.error: NetdError | None = None
        self._ended = trio.Event()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most. Returns whether it has ended."""
        with trio.move_on_after(seconds):
            await self._ended.wait()
        return self.ended

    def _finish(self, result: Any = None, error: NetdError | None = None) -> None:
        self.error = error
        old = self.view
        self.view = ChangeView(
            old.id,
            old.kind,
            old.target,
            "failed" if error else "done",
            old.since,
            time.time(),
            error_detail(error) if error else None,
            to_jsonable_python(result, fallback=str) if error is None else None,
        )
        self._ended.set()


class Changes:
    """The table of changes. One per daemon."""

    def __init__(self, nursery: trio.Nursery, *, boot: str) -> None:
        """`boot` is a word for this run of the daemon, so that no id ever names two changes."""
        self._nursery = nursery
        self._boot = boot
        self._serial = 0
        self._table: dict[str, Change] = {}

    def begin(self, kind: str, target: str | None, operation: Callable[[], Awaitable[Any]], caller: Caller) -> Change:
        """Start `operation` in the daemon's nursery. Its result is a dataclass or None. Raises TooBusy."""
        running = sum(not change.ended for change in self._table.values())
        if running >= RUNNING:
            raise TooBusy(f"cannot begin {kind}: {running} changes are running; wait for one to end")
        self._serial += 1
        change = Change(f"{self._boot}-{self._serial}", kind, target)
        self._table[change.view.id] = change
        self._forget()
        log.info("change begun", change=change.view.id, kind=kind, target=target, caller=str(caller))
        self._nursery.start_soon(self._run, change, operation)
        return change

    def get(self, id: str) -> Change:
        """Raises NotFound."""
        if id not in self._table:
            raise NotFound(f"cannot find change {id!r}: the last {KEPT} of this run of the daemon are kept")
        return self._table[id]

    def views(self) -> list[ChangeView]:
        """All that are known, newest first."""
        return [change.view for change in reversed(self._table.values())]

    def _forget(self) -> None:
        ended = [id for id, change in self._table.items() if change.ended]
        for id in ended[: max(0, len(ended) - KEPT)]:
            del self._table[id]

    async def _run(self, change: Change, operation: Callable[[], Awaitable[Any]]) -> None:
        view = change.view
        try:
            try:
                change._finish(await operation())
            except NetdError as error:
                change._finish(error=error)
        except* Exception:  # the guard of a change; see the rules above
            log.exception("change failed inside", change=view.id, kind=view.kind, target=view.target)
            change._finish(error=NetdError(f"cannot finish {view.kind}: it failed inside; the log says more"))
        finally:
            if not change.ended:  # cancelled
                change._finish(error=Conflict(f"cannot finish {view.kind}: superseded, the daemon stops"))
        log.info("change ended", change=view.id, kind=view.kind, target=view.target, status=change.view.status)
