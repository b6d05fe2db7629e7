"""The bus: typed notices to whoever wants to know, bounded, never waiting.

Rules:
- `publish` never waits and never fails: a slow reader loses its oldest notices and is told how many (`Missed`);
- notices say what happened; they are never commands and never carry payload;
- the last `history` notices are kept, so that a reader that lost its connection can go on where it was.

    publisher --publish(notice)--> Bus --(serial, time, notice)--> Subscription (bounded deque) --async for--> reader
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that happened. Subclasses are frozen dataclasses with a `kind` and the name of their `service`."""

    kind: ClassVar[str] = "notice"
    service: ClassVar[str] = "netd"

    def as_json(self) -> dict[str, Any]:
        """The notice's fields in the camelCase that event streams carry; None values are left out."""
        return {_camel(field.name): value for field in fields(self) if (value := getattr(self, field.name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Missed(Notice):
    """The reader was too slow, or came back too late: `count` notices are lost to it."""

    kind: ClassVar[str] = "missed"
    count: int


@dataclass(frozen=True)
class Stamped:
    """A notice as the bus delivers it: `serial` counts from 1 without gaps, `time` is seconds since the epoch."""

    serial: int
    time: float
    notice: Notice


class Bus:
    """One per daemon. All methods are for the Trio thread."""

    def __init__(self, *, history: int = 4096, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._serial = 0
        self._history: deque[Stamped] = deque(maxlen=history)
        self._subscriptions: set[Subscription] = set()

    @property
    def serial(self) -> int:
        """The serial of the newest notice, 0 before the first."""
        return self._serial

    def publish(self, notice: Notice) -> None:
        self._serial += 1
        stamped = Stamped(self._serial, self._clock(), notice)
        self._history.append(stamped)
        for subscription in self._subscriptions:
            subscription._put(stamped)

    def subscribe(self, *kinds: type[Notice], since: int | None = None, buffer: int = 1024) -> Subscription:
        """Notices of these classes (all, if none is named) from now on, or from after serial `since` as far as kept.

        Use it as a context manager; at most `buffer` notices wait for the reader.
        """
        subscription = Subscription(self, kinds, buffer)
        if since is not None and since < self._serial:
            oldest = self._history[0].serial if self._history else self._serial + 1
            if since + 1 < oldest:
                subscription._lost(oldest - since - 1)
            for stamped in self._since(since):
                subscription._put(stamped)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """Nothing happens any more: readers get what still waits for them, and then their streams end."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def _since(self, serial: int) -> Iterator[Stamped]:
        return (stamped for stamped in self._history if stamped.serial > serial)


class Subscription:
    """A reader's view of the bus: `async for stamped in subscription`. One reader each."""

    def __init__(self, bus: Bus, kinds: tuple[type[Notice], ...], buffer: int) -> None:
        self._bus = bus
        self._kinds = kinds
        self._buffer = buffer
        self._waiting: deque[Stamped] = deque()
        self._missed = 0
        self._closed = False
        self._wake = trio.Event()

    def _put(self, stamped: Stamped) -> None:
        if self._kinds and not isinstance(stamped.notice, self._kinds):
            return
        if len(self._waiting) >= self._buffer:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(stamped)
        self._wake.set()

    def _lost(self, count: int) -> None:
        self._missed += count
        self._wake.set()

    def close(self) -> None:
        """End the subscription: a reader waiting in it stops. May be called twice."""
        self._bus._subscriptions.discard(self)
        self._closed = True
        self._wake.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Stamped:
        while not self._missed and not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake = trio.Event()
            await self._wake.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._missed:
            missed, self._missed = self._missed, 0
            # stamped with the serial just before what comes next, so that resuming from it loses nothing more
            serial = self._waiting[0].serial - 1 if self._waiting else self._bus.serial
            return Stamped(serial, self._bus._clock(), Missed(count=missed))
        return self._waiting.popleft()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)
