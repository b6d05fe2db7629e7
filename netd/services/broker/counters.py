"""The metrics of the broker's HTTP side, besides those of every service with sessions (netd/sessions/counters.py).

Labels are bounded: routes are the words of protocol.py, "none" where a request was refused before its path was looked
at, and statuses are our own, or 200 to 599 where workers answer. What the front door itself refuses (a head that cannot
be read, a peer that is too slow) is of no route and not counted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric


class Answers:
    """For a Prometheus registry; of what outlives generations."""

    def __init__(self, answers: Mapping[tuple[str, int], int]) -> None:
        self._answers = answers

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(
            "netd_broker_requests", "HTTP requests that were answered, by route and status.", labels=("route", "status")
        )
        for (route, status), count in self._answers.items():
            family.add_metric((route, str(status)), count)
        yield family
