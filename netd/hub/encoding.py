"""What a session speaks: events -> bytes for its wire. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from netd.wire.messages import Event


class Encoder(Protocol):
    """What a session speaks.

    One whose messages may stand behind each other in one chunk may have `encode_many(batch) -> bytes` besides: all
    messages of a `Batch`, as `encode` says each. One of a single session that stands on what others share may have
    `encode_each(batch) -> list[bytes | None]`: the same, each by itself (`Batch.each` keeps what is shared). And one
    that answers may have `answers(refs, delivered, *, joined) -> list[bytes]`: an Ok for each publish of a row, all of
    them in one chunk if they may be `joined`.
    """

    def encode(self, event: Event) -> bytes | None:
        """The event as complete bytes for the wire; None: this transport has no way to say it."""


def encoded(encoder: Encoder, event: Event) -> bytes | None:
    """The event's bytes, None where this encoder cannot say it: an encoder of a user's must not fail a publisher."""
    try:
        return encoder.encode(event)
    except (ProtocolError, msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return None
