"""Turns, places and pace: that nobody gets more than the rule allows, whatever the order of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.budget import Places, address_key
from netd.services.trace.limits import Pace, Turns

INTERVAL, BURST = 5.0, 3


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_what_counts_as_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


@given(st.lists(st.floats(min_value=0, max_value=20), max_size=60))
def test_no_stretch_of_time_has_more_turns_than_burst_and_rate_allow(pauses: list[float]) -> None:
    turns = Turns(interval=INTERVAL, burst=BURST)
    now, taken = 1000.0, []
    for pause in pauses:
        now += pause
        delay = turns.take("192.0.2.7", now)
        assert delay >= 0
        if delay == 0:
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = BURST + (taken[last] - taken[first]) / INTERVAL
            assert last - first + 1 <= allowed + 1e-6


@given(st.integers(1, 200))
def test_who_waits_as_long_as_told_gets_the_turn(refusals: int) -> None:
    turns = Turns(interval=INTERVAL, burst=1)
    assert turns.take("a", 0.0) == 0
    delay = 0.0
    for _ in range(refusals):
        delay = turns.take("a", 1.0)
    assert delay == pytest.approx(4.0)
    assert turns.take("a", 1.0 + delay) == 0


def test_reconnecting_does_not_get_around_the_interval() -> None:
    turns = Turns(interval=INTERVAL, burst=BURST)
    delays = [turns.reserve("192.0.2.7", 0.0) for _ in range(6)]
    assert delays == [0, 0, 0, 5, 10, 15]
    assert turns.reserve("192.0.2.8", 0.0) == 0


def test_a_turn_given_back_is_there_for_the_next() -> None:
    turns = Turns(interval=INTERVAL, burst=1)
    assert turns.reserve("a", 0.0) == 0
    assert turns.reserve("a", 0.0) == 5
    turns.give_back("a", 1.0)
    assert turns.reserve("a", 1.0) == pytest.approx(4)


def test_giving_back_never_makes_more_than_the_burst() -> None:
    turns = Turns(interval=INTERVAL, burst=2)
    for _ in range(10):
        turns.give_back("a", 0.0)
    assert [turns.take("a", 0.0) for _ in range(3)] == [0, 0, 5]


def test_a_clock_that_goes_back_earns_nothing() -> None:
    turns = Turns(interval=INTERVAL, burst=1)
    assert turns.take("a", 100.0) == 0
    assert turns.take("a", 50.0) > 0
    assert turns.take("a", 104.0) > 0


def test_the_table_is_bounded_and_forgets_the_quietest_first() -> None:
    turns = Turns(interval=INTERVAL, burst=1, capacity=3)
    for key in "abc":
        assert turns.take(key, 0.0) == 0
    assert turns.take("a", 1.0) > 0  # a is the most recent now, b the quietest
    assert turns.take("d", 1.0) == 0
    assert len(turns) == 3
    assert turns.take("b", 1.0) == 0
    assert turns.take("a", 1.0) > 0


def test_a_changed_interval_holds_from_now_on() -> None:
    turns = Turns(interval=5.0, burst=1)
    assert turns.take("a", 0.0) == 0
    turns.configure(interval=10.0, burst=1)
    assert turns.take("a", 0.0) == pytest.approx(10)


def test_a_larger_burst_is_there_at_once_for_who_has_used_the_smaller_one() -> None:
    turns = Turns(interval=INTERVAL, burst=2)
    assert [turns.take("a", 0.0) for _ in range(3)] == [0, 0, 5]
    turns.configure(interval=INTERVAL, burst=4)
    assert [turns.take("a", 0.0) for _ in range(3)] == [0, 0, 5]


def test_a_smaller_burst_cuts_what_is_there() -> None:
    turns = Turns(interval=INTERVAL, burst=4)
    assert turns.take("a", 0.0) == 0
    turns.configure(interval=INTERVAL, burst=1)
    assert [turns.take("a", 0.0) for _ in range(2)] == [0, 5]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=80))
def test_places_are_never_more_than_the_limits_and_all_come_back(events: list[tuple[bool, str]]) -> None:
    places, inside = Places(), []
    for coming, key in events:
        if coming:
            why = places.enter(key, limit=4, limit_per_key=2)
            if why is None:
                inside.append(key)
            else:
                assert len(inside) == 4 if why == "clients" else inside.count(key) == 2
        elif key in inside:
            inside.remove(key)
            places.leave(key)
        assert places.total == len(inside) <= 4
    for key in inside:
        places.leave(key)
    assert (places.total, len(places._by_key)) == (0, 0)


def test_pace_lets_four_seconds_worth_through_and_then_makes_wait() -> None:
    pace = Pace(1000, 0.0)
    assert pace.delay(4000, 1000, 0.0) == 0
    assert pace.delay(500, 1000, 0.0) == pytest.approx(0.5)
    assert pace.delay(0, 1000, 0.5) == 0
    assert pace.delay(4000, 1000, 100.0) == 0
