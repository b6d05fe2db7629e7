"""One pass over a path as a pure strategy: what to send next, when to look again, when it is over.

    poll(now)  -> Probe(ttl, attempt)   send it, then call sent()
               -> Wait(until)           poll again then, or as soon as something was received
               -> Finished(reason)
    replied(), reached(), counted()     what was received
    postpone(seconds)                   a limit kept a probe back
    news()                              hops that became known since it was last asked

How it goes:

1. Everything up to the supposed distance at once, farthest first (it takes longest; but see `_guarded`). The supposed
   distance comes from the TTL of the peer's SYN. Where there is none, eight TTLs and one probe that will reach the peer
   whatever the distance: its answer's own TTL tells how far it is.
2. What is unanswered after a few round-trip times, and only that, is asked again, `attempts` times at most.
3. When the peer has not answered though the farthest probe was due, two TTLs more, then six, then six at a time as long
   as routers keep answering. It is not more at once because every probe beyond the peer is a duplicate to it, and a
   sender that is told of duplicates becomes slower to believe in reordering.
4. A peer that does not say which duplicate it saw (no SACK, or no DSACK) is looked for by `Tail`: one lone probe at a
   time and the count of segments that came in.

Rules: time is an argument, in seconds of a monotonic clock; RTTs are measured outside (the kernel's timestamps are
better than ours) and passed in as milliseconds; nothing here waits, sends or receives.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netd.net.paths.path import Hop, Reason
from netd.net.paths.tail import Tail

if TYPE_CHECKING:
    from netd.net.paths.path import TraceOptions
    from netd.net.paths.sharing import Share

FARTHEST = 32
"""The largest TTL a probe can have here."""
_UNKNOWN_WINDOW = 8
_FIRST_EXTENSION, _EXTENSION = 2, 6
_SILENT_EXTENSIONS = 2
"""Extensions that are made although no router answered at the end of the one before."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Send a probe with this TTL; `attempt` counts from 0."""

    ttl: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to send before `until`."""

    until: float


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Reason


class _Slot:
    """One TTL."""

    __slots__ = ("answered", "given_up", "held", "hop", "sends", "ttl")

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.sends: list[float] = []
        self.hop: Hop | None = None
        self.answered = False
        """A probe of our own was answered by a router."""
        self.given_up = False
        self.held = False
        """It was left to others for a while."""


class Round:
    def __init__(
        self,
        options: TraceOptions,
        *,
        now: float,
        distance: int | None,
        rtt: float | None,
        share: Share | None = None,
        names_duplicates: bool = True,
        attempts: int | None = None,
    ) -> None:
        """`distance` is the supposed distance, `rtt` the connection's smoothed RTT in seconds, None where unknown.

        `names_duplicates`: the peer negotiated SACK. `attempts` is the most there are bytes for.
        """
        self._options = options
        self._attempts = max(1, min(options.attempts, attempts or options.attempts))
        self._start = now
        self._deadline = now + 2 * options.timeout
        self._rtt = rtt
        self._slowest = rtt or 0.0
        self._share = share
        self.distance = distance
        self._most = max(1, min(options.max_hops, FARTHEST))
        self._slots = [_Slot(ttl) for ttl in range(FARTHEST + 1)]
        self._window = min(distance or _UNKNOWN_WINDOW, self._most)
        self._extensions = 0
        self._silent_extensions = 0
        self._far_probe: float | None = None if distance is None and names_duplicates else math.inf
        """When the probe that reaches the peer at any distance was sent; None: it is still to be; inf: not needed."""
        self._destination: int | None = None
        self._destination_probe = now
        self._rtt_ms: float | None = None
        self._news: list[Hop] = []
        self._reason: Reason | None = None
        self._segments: int | None = None
        self._segments_at_start: int | None = None
        self._segments_changed = now
        self._tail: Tail | None = None
        if not names_duplicates:
            self._begin_tail()
        self.probes = 0
        self._suppose(distance)

    # --- what became of it ---------------------------------------------------------------------------------------

    @property
    def destination(self) -> int | None:
        """The TTL at which the peer answers, None while unknown."""
        return self._destination

    @property
    def rtt_ms(self) -> float | None:
        """The peer's answer to a probe."""
        return self._rtt_ms

    @property
    def counting(self) -> bool:
        """`counted` is worth calling every few milliseconds."""
        return self._tail is not None and self._reason is None

    def news(self) -> list[Hop]:
        """Hops known since this was last asked. Once the round is finished: with the silent ones, in order."""
        news, self._news = self._news, []
        return news

    def hops(self) -> tuple[Hop, ...]:
        """One hop for each TTL up to the peer's, or up to the last one that means something. Once finished."""
        return tuple(hop for slot in self._slots[1 : self._end()] if (hop := slot.hop) is not None)

    def _end(self) -> int:
        """The first TTL that is not part of the path."""
        if self._destination is not None:
            return self._destination
        if self._reason == "closed":  # what was just sent says nothing
            return max((slot.ttl for slot in self._slots if slot.hop is not None), default=0) + 1
        return max((slot.ttl for slot in self._slots if slot.sends or slot.hop is not None), default=0) + 1

    # --- what is received ----------------------------------------------------------------------------------------

    def replied(self, ttl: int, answer: Hop, now: float) -> None:
        """A router answered a probe with this TTL; `answer` as measured, `attempts` not yet filled in."""
        slot = self._slots[ttl]
        slot.answered = True
        if answer.rtt_ms is not None:
            self._slowest = max(self._slowest, answer.rtt_ms / 1000)
        answer = dataclasses.replace(answer, attempts=max(1, len(slot.sends)))
        if self._share is not None:
            self._share.found(answer, now)
        if self._tail is not None:
            self._tail.replied(ttl)
            self._heed(self._tail, now)
        if slot.hop is None and (self._destination is None or ttl < self._destination):
            self._learn(slot, answer)

    def reached(self, ttl: int, rtt_ms: float, reply_ttl_distance: int | None, now: float) -> None:
        """A probe with this TTL reached the peer, which answers from this distance (None: unknown)."""
        self._slowest = max(self._slowest, rtt_ms / 1000)
        if self._far_probe not in (None, math.inf) and ttl == FARTHEST and self._destination is None:
            # no distance was known until now: this suggests one
            self._far_probe = math.inf
            self._rtt_ms = rtt_ms
            self.distance = reply_ttl_distance
            if reply_ttl_distance is not None:
                self._window = max(self._window, min(reply_ttl_distance, self._most))
                self._suppose(reply_ttl_distance)
            return
        if self._destination is None or ttl < self._destination:
            self._destination = ttl
            self._rtt_ms = rtt_ms
            self._destination_probe = now - rtt_ms / 1000
            self._suppose(ttl)

    def counted(self, segments: int, now: float) -> None:
        """The connection has received so many segments until now (tcpi_segs_in)."""
        if segments == self._segments:
            return
        if self._segments is None:
            self._segments_at_start = segments
        self._segments = segments
        self._segments_changed = now
        if self._tail is not None:
            self._tail.counted(segments, now)
            self._heed(self._tail, now)

    def postpone(self, seconds: float) -> None:
        """A probe that was due has been kept back for so long: the round's end is so much later."""
        self._deadline += seconds

    def close(self) -> None:
        """The connection is gone."""
        self._finish("closed", self._start)

    # --- what to do ----------------------------------------------------------------------------------------------

    def poll(self, now: float) -> Probe | Wait | Finished:
        if self._reason is not None:
            return Finished(self._reason)
        until = self._deadline
        if now >= until:
            return self._finish("destination" if self._destination is not None else "timeout", now)
        if self._far_probe is None:
            return Probe(FARTHEST, 0)
        if self._mute(now):
            self._begin_tail()
        last = self._destination - 1 if self._destination is not None else self._window
        for slot in sorted(self._slots[last:0:-1], key=lambda slot: slot.ttl != self._guarded):
            due = self._due(slot, now)
            if due <= now:
                return Probe(slot.ttl, len(slot.sends) % self._attempts)
            until = min(until, due)
        if self._destination is not None:
            guard = self._guard(now)
            if guard is not None:
                return guard if isinstance(guard, Probe) else Wait(min(until, guard.until))
            return Wait(until) if self._open(last) else self._finish("destination", now)
        if self._far_probe != math.inf and now < self._far_probe + self._patience():
            return Wait(min(until, self._far_probe + self._patience()))
        if self._tail is not None:
            return self._poll_tail(self._tail, now, until)
        if self._extend(now):
            return self.poll(now)
        if self._open(last):
            return Wait(until)
        return self._finish("max-hops" if self._window >= self._most else "timeout", now)

    def sent(self, probe: Probe, now: float) -> None:
        """The probe that `poll` asked for went out (or could not: it will be seen as unanswered)."""
        self.probes += 1
        if self._far_probe is None:
            self._far_probe = now
            return
        slot = self._slots[probe.ttl]
        slot.sends.append(now)
        if self._tail is not None:
            self._tail.sent(probe.ttl, self._segments, now)
        if self._share is not None and probe.ttl < self._share.bound:
            self._share.sent(probe.ttl, now)

    def _due(self, slot: _Slot, now: float) -> float:
        """When to send the slot's next probe; inf if it needs none."""
        if slot.hop is not None or slot.given_up:
            return math.inf
        share, sends = self._share, slot.sends
        if not sends:
            if share is None or slot.ttl == self._guarded:
                return now
            hop = share.known(slot.ttl, now)
            if hop is None:
                until = share.held(slot.ttl, now)
                if until > now and now < self._start + self._options.timeout:
                    slot.held = True
                    return min(until, self._start + self._options.timeout)
                if slot.held:
                    hop = share.fallback(slot.ttl, now, last=False)
            return self._adopted(slot, hop) or now
        if share is not None and (hop := share.known(slot.ttl, now)) is not None:
            return self._adopted(slot, hop)
        again = sends[-1] + self._patience()
        if now < again:
            return again
        attempts = self._attempts
        if self._tail is not None and slot.ttl > self._answered and self._grown:
            attempts = 1  # probably the peer, which cannot say so
        if slot.ttl in self._options.mute or (share is not None and share.quiet(slot.ttl, now)):
            attempts = 1
        if self._destination is not None and self.distance is not None and slot.ttl >= self.distance:
            # the peer answered from farther than supposed: was it here, and the answers were lost?
            attempts *= 2
        last = len(sends) >= attempts or now >= sends[0] + self._options.timeout
        if share is not None and (hop := share.fallback(slot.ttl, now, last=last)) is not None:
            return self._adopted(slot, hop)
        if not last:
            return now
        slot.given_up = True
        return math.inf

    def _adopted(self, slot: _Slot, hop: Hop | None) -> float:
        if hop is None:
            return 0.0
        self._learn(slot, dataclasses.replace(hop, attempts=len(slot.sends)))
        return math.inf

    @property
    def _guarded(self) -> int | None:
        """The TTL just before the peer's is always asked, or the distance would be taken on trust from others.

        And asked first: whoever answers the probe of the next TTL as the peer would have answered this one before.
        """
        supposed = self._destination if self._destination is not None else self.distance
        return None if supposed is None else supposed - 1

    def _guard(self, now: float) -> Probe | Wait | None:
        """What is left to do to be sure that nothing nearer than `destination` is the peer; None if nothing is."""
        assert self._destination is not None
        slot = self._slots[self._destination - 1]
        if slot.ttl == 0 or slot.answered or slot.hop is None or slot.hop.kind != "shared":
            return None
        if not slot.sends:
            return Probe(slot.ttl, 0)
        # a probe sent no later than the one that reached the peer would have been answered before it
        if slot.sends[0] <= self._destination_probe + 0.005 or now >= slot.sends[0] + self._patience():
            return None
        return Wait(slot.sends[0] + self._patience())

    def _open(self, last: int) -> bool:
        return any(slot.hop is None and not slot.given_up for slot in self._slots[1 : last + 1])

    def _patience(self) -> float:
        """Seconds until an unanswered probe is sent again."""
        attempts = max(1, self._options.attempts)
        if self._destination is not None:
            return max(0.05, 2 * self._slowest + 0.02)
        if not self._slowest:
            return min(0.2, self._options.timeout)
        return min(max(0.1, 3 * self._slowest), max(self._options.timeout / attempts, 1.25 * self._slowest))

    def _extend(self, now: float) -> bool:
        """Look farther, if it is time to."""
        end = self._slots[self._window]
        if self._window >= self._most or not (end.sends or end.hop):
            return False
        first = self.distance is not None and self._extensions == 0
        if end.hop is None:
            # a lost probe is likelier than a wrong distance: ask twice before looking past it
            asked = min(2, self._attempts) if self._extensions == 0 else 1
            if len(end.sends) < asked or now < end.sends[-1] + self._patience():
                return False
            if self._silent_extensions >= _SILENT_EXTENSIONS:
                return False
            self._silent_extensions += 1
        self._extensions += 1
        self._window = min(self._most, self._window + (_FIRST_EXTENSION if first else _EXTENSION))
        self._suppose(None)
        return True

    def _mute(self, now: float) -> bool:
        """It looks as if the peer answered without saying what: segments came, and then nothing for a while."""
        end = self._slots[self._window]
        if self._tail is not None or self._destination is not None or end.hop is not None or not end.sends:
            return False
        patience = self._patience()
        return self._grown > 0 and now >= end.sends[-1] + patience and now >= self._segments_changed + patience / 2

    @property
    def _grown(self) -> int:
        """Segments that came in since the round began: the peer may have answered so many probes."""
        return (self._segments or 0) - (self._segments_at_start or 0)

    @property
    def _answered(self) -> int:
        """The farthest TTL at which a router is known."""
        return max((slot.ttl for slot in self._slots if slot.hop is not None), default=0)

    def _suppose(self, distance: int | None) -> None:
        if self._share is not None:
            self._share.bound = distance if distance is not None else FARTHEST + 1

    def _begin_tail(self) -> None:
        """From now on one lone probe at a time beyond the routers that answer."""
        supposed = self._window if self.distance is not None else None
        self._tail = Tail(supposed=supposed, most=self._most, rtt=self._rtt)
        if supposed is not None:
            self._window = supposed - 1

    def _heed(self, tail: Tail, now: float) -> None:
        if tail.found is not None:
            self.reached(*tail.found, None, now)

    def _poll_tail(self, tail: Tail, now: float, until: float) -> Probe | Wait | Finished:
        if tail.supposed is None and self._window < self._most and self._slots[self._window].hop is not None:
            self._window = min(self._most, self._window + _EXTENSION)
            return self.poll(now)
        if self._open(self._window):
            return Wait(until)
        patience = max(0.05, 2 * self._slowest + 0.02)
        farthest = max((slot.ttl for slot in self._slots if slot.sends), default=0)
        step = tail.poll(now, self._segments_changed, patience, self._answered, farthest, self._grown)
        self._heed(tail, now)
        if self._destination is not None:
            return self.poll(now)
        if step is None:
            return self._finish("max-hops" if tail.exhausted else "timeout", now)
        if isinstance(step, int):
            return Probe(step, min(len(self._slots[step].sends), self._attempts - 1))
        return Wait(min(self._deadline, step))

    # --- the end -------------------------------------------------------------------------------------------------

    def _learn(self, slot: _Slot, hop: Hop) -> None:
        slot.hop = hop
        self._news.append(hop)

    def _finish(self, reason: Reason, now: float) -> Finished:
        if self._reason is None:
            self._reason = reason
            for slot in self._slots[1 : self._end()]:
                if slot.hop is None:
                    limited = self._share is not None and self._share.limited(slot.ttl, now)
                    self._learn(slot, Hop(slot.ttl, None, None, "silent", len(slot.sends), limited=limited))
                    if self._share is not None and self._destination is not None and slot.sends:
                        self._share.silent(slot.ttl, now)
            if self._share is not None:
                self._share.leave()
        return Finished(self._reason)
