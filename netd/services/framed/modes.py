"""What becomes of a connection's payloads: operations, a channel, an echo. Pure; shared by all connections of a door.

    Opening --first frame--> Operations        messages.py's requests to the hub, JSON or MessagePack
                         \\-> ToChannel         every payload is published to the session's channel
                          \\-> ToApplication    every payload goes to the application
                           \\-> Echo            every payload comes back

Rules:
- a mode holds nothing of a connection: what is of one (its decoder, its channel) stands in the connection;
- a payload that cannot be read is an answer (`error`) in operations and the end (1007) elsewhere: a plain client could
  not be told;
- a length above max_frame ends the connection (1009) once what came before it was served;
- once a connection ends, what else came in the same chunk is not served;
- an echo is never lost: when too much of it waits for its client, nothing more is read from that client.

Left out: the handshake's rules (protocol.py), who may do what (the hub).
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from netd.errors import ControlError, Denied, ProtocolError
from netd.services.framed.connection import Held
from netd.services.framed.protocol import FirstFrame, judge
from netd.services.framed.templates import Template
from netd.sessions import modes
from netd.sessions.modes import serve_requests
from netd.sessions.payloads import Others, Payloads, plain_bytes
from netd.wire import messages, rows
from netd.wire.codecs import RAW, TEXT
from netd.wire.framing import FrameDecoder, NoFraming, frame, frames
from netd.wire.messages import (
    Binary,
    Close,
    CloseCode,
    Ping,
    Text,
    sniff,
)
from netd.wire.rows import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.hub.batch import Batch
    from netd.hub.hub import Hub
    from netd.services.framed.config import FramedListen
    from netd.services.framed.connection import Connection
    from netd.wire.codecs import Codec
    from netd.wire.framing import FrameLimits
    from netd.wire.messages import Event, Format, Ref

PAD = "." * 96
"""Of a ping to be traced by: a byte for each probe (netd.wire.probes)."""


class Framed:
    """hub.Encoder for sessions in operations mode."""

    def __init__(self, format: Format) -> None:
        self.format: Format = format

    def encode(self, event: Event) -> bytes:
        return frame(messages.encode(event, self.format))

    def encode_many(self, batch: Batch) -> bytes:
        return batch.said(self.format).framed(frame, frames)

    def answers(self, refs: list[Ref], delivered: Sequence[int | None], *, joined: bool) -> list[bytes]:
        said = rows.answers(self.format, refs, delivered)
        return [said.framed(frame, frames)] if joined else list(map(frame, said.payloads()))


ENCODERS: dict[Format, Framed] = {"json": Framed("json"), "messagepack": Framed("messagepack")}
"""One each, so that a message is encoded once for all who speak the format."""


class Mode(modes.Mode):
    """The base of framed's."""

    transport = "framed"
    needs_handshake = False
    """Without one it does not know what to do with a client."""

    def decoder(self, limits: FrameLimits) -> Any:
        return FrameDecoder(limits)

    def introduced(self, connection: Connection) -> None:
        """Its optional handshake came, after `opened`."""


class Opening(Mode):
    """Until the first frame is whole: whether it is the handshake; then `then`."""

    settled = False

    def __init__(self, then: Mode) -> None:
        self.then = then
        self.name = then.name
        self.encoder = then.encoder
        self.pings = then.pings

    def decoder(self, limits: FrameLimits) -> FirstFrame:
        return FirstFrame()

    def opened(self, connection: Connection) -> None:
        # a client that only listens may never send a first frame
        if not self.then.needs_handshake:
            self.then.opened(connection)

    def received(self, connection: Connection, data: bytes) -> None:
        first: FirstFrame = connection.decoder
        payload = first.receive(data)
        if payload is None:
            return
        door = connection.door
        found = judge(payload, door.terms, now=door.exchange.clock(), nonces=door.nonces)
        rest = first.rest(taken=found is not None)
        if found is not None:
            door.exchange.introduced(connection, found)
            self.then.introduced(connection)
        if self.then.needs_handshake:
            self.then.opened(connection)
        connection.mode = self.then
        connection.decoder = self.then.decoder(door.limits)
        if rest and not connection.closing:
            self.then.received(connection, rest)

    def ping(self, ts: int, *, padded: bool = False) -> bytes | None:
        return self.then.ping(ts, padded=padded)

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes | None:
        return self.then.farewell(code, reason, retry_after)


