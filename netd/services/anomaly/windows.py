"""What is remembered of each session: the last samples of its figures, and the scores they make. Pure.

    Reading (counters, as they stand) --Watched.sample(now)--> figures of the time since --> window --> Scores

    bytes_in_s, bytes_out_s         bytes a second, as they pass the socket
    messages_in_s, messages_out_s   messages a second
    size                            mean bytes of a message received (bytes in / messages in)
    gap                             mean seconds between messages received (time / messages in)
    outbox                          bytes that wait for the session
    pressed                         1 while its outbox is above its upper mark, else 0

Rules:
- `size` and `gap` of a time without messages are those of the time before: silence shows in the rates already. The
  first known value fills the window, because before it there was none and not zero;
- a session that does nothing has no window at all: it costs a comparison a sample. One that has done nothing for a
  whole window gives it back;
- counters that go back (a session that was resumed under its id) begin anew and are no sample.

Bounded by `max_sessions`; those that came first stay, later ones are counted and not watched.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from netd.services.anomaly.scores import STILL, Scores, anomaly, coherence, entropy, robust_z

if TYPE_CHECKING:
    from collections.abc import Iterable

FIGURES = ("bytes_in_s", "bytes_out_s", "messages_in_s", "messages_out_s", "size", "gap", "outbox", "pressed")
FLOORS = (1024.0, 1024.0, 1.0, 1.0, 64.0, 0.1, 65536.0, 1.0)
"""For each figure, the deviation that is nothing: `floor` in the formula of anomaly (scores.py)."""
_BYTES_IN, _BYTES_OUT, _MESSAGES_IN, _MESSAGES_OUT, _SIZE, _GAP, _OUTBOX, _PRESSED = range(len(FIGURES))

_LARGEST = 1e15  # a figure beyond it (a clock that hardly moved) is that


class Reading(NamedTuple):
    """A session's counters at a moment."""

    bytes_in: int
    bytes_out: int
    messages_in: int
    messages_out: int
    outbox: int
    pressed: bool


class Rules(NamedTuple):
    """How scores are made; live, and of all sessions."""

    warmup: int
    lags: int
    bins: int


