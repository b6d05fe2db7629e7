"""What an adapter is asked, and what of its answer is believed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.services.anomaly import protocol
from netd.services.anomaly.scores import STILL, Scores
from netd.services.anomaly.windows import Reading, Rules, Watched

ASKED = protocol.question(7, 1760000000.12345, 5.0, {"a": {"bytes_in_s": 1.0}, "b": {"bytes_in_s": 2.0}})


def test_a_question_is_one_line_of_json():
    line = protocol.encode(ASKED)
    assert b"\n" not in line
    assert json.loads(line) == {
        "type": "figures",
        "version": 1,
        "serial": 7,
        "time": 1760000000.123,
        "interval": 5.0,
        "sessions": {"a": {"bytes_in_s": 1.0}, "b": {"bytes_in_s": 2.0}},
    }


def test_a_session_is_described_by_its_figures_and_once_it_has_some_by_its_scores():
    watched = Watched(Reading(0, 0, 0, 0, 0, False), 0.0, 16)
    watched.sample(Reading(50, 0, 5, 0, 0, False), 5.0, Rules(2, 4, 8))
    assert protocol.described(watched)["bytes_in_s"] == 10.0
    assert "anomaly" not in protocol.described(watched)
    watched.sample(Reading(100, 0, 10, 0, 0, False), 10.0, Rules(2, 4, 8))
    assert {"coherence", "entropy", "anomaly"} < protocol.described(watched).keys()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, {}),
        ({"a": 0.5}, {"a": {"anomaly": 0.5}}),
        ({"a": 0, "b": 1}, {"a": {"anomaly": 0.0}, "b": {"anomaly": 1.0}}),
        ({"a": {"entropy": 0.25, "why": "x"}}, {"a": {"entropy": 0.25}}),
        ({"gone": 0.5, "b": 0.5}, {"b": {"anomaly": 0.5}}),
        ({"gone": "nonsense"}, {}),
    ],
)
def test_scores_are_taken_by_session(scores, expected):
    assert protocol.answer({"scores": scores, "serial": 7, "more": 1}, ASKED) == expected


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf, "0.5", None, True, [], 10**400, {"anomaly": None}])
def test_what_is_no_score_is_refused_by_name(score):
    with pytest.raises(ProtocolError, match="session a") as refused:
        protocol.answer({"scores": {"a": score}}, ASKED)
    assert str(refused.value).startswith("cannot use the answer")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", [None, 5, [], "x", {}, {"scores": None}, {"scores": []}, {"serial": 6, "scores": {}}])
def test_what_is_no_answer_is_refused(value):
    with pytest.raises(ProtocolError, match="cannot use the answer"):
        protocol.answer(value, ASKED)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN"])
def test_what_is_no_json_is_refused(content):
    with pytest.raises(ProtocolError, match="not JSON"):
        protocol.decode(content)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["scores", "serial", "a", "b", "anomaly", "x"]) | st.integers(), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(anything)
def test_whatever_is_answered_is_scores_or_a_refusal(value):
    try:
        taken = protocol.answer(value, ASKED)
    except ProtocolError:
        return
    assert taken.keys() <= {"a", "b"}
    assert all(0.0 <= score <= 1.0 for one in taken.values() for score in one.values())


def test_what_an_adapter_says_counts_in_place_of_the_built_in():
    built_in = Scores(0.5, 0.6, 0.7, 5.0, "size")
    assert protocol.overruled(built_in, {"anomaly": 0.1}) == Scores(0.5, 0.6, 0.1)
    assert protocol.overruled(built_in, {"entropy": 0.1}) == Scores(0.5, 0.1, 0.7, 5.0, "size")
    assert protocol.overruled(None, {"anomaly": 0.9}) == STILL._replace(anomaly=0.9)
