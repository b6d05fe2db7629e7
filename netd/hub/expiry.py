"""When sessions' tokens expire: a heap of moments. Pure.

Rules:
- an entry that is no longer so (the session has gone, or has another token) is passed over when its time comes;
- there are at most twice as many entries as sessions, and a few: past that the heap is made anew from the sessions.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from netd.hub.grants import NEVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from netd.hub.session import Session

_SPARE = 64


class Expiries:
    """Of the sessions of one hub; `sessions` is the hub's own table."""

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._sessions = sessions
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, session: Session) -> bool:
        """The session's token may be another now. True: the next moment is nearer than it was."""
        when = session.grants.expires
        if when == NEVER:
            return False
        if len(self._heap) >= 2 * len(self._sessions) + _SPARE:
            self._heap = [
                (each.grants.expires, each.id) for each in self._sessions.values() if each.grants.expires != NEVER
            ]
            heapq.heapify(self._heap)
        sooner = when < self.next()
        heapq.heappush(self._heap, (when, session.id))
        return sooner

    def next(self) -> float:
        """The next moment to look, in seconds since the epoch."""
        return self._heap[0][0] if self._heap else NEVER

    def due(self, now: float) -> Iterator[Session]:
        """The sessions whose tokens have expired, for as long as they are taken."""
        while self._heap and self._heap[0][0] <= now:
            session = self._sessions.get(heapq.heappop(self._heap)[1])
            if session is not None and not session.closing and session.grants.expires <= now:
                yield session
