"""What many rounds over one path say together: loss, times and jitter per hop, distance, signs of a proxy.

    Path, Path, ... --> Rounds.add --> rows(): one HopRow a TTL     summary(): the client itself

Rules:
- the unit of loss is a round at a TTL, all its attempts unanswered; single attempts are not told apart;
- an unanswered TTL counts as lost only where nothing shows that the packet went on. It went on when, in the same round,
  a farther hop or the client itself answered (an answer borrowed from another trace shows nothing). Then the router
  forwarded but did not answer, and whether it ever does tells why:
    limited  the tracer says so, or the TTL answered in another round, earlier or later, or for another client: ICMP
             rate limiting (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f);
    silent   it has never answered anybody we know of: a policy of silence;
- limited and silent rounds stay out of the loss. A TTL that never answered but was passed at least once has no loss at
  all: its rounds are all silent, those in which nothing behind it answered too, and loss_percent is None, rather than
  0 or 100 %. One that never answered and was never passed is lost, 100 %;
- jitter is the mean absolute difference of successive answered times, the |D| of RFC 3550 section 6.4.1 averaged
  plainly: its 1/16 smoothing would need dozens of rounds to say anything;
- times are milliseconds, loss is percent. Pure: no clock, no I/O.

Left out: what a round is and how it is run (netd.net.paths.path), and who may see the addresses (protocol.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netd.net.paths.path import HopKind, Method, MplsLabel, Reason

if TYPE_CHECKING:
    from netd.net.paths.path import Hop, Path

MAX_ADDRESSES = 16
"""Addresses remembered for one TTL; more (or a forger's) are only counted."""

PROXY_GAP_MS = 20.0
"""A pong that takes this much longer than TCP itself, and half as long again, has gone farther than TCP does."""


@dataclass(frozen=True, slots=True)
class Times:
    """Round trip times in milliseconds; all None (and count 0) before the first."""

    count: int
    best: float | None
    mean: float | None
    worst: float | None
    last: float | None
    jitter: float | None
    """None before the second."""


@dataclass(frozen=True, slots=True)
class HopRow:
    """One TTL over all rounds. rounds == answered + lost + limited + silent."""

    ttl: int
    kind: HopKind
    """Of its latest answer; silent if there was none."""
    router: str | None
    """The address that answered most often; of several, the one seen first."""
    addresses: tuple[tuple[str, int], ...]
    """Every address with its number of answers, in the order of appearance (ECMP, route changes)."""
    more_addresses: int
    """Answers from addresses past MAX_ADDRESSES."""
    rounds: int
    answered: int
    shared: int
    """Of the answered, those learnt for another client."""
    lost: int
    limited: int
    """Passed without an answer, by a router that answers at other times or to others."""
    silent: int
    """Passed without an answer, by a router that never gave one."""
    loss_percent: float | None
    """lost of answered + lost; None where both are 0."""
    rtt: Times
    reply_ttl: int | None
    nat: bool
    mpls: tuple[MplsLabel, ...]
    unreach_code: int | None
    quoted_tos: int | None
    next_mtu: int | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The client itself over all rounds."""

    rounds: int
    reached: int
    """Rounds in which the client answered."""
    reason: Reason | None
    """destination if any round reached the client, else why the latest ended; None before the first."""
    method: Method | None
    dest_ttl: int | None
    """Distance in the latest round that reached the client."""
    est_ttl: int | None
    path_rtt: Times
    tcp_rtt_ms: float | None
    """Least of the rounds."""
    pong_rtt_ms: float | None
    """Least of the rounds."""
    proxy: bool | None
    """The gap between pong and TCP marks a proxy or VPN (CalcuLatency, USENIX Security 2024); None: not known."""
    probes: int
    elapsed_ms: float
    """Of the rounds themselves, without the pauses between them."""


def has_gap(tcp_rtt_ms: float | None, pong_rtt_ms: float | None) -> bool | None:
    """Whether the answer to a protocol ping comes from farther away than the end of the TCP connection."""
    if tcp_rtt_ms is None or pong_rtt_ms is None:
        return None
    return pong_rtt_ms - tcp_rtt_ms > max(PROXY_GAP_MS, tcp_rtt_ms / 2)


class _Times:
    __slots__ = ("_best", "_count", "_differences", "_last", "_total", "_worst")

    def __init__(self) -> None:
        self._count = 0
        self._total = 0.0
        self._differences = 0.0
        self._best = self._worst = self._last = 0.0

    def add(self, ms: float) -> None:
        if self._count:
            self._differences += abs(ms - self._last)
            self._best = min(self._best, ms)
            self._worst = max(self._worst, ms)
        else:
            self._best = self._worst = ms
        self._count += 1
        self._total += ms
        self._last = ms

    def view(self) -> Times:
        if not self._count:
            return Times(0, None, None, None, None, None)
        jitter = self._differences / (self._count - 1) if self._count > 1 else None
        # a sum of floats may round past its own terms
        mean = min(max(self._total / self._count, self._best), self._worst)
        return Times(self._count, self._best, mean, self._worst, self._last, jitter)


@dataclass(slots=True)
class _Row:
    kind: HopKind = "silent"
    addresses: dict[str, int] = field(default_factory=dict)
    more: int = 0
    answered: int = 0
    shared: int = 0
    unanswered: int = 0
    """Rounds without an answer here or anywhere behind."""
    limited: int = 0
    """Rounds that the tracer itself called limited."""
    passed: int = 0
    """Other rounds without an answer here, but with one from behind."""
    silent_now: bool = False
    rtt: _Times = field(default_factory=_Times)
    reply_ttl: int | None = None
    nat: bool = False
    mpls: tuple[MplsLabel, ...] = ()
    unreach_code: int | None = None
    quoted_tos: int | None = None
    next_mtu: int | None = None

    def answer(self, hop: Hop, addr: str) -> None:
        self.kind = hop.kind
        self.answered += 1
        self.shared += hop.kind == "shared"
        if addr in self.addresses or len(self.addresses) < MAX_ADDRESSES:
            self.addresses[addr] = self.addresses.get(addr, 0) + 1
        else:
            self.more += 1
        if hop.rtt_ms is not None:
            self.rtt.add(hop.rtt_ms)
        if hop.reply_ttl is not None:
            self.reply_ttl = hop.reply_ttl
        self.nat = self.nat or hop.nat
        self.mpls = hop.mpls or self.mpls
        self.unreach_code = hop.unreach_code
        self.quoted_tos = hop.quoted_tos
        self.next_mtu = hop.next_mtu if hop.next_mtu is not None else self.next_mtu

    def view(self, ttl: int) -> HopRow:
        lost, limited, silent = self.unanswered, self.limited, 0
        if self.answered or self.limited:
            limited += self.passed
        elif self.passed:
            lost, silent = 0, self.passed + self.unanswered
        counted = self.answered + lost
        return HopRow(
            ttl=ttl,
            kind=self.kind,
            router=max(self.addresses, key=self.addresses.__getitem__) if self.addresses else None,
            addresses=tuple(self.addresses.items()),
            more_addresses=self.more,
            rounds=counted + limited + silent,
            answered=self.answered,
            shared=self.shared,
            lost=lost,
            limited=limited,
            silent=silent,
            loss_percent=100.0 * lost / counted if counted else None,
            rtt=self.rtt.view(),
            reply_ttl=self.reply_ttl,
            nat=self.nat,
            mpls=self.mpls,
            unreach_code=self.unreach_code,
            quoted_tos=self.quoted_tos,
            next_mtu=self.next_mtu,
        )


class Rounds:
    """The rounds of one trace so far. Its size is bounded by TTLs and MAX_ADDRESSES, not by the number of rounds."""

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._path_rtt = _Times()
        self._rounds = 0
        self._reached = 0
        self._latest: Path | None = None
        self._dest_ttl: int | None = None
        self._est_ttl: int | None = None
        self._tcp_rtt_ms: float | None = None
        self._pong_rtt_ms: float | None = None
        self._probes = 0
        self._elapsed_ms = 0.0

    def __len__(self) -> int:
        return self._rounds

    def add(self, path: Path) -> None:
        """Count one finished round."""
        self._rounds += 1
        self._latest = path
        self._probes += path.probes
        self._elapsed_ms += path.elapsed_ms
        self._tcp_rtt_ms = _least(self._tcp_rtt_ms, path.tcp_rtt_ms)
        if path.est_ttl is not None:
            self._est_ttl = path.est_ttl
        if path.dest_ttl is not None:
            self._reached += 1
            self._dest_ttl = path.dest_ttl
            if path.dest_rtt_ms is not None:
                self._path_rtt.add(path.dest_rtt_ms)
        self._add_hops(path)

    def _add_hops(self, path: Path) -> None:
        farthest = path.dest_ttl or max((hop.ttl for hop in path.hops if hop.addr and hop.kind != "shared"), default=0)
        for hop in path.hops:
            row = self._rows.setdefault(hop.ttl, _Row())
            row.silent_now = hop.addr is None
            if hop.addr is not None:
                row.answer(hop, hop.addr)
            elif hop.limited:
                row.limited += 1
            elif hop.ttl < farthest:
                row.passed += 1
            else:
                row.unanswered += 1

    def add_pong(self, rtt_ms: float) -> None:
        """The answer to a round's protocol ping, whenever it came."""
        self._pong_rtt_ms = _least(self._pong_rtt_ms, rtt_ms)

    def mute(self) -> frozenset[int]:
        """TTLs that did not answer in their latest round: asking them again and again in the next is of no use."""
        return frozenset(ttl for ttl, row in self._rows.items() if row.silent_now)

    def rows(self) -> tuple[HopRow, ...]:
        """By rising TTL."""
        return tuple(row.view(ttl) for ttl, row in sorted(self._rows.items()))

    def summary(self) -> Summary:
        latest = self._latest
        reason: Reason | None = "destination" if self._reached else latest.reason if latest else None
        return Summary(
            rounds=self._rounds,
            reached=self._reached,
            reason=reason,
            method=latest.method if latest else None,
            dest_ttl=self._dest_ttl,
            est_ttl=self._est_ttl,
            path_rtt=self._path_rtt.view(),
            tcp_rtt_ms=self._tcp_rtt_ms,
            pong_rtt_ms=self._pong_rtt_ms,
            proxy=has_gap(self._tcp_rtt_ms, self._pong_rtt_ms),
            probes=self._probes,
            elapsed_ms=self._elapsed_ms,
        )


def _least(known: float | None, new: float | None) -> float | None:
    if known is None or new is None:
        return new if known is None else known
    return min(known, new)
