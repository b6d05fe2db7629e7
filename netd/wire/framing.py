"""Length-prefixed frames: bytes -> payloads and back, sans-IO. Framed TCP, QUIC streams and workers share it.

    u32 big-endian length of the payload | payload            length 0 is a valid, empty frame
    "none": no lengths at all; every chunk is a payload as it comes

    decoder = FrameDecoder(limits)
    for payload in decoder.receive(chunk):  ...
    if decoder.error:  a length was too large; every frame before it was returned

Rules:
- bytes may be cut anywhere, also inside a length;
- memory grows with what arrived, never with what a length promises. An unfinished frame is a list of its pieces, joined
  once when it is complete; small pieces gather in bytearrays, so that a dribble costs neither a list entry a byte nor a
  copy of everything each time;
- a length above `limits.max_frame` ends the stream: the decoder has an `error` and returns nothing ever after, since
  what follows cannot be told from the payload that was refused;
- runs of equal lengths are checked and split by C code, up to 64 frames at a time: four strided slices compare all
  their lengths, one struct takes all their payloads (40 ns a frame; one by one they take 250).

Left out: what a payload means (messages.py, codecs.py, handshake.py), and when to close.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, Protocol

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_FRAME = 4 * 1024 * 1024
"""Bytes of the longest payload by default, inclusive."""
TOO_LARGE = 1009
"""Close code, RFC 6455 section 7.4.1."""

_LENGTH = Struct(">I")
_length_at = _LENGTH.unpack_from
_RUN = 64
"""Frames of equal length that are looked at together. More would gain little, and lose more when they are not equal."""
_WORTH = 4
"""Fewer are cheaper one by one."""
_TRIES = 4
"""How often a run may turn out shorter than that before the rest of a chunk is taken one by one."""
_SMALL, _GATHERED = 1024, 64 * 1024
"""Pieces below `_SMALL` bytes are gathered, into bytearrays of up to `_GATHERED` bytes."""


class FrameLimits:
    """What decoders share, so that a reload changes it for live ones: from the next length that they read.

    A frame whose length was read under the old limit is still completed.
    """

    __slots__ = ("max_frame",)

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame


class Framing(Protocol):
    """What FrameDecoder and NoFraming have in common. Give it bytes as they come."""

    error: ProtocolError | None
    """What ended the stream, None while all is well. Its `close` is 1009."""
    buffered: int
    """Bytes held of an unfinished frame; at most max_frame + 4."""

    def receive(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete, in order."""
        ...

    def relay(self, data: bytes) -> tuple[list[bytes], int]:
        """What `receive` would return, still framed, and how many frames it is.

        Every chunk is whole frames, so that whoever lets chunks wait may put others between them, or drop one.
        """
        ...

    def rest(self) -> bytes:
        """What was received and not returned, for another decoder to go on with. This one then holds nothing."""
        ...


