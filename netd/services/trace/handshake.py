"""From an accepted socket to an open WebSocket: TLS, the request, who is let in.

Rules:
- the caller has the deadline; a connection that ends meanwhile is noticed at once (the library alone would wait for its
  request for ever);
- a request that is no WebSocket handshake is answered 400 or 426 by the library, a wrong path 404, a wrong Origin 403.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio
from trio_websocket import wrap_server_stream

from netd.services.trace.admission import refusal
from netd.services.trace.stream import ClientStream

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection, WebSocketRequest

    from netd.runtime.listeners import Listener
    from netd.services.trace.certificates import Certificate
    from netd.services.trace.tracing import Shared

TCP_SAVED_SYN = 28
"""linux/tcp.h: read it, once."""

_LIBRARY_QUEUE = 1
"""Messages the WebSocket library may hold; the session reads them at once."""


class Door:
    """A listener with what its connections need."""

    def __init__(self, listener: Listener, path: str, certificate: Certificate | None) -> None:
        self.listener = listener
        self.path = path
        self.certificate = certificate


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
    client = ClientStream(inner, lambda: shared.config)
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
    return client, await request.accept()


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
