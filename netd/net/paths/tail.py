"""The end of a path whose peer does not say which duplicate it saw: one probe at a time, and a count. Pure.

A peer without SACK or DSACK (RFC 2883) still answers a duplicate byte at once, with an acknowledgement like any other.
So a lone probe is sent, nothing else in flight, and the connection's count of received segments watched
(tcpi_segs_in):

    quiet -> probe(candidate) -> count +1       the peer is here or nearer: down, unless a router is known just before
                              -> a router       one farther
                              -> nothing, twice one farther, at most two past the supposed distance

Rules: time is an argument; a hit at a distance that nothing else suggests must repeat, for the peer may have had
something of its own to say at that moment.
"""

from __future__ import annotations

_MISSES = 2
"""Lone probes for one TTL that may go unanswered before it is passed over."""
_FARTHER = 2
"""TTLs passed over in a row before the search ends."""
_GLANCE = 0.002
"""Seconds between two looks at the count while a probe is out: the precision of the RTT found."""


class Tail:
    def __init__(self, *, supposed: int | None, most: int, rtt: float | None) -> None:
        """`supposed` is the distance that the SYN suggested, `most` the largest TTL to try, `rtt` in seconds."""
        self.supposed = supposed
        self.found: tuple[int, float] | None = None
        """(distance, RTT in milliseconds) once known."""
        self.exhausted = False
        """The search ended at the largest TTL."""
        self._most = most
        self._quiet = min(max(0.02, rtt or 0.0), 0.1)
        self._candidate: int | None = None
        self._nearest_hit: tuple[int, float] | None = None
        self._hits = 0
        self._sends = 0
        self._sent_at: float | None = None
        self._base = 0
        self._passed = 0
        self._answered = 0
        self._unreached: set[int] = set()
        """TTLs at which lone probes were answered by nobody."""

    def poll(
        self, now: float, changed: float, patience: float, answered: int, farthest: int, grown: int
    ) -> int | float | None:
        """The TTL to probe now (int), when to look again (float), or None: found, or given up.

        `changed` is when the count last changed, `patience` for how long a probe is waited for, `answered` the farthest
        TTL at which a router is known, `farthest` the largest TTL probed until the search began and `grown` by how much
        the count had grown then.
        """
        self._answered = max(self._answered, answered)
        if self._candidate is None:
            # of the probes sent together the farthest may have reached the peer, one segment each
            nearest = farthest - grown + 1
            if not grown and self.supposed is not None:
                nearest = self.supposed
            self._candidate = max(answered + 1, nearest)
        if self._sent_at is not None:
            if now < self._sent_at + patience:
                return now + _GLANCE
            self._missed()
        if self.found is not None:
            return None
        if self._candidate > self._most or self._passed > _FARTHER:
            self.exhausted = self._candidate > self._most
            return None
        if now < changed + self._quiet:
            return changed + self._quiet
        return self._candidate

    def sent(self, ttl: int, segments: int | None, now: float) -> None:
        """The probe that `poll` asked for went out when the count stood at `segments`."""
        if ttl == self._candidate and segments is not None:
            self._sent_at, self._base = now, segments
            self._sends += 1

    def counted(self, segments: int, now: float) -> None:
        """The count changed."""
        if self._sent_at is None or self._candidate is None or segments <= self._base:
            return
        self._nearest_hit = (self._candidate, (now - self._sent_at) * 1000)
        self._sent_at = None
        self._hits += 1
        before = self._candidate - 1
        if before == 0 or self._answered >= before or before in self._unreached:
            if self._candidate == self.supposed or self._hits > 1:
                self.found = self._nearest_hit
            return
        self._go(before)

    def replied(self, ttl: int) -> None:
        """A router is at this TTL."""
        self._answered = max(self._answered, ttl)
        if ttl != self._candidate:
            return
        if self._nearest_hit is not None:
            self.found = self._nearest_hit
        else:
            self._passed = 0
            self._go(ttl + 1)

    def _missed(self) -> None:
        assert self._candidate is not None
        self._sent_at = None
        if self._sends < _MISSES:
            return
        self._unreached.add(self._candidate)
        if self._nearest_hit is not None and self._candidate < self._nearest_hit[0]:
            self.found = self._nearest_hit  # silent here, the peer just behind
            return
        self._passed += self.supposed is None or self._candidate >= self.supposed
        self._nearest_hit = None
        self._go(self._candidate + 1)

    def _go(self, candidate: int) -> None:
        self._candidate = candidate
        self._sent_at = None
        self._sends = self._hits = 0
