"""What others may plug into the hub: a backplane (where messages go, and where history is) and an application. Pure.

A backplane that reaches other machines answers when it has heard from them; the one in memory at once. Nothing in the
hub waits for either: whatever is asked takes a function to call with the answer. Each is called once, and always: a
backplane that hears nothing in time answers with what it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from netd.errors import ApplicationError
from netd.wire.messages import BinaryEvent, TextEvent, data_fields
from netd.wire.workers import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.hub.batch import Batch
    from netd.hub.channels import ChannelInfo
    from netd.hub.history import Page, Publication
    from netd.hub.hub import Hub
    from netd.hub.revocations import Revocation
    from netd.hub.session import Session
    from netd.wire.messages import Client, Joined, Left, Position


class Letter(Struct):
    """A message for sessions rather than for a channel. `to` is None for all of them but the sender."""

    to: str | None
    data: Any
    sender: str | None = None
    priority: int = 128
    ephemeral: bool = False
    application: bool = False
    """It is what the application says to a session: text or bytes, and no `direct`."""


class Order(Struct, frozen=True):
    """What an application wants done to a session, or with "copy" to all who hear the channel `value` (orders.py)."""

    what: Literal["subscribe", "unsubscribe", "token", "copy"]
    session: str | None
    value: bytes
    """The channel, or the token."""
    target: bytes = b""
    """Of "copy": the channel that they are to hear too."""


class Backplane(Protocol):
    """Between the hubs of several machines, or of one."""

    @property
    def others(self) -> bool:
        """There are other machines now."""

    @property
    def at_once(self) -> bool:
        """Every answer comes within the call that asks for it."""

    def attach(self, hub: Hub) -> None:
        """Called once, by the hub it is for."""

    def publish(self, publication: Publication) -> None:
        """Number and keep it where its namespace says so, and have every hub `deliver` it, now or later."""

    def publish_many(self, batch: Batch) -> None:
        """`publish` each message of a batch, in order."""

    def history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        """Answer `Histories.page`; None also when it cannot be read now."""

    def position(self, channel: bytes, answer: Callable[[Position | None], None]) -> None:
        """Answer `Histories.position`; None also when it is not known now."""

    def send(self, letter: Letter, answer: Callable[[int], None]) -> int:
        """Have every hub `deliver_letter` it; answer how many sessions it reached. Returns how many here."""

    def kick(self, target: str, code: int, reason: str, answer: Callable[[int], None]) -> int:
        """Have every hub end the sessions of `target`; answer how many there were. Returns how many here."""

    def carry(self, order: Order, answer: Callable[[int], None]) -> None:
        """Have the other hubs carry it out (`orders.carry_out`); answer how many sessions that has changed."""

    def elsewhere(self, channel: bytes | None, limit: int, answer: Callable[[int, list[Client]], None]) -> None:
        """Answer how many sessions of the other hubs hear a channel (None: how many there are), and unless these are
        more than `limit`, which."""

    def channels(
        self, prefix: bytes, after: bytes | None, limit: int, answer: Callable[[list[ChannelInfo], int], None]
    ) -> None:
        """Answer `Hub.channels` with the subscribers of every hub, and how many other hubs have not said theirs."""

    def channel(self, name: bytes, answer: Callable[[ChannelInfo], None]) -> None:
        """Answer `Hub.channel` with the subscribers of every hub that says so in time, and where its history is."""

    def tell(self, channel: bytes, event: Joined | Left) -> None:
        """Have the other hubs tell it to those who hear the channel there (`Hub.news`)."""

    def joined(self, channel: bytes | None, session: Session) -> None:
        """A session here hears a channel now, or subscribes to a pattern; None: it is there now."""

    def left(self, channel: bytes | None, session: Session, *, last: bool) -> None:
        """It hears it no more, or is about to and has thought better of it; `last`: nobody here does."""

    def changed(self, session: Session, former: str | None = None) -> None:
        """The name or the tags of a session here are others, or its id, which was `former`."""

    def revoke(self, made: Revocation) -> None:
        """Have the other hubs take no such token either (`Hub.revoked`)."""


class MemoryBackplane:
    """One machine: everything happens at once, and history is the hub's own."""

    others = False
    at_once = True

    def __init__(self) -> None:
        self._hub: Hub

    def attach(self, hub: Hub) -> None:
        self._hub = hub

    def publish(self, publication: Publication) -> None:
        hub = self._hub
        hub.histories.append(publication, publication.time)
        hub.deliver(publication)

    def publish_many(self, batch: Batch) -> None:
        hub = self._hub
        if hub.history_rules(batch.channel).history_size:
            for publication in batch.publications():
                hub.histories.append(publication, publication.time)
        hub.deliver_many(batch)

    def history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        answer(self._hub.histories.page(channel, since, limit, self._hub.clock()))

    def position(self, channel: bytes, answer: Callable[[Position | None], None]) -> None:
        answer(self._hub.histories.position(channel, self._hub.clock()))

    def send(self, letter: Letter, answer: Callable[[int], None]) -> int:
        here = self._hub.deliver_letter(letter)
        answer(here)
        return here

    def kick(self, target: str, code: int, reason: str, answer: Callable[[int], None]) -> int:
        here = self._hub.kick_here(target, code, reason)
        answer(here)
        return here

    def carry(self, order: Order, answer: Callable[[int], None]) -> None:
        answer(0)

    def elsewhere(self, channel: bytes | None, limit: int, answer: Callable[[int, list[Client]], None]) -> None:
        answer(0, [])

    def channels(
        self, prefix: bytes, after: bytes | None, limit: int, answer: Callable[[list[ChannelInfo], int], None]
    ) -> None:
        answer(self._hub.channels(prefix, after, limit), 0)

    def channel(self, name: bytes, answer: Callable[[ChannelInfo], None]) -> None:
        answer(self._hub.channel(name))

    def tell(self, channel: bytes, event: Joined | Left) -> None:
        pass

    def joined(self, channel: bytes | None, session: Session) -> None:
        pass

    def left(self, channel: bytes | None, session: Session, *, last: bool) -> None:
        if channel is not None and last:
            self._hub.histories.left(channel, self._hub.clock())

    def changed(self, session: Session, former: str | None = None) -> None:
        pass

    def revoke(self, made: Revocation) -> None:
        pass


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
    "Order",
    "application_event",
]
