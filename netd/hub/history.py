"""What was said: the history of every channel that has one, with epochs and offsets. Pure: `now` is wall-clock seconds.

Rules:
- a channel's messages are numbered from 1 without a hole; its epoch is a random text made with its history. A position
  (epoch, offset) can be gone on from as long as the epoch is the same and every later message is still there;
- a message leaves by its channel's size, by its age, or because all histories together are above `limit` bytes: then
  the channel with the most bytes (within a factor of two, so that finding it costs nothing) loses its oldest;
- a channel that has no messages and no subscribers is remembered for `grace` seconds, so that who comes back to a quiet
  channel has missed nothing; then its epoch is gone, and a later one is another;
- past `max_channels` an empty channel is forgotten first, then the one that was quiet longest.
"""

from __future__ import annotations

import heapq
import secrets
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from netd.hub.permissions import Refusal
from netd.wire import plain
from netd.wire.messages import Message, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netd.hub.config import Namespace

OVERHEAD = 250
"""Bytes that a kept message takes besides its data."""


def measure(data: Any) -> int:
    """Bytes of a message's data: UTF-8 for text, JSON for a value. Raises Refusal for what has no wire form."""
    kind = type(data)
    if kind is bytes:
        return len(data)
    try:
        if kind is str:
            return len(data) if data.isascii() else len(data.encode())
        plain.check(data)
        return len(msgspec.json.encode(data))
    except ValueError as error:
        raise Refusal("invalid", f"cannot send this data: {str(error)[:200]}") from None


class Packed(bytes):
    """A value as MessagePack: in memory the value itself may take fifty times as much, and nothing would bound it."""

    __slots__ = ()


def packed(data: Any) -> Any:
    """Data as it is kept."""
    return data if isinstance(data, str | bytes) else Packed(msgspec.msgpack.encode(data))


class Publication(Struct):
    """One message for a channel. `sender` is a session's id, None for the server side; `time` in wall-clock seconds."""

    channel: bytes
    data: Any
    sender: str | None = None
    priority: int = 128
    ephemeral: bool = False
    time: float = 0.0
    offset: int | None = None
    epoch: str | None = None
    delivered: int = 0
    under_way: bool = False
    """The backplane has it, and delivers it later: nobody knows yet to how many."""
    weight: int = 0
    """Bytes of memory it counts for while it is kept."""

    def kept(self) -> Publication:
        """As a history keeps it."""
        data = packed(self.data)
        return structs.replace(self, data=data, weight=sys.getsizeof(data) + OVERHEAD)

    def taken(self) -> Publication:
        """As it was before it was kept."""
        data = self.data
        return structs.replace(self, data=msgspec.msgpack.decode(data)) if isinstance(data, Packed) else self

    @property
    def least(self) -> int:
        """Bytes that it takes on the wire, at least; for one that is kept."""
        data = self.data
        # a float has nine bytes as it is kept, and may have three digits in JSON
        return len(data) // 3 if isinstance(data, Packed) else len(data) if isinstance(data, str | bytes) else 0

    def event(self) -> Message:
        """What its subscribers are sent."""
        # every keyword by itself: merging channel_fields and data_fields takes as long as all the rest
        data: Any = self.data
        binary: bytes | UnsetType = UNSET
        if isinstance(data, bytes):
            data, binary = (msgspec.msgpack.decode(data), UNSET) if isinstance(data, Packed) else (UNSET, data)
        channel: str | UnsetType
        channel64: bytes | UnsetType
        try:
            channel, channel64 = self.channel.decode(), UNSET
        except UnicodeDecodeError:
            channel, channel64 = UNSET, self.channel
        return Message(
            channel=channel,
            channel64=channel64,
            from_=self.sender,
            data=data,
            data64=binary,
            offset=self.offset,
            epoch=self.epoch,
        )


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a channel's history. `epoch` and `offset` are the channel's own, now.

    `messages` may be as they are kept (see `Publication.taken`): all of them unpacked at once could take a lot.
    """

    epoch: str
    offset: int
    messages: list[Publication]
    complete: bool
    """These are all the messages after the position that was asked for."""


class ChannelHistory:
    """One channel's messages."""

    __slots__ = ("due", "entries", "epoch", "name", "offset", "quiet", "size")

    def __init__(self, name: bytes, epoch: str | None = None, offset: int = 0) -> None:
        self.name = name
        self.epoch = epoch or secrets.token_urlsafe(8)
        self.offset = offset
        """Of the newest message there ever was."""
        self.entries: deque[Publication] | None = None
        self.size = 0
        self.due: float | None = None
        """When it has to be looked at, if it has to be."""
        self.quiet: float | None = None
        """Since when it has neither messages nor subscribers; None: it has, or nobody has looked yet."""

    def keep(self, publication: Publication) -> None:
        """Put a message behind the others, already `kept`; `size` is the caller's."""
        if self.entries is None:
            self.entries = deque()
        self.entries.append(publication)

    def after(self, offset: int) -> list[Publication]:
        """The messages kept after an offset."""
        if not self.entries:
            return []
        return list(islice(self.entries, max(0, offset + 1 - (self.entries[0].offset or 0)), None))


