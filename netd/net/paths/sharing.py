"""What traces learn from one another, so that routers near this host are not asked the same by every client. Pure.

Routers limit the errors they send (Linux: a burst of 6 to one destination, then one a second), and every trace of this
host asks the same near routers from the same address. Two ways of sharing, both per local address:

    prefix   clients of one /24 (IPv6: /48) are taken to have one path: who comes second adopts what the first found,
             and waits for probes the first has in flight instead of sending its own
    trunk    the first hops out of this host that every recent path had in common are adopted by all clients, as
             Doubletree does (Donnet et al., SIGMETRICS 2005). With no trunk known, three prefixes scout for all others.
             A client that relies on the trunk probes its far end itself: another answer there, and it trusts it no
             more. No answer says nothing while so many ask that a router at its limit cannot answer all of them, and
             the trunk is trusted; with fewer it is this client's own router that is silent, and it is not

Rules:
- time is an argument: seconds of a monotonic clock;
- a hop at or beyond a NAT, and an unreachable, says something of one client only: never shared;
- knowledge is adopted once per round and client: who traces continuously measures again as soon as nobody else has;
- every table is bounded; the oldest knowledge goes first.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable  # noqa: TC004  # annotations only, never evaluated

    from netd.net.paths.path import Hop  # noqa: TC004

_K = TypeVar("_K")
_V = TypeVar("_V")

FRESH = 60.0
"""Seconds for which knowledge may be adopted."""
WITNESSES = 3
"""Prefixes that must agree on a hop before it is part of the trunk."""
MOST_PREFIXES = 4096
MOST_CONNECTIONS = 8192
MOST_LOCALS = 64
_MOST_ADDRESSES = 4
"""Addresses kept for one TTL of the trunk: from two on it is no trunk anyway."""
_MOST_WITNESSES = 16
LIMIT_BURST, LIMIT_RATE = 6, 1.0
"""What a Linux router answers to one destination: so many at once, then so many a second (net.ipv4.icmp_ratelimit)."""
_LIMIT_WINDOWS = (1.0, 6.0)
"""Seconds over which the number of those who ask is compared with that."""
_MOST_ASKING = 16
"""Remembered for one TTL; more than a limited router can answer in the longest window."""
_MOST_GAPS = 3
"""Silent TTLs in a row that the trunk may span."""


@dataclass(slots=True)
class _Known:
    hop: Hop
    at: float
    owner: Hashable


@dataclass(slots=True)
class _Prefix:
    """What is known of the path to one prefix, by TTL."""

    hops: dict[int, _Known] = field(default_factory=dict)
    flying: dict[int, tuple[float, Hashable]] = field(default_factory=dict)
    silent: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Trunk:
    """What all paths from one local address have in common, by TTL."""

    witnesses: dict[int, dict[str, OrderedDict[bytes, float]]] = field(default_factory=dict)
    """ttl -> router's address -> prefixes that had it there, newest last."""
    latest: dict[int, _Known] = field(default_factory=dict)
    flying: dict[int, dict[bytes, float]] = field(default_factory=dict)
    silent: dict[int, OrderedDict[bytes, float]] = field(default_factory=dict)
    asking: dict[int, OrderedDict[bytes, float]] = field(default_factory=dict)
    """ttl -> prefixes that probed it, and when, newest last."""
    shares: set[Share] = field(default_factory=set)
    """The rounds that run."""
    end: int = 0
    """The last TTL of the trunk; 0 while there is none."""
    judged: float = float("-inf")

    def judge(self, now: float) -> int:
        """The trunk's end, worked out anew once a second or after news."""
        if now - self.judged >= 1.0:
            self.judged = now
            self.end = self._judge(now)
        return self.end

    def _judge(self, now: float) -> int:
        end = gaps = 0
        for ttl in range(1, 33):
            addresses = self.fresh(ttl, now)
            if not addresses:
                gaps += 1
                if gaps > _MOST_GAPS or self.flying.get(ttl):
                    break
                continue
            if len(addresses) > 1 or len(next(iter(addresses.values()))) < WITNESSES:
                break
            end, gaps = ttl, 0
        return end

    def fresh(self, ttl: int, now: float) -> dict[str, OrderedDict[bytes, float]]:
        """The addresses seen at this TTL of late; what is too old is forgotten on the way."""
        addresses = self.witnesses.get(ttl)
        if addresses is None:
            return {}
        for address, prefixes in list(addresses.items()):
            while prefixes and now - next(iter(prefixes.values())) > FRESH:
                prefixes.popitem(last=False)
            if not prefixes:
                del addresses[address]
        return addresses

    def saw(self, prefix: bytes, known: _Known, now: float) -> None:
        ttl, address = known.hop.ttl, known.hop.addr
        assert address is not None
        self.witnesses.setdefault(ttl, {})
        addresses = self.fresh(ttl, now)
        if address not in addresses and len(addresses) >= _MOST_ADDRESSES:
            addresses.pop(min(addresses, key=lambda one: next(reversed(addresses[one].values()), 0.0)))
        prefixes = addresses.setdefault(address, OrderedDict())
        # the first ones stay: they are those that saw the nearer routers, too (`joined`)
        if prefix in prefixes or len(prefixes) < _MOST_WITNESSES:
            prefixes[prefix] = now
            prefixes.move_to_end(prefix)
        self.latest[ttl] = known
        self.silent.pop(ttl, None)
        self.judged = float("-inf")

    def ask(self, ttl: int, prefix: bytes, now: float) -> None:
        asking = self.asking.setdefault(ttl, OrderedDict())
        asking[prefix] = now
        asking.move_to_end(prefix)
        if len(asking) > _MOST_ASKING:
            asking.popitem(last=False)

    def crowded(self, ttl: int, now: float) -> bool:
        """More have asked of late than one router at its limit can have answered."""
        times = self.asking.get(ttl, OrderedDict[bytes, float]()).values()
        return any(
            sum(now - at <= window for at in times) > LIMIT_BURST + LIMIT_RATE * window for window in _LIMIT_WINDOWS
        )

    def joined(self, near: int, far: int) -> bool:
        """A prefix had both routers in its path, and not each some prefix: or the trunk were two paths spliced."""
        ours, theirs = (self.witnesses.get(ttl, {}).get(self._address(ttl), ()) for ttl in (near, far))
        return near == far or any(prefix in theirs for prefix in ours)

    def _address(self, ttl: int) -> str:
        known = self.latest.get(ttl)
        return "" if known is None else known.hop.addr or ""

    def scouted(self, ttl: int, hold: float, now: float) -> float:
        """Until when enough others are finding out about this TTL; 0 if they are not."""
        flying = {prefix: at for prefix, at in self.flying.get(ttl, {}).items() if now < at + hold}
        addresses = self.fresh(ttl, now)
        seen: OrderedDict[bytes, float] = next(iter(addresses.values()), OrderedDict())
        if len(addresses) > 1 or len(flying.keys() | seen.keys()) < WITNESSES:
            return 0.0
        # all answers for this TTL may be in while a nearer one, on which the trunk depends as well, is still out
        out = [at for near in range(1, ttl + 1) for at in self.flying.get(near, {}).values() if now < at + hold]
        return max(out) + hold if out else 0.0


