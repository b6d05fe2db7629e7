"""The [trace] section: what the trace service listens on, how it traces, and what nobody may exceed. Pure.

Rules:
- every bound of the service stands here;
- nearly everything is `live`; a changed listener or ASN file takes a new generation;
- the defaults are safe to expose: loopback, no names looked up, private hops withheld from clients.

Left out: certificates are only named here; `service.py` loads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, field_validator

from netd.section import Listen, Section, live, parse_address, replace

_ORIGIN = re.compile(r"^[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[1-9]\d{0,4})?$")


def _origin(text: str) -> str:
    """RFC 6454 section 6.2's serialization, in lower case; "*" and "null" as they are."""
    lower = text.lower()
    if lower not in {"*", "null"} and not _ORIGIN.match(lower):
        raise ValueError(
            f'cannot allow the origin {text!r}: write "https://example.org", with a port if it is not the '
            'scheme\'s own and nothing after it, or "*" for any'
        )
    return lower


Origin = Annotated[str, AfterValidator(_origin)]


class TraceListen(Listen):
    """One `[[trace.listen]]` entry."""

    path: str = replace("/", pattern=r"^/[!-~]*$", max_length=256)
    """The one path that answers WebSocket handshakes; every other is 404."""

    @field_validator("address")
    @classmethod
    def _over_ip(cls, address: str) -> str:
        if isinstance(parse_address(address), Path):
            raise ValueError(f"cannot trace clients of {address!r}: there is no route behind a Unix socket")
        return address


class HistoryConfig(Section):
    """What is kept of finished traces, and for how long."""

    max_age_days: float = live(30.0, gt=0, le=3650)
    """Older traces are removed."""
    max_rows: int = live(100_000, ge=1, le=10_000_000)
    """At most so many traces are kept; the oldest go first."""


class TraceConfig(Section):
    """The `[trace]` section: WebSocket clients, and the network path to each of them. Times are in seconds unless the
    name says otherwise."""

    enabled: bool = live(True)
    """Run the service."""
    listen: list[TraceListen] = replace(
        default_factory=lambda: [TraceListen(address="127.0.0.1:8080")], min_length=1, max_length=16
    )
    """Where WebSocket clients connect."""

    # how a round goes
    max_hops: int = live(30, ge=1, le=32)
    """The largest TTL that is probed."""
    per_ttl_timeout_ms: int = live(1200, ge=50, le=10_000)
    """How long an answer is waited for at most, retries included."""
    attempts: int = live(3, ge=1, le=3)
    """Probes for one TTL in one round, as long as it does not answer."""
    share: bool = live(True)
    """Let clients behind one prefix (/24, /48) and behind the same first routers share probes and answers."""
    method: Literal["auto", "tcp", "udp", "syn"] = live("auto")
    """tcp: inside the client's own connection (CAP_NET_RAW); udp, syn: a flow of its own; auto: the best there is."""
    rounds: int = live(1, ge=0, le=10_000)
    """Rounds of one trace; 0: until the client leaves."""
    interval: float = live(5.0, ge=0.1, le=3600)
    """From the start of one round to the start of the next."""

    # who learns what
    report: Literal["client", "operator", "both"] = live("both")
    """Who is told the hops. client: neither notices nor history carry them; operator: the client learns only that its
    trace began and ended."""
    reveal_private: bool = live(False)
    """Tell clients the addresses of private hops (RFC 1918, 4193, 6598, link-local); operators always see them."""
    names: bool = live(False)
    """Look the hops' names up in DNS. A trace never waits for them: they follow as they are known."""
    asn: Path | None = replace(None)
    """An MMDB file with autonomous systems (needs the "asn" extra)."""

    # who may come
    origins: list[Origin] = live(default_factory=list, max_length=256)
    """Origins of web pages that may connect ("https://example.org"; "*": any) besides those of this very host, known by
    its certificate, its address or localhost. A client that sends no Origin is no browser and always may."""
    max_clients: int = live(1000, ge=1, le=100_000)
    """Connections at once, unfinished handshakes included."""
    clients_per_address: int = live(16, ge=1, le=100_000)
    """Connections at once from one IPv4 address or one IPv6 /64."""

    # so that netd is no instrument for flooding
    max_traces: int = live(256, ge=1, le=10_000)
    """Rounds running at once on the whole host; further ones wait for their turn."""
    probes_per_second: float = live(2000.0, ge=1, le=1_000_000)
    """Probes of all traces on the whole host. A quarter of a second's worth (at least one) may go out at once, so that
    no second has more than a quarter above this, and below 8 none has more than this. Rounds that would send more
    go on as slowly as this says; one that has to wait ten seconds for a single probe ends "limited"."""
    client_interval: float = live(5.0, ge=5.0, le=86_400)
    """From the end of a client's trace to the next one it may ask for; an address earns one trace in this time."""
    address_burst: int = live(16, ge=1, le=100_000)
    """Traces an address (or /64) may have before `client_interval` applies to it as a whole. When it is raised, the
    difference is there at once for addresses that have used theirs up."""

    # what a connection may cost
    handshake_timeout: float = live(10.0, gt=0, le=120)
    """From accept to a finished TLS and WebSocket handshake."""
    write_timeout: float = live(10.0, gt=0, le=120)
    """A client that lets one write wait longer is cut off."""
    ping_interval: float = live(30.0, ge=1, le=3600)
    """Between keepalive pings."""
    pong_timeout: float = live(20.0, gt=0, le=600)
    """A client that leaves a keepalive ping unanswered longer is closed."""
    idle_timeout: float = live(3600.0, ge=1, le=604_800)
    """A client that neither traces nor says anything for so long is closed."""
    max_message: int = live(4096, ge=128, le=1_048_576)
    """Bytes of one message from a client; a larger one closes its connection with 1009."""
    input_rate: int = live(16_384, ge=1024, le=10_000_000)
    """Bytes a second read from one client in the long run (4 times that at once); a faster one is made to wait."""
    outbox: int = live(1024, ge=64, le=65_536)
    """Messages that may wait for one client; past that it is closed."""

    history: HistoryConfig = live(default_factory=HistoryConfig)
    """What is kept of finished traces."""
