"""Raw HTTP over any stream, for tests that read as a script of bytes.

async with conversation(app) as peer:
    await peer.send(b"GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    assert (await peer.response()).status == 200
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
import trio
import trio.testing

from netd.net.http import App, HttpLimits, serve, serve_connection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """The client's end of a connection."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def half_close(self) -> None:
        await self.stream.send_eof()

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self.stream)

    async def response(self, method: str = "GET") -> Response:
        """The next response, whole. h11 reads it, so that it has to be well formed."""
        response, body = None, b""
        if self._http.our_state is h11.IDLE:
            # what h11 should expect; what really was sent is the test's business
            self._http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
            self._http.send(h11.EndOfMessage())
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self.stream.receive_some(65536)))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError("the server closed the connection without a response")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        assert response is not None
        headers = {name.decode(): value.decode() for name, value in response.headers}
        return Response(response.status_code, headers, body)

    async def rest(self) -> bytes:
        """All bytes until the server closes."""
        data = b""
        while more := await self.stream.receive_some(65536):
            data += more
        return data


@asynccontextmanager
async def conversation(
    app: App, limits: HttpLimits | None = None, *, lockstep: bool = False, draining: trio.Event | None = None
) -> AsyncGenerator[Peer, None]:
    """A connection to `app` through memory. `lockstep`: the server's writes wait for the peer to read, as a full
    socket buffer would. On leaving, the server has to have ended by itself once the peer has closed."""
    ours, theirs = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
    draining = trio.Event() if draining is None else draining
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, app, limits or HttpLimits(), draining)
        yield Peer(ours)
        await trio.aclose_forcefully(ours)


class MemoryListener:
    """What `serve` accepts from, in memory."""

    def __init__(self) -> None:
        self._put, self._get = trio.open_memory_channel[trio.abc.HalfCloseableStream](100)

    async def accept(self) -> trio.abc.HalfCloseableStream:
        return await self._get.receive()

    def connect(self, *, lockstep: bool = False) -> Peer:
        ours, theirs = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
        self._put.send_nowait(theirs)
        return Peer(ours)


class SocketListener:
    """What `serve` accepts from, on a real socket."""

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self.socket = socket
        self._listener = trio.SocketListener(socket)

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()


@asynccontextmanager
async def front_door(
    app: App, listener: Any = None, limits: HttpLimits | None = None
) -> AsyncGenerator[tuple[Any, trio.Event, trio.Event], None]:
    """`serve` running: yields its listener, its draining event, and an event set when it has returned."""
    listener = listener or MemoryListener()
    draining, returned = trio.Event(), trio.Event()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve(listener, app, limits or HttpLimits(), draining, task_status=task_status)
        returned.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        yield listener, draining, returned
        nursery.cancel_scope.cancel()


def request(method: str = "GET", target: str = "/", body: bytes | None = None, headers: Sequence[str] = ()) -> bytes:
    """A well-formed request as bytes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


# --- applications to serve ------------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked: method, path, query and the whole body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    text = f"{scope['method']} {scope['path']} {scope['query_string'].decode()}|".encode() + body
    await say(send, text)


async def say(send: Any, body: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """A response without end, as fast as the peer takes it."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
