"""The gateway: all WebSockets and event streams of the broker. It outlives generations.

    routes (ASGI) --handover--> enter -> Connection: a session of the hub, a stream of the reactor

Rules, besides those of every exchange of sessions (netd/sessions/exchange.py):
- `enter` is synchronous: between the answer to the handshake and the session there is no moment at which nobody has the
  connection. Whatever goes wrong in it ends that connection and gives its place back;
- what may be compressed once for many is: one encoder for each format and each way to compress.

Left out: HTTP, and what is asked of a handshake (routes.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from netd.errors import Denied
from netd.hub.grants import ANONYMOUS
from netd.net.reactor import plain_socket
from netd.net.tls import TlsStream
from netd.services.broker import modes
from netd.services.broker.caller import Caller
from netd.services.broker.connection import Connection
from netd.services.broker.doors import Door
from netd.services.broker.doorstep import Admitted, Doorstep, recur
from netd.services.broker.modes import OPERATIONS, Events, Operations, Plain
from netd.services.broker.packing import Least, Packed, Packing, Singly
from netd.services.broker.recurring import MAX_HEAD, Recurring
from netd.services.broker.views import BrokerConnection
from netd.sessions.exchange import REJECTED, Exchange
from netd.sessions.service import farewell
from netd.sessions.sockets import bound_silence, tune
from netd.sessions.views import about
from netd.wire.websocket import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from netd.hub.hub import Hub
    from netd.hub.outbox import Outbox
    from netd.hub.session import Encoder
    from netd.hub.tokens import Grant
    from netd.net.asgi import App, Handed
    from netd.net.stream import Stream
    from netd.net.tls import TlsLayer
    from netd.services.broker.config import BrokerConfig
    from netd.services.broker.modes import Mode
    from netd.wire.deflate import Agreed, Compressor, DeflateSettings

_UNSETTLED = Operations()
_ANYBODY: Any = Caller("", "")

log = structlog.get_logger("netd.broker")


class Gateway(Exchange[Connection, Door]):
    """All connections of the broker that are sessions."""

    reasons = REJECTED
    hub: Hub
    config: BrokerConfig
    """Of the generation that answers for the sessions."""
    draining: Any
    """Of that generation (trio.Event)."""
    host: Callable[[Doorstep, Any], None]
    """Has its front door go on with a connection, and its socket."""
    site: App
    """What answers HTTP, and hands connections over."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.least = Least()
        self._singly = Singly(self.reactor)
        self._compressors: dict[tuple[int, int, int], Compressor] = {}
        self._packed: dict[tuple[Encoder, Compressor], Packed] = {}
        self._mindful: set[Connection] = set()
        """Those with a context of their own to compress or to decompress with."""
        self._patience = 0.0
        self.doorsteps: dict[Doorstep, None] = {}
        """Connections that may become WebSockets at once, the oldest first."""
        self.recurring = Recurring()
        self.answers: Counter[tuple[str, int]] = Counter()
        """HTTP requests, by the word of their route ("none" where none was looked for) and the status of the answer."""

    def make_door(self, address: str, interface: str | None) -> Door:
        return Door(self, address, interface)

    def refusal(self, mode: Mode, grants: Grant | None = None) -> Denied | None:
        """Why a client with these grants may not have this mode, as far as permissions say; None: it may."""
        permissions = self.hub.permissions
        asker: Any = Caller("", "", grants or ANONYMOUS)
        try:
            if isinstance(mode, Events):
                for channel in mode.channels:
                    permissions.check(asker, "subscribe", channel)
            elif isinstance(mode, Plain):
                if mode.role != "pub":
                    try:
                        permissions.check(asker, "subscribe", mode.channel)
                    except Denied:
                        if mode.role == "sub":
                            raise
                    else:
                        return None
                permissions.check(asker, "publish", mode.channel)
        except Denied as error:
            return error
        return None

    def open_to_all(self, mode: Mode) -> bool:
        """Whether a client without a token may have this mode of a WebSocket, and nobody is refused by asking."""
        permissions = self.hub.permissions
        if isinstance(mode, Plain):
            permits, channel = permissions.permits, mode.channel
            if mode.role != "pub" and permits(_ANYBODY, "subscribe", channel):
                return True
            return (
                mode.role != "sub"
                and permits(_ANYBODY, "publish", channel)
                and not permissions.realm(channel).wild(channel)
            )
        if isinstance(mode, modes.App):
            try:
                permissions.check(_ANYBODY, "application", None)
            except Denied:
                return False
        return True

    def enter(
        self,
        door: Door,
        handed: Handed | Admitted,
        *,
        address: str,
        key: str,
        mode: Mode,
        grants: Grant | None = None,
        deflate: Agreed | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Connection | None:
        """Make a session of a connection that HTTP has handed over; its place (`places`, `key`) goes with it.

        `address` is the client's as people write it, `deflate` what compression was agreed on. None: it could not be
        had; it was told so as far as possible, and is closed.
        """
        head, arrived, tls = b"", None, None
        if isinstance(handed, Admitted):
            sock, head, arrived = handed.sock, handed.head, handed.stream
        else:
            stream: Any = handed.stream
            if isinstance(stream, TlsStream):
                tls, stream = stream.layer, stream.transport
            sock = plain_socket(stream)
            try:
                tune(sock, self.config)
            except OSError as error:
                self._not_taken(error, sock, None, address, key)
                return None
        return self.admit(
            door,
            sock,
            head,
            address,
            key,
            mode,
            deflate=deflate,
            stream=arrived,
            tls=tls,
            received=handed.received,
            grants=grants or ANONYMOUS,
            name=name,
            tags=tags,
        )

    def admit(
        self,
        door: Door,
        sock: Any,
        head: bytes,
        address: str,
        key: str,
        mode: Mode,
        *,
        deflate: Agreed | None = None,
        stream: Stream | None = None,
        tls: TlsLayer | None = None,
        received: bytes = b"",
        grants: Grant = ANONYMOUS,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Connection | None:
        """`enter` with a socket that is tuned; `stream`: and in the reactor already. `head` is what is said first: the
        answer to its handshake, where it has had none."""
        if isinstance(mode, Operations):
            mode = OPERATIONS[mode.format] if mode.settled else _UNSETTLED
        try:
            connection = Connection(door, mode, key)
            encoder, outbox = mode.encoder, None
            if deflate is not None:
                encoder, outbox = self._compress(connection, deflate)
            self.seat(
                connection,
                sock,
                address=address,
                encoder=encoder,
                rules=door.rules,
                outbox=outbox,
                tls=tls,
                received=received,
                stream=stream,
                grants=grants,
                name=name,
                tags=tags,
            )
        except Exception as error:  # noqa: BLE001  # said there
            self._not_taken(error, sock, stream, address, key)
            return None
        try:
            if head:
                self._send_head(connection, head)
            if deflate is not None and deflate.takeover:
                self._mindful.add(connection)
            if not self.welcome(connection):
                return None
            if not mode.answers:
                bound_silence(sock, self._patience)
            # its listener may have been removed, or the service stopped, while it arrived
            if not self.leads_in(door):
                connection.end(*farewell(len(self.orphans())))
        except Exception:
            self.rejected("broken", address)
            log.exception("connection broke", address=address)
            connection.stream.abort("internal error")
            return None
        return connection

    def speak(self, connection: Connection, encoder: Encoder) -> None:
        """Have a connection that has settled be spoken to so, and compressed as it was."""
        session = connection.session
        former = session.encoder
        session.encoder = self._pack(encoder, former.compressor) if isinstance(former, Packed) else encoder

    def deflate_settings(self) -> DeflateSettings | None:
        """What is offered to the next WebSocket that asks for compression; None: nothing."""
        settings = self.config.deflate_settings()
        if settings is not None and len(self._mindful) >= self.config.max_takeover:
            settings = replace(settings, server_no_context_takeover=True, client_no_context_takeover=True)
        return settings

    @property
    def takeover(self) -> bool:
        """Whether what is agreed on depends on how many have agreed on it."""
        return self.config.server_takeover or self.config.client_takeover

    def ended(self, connection: Connection, code: int, why: str) -> None:
        self._mindful.discard(connection)
        super().ended(connection, code, why)

    def set_patience(self, seconds: float) -> None:
        """How long the client of an event stream may take nothing of what it is sent: nobody there answers but its
        kernel. 0: as ours likes."""
        if seconds != self._patience:
            self._patience = seconds
            for connection in self.connections:
                if not connection.mode.answers:
                    bound_silence(connection.socket, seconds)

    def view(self, connection: Connection) -> BrokerConnection:
        return BrokerConnection(
            transport=connection.mode.transport,
            deflate=connection.deflated,
            **about(connection, self.reactor.now, self.peer_of(connection.stream.socket)),
        )

    def streams(self) -> list[Stream]:
        return [*super().streams(), *[stream for doorstep in self.doorsteps if (stream := doorstep.stream) is not None]]

    # --- the short way in ---

    def greet(self, sock: Any, door: Door, address: str, host: str, key: str) -> None:
        """A connection has come, and its place goes with it. Most often its request has, too. Raises as `seat`."""
        sock.setblocking(False)
        data = b""
        try:
            data = sock.recv(MAX_HEAD)
        except BlockingIOError:
            pass
        except OSError:  # gone already, as `recv` will say again
            pass
        if not data or not recur(self, door, data, sock, None, address, key):
            self.to_doorstep(sock, door, address, host, key, data)

    def to_doorstep(self, sock: Any, door: Door, address: str, host: str, key: str, received: bytes = b"") -> None:
        """Wait for the rest of the first request of a connection, whose place goes with it. Raises as `seat`."""
        doorstep = Doorstep(self, door, address, host, key)
        doorstep.stream = self.reactor.adopt(sock, doorstep, doorstep, received=received)
        doorstep.stream.bytes_in += len(received)
        self.doorsteps[doorstep] = None

    def left_doorstep(self, doorstep: Doorstep) -> None:
        """It is a session, or HTTP's, or gone."""
        self.doorsteps.pop(doorstep, None)

    def to_front_door(self, doorstep: Doorstep) -> None:
        """It is no WebSocket, or cannot be one at once."""
        self.left_doorstep(doorstep)
        if not doorstep.stream.closed:
            self.host(doorstep, self.reactor.release(doorstep.stream))

    def clear_doorsteps(self, before: float) -> None:
        """Those who have waited since `before` (the reactor's clock) have waited long enough."""
        while self.doorsteps and (oldest := next(iter(self.doorsteps))).since <= before:
            del self.doorsteps[oldest]
            oldest.late()

    def clear_oldest(self) -> None:
        """There are too many, and no more than one has to go: what came at once is of one age."""
        if self.doorsteps:
            oldest = next(iter(self.doorsteps))
            del self.doorsteps[oldest]
            oldest.late()

    # --- inside ---

    def _not_taken(self, error: Exception, sock: Any, stream: Stream | None, address: str, key: str) -> None:
        """It could not be made a session: it is gone, or something of ours is broken."""
        if isinstance(error, OSError):
            self.rejected("gone", address)
            log.debug("cannot take over a connection", address=address, why=str(error))
        else:
            self.rejected("broken", address)
            log.error("cannot take over a connection", address=address, exc_info=error)
        if stream is not None:
            stream.abort(str(error))  # its place goes with what it was before
        else:
            self.places.leave(key)
            sock.close()

    def _compress(self, connection: Connection, deflate: Agreed) -> tuple[Encoder, Outbox | None]:
        """What a connection that has agreed on compression is spoken to with."""
        door, encoder, outbox = connection.door, connection.mode.encoder, None
        connection.decoder = Decoder(door.limits, masked=True, inflate=deflate.decompressor())
        if deflate.server_no_context_takeover:
            encoder = self._pack(encoder, self._compressor(deflate))
        else:
            outbox = Packing(door.rules, self._singly, connection, deflate.compressor(), self.least)
        return encoder, outbox

    def _send_head(self, connection: Connection, head: bytes) -> None:
        """Before all that is urgent: nothing has been sent yet, so there is room for it."""
        stream = connection.stream
        try:
            sent = stream.socket.send(head)
        except OSError:  # gone, or full after all: then it waits
            sent = 0
        stream.sent += sent
        if sent < len(head):
            connection.outbox.push(head[sent:], 0)
            connection.outbox.left -= 1  # which is no message

    def _compressor(self, agreed: Agreed) -> Compressor:
        way = agreed.server_max_window_bits, agreed.level, agreed.memory
        if way not in self._compressors:
            self._compressors[way] = agreed.compressor()
        return self._compressors[way]

    def _pack(self, encoder: Encoder, compressor: Compressor) -> Packed:
        which = encoder, compressor
        if which not in self._packed:
            self._packed[which] = Packed(encoder, compressor, self.least)
        return self._packed[which]
