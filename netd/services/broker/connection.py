"""A WebSocket, or an event stream: a connection of the broker. Pure.

Rules, besides those of every connection (netd/sessions/connection.py):
- a Close of the client's is answered with its code (RFC 6455 section 5.5.1); what waits goes out before it, for a
  bounded time;
- a ping is answered as soon as there is room; of many in one read, the last few;
- a WebSocket that stays silent after our ping is dead: half of a connection may be gone without a word. One that is
  not read from now need not answer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from netd.sessions import connection
from netd.sessions.connection import SLOW_FAREWELL
from netd.wire import websocket
from netd.wire.messages import CloseCode
from netd.wire.websocket import NO_CODE, PONG, Decoder, frames

if TYPE_CHECKING:
    from netd.services.broker.doors import Door
    from netd.services.broker.modes import Mode

_PONGS = 16
"""Pings of one read that are answered."""


class Connection(connection.Connection):
    """Made by Gateway.enter."""

    __slots__ = ()

    door: Door
    mode: Mode

    @property
    def deflated(self) -> bool:
        """Whether messages may be compressed, either way."""
        return isinstance(self.decoder, Decoder) and self.decoder.inflates

    def look(self, now: float) -> None:
        if self._unanswered and not self.held and now - self.pinged >= self.door.ping_timeout:
            self.end(CloseCode.INTERNAL, "did not answer a ping", within=SLOW_FAREWELL)
        else:
            super().look(now)

    def may_ping(self, now: float) -> bool:
        return super().may_ping(now) and not self._unanswered

    @property
    def _unanswered(self) -> bool:
        """Whether it has yet to answer a ping, and has only so much time for it."""
        return bool(self.door.ping_timeout) and self.mode.answers and self.pinged > self.heard

    def pong(self, payloads: list[bytes]) -> None:
        """Answer pings, if it reads at all."""
        outbox = self.outbox
        if outbox.size <= outbox.rules.high:
            pongs = frames(PONG, payloads[-_PONGS:])
            outbox.push(pongs, 0 if outbox.size else 128, True)

    def closed(self, event: websocket.Close) -> None:
        """The client said goodbye."""
        if self._closing is None:
            code = CloseCode.NORMAL if event.code == NO_CODE else event.code
            self._closing = (code, event.reason or "the client closed it")
            self._part(_echo(event.code, event.reason))


@lru_cache(maxsize=64)
def _echo(code: int, reason: str) -> bytes:
    """A Close as the client's; most are alike."""
    return websocket.close(code, reason)
