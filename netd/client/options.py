"""What every client can be told: how to connect, who it is, what it waits for, and the bounds. Pure data, no I/O.

Every option has a default that works. What one transport alone has stands in framed_options.py and broker_options.py;
each has a TypedDict with the same names for type checkers, so that `FramedClient(address, codec="json")` is checked
although it takes keywords.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypedDict

from netd.client.state import State
from netd.errors import ProtocolError


@dataclass(frozen=True)
class Tcp:
    """A host (address or name) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Unix:
    """A Unix stream socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class Reconnect:
    """When a lost connection is made again: after `first` seconds, then `factor` times as long each, up to `longest`.

    Each delay is shortened at random by up to `jitter` of itself, so that a thousand clients of a restarted daemon do
    not come back at the same moment. The series begins anew once a connection has stood for `steady` seconds: a daemon
    that accepts and hangs up at once is no reason to hurry.
    """

    enabled: bool = True
    first: float = 0.3
    factor: float = 2.0
    longest: float = 10.0
    jitter: float = 0.25
    steady: float = 1.0
    max_attempts: int | None = None
    """Attempts in a row after which to give up; None: never."""
    patient: bool = False
    """Whether the very first connection is tried again too, instead of raising at once."""


@dataclass(frozen=True)
class ClientTls:
    """TLS as a client. Without `ca` the system's certificate authorities count."""

    ca: Path | None = None
    """PEM file with the authorities that may sign the server's certificate."""
    server_name: str | None = None
    """The name the certificate must be for, when it is not the host of the address."""
    certificate: Path | None = None
    """PEM file with our own certificate (chain), for a server that asks for one."""
    key: Path | None = None
    """PEM file with its private key; None: it is in `certificate`."""
    verify: bool = True
    """False: accept any certificate. Only for tests: whoever is on the way may read and change everything."""


TokenSource: TypeAlias = Callable[[], str | Awaitable[str]]
"""What gives a fresh token whenever one is needed."""


class SharedOptions(TypedDict, total=False):
    """The keywords that every client has; ClientOptions says what each means and its default."""

    tags: Mapping[str, str]
    name: str | None
    token: str | TokenSource | None
    connect_timeout: float
    answer_timeout: float
    reconnect: Reconnect | bool
    keepalive: float | None
    idle_timeout: float | None
    heartbeat: float | None
    linger: float
    rate: float | None
    burst: float | None
    queue_bytes: int
    inbox_messages: int
    inbox_bytes: int
    interface: str | None
    local_address: str | None
    local_port: int
    tls: bool | str | Path | ClientTls | ssl.SSLContext | None
    server_name: str | None
    on_state: Callable[[State], None] | None


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """The options of every client. Times in seconds, sizes in bytes."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the session."""
    name: str | None = None
    """The session's name in operations."""
    token: str | TokenSource | None = field(default=None, repr=False)
    """What permits operations: a secret or a signed token. Or a function, which may be async, that gives one: it is
    called for every connection, for every `refresh`, and before the token that it gave expires. A NetdError of its is a
    lost connection; anything else it raises ends the client, and comes out of its `async with`."""

    connect_timeout: float = 10.0
    """For everything until the connection can be used: look-up, connecting, TLS."""
    answer_timeout: float = 10.0
    """For the answer to an operation, from the call on."""
    reconnect: Reconnect | bool = True
    keepalive: float | None = 30.0
    """TCP keepalive probes after so much silence; None: none."""
    idle_timeout: float | None = None
    """A connection on which nothing arrived for so long counts as lost; None: it may be silent."""
    heartbeat: float | None = None
    """Send a ping so often. None: in operations as often as the daemon says, for plain payloads never. With plain
    payloads, pings and pongs that arrive are then kept from the user."""
    linger: float = 5.0
    """At the end of `async with`: how long what is queued may take to leave, and the peer to close."""

    rate: float | None = None
    """Bytes a second we send at most (frames with their headers); None: as fast as the peer takes them."""
    burst: float | None = None
    """Bytes that may go at once after a pause; None: a second's worth. A longer frame waits for a full burst and is
    paid off after."""
    queue_bytes: int = 5 * 1024 * 1024
    """Bytes waiting to be sent; past it `send` waits."""
    inbox_messages: int = 4096
    """Received and not yet read messages; past it reading from the socket pauses, so that the peer feels it."""
    inbox_bytes: int = 16 * 1024 * 1024
    """The same in bytes."""

    interface: str | None = None
    """Leave by this network interface."""
    local_address: str | None = None
    """Connect from this address."""
    local_port: int = 0
    """Connect from this port; 0: any."""
    tls: bool | str | Path | ClientTls | ssl.SSLContext | None = None
    """True: TLS with the system's authorities; a path: with those of this PEM file; ClientTls or an SSLContext."""
    server_name: str | None = None
    """The name the certificate must be for, when it is not the host of the address."""
    on_state: Callable[[State], None] | None = None
    """Called with every change of the connection's state. It must not block; what it raises ends the client,
    and comes out of its `async with`."""

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "answer_timeout", "keepalive", "idle_timeout", "heartbeat", "rate", "burst"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise local_error(f"cannot use {name}={value!r}: it has to be above 0 (None: without)")
        for name in ("queue_bytes", "inbox_messages", "inbox_bytes"):
            self._at_least_one(name)

    def _at_least_one(self, name: str) -> None:
        if getattr(self, name) < 1:
            raise local_error(f"cannot use {name}={getattr(self, name)!r}: it has to be at least 1")

    @property
    def again(self) -> Reconnect:
        """`reconnect` as the policy it stands for."""
        if isinstance(self.reconnect, Reconnect):
            return self.reconnect
        return Reconnect(enabled=self.reconnect)


def local_error(message: str) -> ProtocolError:
    """Whoever wrote this should write it otherwise."""
    return ProtocolError(message, origin="local")
