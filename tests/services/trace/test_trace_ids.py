"""Ids: short, unique, and in the order of time."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.services.trace.ids import PATTERN, Ids, decode, encode


@given(st.lists(st.floats(min_value=0, max_value=4e9), min_size=1, max_size=50))
def test_ids_rise_whatever_the_clock_does(clock: list[float]) -> None:
    readings = iter(clock)
    ids = Ids(lambda: next(readings))
    made = [ids.new() for _ in clock]
    assert made == sorted(set(made))
    assert all(re.fullmatch(PATTERN, one) for one in made)


@given(st.integers(0, 32**9 - 1), st.integers(0, 32**9 - 1))
def test_text_sorts_as_numbers_do_and_comes_back(one: int, other: int) -> None:
    assert decode(encode(one)) == one
    assert (encode(one) < encode(other)) == (one < other)


def test_an_id_tells_its_time() -> None:
    assert decode(Ids(lambda: 1_700_000_000.25).new()) == 1_700_000_000_250


def test_ids_go_on_above_those_of_an_earlier_run() -> None:
    before = Ids(lambda: 2000.0).new()
    ids = Ids(lambda: 1000.0)
    ids.after(before)
    assert ids.new() > before


@pytest.mark.parametrize("text", ["", "0", "0000000000", "00000000i", "00000000\n", "ABCDEFGHJ", "00000000é"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read the id"):
        decode(text)


@pytest.mark.parametrize("value", [-1, 32**9])
def test_numbers_that_do_not_fit_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="cannot write"):
        encode(value)
