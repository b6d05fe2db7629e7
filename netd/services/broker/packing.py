"""Messages compressed on their way out (permessage-deflate, RFC 7692). Pure.

    Packed     an encoder: what another encoder says, compressed once for all who agreed on the same
    Packing    an outbox: what waits is as it was, and is compressed for this client as it leaves

Rules:
- without context takeover a compressed message stands alone: it may be shared, dropped and overtaken like any other;
- with it, a message is to be read after exactly those that were compressed before it. Which these are is known only
  when they leave: what still waits may yet be dropped, or overtaken by something urgent;
- a message that gets no smaller, or is below `least` bytes, is sent as it is, which the RFC leaves open for each
  (section 6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.hub.encoding import encoded
from netd.hub.outbox import Outbox
from netd.wire.websocket import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.hub.batch import Batch
    from netd.hub.outbox import Flusher, OutboxOwner, OutboxRules, Shared
    from netd.hub.session import Encoder
    from netd.wire.deflate import Compressor
    from netd.wire.messages import Event


class Least:
    """Below how many bytes a message is sent as it is; one object for all, so that a reload changes it."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 128


def packed(chunk: bytes, compressor: Compressor, least: int) -> bytes:
    """A frame, compressed. What is no single frame of a message comes back as it is."""
    short = chunk[1]
    start = 2 if short < 126 else 4 if short == 126 else 10
    size = short if short < 126 else int.from_bytes(chunk[2:start])
    if size < least or chunk[0] & 0x08 or start + size != len(chunk):
        return chunk
    smaller = frame(chunk[0] & 0x0F, compressor.message(chunk[start:]), compressed=True)
    return smaller if compressor.takeover or len(smaller) < len(chunk) else chunk


class Packed:
    """One for each encoder and each way to compress."""

    def __init__(self, inner: Encoder, compressor: Compressor, least: Least) -> None:
        self.inner = inner
        self.compressor = compressor
        self._least = least
        self._last: tuple[bytes | None, bytes | None] = None, None

    def encode(self, event: Event) -> bytes | None:
        data = self.inner.encode(event)
        if data is None:
            return None
        # sessions that do not hear themselves ask for the same one after another
        if self._last[0] is not data:
            self._last = data, packed(data, self.compressor, self._least.size)
        return self._last[1]

    def encode_many(self, batch: Batch) -> bytes:
        """What is short is sent as it is, each of them: thousands may come at once."""
        least, inner = self._least.size, self.inner
        many = getattr(inner, "bodies", None)
        pieces: list[bytes]
        if many is not None:
            opcode, bodies = many(batch)
            if max(map(len, bodies)) < least:
                return batch.encoded(inner)[0]
            pieces = [frame(opcode, body) for body in bodies]
        else:
            pieces = [encoded(inner, each.event()) or b"" for each in batch.publications()]
        return b"".join([packed(piece, self.compressor, least) if piece else b"" for piece in pieces])


class Packing(Outbox):
    """For one session."""

    __slots__ = ("_compressor", "_least")
    joins = False

    def __init__(
        self, rules: OutboxRules, flusher: Flusher, owner: OutboxOwner, compressor: Compressor, least: Least
    ) -> None:
        super().__init__(rules, flusher, owner)
        self._compressor = compressor
        self._least = least

    def take(self, limit: int, now: float) -> list[bytes]:
        before = self.size
        chunks = [packed(chunk, self._compressor, self._least.size) for chunk in super().take(limit, now)]
        if self.size and sum(map(len, chunks)) == before:
            # who sends so many bytes would take it for all that there was
            self.flusher.mark(self)
        return chunks


class Singly:
    """A flusher for such outboxes: each is asked by itself for what it has, and no crowd is served past them."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher

    def mark(self, outbox: Outbox) -> None:
        self._flusher.mark(outbox)

    def mark_crowd(self, outboxes: Sequence[Any], alone: Shared) -> None:
        for outbox in outboxes:
            self._flusher.mark(outbox)

    def settle(self) -> None:
        self._flusher.settle()

    def send_at_once(self, outboxes: list[Outbox], data: bytes, messages: int) -> list[Outbox]:
        return outboxes
