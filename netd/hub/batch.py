"""Messages that one session publishes to one channel in a row: what is done once for all of them is. Pure.

Rules:
- each is what a `Publication` of its own would be: checks, rates, history, offsets, counts and who is reached are the
  same, and a session that cannot take them all is given them one by one;
- an encoder that can (`encode_many`) says them all in one chunk: one that tells nothing but the data takes the payloads
  as they came, one that speaks the message vocabulary what stands around them, too (`said`);
- for the others, for histories and for whoever waits for a channel, there are the publications, made when asked for.

Left out: what is of one message alone (priorities): whoever wants that publishes it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.hub.encoding import encoded
from netd.hub.history import Publication
from netd.hub.outbox import NORMAL_PRIORITY, Chunk
from netd.wire import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netd.hub.encoding import Encoder
    from netd.hub.outbox import Outbox
    from netd.wire.messages import Format
    from netd.wire.rows import Row, Said


class Batch:
    """A row, as it was read. `sender` is a session's id, `time` in wall-clock seconds.

    `last`: its sender has said nothing after it yet, so that nothing is lost by telling of it at once.
    """

    __slots__ = (
        "_counts",
        "_each",
        "_encoded",
        "_publications",
        "_said",
        "_told",
        "channel",
        "ephemeral",
        "last",
        "reached",
        "row",
        "sender",
        "time",
    )

    def __init__(
        self, row: Row, sender: str | None, time: float, last: bool = False, *, ephemeral: bool = False
    ) -> None:
        self.row = row
        self.channel = row.channel
        self.sender = sender
        self.time = time
        self.last = last
        self.ephemeral = ephemeral
        self.reached: int | None = None
        """How many outboxes took how many of the messages, in all; None: they were not delivered together."""
        self._publications: list[Publication] | None = None
        self._said: dict[Format, Said] = {}
        self._encoded: dict[int, tuple[bytes, int]] = {}
        """By the encoder's identity: they outlive the call that hands it out."""
        self._each: dict[int, list[bytes | None]] = {}
        """What they said of each by itself, the same way."""
        self._told: tuple[Encoder, list[bytes | None], list[bytes], int] | None = None
        """What the last encoder that was asked for each said, the same without what it did not say, and its bytes."""
        self._counts: list[int] | None = None
        """Outboxes to which they were pushed one by one, and that took each, but for those that took all."""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def text(self) -> bool:
        """Their payloads are text: all but bytes are."""
        return self.row.kind is not bytes

    @property
    def payloads(self) -> list[bytes]:
        """What they carry, as bytes: text as UTF-8, values as JSON."""
        return self.row.payloads

    def publications(self) -> list[Publication]:
        """The messages, each by itself: the same objects every time, so that they may be numbered."""
        found = self._publications
        if found is None:
            sender, time, channel, ephemeral = self.sender, self.time, self.channel, self.ephemeral
            found = self._publications = [
                Publication(channel, data, sender, NORMAL_PRIORITY, ephemeral, time) for data in self.row.data
            ]
        return found

    def places(self) -> list[rows.Place] | None:
        """The epoch and offset of each; None where they were not numbered."""
        found = self._publications
        if found is None or found[0].offset is None:
            return None
        return [(each.epoch or "", each.offset or 0) for each in found]

    def said(self, format: Format) -> Said:
        """Each in the message vocabulary, as it is when this is asked for first."""
        found = self._said.get(format)
        if found is None:
            found = self._said[format] = rows.written(format, self.row, self.sender, self.places())
        return found

    def encoded(self, encoder: Encoder) -> tuple[bytes, int]:
        """As complete bytes for the wire, one message behind the other, and how many they are: all, or none if this
        encoder has no way to say it, or not in one chunk (`push` has). The same object every time."""
        found = self._encoded.get(id(encoder))
        if found is None:
            encode_many = getattr(encoder, "encode_many", None)
            data, count = (b"", 0) if encode_many is None else (encode_many(self), len(self))
            if count > 1 and not isinstance(data, Chunk):
                data = Chunk.of(data, ephemeral=self.ephemeral, messages=count)
            found = self._encoded[id(encoder)] = data, count
        return found

    def each(self, encoder: Any) -> list[Any]:
        """What an encoder says of each by itself, None where it has no way to. It is kept, so for what many share."""
        found = self._each.get(id(encoder))
        if found is None:
            found = self._each[id(encoder)] = self._by_itself(encoder)
        return found

    def _by_itself(self, encoder: Any) -> list[bytes | None]:
        encode_each: Callable[[Batch], list[bytes | None]] | None = getattr(encoder, "encode_each", None)
        if encode_each is not None:
            return encode_each(self)
        return [encoded(encoder, each.event()) or None for each in self.publications()]

    def push(self, outbox: Outbox) -> int:
        """Have them wait in an outbox, each by itself. Returns how many it took in."""
        encoder, told, ephemeral = outbox.encoder, self._told, self.ephemeral
        if told is None or told[0] is not encoder:
            pieces = self._by_itself(encoder)
            some = [data for data in pieces if data]
            told = self._told = encoder, pieces, some, sum(map(len, some))
        _, pieces, some, size = told
        if self._counts is None:
            self._counts = [0] * len(self)
        counts, taken = self._counts, 0
        if size and outbox.size + size <= outbox.rules.bound and not ephemeral:
            if not outbox.push_many(some, len(some)):
                return 0
            if len(some) < len(pieces):  # or they count as what is taken whole
                for at, data in enumerate(pieces):
                    counts[at] += data is not None
            return len(some)
        for at, data in enumerate(pieces):
            if not data:
                continue
            if outbox.push(data, NORMAL_PRIORITY, ephemeral):
                taken += 1
                counts[at] += 1
            elif outbox.rules.bound < 0:
                break  # it takes nothing in any more
        return taken

    def delivered(self) -> Sequence[int | None]:
        """How many outboxes took each of them; None: it is under way."""
        if self.reached is None:
            return [None if each.under_way else each.delivered for each in self.publications()]
        counts = self._counts
        if counts is None:
            return [self.reached // len(self)] * len(self)
        whole = (self.reached - sum(counts)) // len(self)
        return [whole + count for count in counts]
