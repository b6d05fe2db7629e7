"""What the sections of services with sessions have in common: who may come, what each may cost. Pure.

Rule: all of it is `live` and holds for sessions that are there already, from their next message on. What one *session*
may do (messages a second, subscriptions) stands in [hub].
"""

from __future__ import annotations

from typing import Literal

from netd.section import Section, live

SlowConsumer = Literal["disconnect", "drop-oldest", "drop-ephemeral"]


class SessionLimits(Section):
    """The fields of such a section. Times are in seconds, sizes in bytes."""

    enabled: bool = live(True)
    """Run the service."""

    # who may come
    max_connections: int = live(10_000, ge=1, le=1_000_000)
    """Connections at once, unfinished arrivals included; one more is closed at once."""
    connections_per_address: int = live(1024, ge=1, le=1_000_000)
    """Connections at once from one IPv4 address or one IPv6 /64, as the PROXY header tells it where one is spoken. Unix
    sockets count as one address."""
    handshake_timeout: float = live(10.0, gt=0, le=120)
    """From accept until PROXY header, TLS and whatever else a client has to show are done; past it the client is
    closed."""
    arriving: int = live(1024, ge=1, le=100_000)
    """Connections at once for which that is still to be done; one more is closed at once."""

    # what a connection may cost
    max_unfinished: int = live(256 * 1024 * 1024, ge=1024 * 1024, le=64 * 1024**3)
    """Bytes of unfinished messages that all connections together may have sent, looked at every second; past it those
    that hold most of them are closed with 1013."""
    idle_timeout: float = live(0.0, ge=0, le=604_800)
    """A client that sends nothing for so long is closed (1000), but for those that only listen and have no way to send
    anything (event streams); 0: never."""
    keepalive: float = live(30.0, ge=0, le=32_767)
    """A connection silent for so long is probed by the kernel (TCP_KEEPIDLE), then every third of it; three unanswered
    ones end it. 0: off."""
    ping_interval: float = live(30.0, ge=0, le=3600)
    """A client silent for so long is sent a ping; 0: never."""
    input_rate: int = live(0, ge=0, le=10_000_000_000)
    """Bytes a second read from one connection in the long run; a faster one is made to wait. 0: no bound."""
    input_burst: int = live(0, ge=0, le=1_000_000_000)
    """Bytes that a connection may send at once after a pause; 0: one second's worth of `input_rate`."""

    # what may wait for a connection
    backpressure: int = live(5 * 1024 * 1024, ge=64 * 1024, le=1024**3)
    """Bytes that may wait for one client to read. Past half of it the notice `backpressure` is sent, below an eighth
    `drain`. A message that is larger by itself is dropped for this client."""
    slow_consumer: SlowConsumer = live("disconnect")
    """What happens to a client for which more would wait. disconnect: closed with 4008. drop-oldest: what waits longest
    is dropped. drop-ephemeral: what was sent as ephemeral is dropped, and if that does not do, it is closed."""
    send_buffer: int = live(256 * 1024, ge=0, le=64 * 1024 * 1024)
    """Bytes that wait for a client inside the kernel besides (SO_SNDBUF; the kernel takes twice as much). 0: its own
    autotuning, up to net.ipv4.tcp_wmem on top of `backpressure`."""
    rate: int = live(0, ge=0, le=10_000_000_000)
    """Bytes a second sent to one connection in the long run, more urgent messages first. 0: no bound."""
    burst: int = live(0, ge=0, le=1_000_000_000)
    """Bytes that may be sent to a connection at once after a pause; 0: one second's worth of `rate`."""
