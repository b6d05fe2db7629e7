"""What the trace service tells the host: notices on the bus, and from there SSE and `netctl trace watch`.

Rules: plain values only (they become JSON as they are); times in milliseconds, to the microsecond; a hop's address is
never withheld here, operators see all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from netd.runtime.bus import Notice


@dataclass(frozen=True, kw_only=True)
class TraceNotice(Notice):
    """Base of the trace service's notices."""

    service: ClassVar[str] = "trace"


@dataclass(frozen=True, kw_only=True)
class ClientConnected(TraceNotice):
    """A client's handshake is done. `address` is "192.0.2.7:50312" or "[2001:db8::1]:50312"."""

    kind: ClassVar[str] = "clientConnected"
    client_id: str
    address: str


@dataclass(frozen=True, kw_only=True)
class HopSeen(TraceNotice):
    """One hop of one round, as soon as it is known. `hop_kind` travels as "kind": ttl, unreach, shared or silent."""

    kind: ClassVar[str] = "hop"
    client_id: str
    trace_id: str
    round: int
    """Counts from 1."""
    ttl: int
    router: str | None
    """None while silent."""
    rtt_ms: float | None
    hop_kind: str
    reply_ttl: int | None = None
    nat: bool | None = None
    mpls: list[dict[str, Any]] | None = None
    limited: bool | None = None
    unreach_code: int | None = None
    quoted_tos: int | None = None
    next_mtu: int | None = None
    name: str | None = None
    asn: int | None = None
    as_name: str | None = None

    def as_json(self) -> dict[str, Any]:
        value = super().as_json()
        value["kind"] = value.pop("hopKind")
        return value


@dataclass(frozen=True, kw_only=True)
class HopNamed(TraceNotice):
    """The reverse DNS name of a router that a trace of this client met."""

    kind: ClassVar[str] = "name"
    client_id: str
    trace_id: str
    router: str
    name: str


@dataclass(frozen=True, kw_only=True)
class ClientDone(TraceNotice):
    """A trace ended; the client may stay. Times over all rounds: the path's mean, TCP's and the pong's least."""

    kind: ClassVar[str] = "clientDone"
    client_id: str
    trace_id: str
    address: str
    reason: str
    rounds: int
    probes: int
    elapsed_ms: float
    method: str | None = None
    dest_ttl: int | None = None
    est_ttl: int | None = None
    path_rtt_ms: float | None = None
    tcp_rtt_ms: float | None = None
    pong_rtt_ms: float | None = None
    proxy: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ClientGone(TraceNotice):
    """A client's connection ended. `reason` is a phrase."""

    kind: ClassVar[str] = "clientGone"
    client_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TraceError(TraceNotice):
    """Something went wrong that an operator should know."""

    kind: ClassVar[str] = "error"
    message: str
    client_id: str | None = None