class Ledger:
    """All shared knowledge of the tracer. Bounded whatever comes."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[tuple[bytes, bytes], _Prefix] = OrderedDict()
        self._trunks: OrderedDict[bytes, _Trunk] = OrderedDict()
        self._rounds: OrderedDict[Hashable, float] = OrderedDict()

    def join(
        self,
        local: bytes,
        peer: bytes,
        connection: Hashable,
        *,
        now: float,
        hold: float,
        adopt: bool = True,
        wake: Callable[[], None] = lambda: None,
    ) -> Share:
        """Take part with one round. `leave` the share at its end.

        `local` and `peer` are packed addresses, `connection` what stays the same over a connection's rounds; `hold` is
        for how long (seconds) a probe of somebody else is worth waiting for; without `adopt` the round takes nothing,
        and nobody waits for it; `wake` is called when something the round waited for has become known.
        """
        prefix = prefix_of(peer)
        key = (local, prefix)
        known = _touch(self._prefixes, key, MOST_PREFIXES, _Prefix)
        trunk = _touch(self._trunks, local, MOST_LOCALS, _Trunk)
        since = self._rounds.get(connection, float("-inf"))
        self._rounds[connection] = now
        self._rounds.move_to_end(connection)
        if len(self._rounds) > MOST_CONNECTIONS:
            self._rounds.popitem(last=False)
        share = Share(known, trunk, prefix, connection, since=since, start=now, hold=hold, adopt=adopt, wake=wake)
        trunk.shares.add(share)
        return share


class Share:
    """One round's view of the ledger."""

    def __init__(
        self,
        known: _Prefix,
        trunk: _Trunk,
        prefix: bytes,
        connection: Hashable,
        *,
        since: float,
        start: float,
        hold: float,
        adopt: bool,
        wake: Callable[[], None],
    ) -> None:
        self._known, self._trunk = known, trunk
        self._prefix, self._connection = prefix, connection
        self._since, self._start, self._hold, self._adopt, self._wake = since, start, hold, adopt, wake
        self.bound = 33
        """The peer's distance, known or supposed: only nearer TTLs are shared. The round keeps it up to date."""
        self._nat = 256
        self._asked: dict[int, float] = {}
        self._answers: dict[int, str] = {}
        self._mistrusts = False
        self._waiting: set[int] = set()

    def known(self, ttl: int, now: float) -> Hop | None:
        """The hop, if it can be adopted right away."""
        if not self._shareable(ttl):
            return None
        known = self._known.hops.get(ttl)
        if known is not None and self._new(known, now):
            return _shared(known.hop)
        if ttl <= self._trunk.judge(now) and self._verified(ttl):
            known = self._trunk.latest.get(ttl)
            if known is not None and self._new(known, now):
                return _shared(known.hop)
        return None

    def _shareable(self, ttl: int) -> bool:
        return self._adopt and ttl < self.bound and ttl < self._nat

    def _verified(self, ttl: int) -> bool:
        """A router of the trunk at or behind this TTL answered this round's own probe, and somebody's path has both."""
        return any(
            ttl <= own <= self._trunk.end
            and self._trunk.latest[own].hop.addr == address
            and self._trunk.joined(ttl, own)
            for own, address in self._answers.items()
            if own in self._trunk.latest
        )

    def _new(self, known: _Known, now: float) -> bool:
        return known.owner != self._connection and known.at > self._since and now - known.at <= FRESH

    def held(self, ttl: int, now: float) -> float:
        """Until when to leave this TTL to others; 0 if nobody else is on it."""
        if not self._shareable(ttl):
            return 0.0
        until = 0.0
        flight = self._known.flying.get(ttl)
        if flight is not None and flight[1] != self._connection:
            until = flight[0] + self._hold
        if not self._mistrusts:
            end = self._trunk.judge(now)
            far = min(end, self.bound - 1)
            known = self._trunk.latest.get(ttl)
            if ttl < far and known is not None and self._new(known, now):
                until = max(until, self._asked.get(far, self._start) + self._hold)
            elif ttl > end and self._prefix not in self._trunk.flying.get(ttl, ()):
                until = max(until, self._trunk.scouted(ttl, self._hold, now))
        if until <= now:
            return 0.0
        self._waiting.add(ttl)
        return until

    def fallback(self, ttl: int, now: float, *, last: bool) -> Hop | None:
        """What to believe when this TTL was left to others, or asked, and no answer came.

        `last`: no attempt is left, so that older knowledge of the prefix is better than none.
        """
        if not self._shareable(ttl):
            return None
        far = min(self._trunk.judge(now), self.bound - 1)
        # the trunk is believed only once its far end was asked: that answer, or the reason there is none, is its proof
        trusted = not self._mistrusts and (
            self._verified(ttl) or (ttl <= far and far in self._asked and self._trunk.crowded(far, now))
        )
        for known in (self._trunk.latest.get(ttl) if trusted else None, self._known.hops.get(ttl) if last else None):
            if known is None or known.owner == self._connection or now - known.at > FRESH:
                continue
            if last or known.at > self._since:
                return _shared(known.hop)
        return None

    def quiet(self, ttl: int, now: float) -> bool:
        """Others found this TTL silent of late: one attempt is enough."""
        if not self._adopt:
            return False
        if now - self._known.silent.get(ttl, float("-inf")) <= FRESH:
            return True
        silent = self._trunk.silent.get(ttl)
        return silent is not None and sum(now - at <= FRESH for at in silent.values()) >= WITNESSES

    def limited(self, ttl: int, now: float) -> bool:
        """A router at this TTL did answer somebody (this connection's earlier rounds too) of late."""
        known = self._known.hops.get(ttl)
        if known is not None and now - known.at <= FRESH:
            return True
        if ttl <= self._trunk.judge(now):
            known = self._trunk.latest.get(ttl)
            return known is not None and now - known.at <= FRESH
        return False

    def sent(self, ttl: int, now: float) -> None:
        """A probe of this TTL went out, expected to end at a router."""
        self._asked.setdefault(ttl, now)
        if self._adopt:
            self._trunk.ask(ttl, self._prefix, now)
            flight = self._known.flying.get(ttl)
            # however often it asks: nobody waits for one connection longer than for one answer
            if flight is None or flight[1] != self._connection:
                self._known.flying[ttl] = (now, self._connection)
            if ttl > self._trunk.judge(now):
                flying = self._trunk.flying.setdefault(ttl, {})
                if len(flying) < _MOST_WITNESSES or self._prefix in flying:
                    flying.setdefault(self._prefix, now)

    def found(self, hop: Hop, now: float) -> None:
        """A probe of this round was answered."""
        if hop.nat:
            self._nat = min(self._nat, hop.ttl)
        if hop.kind != "ttl" or hop.addr is None or hop.ttl >= self._nat:
            self._landed(hop.ttl)
            return
        self._answers[hop.ttl] = hop.addr
        if hop.ttl <= self._trunk.judge(now):
            latest = self._trunk.latest.get(hop.ttl)
            self._mistrusts |= latest is not None and latest.hop.addr != hop.addr
        known = _Known(hop, now, self._connection)
        self._known.hops[hop.ttl] = known
        self._known.silent.pop(hop.ttl, None)
        self._trunk.saw(self._prefix, known, now)
        self._landed(hop.ttl)

    def silent(self, ttl: int, now: float) -> None:
        """Every attempt of this TTL went unanswered, though the path goes on behind it."""
        if self._adopt and not self.limited(ttl, now):
            self._known.silent[ttl] = now
            silent = self._trunk.silent.setdefault(ttl, OrderedDict())
            silent[self._prefix] = now
            if len(silent) > _MOST_WITNESSES:
                silent.popitem(last=False)
        self._landed(ttl)

    def leave(self) -> None:
        """The round is over. May be called twice."""
        self._trunk.shares.discard(self)
        for ttl in self._asked:
            self._landed(ttl)

    def _landed(self, ttl: int) -> None:
        """What this round had in flight for the TTL is no longer to be waited for."""
        flight = self._known.flying.get(ttl)
        if flight is not None and flight[1] == self._connection:
            del self._known.flying[ttl]
        flying = self._trunk.flying.get(ttl)
        if flying is not None and flying.pop(self._prefix, None) is not None:
            self._trunk.judged = float("-inf")
        for share in tuple(self._trunk.shares):
            # whoever waits for a farther TTL of the trunk depends on this one too
            if share is not self and share._waiting and max(share._waiting) >= ttl:
                share._waiting.clear()
                share._wake()


def prefix_of(address: bytes) -> bytes:
    """The /24 or /48 of a packed address."""
    return address[:3] if len(address) == 4 else address[:6]


def _shared(hop: Hop) -> Hop:
    return dataclasses.replace(hop, kind="shared", attempts=0)


def _touch(table: OrderedDict[_K, _V], key: _K, most: int, new: Callable[[], _V]) -> _V:
    """The value at `key`, made if need be, as the table's newest; the oldest goes when there are too many."""
    value = table.get(key)
    if value is None:
        value = table[key] = new()
        if len(table) > most:
            table.popitem(last=False)
    table.move_to_end(key)
    return value
