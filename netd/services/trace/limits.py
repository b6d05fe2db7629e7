"""How often an address may be traced and how many connections it may hold. Pure: `now` (seconds) is an argument.

Rules:
- what counts as one address is an IPv4 address or an IPv6 /64, because a host on IPv6 has a whole /64 to itself;
- an address has `burst` traces at once and then earns one every `interval`; reconnecting changes nothing about that;
- a turn may be *reserved*: it will come after the delay that `reserve` returns, and is given back if nobody used it;
- the table forgets the address that was quiet longest when it is full, so its memory is bounded; whoever owns more
  addresses than the table has rows could be traced from each of them anyway, within the host's own limits.

Left out: the limits of the host as a whole (traces at once, probes a second), which the tracer enforces.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict

from netd.net.paths.budget import Bucket

MAX_ADDRESSES = 16_384
"""Addresses in the table of turns, about 200 bytes each."""


def address_key(address: str) -> str:
    """What counts as one address: "192.0.2.7" -> itself, "2001:db8::1" -> "2001:db8::/64"."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)


class Turns:
    """The turns to be traced of every address, most recently used last."""

    def __init__(self, *, interval: float, burst: int, capacity: int = MAX_ADDRESSES) -> None:
        self._interval = interval
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def configure(self, *, interval: float, burst: int) -> None:
        """Change both from now on; what was used stays used, and a larger burst is there for every address at once."""
        more = burst - self._burst
        self._interval = interval
        self._burst = burst
        for bucket in self._buckets.values():
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
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._capacity:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = Bucket(float(self._burst), now)
        self._buckets.move_to_end(key)
        bucket.refill(now, 1.0 / self._interval, float(self._burst))
        return bucket


class Places:
    """Connections there are, in all and by address."""

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


class Pace:
    """How fast one client may send: `rate` bytes a second, four seconds' worth at once."""

    def __init__(self, rate: float, now: float) -> None:
        self._bucket = Bucket(rate * 4, now)

    def delay(self, size: int, rate: float, now: float) -> float:
        """`size` bytes arrived: the seconds to wait before reading more."""
        self._bucket.refill(now, rate, rate * 4)
        return self._bucket.spend(size, rate)