class Watched:
    """One session. `window` samples are kept, 8 bytes a figure and sample."""

    __slots__ = ("_gap", "_last", "_quiet", "_ring", "_size", "_window", "at", "samples", "scores")

    def __init__(self, reading: Reading, now: float, window: int) -> None:
        self.at = now
        """When it was sampled last, in seconds of the caller's clock."""
        self.samples = 0
        self.scores: Scores | None = None
        """None while there are fewer samples than the warm-up takes."""
        self._last = reading
        self._window = window
        self._ring: array[float] | None = None
        self._quiet = 0
        self._size = self._gap = 0.0

    def sample(self, reading: Reading, now: float, rules: Rules) -> Scores | None:
        """Take in the counters as they are `now`, and return the scores they make."""
        last, seconds = self._last, now - self.at
        if seconds <= 0.0:
            return self.scores
        self._last, self.at = reading, now
        if reading == last and self._ring is None and not reading.outbox:
            self.samples += 1
            if self.samples >= min(rules.warmup, self._window):
                self.scores = STILL
            return self.scores
        if any(new < old for new, old in zip(reading[:4], last[:4], strict=True)):
            self._begin_anew()
            return None
        self._append(self._figures(reading, last, seconds))
        if self._quiet >= self._window:
            self._ring = None  # all zero: the same as none
            self.scores = STILL
        elif self.samples >= min(rules.warmup, self._window):
            self.scores = self._score(rules)
        return self.scores

    @property
    def still(self) -> bool:
        """It has done nothing for a whole window, or ever."""
        return self._ring is None

    def figures(self) -> dict[str, float]:
        """The newest sample, for whoever else may score; all 0 for a session that does nothing."""
        ring = self._ring
        if ring is None:
            return dict.fromkeys(FIGURES, 0.0)
        last = (self.samples - 1) % self._window
        return {name: ring[place * self._window + last] for place, name in enumerate(FIGURES)}

    def _figures(self, reading: Reading, last: Reading, seconds: float) -> list[float]:
        bytes_in = reading.bytes_in - last.bytes_in
        messages_in = reading.messages_in - last.messages_in
        self._quiet = 0 if reading != last or reading.outbox else self._quiet + 1
        if messages_in:
            size, gap = bytes_in / messages_in, seconds / messages_in
            if self._ring is None:
                self._allot()
            if not self._gap:  # the first ever: what is unknown does not deviate
                self._fill(_SIZE, size)
                self._fill(_GAP, gap)
            self._size, self._gap = size, gap
        return [
            bytes_in / seconds,
            (reading.bytes_out - last.bytes_out) / seconds,
            messages_in / seconds,
            (reading.messages_out - last.messages_out) / seconds,
            self._size,
            self._gap,
            float(reading.outbox),
            1.0 if reading.pressed else 0.0,
        ]

    def _append(self, figures: list[float]) -> None:
        ring = self._ring or self._allot()
        place = self.samples % self._window
        for value in figures:
            ring[place] = value if value < _LARGEST else _LARGEST
            place += self._window
        self.samples += 1

    def _allot(self) -> array[float]:
        self._ring = array("d", bytes(8 * len(FIGURES) * self._window))
        # after a quiet time the last size and gap are remembered, as if they had stood in the window all along
        self._fill(_SIZE, self._size)
        self._fill(_GAP, self._gap)
        return self._ring

    def _fill(self, figure: int, value: float) -> None:
        assert self._ring is not None
        value = min(value, _LARGEST)
        self._ring[figure * self._window : (figure + 1) * self._window] = array("d", [value]) * self._window

    def _begin_anew(self) -> None:
        self.samples = self._quiet = 0
        self.scores = self._ring = None
        self._size = self._gap = 0.0

    def _score(self, rules: Rules) -> Scores:
        ring, size = self._ring, self._window
        assert ring is not None
        kept = min(self.samples, size)
        newest = (self.samples - 1) % size
        largest, figure = 0.0, ""
        for place, floor in enumerate(FLOORS):
            series = ring[place * size : place * size + kept].tolist()
            value = series.pop(newest)
            z = robust_z(series, value, floor, beat=largest)
            if z > largest:
                largest, figure = z, FIGURES[place]
        # oldest first: the order is what coherence is about
        begin = self.samples % size if self.samples > size else 0
        received, sent = ring[:kept], ring[size : size + kept]
        rates = [one + other for one, other in zip(received, sent, strict=True)]
        rates = rates[begin:] + rates[:begin]
        return Scores(coherence(rates, rules.lags), entropy(rates, rules.bins), anomaly(largest), largest, figure)


class Windows:
    """All that are watched, by session id."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._watched: dict[str, Watched] = {}
        self.untracked = 0
        """Sessions that are not watched, because there are as many as may be."""

    def __len__(self) -> int:
        return len(self._watched)

    def __getitem__(self, session_id: str) -> Watched:
        return self._watched[session_id]

    def get(self, session_id: str) -> Watched | None:
        return self._watched.get(session_id)

    def items(self) -> Iterable[tuple[str, Watched]]:
        return self._watched.items()

    def sample(self, session_id: str, reading: Reading, now: float, rules: Rules) -> Scores | None:
        """A session's counters. The first ones are what later ones are compared with, and no sample."""
        watched = self._watched.get(session_id)
        if watched is None:
            self._watched[session_id] = Watched(reading, now, self._window)
            return None
        return watched.sample(reading, now, rules)

    def admit(self, session_ids: Iterable[str], most: int) -> list[str]:
        """Which of the sessions that there are will be watched, at most `most`; whoever is gone is forgotten."""
        there = dict.fromkeys(session_ids)
        for gone in [one for one in self._watched if one not in there]:
            del self._watched[gone]
        while len(self._watched) > most:
            self._watched.popitem()
        known = self._watched
        chosen = list(known)
        chosen += [one for one in there if one not in known][: max(0, most - len(known))]
        self.untracked = len(there) - len(chosen)
        return chosen
