"""Messages that one session publishes to one channel in a row: what is done once for all of them is. Pure.

Rules:
- each is what a `Publication` of its own would be: checks, rates, history, offsets, counts and who is reached are the
  same, and a session that cannot take them all is given them one by one;
- an encoder that can (`encode_many`) says them all in one chunk, and one that tells nothing but the data takes the
  payloads as they came;
- for the others, for histories and for whoever waits for a channel, there are the publications, made when asked for.

Left out: what is of one message alone (priorities, answers): whoever wants that publishes it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.hub.encoding import encoded
from netd.hub.history import Publication
from netd.hub.outbox import Chunk

if TYPE_CHECKING:
    from netd.hub.encoding import Encoder
    from netd.hub.outbox import Outbox


class Batch:
    """`payloads` are UTF-8 where they are `text`; `sender` is a session's id, `time` in wall-clock seconds.

    `last`: its sender has said nothing after it yet, so that nothing is lost by telling of it at once.
    """

    __slots__ = ("_publications", "_told", "channel", "last", "payloads", "sender", "text", "time")

    def __init__(
        self,
        channel: bytes,
        payloads: list[bytes],
        text: bool,
        sender: str | None,
        time: float,
        last: bool = False,
    ) -> None:
        self.channel = channel
        self.payloads = payloads
        self.text = text
        self.sender = sender
        self.time = time
        self.last = last
        self._publications: list[Publication] | None = None
        self._told: tuple[Encoder, list[bytes], int] | None = None
        """What the last encoder that was asked for each said, and the bytes of all that."""

    def __len__(self) -> int:
        return len(self.payloads)

    def publications(self) -> list[Publication]:
        """The messages, each by itself: the same objects every time, so that they may be numbered."""
        found = self._publications
        if found is None:
            sender, time, channel = self.sender, self.time, self.channel
            found = self._publications = [
                Publication(channel, payload.decode() if self.text else payload, sender, time=time)
                for payload in self.payloads
            ]
        return found

    def encoded(self, encoder: Encoder) -> tuple[bytes, int]:
        """As complete bytes for the wire, one message behind the other, and how many they are: all, or none if this
        encoder has no way to say it, or not in one chunk (`push` has)."""
        encode_many = getattr(encoder, "encode_many", None)
        if encode_many is None:
            return b"", 0
        count = len(self.payloads)
        data: bytes = encode_many(self)
        return (Chunk.of(data, ephemeral=False, messages=count) if count > 1 else data), count

    def push(self, outbox: Outbox) -> int:
        """Have them wait in an outbox, each by itself. Returns how many it took in."""
        encoder, told = outbox.encoder, self._told
        if told is None or told[0] is not encoder:
            pieces = [data for each in self.publications() if (data := encoded(encoder, each.event()))]
            told = self._told = encoder, pieces, sum(map(len, pieces))
        _, pieces, size = told
        if pieces and outbox.size + size <= outbox.rules.bound:
            return len(pieces) if outbox.push_many(pieces, len(pieces)) else 0
        taken = 0
        for data in pieces:
            if outbox.push(data):
                taken += 1
            elif outbox.rules.bound < 0:
                break  # it takes nothing in any more
        return taken
