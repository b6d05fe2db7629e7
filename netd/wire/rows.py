"""Rows: publish operations that follow each other, read as one, and the messages they become, written as one. Sans-IO.

    for found, payload in read(payloads, "json"):     Row | another request | ProtocolError, and what it came in
    said = written("json", row, sender)               what they become; said.payloads(), or in frames: said.framed(...)

Rules:
- what stands in a row is for one channel and of one kind (text, bytes, or values), with the normal priority, and either
  all of it asks for an answer (`ref`) or none does. Everything else is a request by itself, in its place;
- a row is what its operations are one by one (`Row.requests`): each was read and checked as any request is;
- a row has at most MAX_ROW operations, from at most MAX_BYTES: what was decoded is all there at once, and may be thirty
  times as large as its bytes;
- what differs between the messages of a row is their data and offset. What stands around them is encoded once, and
  kept for the next row.

Left out: whether a row may be published as one (hub/requests.py), and frames around payloads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET

from netd.wire import messages, plain
from netd.wire.messages import Message, Ok, Publish, Request, channel_fields, data_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from netd.errors import ProtocolError
    from netd.wire.messages import Brief, Data, Format, Ref

MAX_ROW: Final = 512
"""Operations of one row."""
MAX_BYTES: Final = 2**18
"""Bytes of the operations of one row, unless it is one alone."""
_NORMAL: Final = 128
"""Publish.priority unless it says otherwise."""

Kind: TypeAlias = type | None
"""Of a row's data: text, bytes, or values (None)."""
Place: TypeAlias = tuple[str, int]
"""A message's epoch and offset."""


class Row:
    """What one client publishes to one channel, one after another. Not to be changed once it is read."""

    __slots__ = ("_data", "_payloads", "channel", "ephemeral", "kind", "refs", "wire")

    def __init__(
        self,
        channel: bytes,
        kind: Kind,
        data: list[Data] | None,
        wire: list[bytes],
        refs: list[Ref] | None = None,
        *,
        ephemeral: bool = False,
    ) -> None:
        """`data` is what each carries, and None where that is, as bytes, all that they came in. Values are plain ones
        (plain.py), and text is UTF-8."""
        self.channel = channel
        self.kind: Kind = kind
        self.wire = wire
        """What each came in."""
        self.refs = refs
        self.ephemeral = ephemeral
        self._data = data
        self._payloads: list[bytes] | None = wire if data is None else None

    def __len__(self) -> int:
        return len(self.wire)

    @property
    def data(self) -> list[Data]:
        """What each carries."""
        if self._data is None:
            self._data = [text.decode() for text in self.wire] if self.kind is str else self.wire
        return self._data

    @property
    def payloads(self) -> list[bytes]:
        """The same as bytes: text as UTF-8, values as JSON."""
        if self._payloads is None:
            data = self.data
            self._payloads = (
                data if self.kind is bytes else [text.encode() for text in data] if self.kind else _in_json(data)
            )
        return self._payloads

    def requests(self) -> Iterator[tuple[Publish, int]]:
        """The same, each by itself, and how many bytes it came in."""
        about = channel_fields(self.channel)
        refs: Sequence[Ref | None] = self.refs or (None,) * len(self.wire)
        for data, wire, ref in zip(self.data, self.wire, refs, strict=True):
            yield Publish(ref=ref, ephemeral=self.ephemeral, **about, **data_fields(data)), len(wire)


# --- what clients say ------------------------------------------------------------------------------------------------


