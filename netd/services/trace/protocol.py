"""The trace service's conversation: JSON text messages, one object each with a "type". Pure: no clock, no I/O.

    from the client            to the client
    {"type": "trace"}          connected    once, after the handshake
    {"type": "ping", "id"?}    waiting      a trace will begin, but not before retry_after_ms
                               hop          one TTL of one round, as soon as it is known
                               round        what all rounds so far say (only where a trace has more than one round)
                               name         a router's reverse DNS name, whenever it is known
                               clientDone   the trace ended; the connection stays, unless the reason is draining
                               pong         to ping, with its id
                               error        what was asked cannot be done; retry_after_ms if it may be asked again

Rules:
- what is not understood is answered by `error` and costs nothing else; unknown fields of a known type are ignored;
- keys are snake_case, types are as the table has them; times are milliseconds; values that are None are left out, but
  for a hop's ip, router and rtt_ms;
- a row of `round` and `clientDone` counts rounds == answered + lost + limited + silent (rounds.py says which is which);
  loss_percent is lost of answered + lost, null for a router that never answers;
- ip and router are the same address: "router" is its older name;
- a private hop's address is withheld (ip and router null, "private": true) unless the configuration reveals it, and
  so is everything that could tell it: its name, its AS and its MPLS labels.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.net.paths.path import Hop, MplsLabel
    from netd.services.trace.rounds import HopRow, Summary, Times

MAX_PING_ID = 64
"""Characters of a ping's id."""

Message = dict[str, Any]

_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598, carrier-grade NAT
        "169.254.0.0/16",  # RFC 3927, link-local
        "127.0.0.0/8",
        "fc00::/7",  # RFC 4193
        "fe80::/10",  # RFC 4291 section 2.5.6, link-local
        "::1/128",
    )
)


# --- from the client -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TraceAsked:
    """The client wants another trace."""


@dataclass(frozen=True, slots=True)
class PingAsked:
    """The client wants a pong with this id (scripts in browsers cannot send a WebSocket ping)."""

    id: str | int | None = None


