"""A session's outbox: complete messages, as bytes, that wait for its transport. Pure: `now` (seconds) is an argument.

    push -> [ lane 0 | ... | lane 128 | ... | lane 255 ] -> take

Rules:
- a chunk is one or more whole messages as they go on the wire; it is taken whole or dropped whole, so nothing is torn;
- a lower priority number goes first, strictly: what is less urgent waits for as long as anything more urgent is there.
  Within one priority the order is that of `push`;
- `size` never passes `rules.bound`, but for the last message (`finish`). What is larger than the bound by itself is
  dropped, whatever the policy; what else would pass it meets the policy:
    disconnect      everything that waits is dropped, the owner is told (`overflow`) and may push its last words (a
                    Close) within that call; nothing is taken in after it
    drop-oldest     what waits is dropped, least urgent first and oldest first within a priority, but never for the sake
                    of something less urgent than itself; what still does not fit is itself dropped
    drop-ephemeral  everything ephemeral that waits is dropped; if that is not enough, what is ephemeral is itself
                    dropped, and anything else meets "disconnect". As finding what is ephemeral takes a look at all that
                    waits, that is not done for another ephemeral one before they are a sixteenth of the bound
- the flusher is told (`mark`) when the outbox was empty and is no more;
- the owner is told once when `size` passes `rules.high`, and once when it has come down to `rules.low` again;
- with a rate, no time t lets more than burst + rate * t bytes out; a chunk larger than the burst goes out when the
  bucket is full, and leaves a debt.

An outbox is most often empty, and nearly every message has priority 128: that lane is a plain list that `take` hands
over as it is, and there is none while nothing waits. `spread` (session.py) does
the first lines of `push` itself, and what it leaves in many at once is marked in one call.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol, TypeAlias

from netd.budget import Bucket

Policy: TypeAlias = Literal["drop-ephemeral", "drop-oldest", "disconnect"]

NORMAL_PRIORITY = 128
_NEARLY = 1e-3
"""A refill that should have come to exactly a chunk's bytes may fall short of it by rounding."""


class OutboxRules:
    """What outboxes are held to; one object for all sessions of a listener, and changes apply from the next message.

    `bound` is in bytes, `rate` in bytes a second (0: as fast as the socket), `burst` in bytes (0: a second's worth).
    """

    __slots__ = ("_bound", "burst", "high", "low", "policy", "rate")

    def __init__(
        self, bound: int = 5 * 2**20, policy: Policy = "disconnect", rate: float = 0.0, burst: float = 0.0
    ) -> None:
        self.bound = bound
        self.policy: Policy = policy
        self.rate = rate
        self.burst = burst

    @property
    def bound(self) -> int:
        """Bytes that may wait."""
        return self._bound

    @bound.setter
    def bound(self, bound: int) -> None:
        self._bound = bound
        self.high = bound // 2
        self.low = bound // 8

    @property
    def plenty(self) -> int:
        """Up to so many bytes in all, several messages may wait in one chunk: no policy will have to part them. -1:
        never."""
        return self._bound if self.policy == "disconnect" else -1

    def _finished(self) -> OutboxRules:
        """Rules under which nothing more is taken in; what waits still leaves at its rate."""
        return _finished(self.rate, self.burst)


@lru_cache(maxsize=64)
def _finished(rate: float, burst: float) -> OutboxRules:
    """Nobody changes them, so many may have the same."""
    return OutboxRules(-1, "drop-oldest", rate, burst)


class Flusher(Protocol):
    """Who empties outboxes: netd.net.reactor.Reactor, most often. Neither call may block."""

    def mark(self, outbox: Outbox) -> None:
        """It was empty and is no more: `take` what is there, soon."""

    def mark_crowd(self, outboxes: list[Outbox], alone: Shared) -> None:
        """They were empty, and `alone`, one chunk, is all that waits in each now; no rate holds any of them back.

        For as long as an outbox' `chunks` is `alone`, this is what a `take` of it comes to, and whoever sends to
        thousands may do it in the outbox' stead: `chunks = None`, `size = 0`, `left += 1`.
        """

    def send_at_once(self, outboxes: list[Outbox], data: bytes, messages: int) -> list[Outbox]:
        """Nothing else is about to be said: a chunk of so many messages may go out now, to those of these that have
        the encoder and the rules of the first, hold nothing, and are not slow. Returns the others. The list is the
        flusher's from here on. What has gone need not be counted (`left`) before `settle`.
        """

    def settle(self) -> None:
        """Count what was sent at once, if that is still to be done."""


