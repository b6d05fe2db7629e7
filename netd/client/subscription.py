"""What one subscription has heard: every message once and in order, or a Gap.

Left out: asking for it, and for it again after a loss (session.py).
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import trio

from netd.client.inbox import Inbox
from netd.client.state import Place
from netd.errors import ClientError, NetdError
from netd.wire import messages
from netd.wire.messages import Position

if TYPE_CHECKING:
    from netd.client.session import Session

PLACES = 4096
"""Channels of which a subscription with wildcards knows the last offset, and of which it is known who hears them."""


@dataclass(frozen=True)
class Gap:
    """Messages of a channel were lost to this subscription: the daemon no longer had them, or never kept them."""

    channel: str | bytes
    epoch: str | None
    """The epoch that the channel's history has now; None: it keeps none."""
    missed: int | None = None
    """How many, where that is known."""


Item: TypeAlias = messages.Message | messages.Joined | messages.Left | Gap
"""What a Subscription yields: messages and gaps, and with `presence` who joined and left."""


class Subscription:
    """One channel, or all that match. An async iterator of Message and Gap (and, with `presence`, of Joined and Left).

    It ends when it is unsubscribed or the client is closed; if the daemon takes it away (the permission was withdrawn),
    iterating raises RequestFailed. As `async with` it unsubscribes at the end; leaving a loop over it does not. One
    that is read no more should be unsubscribed: what it holds counts, and past the bounds the others wait for it.
    """

    def __init__(self, session: Session, channel: bytes, place: Place, presence: bool, wild: bool = False) -> None:
        """`wild`: the daemon is to refuse it if it is no pattern."""
        self._session = session
        self._inbox: Inbox[Item] = Inbox(session.account)
        self._place = place
        """Of a pattern, which has many (`_places`), only what it heard without offsets, in whatever channel."""
        self._read = Position(place.epoch, place.offset) if place.epoch is not None else None
        self._asked_before = place.known
        self._confirmed = trio.Event()
        self._presence = presence
        self._wild = wild
        self._places: OrderedDict[bytes, Place] = OrderedDict()
        self.name = channel
        self.pattern = False
        """Whether the daemon takes its name for a pattern, which stands for many channels."""
        self.live = False
        """Whether the daemon has confirmed it on this connection."""
        self.ref = 0
        """Of the request that asks for it, the last one."""
        self.begun = False
        """Whether the daemon has ever confirmed it."""
        self.error: NetdError | None = None

    @property
    def channel(self) -> str | bytes:
        """The channel's name: text where it is UTF-8."""
        return readable(self.name)

    @property
    def position(self) -> Position | None:
        """Behind the last message that was read here: give it to `subscribe` to go on from it.

        None: no history, or many.
        """
        return self._read

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Item:
        return self._note(await self._inbox.take())

    async def take_all(self, most: int = 1024) -> list[Item]:
        """All that is here, at least one. StopAsyncIteration at the end."""
        return [self._note(item) for item in await self._inbox.take_all(most)]

    async def unsubscribe(self) -> None:
        """Hear no more of it. What was not read is dropped."""
        await self._session.unsubscribe(self)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with suppress(ClientError):  # without a connection there is nothing to unsubscribe from
            await self.unsubscribe()

    def behind(self, item: Item, before: Position | None) -> Position | None:
        """The position after reading `item` at `before`."""
        if self.pattern:
            return None
        if isinstance(item, messages.Message) and item.offset is not None:
            epoch = item.epoch or self._place.epoch
            return Position(epoch, item.offset) if epoch is not None else None
        return None if isinstance(item, Gap) else before

    def _note(self, item: Item) -> Item:
        self._read = self.behind(item, self._read)
        return item

    # --- for the session ----------------------------------------------------------------------------------------------

    def request(self, ref: int) -> messages.Subscribe:
        recover = Position(self._place.epoch, self._place.offset) if self._place.epoch is not None else None
        fields = messages.channel_fields(self.name)
        return messages.Subscribe(**fields, ref=ref, recover=recover, pattern=self._wild)

    def confirm(self, ok: messages.Ok) -> None:
        """The daemon has subscribed us. What follows is new, or is what we missed."""
        counters = self._session.connection.counters
        self.live, self.pattern = True, ok.pattern
        if ok.pattern:
            self._place.move(None, None)
            self._places.clear()
            self._read = None
        if ok.recovered:
            counters.recovered += 1
        else:
            # a node that cannot see the history just now says no place, and that is no reason to forget ours: what we
            # have would be new to us once more as soon as it can
            if ok.epoch is not None:
                self._place.move(ok.epoch, ok.offset)
            if self._asked_before:
                counters.gaps += 1
                self._inbox.put(Gap(self.channel, ok.epoch), 0)
            elif ok.epoch is not None:
                self._read = Position(ok.epoch, ok.offset or 0)
        self._asked_before = self.begun = True
        self._confirmed.set()

    def take(self, message: messages.Message, size: int) -> None:
        counters = self._session.connection.counters
        place = self._place_in(messages.channel_of(message)) if self.pattern else self._place
        missed = place.admit(message.epoch, message.offset)
        had = message.origin is not None and self._place.repeats(message.origin, message.offset)
        if missed:
            counters.gaps += 1
            channel = readable(messages.channel_of(message))
            self._inbox.put(Gap(channel, place.epoch, missed if missed > 0 else None), 0)
        if missed is None or had:
            counters.duplicates += 1
        else:
            self._inbox.put(message, size)

    def level(self, channel: bytes, ok: messages.Ok) -> None:
        """The daemon says where the channel is, after messages without offsets: nothing was missed, unless it has
        another epoch."""
        if not self.live:
            return  # what was missed before that is still to come
        place = self._place_in(channel) if self.pattern else self._place
        if place.known and place.epoch != ok.epoch:
            self._session.connection.counters.gaps += 1
            self._inbox.put(Gap(readable(channel), ok.epoch), 0)
        place.reach(ok.epoch, ok.offset)
        if not self.pattern and not len(self._inbox) and place.epoch is not None:
            self._read = Position(place.epoch, place.offset)

    def _place_in(self, channel: bytes) -> Place:
        """Where it is in one of the channels of a pattern; those that were quiet longest are forgotten."""
        place = self._places.get(channel)
        if place is None:
            place = self._places[channel] = Place()
            if len(self._places) > PLACES:
                self._places.popitem(last=False)
        else:
            self._places.move_to_end(channel)
        return place

    def witness(self, event: messages.Joined | messages.Left, size: int) -> bool:
        if self._presence:
            self._inbox.put(event, size)
        return self._presence

    def end(self, error: NetdError | None, *, discard: bool = False) -> None:
        self.error = error
        self._inbox.end(error, discard=discard)
        self._confirmed.set()

    def discard(self) -> None:
        """It has ended, and nobody reads what is left."""
        self._inbox.end(discard=True)

    async def confirmed(self) -> None:
        await self._confirmed.wait()


def readable(channel: bytes) -> str | bytes:
    """A channel's name as people write it: text where it is UTF-8."""
    try:
        return channel.decode()
    except UnicodeDecodeError:
        return channel
