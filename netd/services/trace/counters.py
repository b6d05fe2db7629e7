"""The trace service's metrics, with the children of labelled ones made once. Labels are words from fixed lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netd.net.paths.path import Hop, Path
    from netd.runtime.metrics import Metrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counters:
    """All of them outlive the generation that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self.clients = metrics.gauge("netd_trace_clients", "Clients of the trace service.")
        self._traces = metrics.counter("netd_trace_traces_total", "Traces that ended, by reason.", ("reason",))
        self._probes = metrics.counter("netd_trace_probes_total", "Probes sent for clients.")
        self._hops = metrics.counter("netd_trace_hops_total", "Hops found, by kind.", ("kind",))
        self._duration = metrics.histogram("netd_trace_round_seconds", "Duration of one round.", buckets=_SECONDS)
        self._refused = metrics.counter("netd_trace_refused_total", "Clients and requests refused.", ("why",))
        self._hop_kinds = {kind: self._hops.labels(kind) for kind in ("ttl", "unreach", "shared", "silent")}

    def hop(self, hop: Hop) -> None:
        self._hop_kinds[hop.kind].inc()

    def round(self, path: Path) -> None:
        self._probes.inc(path.probes)
        self._duration.observe(path.elapsed_ms / 1000)

    def trace(self, reason: str) -> None:
        self._traces.labels(reason).inc()

    def refused(self, why: str) -> None:
        self._refused.labels(why).inc()
