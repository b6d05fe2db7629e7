"""What a bench has measured, and how it is shown: runs of servers in turns, medians, goals met or missed.

figures.add(scenario, server, Run.of(found))    figures.ratio(scenario, "netd", "C epoll")
rows.append(figures.row(scenario, name, ...))   judge(GOALS, figures, only)
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


@dataclass
class Run:
    """One server, loaded once: CPU in us per message (or delivery), messages a second, latencies in us."""

    cpu: float
    rate: float
    p50: float
    p99: float
    busy: float
    """The share of its core that the server used; far below 1 the generator was the slower one."""

    @classmethod
    def of(cls, found: dict[str, float]) -> Run:
        count, cpu, wall = found["messages"], found["cpu_ns"], found["wall_ns"]
        return cls(cpu / count / 1000, count / wall * 1e9, found["p50"], found["p99"], cpu / wall)


@dataclass
class Figures:
    """Everything that was measured: runs by scenario and server, single values by name."""

    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def add(self, scenario: str, server: str, run: Run) -> None:
        self.runs.setdefault(scenario, {}).setdefault(server, []).append(run)

    def ratio(self, scenario: str, over: str, under: str, figure: str = "cpu") -> float | None:
        """Median over the turns of one server's figure divided by another's; None if one was not measured."""
        found = self.runs.get(scenario, {})
        pairs = zip(found.get(over, []), found.get(under, []), strict=False)
        ratios = [getattr(one, figure) / getattr(other, figure) for one, other in pairs]
        return statistics.median(ratios) if ratios else None

    def row(self, scenario: str, name: str, *compared: str) -> list[str]:
        """A line of a table: the medians of one server's runs. `compared` stands behind its CPU."""
        runs = self.runs[scenario][name]
        middle = {key: statistics.median(getattr(run, key) for run in runs) for key in asdict(runs[0])}
        latencies = [f"{middle[key]:,.1f}" if middle[key] else "" for key in ("p50", "p99")]
        return [name, f"{middle['cpu']:.3f}", *compared, f"{middle['rate']:,.0f}", *latencies, f"{middle['busy']:.0%}"]


@dataclass(frozen=True)
class Goal:
    """A figure and the bound that it is held to."""

    scenario: str
    text: str
    figure: Callable[[Figures], float | None]
    bound: float
    at_least: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


# --- showing ---------------------------------------------------------------------------------------------------------


def progress(text: str, options: argparse.Namespace) -> None:
    if sys.stderr.isatty() and not options.json:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def judge(goals: Iterable[Goal], figures: Figures, only: list[str]) -> bool:
    """The table of goals; whether none was missed."""
    rows = [["goal", "", "", "measured", ""]]
    missed = False
    for goal in goals:
        if goal.scenario not in only:
            continue
        value = goal.figure(figures)
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:g} {goal.unit}"
        if value is None:
            rows.append([goal.scenario, goal.text, bound, "not measured: a peer is absent", ""])
            continue
        missed = missed or not goal.met(value)
        rows.append(
            [goal.scenario, goal.text, bound, f"{value:.2f} {goal.unit}", "pass" if goal.met(value) else "MISS"]
        )
    print(f"\n{table(rows)}")
    return not missed


def table(rows: list[list[str]]) -> str:
    """Plain text; the first column to the left, the others to the right."""
    width = max(map(len, rows))
    padded = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in padded) for column in range(width)]
    lines = []
    for row in padded:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
