"""What may be spent in a time, and who has how much of it: token buckets, a bounded table of them, places. Pure.

Rules:
- `now` (seconds), rate and burst are arguments of every call, so that limits may change at any time: what is there is
  cut to a smaller burst at the next call, a larger one has to be earned;
- from any call on, no stretch of time has more than the burst and what the rate of then gives;
- a clock that stands still or goes back earns nothing;
- what counts as one address is an IPv4 address or an IPv6 /64, because a host on IPv6 has a whole /64 to itself.

Left out: what a limit is and where it is configured. A rate of 0 ("no limit") is the caller's to leave alone.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ADDRESSES = 16_384
"""Addresses in a table of buckets unless told otherwise, about 200 bytes each."""
_NEARLY = 1e-9
"""A refill that should have come to exactly one token may fall short of it by rounding."""


@lru_cache(maxsize=4096)
def address_key(address: str) -> str:
    """What counts as one address: "192.0.2.7" -> itself, "2001:db8::1" -> "2001:db8::/64".

    Whatever is no IP address (the peer of a Unix socket) counts by itself.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)


@dataclass(slots=True)
class Bucket:
    """Tokens that come back at a rate, up to a burst. `tokens` are as of `stamp`; new, it is full."""

    tokens: float = math.inf
    stamp: float = 0.0

    def refill(self, now: float, rate: float, burst: float) -> None:
        """Earn `rate` tokens a second up to `burst`."""
        if now > self.stamp:
            self.tokens += (now - self.stamp) * rate
            self.stamp = now
        if self.tokens > burst:
            self.tokens = burst

    def spend(self, amount: float, rate: float) -> float:
        """Take `amount`, into debt if need be; returns the seconds until the bucket has made up for it."""
        self.tokens -= amount
        return max(0.0, -self.tokens / rate)

    def draw(self, rate: float, amount: float = 1.0) -> float:
        """Take `amount` and return 0.0, or take nothing and return the seconds until there is so much.

        More than the burst is never there: whoever may ask for that has to `spend`.
        """
        missing = amount - self.tokens
        if missing > _NEARLY:
            return missing / rate
        self.tokens = max(0.0, self.tokens - amount)
        return 0.0


class Buckets:
    """A bucket for every key. When the table is full, the key that was quiet longest is forgotten.

    Forgetting gives its owner a full bucket the next time; whoever owns more keys than the table has rows could be
    served under each of them anyway.
    """

    def __init__(self, capacity: int = MAX_ADDRESSES) -> None:
        self._capacity = capacity
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str, now: float, rate: float, burst: float) -> Bucket:
        """The bucket of `key` as of now; a new one is full."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._capacity:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = Bucket(burst, now)
            return bucket
        self._buckets.move_to_end(key)
        bucket.refill(now, rate, burst)
        return bucket

    def all(self) -> Iterable[Bucket]:
        """Every bucket there is, the quietest first."""
        return self._buckets.values()


class Places:
    """Connections there are, in all and by key (an `address_key`)."""

    def __init__(self) -> None:
        self.total = 0
        self._by_key: Counter[str] = Counter()

    def enter(self, key: str, *, limit: int, limit_per_key: int) -> str | None:
        """Take a place and return None, or take none and say which limit is in the way: "clients" or "address"."""
        if self.total >= limit:
            return "clients"
        if self._by_key[key] >= limit_per_key:
            return "address"
        self.total += 1
        self._by_key[key] += 1
        return None

    def leave(self, key: str) -> None:
        """Give a place back that `enter` gave."""
        self.total -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]
