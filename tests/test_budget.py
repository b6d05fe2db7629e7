"""Buckets, tables of them, places, and what counts as one address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.budget import Bucket, Buckets, Places, address_key


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("/run/client.sock", "/run/client.sock"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address, key):
    assert address_key(address) == key


def test_a_new_bucket_is_full_and_earns_what_the_rate_gives():
    bucket = Bucket()
    bucket.refill(5.0, 10.0, 3.0)
    assert [bucket.draw(10.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]
    bucket.refill(5.05, 10.0, 3.0)
    assert bucket.draw(10.0) == pytest.approx(0.05)
    bucket.refill(5.1, 10.0, 3.0)
    assert bucket.draw(10.0) == 0.0


def test_several_tokens_at_once_or_none():
    bucket = Bucket(100.0, 0.0)
    assert bucket.draw(10.0, 60.0) == 0.0
    assert bucket.draw(10.0, 60.0) == pytest.approx(2.0)
    assert bucket.tokens == 40.0
    assert bucket.draw(10.0, 40.0) == 0.0


def test_spending_goes_into_debt():
    bucket = Bucket(100.0, 0.0)
    assert bucket.spend(150.0, 10.0) == pytest.approx(5.0)
    bucket.refill(5.0, 10.0, 100.0)
    assert bucket.tokens == pytest.approx(0.0)


def test_a_clock_that_goes_back_earns_and_costs_nothing():
    bucket = Bucket(5.0, 100.0)
    bucket.refill(50.0, 1.0, 5.0)
    assert bucket.tokens == 5.0
    bucket.spend(5.0, 1.0)
    bucket.refill(99.0, 1.0, 5.0)
    assert bucket.tokens == 0.0
    bucket.refill(101.0, 1.0, 5.0)
    assert bucket.tokens == 1.0


_steps = st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 20)), min_size=1, max_size=100)


@given(_steps, st.floats(1, 1000), st.floats(1, 50))
def test_no_stretch_of_time_has_more_than_the_burst_and_the_rate(steps, rate, burst):
    bucket, now, taken = Bucket(burst, 0.0), 0.0, []
    for pause, amount in steps:
        now += pause
        bucket.refill(now, rate, burst)
        if bucket.draw(rate, amount) == 0.0:
            taken.append((now, amount))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            total = sum(amount for _, amount in taken[first : last + 1])
            assert total <= burst + rate * (taken[last][0] - taken[first][0]) + 1e-6


@given(st.integers(1, 200), st.floats(1, 1000))
def test_who_waits_as_long_as_told_gets_a_token(draws, rate):
    bucket, now = Bucket(1.0, 0.0), 0.0
    for _ in range(draws):
        while delay := bucket.draw(rate):
            assert delay > 1e-12
            now += delay
            bucket.refill(now, rate, 1.0)


def test_a_table_is_bounded_and_forgets_the_quietest():
    buckets = Buckets(capacity=3)
    for number, key in enumerate("abc"):
        assert buckets.of(key, float(number), 0.001, 1.0).draw(0.001) == 0.0
    assert buckets.of("a", 3.0, 0.001, 1.0).draw(0.001) > 0  # a is the most recent now, b the quietest
    buckets.of("d", 4.0, 0.001, 1.0)
    assert len(buckets) == len(list(buckets.all())) == 3
    assert buckets.of("b", 5.0, 0.001, 1.0).draw(0.001) == 0.0, "forgotten, so it is full again"
    assert buckets.of("a", 6.0, 0.001, 1.0).draw(0.001) > 0


def test_another_rate_and_burst_hold_from_the_next_call():
    buckets = Buckets()
    bucket = buckets.of("a", 0.0, 1.0, 100.0)
    assert bucket.tokens == 100.0
    assert buckets.of("a", 0.0, 1.0, 10.0).tokens == 10.0
    assert buckets.of("a", 1.0, 50.0, 1000.0).tokens == 60.0


def test_places_say_which_limit_is_in_the_way():
    places = Places()
    assert [places.enter("a", limit=3, limit_per_key=2) for _ in range(3)] == [None, None, "address"]
    assert places.enter("b", limit=3, limit_per_key=2) is None
    assert places.enter("c", limit=3, limit_per_key=2) == "clients"
    places.leave("a")
    assert places.enter("c", limit=3, limit_per_key=2) is None
    for key in "abc":
        places.leave(key)
    assert (places.total, len(places._by_key)) == (0, 0)
