"""How a client arrives: whatever may wait before its connection goes to the reactor, as far as all transports have it.

    accept --trusted proxy--> PROXY header --> TLS --> what the transport asks

Rules:
- all of it has one deadline, the caller's; whatever was read beyond is handed on (`received`), so nothing is lost;
- limits on who may come at all are the service's (service.py).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from netd.budget import address_key
from netd.errors import ProtocolError
from netd.net.certificates import Certificate
from netd.net.proxy import ProxyHeader, trusted
from netd.net.tls import TlsLayer, handshake
from netd.runtime.listeners import Listener
from netd.section import Listen
from netd.sessions.doors import Door

if TYPE_CHECKING:
    from netd.runtime.health import ServiceHealth

_READ = 65_536


class Rejected(Exception):
    """A client that is not let in. `why` is one of Exchange.reasons."""

    def __init__(self, why: str, error: ProtocolError | None = None) -> None:
        self.why = why
        self.error = error
        super().__init__(why)


@dataclass(slots=True)
class Entrance:
    """A listener of one generation, with what its connections need on their way in; transports add what is theirs."""

    listener: Listener
    listen: Listen
    door: Door
    certificate: Certificate | None
    bequeathed: object = field(default=None, init=False)
    """What its listening socket leaves to those that it accepts, of SessionService._apply."""
    complete: bool = field(default=False, init=False)
    """Their send buffers are among it."""
    heirs: int = field(default=0, init=False)
    """Once `listener.drained` is this, all that are accepted have inherited it."""
    accepting: trio.CancelScope = field(default_factory=trio.CancelScope, init=False)
    """Of the present way to accept, which depends on `waits`."""
    unwatch: Callable[[], None] = field(default=lambda: None, init=False)
    """Has the reactor accept no more by it, where that does."""

    @property
    def waits(self) -> bool:
        """Whether a client has to do something before it can be let in."""
        return bool(self.certificate or self.listen.proxy_protocol)


@dataclass(slots=True)
class Arrived:
    """A client on its way in; the fields are filled as they become known."""

    address: str
    """As people write it: "192.0.2.7:50312"."""
    host: str
    """ "192.0.2.7", or "unix:"."""
    tls: TlsLayer | None = None
    received: bytes = b""
    """Plaintext that was read already and is not used up."""

    @property
    def key(self) -> str:
        """What counts as its address."""
        return address_key(self.host)


def written(host: str, port: int) -> str:
    """An address as people write it: "192.0.2.7:50312", "[2001:db8::1]:50312"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def where_from(stream: trio.SocketStream) -> tuple[str, str]:
    """Address and host as the kernel says them. Raises OSError when it is gone."""
    if stream.socket.family == socket.AF_UNIX:
        return "unix:", "unix:"
    peer = stream.socket.getpeername()
    return written(peer[0], peer[1]), peer[0]


class Way:
    """The way in of one client. `header`, then `walk`, each once."""

    def __init__(self, entrance: Entrance, stream: trio.SocketStream, arrived: Arrived, health: ServiceHealth) -> None:
        self._entrance = entrance
        self._stream = stream
        self._arrived = arrived
        self._health = health

    async def header(self) -> None:
        """The PROXY header, if its peer is one who has to send one. Raises Rejected."""
        arrived, networks = self._arrived, self._entrance.listen.proxy_protocol
        if not networks or not (arrived.host == "unix:" or trusted(networks, arrived.host)):
            return
        parser = ProxyHeader()
        try:
            while True:
                proxied, rest = parser.receive(await self._read_plain())
                if proxied is not None:
                    break
        except ProtocolError as error:
            raise Rejected("proxy", error) from None
        arrived.received = rest
        if proxied.source is not None:
            arrived.host, arrived.address = proxied.source[0], written(*proxied.source)

    async def walk(self) -> None:
        """TLS, and whatever the transport asks. Raises Rejected."""
        certificate, arrived = self._entrance.certificate, self._arrived
        if certificate is None:
            return
        layer = TlsLayer(await certificate.current(self._health))
        try:
            arrived.received = await handshake(layer, self._stream, arrived.received)
        except ProtocolError as error:
            raise Rejected("tls", error) from None
        arrived.tls = layer

    async def refuse(self, error: ProtocolError) -> None:
        """Tell it, as far as its transport has a word for that before it is let in, and let it read it."""

    async def _read_plain(self) -> bytes:
        try:
            data = await self._stream.receive_some(_READ)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise Rejected("gone")
        return bytes(data)