class OutboxOwner(Protocol):
    """Who is told how an outbox fares. Both are called from within `push` and `take`, and must not block."""

    def pressure(self, over: bool) -> None:
        """True: more than `rules.high` bytes wait; False: no more than `rules.low` do any more."""

    def overflow(self) -> None:
        """The policy is to disconnect. What is pushed within this call is the last that goes out."""


class Chunk(bytes):
    """Bytes of which a policy has to know more than their length. Other chunks are one message that is kept."""

    ephemeral: bool
    messages: int

    @classmethod
    def of(cls, data: bytes, *, ephemeral: bool, messages: int = 1) -> Chunk:
        chunk = cls(data)
        chunk.ephemeral = ephemeral
        chunk.messages = messages
        return chunk


class Shared(list[bytes]):
    """A lane that many outboxes may have in common, and that nobody changes: one chunk, spread to all of them."""

    __slots__ = ()


class Outbox:
    """The bytes that wait for one session."""

    __slots__ = (
        "_bucket",
        "_droppable",
        "_lanes",
        "chunks",
        "dropped",
        "encoder",
        "flusher",
        "left",
        "owner",
        "pressed",
        "rules",
        "size",
        "stream",
    )

    joins = True
    """Several messages may wait in one chunk."""

    def __init__(self, rules: OutboxRules, flusher: Flusher, owner: OutboxOwner) -> None:
        self.rules = rules
        self.flusher = flusher
        self.owner = owner
        self.encoder: Any = None
        """What the session speaks; kept here, so that whoever spreads a message need not touch the session as well."""
        self.stream: Any = None
        self.size = 0
        self.dropped = 0
        """Messages that a policy dropped."""
        self.pressed = False
        self.chunks: list[bytes] | deque[bytes] | None = None
        """The lane of priority 128; None when it is empty. One that is `Shared` is replaced, never changed."""
        self._lanes: dict[int, deque[bytes]] | None = None
        """Every other lane that is not empty."""
        self._bucket: Bucket | None = None
        self.left = 0
        """Messages that are no longer here, less those that share a chunk here."""
        self._droppable = 0
        """Bytes of what is ephemeral here, or a little more: what `take` took in part is not taken off."""

    @property
    def messages(self) -> int:
        """Messages that were taken in since the beginning."""
        self.flusher.settle()
        waiting = len(self.chunks) if self.chunks is not None else 0
        if self._lanes is not None:
            waiting += sum(map(len, self._lanes.values()))
        return self.left + waiting

    def push(self, data: bytes, priority: int = NORMAL_PRIORITY, ephemeral: bool = False, count: int = 1) -> bool:
        """Have `data` (`count` whole messages) wait. False: it was dropped, or the outbox takes nothing in any more."""
        rules, size = self.rules, len(data)
        if not size:
            return True
        if self.size + size > rules.high and not self._has_room(size, priority, ephemeral, count):
            return False
        if (ephemeral or count != 1) and rules.policy != "disconnect":
            if not isinstance(data, Chunk):
                data = Chunk.of(data, ephemeral=ephemeral, messages=count)
            if ephemeral:
                self._droppable += size
        if priority != NORMAL_PRIORITY:
            self._push_aside(data, priority)
        elif self.chunks is None:
            self.chunks = [data]
        elif isinstance(self.chunks, Shared):
            self.chunks = [*self.chunks, data]
        else:
            self.chunks.append(data)
        self.left += count - 1
        self._grow(size)
        return True

    def push_many(self, chunks: list[bytes], count: int) -> bool:
        """Have chunks of `count` messages in all wait, in their order and with the normal priority."""
        size, rules = sum(map(len, chunks)), self.rules
        each = count == len(chunks)  # a policy may part them
        if self.size + size > (rules.bound if each else rules.high) or not (each or rules.policy == "disconnect"):
            return self.push(chunks[0] if len(chunks) == 1 else b"".join(chunks), count=count)
        if self.chunks is None or isinstance(self.chunks, Shared):
            self.chunks = [*(self.chunks or ()), *chunks]
        else:
            self.chunks.extend(chunks)
        self.left += count - len(chunks)
        self._grow(size)
        return True

    def offer(self, data: bytes) -> bool:
        """Have `data` (one message that is ephemeral) wait if there is plenty of room.

        Above `rules.high` it is dropped, whatever the policy: nobody is cut off over it, and nothing gives way to it.
        """
        if self.size + len(data) > self.rules.high:
            self.dropped += self.rules.bound >= 0
            return False
        return self.push(data, ephemeral=True)

    def take(self, limit: int, now: float) -> list[bytes]:
        """Remove what may be sent now, most urgent first: at most `limit` bytes, but at least one chunk if any may.

        The list is to be read, not to be changed: others may have been given the same.
        """
        chunks = self.chunks
        if self._lanes is not None or self.rules.rate:
            taken = self._take_some(limit, now)
        elif chunks.__class__ is Shared:  # one message, spread to many: the shortest way of all
            self.chunks = None
            self.size = 0
            self.left += 1
            taken = chunks
        elif self.size > limit:
            taken = self._take_some(limit, now)
        else:
            chunks, self.chunks = self.chunks, None
            if chunks is None:
                return []
            taken = chunks if isinstance(chunks, list) else list(chunks)
            self.size = 0
            self.left += len(taken)
            self._droppable = 0
        if self.pressed:
            self._ease()
        return taken

    def wait(self, now: float) -> float | None:
        """Seconds until the rate lets more out; None when nothing waits, or it may go at once."""
        rate = self.rules.rate
        if not self.size or not rate:
            return None
        _, lane = self._by_urgency()[0]
        short = self._shortage(len(lane[0]), now)
        return short / rate if short > _NEARLY else None

    def finish(self, last: bytes = b"") -> None:
        """Take nothing in any more but this last message, past the bound; what waits may still go out, before it."""
        if last and self.rules.bound >= 0:
            before, self.size = self.size, self.size + len(last)
            if before:
                self._push_aside(last, 255)
            else:
                self.chunks = [last]
                self.flusher.mark(self)
        self.rules = self.rules._finished()

    def reconsider(self) -> None:
        """The rules have changed: if by them no more than `high` waits, the owner is told now and not at `low`."""
        if self.pressed and self.size <= self.rules.high:
            self.pressed = False
            self.owner.pressure(False)

    def clear(self) -> None:
        """The session is gone: drop what waits, uncounted, and take nothing in any more."""
        self.finish()
        self.left = self.messages
        self.chunks = self._lanes = None
        self.size = 0

    # --- inside ------------------------------------------------------------------------------------------------------

    def _push_aside(self, data: bytes, priority: int) -> None:
        """Put `data` into another lane than that of priority 128."""
        if isinstance(self.chunks, Shared):
            self.chunks = [*self.chunks]  # what is shared may be taken as if nothing else were here
        if self._lanes is None:
            self._lanes = {}
        self._lanes.setdefault(priority, deque()).append(data)

    def _grow(self, size: int) -> None:
        """`size` bytes more wait: tell those who want to know."""
        before, self.size = self.size, self.size + size
        if not before:
            self.flusher.mark(self)
        if self.size > self.rules.high and not self.pressed:
            self.pressed = True
            self.owner.pressure(True)

    def _ease(self) -> None:
        if self.pressed and self.size <= self.rules.low:
            self.pressed = False
            self.owner.pressure(False)

    def _has_room(self, size: int, priority: int, ephemeral: bool, count: int) -> bool:
        """Whether `size` bytes more fit, after what the policy says was done to make them fit."""
        rules = self.rules
        if self.size + size <= rules.bound:
            return True
        if rules.bound < 0:
            return False
        if size > rules.bound:
            # no reading would ever make room for it: that is not the client's doing
            self.dropped += count
            return False
        if rules.policy == "drop-oldest":
            self._drop_oldest(size, priority)
        elif rules.policy == "drop-ephemeral":
            self._drop_ephemeral(ephemeral)
        if self.size + size <= rules.bound:
            return True
        self.dropped += count
        if rules.policy == "drop-oldest" or (rules.policy == "drop-ephemeral" and ephemeral):
            self._ease()
        else:
            self._overflow()
        return False

    def _overflow(self) -> None:
        """Nobody takes what waits any more: give its memory back, let the owner say its last words, and end."""
        for _, lane in self._by_urgency():
            for chunk in lane:
                self._drop(chunk)
        self.chunks = self._lanes = None
        self.rules = OutboxRules(self.rules.bound, "drop-oldest", self.rules.rate, self.rules.burst)
        self.owner.overflow()
        self.finish()

    def _drop(self, chunk: bytes) -> None:
        self.size -= len(chunk)
        self.dropped += chunk.messages if isinstance(chunk, Chunk) else 1
        self.left += 1

    def _drop_oldest(self, size: int, priority: int) -> None:
        """Make room for `size` bytes of this priority, from what is no more urgent. Nothing is dropped in vain."""
        lanes = [lane for urgency, lane in self._by_urgency() if urgency >= priority]
        missing = self.size + size - self.rules.bound
        found = accumulate(len(chunk) for lane in reversed(lanes) for chunk in lane)
        if not any(size >= missing for size in found):
            return
        for lane in reversed(lanes):
            while lane and missing > 0:
                chunk = lane.popleft()
                self._drop(chunk)
                missing -= len(chunk)
        self._sweep()

    def _drop_ephemeral(self, for_ephemeral: bool) -> None:
        if not self._droppable or (for_ephemeral and 16 * self._droppable < self.rules.bound):
            return
        self._droppable = 0
        for _, lane in self._by_urgency():
            for _ in range(len(lane)):
                chunk = lane.popleft()
                if isinstance(chunk, Chunk) and chunk.ephemeral:
                    self._drop(chunk)
                else:
                    lane.append(chunk)
        self._sweep()

    def _take_some(self, limit: int, now: float) -> list[bytes]:
        taken: list[bytes] = []
        room, rate = limit, self.rules.rate
        for _, lane in self._by_urgency():
            while lane:
                size = len(lane[0])
                if (size > room and taken) or (rate and self._shortage(size, now) > _NEARLY):
                    break
                taken.append(lane.popleft())
                room -= size
                self.size -= size
                if rate and self._bucket is not None:
                    self._bucket.tokens -= size
            if lane:
                break
        self._sweep()
        self.left += len(taken)
        return taken

    def _shortage(self, size: int, now: float) -> float:
        """How many bytes the rate has yet to earn before a chunk of `size` bytes may go."""
        rate = self.rules.rate
        burst = max(self.rules.burst or rate, 1.0)
        if self._bucket is None:
            self._bucket = Bucket(burst, now)
        self._bucket.refill(now, rate, burst)
        return min(size, burst) - self._bucket.tokens

    def _by_urgency(self) -> list[tuple[int, deque[bytes]]]:
        """Every lane that is not empty, the most urgent first."""
        found = list(self._lanes.items()) if self._lanes is not None else []
        if self.chunks is not None:
            if not isinstance(self.chunks, deque):
                self.chunks = deque(self.chunks)
            found.append((NORMAL_PRIORITY, self.chunks))
        found.sort(key=lambda item: item[0])
        return found

    def _sweep(self) -> None:
        """Forget the lanes that have become empty."""
        if not self.chunks:
            self.chunks = None
        if self._lanes is not None:
            self._lanes = {priority: lane for priority, lane in self._lanes.items() if lane} or None
