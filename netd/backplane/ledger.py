"""What goes out and what comes in, so that nothing is lost and nothing comes twice. Pure. Above 400 lines, as it is one
argument, which a model checks as a whole (tests/backplane/test_ledger.py).

    Outgoing   what this node has said and Redis has not given back yet, in order
    Tracks     how far this node has come in each channel that it hears and that has a history

Rules:
- each message has a sequence of its node. Redis takes a node's sequences in ascending order and none twice, so what may
  have been lost on the way is said again;
- while Redis is there, a message with a history is delivered when it comes back, in the order of offsets. It is
  delivered "loosely", without an offset, when Redis goes away before that; when it comes back later it is not
  delivered again;
- past its bounds the oldest of what waits is given up. It was delivered here; the others will not have it, so its
  channel is `lost`: it has to begin a new epoch;
- a channel is fetched from history where an offset is missing, and after every time without Redis. What comes
  meanwhile is left to the history too; so nothing has to be kept for it;
- a channel that has another epoch than it had is of a Redis that has lost something. What was delivered already is then
  known by who said it, as in a channel each node's sequences ascend; so it is for who began to hear a channel while
  Redis was away. An epoch that ends in "~" goes on with the offsets of the one before it; where the line is the same
  too, they mean the same messages, and only what follows is asked for;
- who hears a channel only through a pattern has no track. How far such channels came is remembered, bounded: what was
  fetched while there was a track is not delivered again, and nobody is told a place behind something it missed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_RANGES = 64
"""Times without Redis of which it is remembered what was said in them."""
MAX_SPEAKERS = 1024
"""Nodes of which it is remembered what they said last."""
MAX_LOST = 10_000
"""Channels that lost messages and are known by name; past that all channels count as such."""
MAX_PASSED = 10_000
"""Channels that are heard only through patterns and of which it is known how far that came; the one that was quiet
longest is forgotten."""


@dataclass(slots=True)
class Entry:
    """A message of this node on its way. `content` is the caller's; `kept`: its channel has a history."""

    sequence: int
    channel: bytes
    body: bytes
    kept: bool
    content: Any
    delivered: bool
    confirmed: bool = False
    at: float = 0.0
    """When it was said."""


