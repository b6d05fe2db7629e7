"""What a service with sessions tells the host: notices on the bus, and from there SSE and netctl.

Rules: plain values only (they become JSON as they are). Strangers cause all of them at will: so many a second of each
kind are said, and `unsaid` tells how many were left out before one. Each service has classes of its own, made of these
and of its base, which names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from netd.budget import Bucket
from netd.runtime.bus import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.runtime.bus import Bus
    from netd.sessions.connection import Connection

NOTICES = {"opened": 200.0, "closed": 200.0}
"""Notices of a kind a second, and at once."""
_OTHERS = 20.0


@dataclass(frozen=True, kw_only=True)
class SessionNotice(Notice):
    """Base of the notices of a service with sessions."""

    unsaid: int | None = None
    """Notices of this kind left out before it."""


@dataclass(frozen=True, kw_only=True)
class Opened(SessionNotice):
    """A client was let in. `address` is "192.0.2.7:50312", "[2001:db8::1]:50312" or "unix:"."""

    kind: ClassVar[str] = "opened"
    session: str
    address: str
    listener: str
    mode: str


@dataclass(frozen=True, kw_only=True)
class Closed(SessionNotice):
    """A client's connection ended. `code` is a close code, `why` a phrase."""

    kind: ClassVar[str] = "closed"
    session: str
    address: str
    code: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Rejected(SessionNotice):
    """A client was not let in. `why` is a word of the service's list (Exchange.reasons)."""

    kind: ClassVar[str] = "rejected"
    address: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Backpressure(SessionNotice):
    """More than half of what may wait for a client does: it reads more slowly than it is sent to. `queued` in bytes."""

    kind: ClassVar[str] = "backpressure"
    session: str
    queued: int


@dataclass(frozen=True, kw_only=True)
class Drain(SessionNotice):
    """A client has read what waited, but for an eighth of what may."""

    kind: ClassVar[str] = "drain"
    session: str
    queued: int


@dataclass(frozen=True)
class Vocabulary:
    """The five classes of one service."""

    opened: type[Opened]
    closed: type[Closed]
    rejected: type[Rejected]
    backpressure: type[Backpressure]
    drain: type[Drain]


class Teller:
    """An exchange's Observer that puts all of it on the bus, as far as the bound allows."""

    def __init__(self, bus: Bus, clock: Callable[[], float], words: Vocabulary) -> None:
        """`clock` is monotonic."""
        self._bus = bus
        self._clock = clock
        self._words = words
        self._buckets: dict[str, Bucket] = {}
        self._unsaid: dict[str, int] = {}
        self._full_until: dict[str, float] = {}
        """What the buckets said last, by kind: thousands are left out in a second."""

    def opened(self, connection: Connection) -> None:
        words, session = self._words.opened, connection.session
        if self._no_room(words):
            return
        self._tell(
            words,
            session=session.id,
            address=session.address,
            listener=session.listener,
            mode=connection.mode.name,
        )

    def closed(self, connection: Connection, code: int, why: str) -> None:
        words, session = self._words.closed, connection.session
        if self._no_room(words):
            return
        self._tell(words, session=session.id, address=session.address, code=int(code), why=why)

    def rejected(self, why: str, address: str) -> None:
        if not self._no_room(self._words.rejected):
            self._tell(self._words.rejected, why=why, address=address)

    def pressure(self, connection: Connection, over: bool) -> None:
        kind: type[SessionNotice] = self._words.backpressure if over else self._words.drain
        if not self._no_room(kind):
            self._tell(kind, session=connection.session.id, queued=connection.outbox.size)

    def _tell(self, kind: type[SessionNotice], **fields: object) -> None:
        self._bus.publish(kind(unsaid=self._unsaid.pop(kind.kind, None), **fields))

    def _no_room(self, kind: type[SessionNotice]) -> bool:
        """Whether one more of this kind has to be left out. It is counted then."""
        now, name = self._clock(), kind.kind
        if now < self._full_until.get(name, 0.0):
            self._unsaid[name] += 1
            return True
        rate = NOTICES.get(name, _OTHERS)
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(rate, now)
        bucket.refill(now, rate, rate)
        if (wait := bucket.draw(rate)) > 0:
            self._full_until[name] = now + wait
            self._unsaid[name] = self._unsaid.get(name, 0) + 1
            return True
        return False
