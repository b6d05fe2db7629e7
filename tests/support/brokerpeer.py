"""A broker that does what a test says, a step at a time, over trio-websocket: the other end for BrokerClient's tests.

    async with BrokerPeer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(client, peer.url)
        link = await peer.accept()            # upgraded; `offer` for what is to be refused
        await link.welcome(resume="s1")
        request = await link.request(Publish)
        await link.say(Ok(ref=request.ref))

Everything waits PATIENCE seconds at most.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Self

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from tests.support.framedpeer import PATIENCE, OperationsLink

if TYPE_CHECKING:
    import ssl

    from netd.wire import messages


class BrokerLink(OperationsLink):
    """One WebSocket."""

    def __init__(self, ws: WebSocketConnection, stream: trio.abc.Stream, format: messages.Format) -> None:
        super().__init__(format)
        self.ws = ws
        self.stream = stream

    async def receive(self) -> bytes:
        """The next payload; trio.EndOfChannel when the client has closed."""
        with trio.fail_after(PATIENCE):
            try:
                message = await self.ws.get_message()
            except ConnectionClosed:
                raise trio.EndOfChannel from None
        assert isinstance(message, str) is (self.format == "json")
        return message.encode() if isinstance(message, str) else message

    async def send(self, *payloads: bytes) -> None:
        with trio.fail_after(PATIENCE):
            for payload in payloads:
                await self.ws.send_message(payload.decode() if self.format == "json" else payload)

    async def ended(self) -> None:
        """Until the client has left; what it still says is dropped."""
        with suppress(trio.EndOfChannel):
            while True:
                await self.receive()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """The closing handshake."""
        with trio.move_on_after(PATIENCE):
            await self.ws.aclose(code, reason)

    async def abort(self) -> None:
        """Reset, without a word."""
        sock = self.stream.socket if isinstance(self.stream, trio.SocketStream) else None
        if sock is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(self.stream)


class BrokerPeer:
    """The listening side. `tls`: a server's context."""

    def __init__(self, *, format: messages.Format = "json", tls: ssl.SSLContext | None = None) -> None:
        self.format: messages.Format = format
        self._tls = tls
        self._streams: list[trio.abc.Stream] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'ws' if self._tls is None else 'wss'}://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return self.url

    async def __aenter__(self) -> Self:
        await self.open()
        self._nurseries = trio.open_nursery()
        self.tasks = await self._nurseries.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        with trio.CancelScope(shield=True):
            for stream in self._streams:
                await trio.aclose_forcefully(stream)
        self.tasks.cancel_scope.cancel()
        await self._nurseries.__aexit__(None, None, None)

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        sock = trio.socket.socket()
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await sock.bind(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        sock.listen(16)
        self._listener = trio.SocketListener(sock)

    async def stop(self) -> None:
        """Listen no more; connections stay."""
        with trio.CancelScope(shield=True):
            await self._listener.aclose()

    async def stream(self) -> trio.abc.Stream:
        """The next connection, before anything was said."""
        with trio.fail_after(PATIENCE):
            stream: trio.abc.Stream = await self._listener.accept()
            self._streams.append(stream)
            if self._tls is not None:
                stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
                await stream.do_handshake()
        return stream

    async def offer(self) -> tuple[WebSocketRequest, trio.abc.Stream]:
        """The next connection's wish to be upgraded."""
        stream = await self.stream()
        with trio.fail_after(PATIENCE):
            return await wrap_server_stream(_Reading(self.tasks), stream), stream  # type: ignore[arg-type]

    async def accept(self) -> BrokerLink:
        request, stream = await self.offer()
        ws = await request.accept(subprotocol="netd.json" if self.format == "json" else "netd.msgpack")
        return BrokerLink(ws, stream, self.format)


class _Reading:
    """Starts trio-websocket's reader so that a peer that is gone ends no test."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, task: object) -> None:
        async def read() -> None:
            with suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                await task()  # type: ignore[operator]

        self._nursery.start_soon(read)
