"""What becomes of what a client of the broker sends, and how it is spoken to. Pure.

    Operations(format)               messages.py's requests to the hub; None: the kind of the first frame tells
    Plain(channel, role, echo)       every frame is published to the channel, and its messages come back as frames
    App()                            every frame goes to the application
    Events(channels, recover)        server-sent events: it only listens

Rules:
- a frame that cannot be read is an answer (`error`) in operations; text and binary frames are JSON and MessagePack
  there, whichever the session is answered in;
- what breaks RFC 6455 ends the connection with the code it has for that, once what came before it was served;
- once a connection ends, what else came in the same read is not served;
- who has no word for an error is closed (1008) when nothing is left that it may do: its token has ended, say.

Left out: who may do what (the hub), and which path leads to which mode (routes.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from netd.errors import ControlError, Denied, ProtocolError
from netd.services.broker.encoders import FRAMES, LINES, SPOKEN, Several
from netd.sessions import modes
from netd.sessions.connection import Held
from netd.sessions.modes import serve_requests
from netd.wire import messages
from netd.wire.messages import Binary, Close, CloseCode, Ok, Position, Text
from netd.wire.websocket import PING, Decoder, Messages, Ping, Pong, frame, may_be_sent
from netd.wire.websocket import close as close_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.hub.hub import Hub
    from netd.hub.session import Encoder, Session
    from netd.services.broker.connection import Connection
    from netd.wire.messages import Format
    from netd.wire.websocket import Limits

Role = Literal["pub", "sub", "both"]

_PADDED = 100
"""Bytes of a ping to be traced by: a byte for each probe (netd.wire.probes), and a control frame has 125 at most."""
_IDLE_TALK = 1024
"""Bytes that a client of an event stream may send, which nobody reads."""
_RETURN = 1.0
"""Seconds that a browser lets pass at least before it opens an event stream again."""


class Mode(modes.Mode):
    """The base of those of a WebSocket."""

    __slots__ = ()

    transport = "websocket"
    pings = True
    answers: ClassVar[bool] = True
    """It answers pings."""
    encoder: Encoder

    def decoder(self, limits: Limits) -> Any:
        return Decoder(limits, masked=True)

    def received(self, connection: Connection, data: bytes) -> None:
        decoder = connection.decoder
        pings: list[bytes] = []
        events = decoder.receive(data)
        for event in events:
            kind = type(event)
            if kind is Messages:
                last = event is events[-1] and not decoder.left
                connection.mode.messages(connection, event.text, event.payloads, last)
                if connection.closing:
                    return
            elif kind is Ping:
                pings.append(event.payload)
            elif kind is not Pong:
                if pings:
                    connection.pong(pings)
                connection.closed(event)
                return
        if pings:
            connection.pong(pings)
        if decoder.error is not None:
            raise decoder.error
        if decoder.left:
            # what was decompressed has to leave first, or it would be too much for whoever hears it
            connection.hold(Held.INFLATED)
            connection.stream.put_back(decoder.left)
            reactor = connection.door.exchange.reactor
            reactor.call_at(reactor.now, partial(_go_on, connection, decoder.left))

    def messages(self, connection: Connection, text: bool, payloads: list[bytes], last: bool) -> None:
        """Whole messages of one kind; text is valid UTF-8. `last`: nothing came after them in this read."""
        raise NotImplementedError

    def ping(self, ts: int, *, padded: bool = False) -> bytes | None:
        payload = b"%d" % ts
        return frame(PING, payload.ljust(_PADDED, b".") if padded else payload)

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes | None:
        if retry_after:
            reason = f"{reason}; come back in {retry_after:g} s"
        return close_frame(code if may_be_sent(code) else CloseCode.NORMAL, reason)


class Operations(Mode):
    """Requests of the message vocabulary, each answered by the hub."""

    __slots__ = ("encoder", "format", "settled")

    name = "operations"

    def __init__(self, format: Format | None = None) -> None:
        """What it is answered in; None: what its first frame is in, and JSON until then."""
        self.format: Format = format or "json"
        self.settled = format is not None
        self.encoder = SPOKEN[self.format]

    def messages(self, connection: Connection, text: bool, payloads: list[bytes], last: bool) -> None:
        format: Format = "json" if text else "messagepack"
        if not self.settled:
            mode = connection.mode = OPERATIONS[format]
            connection.door.exchange.speak(connection, mode.encoder)
        serve_requests(connection, connection.door.exchange.hub, payloads, format, last=last)

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes:
        last = self.encoder.encode(Close(code=code, reason=reason, retry_after=retry_after))
        return (last or b"") + (super().farewell(code, reason, None) or b"")


OPERATIONS: dict[Format, Operations] = {"json": Operations("json"), "messagepack": Operations("messagepack")}


class Plain(Mode):
    """Every frame is published to the channel as it is, and every message of the channel comes as a frame.

    With the role "both" it does what it may of the two, and is refused if that is neither. What it may not publish is
    refused by the hub and counted there. Direct messages and broadcasts reach it as frames too. Who may not hear the
    channel any more, or heard nothing and may not speak any more, is closed (1008): there is no other word for it.
    """

    __slots__ = ("channel", "echo", "role")

    name = "channel"
    encoder = FRAMES

    def __init__(self, channel: bytes, role: Role = "both", echo: bool = False) -> None:
        """`echo`: it also hears what it published itself."""
        self.channel = channel
        self.role = role
        self.echo = echo

    def opened(self, connection: Connection) -> None:
        session = connection.session
        hub: Hub = connection.door.exchange.hub
        connection.channel = self.channel
        if self.role == "both" and not self.echo:
            session.deaf = True
        try:
            if self.role != "pub":
                try:
                    hub.subscribe(session, self.channel)
                except Denied:
                    if self.role == "sub":
                        raise
                else:
                    return
            hub.allowed(session, "publish", self.channel)
        except Denied as error:
            raise ProtocolError(str(error), close=CloseCode.POLICY) from None
        except ControlError as error:  # as many channels, or subscribers of this one, as may be
            raise ProtocolError(str(error), close=CloseCode.TRY_LATER) from None

    def messages(self, connection: Connection, text: bool, payloads: list[bytes], last: bool) -> None:
        if self.role == "sub":
            raise ProtocolError("cannot publish: this WebSocket's role is sub", close=CloseCode.POLICY)
        session = connection.session
        refused = session.refused
        connection.door.exchange.hub.publish_many(session, self.channel, payloads, text=text, last=last)
        if session.refused != refused and not session.channels:
            _end_where_denied(connection, "publish", self.channel)

    def lost(self, connection: Connection, channel: bytes | None, why: str) -> None:
        if channel == self.channel:
            connection.end(CloseCode.POLICY, why)
        elif not connection.session.channels:
            _end_where_denied(connection, "publish", self.channel)


class App(Mode):
    """Every frame goes to the application: a worker, or an echo."""

    __slots__ = ()

    name = "application"
    encoder = FRAMES

    def messages(self, connection: Connection, text: bool, payloads: list[bytes], last: bool) -> None:
        session, hub = connection.session, connection.door.exchange.hub
        for payload in payloads:
            request = Text(text=payload.decode()) if text else Binary(data64=payload)
            refused = session.refused
            hub.handle(session, request, len(payload))
            if session.refused != refused:
                _end_where_denied(connection, "application", None)
            if connection.closing:
                return

    def lost(self, connection: Connection, channel: bytes | None, why: str) -> None:
        _end_where_denied(connection, "application", None)


def _end_where_denied(connection: Connection, operation: str, channel: bytes | None) -> None:
    """End a connection that is there for something that its session may do no more, and has no other word for it."""
    try:
        connection.door.exchange.hub.permissions.check(connection.session, operation, channel)
    except Denied as error:
        connection.end(CloseCode.POLICY, str(error))


def _go_on(connection: Connection, left: bytes) -> None:
    """Serve what a decoder has left, and behind it what the connection has put back since, being held."""
    stream, bucket = connection.stream, connection._bucket
    if stream.rare is not None and (behind := stream.rare.received) is not left:
        stream.put_back(left + behind)
    if bucket is not None:
        bucket.tokens += len(left)  # they were paid for
    connection.release(Held.INFLATED)


def _tell(session: Session, position: Ok) -> None:
    session.send(position)


class Deaf:
    """The decoder of a connection that has nothing to say: bytes are counted."""

    __slots__ = ("taken",)
    buffered = 0

    def __init__(self) -> None:
        self.taken = 0


class Events(Mode):
    """An event stream: messages of its channels, as server-sent events. It is first told where each of them stands."""

    __slots__ = ("channels", "known", "recover")

    name = "events"
    transport = "sse"
    answers = False
    speaks = False
    encoder = LINES

    def __init__(
        self, channels: tuple[bytes, ...], recover: Position | Sequence[Position | None] | None = None
    ) -> None:
        """`recover`: from where, in each channel; or one position, in the channel that it is of."""
        self.channels = channels
        self.known: Sequence[Position | None] = ()
        """Where the client is in each, as far as it said that."""
        if recover is None or isinstance(recover, Position):
            self.recover: Sequence[Position | None] = [recover] * len(channels)
        else:
            self.recover = self.known = recover

    def decoder(self, limits: Limits) -> Deaf:
        return Deaf()

    def opened(self, connection: Connection) -> None:
        session = connection.session
        hub: Hub = connection.door.exchange.hub
        connection.channel = self.channels[0]
        try:
            if len(self.channels) > 1:
                session.encoder = Several(self.channels, self.known)
            for channel, recover in zip(self.channels, self.recover, strict=True):
                hub.subscribe(session, channel, recover=recover, answer=partial(_tell, session))
        except Denied as error:
            raise ProtocolError(str(error), close=CloseCode.POLICY) from None
        except ControlError as error:
            raise ProtocolError(str(error), close=CloseCode.TRY_LATER) from None

    def lost(self, connection: Connection, channel: bytes | None, why: str) -> None:
        if not connection.session.channels:
            connection.end(CloseCode.POLICY, why)

    def received(self, connection: Connection, data: bytes) -> None:
        connection.decoder.taken += len(data)
        if connection.decoder.taken > _IDLE_TALK:
            raise ProtocolError("cannot take anything from the client of an event stream", close=CloseCode.POLICY)

    def ping(self, ts: int, *, padded: bool = False) -> bytes:
        return b":%b\n\n" % (b"." * _PADDED if padded else b"")

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes:
        last = messages.encode(Close(code=code, reason=reason, retry_after=retry_after), "json")
        # a browser waits so long before every attempt from now on, without backing off while nobody listens
        retry = b"" if retry_after is None else b"retry: %d\n" % round(1000 * (_RETURN + retry_after))
        return b"%bevent: close\ndata: %b\n\n" % (retry, last)
