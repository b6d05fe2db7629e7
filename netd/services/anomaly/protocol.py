"""What an adapter is asked and what it may answer. Pure; one shape for a command, a URL and a Python function.

Asked, one JSON object (for a command: on one line of its stdin):

    {"type": "figures", "version": 1, "serial": 7, "time": 1760000000.0, "interval": 5.0,
     "sessions": {"<session id>": {"bytes_in_s": 10.0, ..., "pressed": 0.0,
                                   "coherence": 0.5, "entropy": 0.7, "anomaly": 0.1}}}

The figures are those of windows.py; scores are absent until a session's warm-up is over, and sessions that did nothing
for a whole window are. `time` is in seconds since the epoch. Answered, one JSON object (for a command: on one line of
its stdout):

    {"scores": {"<session id>": 0.93, "<another>": {"anomaly": 0.2, "coherence": 0.9, "entropy": 0.1}}}

Rules:
- a score is a number from 0 to 1. A bare number is the anomaly. Keys of a score beside the three are ignored, as are
  sessions that were not asked about and keys beside `scores`; what is not answered keeps its built-in score;
- one wrong score spoils the answer as a whole: an adapter that is wrong about one is not to be trusted about the rest;
- `serial` counts up and may come back: an answer that names another one than was asked about is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from netd.errors import ProtocolError
from netd.services.anomaly.scores import STILL, Scores

if TYPE_CHECKING:
    from netd.services.anomaly.windows import Watched

NAMES = ("coherence", "entropy", "anomaly")

Given = dict[str, dict[str, float]]
"""session id -> score's name -> score."""


def described(watched: Watched) -> dict[str, float]:
    """One session of a question."""
    figures = watched.figures()
    if watched.scores is not None:
        figures.update(zip(NAMES, watched.scores[:3], strict=True))
    return figures


def question(serial: int, time: float, interval: float, sessions: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "type": "figures",
        "version": 1,
        "serial": serial,
        "time": round(time, 3),
        "interval": interval,
        "sessions": sessions,
    }


def encode(asked: Mapping[str, Any]) -> bytes:
    """A question as JSON, on one line without its end."""
    return msgspec.json.encode(asked)


def decode(content: bytes) -> object:
    """JSON as it came. Raises ProtocolError."""
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ProtocolError(f"cannot read the answer: it is not JSON: {content[:60]!r}") from None


def answer(value: object, asked: Mapping[str, Any]) -> Given:
    """The scores in an answer to `asked`. Raises ProtocolError naming what is wrong, whatever `value` is."""
    if not isinstance(value, Mapping):
        raise ProtocolError('cannot use the answer: it is not an object like {"scores": {...}}')
    serial = value.get("serial", asked["serial"])
    if serial != asked["serial"]:
        raise ProtocolError(f"cannot use the answer: it is to question {_brief(serial)}, not {asked['serial']}")
    scores = value.get("scores")
    if not isinstance(scores, Mapping):
        raise ProtocolError('cannot use the answer: it has no object "scores"')
    sessions = asked["sessions"]
    return {session_id: _scores(session_id, one) for session_id, one in scores.items() if session_id in sessions}


def overruled(scores: Scores | None, given: Mapping[str, float]) -> Scores:
    """Scores with what an adapter said in their place."""
    base = scores or STILL
    changed = Scores(
        given.get("coherence", base.coherence), given.get("entropy", base.entropy), given.get("anomaly", base.anomaly)
    )
    return changed if "anomaly" in given else changed._replace(z=base.z, figure=base.figure)


def _scores(session_id: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        return {"anomaly": _score(session_id, "anomaly", value)}
    return {name: _score(session_id, name, value[name]) for name in NAMES if name in value}


def _score(session_id: str, name: str, value: object) -> float:
    # bool is an int, and numbers of other libraries (numpy) are floats or refuse to be
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            score = float(value)
        except OverflowError:
            score = math.inf
        if 0.0 <= score <= 1.0:
            return score
    raise ProtocolError(
        f"cannot use the answer: {name} of session {session_id} is {_brief(value)}, not a number from 0 to 1"
    )


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = "a number without end"
    return text if len(text) <= 60 else f"{text[:57]}..."
