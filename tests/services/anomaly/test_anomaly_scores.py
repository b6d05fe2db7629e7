"""Coherence, entropy and anomaly: their formulas, and that they stay in 0..1 whatever they are fed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netd.services.anomaly.scores import MAD_TO_SIGMA, anomaly, coherence, entropy, robust_z

ANY = st.floats(allow_nan=True, allow_infinity=True)
SERIES = st.lists(ANY, max_size=64)
SIZES = st.integers(0, 64)


def unit(value: float) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0  # NaN is in no range


# --- whatever comes ---------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(SERIES, st.integers(1, 70), st.integers(2, 64))
def test_scores_of_any_series_are_from_0_to_1(values, lags, bins):
    assert unit(coherence(values, lags))
    assert unit(entropy(values, bins))


@settings(max_examples=300)
@given(SERIES, ANY, st.floats(1e-6, 1e6), st.floats(0, 1e6))
def test_z_of_anything_is_a_number_and_its_anomaly_from_0_to_1(before, newest, floor, beat):
    z = robust_z([one for one in before if math.isfinite(one)], newest, floor, beat=beat)
    assert z >= 0.0
    assert math.isfinite(z)
    assert unit(anomaly(z))


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 64))
@example(2.9750896524506803e-308, 2)  # half of which is rounded
def test_what_never_varies_is_coherent_without_entropy_and_without_anomaly(value, count):
    series = [value] * count
    assert coherence(series, 4) == 1.0
    assert entropy(series, 8) == 0.0
    assert robust_z(series, value, 1.0) == 0.0


@pytest.mark.parametrize("series", [[], [1.0]])
def test_nothing_and_one_value_do_not_vary(series):
    assert (coherence(series, 4), entropy(series, 8), robust_z([], 5.0, 1.0)) == (1.0, 0.0, 0.0)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=40), st.sampled_from([1e-30, 0.5, 3.0, 1e120]))
def test_the_unit_of_a_series_does_not_matter(values, factor):
    plain, scaled = [float(one) for one in values], [one * factor for one in values]
    assert coherence(scaled, 4) == pytest.approx(coherence(plain, 4), abs=1e-9)
    # a value on the edge of a bin may fall to either side
    assert entropy(scaled, 8) == pytest.approx(entropy(plain, 8), abs=0.4)


# --- coherence --------------------------------------------------------------------------------------------------------


def by_the_book(values, lags):
    """The formula as the docstring has it, in no hurry."""
    n = len(values)
    mean = sum(values) / n
    power = sum((one - mean) ** 2 for one in values)
    rs = [
        sum((values[t] - mean) * (values[t + k] - mean) for t in range(n - k)) / power
        for k in range(1, min(lags, n - 1) + 1)
    ]
    return (1 + sum(rs) / len(rs)) / 2


@settings(max_examples=100)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=40).filter(lambda one: len(set(one)) > 1), st.integers(1, 8)
)
def test_coherence_is_the_mean_autocorrelation(values, lags):
    assert coherence(values, lags) == pytest.approx(by_the_book(values, lags), abs=1e-9)


def test_a_slow_wave_is_coherent_noise_is_not_and_alternation_is_the_opposite():
    rng = random.Random(7)
    wave = [math.sin(2 * math.pi * t / 64) for t in range(64)]
    noise = [rng.random() for _ in range(512)]
    assert coherence(wave, 2) > 0.9
    assert coherence(noise, 4) == pytest.approx(0.5, abs=0.05)
    assert coherence([0.0, 1.0] * 32, 1) < 0.1


def test_a_period_shows_at_its_own_lag():
    every_fourth = [1.0, 0.0, 0.0, 0.0] * 16
    r4 = by_the_book(every_fourth, 4) * 2 * 4 - 4  # the sum of r_1 ... r_4
    assert coherence(every_fourth, 4) == pytest.approx((1 + r4 / 4) / 2)
    assert coherence(every_fourth, 4) > coherence(every_fourth, 3)


# --- entropy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([0.0, 1.0], 2, 1.0),
        ([0.0, 1.0], 4, 0.5),
        ([0.0, 0.0, 0.0, 1.0], 2, 0.8112781244591328),
        ([float(n) for n in range(8)], 8, 1.0),
        ([0.0] * 31 + [1.0], 8, 0.06687410810423822),
    ],
)
def test_entropy_is_shannons_as_a_share_of_the_most_there_can_be(values, bins, expected):
    assert entropy(values, bins) == pytest.approx(expected)


def test_noise_has_more_entropy_than_a_spike():
    rng = random.Random(7)
    assert entropy([rng.random() for _ in range(256)], 8) > 0.95
    assert entropy([1.0] * 255 + [1000.0], 8) < 0.05


# --- anomaly ----------------------------------------------------------------------------------------------------------


def test_z_is_the_distance_from_the_median_in_robust_deviations():
    before = [8.0, 9.0, 10.0, 11.0, 12.0]  # median 10, MAD 1
    assert robust_z(before, 20.0, 0.001) == pytest.approx(10 / MAD_TO_SIGMA)
    assert robust_z(before, 0.0, 0.001) == pytest.approx(10 / MAD_TO_SIGMA)
    assert robust_z(before[:4], 20.0, 0.001) == pytest.approx(10.5 / MAD_TO_SIGMA)  # an even count: between two


def test_one_outlier_in_the_past_changes_nothing():
    before = [8.0, 9.0, 10.0, 11.0, 1e6]
    assert robust_z(before, 20.0, 0.001) == pytest.approx(10 / MAD_TO_SIGMA)


def test_a_trifle_is_no_catastrophe_however_steady_it_was_before():
    assert robust_z([0.0] * 31, 1000.0, 1024.0) < 1
    assert robust_z([1e6] * 31, 1.02e6, 1024.0) < 1  # within 5 %
    assert robust_z([0.0] * 31, 1e6, 1024.0) > 900


@settings(max_examples=200)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1e6), st.floats(0, 100))
def test_a_z_that_is_not_beaten_may_be_0_and_one_that_is_beaten_is_right(before, newest, beat):
    whole, quick = robust_z(before, newest, 1.0), robust_z(before, newest, 1.0, beat=beat)
    assert quick in (0.0, whole)
    assert quick == whole or whole <= beat * (1 + 1e-9)


@pytest.mark.parametrize(("z", "score"), [(0.0, 0.0), (3.5, 0.5), (10.5, 0.9), (1e9, 1.0)])
def test_the_squash(z, score):
    assert anomaly(z) == pytest.approx(score)


def test_the_squash_rises():
    zs = [n / 10 for n in range(1000)]
    assert [anomaly(z) for z in zs] == sorted(anomaly(z) for z in zs)
