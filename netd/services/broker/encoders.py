"""What the broker's sessions speak: events -> bytes for a WebSocket or an event stream. Pure; shared by all sessions.

    Spoken     operations: JSON in text frames, MessagePack in binary frames
    Frames     plain: the data of messages, a frame each, as it was published
    Lines      server-sent events: id, event, data

Rule: one object for each of these, so that a message is encoded once for everybody who is told of it the same way.

Left out: compression (packing.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.sessions.payloads import Payloads, plain_bytes
from netd.wire import messages
from netd.wire.messages import BinaryEvent, Broadcast, Direct, Error, Joined, Left, Message, Ok, TextEvent
from netd.wire.websocket import BINARY, TEXT, frame, frames

if TYPE_CHECKING:
    from netd.hub.batch import Batch
    from netd.wire.messages import Event, Format


class Spoken:
    """The message vocabulary in one format."""

    def __init__(self, format: Format) -> None:
        self.format: Format = format
        self._opcode = TEXT if format == "json" else BINARY

    def encode(self, event: Event) -> bytes:
        return frame(self._opcode, messages.encode(event, self.format))

    def encode_many(self, batch: Batch) -> bytes:
        return frames(self._opcode, [messages.encode(each.event(), self.format) for each in batch.publications()])


class Frames(Payloads):
    """Data as it was: text stays text, bytes binary; any other value is JSON text."""

    def written(self, data: Any) -> bytes:
        return frame(BINARY if isinstance(data, bytes) else TEXT, plain_bytes(data))

    def encode_many(self, batch: Batch) -> bytes:
        return frames(TEXT if batch.text else BINARY, batch.payloads)


class Lines:
    """Server-sent events (WHATWG HTML, section 9.2): the JSON form of an event, under its name.

    A message's id is its position, "EPOCH:OFFSET", so that a browser that comes back tells where it was.
    """

    def encode(self, event: Event) -> bytes | None:
        name = _NAMES.get(type(event))
        if name is None:
            return None
        start = b"event: %b\ndata: " % name
        if isinstance(event, (Message, Ok)) and event.offset is not None:
            start = b"id: %b:%d\n%b" % (str(event.epoch).encode(), event.offset, start)
        return start + messages.encode(event, "json") + b"\n\n"


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
LINES = Lines()
