"""What a client remembers from one connection to the next: its backoff, its place in each channel, its way back. Pure.

      connecting --ok--> connected --lost--> backoff(s) --> connecting ...
           |                 |                                  |
           '--fails----------'---- given up, or not wanted -----'--> closed

Rules:
- `now` and random numbers are arguments;
- a place is (epoch, offset) of the last message taken; a message at or before it is a duplicate and goes no further,
  one beyond the next offset shows a hole, which the reader is told of as a Gap;
- a message that came without its offset, as machines were out of touch, is known by its origin if another machine tells
  it once more;
- a resume secret is good until the daemon answers with the next one, and only for the time that it keeps sessions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from netd.client.options import Reconnect

LOOSE = 10_000
"""Messages without offsets that are remembered of a channel; the oldest go."""
MOST_AWAY = 3600.0
"""Seconds that a daemon can ask a client to stay away."""
RESUME_WITHIN = 60.0
"""Seconds after the end of a connection in which the daemon keeps a session for its return (hub.resume_seconds)."""


@dataclass(frozen=True)
class State:
    """The connection's state: "connecting", "connected", "backoff" or "closed"."""

    name: Literal["connecting", "connected", "backoff", "closed"]
    attempt: int = 0
    """connecting and backoff: how many attempts in a row this one is, from 1."""
    seconds: float | None = None
    """backoff: how long until the next attempt."""
    reason: str = ""
    """backoff and closed: why the connection is gone; "" when the client itself was closed."""

    @property
    def final(self) -> bool:
        return self.name == "closed"


class Backoff:
    """Delays between attempts."""

    def __init__(self, policy: Reconnect) -> None:
        self.policy = policy
        self.attempt = 0
        """The number of the next attempt in a row; 0 while all is well."""

    def steady(self) -> None:
        """A connection proved good: the series begins anew."""
        self.attempt = 0

    def failed(self, random: float, *, least: float | None = None) -> float | None:
        """A connection was lost or an attempt failed: seconds until the next attempt, None to give up.

        `random` is in [0, 1). `least` is what the daemon asked for; the jitter comes on top of it.
        """
        policy = self.policy
        self.attempt += 1
        if not policy.enabled or (policy.max_attempts is not None and self.attempt > policy.max_attempts):
            return None
        # the exponent has an end, or the power overflows after some weeks without a daemon
        delay = min(policy.longest, policy.first * policy.factor ** min(self.attempt - 1, 64))
        if least is not None and least > 0:
            return least + delay * policy.jitter * random
        return delay * (1.0 - policy.jitter * random)


@dataclass
class Place:
    """How far a reader has come in one channel. `epoch` None: the channel keeps no history, or nothing is known yet."""

    epoch: str | None = None
    offset: int = 0
    loose: dict[str, bool] = field(default_factory=dict)
    """The origins of messages that came without their offsets: machines were out of touch, and another one may tell
    them once more. When all of them have offsets, nobody knows: a machine says where the channel is before that."""

    @property
    def known(self) -> bool:
        return self.epoch is not None

    def move(self, epoch: str | None, offset: int | None) -> None:
        """Be there from now on; the past does not matter."""
        self.epoch, self.offset = epoch, offset or 0

    def reach(self, epoch: str | None, offset: int | None) -> None:
        """Be there, if not further: a machine may be behind the one that told it before."""
        self.move(epoch, max(offset or 0, self.offset if epoch == self.epoch else 0))

    def admit(self, epoch: str | None, offset: int | None) -> int | None:
        """A message arrived: None if it is a duplicate, else how many before it never came (0 in the usual case).

        A message without an offset is of no history: it is always new and moves nothing. One of another epoch begins
        a new count; how many were lost then, nobody knows: -1.
        """
        if offset is None:
            return 0
        if epoch is not None and self.epoch is not None and epoch != self.epoch:
            self.epoch, self.offset = epoch, offset
            return -1
        if self.epoch is None:
            self.epoch, self.offset = epoch, offset
            return 0
        if offset <= self.offset:
            return None
        missed, self.offset = offset - self.offset - 1, offset
        return missed

    def repeats(self, origin: str, offset: int | None) -> bool:
        """A message that has an origin arrived: whether it came without its offset before."""
        if offset is not None:
            return self.loose.pop(origin, False)
        if len(self.loose) >= LOOSE:
            del self.loose[next(iter(self.loose))]
        self.loose[origin] = True
        return False


@dataclass
class Way:
    """The way back into a session: the daemon's secret, and when the connection ended."""

    secret: str | None = None
    lost_at: float | None = None
    within: float = RESUME_WITHIN

    def given(self, secret: str | None) -> None:
        self.secret, self.lost_at = secret, None

    def lost(self, now: float) -> None:
        if self.lost_at is None:
            self.lost_at = now

    def usable(self, now: float) -> str | None:
        """The secret to come back with; None when there is none or its time is over.

        The daemon takes it once; until its answer is here nobody knows whether it has.
        """
        if self.secret is None or (self.lost_at is not None and now - self.lost_at > self.within):
            return None
        return self.secret


@dataclass
class Counters:
    """What a client counts, over all its connections."""

    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    connections: int = 0
    """Connections made, the first included."""
    reconnects: int = 0
    resumed: int = 0
    """Of the reconnects in operations, those that gave the session back."""
    recovered: int = 0
    """Channels whose missed messages all came after a reconnect."""
    gaps: int = 0
    """Channels where some did not."""
    duplicates: int = 0
    backpressure: int = 0
    """Times the send queue was full and a sender had to wait."""
    drain: int = 0
    """Times it then had room again."""
    pauses: int = 0
    """Times reading paused because received messages were not read."""
    undecodable: int = 0


@dataclass(frozen=True)
class Telemetry:
    """A snapshot of one client."""

    state: State
    address: str
    session: str | None
    """The session's id, in operations."""
    queued_bytes: int
    """Waiting to be sent."""
    unread_messages: int
    unread_bytes: int
    subscriptions: int
    missed: int
    """Events dropped because nobody read them (see OperationsClient.__aiter__)."""
    counters: Counters = field(default_factory=Counters)
