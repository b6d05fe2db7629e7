"""WebSocket frames (RFC 6455): bytes -> whole messages and back, sans-IO, both sides of a connection.

    decoder = Decoder(limits, masked=True)           a server's; masked=False is a client's
    for event in decoder.receive(chunk):             Messages | Ping | Pong | Close
    if decoder.error:  the peer broke a rule; every event before it was returned; send close(error.close), then end

Rules:
- one call takes all that a read brought. Whole messages that follow each other and are of one kind are one event,
  `Messages`: what a batch costs is paid once for the batch;
- a text message is given as its bytes, checked to be UTF-8: what speaks JSON reads bytes, what fans out sends bytes,
  and a str would be decoded only to be encoded again;
- bytes may be cut anywhere. Text is checked as it arrives: the first byte that cannot be UTF-8 ends the stream, also
  within a frame or a fragmented message that is not complete (compressed text: when the message is);
- a length is refused when it is read, before anything of it is held; memory grows with what arrived. Pieces are
  unmasked as they come and joined once; small ones gather in bytearrays;
- a length in more bytes than it takes is refused: section 5.2 says MUST, and no peer that is not trying something does;
- compressed messages may be a thousand times as long as what arrived: past `Limits.max_inflated` bytes of them a call
  hands over what it has, and leaves the rest of its bytes in `left`, to be given again once that was served;
- close codes 1012 to 1014 are taken besides those of section 7.4: IANA has registered them since, and we send 1013;
- after a Close, or with an `error`, what still arrives is ignored (section 1.4, 7.1.7);
- runs of frames of equal length are checked and split by C code, up to 64 at a time, as framing.py does. What is left
  to do for each is to unmask it: one XOR of two large ints, the mask made by multiplying the key (.3 us for 128 bytes).

Left out: the handshake (upgrade.py), compression itself (deflate.py), answering pings and closes, and when to close.
"""

from __future__ import annotations

from codecs import utf_8_decode
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from netd.errors import ProtocolError
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netd.wire.deflate import Decompressor

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of the longest message by default, inclusive, decompressed."""
MAX_FRAGMENTS = 64 * 1024
"""Frames of one message by default: the longest in fragments of 64 bytes. Empty ones could go on for ever."""
MAX_CONTROL: Final = 125
"""Bytes of a control frame's payload, section 5.5."""
NO_CODE: Final = 1005
"""The code of a Close that carries none, section 7.1.5; never sent."""

_FINAL, _RSV1, _RSV, _MASKED = 0x80, 0x40, 0x70, 0x80
_TEXTS, _BINARIES = _FINAL | TEXT, _FINAL | BINARY
"""The first byte of a message that is one frame and not compressed: nearly all are."""
_CLOSING = _FINAL | CLOSE
_SIMPLE = frozenset((_TEXTS, _BINARIES, _CLOSING))
_RUN, _WORTH, _TRIES = 64, 4, 4
"""As in framing.py: frames looked at together, at least and at most; how often a run may be shorter than that."""
_LONG = 1024
"""Bytes above which four strided translations unmask faster than ints."""
_SMALL, _GATHERED = 1024, 64 * 1024
"""Pieces below `_SMALL` bytes are gathered, into bytearrays of up to `_GATHERED` bytes."""

_length16 = Struct(">H").unpack_from
_length64 = Struct(">Q").unpack_from
_head7 = Struct(">BB").pack
_head16 = Struct(">BBH").pack
_head64 = Struct(">BBQ").pack
_int = int.from_bytes


@dataclass(slots=True)
class Messages:
    """Whole messages of one kind, in order: at least one. Text is valid UTF-8."""

    text: bool
    payloads: list[bytes]


@dataclass(slots=True)
class Ping:
    """To be answered with `frame(PONG, payload)` (section 5.5.2); when several came, answering the last is enough."""

    payload: bytes


