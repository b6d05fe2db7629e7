"""Who hears what: a channel and its subscribers. Pure.

Rules:
- subscribers are in the order in which they came, and are iterated without a copy;
- what changes while someone iterates changes a copy: `shared` is the table that is being iterated;
- who recovers while its history is on the way (a backplane may answer later) hears nothing yet: what comes meanwhile
  is held, bounded, and follows what it missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from netd.budget import Bucket

if TYPE_CHECKING:
    from netd.hub.history import Publication
    from netd.hub.outbox import Outbox
    from netd.hub.permissions import Realm
    from netd.hub.session import Session

MAX_HELD = 1000
"""Messages held for one who recovers; past that the oldest is lost and the client is told that it missed something."""


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel as it is now, or a pattern; `history` is in messages. Who hears it through a pattern is not counted."""

    name: bytes
    subscribers: int
    epoch: str | None
    offset: int | None
    history: int
    pattern: bool = False
    """It is a subscription with wildcards (patterns.py)."""


class Channel:
    """A channel that someone hears."""

    __slots__ = ("_news", "name", "realm", "shared", "subscribers", "waiting")

    def __init__(self, name: bytes, realm: Realm) -> None:
        self.name = name
        self.realm = realm
        self.subscribers: dict[Session, Outbox] = {}
        """Each with its outbox: a message for a thousand of them touches nothing else of theirs."""
        self.shared: dict[Session, Outbox] | None = None
        self.waiting: dict[Session, list[Publication]] | None = None
        self._news: Bucket | None = None

    @property
    def idle(self) -> bool:
        """Nobody hears it, and nobody is about to."""
        return not self.subscribers and not self.waiting

    def __len__(self) -> int:
        return len(self.subscribers) + (len(self.waiting) if self.waiting else 0)

    def wait(self, session: Session) -> list[Publication]:
        """It will hear the channel, after what it missed. Returns where that is held."""
        if self.waiting is None:
            self.waiting = {}
        held = self.waiting[session] = []
        return held

    def waits(self, session: Session, held: list[Publication]) -> bool:
        """Whether it waits still, for what is held there: it may have left, and come back."""
        return self.waiting is not None and self.waiting.get(session) is held

    def hold(self, publication: Publication) -> None:
        """Keep a message for those who wait."""
        for held in (self.waiting or {}).values():
            held.append(publication)
            if len(held) > MAX_HELD:
                del held[0]

    def release(self, session: Session) -> list[Publication] | None:
        """What was held for a session that waits no more; None if it does not wait."""
        held = None if self.waiting is None else self.waiting.pop(session, None)
        if not self.waiting:
            self.waiting = None
        return held

    def tells(self, now: float) -> bool:
        """Whether one more coming or going is told: `join_leave_rate` of them a second, a second's worth at once."""
        rate = self.realm.rules.join_leave_rate
        burst = max(rate, 1.0)
        if self._news is None:
            self._news = Bucket(burst, now)
        self._news.stamp = min(self._news.stamp, now)  # the wall clock may be set back
        self._news.refill(now, rate, burst)
        return not self._news.draw(rate)

    def add(self, session: Session) -> None:
        self._own()
        self.subscribers[session] = session.outbox

    def remove(self, session: Session) -> None:
        self.release(session)
        if session in self.subscribers:
            self._own()
            del self.subscribers[session]

    def _own(self) -> None:
        if self.subscribers is self.shared:
            self.subscribers = dict(self.subscribers)
