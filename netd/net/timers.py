"""What the reactor does at a certain time: a heap of functions, and one Trio task that sleeps until the first.

Rules:
- a wait in Trio with a deadline costs 4 us and is not needed for every message: the deadline is another task's;
- functions that are due are called for `SLICE` seconds at most before other tasks have their turn;
- a cancelled timer stays in the heap until its time comes, or until most of the heap is such.

Times are of time.monotonic(); a timer is never early by more than `_EARLY`.
"""

from __future__ import annotations

import heapq
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

SLICE: Final = 0.002
"""Seconds."""
_EARLY: Final = 0.0002
"""Seconds; Trio's clock and ours are the same, but what is added to them is rounded."""
_NEVER: Final = float("inf")

log = structlog.get_logger("netd.reactor")


class Timer:
    """A function that will be called; made by `Timers.call_at`."""

    __slots__ = ("_function", "_timers", "when")

    def __init__(self, timers: Timers, when: float, function: Callable[[], None]) -> None:
        self._timers = timers
        self.when = when
        self._function: Callable[[], None] | None = function

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    @property
    def cancelled(self) -> bool:
        """It will not be called (any more)."""
        return self._function is None

    def cancel(self) -> None:
        """Forget it. May be called twice, and after it was called."""
        if self._function is not None:
            self._function = None
            self._timers.forget()

    def take(self) -> Callable[[], None] | None:
        """Its function, which is nobody's from then on."""
        function, self._function = self._function, None
        return function


class Timers:
    """All timers of a reactor."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._cancelled = 0
        self._alarm: trio.CancelScope | None = None
        self._alarm_at = _NEVER

    def __len__(self) -> int:
        """Those that will be called."""
        return len(self._heap) - self._cancelled

    def call_at(self, when: float, function: Callable[[], None]) -> Timer:
        """Call `function` once, when time.monotonic() has reached `when`."""
        timer = Timer(self, when, function)
        heapq.heappush(self._heap, timer)
        if when < self._alarm_at and self._alarm is not None:
            self._set_alarm(when)
        return timer

    def forget(self) -> None:
        """One more in the heap is cancelled."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer._function is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def clear(self) -> None:
        """Forget all of them."""
        for timer in self._heap:
            timer.take()
        self._heap.clear()
        self._cancelled = 0

    async def run(self, ring: Callable[[], None]) -> None:
        """Call `ring` whenever something is due, until cancelled; it is to call `call_due`."""
        while True:
            with trio.CancelScope() as self._alarm:
                self._set_alarm(self._heap[0].when if self._heap else _NEVER)
                await trio.sleep_forever()
            self._alarm = None
            ring()

    def call_due(self, now: float) -> None:
        """Call what is due, for SLICE seconds at most. What a function raises is logged."""
        until = now + SLICE
        while self._heap and self._heap[0].when <= now + _EARLY:
            function = heapq.heappop(self._heap).take()
            if function is None:
                self._cancelled -= 1
                continue
            try:
                function()
            except Exception:
                log.exception("a timer's function failed")
            if monotonic() > until:
                break

    def _set_alarm(self, when: float) -> None:
        assert self._alarm is not None
        self._alarm_at = when
        self._alarm.deadline = trio.current_time() + (when - monotonic())