class Operations(Mode):
    """Requests of the message vocabulary, each answered by the hub."""

    name = "operations"
    pings = True
    encoder: Framed

    def __init__(self, hub: Hub, format: Format) -> None:
        self.hub = hub
        self.format: Format = format
        self.encoder = ENCODERS[format]

    def received(self, connection: Connection, data: bytes) -> None:
        self.serve(connection, connection.decoder.receive(data))

    def serve(self, connection: Connection, payloads: list[bytes]) -> None:
        last = connection.decoder.error is None
        serve_requests(connection, self.hub, payloads, self.format, last=last)
        if not last and not connection.closing:
            raise connection.decoder.error

    def ping(self, ts: int, *, padded: bool = False) -> bytes:
        return self.encoder.encode(Ping(ts=ts, pad=PAD if padded else None))

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes:
        return self.encoder.encode(Close(code=code, reason=reason, retry_after=retry_after))


class Sniffing(Operations):
    """Operations until the first payload says which format they come in. Until then JSON is spoken."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub, "json")
        self._modes: dict[Format, Operations] = {
            "json": Operations(hub, "json"),
            "messagepack": Operations(hub, "messagepack"),
        }

    def serve(self, connection: Connection, payloads: list[bytes]) -> None:
        first = next(filter(None, payloads), None)
        if first is None:
            super().serve(connection, payloads)
            return
        mode = connection.mode = self._modes[sniff(first)]
        connection.session.encoder = mode.encoder
        mode.serve(connection, payloads)


class Echo(Mode):
    """Every payload comes back as it came, and nothing is decoded: what arrived together goes back together."""

    name = "echo"

    def __init__(self, framing: str) -> None:
        self.decoder = NoFraming if framing == "none" else FrameDecoder  # type: ignore[method-assign]
        self.encoder = Plain(RAW, framing)

    def received(self, connection: Connection, data: bytes) -> None:
        decoder = connection.decoder
        chunks, count = decoder.relay(data)
        if count:
            connection.session.messages_in += count
            connection.outbox.push_many(chunks, count)
        if decoder.error is not None:
            raise decoder.error

    def pressure(self, connection: Connection, over: bool) -> None:
        if over:
            connection.hold(Held.ECHO)
        else:
            connection.release(Held.ECHO)


class CheckedEcho(Echo):
    """An echo of what the codec can read; the first payload that it cannot ends the connection with 1007."""

    def __init__(self, codec: Codec, framing: str) -> None:
        super().__init__(framing)
        self.encoder = Plain(codec, framing)
        self._decode = codec.decode
        self._framed = framing != "none"

    def received(self, connection: Connection, data: bytes) -> None:
        decoder = connection.decoder
        good: list[bytes] = []
        try:
            for payload in decoder.receive(data):
                self._decode(payload)
                good.append(payload)
        finally:
            if good:
                connection.session.messages_in += len(good)
                connection.outbox.push_many([frames(good)] if self._framed else good, len(good))
        if decoder.error is not None:
            raise decoder.error


class Plain(Payloads):
    """hub.Encoder for sessions that get plain payloads: the data of messages, and of nothing else."""

    def __init__(self, codec: Codec, framing: str) -> None:
        super().__init__()
        self._codec = codec
        self._framed = framing != "none"

    def written(self, data: Any) -> bytes:
        plain = self._codec is RAW or self._codec is TEXT
        payload = plain_bytes(data) if plain else self._codec.encode(data)
        return frame(payload) if self._framed else payload


class ToChannel(Mode):
    """Every payload is published to the channel that the template gives the session, with the session's permissions.

    A session that may not subscribe to it hears nothing from it and publishes; one that may not publish listens, and
    what it publishes is refused by the hub and counted there; one that may neither is refused. Direct messages and
    broadcasts reach it as payloads too.
    """

    name = "channel"
    encoder: Plain

    def __init__(self, hub: Hub, codec: Codec, framing: str, template: Template, *, echo_own: bool) -> None:
        self.hub = hub
        self.template = template
        self.needs_handshake = bool(template.of_the_handshake)
        self.encoder = Plain(codec, framing)
        self.decoder = NoFraming if framing == "none" else FrameDecoder  # type: ignore[method-assign]
        self._codec = codec
        self._echo_own = echo_own

    def opened(self, connection: Connection) -> None:
        session, door = connection.session, connection.door
        connection.channel = self.template.fill(
            session=session.id, name=session.name, listener=door.address, tags=session.tags
        )
        if not self._echo_own:
            session.encoder = Others(self.encoder, session)
        try:
            self.hub.subscribe(session, connection.channel)
        except Denied:
            self._may_publish(connection)
        except ControlError as error:  # as many channels, or subscribers of this one, as may be
            raise ProtocolError(str(error), close=CloseCode.TRY_LATER) from None

    def _may_publish(self, connection: Connection) -> None:
        try:
            self.hub.allowed(connection.session, "publish", connection.channel)
        except Denied as error:
            raise ProtocolError(str(error), close=CloseCode.POLICY) from None

    def received(self, connection: Connection, data: bytes) -> None:
        decoder, decode = connection.decoder, self._codec.decode
        payloads = decoder.receive(data)
        found: list[Any] = []
        wrong: ProtocolError | None = decoder.error
        try:
            found.extend(decode(payload) for payload in payloads)
        except ProtocolError as error:
            wrong = error
        self._publish(connection, found, payloads, last=wrong is None)
        if wrong is not None and not connection.closing:
            raise wrong

    def _publish(self, connection: Connection, found: list[Any], payloads: list[bytes], *, last: bool) -> None:
        """What came in one read, and what of it was read: what is of one kind goes in a row."""
        assert connection.channel is not None
        begin = 0
        for kind, run in groupby(found, _kind):
            data = list(run)
            end = begin + len(data)
            row = Row(connection.channel, kind, data, payloads[begin:end])
            self.hub.publish_row(connection.session, row, last=last and end == len(payloads))
            if connection.closing:
                return
            begin = end


def _kind(data: Any) -> type | None:
    """Of a row (wire/rows.py)."""
    return type(data) if isinstance(data, str | bytes) else None


class ToApplication(Mode):
    """Every payload is the application's, a worker's: text where the codec makes text of it. What that says comes as
    payloads, as do direct messages and broadcasts."""

    name = "worker"
    encoder: Plain

    def __init__(self, hub: Hub, codec: Codec, framing: str) -> None:
        self.hub = hub
        self.encoder = Plain(codec, framing)
        self.decoder = NoFraming if framing == "none" else FrameDecoder  # type: ignore[method-assign]
        self._codec = codec

    def received(self, connection: Connection, data: bytes) -> None:
        session, hub, decode = connection.session, self.hub, self._codec.decode
        for payload in connection.decoder.receive(data):
            value = decode(payload)
            if isinstance(value, str):
                hub.handle(session, Text(text=value), len(payload))
            elif isinstance(value, bytes):
                hub.handle(session, Binary(data64=value), len(payload))
            else:
                what = f"the codec {self._codec.name!r} makes {type(value).__name__} of it, no text and no bytes"
                raise ProtocolError(f"cannot hand a payload to the application: {what}", close=CloseCode.INVALID)
            if connection.closing:
                return
        if connection.decoder.error is not None:
            raise connection.decoder.error


def made(listen: FramedListen, codec: Codec | None, hub: Hub) -> Mode:
    """The mode of a listener, for those whose handshake is done. `codec` None: "auto"."""
    if listen.mode == "operations":
        return Sniffing(hub) if codec is None else Operations(hub, "json" if codec.name == "json" else "messagepack")
    if listen.mode == "channel":
        return ToChannel(hub, codec or RAW, listen.framing, Template(listen.channel), echo_own=listen.echo_own)
    if listen.mode == "worker":
        return ToApplication(hub, codec or RAW, listen.framing)
    return Echo(listen.framing) if codec in (None, RAW) else CheckedEcho(codec, listen.framing)
