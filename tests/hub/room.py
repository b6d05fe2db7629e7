"""A hub with people in it: sessions without a transport, under a clock that only moves when it is told to."""

from __future__ import annotations

from typing import Any

from netd.hub.config import HubConfig, Namespace, Token
from netd.hub.hub import Hub
from netd.hub.outbox import Outbox, OutboxRules
from netd.hub.session import Session
from netd.wire import messages
from netd.wire.messages import Close, CloseCode, Event, Hello, Ok, Position, Request, Subscribe, Welcome

OPEN = {"subscribe": "anyone", "publish": "anyone", "presence": "anyone", "history": "anyone"}
"""The rules of a namespace in which anyone may do anything."""


def public(name: str = "public", **rules: Any) -> Namespace:
    return Namespace(name=name, **{**OPEN, **rules})


def config(*namespaces: Namespace, tokens: list[Token] | None = None, **more: Any) -> HubConfig:
    free = {"direct": "anyone", "broadcast": "anyone", "clients": "anyone"}
    return HubConfig(namespace=list(namespaces) or [public()], token=tokens or [], **{**free, **more})


class Speaks:
    """An encoder that counts what it encodes."""

    def __init__(self, format: messages.Format = "json", mute: tuple[type, ...] = ()) -> None:
        self.format: messages.Format = format
        self.mute = mute
        self.encoded = 0

    def encode(self, event: Event) -> bytes | None:
        if isinstance(event, self.mute):
            return None
        self.encoded += 1
        return messages.encode(event, self.format)


JSON = Speaks()


class Room:
    """A hub, its clock, and who is in it."""

    def __init__(self, hub_config: HubConfig | None = None, **more: Any) -> None:
        self.now = 1_000_000.0
        self.hub = Hub(hub_config or config(), clock=lambda: self.now, server="test", version="1", **more)
        self.dirty: list[Outbox] = []

    def mark(self, outbox: Outbox) -> None:
        self.dirty.append(outbox)

    def mark_crowd(self, outboxes: list[Outbox], alone: list[bytes]) -> None:
        assert all(outbox.chunks is alone and outbox.size == len(alone[0]) for outbox in outboxes)
        assert len(alone) == 1
        assert not any(outbox.rules.rate for outbox in outboxes)
        self.dirty += outboxes

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: list[Outbox], data: bytes, messages: int) -> list[Outbox]:
        return outboxes

    def person(self, *hears: bytes | str, **more: Any) -> Person:
        person = Person(self, **more)
        for channel in hears:
            person.hear(channel)
        person.heard()
        return person


class Ready(Room):
    """A room whose transport takes what may go out at once.

    But for outboxes of less than `least` bytes: what went out at once leaves them room that they would not have had.
    """

    least = 5000

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent: dict[Outbox, bytes] = {}

    def send_at_once(self, outboxes: list[Outbox], data: bytes, messages: int) -> list[Outbox]:
        first, others = outboxes[0], []
        for outbox in outboxes:
            small = outbox.rules.bound < self.least
            if small or outbox.size or outbox.encoder is not first.encoder or outbox.rules is not first.rules:
                others.append(outbox)
                continue
            outbox.left += messages
            self.sent[outbox] = self.sent.get(outbox, b"") + data
        return others


class Person:
    """A client, its session, and the owner and link that its transport would be."""

    def __init__(
        self,
        room: Room,
        *,
        encoder: Any = JSON,
        rules: OutboxRules | None = None,
        prompt: bool = True,
        open: bool = True,
        **session: Any,
    ) -> None:
        self.room = room
        self.prompt = prompt
        """Its transport tells the hub of the end within `close`, and not some time later."""
        self.closed: list[tuple[int, str]] = []
        self.pressed: list[bool] = []
        self.rules = rules or OutboxRules()
        self.outbox = Outbox(self.rules, room, self)
        self.session = Session(encoder=encoder, outbox=self.outbox, link=self, **session)
        if open:
            room.hub.open(self.session)

    # what a transport is asked

    def pressure(self, over: bool) -> None:
        self.pressed.append(over)

    def overflow(self) -> None:
        self.close(CloseCode.SLOW, "too slow")

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        self.closed.append((int(code), reason))
        self.session.send(Close(code=code, reason=reason))
        self.outbox.finish()
        if self.prompt:
            self.room.hub.close(self.session, code, reason)

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    carrier = socket = None
    bytes_in = bytes_out = 0
    tls = False

    # what a client does

    def ask(self, request: Request, size: int = 0) -> list[Event]:
        """What comes after this was asked (and whatever waited before)."""
        self.room.hub.handle(self.session, request, size)
        return self.heard()

    def heard(self) -> list[Event]:
        """Everything that waits."""
        chunks = self.outbox.take(2**40, self.room.now)
        return [messages.decode_event(bytes(chunk), self.session.encoder.format) for chunk in chunks]

    def said(self) -> list[Any]:
        """The data of everything that waits and has any."""
        return [messages.data_of(event) for event in self.heard() if hasattr(event, "data")]

    def hear(self, channel: bytes | str, recover: Position | None = None) -> Ok:
        ok, *self.missed = self.ask(Subscribe(ref=1, recover=recover, **fields(channel)))
        assert isinstance(ok, Ok), ok
        return ok

    def hello(self, **more: Any) -> Welcome:
        (welcome,) = self.ask(Hello(version=1, **more))
        assert isinstance(welcome, Welcome), welcome
        return welcome

    def leave(self) -> None:
        self.room.hub.close(self.session)


def fields(channel: bytes | str) -> dict[str, Any]:
    return messages.channel_fields(channel if isinstance(channel, bytes) else channel.encode())


__all__ = ["OPEN", "Person", "Position", "Ready", "Room", "Speaks", "config", "fields", "public"]
