"""Rolling windows: what is a sample, what is remembered, who is watched."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.services.anomaly.scores import STILL
from netd.services.anomaly.windows import FIGURES, Reading, Rules, Watched, Windows

RULES = Rules(warmup=8, lags=4, bins=8)
NOTHING = Reading(0, 0, 0, 0, 0, False)


class Client:
    """A session whose counters a test moves."""

    def __init__(self, *, window: int = 32) -> None:
        self.counters = [0, 0, 0, 0]
        self.now = 100.0
        self.watched = Watched(NOTHING, self.now, window)

    def tick(self, messages: int = 0, size: int = 100, *, outbox: int = 0, pressed: bool = False, seconds: float = 5.0):
        """Some seconds with so many messages in, each answered by as long a one."""
        self.now += seconds
        for place, more in enumerate((messages * size, messages * size, messages, messages)):
            self.counters[place] += more
        return self.watched.sample(Reading(*self.counters, outbox, pressed), self.now, RULES)


def test_figures_are_rates_sizes_and_gaps_of_the_time_between_two_readings():
    client = Client()
    client.tick(10, 200, outbox=7, pressed=True)
    assert client.watched.figures() == {
        "bytes_in_s": 400.0,
        "bytes_out_s": 400.0,
        "messages_in_s": 2.0,
        "messages_out_s": 2.0,
        "size": 200.0,
        "gap": 0.5,
        "outbox": 7.0,
        "pressed": 1.0,
    }
    assert tuple(client.watched.figures()) == FIGURES


def test_there_are_no_scores_before_the_warm_up():
    client = Client()
    assert [client.tick(10) is None for _ in range(9)] == [True] * 7 + [False] * 2


def test_a_session_that_does_nothing_is_still_and_costs_no_window():
    client = Client()
    assert [client.tick() for _ in range(10)] == [None] * 7 + [STILL] * 3
    assert client.watched.still


def test_a_steady_session_is_no_anomaly_and_a_spike_is_one_and_passes():
    rng = random.Random(7)
    client = Client()
    steady = [client.tick(rng.randrange(90, 110)) for _ in range(40)]
    assert max(one.anomaly for one in steady if one) < 0.6
    spike = client.tick(5000)
    assert spike.anomaly > 0.95
    assert spike.figure in ("messages_in_s", "bytes_in_s", "bytes_out_s", "messages_out_s")
    assert client.tick(100).anomaly < 0.6


@pytest.mark.parametrize(
    ("odd", "figure"),
    [({"size": 20_000, "messages": 1}, "size"), ({"outbox": 3_000_000}, "outbox"), ({"messages": 1}, "gap")],
)
def test_the_figure_that_deviates_most_is_named(odd, figure):
    client = Client()
    for _ in range(20):
        client.tick(50)
    assert client.tick(**{"messages": 50, **odd}).figure == figure


def test_silence_after_speech_is_odd_in_the_rates_but_not_in_what_a_message_is_like():
    client = Client()
    for _ in range(20):
        client.tick(1000)
    silent = client.tick()
    assert silent.figure in ("bytes_in_s", "bytes_out_s", "messages_in_s", "messages_out_s")
    figures = client.watched.figures()
    assert (figures["size"], figures["gap"]) == (100.0, 0.005)


def test_the_first_message_of_a_quiet_session_is_no_anomaly():
    client = Client()
    for _ in range(20):
        client.tick()
    assert client.tick(1, 3000).anomaly < 0.2


def test_after_a_window_of_silence_the_window_is_given_back_and_what_was_usual_is_remembered():
    client = Client(window=16)
    for _ in range(20):
        client.tick(1, 3000)
    scores = [client.tick() for _ in range(16)]
    assert client.watched.still
    assert scores[-1] == STILL
    assert client.tick(1, 3000).figure not in ("size", "gap")


def test_bytes_that_wait_keep_a_silent_session_in_view():
    client = Client(window=16)
    for _ in range(40):
        client.tick(outbox=1000)
    assert not client.watched.still


def test_counters_that_go_back_begin_anew():
    client = Client()
    for _ in range(20):
        client.tick(10)
    client.counters = [0, 0, 0, 0]
    assert client.tick(10) is None
    assert [client.tick(10) is None for _ in range(8)] == [True] * 7 + [False]


def test_a_clock_that_stands_still_is_no_sample():
    client = Client()
    for _ in range(10):
        client.tick(10)
    before, scores = client.watched.samples, client.watched.scores
    assert client.tick(1000, seconds=0.0) == scores
    assert client.watched.samples == before


def test_coherence_is_of_the_series_in_its_order_wherever_the_ring_begins():
    ramps = []
    for begin in range(16):
        client = Client(window=16)
        for n in range(begin + 64):
            scores = client.tick(10 + n % 16)
            if n == begin + 63:
                ramps.append((n % 16, scores.coherence))
    by_phase = dict(ramps)
    assert len(by_phase) == 16
    assert by_phase[15] > by_phase[7], "an unbroken ramp follows from its past, one with a jump in it less"


readings = st.tuples(*[st.integers(0, 2**63)] * 4, st.integers(0, 2**40), st.booleans())


@settings(max_examples=100)
@given(st.lists(st.tuples(readings, st.floats(1e-9, 1e9)), max_size=40), st.integers(8, 16))
def test_whatever_the_counters_do_scores_are_from_0_to_1(steps, window):
    now = 0.0
    watched = Watched(NOTHING, now, window)
    for reading, seconds in steps:
        now += seconds
        scores = watched.sample(Reading(*reading), now, RULES)
        if scores is not None:
            assert all(0.0 <= one <= 1.0 for one in scores[:3])
        assert all(0.0 <= one < float("inf") for one in watched.figures().values())


# --- all of them ------------------------------------------------------------------------------------------------------


def test_who_came_first_is_watched_and_the_rest_is_counted():
    windows = Windows(32)
    for session in windows.admit(["a", "b", "c"], 2):
        windows.sample(session, NOTHING, 1.0, RULES)
    assert ([one for one, _ in windows.items()], windows.untracked) == (["a", "b"], 1)
    assert windows.admit(["b", "c", "d"], 2) == ["b", "c"]
    assert windows.get("a") is None
    assert windows.untracked == 1


def test_a_smaller_bound_forgets_the_latest():
    windows = Windows(32)
    for session in windows.admit("abc", 3):
        windows.sample(session, NOTHING, 1.0, RULES)
    assert windows.admit("abc", 1) == ["a"]
    assert (len(windows), windows.untracked) == (1, 2)
