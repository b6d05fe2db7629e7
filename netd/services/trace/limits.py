"""How often an address may be traced, and how fast a client may send. Pure: `now` (seconds) is an argument.

Rules:
- an address has `burst` traces at once and then earns one every `interval`; reconnecting changes nothing about that;
- a turn may be *reserved*: it will come after the delay that `reserve` returns, and is given back if nobody used it;
- the table forgets the address that was quiet longest when it is full, so its memory is bounded; whoever owns more
  addresses than the table has rows could be traced from each of them anyway, within the host's own limits.

Left out: the limits of the host as a whole (traces at once, probes a second), which the tracer enforces.
"""

from __future__ import annotations

from netd.budget import MAX_ADDRESSES, Bucket, Buckets


class Turns:
    """The turns to be traced of every address, most recently used last."""

    def __init__(self, *, interval: float, burst: int, capacity: int = MAX_ADDRESSES) -> None:
        self._interval = interval
        self._burst = burst
        self._buckets = Buckets(capacity)

    def __len__(self) -> int:
        return len(self._buckets)

    def configure(self, *, interval: float, burst: int) -> None:
        """Change both from now on; what was used stays used, and a larger burst is there for every address at once."""
        more = burst - self._burst
        self._interval = interval
        self._burst = burst
        for bucket in self._buckets.all():
            bucket.tokens = min(bucket.tokens + max(0, more), float(burst))

    def reserve(self, key: str, now: float) -> float:
        """Take the next turn of `key`, and return the seconds until it comes."""
        return self._bucket(key, now).spend(1.0, 1.0 / self._interval)

    def take(self, key: str, now: float) -> float:
        """Take a turn if there is one now and return 0; otherwise take none and return the seconds until there is."""
        return self._bucket(key, now).draw(1.0 / self._interval)

    def give_back(self, key: str, now: float) -> None:
        """A reserved turn that was not used."""
        bucket = self._bucket(key, now)
        bucket.tokens = min(bucket.tokens + 1.0, float(self._burst))

    def _bucket(self, key: str, now: float) -> Bucket:
        return self._buckets.of(key, now, 1.0 / self._interval, float(self._burst))


class Pace:
    """How fast one client may send: `rate` bytes a second, four seconds' worth at once."""

    def __init__(self, rate: float, now: float) -> None:
        self._bucket = Bucket(rate * 4, now)

    def delay(self, size: int, rate: float, now: float) -> float:
        """`size` bytes arrived: the seconds to wait before reading more."""
        self._bucket.refill(now, rate, rate * 4)
        return self._bucket.spend(size, rate)