@dataclass(slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The last event. `code` is 1005 where the frame carried none. Answer it with a close, unless ours was first."""

    code: int
    reason: str


Event: TypeAlias = Messages | Ping | Pong | Close


class Limits:
    """What decoders share, so that a reload changes it for live ones: from the next header that they read.

    A compressed message may be an eighth longer on the wire than `max_message`, for data that does not compress.
    """

    __slots__ = ("max_fragments", "max_frame", "max_inflated", "max_message")

    def __init__(
        self,
        max_message: int = MAX_MESSAGE,
        *,
        max_frame: int | None = None,
        max_fragments: int = MAX_FRAGMENTS,
        max_inflated: int | None = None,
    ) -> None:
        self.max_message = max_message
        self.max_frame = max_frame
        """Bytes of one frame's payload as it is on the wire; None: what the message may have."""
        self.max_fragments = max_fragments
        self.max_inflated = max_inflated
        """Bytes of compressed messages, decompressed, from which on a call takes no more; None: it takes all."""


class _Unfinished:
    """A message of which a frame, or the rest of one, is still to come. Pieces are unmasked."""

    __slots__ = ("compressed", "final", "fragments", "key", "left", "pieces", "size", "tail", "text")

    def __init__(self, text: bool, compressed: bool) -> None:
        self.text = text
        self.compressed = compressed
        self.final = False
        self.fragments = 0
        self.size = 0
        """Bytes of all frames so far, with what is `left` to come of the last one."""
        self.left = 0
        self.key = b""
        """The mask, turned so that it begins with the next byte; empty where there is none."""
        self.pieces: list[bytes | bytearray] = []
        self.tail = b""
        """The beginning of a character."""

    def begin(self, final: bool, size: int, key: bytes) -> None:
        self.final = final
        self.fragments += 1
        self.size += size
        self.left = size
        self.key = key

    def take(self, piece: bytes) -> None:
        """More of the present frame. Raises ProtocolError if it is not UTF-8 and should be."""
        if not piece:
            return
        size = len(piece)
        self.left -= size
        if key := self.key:
            piece = mask(piece, key)
            if turn := size & 3:
                self.key = key[turn:] + key[:turn]
        if self.text and not self.compressed and (self.tail or not piece.isascii()):
            text = self.tail + piece
            try:
                _, used = utf_8_decode(text, "strict", False)
            except UnicodeDecodeError as error:
                raise _not_utf8(error) from None
            self.tail = text[used:]
        pieces = self.pieces
        if size >= _SMALL or (self.final and not self.left):
            pieces.append(piece)
        elif pieces and isinstance(last := pieces[-1], bytearray) and len(last) < _GATHERED:
            last += piece
        else:
            pieces.append(bytearray(piece))

    def whole(self, inflate: Decompressor | None, most: int) -> bytes:
        """The message, when its last frame is complete."""
        payload = b"".join(self.pieces)
        if self.compressed and inflate is not None:
            payload = inflate.message(payload, most)
            if self.text:
                _check_text(payload)
        elif self.tail:
            raise ProtocolError("cannot take the text: it ends within a character", close=CloseCode.INVALID)
        return payload


class Decoder:
    """One for each connection and direction. `masked`: whether frames have to be (a server's peer, section 5.1).

    `inflate` is what permessage-deflate was agreed on with; without it a compressed message is an error.
    """

    __slots__ = ("_inflate", "_inflated", "_mask", "_message", "_raw", "closed", "error", "left", "limits")

    def __init__(self, limits: Limits, *, masked: bool, inflate: Decompressor | None = None) -> None:
        self.limits = limits
        self.error: ProtocolError | None = None
        """What ended the stream, None while all is well. Its `close` is 1002, 1007 or 1009."""
        self.closed = False
        """A Close was received."""
        self.left = b""
        """Bytes of the last call that it has not looked at: they are to be given again, before those that come next."""
        self._mask = _MASKED if masked else 0
        self._inflate = inflate
        self._raw = b""
        """The beginning of a header or of a control frame, at most 130 bytes."""
        self._message: _Unfinished | None = None
        self._inflated = 0
        """Bytes that this call has decompressed."""

    @property
    def inflates(self) -> bool:
        """Whether messages may come compressed."""
        return self._inflate is not None

    @property
    def buffered(self) -> int:
        """Bytes held of what is not complete; at most what a message may have, and a control frame."""
        message = self._message
        return len(self._raw) + (message.size - message.left if message is not None else 0)

    def receive(self, data: bytes) -> list[Event]:
        """The events that these bytes complete, in order. Never raises for what a peer sent. See `error` and `left`."""
        events: list[Event] = []
        if self._inflate is not None:
            self.left = b""
            self._inflated = 0
        if self.error is not None or self.closed:
            return events
        if self._raw:
            data = self._raw + data
            self._raw = b""
        try:
            at = 0
            message = self._message
            if (
                message is None
                and self._mask
                and 6 <= len(data) <= _LONG
                and data[0] in _SIMPLE
                and self._one(data, events)
            ):
                return events
            if message is not None and message.left:
                at = min(message.left, len(data))
                message.take(data[:at])
                if message.left:
                    return events
                if self._frame_ended(message, events):
                    self.left = data[at:]
                    return events
            at = self._split(data, at, events)
            if at < len(data):
                self._raw = data[at:]
        except ProtocolError as error:
            self.error = error
            self._message = None
        return events

    def _one(self, data: bytes, events: list[Event]) -> bool:
        """Take a read that is one whole frame, as most are of who is not in a hurry. False: it is not one, or one to be
        looked at more closely."""
        first, size, body, limits = data[0], data[1] ^ _MASKED, 6, self.limits
        if size == 126 and first != _CLOSING:
            (size,), body = _length16(data, 2), 8
            if size < 126:
                return False
        elif size > 125:
            return False
        if body + size != len(data) or size > limits.max_message or limits.max_frame is not None:
            return False
        payload = data[body:]
        if size:
            whole = _int(data[body - 4 :])
            bits, copies, over = _spread(size)
            payload = (whole ^ (whole >> bits) * copies >> over).to_bytes(size)
        if first == _BINARIES:
            events.append(Messages(False, [payload]))
        elif first == _TEXTS:
            _check_text(payload)
            events.append(Messages(True, [payload]))
        else:
            self._control(CLOSE, payload, events)
        return True

    def _split(self, data: bytes, at: int, events: list[Event]) -> int:
        """Take all frames from `at` on. Returns where something begins that has to wait for more bytes."""
        end = len(data)
        masked = self._mask
        extra = 4 if masked else 0
        limits = self.limits
        most = limits.max_message if limits.max_frame is None else min(limits.max_frame, limits.max_message)
        inside = self._message is not None
        kind = before = -1
        payloads: list[bytes] = []
        tries = _TRIES
        while at + 2 <= end:
            first = data[at]
            short = size = data[at + 1] ^ masked
            body = at + 2
            if size >= 126:
                if size > 127:
                    raise _broken("a frame that is not masked" if masked else "a masked frame")
                if first & 0x08:
                    raise _broken("a control frame of more than 125 bytes")
                body += 2 if size == 126 else 8
                if body > end:
                    self._check(first, 0)  # what can be said already is said
                    return at
                (size,) = (_length16 if size == 126 else _length64)(data, at + 2)
                if size < 126 or (short == 127 and size < 65536):
                    self._check(first, 0)
                    raise _broken(f"the length {size}, in more bytes than it takes")
            if (first != _TEXTS and first != _BINARIES) or inside or size > most:
                self._check(first, size)
                plain = False
            else:
                plain = True
            body += extra
            stop = body + size
            if plain and stop <= end:
                if first != kind:
                    kind = first
                    payloads = []
                    events.append(Messages(first == _TEXTS, payloads))
                if (short == before or before < 0) and tries and size <= _LONG:
                    stride = stop - at
                    run = (end - at) // stride
                    if run >= _WORTH:
                        if run > _RUN:
                            run = _RUN
                        got = _split_run(data, at, run, data[at : body - extra], size, extra)
                        run = len(got)
                        if run < _WORTH:
                            tries -= 1
                        if first == _BINARIES or b"".join(got).isascii():
                            payloads += got
                        else:
                            for payload in got:
                                _check_text(payload, events)
                                payloads.append(payload)
                        before = short
                        at += run * stride
                        continue
                before = short
                if not masked:
                    payload = data[body:stop]
                elif size <= _LONG:
                    whole = _int(data[body - 4 : stop])
                    bits, copies, over = _spread(size)
                    payload = (whole ^ (whole >> bits) * copies >> over).to_bytes(size)
                else:
                    payload = mask(data[body:stop], data[body - 4 : body])
                if first == _TEXTS:
                    _check_text(payload, events)
                payloads.append(payload)
                at = stop
                continue
            if body > end:
                return at
            if first & 0x08:
                if stop > end:
                    return at
                payload = data[body:stop]
                if masked and size:
                    whole = _int(data[body - 4 : stop])
                    bits, copies, over = _spread(size)
                    payload = (whole ^ (whole >> bits) * copies >> over).to_bytes(size)
                self._control(first & 0x0F, payload, events)
                if self.closed:
                    self._message = None
                    return end
            else:
                message = self._message
                if message is None:
                    message = self._message = _Unfinished(first & 0x0F == TEXT, bool(first & _RSV1))
                message.begin(bool(first & _FINAL), size, data[body - extra : body])
                message.take(data[body:stop])
                if message.left:
                    return end
                if self._frame_ended(message, events):
                    self.left = data[stop:]
                    return end
                inside = self._message is not None
            kind = before = -1
            at = stop
        return at

    def _check(self, first: int, size: int) -> None:
        """Whether a frame may begin like this here (sections 5.2, 5.4, 5.5), and be so long."""
        opcode = first & 0x0F
        message = self._message
        if first & _RSV and (
            first & _RSV != _RSV1 or self._inflate is None or opcode == CONTINUATION or opcode > BINARY
        ):
            raise _broken(f"reserved bits {first & _RSV:#04x}, in a frame of opcode {opcode:#x}")
        if opcode & 0x08:
            if opcode > PONG:
                raise _broken(f"the reserved opcode {opcode:#x}")
            if not first & _FINAL:
                raise _broken("a fragmented control frame")
            return
        if opcode > BINARY:
            raise _broken(f"the reserved opcode {opcode:#x}")
        if message is None:
            if opcode == CONTINUATION:
                raise _broken("a continuation of no message")
        elif opcode != CONTINUATION:
            raise _broken("a new message before the one before it ended")
        limits = self.limits
        if size >> 63:
            raise _broken(f"the length {size}: its first bit must be 0")
        most = limits.max_message
        if message.compressed if message is not None else first & _RSV1:
            most += (most >> 3) + 64
        longest = most if limits.max_frame is None else min(limits.max_frame, most)
        if size > longest:
            raise _too_large(f"a frame of {size} bytes: {longest} are allowed")
        if message is not None:
            if message.size + size > most:
                raise _too_large(f"a message of at least {message.size + size} bytes: {most} are allowed")
            if message.fragments >= limits.max_fragments:
                raise _too_large(f"a message of more than {limits.max_fragments} fragments")

    def _frame_ended(self, message: _Unfinished, events: list[Event]) -> bool:
        """True: this call has decompressed as much as it may."""
        if not message.final:
            return False
        self._message = None
        payload = message.whole(self._inflate, self.limits.max_message)
        if events and isinstance(last := events[-1], Messages) and last.text is message.text:
            last.payloads.append(payload)
        else:
            events.append(Messages(message.text, [payload]))
        if not message.compressed:
            return False
        self._inflated += len(payload)
        most = self.limits.max_inflated
        return most is not None and self._inflated >= most

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == PING:
            events.append(Ping(payload))
        elif opcode == PONG:
            events.append(Pong(payload))
        else:
            events.append(_close_event(payload))
            self.closed = True


def may_be_sent(code: int) -> bool:
    """Whether a close frame may carry this code: RFC 6455 section 7.4 and the IANA registry."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def mask(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask (section 5.3). `key` is 4 bytes, the first of them for the first byte."""
    size = len(payload)
    if size <= _LONG:
        _, copies, over = _spread(size)
        return (_int(payload) ^ (_int(key) * copies >> over) & ((1 << 8 * size) - 1)).to_bytes(size)
    masked = bytearray(payload)
    for at in range(4):
        # slices of a bytearray are taken and translated in half the time of those of bytes
        masked[at::4] = masked[at::4].translate(_xor_table(key[at]))
    return bytes(masked)


def frame(opcode: int, payload: bytes, *, key: bytes | None = None, compressed: bool = False) -> bytes:
    """One unfragmented frame; a client gives 4 unpredictable bytes as `key` (section 5.3: os.urandom).

    `compressed`: the payload is what deflate.py made of a message. Text has to be UTF-8, which is not looked at.
    Raises ProtocolError (origin "local") for a control frame of more than 125 bytes.
    """
    first = _FINAL | opcode | (_RSV1 if compressed else 0)
    if key is None:
        return _head(first, len(payload), 0) + payload
    return _head(first, len(payload), _MASKED) + key + mask(payload, key)


def frames(opcode: int, payloads: Sequence[bytes]) -> bytes:
    """Unmasked frames of one kind as one bytes object. Fastest when their lengths are equal."""
    if not payloads:
        return b""
    first = _FINAL | opcode
    if len(payloads) == 1:
        return _head(first, len(payloads[0]), 0) + payloads[0]
    sizes = list(map(len, payloads))
    if sizes.count(sizes[0]) == len(sizes):
        # join puts the header between all of them; the empty one makes it stand in front of the first as well
        return _head(first, sizes[0], 0).join([b"", *payloads])
    parts = [b""] * (2 * len(sizes))
    parts[::2] = [_head(first, size, 0) for size in sizes]
    parts[1::2] = payloads
    return b"".join(parts)


def close(code: int | None = None, reason: str = "", *, key: bytes | None = None) -> bytes:
    """A close frame (section 5.5.1); without a code it is empty.

    A reason of more than 123 bytes of UTF-8 is cut, at a character. Raises ProtocolError (origin "local") for a code
    that must not be sent.
    """
    if code is None or code == NO_CODE:
        return frame(CLOSE, b"", key=key)
    if not may_be_sent(code):
        raise ProtocolError(f"cannot close with code {code}: use 1000 or 3000 to 4999", origin="local")
    text = reason.encode(errors="replace")[: MAX_CONTROL - 2].decode(errors="ignore")
    return frame(CLOSE, code.to_bytes(2) + text.encode(), key=key)


def _head(first: int, size: int, masked: int) -> bytes:
    if size < 126:
        return _head7(first, masked | size)
    if first & 0x08:
        raise ProtocolError(f"cannot send a control frame of {size} bytes: 125 are allowed", origin="local")
    if size < 65536:
        return _head16(first, masked | 126, size)
    return _head64(first, masked | 127, size)


def _split_run(data: bytes, at: int, run: int, head: bytes, size: int, extra: int) -> list[bytes]:
    """The payloads of the frames from `at` on whose headers are all `head`: at least one, at most `run`."""
    stride = len(head) + extra + size
    columns, bits, copies, over, take = _run(head, size, extra, run)
    for j, column in columns:
        if data[at + j : at + run * stride : stride] != column[:run]:
            # what is left when the equal ones are stripped begins with the first other byte
            run -= len(data[at + j : at + run * stride : stride].lstrip(column[:1]))
    pieces: Sequence[bytes]
    if run == len(columns[0][1]):
        pieces = take(data, at)
    else:
        skip = len(head)
        pieces = [data[i + skip : i + stride] for i in range(at, at + run * stride, stride)]
    if not extra:
        return list(pieces)
    if over:
        return [((x := _int(piece)) ^ (x >> bits) * copies >> over).to_bytes(size) for piece in pieces]
    return [((x := _int(piece)) ^ (x >> bits) * copies).to_bytes(size) for piece in pieces]


@lru_cache(maxsize=256)
def _run(
    head: bytes, size: int, extra: int, count: int
) -> tuple[list[tuple[int, bytes]], int, int, int, Callable[[bytes, int], tuple[bytes, ...]]]:
    """What the headers of `count` such frames look like byte by byte, what unmasks and what takes key and payload.

    At most 3 KiB each and 256 of them, whatever lengths a peer thinks of. The last byte differs first, so it is first.
    """
    columns = [(j, head[j : j + 1] * count) for j in reversed(range(len(head)))]
    return columns, *_spread(size), Struct(f"{len(head)}x{extra + size}s" * count).unpack_from


@lru_cache(maxsize=256)
def _spread(size: int) -> tuple[int, int, int]:
    """For a key in front of `size` bytes, as one int: how to shift it out, multiply it all over, and cut what is over.

    The product has no carries, as the key has 32 bits and its copies are 32 bits apart. At most 1.1 KiB each.
    """
    words = -(-size // 4)
    return 8 * size, _int(b"\0\0\0\1" * (words + 1)), 8 * (4 * words - size)


@lru_cache(maxsize=256)
def _xor_table(byte: int) -> bytes:
    return bytes(i ^ byte for i in range(256))


def _check_text(payload: bytes, events: list[Event] | None = None) -> None:
    """Raise ProtocolError if it is not UTF-8; an event that would then hold no message is taken back."""
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError as error:
            if events and isinstance(last := events[-1], Messages) and not last.payloads:
                events.pop()
            raise _not_utf8(error) from None


@lru_cache(maxsize=64)
def _close_event(payload: bytes) -> Close:
    """Most are alike."""
    if not payload:
        return Close(NO_CODE, "")
    if len(payload) == 1:
        raise _broken("a close frame of 1 byte")
    (code,) = _length16(payload)
    if not may_be_sent(code):
        raise _broken(f"the close code {code}")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(error) from None


def _broken(what: str) -> ProtocolError:
    return ProtocolError(f"cannot take {what}", close=CloseCode.PROTOCOL)


def _too_large(what: str) -> ProtocolError:
    return ProtocolError(f"cannot take {what}", close=CloseCode.TOO_LARGE)


def _not_utf8(error: UnicodeDecodeError) -> ProtocolError:
    return ProtocolError(f"cannot take the text: it is not UTF-8 ({error.reason})", close=CloseCode.INVALID)
