"""Server-sent events: bytes -> typed events, sans-IO (WHATWG HTML, section 9.2.6 "Interpreting an event stream").

    parser = SseParser()
    for event in parser.feed(chunk):  ...

Rules:
- bytes may be cut anywhere: inside a line end, inside a UTF-8 sequence;
- a line ends with CR, LF or CRLF; an event ends with an empty line; an event without data is not an event;
- the last `id` stands until the stream gives another one, also for events that carry none;
- a line or an event above its bound is a ProtocolError: a stream that breaks the bound is not to be trusted further.

Left out: reconnecting, which is the client's (netd/client/stream.py), and what the data means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from netd.errors import ProtocolError

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event as dispatched: `name` is "message" where the stream names none, `id` the last one seen, "" for none."""

    name: str
    data: str
    id: str


class SseParser:
    """Give it bytes as they come, get events as they are complete. `max_line` and `max_event` are bytes."""

    def __init__(self, *, max_line: int = 256 * 1024, max_event: int = 1024 * 1024) -> None:
        self._max_line = max_line
        self._max_event = max_event
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""
        self._first_line = True
        self._skip_lf = False
        self.last_id = ""
        """What a reconnecting client sends as Last-Event-ID: the id of the last event *dispatched*."""
        self._id = ""
        self.retry: float | None = None
        """Seconds the stream asks to wait before reconnecting, None while it asked for nothing."""

    def feed(self, data: bytes) -> list[SseEvent]:
        """The events that these bytes complete. Raises ProtocolError when a bound is broken."""
        if not data:
            return []
        if self._skip_lf:
            # the CR that ended the last chunk was a whole line end; an LF right behind it belongs to that one
            self._skip_lf = False
            if data[0] == 0x0A:
                data = data[1:]
        *ended, rest = _LINE_END.split(data)
        self._skip_lf = data.endswith(b"\r")
        events: list[SseEvent] = []
        for piece in ended:
            self._append(piece)
            line, self._line = bytes(self._line), bytearray()
            if (event := self._take(line)) is not None:
                events.append(event)
        self._append(rest)
        return events

    def resume_from(self, event_id: str) -> None:
        """Start with this as the last id: the caller knows it from an earlier stream."""
        self.last_id = self._id = event_id

    def reset(self) -> None:
        """Forget a half-read event: the connection ended. The last id and the retry time stay."""
        self._line.clear()
        self._data, self._size, self._name = [], 0, ""
        self._first_line, self._skip_lf = True, False
        self._id = self.last_id

    def _append(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > self._max_line:
            raise ProtocolError(f"cannot read the event stream: a line is longer than {self._max_line} bytes")
        self._line += piece

    def _take(self, line: bytes) -> SseEvent | None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._size += len(value) + 1
                if self._size > self._max_event:
                    raise ProtocolError(
                        f"cannot read the event stream: an event is longer than {self._max_event} bytes"
                    )
                self._data.append(value)
            case b"event":
                self._name = value.decode(errors="replace")
            case b"id" if b"\0" not in value:
                self._id = value.decode(errors="replace")
            case b"retry" if value.isdigit() and len(value) <= 9:
                self.retry = int(value) / 1000
            case _:  # a comment (empty field), or a field from a later version of the standard
                pass
        return None

    def _dispatch(self) -> SseEvent | None:
        name, data = self._name or "message", self._data
        self._name, self._data, self._size = "", [], 0
        self.last_id = self._id
        if not data:
            return None
        return SseEvent(name, b"\n".join(data).decode(errors="replace"), self.last_id)
