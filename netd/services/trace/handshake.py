"""From an accepted socket to an open WebSocket: TLS, the request, who is let in.

Rules:
- the caller has the deadline; a connection that ends meanwhile is noticed at once (the library alone would wait for its
  request for ever);
- a wrong path is answered 404, a wrong Origin 403, a request for no WebSocket at all 426, and whatever else is wrong
  with a handshake 400 (by the library, without a word);
- frames against the rules end an open connection with 1002 or 1007 (RFC 6455 section 7.1.7), which the library leaves
  out. It is left out here too where another write is under way or was cut off: a frame must not begin within one.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import h11
import trio
from trio_websocket import wrap_server_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection

from netd.net.linux import TCP_SAVED_SYN
from netd.services.trace.admission import refusal
from netd.services.trace.stream import GOODBYE, ClientStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_websocket import WebSocketConnection, WebSocketRequest

    from netd.net.certificates import Certificate
    from netd.runtime.listeners import Listener
    from netd.services.trace.config import TraceConfig
    from netd.services.trace.tracing import Shared

_LIBRARY_QUEUE = 1
"""Messages the WebSocket library may hold; the session reads them at once."""


_MAX_HEAD = 16 * 1024
"""Bytes of a request that are looked at again; h11 takes no larger head."""
_AGAINST_THE_RULES = (1002, 1007)
_CLOSE = b"\x88"
"""First byte of a Close frame (RFC 6455 section 5.2). The library writes a frame at a time."""


class DoorStream(ClientStream):
    """What the library does not say: why a request was refused, and that frames were against the rules."""

    def __init__(self, inner: trio.abc.Stream, config: Callable[[], TraceConfig], path: str) -> None:
        super().__init__(inner, config)
        self._path = path
        self._head: bytearray | None = bytearray()
        self._ws: WebSocketConnection | None = None
        self._closing = False
        self._whole = True
        """What was written ends with a frame's end: no write is under way, none was cut off."""

    def accepted(self, ws: WebSocketConnection) -> None:
        """The handshake is done."""
        self._head = None
        self._ws = ws

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        if self._head is not None and len(self._head) < _MAX_HEAD:
            self._head += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            raise trio.ClosedResourceError("cannot write: the last word is said")
        if self._head is not None and bytes(data[:13]) == b"HTTP/1.1 400 ":
            data = explain(bytes(self._head), self._path) or data
        self._closing = self._ws is not None and bytes(data[:1]) == _CLOSE
        self._whole = False
        await super().send_all(data)
        self._whole = True

    async def aclose(self) -> None:
        why = self._ws.closed if self._ws is not None else None
        if why is not None and why.code in _AGAINST_THE_RULES and self._whole and not self._closing:
            frame = Connection(ConnectionType.SERVER).send(CloseConnection(why.code, why.reason))
            with trio.move_on_after(GOODBYE), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send_all(frame)
        await super().aclose()


def explain(head: bytes, path: str) -> bytes | None:
    """The response to a request that asks for no WebSocket; None for one that does, or makes no sense. Pure."""
    parser = h11.Connection(h11.SERVER)
    try:
        parser.receive_data(head)
        request = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or request.method != b"GET":
        return None
    if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers):
        return None
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Connection", b"close")]
    if request.target.partition(b"?")[0] != path.encode("ascii"):
        status, reason, text = 404, b"Not Found", f"cannot find this page: traces are at {path}"
    else:
        status, reason = 426, b"Upgrade Required"
        text = f"cannot trace a plain HTTP request: connect to {path} with a WebSocket client"
        headers[1:] = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade, close")]
    body = f"{text}\n".encode()
    headers.append((b"Content-Length", b"%d" % len(body)))
    lines = [b"HTTP/1.1 %d %s" % (status, reason), *(name + b": " + value for name, value in headers), b"", body]
    return b"\r\n".join(lines)


class Door:
    """A listener with what its connections need."""

    def __init__(self, listener: Listener, path: str, certificate: Certificate | None, number: int) -> None:
        """`number` is its place in `trace.listen`."""
        self.listener = listener
        self.path = path
        self.certificate = certificate
        self.number = number


def saved_syn(sock: trio.socket.SocketType) -> bytes:
    """The client's SYN; b"" where the kernel kept none (it came before the option was set)."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, 512)
    except OSError:
        return b""


async def shake_hands(
    door: Door, stream: trio.SocketStream, nursery: trio.Nursery, shared: Shared
) -> tuple[ClientStream, WebSocketConnection] | None:
    """TLS and WebSocket, with the library's reader in `nursery`. None when the client was refused or went away."""
    inner: trio.abc.Stream = stream
    if door.certificate is not None:
        context = await door.certificate.current(shared.health)
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await secured.do_handshake()
        inner = secured
    client = DoorStream(inner, lambda: shared.config, door.path)
    request = await _request(client, nursery, shared.config.max_message)
    if request is None:
        shared.counters.refused("handshake")
        return None
    # the library keeps the Host header to itself; a page of this very host is known by it
    host = str(request._event.host)
    refused = refusal(
        request.path,
        host,
        request.headers,
        path=door.path,
        origins=shared.config.origins,
        secured=door.certificate is not None,
    )
    if refused is not None:
        shared.counters.refused(refused.why)
        text = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Connection", b"close")]
        await request.reject(refused.status, extra_headers=text, body=f"{refused.message}\n".encode())
        await client.aclose()
        return None
    ws = await request.accept()
    client.accepted(ws)
    return client, ws


async def _request(client: ClientStream, nursery: trio.Nursery, max_message: int) -> WebSocketRequest | None:
    """The handshake's request; None when the connection ended, or broke the rules, before it was whole."""
    request: WebSocketRequest | None = None

    async def wait_for_end(scope: trio.CancelScope) -> None:
        await client.ended.wait()
        scope.cancel()

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait_for_end, waiting.cancel_scope)
        request = await wrap_server_stream(
            nursery,
            client,
            message_queue_size=_LIBRARY_QUEUE,
            max_message_size=max_message,
        )
        waiting.cancel_scope.cancel()
    return request
