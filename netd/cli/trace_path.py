"""A path as it becomes known, hop by hop: the figures behind the rows of `netctl trace`. Pure.

    fields of a "hop" event ----> Route.see_hop --+
    rows of a "round", a record -> Route.see_row --+--> rows(): one Row a TTL
    fields of "done" ------------> Route.end ------+

Rules:
- fields come in camelCase (events) or snake_case (REST); any may be absent, and what is not understood is ignored;
- figures the daemon gives win over figures counted here;
- counted here, a silent hop is lost only if nothing shows that the packet went on: a farther hop of the same round that
  answered itself, the daemon's word `limited`, or the destination farther away. Until the trace ends, that is open;
- bounded: TTLs 1 to 64, 16 addresses each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_TTL = 64
MAX_ADDRESSES = 16

Fields = Mapping[str, Any]


def snake(fields: Fields) -> dict[str, Any]:
    """The same fields with camelCase keys in snake_case; the first level only."""
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): value for key, value in fields.items()}


def number(value: Any) -> float | None:
    """`value` if it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: Any) -> int | None:
    """`value` if it is an integer."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass
class Row:
    """One TTL. Times in milliseconds, loss in percent; None: not known."""

    ttl: int
    router: str | None = None
    name: str | None = None
    asn: int | None = None
    as_name: str | None = None
    kind: str = "silent"
    rounds: int = 0
    last_ms: float | None = None
    best_ms: float | None = None
    mean_ms: float | None = None
    worst_ms: float | None = None
    jitter_ms: float | None = None
    loss_percent: float | None = None
    notes: list[str] = field(default_factory=list)
    addresses: dict[str, int] = field(default_factory=dict)
    counted_elsewhere: bool = False
    """The daemon has told the loss: it is not counted here any more."""
    _answered: int = 0
    _timed: int = 0
    _lost: int = 0
    _open: int = 0

    @property
    def remarks(self) -> list[str]:
        """What is remarkable about it, in a few words each."""
        return [*self.notes, *(["shared"] if self.kind == "shared" else [])]

    def answer(self, router: str, rtt_ms: float | None) -> None:
        """It answered in one more round."""
        self._answered += 1
        self.router = router
        if router in self.addresses or len(self.addresses) < MAX_ADDRESSES:
            self.addresses[router] = self.addresses.get(router, 0) + 1
        if rtt_ms is not None:
            self._timed += 1
            self.last_ms = rtt_ms
            self.best_ms = rtt_ms if self.best_ms is None else min(self.best_ms, rtt_ms)
            self.worst_ms = rtt_ms if self.worst_ms is None else max(self.worst_ms, rtt_ms)
            self.mean_ms = rtt_ms if self.mean_ms is None else self.mean_ms + (rtt_ms - self.mean_ms) / self._timed
        self._count_loss()

    def silence(self, *, passed: bool) -> None:
        """It did not answer in one more round; `passed`: although the packet went on."""
        if not passed:
            self._open += 1
        self._count_loss()

    def end(self, dest_ttl: int | None) -> None:
        """The trace is over: silences that were open are losses, unless the destination lies behind them."""
        if dest_ttl is None or dest_ttl <= self.ttl:
            self._lost += self._open
        self._open = 0
        self._count_loss()

    def _count_loss(self) -> None:
        counted = self._answered + self._lost
        if not self.counted_elsewhere:
            self.loss_percent = 100.0 * self._lost / counted if counted else None


class Route:
    """All hops of one trace, over all its rounds."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._farthest = 0
        self.round = 0
        """The latest round a hop was seen in; 0 before the first."""
        self.dest_ttl: int | None = None

    def rows(self) -> list[Row]:
        """By rising TTL, as far as the destination if that is known."""
        return [row for ttl, row in sorted(self._rows.items()) if self.dest_ttl is None or ttl < self.dest_ttl]

    def see_hop(self, fields: Fields) -> Row | None:
        """One hop of one round. Returns its row, None if the fields make no sense."""
        hop = snake(fields)
        row = self._row(hop)
        if row is None:
            return None
        number_of_round = whole(hop.get("round")) or max(self.round, 1)
        if number_of_round != self.round:
            self.round, self._farthest = number_of_round, 0
        row.rounds += 1
        router = hop.get("router") or hop.get("addr") or hop.get("ip")
        if router:
            if row.kind != "shared":
                self._farthest = max(self._farthest, row.ttl)
            row.answer(str(router), number(hop.get("rtt_ms")))
        else:
            row.silence(passed=bool(hop.get("limited")) or row.ttl < self._farthest)
        return row

    def see_row(self, fields: Fields) -> Row | None:
        """One TTL with the daemon's own figures over all rounds."""
        given = snake(fields)
        row = self._row(given)
        if row is None:
            return None
        row.router = router if isinstance(router := given.get("router"), str) else None
        row.rounds = whole(given.get("rounds")) or row.rounds
        for name in ("last_ms", "best_ms", "mean_ms", "worst_ms", "jitter_ms", "loss_percent"):
            if name in given:
                setattr(row, name, number(given[name]))
        addresses = given.get("addresses")
        if isinstance(addresses, list):
            seen = [entry for entry in addresses if isinstance(entry, Mapping) and entry.get("ip")]
            row.addresses = {str(entry["ip"]): whole(entry.get("count")) or 1 for entry in seen[:MAX_ADDRESSES]}
        row.counted_elsewhere = row.counted_elsewhere or "loss_percent" in given
        if whole(given.get("answered")) == 0 and _LIMITED in row.notes:
            row.notes.remove(_LIMITED)  # it never answered: over all rounds that is silence
        return row

    def see_rows(self, fields: Fields) -> None:
        """Whatever rows the fields of a "round", a "done" or a record hold."""
        for key in ("hops", "rows"):
            rows = fields.get(key)
            if isinstance(rows, list):
                for row in rows:
                    if isinstance(row, Mapping):
                        self.see_row(row)

    def see_name(self, router: object, name: object) -> None:
        """A router's reverse DNS name, which comes when it comes."""
        for row in self._rows.values():
            if row.router == router and isinstance(name, str):
                row.name = name

    def end(self, fields: Fields) -> None:
        """The trace is over."""
        done = snake(fields)
        self.see_rows(done)
        self.dest_ttl = whole(done.get("dest_ttl")) or self.dest_ttl
        for row in self._rows.values():
            row.end(self.dest_ttl)

    def _row(self, hop: Fields) -> Row | None:
        """The row of a hop's TTL, with what a hop and a row have in common."""
        ttl = whole(hop.get("ttl"))
        if ttl is None or not 1 <= ttl <= MAX_TTL:
            return None
        row = self._rows.setdefault(ttl, Row(ttl))
        kind = hop.get("kind")
        if isinstance(kind, str) and (kind != "silent" or not row.rounds):
            row.kind = kind
        for name in ("name", "as_name"):
            if isinstance(value := hop.get(name), str):
                setattr(row, name, value)
        row.asn = whole(hop.get("asn")) or row.asn
        for note in notes(hop):
            if note not in row.notes:
                row.notes.append(note)
        return row


_LIMITED = "rate limited"


def notes(hop: Fields) -> list[str]:
    """What is remarkable about a hop (snake_case fields), in a few words each."""
    found: list[str] = []
    if hop.get("nat"):
        found.append("NAT")
    if hop.get("kind") == "unreach":
        code = whole(hop.get("unreach_code"))
        found.append("unreachable" if code is None else f"unreachable, code {code}")
    labels = hop.get("mpls")
    if isinstance(labels, list) and labels:
        names = [str(label.get("label")) for label in labels if isinstance(label, Mapping)]
        found.append("MPLS " + "/".join(names))
    limited = hop.get("limited")
    # a router that never answers is silent; one that answers some rounds and forwards in the others limits its rate
    if limited is True or (whole(limited) and whole(hop.get("answered"))):
        found.append(_LIMITED)
    if hop.get("quoted_tos") is not None:
        found.append(f"TOS {hop['quoted_tos']}")
    if hop.get("next_mtu"):
        found.append(f"MTU {hop['next_mtu']}")
    return found
