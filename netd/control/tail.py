"""A reader of one channel inside the daemon: a session of the hub's own, whose outbox an event stream empties.

    hub.publish -> Session(internal) -> outbox (bounded, oldest dropped) --taken--> events of the control API

Rules:
- it costs a publisher what any subscriber costs: one push of bytes that all tails share;
- messages come in the order in which they were published, whatever their priority: a reader that comes back goes on
  after the last one that it saw;
- a reader that is too slow loses the oldest and is told how many ("missed"), before what came after them;
- it is in no list and no presence, and it is gone when its reader is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from netd.errors import TooBusy
from netd.hub.outbox import NORMAL_PRIORITY, Outbox, OutboxRules, Shared
from netd.hub.session import Session
from netd.wire.messages import CloseCode, Event, Joined, Left, Message, Ok

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from netd.hub.hub import Hub
    from netd.wire.messages import Position

BOUND = 4 * 2**20
"""Bytes that may wait for one reader."""
MAX_TAILS = 64
"""Readers at once; further ones are refused."""
_TAKEN = 65536  # bytes taken at once


class TailEncoder:
    """An event as a line of JSON. One object for all tails: a message is encoded once for all of them."""

    def encode(self, event: Event) -> bytes | None:
        if isinstance(event, Message | Joined | Left | Ok):
            return msgspec.json.encode(event) + b"\n"
        return None


_ENCODER = TailEncoder()


class _InOrder(Outbox):
    """An outbox for which all messages are of one priority, and none is ephemeral."""

    def push(self, data: bytes, priority: int = NORMAL_PRIORITY, ephemeral: bool = False, count: int = 1) -> bool:
        return super().push(data, NORMAL_PRIORITY, False, count)


class Tail:
    """One reader. Also the session's link and its outbox's owner. Used once."""

    carrier: Any = None
    socket: Any = None
    bytes_in = 0
    bytes_out = 0
    tls = False

    def __init__(self, hub: Hub, channel: bytes, since: Position | None, all_of_them: set[Tail]) -> None:
        """`all_of_them` are those that are read; it adds and removes itself."""
        self._hub = hub
        self._all = all_of_them
        self._channel = channel
        self._since = since
        self._news = trio.Event()
        self._closed: str | None = None
        self._outbox = _InOrder(OutboxRules(BOUND, "drop-oldest"), self, self)
        self._session = Session(
            encoder=_ENCODER, outbox=self._outbox, link=self, transport="control", address="control", internal=True
        )

    async def events(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """(kind, fields): subscribed, then message, joined, left and missed as they come; "closed" may be the last.

        Raises TooBusy, or the hub's Refusal, before the first.
        """
        hub, outbox = self._hub, self._outbox
        if len(self._all) >= MAX_TAILS:
            raise TooBusy(f"cannot follow the channel: {MAX_TAILS} readers do already; try again later")
        self._all.add(self)
        told = 0
        try:
            hub.open(self._session)
            hub.subscribe(self._session, self._channel, recover=self._since, checked=False, answer=self._subscribed)
            while True:
                while outbox.size or outbox.dropped > told:
                    chunks = outbox.take(_TAKEN, 0.0)
                    if outbox.dropped > told:
                        lost, told = outbox.dropped - told, outbox.dropped
                        yield "missed", {"count": lost}
                    for chunk in chunks:
                        for line in chunk.splitlines():
                            fields = json.loads(line)
                            kind = fields.pop("type")
                            yield ("subscribed" if kind == "ok" else kind), fields
                if self._closed is not None:
                    yield "closed", {"reason": self._closed}
                    return
                self._news = trio.Event()
                await self._news.wait()
        finally:
            hub.close(self._session, CloseCode.NORMAL, "")
            outbox.clear()
            self._all.discard(self)

    def _subscribed(self, answer: Ok) -> None:
        self._session.send(answer)

    # --- the hub's side ---

    def mark(self, outbox: Outbox) -> None:
        self._news.set()

    def mark_crowd(self, outboxes: list[Outbox], alone: Shared) -> None:
        self._news.set()

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: list[Outbox], data: bytes, messages: int) -> list[Outbox]:
        return outboxes

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        self._closed = reason
        self._news.set()

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def pressure(self, over: bool) -> None:
        pass

    def overflow(self) -> None:
        pass
