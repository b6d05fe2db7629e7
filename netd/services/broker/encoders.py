"""What the broker's sessions speak: events -> bytes for a WebSocket or an event stream. Pure; shared by all sessions.

    Spoken     operations: JSON in text frames, MessagePack in binary frames
    Frames     plain: the data of messages, a frame each, as it was published
    Lines      server-sent events: id, event, data
    Several    the same for one stream of several channels: its ids tell where it is in each of them

Rule: one object for each of these but the last, so that a message is encoded once for everybody who is told of it the
same way.

Left out: compression (packing.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from netd.sessions.payloads import Payloads, plain_bytes
from netd.wire import messages, rows
from netd.wire.messages import BinaryEvent, Broadcast, Direct, Error, Joined, Left, Message, Ok, TextEvent
from netd.wire.websocket import BINARY, TEXT, frame, frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.hub.batch import Batch
    from netd.wire.messages import Event, Format, Position, Ref


class Spoken:
    """The message vocabulary in one format."""

    def __init__(self, format: Format) -> None:
        self.format: Format = format
        self._opcode = TEXT if format == "json" else BINARY
        self._frame = partial(frame, self._opcode)
        self._frames = partial(frames, self._opcode)

    def encode(self, event: Event) -> bytes:
        return self._frame(messages.encode(event, self.format))

    def encode_many(self, batch: Batch) -> bytes:
        return batch.said(self.format).framed(self._frame, self._frames)

    def bodies(self, batch: Batch) -> tuple[int, list[bytes]]:
        """What stands in the frames of `encode_many`, and their opcode; for whoever frames it otherwise."""
        return self._opcode, batch.said(self.format).payloads()

    def answers(self, refs: list[Ref], delivered: Sequence[int | None], *, joined: bool) -> list[bytes]:
        said = rows.answers(self.format, refs, delivered)
        return [said.framed(self._frame, self._frames)] if joined else list(map(self._frame, said.payloads()))


class Frames(Payloads):
    """Data as it was: text stays text, bytes binary; any other value is JSON text."""

    def written(self, data: Any) -> bytes:
        return frame(BINARY if isinstance(data, bytes) else TEXT, plain_bytes(data))

    def encode_many(self, batch: Batch) -> bytes:
        return frames(TEXT if batch.text else BINARY, batch.payloads)

    def bodies(self, batch: Batch) -> tuple[int, list[bytes]]:
        """As `Spoken.bodies`."""
        return TEXT if batch.text else BINARY, batch.payloads


class Lines:
    """Server-sent events (WHATWG HTML, section 9.2): the JSON form of an event, under its name.

    A message's id is its position, "EPOCH:OFFSET", so that a browser that comes back tells where it was.
    """

    def __init__(self) -> None:
        self._last: tuple[Event | None, bytes | None] = None, None

    def encode(self, event: Event) -> bytes | None:
        body = self.body(event)
        if body is not None and isinstance(event, (Message, Ok)) and event.offset is not None:
            return b"id: %b:%d\n%b" % (str(event.epoch).encode(), event.offset, body)
        return body

    def body(self, event: Event) -> bytes | None:
        """All of it but the id."""
        # streams of several channels ask for the same event one after another
        if self._last[0] is not event:
            name = _NAMES.get(type(event))
            body = None
            if name is not None:
                body = b"event: %b\ndata: %b\n\n" % (name, messages.encode(event, "json"))
            self._last = event, body
        return self._last[1]

    def encode_many(self, batch: Batch) -> bytes:
        bodies, places = batch.each(_BODIES), batch.places()
        if places is None:
            return b"".join(bodies)
        return b"".join(
            [b"id: %b:%d\n%b" % (at[0].encode(), at[1], body) for at, body in zip(places, bodies, strict=True)]
        )


class _Bodies:
    """Each message of a row, without its id."""

    def encode_each(self, batch: Batch) -> list[bytes]:
        return [b"event: message\ndata: %b\n\n" % payload for payload in batch.said("json").payloads()]


class Several:
    """`Lines` for one stream of several channels. An id has the position in each of them, in their order, as far as it
    is known: "EPOCH:OFFSET,-,EPOCH:OFFSET"."""

    def __init__(self, channels: Sequence[bytes], recover: Sequence[Position | None] = ()) -> None:
        """`recover` is from where it goes on: what the client knows until it is told more."""
        self._at: dict[bytes, tuple[str, int] | None] = dict.fromkeys(channels)
        for channel, position in zip(channels, recover, strict=False):
            self._at[channel] = None if position is None else (position.epoch, position.offset)

    def encode(self, event: Event) -> bytes | None:
        body = LINES.body(event)
        if body is None or not isinstance(event, (Message, Ok)) or event.offset is None:
            return body
        anew = isinstance(event, Ok) and not event.recovered
        return self._id(messages.channel_of(event), (str(event.epoch), event.offset), anew) + body

    def _id(self, here: bytes, own: tuple[str, int], anew: bool = False) -> bytes:
        """The line of what is at this place; `anew`: it goes on from there, wherever it was."""
        if here in self._at:
            before = self._at[here]
            # what was missed is encoded before the answer that it follows, and after what came meanwhile
            earlier = before is not None and before[0] == own[0] and before[1] > own[1]
            if not earlier or anew:
                self._at[here] = own
        places = (own if channel == here else at for channel, at in self._at.items())
        found = ",".join("-" if at is None else f"{at[0]}:{at[1]}" for at in places)
        return b"id: %b\n" % found.encode()

    def encode_many(self, batch: Batch) -> bytes:
        return b"".join(self.encode_each(batch))

    def encode_each(self, batch: Batch) -> list[bytes]:
        bodies, places = batch.each(_BODIES), batch.places()
        if places is None:
            return bodies
        return [self._id(batch.channel, at) + body for at, body in zip(places, bodies, strict=True)]


_NAMES: dict[type, bytes] = {
    Message: b"message",
    Ok: b"subscribed",
    Direct: b"direct",
    Broadcast: b"broadcast",
    Joined: b"joined",
    Left: b"left",
    TextEvent: b"text",
    BinaryEvent: b"binary",
    Error: b"problem",  # an "error" would be taken for one of the connection
}

SPOKEN: dict[Format, Spoken] = {"json": Spoken("json"), "messagepack": Spoken("messagepack")}
FRAMES = Frames()
_BODIES = _Bodies()
LINES = Lines()