class Histories:
    """The histories of all channels.

    `rules` gives a channel's namespace, `in_use` whether anyone is subscribed to it.
    """

    def __init__(self, rules: Callable[[bytes], Namespace], in_use: Callable[[bytes], bool]) -> None:
        self._rules = rules
        self._in_use = in_use
        self.limit = 0
        self.max_channels = 1
        self.grace = 0.0
        self.size = 0
        self.messages = 0
        self.evicted = 0
        """Messages lost to `limit` and `max_channels`."""
        self._channels: OrderedDict[bytes, ChannelHistory] = OrderedDict()
        """The one that was quiet longest first."""
        self._by_size: list[OrderedDict[bytes, ChannelHistory]] = [OrderedDict() for _ in range(64)]
        """By the bit length of their size."""
        self._dues: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._channels)

    def get(self, name: bytes) -> ChannelHistory | None:
        """The history of a channel, None where there is none."""
        return self._channels.get(name)

    def names(self) -> Iterable[bytes]:
        """The channels that have one."""
        return self._channels.keys()

    def all(self) -> Iterable[ChannelHistory]:
        """Every history there is."""
        return self._channels.values()

    def append(self, publication: Publication, now: float) -> None:
        """Number a message and keep it, if its namespace keeps messages."""
        rules = self._rules(publication.channel)
        if not rules.history_size or publication.ephemeral:
            return
        history = self._channel(publication.channel, now)
        self._channels.move_to_end(publication.channel)
        history.offset += 1
        publication.offset = history.offset
        publication.epoch = history.epoch
        kept = publication.kept()
        history.keep(kept)
        self.messages += 1
        self._resize(history, kept.weight)
        while history.entries and len(history.entries) > rules.history_size:
            self._drop(history)
        if rules.history_seconds:
            self._schedule(history, publication.time + rules.history_seconds)
        if self.size > self.limit:
            self._shrink(now)

    def position(self, name: bytes, now: float) -> Position | None:
        """Where a channel's history is now; None where its namespace keeps none."""
        if not self._rules(name).history_size:
            return None
        history = self._channel(name, now)
        if not self._in_use(name) and not history.entries:
            self._await_end(history, now)
        return Position(history.epoch, history.offset)

    def page(self, name: bytes, since: Position | None, limit: int, now: float) -> Page | None:
        """At most `limit` messages: the first after `since`, or the newest. None where none are kept.

        From a position of another epoch the oldest messages there are follow, and the page is not complete.
        """
        if self.position(name, now) is None:
            return None
        history = self._channels[name]
        self._expire(history, self._rules(name), now)
        if since is None:
            found = history.after(max(0, history.offset - limit)) if limit else []
            return Page(history.epoch, history.offset, found, len(found) == history.offset)
        known = since.epoch == history.epoch and since.offset <= history.offset
        start = since.offset if known else 0
        found = history.after(start)
        complete = known and len(found) == history.offset - start and len(found) <= limit
        return Page(history.epoch, history.offset, found[:limit], complete)

    def left(self, name: bytes, now: float) -> None:
        """The last subscriber of a channel has gone."""
        history = self._channels.get(name)
        if history is not None and not history.entries:
            history.quiet = now  # whatever it was before someone came
            self._await_end(history, now)

    def sweep(self, now: float) -> None:
        """Forget what is too old, and channels that are remembered for nothing. Costs nothing for any other."""
        while self._dues and self._dues[0][0] <= now:
            due, name = heapq.heappop(self._dues)
            history = self._channels.get(name)
            if history is None or history.due != due:
                continue  # it was forgotten meanwhile
            history.due = None
            rules = self._rules(name)
            self._expire(history, rules, now)
            if history.entries:
                if rules.history_seconds:
                    self._schedule(history, history.entries[0].time + rules.history_seconds)
            elif not self._in_use(name):
                if history.quiet is not None and history.quiet + self.grace <= now:
                    self._forget(history)
                else:
                    self._await_end(history, now)

    def configure(self, *, limit: int, max_channels: int, grace: float, now: float) -> None:
        """New bounds, and maybe new namespaces: what they do not allow is gone at once."""
        self.limit, self.max_channels, self.grace = limit, max_channels, grace
        self._dues = []
        for history in list(self._channels.values()):
            history.due = None
            rules = self._rules(history.name)
            if not rules.history_size:
                self._forget(history)
                continue
            while history.entries and len(history.entries) > rules.history_size:
                self._drop(history)
            self._expire(history, rules, now)
            if history.entries:
                if rules.history_seconds:
                    self._schedule(history, history.entries[0].time + rules.history_seconds)
            elif not self._in_use(history.name):
                self._await_end(history, now)
        self._shrink(now)
        while len(self._channels) > self.max_channels:
            self._make_place()

    def replace(self, histories: Iterable[ChannelHistory]) -> None:
        """Have these in place of what there is; `configure` has to follow."""
        self.size = self.messages = 0
        self._channels.clear()
        self._by_size = [OrderedDict() for _ in self._by_size]
        for history in histories:
            self._channels[history.name] = self._by_size[0][history.name] = history
            self.messages += len(history.entries or ())
            self._resize(history, sum(entry.weight for entry in history.entries or ()))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _channel(self, name: bytes, now: float) -> ChannelHistory:
        history = self._channels.get(name)
        if history is None:
            while len(self._channels) >= self.max_channels:
                self._make_place()
            history = self._channels[name] = self._by_size[0][name] = ChannelHistory(name)
        return history

    def _make_place(self) -> None:
        """Forget a channel: one that is empty, or the one that was quiet longest."""
        history = next(iter((self._by_size[0] or self._channels).values()))
        self.evicted += len(history.entries or ())
        self._forget(history)

    def _forget(self, history: ChannelHistory) -> None:
        while history.entries:
            self._drop(history)
        del self._channels[history.name]
        del self._by_size[0][history.name]

    def _drop(self, history: ChannelHistory) -> None:
        """Let go of the oldest message."""
        if history.entries:
            self._resize(history, -history.entries.popleft().weight)
            self.messages -= 1
        if not history.entries:
            history.entries = None
            history.quiet = None

    def _expire(self, history: ChannelHistory, rules: Namespace, now: float) -> None:
        if rules.history_seconds:
            while history.entries and history.entries[0].time + rules.history_seconds <= now:
                self._drop(history)

    def _shrink(self, now: float) -> None:
        """Come down to the limit: the largest lose their oldest messages."""
        while self.size > self.limit:
            largest = next(members for members in reversed(self._by_size) if members)
            history = next(iter(largest.values()))
            self._drop(history)
            self.evicted += 1
            if not history.entries and not self._in_use(history.name):
                self._await_end(history, now)

    def _resize(self, history: ChannelHistory, change: int) -> None:
        before = history.size.bit_length()
        history.size += change
        self.size += change
        after = history.size.bit_length()
        if before != after:
            del self._by_size[before][history.name]
            self._by_size[after][history.name] = history

    def _await_end(self, history: ChannelHistory, now: float) -> None:
        """It is quiet: remember it until `grace` has gone by since it became so."""
        if history.quiet is None:
            history.quiet = now
        self._schedule(history, history.quiet + self.grace)

    def _schedule(self, history: ChannelHistory, due: float) -> None:
        """Have `sweep` look at a history; what has to be looked at earlier already is."""
        if history.due is not None:
            return
        history.due = due
        heapq.heappush(self._dues, (due, history.name))
        if len(self._dues) > 2 * len(self._channels) + 64:  # of channels that were forgotten before they were due
            self._dues = [(each.due, each.name) for each in self._channels.values() if each.due is not None]
            heapq.heapify(self._dues)