def read(payloads: list[bytes], format: Format) -> Iterator[tuple[Row | Request | ProtocolError, bytes]]:
    """What these messages of one client ask for, in order. The bytes of a row stand in it (`Row.wire`)."""
    # what follows such a request is most often another one; whoever sends others in between is not guessed at again
    brief: Callable[[bytes], Brief] | None = messages.BRIEFLY[format]
    found: Any
    its: Any
    row: Row | None = None
    begin, cuts = 0, _cuts(payloads)
    # of the row that is being read: what the next has to have as well
    channel: Any = None
    data: list[Data] = []
    kind: Kind = None
    refs: list[Ref] | None = None
    for at, payload in enumerate(payloads):
        if brief is not None and row is not None and not row.ephemeral:
            try:
                found = brief(payload)
                its = type(found.data)
                if its is not str and its is not bytes:
                    its = None
                    plain.check(found.data)
            except (ValueError, RecursionError):
                brief = None
            else:
                ref = found.ref
                if its is kind and found.channel == channel and (ref is None) is (refs is None) and at not in cuts:
                    data.append(found.data)
                    if refs is not None:
                        refs.append(ref)
                    continue
        found = read_one(payload, format)
        if isinstance(found, Row):
            if (
                row is not None
                and found.kind is kind
                and found.channel == row.channel
                and found.ephemeral is row.ephemeral
                and (found.refs is None) is (refs is None)
                and at not in cuts
            ):
                data += found.data
                if refs is not None:
                    refs += found.refs or ()
                continue
            if row is not None:
                row.wire = payloads[begin:at]
                yield row, b""
            row, begin = found, at
            channel, data, kind, refs = row.channel.decode(), row.data, row.kind, row.refs
            continue
        if row is not None:
            row.wire = payloads[begin:at]
            yield row, b""
            row = None
        yield found, payload
    if row is not None:
        row.wire = payloads[begin:]
        yield row, b""


def read_one(payload: bytes, format: Format) -> Row | Request | ProtocolError:
    """What one message asks for: a row of one, if it could stand in one."""
    try:
        found = messages.UNCHECKED[format](payload)
        messages.check_request(found)
    except (ValueError, RecursionError) as error:
        return messages.unreadable("request", error)
    if type(found) is not Publish or found.priority != _NORMAL or found.channel is UNSET:
        return found
    data = found.data64 if found.data is UNSET else found.data
    kind = type(data)
    return Row(
        found.channel.encode(),
        kind if kind is str or kind is bytes else None,
        [data],
        [payload],
        None if found.ref is None else [found.ref],
        ephemeral=found.ephemeral,
    )


def _cuts(payloads: list[bytes]) -> frozenset[int]:
    """Where a row ends at the latest."""
    if len(payloads) <= MAX_ROW and sum(map(len, payloads)) <= MAX_BYTES:
        return frozenset()
    found: set[int] = set()
    count = size = 0
    for at, payload in enumerate(payloads):
        count += 1
        size += len(payload)
        if count > MAX_ROW or size > MAX_BYTES:
            found.add(at)
            count, size = 1, len(payload)
    return frozenset(found)


# --- what they are told ----------------------------------------------------------------------------------------------


def written(format: Format, row: Row, sender: str | None, places: Sequence[Place] | None = None) -> Said:
    """The messages that a row becomes, as `messages.encode` has each; `places`: of each, if any."""
    channel, binary = row.channel, row.kind is bytes
    quoted = False
    if format == "messagepack":
        pieces = list(map(_PACK, row.data))
    elif row.kind is None:
        pieces = row.payloads
    elif len(row) == 1:
        pieces = [_ENCODERS["json"](row.data[0])]
    else:
        # one call, as JSON has no line end within a value; where it is text and nothing but the quotes are added, that
        # is what is there already
        lines = _JSON_LINES(row.data)
        quoted = row.kind is str and len(lines) == sum(map(len, row.payloads)) + 3 * len(row)
        pieces = row.payloads if quoted else lines.split(b"\n")[:-1]
    if places is None:
        head, tail = _around(format, channel, sender, binary)
        return Said(head + b'"', pieces, b'"' + tail) if quoted else Said(head, pieces, tail)
    encode = _ENCODERS[format]
    found: list[bytes] = []
    epoch: str | None = None
    head = middle = tail = b""
    for piece, place in zip(pieces, places, strict=True):
        if place[0] != epoch:
            epoch = place[0]
            head, middle, tail = _around_numbered(format, channel, sender, binary, epoch)
            if quoted:
                head, middle = head + b'"', b'"' + middle
        found.append(b"%b%b%b%b%b" % (head, piece, middle, encode(place[1]), tail))
    return Said(b"", found, b"")


