"""Statistics over rounds: against a model that recounts everything from the list of rounds, and case by case."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.net.paths.path import Hop, MplsLabel, Path
from netd.services.trace.rounds import MAX_ADDRESSES, PROXY_GAP_MS, Rounds, has_gap
from tests.services.trace.lab import hop, path

times = st.floats(min_value=0, max_value=5000, allow_nan=False)


@st.composite
def hops(draw: Any, ttl: int) -> Hop:
    if draw(st.booleans()):
        return hop(ttl, None, limited=draw(st.booleans()))
    kind = draw(st.sampled_from(["ttl", "ttl", "unreach", "shared"]))
    addr = f"192.0.2.{draw(st.integers(1, 3))}"
    return hop(ttl, addr, draw(times), kind=kind, nat=draw(st.booleans()), reply_ttl=draw(st.integers(0, 255)))


@st.composite
def paths(draw: Any) -> Path:
    length = draw(st.integers(0, 6))
    found = [draw(hops(ttl)) for ttl in range(1, length + 1)]
    if draw(st.booleans()):
        return path(*found, dest_rtt_ms=draw(times), tcp_rtt_ms=draw(st.none() | times))
    reason = draw(st.sampled_from(["max-hops", "timeout", "closed"]))
    return path(*found, dest_ttl=None, dest_rtt_ms=None, reason=reason)


def went_past(ttl: int, one: Path) -> bool:
    """The model's reading of the rule: something of this round beyond `ttl` answered by itself."""
    if one.dest_ttl is not None and one.dest_ttl > ttl:
        return True
    return any(other.ttl > ttl and other.addr and other.kind != "shared" for other in one.hops)


@given(st.lists(paths(), max_size=12))
def test_rows_are_what_a_recount_gives(all_rounds: list[Path]) -> None:
    rounds = Rounds()
    for one in all_rounds:
        rounds.add(one)
    rows = {row.ttl: row for row in rounds.rows()}
    assert list(rows) == sorted({one.ttl for round_ in all_rounds for one in round_.hops})
    for ttl, row in rows.items():
        seen = [(one, round_) for round_ in all_rounds for one in round_.hops if one.ttl == ttl]
        answers = [one for one, _ in seen if one.addr]
        silences = [(one, round_) for one, round_ in seen if not one.addr]
        passed = [one for one, round_ in silences if one.limited or went_past(ttl, round_)]
        if answers or any(one.limited for one, _ in silences):
            limited, silent = len(passed), 0
        else:
            limited, silent = 0, len(silences) if passed else 0
        assert row.rounds == len(seen) == row.answered + row.lost + row.limited + row.silent
        assert (row.answered, row.limited, row.silent) == (len(answers), limited, silent)
        counted = len(seen) - limited - silent
        assert row.loss_percent == (100 * (counted - len(answers)) / counted if counted else None)
        assert row.shared == sum(one.kind == "shared" for one in answers)
        assert dict(row.addresses) == Counter(one.addr for one in answers)
        assert row.kind == (answers[-1].kind if answers else "silent")
        rtts = [one.rtt_ms for one in answers if one.rtt_ms is not None]
        assert row.rtt.count == len(rtts)
        if rtts:
            assert (row.rtt.best, row.rtt.worst, row.rtt.last) == (min(rtts), max(rtts), rtts[-1])
            assert row.rtt.mean == pytest.approx(fmean(rtts))
            assert row.rtt.best <= row.rtt.mean <= row.rtt.worst
        if len(rtts) > 1:
            assert row.rtt.jitter == pytest.approx(fmean(abs(b - a) for a, b in pairwise(rtts)))
        else:
            assert row.rtt.jitter is None


@given(st.lists(paths(), max_size=12))
def test_the_summary_is_what_a_recount_gives(all_rounds: list[Path]) -> None:
    rounds = Rounds()
    for one in all_rounds:
        rounds.add(one)
    summary = rounds.summary()
    reached = [one for one in all_rounds if one.dest_ttl is not None]
    assert (summary.rounds, summary.reached) == (len(all_rounds), len(reached))
    assert summary.dest_ttl == (reached[-1].dest_ttl if reached else None)
    assert summary.probes == sum(one.probes for one in all_rounds)
    assert summary.path_rtt.count == len(reached)
    tcp = [one.tcp_rtt_ms for one in all_rounds if one.tcp_rtt_ms is not None]
    assert summary.tcp_rtt_ms == (min(tcp) if tcp else None)
    if reached:
        assert summary.reason == "destination"
    else:
        assert summary.reason == (all_rounds[-1].reason if all_rounds else None)


def test_a_router_that_answers_every_other_round_is_limited_and_not_lossy() -> None:
    rounds = Rounds()
    for number in range(10):
        rounds.add(path(hop(1, "192.0.2.1" if number % 2 else None), hop(2, "192.0.2.2")))
    first, second = rounds.rows()
    assert (first.answered, first.limited, first.lost, first.loss_percent) == (5, 5, 0, 0.0)
    assert second.loss_percent == 0.0


