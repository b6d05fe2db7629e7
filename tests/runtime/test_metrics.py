"""Metrics: the same object by the same name, and text that Prometheus reads."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netd.runtime.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_new_generation_counts_on() -> None:
    metrics = Metrics()
    metrics.counter("netd_trace_probes_total", "Probes sent").inc(5)
    metrics.counter("netd_trace_probes_total", "Probes sent").inc(2)
    metrics.gauge("netd_trace_clients", "Clients", ("family",)).labels("ipv6").set(3)
    metrics.histogram("netd_trace_seconds", "Duration", buckets=(0.1, 1)).observe(0.5)
    found = samples(metrics)
    assert found["netd_trace_probes_total"] == 7
    assert found["netd_trace_clients{family=ipv6}"] == 3
    assert found["netd_trace_seconds_bucket{le=0.1}"] == 0
    assert found["netd_trace_seconds_bucket{le=1.0}"] == 1


def test_one_name_means_one_thing() -> None:
    metrics = Metrics()
    metrics.gauge("netd_x", "X", ("a",))
    with pytest.raises(ValueError, match="cannot use metric netd_x as Counter"):
        metrics.counter("netd_x", "X", ("a",))
    with pytest.raises(ValueError, match=r"cannot use metric netd_x as Gauge\['b'\]"):
        metrics.gauge("netd_x", "X", ("b",))


def test_two_daemons_in_one_process_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.counter("netd_x_total", "X").inc()
    assert samples(two) == {}
