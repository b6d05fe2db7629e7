"""The fuzz targets hold for their seeds and some changes of them; `python -m tests.fuzz` does the long run."""

from __future__ import annotations

import collections
import itertools
import random

import pytest

from netd.errors import ProtocolError
from netd.net import http
from netd.wire import plain
from tests.fuzz import targets
from tests.fuzz.__main__ import NAMES
from tests.fuzz.mutation import mutations


def test_every_target_is_listed_and_has_seeds():
    assert set(NAMES) == set(targets.TARGETS) == set(targets.SEEDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_holds_for_its_seeds_and_some_changes_of_them(name):
    made = mutations(targets.SEEDS[name], random.Random(1))
    count = 300 if name == "http" else 1500  # a run of Trio's each
    for data in itertools.chain(targets.SEEDS[name], itertools.islice(made, count)):
        targets.TARGETS[name](data)


def test_mutations_find_a_planted_fault(monkeypatch):
    """Without our own check the libraries let through what the others cannot say."""
    monkeypatch.setattr(plain, "check", lambda value: None)
    made = itertools.islice(mutations(targets.SEEDS["codecs"], random.Random(1)), 20_000)
    with pytest.raises(ProtocolError, match="cannot write"):
        collections.deque(map(targets.fuzz_codecs, made), maxlen=0)


def test_mutations_find_a_request_that_is_smuggled(monkeypatch):
    """Without our own check lines may end with LF, where others see none end."""
    monkeypatch.setattr(http, "check_lines", lambda head: None)
    made = itertools.islice(mutations(targets.SEEDS["http"], random.Random(1)), 5000)
    with pytest.raises(AssertionError):
        collections.deque(map(targets.TARGETS["http"], made), maxlen=0)
