"""Who may do what: namespaces, operations of no channel, and the rule that refuses. Pure.

Rules:
- a refusal names what was asked for and the configuration key that would have to say otherwise;
- "token" is met by a token that permits this operation on this channel; "nobody" by no token at all;
- `recover` is as `history` where nothing else is said, and a token's `history` permits it;
- a pattern takes what every channel that it could match takes: a token must permit all names that begin as it does
  before its first wildcard;
- a channel without a namespace is closed to clients. The server side may use it, under a namespace's defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.errors import ControlError, Denied
from netd.hub.config import Namespace
from netd.hub.patterns import Patterns
from netd.wire.messages import MAX_CHANNEL
from netd.wire.wildcards import is_wild, literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netd.hub.config import HubConfig, Who
    from netd.hub.patterns import Pattern
    from netd.hub.session import Session

_VERBS = {
    "subscribe": "subscribe to",
    "publish": "publish to",
    "presence": "see who is in",
    "history": "read the history of",
    "direct": "send to other sessions",
    "broadcast": "broadcast",
    "clients": "list the sessions",
    "application": "send to the application",
}


_OF_CHANNELS = ("subscribe", "publish", "presence", "history", "recover")
_KNOWN = 4096


class Refusal(ControlError):
    """What was asked for breaks a rule that is no permission. `code` is one of messages.ERROR_CODES."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Realm:
    """A namespace at work: its rules, where they stand, and what happened under them."""

    __slots__ = ("_skip", "delivered", "name", "open", "path", "patterns", "published", "refused", "rules")

    def __init__(self, rules: Namespace, path: str) -> None:
        self.rules = rules
        self.path = path
        """Its configuration key, "hub.namespace.0"."""
        self.name = rules.name
        self._skip = len(rules.name.encode()) + 1 if rules.name else 0
        self.open: frozenset[str] = frozenset()
        """What anyone may do in it; nothing in one that there is not."""
        self.patterns: Patterns | None = None
        """None where there are none: all that a message in a namespace without them looks at."""
        self.published = 0
        self.delivered = 0
        self.refused = 0

    def key(self, field: str) -> str:
        """What to write behind a refusal: the field's configuration key."""
        return f"({self.path}.{field})"

    def wild(self, name: bytes) -> bool:
        """Whether this name of the namespace is a pattern, and no channel."""
        # asked for every message: most names show at once that they are none
        return self.rules.wildcards and (b"*" in name or name.endswith(b">")) and is_wild(name[self._skip :])

    def literal(self, name: bytes) -> bytes:
        """What every channel that a pattern matches begins with."""
        return name[: self._skip] + literal(name[self._skip :])

    def pattern(self, name: bytes) -> Pattern | None:
        """The pattern of this name, where someone subscribes to it."""
        return None if self.patterns is None else self.patterns.get(name)

    def put(self, pattern: Pattern) -> None:
        """One more pattern is subscribed to."""
        if self.patterns is None:
            self.patterns = Patterns(self._skip)
        self.patterns.put(pattern)

    def drop(self, pattern: Pattern) -> None:
        """Nobody subscribes to this pattern any more."""
        if self.patterns is not None:
            self.patterns.drop(pattern.name)
            if not len(self.patterns):
                self.patterns = None

    def changed(self, channel: bytes) -> None:
        """Somebody came to a channel or left it."""
        if self.patterns is not None:
            self.patterns.forget(channel)