class Said(NamedTuple):
    """Payloads that differ in their middle alone."""

    head: bytes
    pieces: list[bytes]
    tail: bytes

    def payloads(self) -> list[bytes]:
        """Each of them."""
        head, pieces, tail = self
        return [head + piece + tail for piece in pieces] if head or tail else pieces

    def framed(self, frame: Callable[[bytes], bytes], frames: Callable[[list[bytes]], bytes]) -> bytes:
        """All of them in frames, one behind the other. `frame` puts something in front of a payload that depends on its
        length alone, and `frames` does that to each of several."""
        head, pieces, tail = self
        first = head + pieces[0] + tail
        one = frame(first)
        if len(pieces) == 1:
            return one
        sizes = list(map(len, pieces))
        if not head or sizes.count(sizes[0]) != len(sizes):
            return frames(self.payloads())
        before = one[: len(one) - len(first)] + head
        return b"%b%b%b" % (before, (tail + before).join(pieces), tail)


def answers(format: Format, refs: list[Ref], delivered: Sequence[int | None]) -> Said:
    """The answers to a row: Ok(ref, delivered) each."""
    pieces = _in_json(refs) if format == "json" else list(map(_PACK, refs))
    if delivered.count(delivered[0]) == len(delivered):
        head, tail = _around_ok(format, delivered[0])
        return Said(head, pieces, tail)
    around = [_around_ok(format, count) for count in delivered]
    return Said(b"", [head + piece + tail for piece, (head, tail) in zip(pieces, around, strict=True)], b"")


_JSON_LINES: Final = msgspec.json.Encoder().encode_lines
_PACK: Final = msgspec.msgpack.Encoder().encode
_ENCODERS: Final[dict[Format, Callable[[Any], bytes]]] = {"json": msgspec.json.Encoder().encode, "messagepack": _PACK}


def _in_json(data: list[Any]) -> list[bytes]:
    # JSON has no line end within a value, and one call is far cheaper than one for each
    return _JSON_LINES(data).split(b"\n")[: len(data)]


@lru_cache(maxsize=512)
def _around(format: Format, channel: bytes, sender: str | None, binary: bool) -> tuple[bytes, bytes]:
    """What stands before and behind the data of a message."""
    encode = _ENCODERS[format]
    return _parted(*(encode(_message(channel, sender, binary, digit)) for digit in (0, 1)))


@lru_cache(maxsize=512)
def _around_numbered(
    format: Format, channel: bytes, sender: str | None, binary: bool, epoch: str
) -> tuple[bytes, bytes, bytes]:
    """What stands before its data, between that and its offset, and behind it."""
    encode = _ENCODERS[format]
    base, data, offset = (
        encode(_message(channel, sender, binary, digit, (epoch, number))) for digit, number in ((0, 0), (1, 0), (0, 1))
    )
    head, _ = _parted(base, data)
    before, tail = _parted(base, offset)
    return head, before[len(head) + 1 :], tail


def _message(channel: bytes, sender: str | None, binary: bool, digit: int, place: Place | None = None) -> Message:
    """With a number for its data, which is one byte in either format."""
    epoch, offset = place or (None, None)
    data: Any = {"data64" if binary else "data": digit}
    return Message(from_=sender, epoch=epoch, offset=offset, **channel_fields(channel), **data)


@lru_cache(maxsize=512)
def _around_ok(format: Format, delivered: int | None) -> tuple[bytes, bytes]:
    """What stands before and behind the `ref` of an answer."""
    one, other = (_ENCODERS[format](Ok(ref=digit, delivered=delivered)) for digit in (0, 1))
    return _parted(one, other)


def _parted(one: bytes, other: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the one byte in which these differ: a 0, and a 1."""
    at = next(at for at, (this, that) in enumerate(zip(one, other, strict=True)) if this != that)
    return one[:at], one[at + 1 :]
