"""Who hears what: a session's subscriptions by channel, and what was left but may still be on its way.

    message       -> the channel's own subscription, and every pattern that matches
    joined, left  -> the channel's own
    any of these  -> nobody, if it can only be of a subscription that was left: until the daemon has answered that
                  -> else the user of the client (`take` and `witness` are False): the application may subscribe a
                     session, too

Left out: asking the daemon (session.py), and what one subscription makes of what it hears (subscription.py). A message
without an offset and of low priority may be told behind the answer (netd/wire/messages.py): that is the user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netd.client.subscription import PLACES
from netd.wire.messages import channel_of
from netd.wire.wildcards import matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.client.subscription import Subscription
    from netd.wire.messages import Error, Joined, Left, Message, Ok


class Leaving:
    """A subscription that was left, until the daemon has answered."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.over = trio.Event()
        self.error: Error | None = None
        """What the daemon has against it."""


class Subscriptions:
    """Of one session. A channel has one, and a pattern is the channel of its name."""

    def __init__(self) -> None:
        self._made: dict[bytes, Subscription] = {}
        self._patterns: list[Subscription] = []
        self._covering: dict[bytes, list[Subscription]] = {}
        """Of channels that were heard lately, the patterns that match."""
        self._leaving: dict[bytes, Leaving] = {}

    def __len__(self) -> int:
        return len(self._made)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(list(self._made.values()))

    def __contains__(self, channel: bytes) -> bool:
        return channel in self._made

    def holds(self, subscription: Subscription) -> bool:
        """Whether it is still the one of its channel."""
        return self._made.get(subscription.name) is subscription

    def get(self, channel: bytes) -> Subscription | None:
        return self._made.get(channel)

    # --- how they come and go -----------------------------------------------------------------------------------------

    def add(self, subscription: Subscription) -> None:
        self._made[subscription.name] = subscription

    def confirm(self, subscription: Subscription, ok: Ok) -> None:
        """The daemon has subscribed us."""
        if not self.holds(subscription):
            subscription.pattern = ok.pattern  # it was left meanwhile, and so are the channels that match
            return
        if (leaving := self._leaving.get(subscription.name)) is not None:
            self.left(leaving)  # the daemon was too busy for that, and need not do it any more
        before = subscription.pattern
        subscription.confirm(ok)
        if before or subscription.pattern:
            self._reroute()

    def drop(self, channel: bytes) -> Subscription | None:
        """Nobody is subscribed to it any more."""
        subscription = self._made.pop(channel, None)
        if subscription is not None and subscription.pattern:
            self._reroute()
        return subscription

    def leave(self, subscription: Subscription) -> Leaving:
        """The same, and the daemon will be asked to do so too."""
        self.drop(subscription.name)
        if (before := self._leaving.get(subscription.name)) is not None:
            subscription.pattern |= before.subscription.pattern  # what this brings may still be of that one
            self.left(before)
        leaving = self._leaving[subscription.name] = Leaving(subscription)
        return leaving

    def leaves(self, leaving: Leaving) -> bool:
        """Whether the daemon has yet to leave it."""
        return self._leaving.get(leaving.subscription.name) is leaving

    def was_left(self, channel: bytes) -> bool:
        """Whether what is said of its own subscription is of one that was left: the next is not confirmed yet."""
        return channel in self._leaving

    def left(self, leaving: Leaving, error: Error | None = None) -> None:
        """The daemon has answered."""
        if self.leaves(leaving):
            del self._leaving[leaving.subscription.name]
        leaving.error = error
        leaving.over.set()

    def suspend(self, subscription: Subscription) -> None:
        """The daemon took it away, and may give it again."""
        subscription.live = False
        self._reroute()

    def lost(self) -> None:
        """The connection is lost: the next one knows of none of them."""
        for subscription in self._made.values():
            subscription.live = False
        self._reroute()
        for leaving in list(self._leaving.values()):
            self.left(leaving)

    def _reroute(self) -> None:
        """A subscription with wildcards came or went."""
        self._patterns = [each for each in self._made.values() if each.pattern and each.live]
        self._covering.clear()

    # --- what they hear -----------------------------------------------------------------------------------------------

    def take(self, message: Message, size: int) -> bool:
        """False: it is for none of them, now or before."""
        channel = channel_of(message)
        own = self._made.get(channel)
        covering = self._cover(channel) if self._patterns else []
        # What a pattern brings before the daemon has confirmed the channel's own subscription is ahead of its place: it
        # comes once more there, after what was missed. And what one that was left still brings is not for the next.
        if own is not None and (own.live or (message.offset is None if covering else not self._late(channel))):
            own.take(message, size)
        for each in covering:
            each.take(message, size)
        return own is not None or bool(covering) or self._late(channel)

    def _cover(self, channel: bytes) -> list[Subscription]:
        """The patterns that match."""
        covering = self._covering.get(channel)
        if covering is None:
            if len(self._covering) >= PLACES:
                self._covering.clear()
            covering = self._covering[channel] = [each for each in self._patterns if matches(each.name, channel)]
        return covering

    def _late(self, channel: bytes) -> bool:
        """Whether a message of this channel may be of a subscription that was left."""
        if channel in self._leaving:
            return True
        left = (leaving.subscription for leaving in self._leaving.values())
        return any(each.pattern and matches(each.name, channel) for each in left)

    def witness(self, event: Joined | Left, size: int) -> bool:
        """False: the user of the client wants to know it, if anybody does."""
        channel = channel_of(event)
        if self.was_left(channel):
            return True
        own = self._made.get(channel)
        return own is not None and own.witness(event, size)

    def level(self, ok: Ok) -> None:
        """The daemon says where a channel is, after messages without offsets."""
        channel = channel_of(ok)
        if (own := self._made.get(channel)) is not None:
            own.level(channel, ok)
        for each in self._patterns:
            if matches(each.name, channel):
                each.level(channel, ok)
