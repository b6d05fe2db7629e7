"""A connection's states for whoever watches them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from weakref import WeakSet

    from netd.client.state import State


class States:
    """The connection's states as they change: an async iterator that ends after "closed".

    At most KEPT are kept for a reader that does not read; the oldest go. One that is dropped (a loop that was left) is
    told nothing more, and costs nothing.
    """

    KEPT = 64

    def __init__(self, watchers: WeakSet[States]) -> None:
        self._watchers = watchers
        self._kept: deque[State] = deque(maxlen=self.KEPT)
        self._changed = trio.Event()
        self._over = False

    def note(self, state: State) -> None:
        self._kept.append(state)
        self._changed.set()

    def __aiter__(self) -> States:
        return self

    async def __anext__(self) -> State:
        await trio.lowlevel.checkpoint()
        while not self._kept:
            if self._over:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        state = self._kept.popleft()
        self._over = state.final
        return state

    def close(self) -> None:
        """Nobody reads any more."""
        self._watchers.discard(self)
