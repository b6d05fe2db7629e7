"""What netctl's benches share: how long messages took, and what a person sees meanwhile.

Times are counted in classes of 1 %, so that a long run takes no more memory than a short one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio

from netd.cli.output import Column, console, milliseconds, print_json, table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_STEP = math.log(1.01)


class Times:
    """How long messages took, in classes of 1 %."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float, count: int) -> None:
        self._classes[round(math.log(max(seconds, 1e-9)) / _STEP)] += count
        self.count += count
        self.longest = max(self.longest, seconds)

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of the messages took at most."""
        if not self.count:
            return None
        seen = 0
        for number in sorted(self._classes):
            seen += self._classes[number]
            if seen >= share * self.count:
                return min(math.exp(number * _STEP), self.longest)
        return self.longest


def quantiles(times: Times) -> dict[str, float | None]:
    """p50_ms, p99_ms, max_ms."""
    found = {"p50": times.quantile(0.5), "p99": times.quantile(0.99), "max": times.longest if times.count else None}
    return {f"{name}_ms": round(value * 1000, 4) if value is not None else None for name, value in found.items()}


def print_measured(
    report: Mapping[str, Any], shown: Sequence[tuple[Column, Callable[[Any], str], str]], *, as_json: bool
) -> None:
    """The report; for people a row of what is `shown` of it (column, how it is written, field), and how long messages
    took.
    """
    if as_json:
        print_json(report)
        return
    every = list(shown)
    every += [
        (Column(f"{name} ms", "right", spare=spare), milliseconds, f"{name}_ms")
        for name, spare in (("p50", 0), ("p99", 0), ("max", 1))
    ]
    out = console()
    row = [write(report[field]) for _, write, field in every]
    out.print(table([column for column, _, _ in every], [row], width=out.width), crop=False)


def rounded(value: float) -> str:
    """A number of messages."""
    return f"{value:,.0f}"


async def show_progress(count: Callable[[], int]) -> None:
    """Messages a second on stderr, until cancelled."""
    out = console(stderr=True)
    with out.status("") as status:
        before, at = count(), time.perf_counter()
        while True:
            await trio.sleep(0.5)
            now, here = time.perf_counter(), count()
            status.update(f"{(here - before) / (now - at):,.0f} messages/s")
            before, at = here, now
