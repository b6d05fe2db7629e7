"""Received messages until somebody reads them: queues of one client, and the one account of what they hold.

Rules:
- putting never waits, so that one reader task serves all queues; once the account is full, that task pauses before the
  next read from the socket. What a single read brings may be beyond the bound, and nothing more;
- while somebody awaits an answer, reading goes on to EXTRA times the bound: whoever publishes inside a loop over a
  subscription must not wait for an answer that lies behind the very messages it has not read yet;
- a queue that nobody is interested in has a share of the account at most, and forgets its oldest: or what is unread
  there would hold up all others;
- taking is cancellable and loses nothing;
- whoever begins to wait has what is queued sent first (`before_wait`): it may be what the awaited answers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.errors import NetdError

T = TypeVar("T")

EXTRA = 8
SHARE = 0.75
"""Of the account's bounds, what a queue that nobody is interested in may hold."""


class Account:
    """What all queues of a client hold."""

    def __init__(self, messages: int, size: int) -> None:
        self.most_messages = messages
        self.most_bytes = size
        self.messages = 0
        self.bytes = 0
        self.awaited = 0
        """Answers that somebody waits for."""
        self.before_wait: Callable[[], None] = _nothing
        self._room = trio.Event()

    @property
    def full(self) -> bool:
        factor = EXTRA if self.awaited else 1
        return self.messages >= self.most_messages * factor or self.bytes >= self.most_bytes * factor

    def add(self, size: int) -> None:
        self.messages += 1
        self.bytes += size

    def subtract(self, messages: int, size: int) -> None:
        self.messages -= messages
        self.bytes -= size
        self.changed()

    def changed(self) -> None:
        """Something happened that may have made room."""
        if not self.full:
            self._room.set()

    def let_go(self) -> None:
        """Nobody will read any more: whoever pauses need not."""
        self.most_messages = self.most_bytes = 1 << 62
        self.changed()

    async def room(self) -> None:
        """Until it is no longer full."""
        while self.full:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()


class Inbox(Generic[T]):
    """One queue. What is put as an error is raised in its place, and the queue goes on after it."""

    def __init__(self, account: Account, *, recent: int | None = None) -> None:
        self._account = account
        self._items: deque[tuple[T | NetdError, int]] = deque()
        self._arrived = trio.Event()
        self._ended = False
        self._error: NetdError | None = None
        self._size = 0
        self.recent = recent
        """While nobody has shown interest: keep at most so many, and SHARE of the account, the oldest go (`missed`).
        None: keep all."""
        self.missed = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def ended(self) -> bool:
        return self._ended

    def put(self, item: T | NetdError, size: int) -> None:
        if self._ended:
            return
        if self.recent is not None and not self._make_way(self.recent, size):
            self.missed += 1
            return
        self._items.append((item, size))
        self._size += size
        self._account.add(size)
        self._arrived.set()

    def _make_way(self, recent: int, size: int) -> bool:
        """Whether there is room for this one, of which the oldest give what they have."""
        most, most_bytes = min(recent, self._account.most_messages * SHARE), self._account.most_bytes * SHARE
        if most < 1 or size > most_bytes:
            return False
        while len(self._items) + 1 > most or self._size + size > most_bytes:
            self._forget(self._items.popleft()[1])
            self.missed += 1
        return True

    def end(self, error: NetdError | None = None, *, discard: bool = False) -> None:
        """Nothing more comes. What is here can still be read, then the reader gets `error`, or just the end."""
        if not self._ended:
            self._ended, self._error = True, error
        if discard:
            self._account.subtract(len(self._items), self._size)
            self._items.clear()
            self._size = 0
        self._arrived.set()

    async def take(self) -> T:
        """The next one. StopAsyncIteration at the end."""
        await self._ready()
        return self._pop()

    def take_nowait(self) -> T:
        """The same at once; trio.WouldBlock when nothing is here yet."""
        if not self._items:
            self._check_end()
            raise trio.WouldBlock
        return self._pop()

    async def take_all(self, most: int = 1024) -> list[T]:
        """All that is here, at least one, at most `most`. StopAsyncIteration at the end."""
        await self._ready()
        taken = [self._pop()]
        # an error in the queue is raised in its turn, and must not take along what came before it
        while self._items and len(taken) < most and not isinstance(self._items[0][0], Exception):
            taken.append(self._pop())
        return taken

    async def _ready(self) -> None:
        if self._items or self._ended:
            await trio.lowlevel.checkpoint()
        else:
            self._account.before_wait()
        while not self._items:
            self._check_end()
            if self._arrived.is_set():  # several may wait, all for the same event
                self._arrived = trio.Event()
            await self._arrived.wait()

    def _check_end(self) -> None:
        if self._ended:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration

    def _pop(self) -> T:
        item, size = self._items.popleft()
        self._forget(size)
        if isinstance(item, Exception):
            raise item
        return item

    def _forget(self, size: int) -> None:
        self._size -= size
        self._account.subtract(1, size)


def _nothing() -> None:
    pass