class Outgoing:
    """Messages of this node that have not come back."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.size = 0
        self.sequence = 0
        self.acknowledged = 0
        """The latest that Redis is known to have taken."""
        self.given_up = 0
        self.lost: set[bytes] = set()
        self.all_lost = False
        self._entries: dict[int, Entry] = {}
        self._unsent: deque[int] = deque()
        self._loose: deque[list[int]] = deque(maxlen=MAX_RANGES)
        self._carried: deque[tuple[int, int]] = deque(maxlen=2 * MAX_RANGES)
        self._known_carried = True

    def __len__(self) -> int:
        return len(self._entries)

    def number(self) -> int:
        """The sequence for what is to be added next."""
        self.sequence += 1
        return self.sequence

    def add(self, entry: Entry) -> list[Entry]:
        """Have it wait. Returns those that were given up for it and had not been delivered."""
        self._entries[entry.sequence] = entry
        self._unsent.append(entry.sequence)
        self.size += len(entry.body)
        undelivered = []
        while len(self._entries) > self.max_messages or self.size > self.max_bytes:
            oldest = next(iter(self._entries.values()))
            if not oldest.delivered:
                oldest.delivered = True
                undelivered.append(oldest)
            self._remove(oldest)
            if self._unsent and self._unsent[0] == oldest.sequence:
                self._unsent.popleft()
                self._lose(oldest)
            elif not oldest.confirmed:
                self._lose(oldest)  # it may have arrived or not
        return undelivered

    def batch(self, messages: int, size: int) -> list[Entry]:
        """The next to send; they count as sent."""
        found: list[Entry] = []
        while self._unsent and len(found) < messages and size > 0:
            entry = self._entries.get(self._unsent.popleft())
            if entry is not None:
                found.append(entry)
                size -= len(entry.body)
        return found

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def confirm(self, sequence: int) -> None:
        """Redis has taken it (or had already)."""
        self.acknowledged = max(self.acknowledged, sequence)
        entry = self._entries.get(sequence)
        if entry is not None:
            entry.confirmed = True
            if entry.delivered:
                self._remove(entry)

    def returned(self, sequence: int) -> Entry | None:
        """It came back, in its turn. Returns it if it has to be delivered now."""
        self.acknowledged = max(self.acknowledged, sequence)
        entry = self._entries.get(sequence)
        if entry is None:
            return None
        self._remove(entry)
        if entry.delivered:
            return None
        entry.delivered = True
        return entry

    def cut(self) -> list[Entry]:
        """Redis is away. Returns what has to be delivered loosely now; all that waits is to be sent again."""
        found = [entry for entry in self._entries.values() if not entry.delivered]
        for entry in found:
            entry.delivered = True
        if found:
            self._loosen(found[0].sequence, found[-1].sequence)
        for entry in [entry for entry in self._entries.values() if entry.confirmed]:
            self._remove(entry)
        self._unsent = deque(self._entries)
        return found

    def strayed(self, before: float) -> list[Entry]:
        """What Redis has taken, was said before that time and has not come back."""
        return [each for each in self._entries.values() if each.confirmed and not each.delivered and each.at < before]

    def release(self, entry: Entry) -> None:
        """It has strayed and is delivered now, loosely."""
        entry.delivered = True
        self.loosen(entry)
        self._remove(entry)

    def loosen(self, entry: Entry) -> None:
        """It was delivered here without an offset. Those whose channels have no history count too: a time without Redis
        is one range, whatever is said in it."""
        self._loosen(entry.sequence, entry.sequence)

    def _loosen(self, first: int, last: int) -> None:
        self._known_carried = False
        latest = self._loose[-1] if self._loose else None
        if latest is not None and latest[0] <= last and first <= latest[1] + 1:
            latest[:] = min(latest[0], first), max(latest[1], last)
        else:
            self._loose.append([first, last])

    def was_loose(self, sequence: int) -> bool:
        """Whether it was delivered here without its offset, as far as remembered."""
        return any(first <= sequence <= last for first, last in self._loose)

    def carry(self) -> None:
        """Somebody who heard messages without their offsets has gone, and may come back from the place before them."""
        if not self._known_carried:
            self._known_carried = True
            self._carried.extend((first, last) for first, last in self._loose if (first, last) not in self._carried)

    def was_carried(self, sequence: int) -> bool:
        """Whether somebody may have it without knowing its place, as far as remembered."""
        return any(first <= sequence <= last for first, last in self._carried)

    def take_lost(self) -> tuple[bool, set[bytes]]:
        """(all channels are, the channels that are) to begin new epochs; forgotten here."""
        taken = self.all_lost, self.lost
        self.all_lost, self.lost = False, set()
        return taken

    def _lose(self, entry: Entry) -> None:
        self.given_up += 1
        if not entry.kept:
            return
        self.loosen(entry)
        if len(self.lost) < MAX_LOST:
            self.lost.add(entry.channel)
        else:
            self.all_lost = True

    def _remove(self, entry: Entry) -> None:
        del self._entries[entry.sequence]
        self.size -= len(entry.body)


Verdict = Literal["new", "old", "held", "gap"]


@dataclass(slots=True)
class Track:
    """How far this node has come in a channel. `epoch` None: nothing is known yet."""

    epoch: str | None = None
    offset: int = 0
    line: str = ""
    """Which numbering that is an offset in, as far as Redis has told: within one, offsets go on from epoch to epoch."""
    fetching: bool = False
    asked: int = 0
    """Fetches so far: only the page of the latest counts, as an earlier one may be behind what has come since."""
    again: bool = False
    """Something of another epoch came meanwhile, so the history has to be asked once more."""
    ahead: int = 0
    """The highest offset that came meanwhile: a page that reaches it has everything."""
    foreign: bool = False
    """Redis has lost something while this node was away: what is new is told by who said it."""
    loose: bool = False
    """Messages were delivered here without an offset since."""
    renewed: bool = False
    """It has another epoch than those who hear it were told: they are to see that, as something may be lost."""
    levelled: float = -math.inf
    """When those who heard such were told where they are, by a monotonic clock."""
    began: int = 0
    """The offset when it began to be heard."""
    said: dict[str, int] = field(default_factory=dict)
    """The latest sequence of each other node that was delivered."""
    since: float = 0.0
    """When it began to be heard, in wall-clock seconds."""
    apart: bool = True
    """No message of it has been delivered since: who hears it through a pattern may not have what was before."""
    unplaced: bool = False
    """That was while Redis was away: of its history those messages are new that were said since. Of a node that was
    known by then its sequences tell, of any other its clock."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as a history gives it back. `content` is the caller's."""

    offset: int
    node: str
    sequence: int
    content: Any
    time: float = 0.0
    """When it was said, in wall-clock seconds."""


