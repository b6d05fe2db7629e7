"""Encoders for sessions that get plain payloads: the data of messages, and of nothing else. Pure; shared.

Rule: what a client published itself it does not hear, unless it asked for it: `Others` is that for one session, and
asks the encoder that it shares with all the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from netd.errors import ProtocolError
from netd.wire.messages import BinaryEvent, Broadcast, Direct, Message, TextEvent, data_of

if TYPE_CHECKING:
    from netd.hub.batch import Batch
    from netd.hub.session import Encoder, Session
    from netd.wire.messages import Event


class Payloads:
    """The base: `written` says what data looks like on the wire."""

    def __init__(self) -> None:
        self._last: tuple[Event | None, bytes | None] = None, None

    def encode(self, event: Event) -> bytes | None:
        """None for what a plain client is not told, and for data that has no form on this wire."""
        # `Others` ask for the same event one after another
        if self._last[0] is not event:
            self._last = event, self._encode(event)
        return self._last[1]

    def _encode(self, event: Event) -> bytes | None:
        if isinstance(event, (Message, Direct, Broadcast, BinaryEvent)):
            data = data_of(event)
        elif isinstance(event, TextEvent):
            data = event.text
        else:
            return None
        try:
            return self.written(data)
        except ProtocolError:
            return None

    def encode_many(self, batch: Batch) -> bytes:
        """Nothing where one of them has no form on this wire: then each is told by itself, or is not."""
        try:
            return b"".join(map(self.written, batch.row.data))
        except ProtocolError:
            return b""

    def written(self, data: Any) -> bytes:
        """Complete bytes for the wire. Raises ProtocolError for what has no form there."""
        raise NotImplementedError


class Others:
    """An encoder for one session, without what that session published itself."""

    __slots__ = ("_all", "_own")

    def __init__(self, encoder: Encoder, own: Session) -> None:
        self._all = encoder
        self._own = own

    def encode(self, event: Event) -> bytes | None:
        if type(event) is Message and event.from_ == self._own.id:
            return None
        return self._all.encode(event)

    def encode_many(self, batch: Batch) -> bytes:
        return b"" if batch.sender == self._own.id else batch.encoded(self._all)[0]

    def encode_each(self, batch: Batch) -> list[bytes | None]:
        return [None] * len(batch) if batch.sender == self._own.id else batch.each(self._all)


def plain_bytes(data: Any) -> bytes:
    """Data as it is: bytes, text as UTF-8, and any other value as JSON."""
    if isinstance(data, bytes):
        return data
    return data.encode() if isinstance(data, str) else msgspec.json.encode(data)
