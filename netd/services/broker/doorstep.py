"""The short way in: a connection whose first bytes are the handshake of a WebSocket becomes one without a task.

    accept --> Doorstep, in the reactor --head is whole--> h11 --> site --> Gateway.enter: the same stream goes on
        |            |                                                          ^
        '------------|------------ a head that is known: `recur` ---------------'
                     |
                     '-- anything else, whatever it is --> HTTP's front door, in a task, with what was read

Rules:
- it is the same request, read by the same parser and answered by the same site, once: this is only who waits for it.
  What the site says instead of a WebSocket is told by the front door, word for word;
- a head that was let in before is let in again without a parser, as far as nothing else decides on it (recurring.py);
- the site's way to a WebSocket waits for nothing but for what it reads, which shows here before it was done: then the
  front door has it asked from the beginning;
- who does not finish a head is bounded as at the front door: `http.max_head` bytes, `http.head_timeout` seconds
  (looked at once a second), and with the others there `http.max_connections`: past it the oldest here has to go.

Left out: TLS and PROXY headers, which are waited for in a task (service.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import structlog

from netd.net.asgi import Ends, Refused, check_head, check_lines, headers_of, request_scope
from netd.services.broker import recurring
from netd.services.broker.visit import Visit

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator

    from netd.net.asgi import Message, Send
    from netd.net.stream import Stream
    from netd.services.broker.doors import Door
    from netd.services.broker.gateway import Gateway

_END = b"\r\n\r\n"
_TOO_LATE = b'{"error":{"kind":"invalid","message":"cannot read the request\'s head within the time there is"}}'
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    % len(_TOO_LATE)
) + _TOO_LATE

log = structlog.get_logger("netd.broker")


class _Waits:
    """What the site awaits where it would have to wait: the short way ends there."""

    def __await__(self) -> Generator[None]:
        yield


async def _wait() -> Any:
    await _Waits()


def _keeper(said: list[Message]) -> Send:
    """What has the site believe that this is told."""

    async def keep(message: Message) -> None:
        said.append(message)

    return keep


class Admitted:
    """A connection that HTTP is through with, without a Trio stream; in the place of asgi.Handed."""

    __slots__ = ("head", "received", "sock", "stream")

    def __init__(self, sock: socket.socket, stream: Stream | None, head: bytes, received: bytes) -> None:
        self.sock = sock
        self.stream = stream
        """What the reactor has of it, if it is there already."""
        self.head = head
        """Of the answer: it goes out with the first that the session is sent."""
        self.received = received


class Doorstep:
    """The endpoint and the outbox of one such connection. Its place (`key`) is its until it is handed on."""

    __slots__ = (
        "_admitted",
        "_data",
        "_last",
        "_rest",
        "address",
        "door",
        "gateway",
        "host",
        "key",
        "since",
        "stream",
        "visit",
    )

    def __init__(self, gateway: Gateway, door: Door, address: str, host: str, key: str) -> None:
        self.gateway = gateway
        self.door = door
        self.address = address
        self.host = host
        self.key = key
        self.since = gateway.reactor.now
        self.stream: Any = None
        """None again once it is gone, before `ended` is called."""
        self.visit: Visit | None = None
        """With what the site has answered, for the front door to go on with."""
        self._data = b""
        self._rest = b""
        self._last = b""
        self._admitted = False

    # --- the reactor's endpoint ---

    def receive(self, data: bytes) -> None:
        before = len(self._data)
        if not before and recur(self.gateway, self.door, data, self.stream.socket, self, self.address, self.key):
            return
        self._data += data
        end = self._data.find(_END, max(0, before - 3))
        if end < 0 and len(self._data) <= self.gateway.config.http.max_head and not self._begins_badly(before):
            return
        if end < 0 or not self._begins_well() or not self._upgrade():
            self.gateway.to_front_door(self)

    def ended(self, why: str) -> None:
        self.gateway.left_doorstep(self)
        self.gateway.places.leave(self.key)

    # --- what the reactor sends ---

    @property
    def size(self) -> int:
        return len(self._last)

    def take(self, limit: int, now: float) -> list[bytes]:
        last, self._last = self._last, b""
        return [last] if last else []

    def wait(self, now: float) -> float | None:
        return None

    # --- for the gateway ---

    @property
    def received(self) -> bytes:
        """What was read."""
        return self._data

    def late(self) -> None:
        """Its time is up."""
        if self.stream is not None:  # it is gone, and is still to hear of that
            if self._data:
                self._last = _LATE
            self.stream.close("too slow", within=1.0)

    def abort(self, why: str) -> None:
        """End it now."""
        if self.stream is not None:
            self.stream.abort(why)

    # --- inside ---

    def _begins_badly(self, before: int) -> bool:
        """Whether this will never be a head, whatever comes: who speaks TLS, or frames, or ends lines without CR, is
        told so at once. `before` bytes of it were looked at already."""
        return self._data[0] <= 0x20 or self._data.find(b"\n\n", max(0, before - 1)) >= 0

    def _begins_well(self) -> bool:
        """Whether this may be the handshake of a WebSocket."""
        data = self._data
        if not data.startswith((b"GET /ws ", b"GET /ws?", b"GET /ws/")):
            application = self.gateway.config.application.encode("ascii")
            if not data.startswith((b"GET %b " % application, b"GET %b?" % application)):
                return False
        return b"websocket" in data.lower()

    def _upgrade(self) -> bool:
        """Whether it is a WebSocket now. Nothing has happened if not."""
        gateway, limits = self.gateway, self.gateway.config.http
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_head)
        http.receive_data(self._data)
        try:
            request = http.next_event()
            if not isinstance(request, h11.Request) or not isinstance(http.next_event(), h11.EndOfMessage):
                return False
            self._rest = http.trailing_data[0]
            check_lines(self._data[: len(self._data) - len(self._rest)])
            headers = headers_of(request)
            check_head(request, limits, headers)
            server = self.stream.socket.getsockname()
            client = self.stream.socket.getpeername()
            ends = Ends(client=(client[0], client[1]), server=(server[0], server[1]))
            scope = request_scope(request, ends, gateway.draining, headers)
        except (h11.RemoteProtocolError, Refused, OSError):
            return False
        scope["extensions"]["netd.handover"] = self._handover
        if not self._rest and may_recur(gateway, self.door) and (head := recurring.head_of(self._data)) is not None:
            scope["extensions"]["netd.recurs"] = partial(gateway.recurring.put, head, headers)
        visit = Visit(gateway, self.door, self.address, self.host, self.key)
        said: list[Message] = []
        answering = visit(scope, _wait, _keeper(said))
        try:
            answering.send(None)
        except StopIteration:
            self.visit, visit.said = visit, said
            return self._admitted
        finally:
            answering.close()
            self.key = visit.key
        return False

    async def _handover(self, status: int, headers: list[tuple[bytes, bytes]]) -> Any:
        if status != 101:
            await _Waits()
        lines = [b"HTTP/1.1 101 Switching Protocols", *[name + b": " + value for name, value in headers]]
        self._admitted = True
        self.gateway.left_doorstep(self)
        return Admitted(self.stream.socket, self.stream, b"\r\n".join([*lines, b"", b""]), self._rest)


def recur(
    gateway: Gateway, door: Door, data: bytes, sock: Any, doorstep: Doorstep | None, address: str, key: str
) -> bool:
    """Whether a connection that begins with `data` is a WebSocket now, as one like it was before (recurring.py), or has
    come to nothing: its place is no longer the caller's. If not, nothing has happened. `doorstep`: where it waits."""
    found = gateway.recurring.find(data, gateway.config)
    if found is None:
        return False
    known, random = found
    mode = known.mode
    if known.own is not None and known.own != _own_of(sock):
        return False
    if not may_recur(gateway, door) or not gateway.open_to_all(mode):
        return False  # and why it is refused, the site says
    stream = None
    if doorstep is not None:
        stream = doorstep.stream
        gateway.left_doorstep(doorstep)
    head = known.answer(random)
    connection = gateway.admit(door, sock, head, address, key, mode, deflate=known.deflate, stream=stream)
    gateway.answers[mode.name, 101] += 1
    if connection is not None and stream is None:
        connection.stream.bytes_in += len(data)
    return True


def _own_of(sock: socket.socket) -> str | None:
    try:
        return sock.getsockname()[0]  # type: ignore[no-any-return]
    except OSError:  # gone
        return None


def may_recur(gateway: Gateway, door: Door) -> bool:
    """Whether nothing but its head and permissions decide on what becomes of a client."""
    return not (gateway.config.http_rate or door.listen.forwarded or gateway.draining.is_set())
