"""Subscriptions that name many channels: "room:a.*.c", "room:a.>". Pure.

Rules:
- a pattern is of one namespace, and matches channels of that one alone (wire/wildcards.py: how such names are read);
- it is no channel: nobody can publish to it, it has no history and no position, and who subscribes to it hears messages
  and is a member of none of the channels (no presence, no joined and left, not counted there);
- a session hears a message once, however many of its subscriptions match. While it waits to enter the channel itself
  (see channels.py) it hears nothing through patterns, as the message is held for it;
- who hears a channel is found once (a trie) and remembered until somebody comes or goes: a message for a channel that
  had one before costs no more than its receivers. What is remembered is bounded: past CACHED it is forgotten at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.channels import Channel
    from netd.hub.outbox import Outbox
    from netd.hub.permissions import Realm
    from netd.hub.session import Session

MAX_TOKENS = 16
"""Of a pattern, or finding the patterns of a channel could take long."""
CACHED = 50_000
"""Channels and their receivers that a namespace remembers."""


class Pattern:
    """A pattern that someone subscribes to."""

    __slots__ = ("_lent", "name", "realm", "subscribers")

    def __init__(self, name: bytes, realm: Realm) -> None:
        self.name = name
        self.realm = realm
        self.subscribers: dict[Session, Outbox] = {}
        self._lent = False

    def __len__(self) -> int:
        return len(self.subscribers)

    def lend(self) -> dict[Session, Outbox]:
        """Its subscribers, which do not change any more: what changes from now on is a copy."""
        self._lent = True
        return self.subscribers

    def add(self, session: Session) -> None:
        self._own()
        self.subscribers[session] = session.outbox

    def remove(self, session: Session) -> None:
        self._own()
        del self.subscribers[session]

    def _own(self) -> None:
        if self._lent:
            self.subscribers = dict(self.subscribers)
            self._lent = False


class _Node:
    __slots__ = ("after", "here", "rest")

    def __init__(self) -> None:
        self.after: dict[bytes, _Node] = {}
        self.here: Pattern | None = None
        self.rest: Pattern | None = None
        """The pattern that goes on with `>`."""

    @property
    def empty(self) -> bool:
        return not self.after and self.here is None and self.rest is None


class Patterns:
    """The patterns of one namespace. `skip` is how many bytes of each name are the namespace and its ":"."""

    def __init__(self, skip: int) -> None:
        self._skip = skip
        self._names: dict[bytes, Pattern] = {}
        self._root = _Node()
        self._seen: dict[bytes, dict[Session, Outbox] | None] = {}
        self._weight = 0

    def __len__(self) -> int:
        return len(self._names)

    def get(self, name: bytes) -> Pattern | None:
        """The pattern of this name, None where nobody subscribes to it."""
        return self._names.get(name)

    def all(self) -> Iterable[Pattern]:
        """Every pattern there is."""
        return self._names.values()

    def put(self, pattern: Pattern) -> None:
        """One more pattern."""
        self._names[pattern.name] = pattern
        node = self._root
        *tokens, last = self._tokens(pattern.name)
        for token in tokens:
            node = node.after.setdefault(token, _Node())
        if last == b">":
            node.rest = pattern
        else:
            node.after.setdefault(last, _Node()).here = pattern
        self.changed()

    def drop(self, name: bytes) -> None:
        """Forget a pattern."""
        del self._names[name]
        *tokens, last = self._tokens(name)
        way = [self._root]
        for token in tokens:
            way.append(way[-1].after[token])
        if last == b">":
            way[-1].rest = None
        else:
            tokens.append(last)
            way.append(way[-1].after[last])
            way[-1].here = None
        while tokens and way.pop().empty:
            del way[-1].after[tokens.pop()]
        self.changed()

    def changed(self) -> None:
        """Somebody came to a pattern or left one."""
        self._seen.clear()
        self._weight = 0

    def forget(self, channel: bytes) -> None:
        """Somebody came to this channel or left it."""
        if channel in self._seen:
            self._weight -= _weight(self._seen.pop(channel))

    def audience(self, channel: bytes, place: Channel | None) -> dict[Session, Outbox] | None:
        """Who hears a channel, `place`'s subscribers first; None where no pattern matches. Not to be changed."""
        try:
            return self._seen[channel]
        except KeyError:
            found = self._audience(channel, place)
        weight = _weight(found)
        if self._weight + weight > CACHED:
            self.changed()
        self._weight += weight
        self._seen[channel] = found
        return found

    def _audience(self, channel: bytes, place: Channel | None) -> dict[Session, Outbox] | None:
        matching = sorted(self.matching(channel), key=_name)
        if not matching:
            return None
        if place is None and len(matching) == 1:
            return matching[0].lend()
        found: dict[Session, Outbox] = {}
        waiting: Iterable[Session] = ()
        if place is not None:
            found.update(place.subscribers)
            waiting = place.waiting or ()
        for pattern in matching:
            for session, outbox in pattern.subscribers.items():
                if session not in waiting:
                    found.setdefault(session, outbox)
        return found

    def reach(self, session: Session, channel: bytes) -> bool:
        """Whether a session hears a channel through a pattern."""
        return any(session in pattern.subscribers for pattern in self.matching(channel))

    def matching(self, channel: bytes) -> list[Pattern]:
        """The patterns that match a channel."""
        found: list[Pattern] = []
        level = [self._root]
        for token in self._tokens(channel):
            following: list[_Node] = []
            for node in level:
                if node.rest is not None:
                    found.append(node.rest)
                for key in (token, b"*") if token != b"*" else (token,):
                    if (after := node.after.get(key)) is not None:
                        following.append(after)
            level = following
            if not level:
                break
        found += [node.here for node in level if node.here is not None]
        return found

    def _tokens(self, name: bytes) -> list[bytes]:
        return name[self._skip :].split(b".")


def _name(pattern: Pattern) -> bytes:
    return pattern.name


def _weight(audience: dict[Session, Outbox] | None) -> int:
    return 1 + len(audience or ())
