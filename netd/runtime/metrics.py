"""Metrics: counters, gauges and histograms that outlive generations, and their Prometheus text.

Rules:
- names are given in full ("netd_trace_clients") and never change meaning;
- asking twice for one name gives the same object, so a new generation counts on where the one before stopped;
- asking for a name as something else (another kind, other labels) is a programming error and raises ValueError;
- whoever labels a metric bounds the label's values: no addresses, no client ids.

prometheus_client costs some 20 ms to import and is imported when the first Metrics is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_M = TypeVar("_M", "Counter", "Gauge", "Histogram")


class Metrics:
    """One per daemon. With no registry given it makes its own: two daemons in one process do not mix."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        import prometheus_client

        self._client = prometheus_client
        self.registry = prometheus_client.CollectorRegistry() if registry is None else registry
        self._known: dict[str, tuple[type, tuple[str, ...], Counter | Gauge | Histogram]] = {}

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; by Prometheus' custom its name ends in "_total"."""
        return self._get(self._client.Counter, name, documentation, labels)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down."""
        return self._get(self._client.Gauge, name, documentation, labels)

    def histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, buckets: Sequence[float] | None = None
    ) -> Histogram:
        """A distribution; `buckets` are upper bounds in the metric's own unit and count at the first asking only."""
        if buckets is None:
            return self._get(self._client.Histogram, name, documentation, labels)
        return self._get(self._client.Histogram, name, documentation, labels, buckets=tuple(buckets))

    def render(self) -> bytes:
        """The text exposition of everything, to be served as `content_type`."""
        return self._client.generate_latest(self.registry)

    def _get(
        self,
        kind: type[_M],
        name: str,
        documentation: str,
        labels: Sequence[str],
        **options: tuple[float, ...],
    ) -> _M:
        known = self._known.get(name)
        if known is not None:
            if known[0] is not kind or known[1] != tuple(labels):
                raise ValueError(f"cannot use metric {name} as {kind.__name__}{list(labels)}: it is something else")
            metric = known[2]
            assert isinstance(metric, kind)
            return metric
        made = kind(name, documentation, tuple(labels), registry=self.registry, **options)  # type: ignore[arg-type]
        self._known[name] = (kind, tuple(labels), made)
        return made
