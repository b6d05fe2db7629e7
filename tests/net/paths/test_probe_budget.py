from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.net.paths.budget import ProbeBucket, TracerLimits


def test_a_burst_then_the_rate():
    bucket, limits = ProbeBucket(), TracerLimits(probes_per_second=10.0, burst=3)
    assert [bucket.take(limits, 5.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]
    assert bucket.take(limits, 5.05) == pytest.approx(0.05)
    assert bucket.take(limits, 5.11) == 0.0


def test_limits_may_change_at_any_time():
    bucket = ProbeBucket()
    bucket.take(TracerLimits(probes_per_second=1.0, burst=1), 0.0)
    assert bucket.take(TracerLimits(probes_per_second=1000.0, burst=1), 0.001) == 0.0
    assert bucket.take(TracerLimits(probes_per_second=0.0, burst=0), 0.001) > 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.floats(1, 1000), st.integers(1, 50))
def test_never_more_than_the_burst_and_the_rate(pauses, rate, burst):
    bucket, limits, now, taken = ProbeBucket(), TracerLimits(probes_per_second=rate, burst=burst), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(limits, now) == 0.0
        assert taken <= burst + rate * now + 1e-6


@pytest.mark.parametrize(("rate", "at_once"), [(0.001, 1), (1.0, 1), (7.9, 1), (8.0, 2), (100.0, 25), (2000.0, 500)])
def test_the_burst_follows_the_rate(rate, at_once):
    assert TracerLimits(probes_per_second=rate).at_once == at_once
    assert TracerLimits(probes_per_second=rate, burst=10).at_once == 10


def test_a_low_limit_holds_in_every_second():
    bucket, limits = ProbeBucket(), TracerLimits(probes_per_second=1.0)
    taken = [ms for ms in range(10_000) if bucket.take(limits, ms / 1000) == 0.0]
    assert taken == list(range(0, 10_000, 1000))


def test_a_lower_limit_holds_at_once_and_a_higher_one_has_to_be_earned():
    bucket = ProbeBucket()
    assert bucket.take(TracerLimits(probes_per_second=2000.0), 0.0) == 0.0
    low = TracerLimits(probes_per_second=1.0)
    assert [bucket.take(low, 0.0) for _ in range(2)] == [0.0, pytest.approx(1.0)]
    high = TracerLimits(probes_per_second=2000.0)
    assert bucket.take(high, 0.0) == pytest.approx(0.0005)
    assert sum(bucket.take(high, 0.01) == 0.0 for _ in range(500)) == 20


def test_a_clock_that_goes_back_earns_and_costs_nothing():
    bucket, limits = ProbeBucket(), TracerLimits(probes_per_second=1.0, burst=5)
    assert bucket.take(limits, 100.0) == 0.0
    assert [bucket.take(limits, 50.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(limits, 100.0) == pytest.approx(1.0)


def test_who_waits_as_long_as_told_gets_a_token_whatever_the_rounding():
    bucket, limits, now = ProbeBucket(), TracerLimits(probes_per_second=3.0, burst=1), 1e6
    for _ in range(1000):
        while delay := bucket.take(limits, now):
            assert delay > 1e-10
            now += delay


_changes = st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(1, 1000)), min_size=1, max_size=100)


@given(_changes)
def test_never_more_than_the_present_limits_allow(steps):
    """Since the last change of the limits, no more than their burst and rate, whatever held before."""
    bucket, limits, now, since, taken = ProbeBucket(), TracerLimits(probes_per_second=10.0), 0.0, 0.0, 0
    for pause, rate in steps:
        now += pause
        if rate is not None:
            limits, since, taken = TracerLimits(probes_per_second=rate), now, 0
        for _ in range(300):
            taken += bucket.take(limits, now) == 0.0
        assert taken <= limits.at_once + limits.probes_per_second * (now - since) + 1e-6