@dataclass(slots=True)
class Fetched:
    """What follows from a page: what is to be delivered, whether to ask again, and what was wrong."""

    new: list[Kept] = field(default_factory=list)
    again: bool = False
    lost: int = 0
    """Messages that were missed for good."""
    regressed: bool = False
    """The history is behind what was delivered: Redis has lost something."""
    placed: bool = False
    """Its place is known only now."""
    skipped: bool = False
    """Some are left out as they were said before it began to be heard: but by who hears it through a pattern."""
    level: set[int] = field(default_factory=set)
    """Offsets before which there are none but such as were delivered already, under another offset."""


class Tracks:
    """Of all channels that are heard and have a history."""

    def __init__(self) -> None:
        self._tracks: dict[bytes, Track] = {}
        self._latest: dict[str, int] = {}
        """The latest sequence that came from each other node, of whatever channel."""
        self._passed: dict[bytes, tuple[str, int, bool]] = {}
        """Where who hears a channel only through a pattern is in it, and whether it has, or was shown to miss, all that
        is before."""

    def __len__(self) -> int:
        return len(self._tracks)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._tracks)

    def get(self, channel: bytes) -> Track | None:
        return self._tracks.get(channel)

    def items(self) -> Iterable[tuple[bytes, Track]]:
        return self._tracks.items()

    def begin(self, channel: bytes, now: float = 0.0) -> Track:
        """The channel is heard."""
        track = self._tracks.get(channel)
        if track is None:
            track = self._tracks[channel] = Track(since=now)
        return track

    def end(self, channel: bytes, *, passed: bool = False) -> None:
        """It is heard no more, or only through patterns (`passed`)."""
        track = self._tracks.pop(channel, None)
        if passed and track is not None and track.epoch is not None:
            self._pass(channel, track.epoch, track.offset, whole=not self._missing(channel, track))

    def delivered(self, channel: bytes, epoch: str, offset: int) -> None:
        """A message was delivered with this place, and somebody heard it."""
        track = self._tracks.get(channel)
        if track is not None:
            track.apart = False
        else:
            self._pass(channel, epoch, offset, whole=True)

    def follows(self, channel: bytes, epoch: str, offset: int) -> bool:
        """Whether who hears a channel only through a pattern has what is before this place."""
        return self._passed.get(channel) == (epoch, offset - 1, True)

    def missing(self, channel: bytes) -> bool:
        """Whether who hears a channel through a pattern may not have what was before its track, and would not learn
        that if it was told where the channel is."""
        track = self._tracks.get(channel)
        return track is not None and self._missing(channel, track)

    def _missing(self, channel: bytes, track: Track) -> bool:
        if not track.apart:
            return False
        epoch, offset, whole = self._passed.get(channel, (track.epoch, -1, False))
        return epoch == track.epoch and (track.unplaced or offset < track.began or not whole)

    def _pass(self, channel: bytes, epoch: str, offset: int, *, whole: bool) -> None:
        self._passed.pop(channel, None)
        if len(self._passed) >= MAX_PASSED:
            del self._passed[next(iter(self._passed))]
        self._passed[channel] = epoch, offset, whole

    def settle(self, channel: bytes, epoch: str, offset: int, line: str = "") -> Track:
        """Redis has told where it is: this counts if nothing of it has come yet."""
        track = self._tracks.get(channel)
        if track is None or track.unplaced:
            return Track(epoch, offset)
        if track.epoch is None:
            track.epoch, track.offset, track.began, track.line = epoch, offset, offset, line
        return track

    def first(self, node: str, sequence: int) -> bool:
        """Another node's message came on the lane, in order: whether for the first time."""
        if sequence <= self._latest.get(node, 0):
            return False
        if node not in self._latest and len(self._latest) >= MAX_SPEAKERS:
            del self._latest[next(iter(self._latest))]
        self._latest[node] = sequence
        return True

    def _note(self, track: Track, node: str, sequence: int) -> None:
        """So far this node's messages are delivered. Nodes that are gone for good make place for new ones."""
        said = track.said
        if node not in said and len(said) >= MAX_SPEAKERS:
            gone = [each for each in said if each not in self._latest] or [next(iter(said))]
            for each in gone:
                del said[each]
        said[node] = sequence

    def admit(self, channel: bytes, epoch: str, offset: int, node: str = "", sequence: int = 0) -> Verdict:
        """A message came on the lane; of another node, with who that is. gap: ask for the history since the track's
        position. held: that is being done."""
        track = self._tracks.get(channel)
        if track is None or track.epoch is None:
            passed = self._passed.get(channel)
            if passed is not None and passed[0] == epoch and offset <= passed[1]:
                return "old"  # it was fetched from history while the channel was heard
        if track is None:
            return "new"
        if track.fetching:
            if track.epoch == epoch:
                track.ahead = max(track.ahead, offset)
            else:
                track.again = True
            return "held"
        if track.epoch is None:
            track.began = offset - 1
        elif track.epoch == epoch and offset <= track.offset:
            return "old"
        elif track.epoch != epoch or offset > track.offset + 1:
            # of another epoch: Redis has lost something, and others may have said more since than came this way
            track.fetching, track.ahead = True, 0
            return "gap"
        track.epoch, track.offset = epoch, offset
        if node:
            if sequence <= track.said.get(node, 0):
                return "old"  # it was said again to a Redis that had forgotten it
            self._note(track, node, sequence)
        return "new"

    def missed(self, channels: Iterable[bytes] | None = None) -> list[bytes]:
        """Something may have been missed, of these channels or of any. Returns those whose history has to be asked
        for."""
        found = []
        for channel in self._tracks if channels is None else channels:
            track = self._tracks.get(channel)
            if track is not None and (track.epoch is not None or track.unplaced):
                track.fetching, track.again, track.ahead = True, False, 0
                found.append(channel)
        return found

    def joining(self) -> None:
        """Redis is there again: what began to be heard meanwhile has a place in its history, which `missed` finds."""
        for track in self._tracks.values():
            if track.epoch is None and not track.unplaced:
                track.unplaced, track.said = True, dict(self._latest)

    def cut(self) -> None:
        """Redis is away: nothing is being fetched any more."""
        for track in self._tracks.values():
            track.fetching = track.again = False
            track.ahead = 0

    def page(
        self, channel: bytes, epoch: str, newest: int, entries: Iterable[Kept], here: str = "", line: str = ""
    ) -> Fetched:
        """A page of the history since the track's position came (of another epoch: since its beginning, or where the
        line is the same). `here` is this node, of which `Outgoing` knows what was delivered."""
        fetched = Fetched()
        track = self._tracks.get(channel)
        if track is None or not track.fetching:
            return fetched
        if track.epoch is None and not track.unplaced:
            track.epoch, track.offset, track.began, track.fetching = epoch, newest, newest, False
            track.line = line
            return fetched
        entries = list(entries)
        if track.epoch != epoch and line and line == track.line and newest >= track.offset and not track.foreign:
            track.epoch, track.renewed = epoch, True  # somebody has lost messages: those that are numbered go on
        elif track.epoch != epoch:
            track.renewed = track.epoch is not None
            track.epoch, track.foreign = epoch, True
            if not epoch.endswith("~"):
                track.began = 0
            track.offset = entries[0].offset - 1 if entries else newest
        elif newest < track.offset:
            fetched.regressed = track.foreign = True
            track.offset = min(track.offset, entries[0].offset - 1 if entries else newest)
        track.line = line
        solid = True
        passed = self._passed.get(channel, ("", 0, False))
        had = passed[1] if track.unplaced and passed[0] == epoch else 0
        for each in entries:
            if each.offset <= track.offset:
                continue
            if not track.foreign:
                fetched.lost += each.offset - track.offset - 1
            solid = solid and each.offset == track.offset + 1
            track.offset = each.offset
            if solid:
                fetched.level.add(each.offset + 1)
            if (track.foreign and each.offset <= track.began) or each.offset <= had:
                continue
            if each.node != here:
                latest = track.said.get(each.node)
                if each.sequence <= (latest or 0):
                    continue
                if latest is None and track.unplaced and each.time < track.since:
                    fetched.skipped = True
                    continue
                self._note(track, each.node, each.sequence)
            fetched.new.append(each)
            fetched.level.discard(each.offset + 1)
            solid = True
        if track.offset < newest and not entries:
            fetched.lost += newest - track.offset
            track.offset = newest
        if fetched.skipped:
            track.apart = True
            if self._passed.pop(channel, None) is not None and passed[0] == epoch:
                self._passed[channel] = epoch, passed[1], False
        fetched.again = track.offset < newest or track.again or track.ahead > newest
        track.again, track.ahead = False, 0  # the next page is asked for after all that has come
        if not fetched.again:
            if track.unplaced:
                fetched.placed, track.unplaced, track.began = True, False, newest
            track.fetching = track.foreign = False
        return fetched

    def forget(self, nodes: Iterable[str]) -> None:
        """Nodes that are gone for good."""
        for node in nodes:
            self._latest.pop(node, None)
