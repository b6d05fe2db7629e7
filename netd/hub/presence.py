"""Who is there: sessions as other clients see them, in lists and as they come and go. Pure.

A client learns of others what they say of themselves (name, tags), how they are connected, and the id that a direct
message is sent to; never an address or a token. The daemon's own sessions are not there for anyone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.wire.messages import Client, Joined, Left, channel_fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.session import Session


def client(session: Session) -> Client:
    """A session as others see it."""
    return Client(
        session=session.id,
        name=session.name,
        transport=session.transport,
        tags=dict(session.tags) if session.tags else None,
    )


def clients(sessions: Iterable[Session]) -> list[Client]:
    """The sessions that others may see."""
    return [client(session) for session in sessions if not session.internal]


def joined(channel: bytes, session: Session) -> Joined:
    """What a channel's subscribers are told of one who comes."""
    return Joined(session=session.id, name=session.name, **channel_fields(channel))


def left(channel: bytes, session: Session) -> Left:
    """What a channel's subscribers are told of one who goes."""
    return Left(session=session.id, name=session.name, **channel_fields(channel))