class FrameDecoder:
    __slots__ = ("_need", "_pieces", "buffered", "error", "limits")

    def __init__(self, limits: FrameLimits) -> None:
        self.limits = limits
        self.error: ProtocolError | None = None
        self.buffered = 0
        self._pieces: list[bytes | bytearray] | None = None
        self._need = 0
        """Bytes of the unfinished frame in all, its length included; 0 while its length is not complete."""

    def receive(self, data: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        at = 0
        if self.buffered:
            at = self._lacking(data)
            if at > len(data):
                self._hold(data)
                return payloads
            if self.error is None:
                payloads.append(_payload(self._taken(), data[:at] if at < len(data) else data))
        if self.error is None:
            at, _ = self._split(data, at, payloads)
            if at < len(data):
                self._keep(data, at)
        return payloads

    def relay(self, data: bytes) -> tuple[list[bytes], int]:
        pieces: list[bytes | bytearray] = []
        at = count = 0
        if self.buffered:
            at = self._lacking(data)
            if at > len(data):
                self._hold(data)
                return [], 0
            if self.error is None:
                pieces = self._taken()
                count = 1
        if self.error is None:
            at, more = self._split(data, at, None)
            count += more
            if at < len(data):
                self._keep(data, at)
                data = data[:at]
        else:
            return [], 0
        if pieces:
            # a copy (5 us for 64 KiB): the pieces of one frame must not wait as chunks of their own
            pieces.append(data)
            data = b"".join(pieces)
        return ([data] if data else []), count

    def rest(self) -> bytes:
        return b"".join(self._taken()) if self.buffered else b""

    def _split(self, data: bytes, at: int, payloads: list[bytes] | None) -> tuple[int, int]:
        """Pass over the whole frames from `at` on: where they end, and how many they are."""
        most = self.limits.max_frame
        end = len(data)
        count = 0
        before = -1
        """The length before this one. At the beginning a run is tried for without two equal ones."""
        tries = _TRIES
        while at + 4 <= end:
            (size,) = _length_at(data, at)
            if size > most:
                self._refuse(size)
                break
            stride = size + 4
            stop = at + stride
            if stop > end:
                break
            if (size == before or before < 0) and tries and (run := (end - at) // stride) >= _WORTH:
                if run > _RUN:
                    run = _RUN
                b0, b1, b2, b3, take = _run(size, run)
                stop = at + run * stride
                if (
                    data[at + 3 : stop : stride] == b3
                    and data[at + 2 : stop : stride] == b2
                    and data[at + 1 : stop : stride] == b1
                    and data[at:stop:stride] == b0
                ):
                    if payloads is not None:
                        payloads += take(data, at)
                else:
                    for j, lengths in ((3, b3), (2, b2), (1, b1), (0, b0)):
                        # what is left when the equal ones are stripped begins with the first other length
                        run -= len(data[at + j : at + run * stride : stride].lstrip(lengths[:1]))
                    if run < _WORTH:
                        tries -= 1
                    stop = at + run * stride
                    if payloads is not None:
                        payloads += [data[i : i + size] for i in range(at + 4, stop + 4, stride)]
                count += run
            else:
                if payloads is not None:
                    payloads.append(data[at + 4 : stop])
                count += 1
            before = size
            at = stop
        return at, count

    def _lacking(self, data: bytes) -> int:
        """How many bytes the unfinished frame lacks, `data` not counted except for its length; past `data`: more."""
        if not self._need:
            head = b"".join(self._pieces or ()) + data[: 4 - self.buffered]
            if len(head) < 4:
                return 4 - self.buffered
            (size,) = _length_at(head)
            if size > self.limits.max_frame:
                self._refuse(size)
                return 0
            self._need = size + 4
        return self._need - self.buffered

    def _keep(self, data: bytes, at: int) -> None:
        """Hold the beginning of a frame, unless the stream has ended."""
        if self.error is not None:
            return
        piece = data[at:]  # `data` itself when at is 0
        self._pieces = [piece]
        self.buffered = len(piece)
        self._need = _length_at(piece)[0] + 4 if len(piece) >= 4 else 0

    def _hold(self, data: bytes) -> None:
        pieces = self._pieces
        if not data or pieces is None:
            return
        self.buffered += len(data)
        if len(data) >= _SMALL:
            pieces.append(data)
        elif isinstance(last := pieces[-1], bytearray) and len(last) < _GATHERED:
            last += data
        else:
            pieces.append(bytearray(data))

    def _taken(self) -> list[bytes | bytearray]:
        pieces, self._pieces = self._pieces or [], None
        self.buffered = self._need = 0
        return pieces

    def _refuse(self, size: int) -> None:
        self.error = ProtocolError(
            f"cannot take a frame of {size} bytes: max_frame is {self.limits.max_frame}", close=TOO_LARGE
        )
        self._taken()


class NoFraming:
    """No lengths: a stream of bytes, whose chunks are payloads. One above `max_frame` is cut into several."""

    __slots__ = ("buffered", "error", "limits")

    def __init__(self, limits: FrameLimits) -> None:
        self.limits = limits
        self.error: ProtocolError | None = None
        self.buffered = 0

    def receive(self, data: bytes) -> list[bytes]:
        most = self.limits.max_frame
        if len(data) > most:
            return [data[at : at + most] for at in range(0, len(data), most)]
        return [data] if data else []

    def relay(self, data: bytes) -> tuple[list[bytes], int]:
        return ([data], -(-len(data) // self.limits.max_frame)) if data else ([], 0)

    def rest(self) -> bytes:
        return b""


def frame(payload: bytes) -> bytes:
    """One payload with its length in front. Raises ProtocolError (origin "local") for what 32 bits cannot count."""
    return _head(len(payload)) + payload


def frames(payloads: Sequence[bytes]) -> bytes:
    """All of them, each with its length in front, as one bytes object. Fastest when their lengths are equal."""
    if not payloads:
        return b""
    sizes = list(map(len, payloads))
    if sizes.count(sizes[0]) == len(sizes):
        # join puts the length between all of them; the empty one makes it stand in front of the first as well
        return _head(sizes[0]).join([b"", *payloads])
    parts = [b""] * (2 * len(sizes))
    parts[::2] = map(_head, sizes)
    parts[1::2] = payloads
    return b"".join(parts)


def _head(size: int) -> bytes:
    try:
        return _LENGTH.pack(size)
    except struct_error:
        raise ProtocolError(f"cannot frame {size} bytes: a length has 32 bits", origin="local") from None


def _payload(pieces: list[bytes | bytearray], last: bytes) -> bytes:
    """The payload of a frame that came in pieces, without its length, in one copy."""
    views = [memoryview(piece) for piece in (*pieces, last)]
    skip = 4
    for at, view in enumerate(views):
        cut = min(skip, len(view))
        views[at] = view[cut:]
        skip -= cut
        if not skip:
            break
    return b"".join(views)


@lru_cache(maxsize=512)
def _run(size: int, count: int) -> tuple[bytes, bytes, bytes, bytes, Callable[[bytes, int], tuple[bytes, ...]]]:
    """What the lengths of `count` frames of `size` bytes look like byte by byte, and what takes their payloads.

    At most 2 KiB each and 512 of them, whatever lengths a peer thinks of.
    """
    b0, b1, b2, b3 = (bytes([byte]) * count for byte in _LENGTH.pack(size))
    return b0, b1, b2, b3, Struct(f"4x{size}s" * count).unpack_from
