"""What others may plug into the hub: a backplane (where messages go, and where history is) and an application. Pure.

A backplane that reaches other machines answers when it has heard from them; the one in memory at once. Nothing in the
hub waits for either: whatever is asked takes a function to call with the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from netd.errors import ApplicationError
from netd.wire.messages import BinaryEvent, TextEvent, data_fields
from netd.wire.workers import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.hub.history import Page, Publication
    from netd.hub.hub import Hub
    from netd.hub.session import Session
    from netd.wire.messages import Position


class Letter(Struct):
    """A message for sessions rather than for a channel. `to` is None for all of them but the sender."""

    to: str | None
    data: Any
    sender: str | None = None
    priority: int = 128
    ephemeral: bool = False


class Backplane(Protocol):
    """Between the hubs of several machines, or of one."""

    def attach(self, hub: Hub) -> None:
        """Called once, by the hub it is for."""

    def publish(self, publication: Publication) -> None:
        """Number and keep it where its namespace says so, and have every hub `deliver` it, now or later."""

    def history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        """Answer `Histories.page`."""

    def position(self, channel: bytes, answer: Callable[[Position | None], None]) -> None:
        """Answer `Histories.position`."""

    def send(self, letter: Letter, answer: Callable[[int], None]) -> None:
        """Have every hub `deliver_letter` it; answer how many sessions it reached, as often as there is news."""

    def kick(self, target: str, code: int, reason: str, answer: Callable[[int], None]) -> None:
        """Have every hub end the sessions of `target`; answer how many there were."""


class MemoryBackplane:
    """One machine: everything happens at once, and history is the hub's own."""

    def __init__(self) -> None:
        self._hub: Hub

    def attach(self, hub: Hub) -> None:
        self._hub = hub

    def publish(self, publication: Publication) -> None:
        hub = self._hub
        hub.histories.append(publication, publication.time)
        hub.deliver(publication)

    def history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        answer(self._hub.histories.page(channel, since, limit, self._hub.clock()))

    def position(self, channel: bytes, answer: Callable[[Position | None], None]) -> None:
        answer(self._hub.histories.position(channel, self._hub.clock()))

    def send(self, letter: Letter, answer: Callable[[int], None]) -> None:
        answer(self._hub.deliver_letter(letter))

    def kick(self, target: str, code: int, reason: str, answer: Callable[[int], None]) -> None:
        answer(self._hub.kick_here(target, code, reason))


class Application(Protocol):
    """Who gets the messages that are for no channel, and the HTTP requests that are for nobody else. But for `request`
    nothing of it may block."""

    def opened(self, session: Session) -> None: ...
    def message(self, session: Session, data: str | bytes) -> None: ...
    def closed(self, session: Session, code: int, reason: str) -> None:
        """The session is in no list and no channel any more; its tokens are what they last were."""

    def resumed(self, session: Session, former: str) -> None:
        """The session has the id of one that has ended, in the place of `former`."""

    async def request(self, request: HttpRequest) -> HttpResponse:
        """Answer it. Raises ApplicationError. Cancelled, the application is told that nobody waits any more."""
        ...


class Echo:
    """The application where there is none: a message comes back as it was."""

    def opened(self, session: Session) -> None:
        pass

    def message(self, session: Session, data: str | bytes) -> None:
        session.send(application_event(data))

    def closed(self, session: Session, code: int, reason: str) -> None:
        pass

    def resumed(self, session: Session, former: str) -> None:
        pass

    async def request(self, request: HttpRequest) -> HttpResponse:
        raise ApplicationError(503, "cannot answer: no worker is connected")


def application_event(data: str | bytes) -> TextEvent | BinaryEvent:
    """What an application says to a session."""
    return TextEvent(text=data) if isinstance(data, str) else BinaryEvent(**data_fields(data))


__all__ = [
    "Application",
    "Backplane",
    "Echo",
    "HttpRequest",
    "HttpResponse",
    "Letter",
    "MemoryBackplane",
    "application_event",
]