def parse(message: str | bytes) -> TraceAsked | PingAsked:
    """What a client said. Raises ProtocolError with a sentence for the client."""
    if isinstance(message, bytes):
        raise ProtocolError("cannot read a binary message: send JSON as text")
    try:
        value = json.loads(message, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProtocolError('cannot read the message: it is not JSON; send {"type": "trace"}') from None
    if not isinstance(value, dict):
        raise ProtocolError('cannot read the message: it is not a JSON object; send {"type": "trace"}')
    match value.get("type"):
        case "trace":
            return TraceAsked()
        case "ping":
            return PingAsked(_ping_id(value.get("id")))
        case str(other):
            raise ProtocolError(f'cannot answer a message of type {other[:40]!r}: there are "trace" and "ping"')
        case _:
            raise ProtocolError('cannot read the message: it has no "type"; send {"type": "trace"}')


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are not JSON (RFC 8259 section 6)


def _ping_id(value: object) -> str | int | None:
    if value is None or (isinstance(value, str) and len(value) <= MAX_PING_ID):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return value
    raise ProtocolError(
        f"cannot answer this ping: its id must be a string of at most {MAX_PING_ID} characters or a number"
    )


# --- to the client ---------------------------------------------------------------------------------------------------


def encode(message: Message) -> str:
    """One message as it is sent: compact, ASCII."""
    return json.dumps(message, separators=(",", ":"))


def connected(client_id: str, address: str, *, max_hops: int, rounds: int, interval: float) -> Message:
    """`rounds` 0: until the client leaves. `interval` in seconds travels as interval_ms."""
    return {
        "type": "connected",
        "client_id": client_id,
        "address": address,
        "max_hops": max_hops,
        "rounds": rounds,
        "interval_ms": round(interval * 1000),
    }


def waiting(delay: float) -> Message:
    """`delay` in seconds."""
    return {"type": "waiting", "retry_after_ms": _milliseconds(delay)}


def pong(ping: PingAsked) -> Message:
    return {"type": "pong"} if ping.id is None else {"type": "pong", "id": ping.id}


def error(message: str, *, retry_after: float | None = None) -> Message:
    """`retry_after` in seconds."""
    value: Message = {"type": "error", "message": message}
    if retry_after is not None:
        value["retry_after_ms"] = _milliseconds(retry_after)
    return value


def _milliseconds(seconds: float) -> int:
    """Rounded up: who comes back after so long must not be too early."""
    return -int(-seconds * 1000 // 1)


@lru_cache(maxsize=4096)
def is_private(addr: str) -> bool:
    """Whether an address tells of somebody's inner network. What is no address at all is taken for one that does."""
    try:
        ip = ipaddress.ip_address(addr)
    except ValueError:
        return True
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in _PRIVATE)


def hop(
    trace_id: str,
    round_number: int,
    found: Hop,
    *,
    reveal_private: bool,
    name: str | None = None,
    system: tuple[int, str | None] | None = None,
) -> Message:
    """`system` is the autonomous system's number and name."""
    withheld = found.addr is not None and not reveal_private and is_private(found.addr)
    addr = None if withheld else found.addr
    value: Message = {
        "type": "hop",
        "trace_id": trace_id,
        "round": round_number,
        "ttl": found.ttl,
        "ip": addr,
        "router": addr,
        "rtt_ms": to_ms(found.rtt_ms),
        "kind": found.kind,
    }
    if withheld:
        value["private"] = True
        name, system = None, None
    asn, as_name = system or (None, None)
    return value | _known(
        reply_ttl=found.reply_ttl,
        nat=found.nat or None,
        limited=found.limited or None,
        mpls=None if withheld else mpls_json(found.mpls),
        unreach_code=found.unreach_code,
        quoted_tos=found.quoted_tos,
        next_mtu=found.next_mtu,
        name=name,
        asn=asn,
        as_name=as_name,
    )


def round_done(trace_id: str, summary: Summary, rows: Sequence[HopRow], *, reveal_private: bool) -> Message:
    """After every round of a trace with several."""
    hops = [row_json(row, reveal_private=reveal_private) for row in rows]
    return {"type": "round", "trace_id": trace_id, **summary_json(summary), "hops": hops}


def client_done(
    client_id: str, trace_id: str, reason: str, summary: Summary | None, rows: Sequence[HopRow], *, reveal_private: bool
) -> Message:
    """The end of a trace. `summary` None: the client is not to learn more than that."""
    value: Message = {"type": "clientDone", "client_id": client_id, "trace_id": trace_id}
    if summary is not None:
        value |= summary_json(summary)
        value["hops"] = [row_json(row, reveal_private=reveal_private) for row in rows]
    return value | {"reason": reason}


def named(trace_id: str, addr: str, name: str) -> Message:
    """A name for an address that the client was told."""
    return {"type": "name", "trace_id": trace_id, "ip": addr, "router": addr, "name": name}


# --- the same shapes for REST and the history ------------------------------------------------------------------------


def summary_json(summary: Summary) -> Message:
    """path_rtt_ms is the mean."""
    return _known(
        reason=summary.reason,
        method=summary.method,
        rounds=summary.rounds,
        reached=summary.reached,
        dest_ttl=summary.dest_ttl,
        est_ttl=summary.est_ttl,
        path_rtt_ms=to_ms(summary.path_rtt.mean),
        path_rtt=times_json(summary.path_rtt),
        tcp_rtt_ms=to_ms(summary.tcp_rtt_ms),
        pong_rtt_ms=to_ms(summary.pong_rtt_ms),
        proxy=summary.proxy,
        probes=summary.probes,
        elapsed_ms=to_ms(summary.elapsed_ms),
    )


def row_json(row: HopRow, *, reveal_private: bool = True) -> Message:
    """One TTL over all rounds. A withheld address is null wherever it would stand."""
    shown = {addr: reveal_private or not is_private(addr) for addr, _ in row.addresses}
    withheld = not all(shown.values())
    router = row.router if row.router is not None and shown[row.router] else None
    return {
        "ttl": row.ttl,
        "kind": row.kind,
        "ip": router,
        "router": router,
        "addresses": [{"ip": addr if shown[addr] else None, "count": count} for addr, count in row.addresses],
        "rounds": row.rounds,
        "answered": row.answered,
        "lost": row.lost,
        "limited": row.limited,
        "silent": row.silent,
        "loss_percent": None if row.loss_percent is None else round(row.loss_percent, 2),
        **times_json(row.rtt),
    } | _known(
        private=withheld or None,
        more_addresses=row.more_addresses or None,
        shared=row.shared or None,
        reply_ttl=row.reply_ttl,
        nat=row.nat or None,
        mpls=None if withheld else mpls_json(row.mpls),
        unreach_code=row.unreach_code,
        quoted_tos=row.quoted_tos,
        next_mtu=row.next_mtu,
    )


def times_json(times: Times) -> Message:
    return {
        "best_ms": to_ms(times.best),
        "mean_ms": to_ms(times.mean),
        "worst_ms": to_ms(times.worst),
        "last_ms": to_ms(times.last),
        "jitter_ms": to_ms(times.jitter),
    }


def mpls_json(labels: Sequence[MplsLabel]) -> list[Message] | None:
    """None for an empty stack."""
    return [
        {"label": entry.label, "traffic_class": entry.traffic_class, "bottom": entry.bottom, "ttl": entry.ttl}
        for entry in labels
    ] or None


def to_ms(value: float | None) -> float | None:
    """To the microsecond: more is noise."""
    return None if value is None else round(value, 3)


def _known(**values: Any) -> Message:
    return {key: value for key, value in values.items() if value is not None}