def test_silence_with_nothing_behind_it_is_loss() -> None:
    rounds = Rounds()
    nowhere = {"dest_ttl": None, "dest_rtt_ms": None, "reason": "timeout"}
    rounds.add(path(hop(1, "192.0.2.1"), hop(2, "192.0.2.2")))
    rounds.add(path(hop(1, "192.0.2.1"), hop(2, None), **nowhere))
    first, second = rounds.rows()
    assert (first.loss_percent, second.loss_percent) == (0.0, 50.0)


def test_a_hop_borrowed_from_another_trace_proves_nothing() -> None:
    rounds = Rounds()
    rounds.add(path(hop(1, None), hop(2, "192.0.2.2", kind="shared"), dest_ttl=None, reason="timeout"))
    assert rounds.rows()[0].loss_percent == 100.0


def test_a_hop_that_never_answers_has_no_loss_figure() -> None:
    rounds = Rounds()
    rounds.add(path(hop(1, None), hop(2, "192.0.2.2")))
    row = rounds.rows()[0]
    assert (row.kind, row.router, row.loss_percent) == ("silent", None, None)
    assert (row.silent, row.limited, row.lost) == (1, 0, 0)
    # a round in which nothing behind it answered does not make a lossy one of it
    rounds.add(path(hop(1, None), hop(2, None), dest_ttl=None, reason="timeout"))
    row, behind = rounds.rows()
    assert (row.silent, row.lost, row.loss_percent) == (2, 0, None)
    assert (behind.lost, behind.loss_percent) == (1, 50.0)


def test_one_answer_tells_a_limited_router_from_a_silent_one() -> None:
    rounds = Rounds()
    quiet = path(hop(1, None), hop(2, "192.0.2.2"))
    rounds.add(quiet)
    assert (rounds.rows()[0].silent, rounds.rows()[0].limited) == (1, 0)
    rounds.add(path(hop(1, "192.0.2.1", kind="shared"), hop(2, "192.0.2.2")))
    rounds.add(quiet)
    row = rounds.rows()[0]
    assert (row.answered, row.silent, row.limited, row.lost, row.loss_percent) == (1, 0, 2, 0, 0.0)


def test_what_the_tracer_knows_of_other_clients_tells_it_too() -> None:
    rounds = Rounds()
    rounds.add(path(hop(1, None), hop(2, "192.0.2.2")))
    rounds.add(path(hop(1, None, limited=True), hop(2, "192.0.2.2")))
    row = rounds.rows()[0]
    assert (row.limited, row.silent, row.loss_percent) == (2, 0, None)


def test_several_addresses_of_one_ttl_are_counted_up_to_a_bound() -> None:
    rounds = Rounds()
    for number in range(MAX_ADDRESSES + 5):
        rounds.add(path(hop(1, f"192.0.2.{number}")))
    rounds.add(path(hop(1, "192.0.2.3")))
    row = rounds.rows()[0]
    assert (len(row.addresses), row.more_addresses) == (MAX_ADDRESSES, 5)
    assert row.router == "192.0.2.3"
    assert row.answered == MAX_ADDRESSES + 6


def test_labels_reply_ttl_and_mtu_stay_as_last_seen() -> None:
    label = MplsLabel(label=16001, traffic_class=0, bottom=True, ttl=1)
    rounds = Rounds()
    rounds.add(path(hop(1, "192.0.2.1", mpls=(label,), reply_ttl=63, next_mtu=1400, nat=True)))
    rounds.add(path(hop(1, "192.0.2.1")))
    row = rounds.rows()[0]
    assert (row.mpls, row.reply_ttl, row.next_mtu, row.nat) == ((label,), 63, 1400, True)


def test_what_was_silent_last_is_asked_only_once_next_time() -> None:
    rounds = Rounds()
    rounds.add(path(hop(1, None), hop(2, "192.0.2.2"), hop(3, None)))
    assert rounds.mute() == {1, 3}
    rounds.add(path(hop(1, "192.0.2.1"), hop(2, None), hop(3, None)))
    assert rounds.mute() == {2, 3}


@pytest.mark.parametrize(
    ("tcp", "pong", "proxy"),
    [
        (10.0, 11.0, False),
        (10.0, 10.0 + PROXY_GAP_MS, False),
        (10.0, 10.1 + PROXY_GAP_MS, True),
        (200.0, 250.0, False),
        (200.0, 301.0, True),
        (None, 5.0, None),
        (5.0, None, None),
    ],
)
def test_only_a_gap_that_is_large_and_relatively_large_marks_a_proxy(
    tcp: float | None, pong: float | None, proxy: bool | None
) -> None:
    assert has_gap(tcp, pong) is proxy


def test_the_least_pong_counts() -> None:
    rounds = Rounds()
    rounds.add(path(tcp_rtt_ms=5.0))
    rounds.add_pong(80.0)
    assert rounds.summary().proxy is True
    rounds.add_pong(6.0)
    assert (rounds.summary().pong_rtt_ms, rounds.summary().proxy) == (6.0, False)
