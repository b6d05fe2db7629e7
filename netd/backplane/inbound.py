"""What has come from Redis and waits to be delivered: bounded. Pure.

Rules:
- whoever reads the connection puts everything here at once, as the library's own buffer has no bound;
- past the bounds what comes is dropped and counted; `overflowed` is then true once the rest has been taken, so that the
  histories can be asked for what is missing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Inbound:
    """First in, first out. `on_news` is called when there is something where nothing was."""

    def __init__(self, max_messages: int, max_bytes: int, on_news: Callable[[], None]) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.size = 0
        self.dropped = 0
        self._on_news = on_news
        self._payloads: deque[bytes] = deque()
        self._overflowed = False

    def __len__(self) -> int:
        return len(self._payloads)

    def put(self, payload: bytes) -> None:
        if len(self._payloads) >= self.max_messages or self.size + len(payload) > self.max_bytes:
            self.dropped += 1
            self._overflowed = True
        else:
            self._payloads.append(payload)
            self.size += len(payload)
        self._on_news()

    def take(self) -> bytes:
        """The oldest. IndexError: there is none."""
        payload = self._payloads.popleft()
        self.size -= len(payload)
        return payload

    def overflowed(self) -> bool:
        """Whether something was dropped before what would come next; asked once."""
        if self._payloads or not self._overflowed:
            return False
        self._overflowed = False
        return True
