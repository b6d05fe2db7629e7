"""The worker service's metrics, read when somebody scrapes them. Labels are words from fixed lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from netd.services.worker.pool import Pool


class Collector:
    """For a Prometheus registry; of the pool, so that it outlives generations."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        pool = self._pool
        workers = pool.workers.values()
        for name, what, value in (
            ("workers", "Application workers that are connected.", len(workers)),
            ("sessions", "Sessions that workers know of, or will.", len(pool.seats)),
            ("in_flight", "Events and requests that workers have in hand.", sum(len(each.open) for each in workers)),
            ("waiting_bytes", "Bytes of messages that wait for workers.", pool.bytes),
            ("waiting_requests", "HTTP requests that wait for a worker.", pool.waiting_requests),
        ):
            yield GaugeMetricFamily(f"netd_worker_{name}", what, value=value)
        for name, what, total in (
            ("joined", "Workers that have connected.", pool.joined),
            ("crashed", "Workers that went without a word.", pool.crashed),
            ("hung", "Workers that hung and were given up.", pool.hung),
            ("handled", "Events that workers have handled.", pool.handled),
            ("cancelled", "Handlers that took too long.", pool.cancelled),
            ("lost", "Events that a worker had in hand as it went.", pool.lost),
            ("dropped", "Events that no worker will be told of.", pool.dropped),
            ("moved", "Times that a session got another worker.", pool.moved),
            ("pauses", "Times that a client was read no more, as its worker was behind.", pool.pauses),
        ):
            yield CounterMetricFamily(f"netd_worker_{name}", what, value=total)
        requests = CounterMetricFamily("netd_worker_requests", "HTTP requests, by what came of them.", labels=("how",))
        for how, count in pool.requests.items():
            requests.add_metric((how,), count)
        yield requests
