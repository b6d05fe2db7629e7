"""What waits to be sent: bounded in bytes, in order of priority, no faster than a rate. Pure; `now` is an argument.

Rules:
- lower number first; frames of one priority keep their order; a steady stream of low numbers holds up the rest for as
  long as it lasts (that is what a priority is);
- a frame leaves whole: what is taken is joined and written by the one writer, nothing is put between its bytes;
- rate: no stretch of t seconds sees more than burst + rate * t bytes. A frame longer than the burst waits until the
  burst is full and is then paid off;
- the bound is the caller's to keep: `room` says whether one more fits. A frame longer than the bound fits when nothing
  else waits, or it could never be sent.
"""

from __future__ import annotations

from bisect import insort
from collections import deque

from netd.budget import Bucket

NORMAL = 128
"""The priority of whatever says nothing about it."""


class Ticket:
    """Goes with a frame whose sender wants to know whether it left, or may take it back."""

    __slots__ = ("left", "withdrawn")

    def __init__(self) -> None:
        self.left = False
        """It was handed to the writer: whether the peer has it, nobody knows until it answers."""
        self.withdrawn = False
        """It need not be sent any more, if it is still here."""


class SendQueue:
    """Frames that wait for the writer."""

    def __init__(self, bound: int, *, rate: float | None = None, burst: float | None = None, now: float = 0.0) -> None:
        self.bound = bound
        self.rate = rate
        self.burst = burst if burst is not None else (rate or 0.0)
        self.size = 0
        """Bytes waiting, withdrawn ones included until their turn comes."""
        self._bucket = Bucket(self.burst, now)
        self._lanes: dict[int, deque[tuple[bytes, Ticket | None]]] = {}
        self._order: list[int] = []

    def __bool__(self) -> bool:
        """Whether anything is to be sent."""
        waiting = (ticket for lane in self._lanes.values() for _, ticket in lane)
        return any(ticket is None or not ticket.withdrawn for ticket in waiting)

    def room(self, size: int) -> bool:
        """Whether `size` more bytes fit."""
        return self.size + size <= self.bound or self.size == 0

    def put(self, frame: bytes, priority: int = NORMAL, ticket: Ticket | None = None) -> None:
        """Add a frame."""
        lane = self._lanes.get(priority)
        if lane is None:
            lane = self._lanes[priority] = deque()
            insort(self._order, priority)
        lane.append((frame, ticket))
        self.size += len(frame)

    def take(self, limit: int, now: float) -> list[bytes]:
        """Frames that may leave now, in order, up to `limit` bytes (one longer than that goes alone)."""
        taken: list[bytes] = []
        room = limit
        if self.rate is not None:
            self._bucket.refill(now, self.rate, self.burst)
        while (lane := self._first()) is not None:
            while lane:
                frame, ticket = lane[0]
                if ticket is not None and ticket.withdrawn:
                    lane.popleft()
                    self.size -= len(frame)
                    continue
                if len(frame) > room and taken:
                    return taken
                if self.rate is not None:
                    if self._bucket.tokens < self._needed(frame):
                        return taken
                    self._bucket.spend(len(frame), self.rate)
                if ticket is not None:
                    ticket.left = True
                lane.popleft()
                self.size -= len(frame)
                room -= len(frame)
                taken.append(frame)
        return taken

    def wait(self, now: float) -> float | None:
        """Seconds until the rate lets the next frame leave; None when no rate holds anything up."""
        lane = self._first()
        if self.rate is None or lane is None:
            return None
        self._bucket.refill(now, self.rate, self.burst)
        missing = self._needed(lane[0][0]) - self._bucket.tokens
        return missing / self.rate if missing > 0 else None

    def clear(self) -> None:
        """Forget everything that waits."""
        self._lanes.clear()
        self._order.clear()
        self.size = 0

    def _first(self) -> deque[tuple[bytes, Ticket | None]] | None:
        """The lane whose turn it is. Empty lanes go: whoever uses every priority once leaves nothing behind."""
        while self._order:
            lane = self._lanes[self._order[0]]
            if lane:
                return lane
            del self._lanes[self._order.pop(0)]
        return None

    def _needed(self, frame: bytes) -> float:
        """Tokens that have to be there for this frame; less than a billionth of one is rounding."""
        return min(float(len(frame)), self.burst) * (1.0 - 1e-9)