class Permissions:
    """What one configuration allows. `earlier` hands over what was counted for namespaces of the same name."""

    def __init__(self, config: HubConfig, earlier: Permissions | None = None) -> None:
        self._realms: dict[bytes, Realm] = {}
        self._nowhere = Realm(Namespace(name=""), "hub.namespace")
        self._known: dict[bytes, Realm] = {}
        """The realms of channels that were asked for lately: it is asked three times for each message."""
        self._operations: Mapping[str, Who] = {
            "direct": config.direct,
            "broadcast": config.broadcast,
            "clients": config.clients,
            "application": config.application,
        }
        for index, rules in enumerate(config.namespace):
            name = rules.name.encode()
            realm = self._realms[name] = Realm(rules, f"hub.namespace.{index}")
            realm.open = frozenset(operation for operation in _OF_CHANNELS if _who(rules, operation) == "anyone")
            if earlier is not None and (before := earlier._realms.get(name)) is not None:
                realm.published, realm.delivered, realm.refused = before.published, before.delivered, before.refused

    def realms(self) -> Iterable[Realm]:
        """Every namespace, in the order of the configuration."""
        return self._realms.values()

    def exists(self, realm: Realm) -> bool:
        """Whether this is a namespace of the configuration, and not what stands for those that are none."""
        return realm is not self._nowhere

    def realm(self, channel: bytes) -> Realm:
        """The namespace a channel is in; one with the defaults where there is none."""
        realm = self._known.get(channel)
        if realm is None:
            head, colon, _ = channel.partition(b":")
            realm = self._realms.get(head if colon else b"", self._nowhere)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[channel] = realm
        return realm

    def permits(self, session: Session, operation: str, channel: bytes) -> bool:
        """Whether the session may do this to a channel: subscribe, publish, presence, history or recover."""
        realm = self.realm(channel)
        if operation in realm.open:
            return True
        if _who(realm.rules, operation) != "token" or realm is self._nowhere:
            return False
        if operation == "recover":
            operation = "history"
        if realm.wild(channel):
            return session.grants.covers(operation, realm.literal(channel))
        return session.grants.permits(operation, channel)

    def open_to_all(self, operation: str, realm: Realm) -> bool:
        """Whether anyone may do this to every channel of a namespace."""
        return operation in realm.open

    def check(self, session: Session, operation: str, channel: bytes | None) -> None:
        """Raise Denied when the session may not do this; `channel` is None for operations of no channel."""
        if channel is None:
            why = self._why_not(session, operation)
            if why is not None:
                raise Denied(f"cannot {_VERBS[operation]}: {why}")
            return
        if self.permits(session, operation, channel):
            return
        realm = self.realm(channel)
        who: Who = getattr(realm.rules, operation)
        realm.refused += 1
        raise Denied(f"cannot {_VERBS[operation]} {shown(channel)}: {self._reason(session, operation, channel, who)}")

    def _reason(self, session: Session, operation: str, channel: bytes, who: Who) -> str:
        realm = self.realm(channel)
        if realm is self._nowhere:
            return (
                f"there is no namespace {shown(channel.partition(b':')[0] if b':' in channel else b'')} (hub.namespace)"
            )
        if who == "token" and session.grants.token is not None:
            it = "all that it could match" if realm.wild(channel) else "it"
            return f"token {session.grants.token!r} does not permit {it} ({session.grants.path}.{operation})"
        if who == "token" and session.grants.lost:
            return f"{session.grants.lost} {realm.key(operation)}"
        whom = "tokens only" if who == "token" else "nobody"
        return f"namespace {realm.name!r} allows {operation} to {whom} {realm.key(operation)}"

    def _why_not(self, session: Session, operation: str) -> str | None:
        who = self._operations[operation]
        if who == "anyone" or (who == "token" and session.grants.permits(operation, None)):
            return None
        if who == "token" and session.grants.token is not None:
            return f"token {session.grants.token!r} does not permit it ({session.grants.path}.{operation})"
        if who == "token" and session.grants.lost:
            return f"{session.grants.lost} (hub.{operation})"
        return f"it is allowed to {'tokens only' if who == 'token' else 'nobody'} (hub.{operation})"


def _who(rules: Namespace, operation: str) -> Who:
    who: Who | None = getattr(rules, operation)
    return who or rules.history  # only `recover` may be left open


def valid(channel: bytes) -> bytes:
    """The channel's name as it is. Raises Refusal for one that is empty or too long."""
    if not channel:
        raise Refusal("invalid", "cannot use a channel without a name")
    if len(channel) > MAX_CHANNEL:
        raise Refusal(
            "invalid", f"cannot use the channel {shown(channel[:32])}...: its name is above {MAX_CHANNEL} bytes"
        )
    return channel


def shown(channel: bytes) -> str:
    """A channel's name as people read it in a sentence."""
    return repr(channel.decode(errors="backslashreplace"))
