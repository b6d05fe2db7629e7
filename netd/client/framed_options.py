"""What a FramedClient can be told: where to connect and how, what to speak, and the bounds. Pure data, no I/O.

Every option has a default that works; FramedOptions names the same options for type checkers, so that
`FramedClient(address, codec="json")` is checked although it takes keywords.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

from netd.client.framed_state import State
from netd.errors import ProtocolError
from netd.wire.codecs import Codec

DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_PORT = 9000
MAX_FRAME = 4 * 1024 * 1024
"""Bytes of one payload, inclusive: the wire's default."""

_ADDRESS = re.compile(r"^(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]\s]*)):(?P<port>\d{1,5})$")


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


def parse_address(address: str | tuple[str, int] | Path) -> Tcp | Unix:
    """Where to connect: "host:9000", "[::1]:9000", ":9000" (this machine), "unix:/run/x.sock", (host, port), a Path.

    ProtocolError with a sentence for the person who wrote it.
    """
    if isinstance(address, Path):
        return Unix(address)
    if isinstance(address, tuple):
        return Tcp(*address)
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path:
            raise _local("cannot connect to 'unix:': a path has to follow")
        return Unix(Path(path))
    match = _ADDRESS.match(address)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise _local(f'cannot connect to {address!r}: write "host:9000", "[::1]:9000" or "unix:/run/x.sock"')
    return Tcp(match["v6"] or match["host"] or "127.0.0.1", int(match["port"]))


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


class FramedOptions(TypedDict, total=False):
    """The keywords of FramedClient; Options says what each means and its default."""

    codec: str | Codec
    framing: Literal["length", "none"]
    max_frame: int
    version: str | None
    tags: Mapping[str, str]
    signer: Any
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
    discard: bool
    interface: str | None
    local_address: str | None
    local_port: int
    tls: bool | str | Path | ClientTls | ssl.SSLContext | None
    server_name: str | None
    on_state: Callable[[State], None] | None


@dataclass(frozen=True)
class Options:
    """Every option of a client. Times in seconds, sizes in bytes."""

    codec: str | Codec = "raw"
    """How values become payloads: raw, text, json, cbor, messagepack, an entry point's name, "module:attribute" or a
    Codec. In operations, "json" means JSON messages, anything else MessagePack."""
    framing: Literal["length", "none"] = "length"
    """"none": the raw stream; every chunk that arrives is a payload. Operations need frames."""
    max_frame: int = MAX_FRAME
    """Largest payload either way. A longer one is refused before it is sent; one announced by the peer ends the
    connection."""

    version: str | None = None
    """With `tags` or `signer`: send a handshake first, with this version."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the handshake, and of the session in operations."""
    signer: Any = None
    """Sign the handshake: an Ed25519 private key, or the path of its file (PKCS8, PEM or DER)."""
    name: str | None = None
    """The session's name in operations."""
    token: str | TokenSource | None = field(default=None, repr=False)
    """What permits operations: a secret or a signed token. Or a function, which may be async, that gives one: it is
    called for every connection and every `refresh`. A NetdError of its is a lost connection; anything else it raises
    ends the client."""

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
    discard: bool = False
    """Throw received plain payloads away: for whoever only sends."""

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
    """Called with every change of the connection's state. It must not block; what it raises ends the client."""

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "answer_timeout", "keepalive", "idle_timeout", "heartbeat", "rate", "burst"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise _local(f"cannot use {name}={value!r}: it has to be above 0 (None: without)")
        for name in ("queue_bytes", "inbox_messages", "inbox_bytes", "max_frame"):
            if getattr(self, name) < 1:
                raise _local(f"cannot use {name}={getattr(self, name)!r}: it has to be at least 1")
        if self.max_frame > 0xFFFFFFFF:
            raise _local(f"cannot use max_frame={self.max_frame}: a length field has 32 bits")
        if self.framing not in ("length", "none"):
            raise _local(f"cannot use framing={self.framing!r}: it is length or none")

    @property
    def again(self) -> Reconnect:
        """`reconnect` as the policy it stands for."""
        if isinstance(self.reconnect, Reconnect):
            return self.reconnect
        return Reconnect(enabled=self.reconnect)

    @property
    def greets(self) -> bool:
        """Whether a handshake is the first frame."""
        return self.version is not None or bool(self.tags) or self.signer is not None


def _local(message: str) -> ProtocolError:
    return ProtocolError(message, origin="local")
