"""A session as a worker's handlers see it: one client's stay, whatever it is connected by.

    session.id, str(session)        its public id: what verbs take, also without the object
    session.name, session.tags      what the client calls itself: claims, unless a token says so (session.subject)

Rules:
- one object for each session for as long as this worker has it: it may be a key, and equals any other of the same id;
- what it says is kept up to date: a token that was set, a name that a client took with its hello.

Left out: verbs (Worker has them, and takes a session or its id).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netd.wire.workers import SessionState


class Session:
    """One client's stay."""

    __slots__ = ("__weakref__", "_state")

    def __init__(self, state: SessionState) -> None:
        self._state = state

    @property
    def id(self) -> str:
        """Its id, which is public and unique."""
        return self._state.id

    @property
    def transport(self) -> str:
        """ "websocket", "sse", "framed" ..."""
        return self._state.transport

    @property
    def address(self) -> str:
        """The client's address, "192.0.2.7:51234"; behind a trusted proxy, whom that names."""
        return self._state.address

    @property
    def listener(self) -> str:
        """The address of the daemon that it came to."""
        return self._state.listener

    @property
    def name(self) -> str | None:
        """What the client calls itself, None if it does not."""
        return self._state.name

    @property
    def tags(self) -> Mapping[str, str]:
        """What it says of itself besides."""
        return self._state.tags

    @property
    def opened(self) -> float:
        """When it began, in seconds since the epoch."""
        return self._state.opened

    @property
    def subject(self) -> str | None:
        """Whom the token that it showed the daemon is for, None without one."""
        return self._state.subject

    @property
    def grant(self) -> str | None:
        """The name of the daemon's token ([[hub.token]]) that it showed, None without one."""
        return self._state.grant

    @property
    def token(self) -> bytes | None:
        """What `set_token` last set, None if nothing."""
        return self._state.token

    def __str__(self) -> str:
        return self._state.id

    def __repr__(self) -> str:
        return f"<Session {self._state.id} {self._state.transport} {self._state.address}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Session) and other._state.id == self._state.id

    def __hash__(self) -> int:
        return hash(self._state.id)
