"""What the parts of the backplane over Redis stand on: who they are, what they count, how they ask. Pure.

Left out: messages of channels (channels.py), which channels there are (catalogue.py), nodes and sessions (company.py),
the connection's side (plane.py).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from netd.backplane import envelopes
from netd.backplane.ledger import Outgoing, Tracks
from netd.backplane.nodes import MAX_ASKED, Questions
from netd.hub.channels import ChannelInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.backplane.config import BackplaneConfig
    from netd.hub.config import Namespace
    from netd.hub.hub import Hub


MAX_CALLS = 100_000
"""Questions that may wait for Redis, besides two for each channel."""


@dataclass(slots=True)
class Call:
    """Something to ask of Redis: a script by its name, or "" for a plain command. `answer` is called once, with None if
    there is no answer."""

    script: str
    keys: list[bytes]
    arguments: list[Any]
    answer: Callable[[Any], None]


class NodeInfo(msgspec.Struct, frozen=True):
    """What a node says of itself."""

    node: str
    name: str
    version: str = ""
    address: str | None = None
    started: float = 0.0
    sessions: int = 0
    channels: int = 0
    queue: int = 0
    """Messages that wait for Redis."""
    lag_ms: float | None = None
    """How long Redis took for the last heartbeat."""
    time: float = 0.0
    """When it said so."""


@dataclass(slots=True)
class Search:
    """Which channels are asked for, the first `limit` of them, and those that were told of so far."""

    prefix: bytes
    after: bytes | None
    limit: int
    found: dict[bytes, ChannelInfo]


@dataclass(slots=True)
class Figures:
    """Counts since the daemon began."""

    published: int = 0
    received: int = 0
    unreadable: int = 0
    dropped: int = 0
    """From Redis, past the inbound bounds."""
    fetched: int = 0
    """Messages that came from history instead of the lane."""
    missed: int = 0
    """Messages that were no longer in the history when it was asked."""
    loose: int = 0
    """Messages delivered here without an offset, as Redis was away."""
    refused: int = 0
    """Questions that were not asked: too many waited."""


class Desk:
    """One per daemon. `monotonic` is a clock in seconds that is never set."""

    def __init__(
        self,
        config: BackplaneConfig,
        *,
        host: str,
        version: str,
        monotonic: Callable[[], float],
        listening: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`listening`: the addresses that clients connect to."""
        self.config = config
        self._host = host
        self._listening = listening
        self.node = f"{(config.node or host)[:64]}.{secrets.token_hex(4)}"
        """This node's id: another one at each start, as its sequences begin anew."""
        self.version = version
        self.online = False
        self.outgoing = Outgoing(config.queue_messages, config.queue_bytes)
        self.tracks = Tracks()
        self.questions = Questions()
        self.figures = Figures()
        self.nodes: dict[str, NodeInfo] = {}
        """The others that live."""
        self.lag: float | None = None
        self.on_call: Callable[[], None] = _nothing
        """There is something in `next_call`."""
        self.on_revoked: Callable[[], None] = _nothing
        """Another node has revoked a token."""
        self._hub: Hub
        self._monotonic = monotonic
        self._calls: deque[Call] = deque()
        self._turn = False
        self._lost: set[bytes] = set()
        self._all_lost = False
        self._level: set[bytes] = set()
        self.waiting = 0
        """Bytes that wait to be said to the others, but for messages of channels."""
        self.flooded = False
        """Redis takes less than there is to be asked: nothing but beginning anew gets that level."""
        self._fresh: set[str] = set()
        """Nodes that came since the latest heartbeat was asked for: its answer may not have them."""
        self._sought: dict[int, Search] = {}
        """By question."""
        self._tracking: frozenset[str] = frozenset()
        """Namespaces of which Redis has who hears what."""
        self._been = False
        """It has been there, and has not said goodbye since."""
        self._lasting = 0.0
        """When presence has to be renewed."""
        prefix = config.prefix.encode()
        self._prefix = prefix
        self.lane = prefix + b"lane"
        self.own_lane = prefix + b"to:" + self.node.encode()

    def configure(self, config: BackplaneConfig) -> None:
        """Other bounds; prefix and node are fixed."""
        self.config = config
        self.outgoing.max_messages, self.outgoing.max_bytes = config.queue_messages, config.queue_bytes

    def resync(self, channels: Iterable[bytes] | None = None) -> None:
        raise NotImplementedError

    def _rules(self, channel: bytes) -> Namespace:
        return self._hub.history_rules(channel)

    def _wild(self, channel: bytes) -> bool:
        """Whether somebody here hears it through a pattern."""
        patterns = self._hub.permissions.realm(channel).patterns
        return patterns is not None and bool(patterns.matching(channel))

    def _say(self, envelope: envelopes.Envelope, lane: bytes | None = None) -> None:
        self._push(Call("", [], [b"PUBLISH", lane or self.lane, b"\n" + envelopes.encode(envelope)], ignore))

    def _question(self, call: Call) -> None:
        """Ask for somebody who can be refused."""
        if len(self._calls) >= MAX_ASKED:
            self.figures.refused += 1
            call.answer(None)
            return
        self._push(call)

    def _push(self, call: Call, *, first: bool = False) -> None:
        """Have it asked: behind what waits already, or before all of that."""
        if first:
            self._calls.appendleft(call)
        else:
            self._calls.append(call)
        self.waiting += _size(call)
        if len(self._calls) > MAX_CALLS + 2 * len(self._hub.heard):
            self.flooded = True
        self.on_call()

    def _pop(self) -> Call:
        call = self._calls.popleft()
        self.waiting -= _size(call)
        return call

    @property
    def asking(self) -> bool:
        """There are questions to be sent."""
        return bool(self._calls)

    def _key(self, kind: bytes, node: str) -> bytes:
        return self._prefix + kind + node.encode()

    def _present(self, node: str, channel: bytes) -> bytes:
        return self._key(b"p:", node) + b":" + channel


def _size(call: Call) -> int:
    return len(call.arguments[-1]) if not call.script else 0


def seed() -> str:
    """A random text for a new epoch."""
    return secrets.token_urlsafe(8)


def ignore(result: Any) -> None:
    """Of a call whose answer says nothing."""


def _nothing() -> None:
    pass
