"""The words of path tracing: what a round is asked, what it needs of a session, what it finds. Pure.

    TraceOptions --> Tracer.trace(carrier, options, on_hop) --> Path
                                                   \\--> Hop, Hop, ...  each as it is known

A *round* is one pass over the path; a *hop* is what is known of one TTL in one round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from netd.wire.icmp import MplsLabel as MplsLabel

if TYPE_CHECKING:
    import socket

Method = Literal["tcp", "udp", "syn"]
"""How probes travel: copies inside the client's own TCP connection, or (unprivileged) a flow of their own."""

HopKind = Literal["ttl", "unreach", "shared", "silent"]
"""ttl: Time Exceeded; unreach: an unreachable from a middlebox; shared: learnt for another client of the same
prefix; silent: every attempt unanswered."""

Reason = Literal[
    "destination",  # the client itself answered
    "max-hops",  # nothing at max_hops either
    "timeout",  # the round's time ran out before the client answered
    "closed",  # the connection ended meanwhile
    "no-carrier",  # the session has no harmless message and wrote nothing long enough
    "no-loopback",  # the kernel did not loop the message back (net.core.tstamp_allow_data?)
    "unprivileged",  # no method is possible with the capabilities there are
    "limited",  # a limit (traces at once, probes a second) did not let it run
]


@dataclass(frozen=True, slots=True)
class Hop:
    """What is known of one TTL. `addr` is the router's address, None while silent; `rtt_ms` is None for silent hops."""

    ttl: int
    addr: str | None
    rtt_ms: float | None
    kind: HopKind
    attempts: int = 1
    """Probes sent for this TTL in this round by this trace (0: all shared)."""
    reply_ttl: int | None = None
    """TTL (hop limit) of the reply as it arrived: the distance back."""
    nat: bool = False
    """The quoted packet or the reply's source shows a NAT at or before this hop."""
    mpls: tuple[MplsLabel, ...] = ()
    unreach_code: int | None = None
    """ICMP code of an unreachable."""
    limited: bool = False
    """The silence looks like ICMP rate limiting (RFC 1812 4.3.2.8), not loss: others, or other rounds, had answers."""
    quoted_tos: int | None = None
    """TOS / traffic class in the quote where it differs from what was sent."""
    next_mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """One finished round. RTTs in milliseconds."""

    hops: tuple[Hop, ...]
    """One for each TTL from 1 to dest_ttl - 1 (or to the last TTL probed), in order."""
    method: Method
    reason: Reason
    dest_ttl: int | None
    """Distance: the TTL at which the client itself answered."""
    est_ttl: int | None
    """Distance as the client's SYN suggested it."""
    dest_rtt_ms: float | None
    """Path RTT: the client's kernel's answer to a probe."""
    tcp_rtt_ms: float | None
    """tcpi_rtt as the round began."""
    probes: int
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class TraceOptions:
    max_hops: int = 30
    """1 to 32."""
    timeout: float = 1.2
    """Seconds a TTL is waited for at most."""
    attempts: int = 3
    """Probes a TTL at most, 1 to 3."""
    share: bool = True
    """Share hops with other traces (same /24 or /48; common first hops)."""
    method: Literal["auto", "tcp", "udp", "syn"] = "auto"
    mute: frozenset[int] = field(default_factory=frozenset)
    """TTLs known from earlier rounds to be silent or rate limited: probed once, not retried."""


class Carrier(Protocol):
    """What the tracer needs of a session. The tracer never writes to the session's socket itself."""

    @property
    def socket(self) -> socket.socket:
        """The connected TCP socket, for its options, addresses and error queue."""

    @property
    def saved_syn(self) -> bytes:
        """The client's SYN from TCP_SAVED_SYN, read once at accept; b"" where there is none."""

    async def carry(self) -> bool:
        """Write a harmless protocol message of at least 96 bytes through the session's own TLS and outbox.

        Returns once the kernel has it (not: once it is answered), or False when this session has no such message.
        """

    def read_errors(self) -> bytes | None:
        """The next packet of the socket's error queue, None when there is none now; whoever else empties that queue
        while SO_TIMESTAMPING is set keeps what it took off for this. Raises OSError once the socket is closed.
        """
