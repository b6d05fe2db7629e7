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


class _Kind:
    """How much of one kind is said: `rate` a second, and at once."""

    __slots__ = ("_bucket", "_full_until", "_rate", "notice", "unsaid")

    def __init__(self, notice: type[SessionNotice]) -> None:
        self.notice = notice
        self.unsaid: int | None = None
        """How many were left out since the last one."""
        self._rate = NOTICES.get(notice.kind, _OTHERS)
        self._bucket = Bucket()
        self._full_until = 0.0
        """What the bucket said last: thousands are left out in a second."""

    def has_room(self, now: float) -> bool:
        """Whether one more is said. It is counted if not."""
        if now >= self._full_until:
            rate, bucket = self._rate, self._bucket
            bucket.refill(now, rate, rate)
            if not (wait := bucket.draw(rate)):
                return True
            self._full_until = now + wait
        self.unsaid = (self.unsaid or 0) + 1
        return False


class Teller:
    """An exchange's Observer that puts all of it on the bus, as far as the bound allows."""

    def __init__(self, bus: Bus, clock: Callable[[], float], words: Vocabulary) -> None:
        """`clock` is monotonic."""
        self._bus = bus
        self._clock = clock
        self._opened = _Kind(words.opened)
        self._closed = _Kind(words.closed)
        self._rejected = _Kind(words.rejected)
        self._backpressure = _Kind(words.backpressure)
        self._drain = _Kind(words.drain)

    def opened(self, connection: Connection) -> None:
        if self._opened.has_room(self._clock()):
            session = connection.session
            self._tell(
                self._opened,
                session=session.id,
                address=session.address,
                listener=session.listener,
                mode=connection.mode.name,
            )

    def closed(self, connection: Connection, code: int, why: str) -> None:
        if self._closed.has_room(self._clock()):
            session = connection.session
            self._tell(self._closed, session=session.id, address=session.address, code=int(code), why=why)

    def rejected(self, why: str, address: str) -> None:
        if self._rejected.has_room(self._clock()):
            self._tell(self._rejected, why=why, address=address)

    def pressure(self, connection: Connection, over: bool) -> None:
        kind = self._backpressure if over else self._drain
        if kind.has_room(self._clock()):
            self._tell(kind, session=connection.session.id, queued=connection.outbox.size)

    def _tell(self, kind: _Kind, **fields: object) -> None:
        unsaid, kind.unsaid = kind.unsaid, None
        self._bus.publish(kind.notice(unsaid=unsaid, **fields))
