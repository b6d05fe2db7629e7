"""Paths as data, and rounds driven over them under a simulated clock: no socket, no waiting.

net = SimNet()
client = net.client("198.51.100.7", routers(5, silent={3}))
net.run()
assert client.hops == ...
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

from netd.net.paths.path import Hop, TraceOptions
from netd.net.paths.round import Finished, Probe, Round
from netd.net.paths.sharing import Ledger
from netd.wire.ip import pack_address

LOCAL = pack_address("192.0.2.1")


@dataclass(eq=False)
class Router:
    """`limited`: as a Linux router at its stock settings, a burst of 6 errors, then one a second."""

    addr: str
    silent: bool = False
    limited: bool = False
    nat: bool = False
    tokens: float = 6.0
    at: float = 0.0
    asked: int = 0

    def answers(self, now: float) -> bool:
        self.asked += 1
        if self.silent:
            return False
        if not self.limited:
            return True
        self.tokens = min(6.0, self.tokens + (now - self.at))
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def routers(count: int, *, name: str = "10.0.0", silent=(), limited=(), nat=()) -> list[Router]:
    """Routers 1..count as seen from this host; options name them by TTL."""
    return [Router(f"{name}.{ttl}", ttl in silent, ttl in limited, ttl in nat) for ttl in range(1, count + 1)]


@dataclass
class SimClient:
    """One client, its path and what came of its round."""

    net: SimNet
    address: str
    path: list[Router]
    round: Round
    link: float
    names: bool
    lost: set[tuple[int, int]]
    chatter: float
    segments: int = 0
    sends: list[tuple[float, int, int]] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    news: list[Hop] = field(default_factory=list)
    reason: str | None = None
    ended: float = 0.0
    due: float = math.inf

    @property
    def distance(self) -> int:
        return len(self.path) + 1

    @property
    def rtt(self) -> float:
        return 2 * self.distance * self.link

    @property
    def hops(self) -> list[str | None]:
        return [hop.addr for hop in self.round.hops()]

    @property
    def kinds(self) -> Counter:
        return Counter(hop.kind for hop in self.round.hops())

    @property
    def truth(self) -> list[str | None]:
        return [router.addr for router in self.path]

    def poll(self) -> None:
        if self.reason is not None:
            return
        now = self.net.now
        self.round.counted(self.segments, now)
        while isinstance(step := self.round.poll(now), Probe):
            self.round.sent(step, now)
            self.send(step)
        self.news += self.round.news()
        if isinstance(step, Finished):
            self.reason, self.ended = step.reason, now
            return
        until = step.until
        if self.round.counting:
            until = min(until, now + 0.001)
        if until < self.due:
            self.due = until
            self.net.at(until, self._wake)

    def _wake(self) -> None:
        """Like a timer that is set anew: polls that nobody waits for any more are none."""
        if self.net.now >= self.due:
            self.due = math.inf
            self.poll()

    def send(self, probe: Probe) -> None:
        now, ttl = self.net.now, probe.ttl
        self.sends.append((now, ttl, probe.attempt))
        if (ttl, probe.attempt) in self.lost:
            return
        if ttl < self.distance:
            self.net.at(now + ttl * self.link, lambda: self._expire(ttl, now))
        else:
            self.reached.append(ttl)
            self.net.at(now + self.rtt, lambda: self._duplicate(ttl, now))

    def _expire(self, ttl: int, sent: float) -> None:
        router = self.path[ttl - 1]
        if not router.answers(self.net.now):
            return

        def arrive() -> None:
            hidden = any(nat.nat for nat in self.path[:ttl])
            addr = self.address if hidden else router.addr
            rtt_ms = (self.net.now - sent) * 1000
            self.round.replied(ttl, Hop(ttl, addr, rtt_ms, "ttl", nat=hidden), self.net.now)
            self.poll()

        self.net.at(self.net.now + ttl * self.link, arrive)

    def _duplicate(self, ttl: int, sent: float) -> None:
        self.segments += 1
        if self.names:
            self.round.reached(ttl, (self.net.now - sent) * 1000, self.distance, self.net.now)
        self.poll()

    def chat(self) -> None:
        """The connection carries something of its own."""
        self.segments += 1
        if self.reason is None:
            self.net.at(self.net.now + self.chatter, self.chat)


class SimNet:
    """Time, and the clients whose rounds run in it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ledger = Ledger()
        self.clients: list[SimClient] = []
        self._events: list = []
        self._serial = itertools.count()

    def at(self, when: float, call) -> None:
        heapq.heappush(self._events, (when, next(self._serial), call))

    def client(
        self,
        address: str,
        path: list[Router],
        *,
        link: float = 0.001,
        est: int | str | None = "exact",
        names: bool = True,
        sack: bool = True,
        lost=(),
        options: TraceOptions = TraceOptions(),  # noqa: B008  # frozen
        chatter: float = 0.0,
        connection: object = None,
        at: float | None = None,
    ) -> SimClient:
        """A round to a client behind `path`. `names`: it says what it saw twice; without `sack` we know it cannot."""
        distance = len(path) + 1
        start = self.now if at is None else at
        client: SimClient

        def wake() -> None:
            self.at(self.now, lambda: client.poll())

        rtt = 2 * distance * link
        share = self.ledger.join(
            LOCAL,
            pack_address(address),
            connection or (address, len(self.clients)),
            now=start,
            hold=min(max(0.1, 3 * rtt), options.timeout / 3),
            adopt=options.share,
            wake=wake,
        )
        round_ = Round(
            options,
            now=start,
            distance=distance if est == "exact" else est,
            rtt=rtt,
            share=share,
            names_duplicates=sack,
        )
        client = SimClient(self, address, path, round_, link, names and sack, set(lost), chatter)
        self.clients.append(client)
        self.at(start, client.poll)
        if chatter:
            self.at(start, client.chat)
        return client

    def run(self, limit: float = 120.0) -> None:
        """Until every round is finished; AssertionError if one is not within `limit` seconds."""
        end = self.now + limit
        while self._events and any(client.reason is None for client in self.clients):
            when, _, call = heapq.heappop(self._events)
            assert when <= end, "a round did not come to its end"
            self.now = max(self.now, when)
            call()
        self._events.clear()
        assert all(client.reason is not None for client in self.clients), "a round waits for nothing"
