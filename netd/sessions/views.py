"""What connections look like from outside: the service, sums over them, and one of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from netd.sessions.connection import Held

if TYPE_CHECKING:
    from netd.sessions.connection import Connection


@dataclass(slots=True)
class Totals:
    """Sums over connections. Messages are those of this service, not the hub's answers."""

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    messages_in: int = 0
    messages_out: int = 0
    dropped: int = 0
    """Messages lost because a client did not read."""
    backpressure: int = 0
    """Times that half of what may wait for a client did."""
    drains: int = 0
    """Times that such a client had read it."""

    def add(self, connection: Connection) -> None:
        stream, outbox = connection.stream, connection.outbox
        self.connections += 1
        self.bytes_in += stream.bytes_in
        self.bytes_out += stream.bytes_out
        self.messages_in += connection.session.messages_in
        self.messages_out += outbox.messages
        self.dropped += outbox.dropped

    def copy(self) -> Totals:
        return replace(self)


@dataclass(frozen=True)
class ServiceSnapshot:
    """A service at a moment. Sums are since the daemon started, over all generations."""

    listeners: list[dict[str, Any]]
    """What there is to say of each, with its address and the connections that came by it."""
    connections: int
    """Here now, arrivals included."""
    sessions: int
    arriving: int
    total: int
    """Connections that were ever let in."""
    bytes_in: int
    bytes_out: int
    messages_in: int
    messages_out: int
    dropped: int
    backpressure: int
    drains: int
    rejected: dict[str, int]
    """By reason."""
    limits: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SessionView:
    """A connection as REST shows it. Times are seconds since the epoch."""

    id: str
    """Of the session."""
    address: str
    """ "192.0.2.7:50312", "[2001:db8::1]:50312", "unix:"."""
    listener: str
    mode: str
    tls: bool
    opened: float
    idle: float
    """Seconds since it last sent something."""
    name: str | None
    tags: dict[str, str]
    channel: str | None
    """Of a plain client, as text."""
    bytes_in: int
    bytes_out: int
    messages_in: int
    messages_out: int
    unfinished: int
    """Bytes of a message that has not come whole."""
    queued: int
    """Bytes that wait for it to read."""
    dropped: int
    """Messages that its slow reading cost it."""
    paused: list[str]
    """Why nothing is read from it: hub, echo, rate, reader."""
    pid: int | None
    """Of the process behind a Unix socket."""
    uid: int | None


def about(connection: Connection, now: float, peer: tuple[int, int] | None) -> dict[str, Any]:
    """The fields of `SessionView`. `now` is the reactor's clock, `peer` the pid and uid behind a Unix socket."""
    session, stream, outbox = connection.session, connection.stream, connection.outbox
    pid, uid = peer or (None, None)
    return {
        "id": session.id,
        "address": session.address,
        "listener": session.listener,
        "mode": connection.mode.name,
        "tls": connection.tls,
        "opened": session.opened,
        "idle": max(0.0, now - connection.heard),
        "name": session.name,
        "tags": dict(session.tags),
        "channel": None if connection.channel is None else connection.channel.decode(errors="replace"),
        "bytes_in": stream.bytes_in,
        "bytes_out": stream.bytes_out,
        "messages_in": session.messages_in,
        "messages_out": outbox.messages,
        "unfinished": connection.decoder.buffered,
        "queued": outbox.size + stream.unsent,
        "dropped": outbox.dropped,
        "paused": [str(why.name).lower() for why in Held if connection.held & why],
        "pid": pid,
        "uid": uid,
    }
