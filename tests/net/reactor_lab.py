"""What the reactor's tests share: a running reactor, an outbox as simple as can be, an endpoint that remembers.

async with running() as reactor:
    peer, end = connect(reactor)          # peer: a Trio socket; end: what the reactor feeds
    end.outbox.push(b"hello")
    assert await peer.recv(5) == b"hello"
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from netd.net.reactor import Reactor, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from netd.net.tls import TlsLayer

PATIENCE = 20.0


class Box:
    """An outbox: urgent chunks first, and no more than `allowance` bytes leave it (None: any number)."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.stream: Stream | None = None
        self.urgent: list[bytes] = []
        self.normal: list[bytes] = []
        self.allowance: int | None = None
        self.delay: float | None = None
        self.taken = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.urgent + self.normal))

    def push(self, *chunks: bytes, urgent: bool = False) -> None:
        empty = not self.size
        (self.urgent if urgent else self.normal).extend(chunks)
        if empty:
            self.reactor.mark(self)

    def take(self, limit: int, now: float) -> list[bytes]:
        taken: list[bytes] = []
        for lane in (self.urgent, self.normal):
            while lane and limit > 0 and (self.allowance is None or self.allowance >= len(lane[0])):
                chunk = lane.pop(0)
                taken.append(chunk)
                limit -= len(chunk)
                if self.allowance is not None:
                    self.allowance -= len(chunk)
        self.taken += len(taken)
        return taken

    def wait(self, now: float) -> float | None:
        if self.size and self.delay is not None:
            self.allowance = None  # by then everything may go
            return self.delay
        return None


class End:
    """An endpoint: remembers what it was fed, and does what the test says."""

    def __init__(self, reactor: Reactor, act: Callable[[End, bytes], None] | None = None) -> None:
        self.outbox = Box(reactor)
        self.received = bytearray()
        self.feeds = 0
        self.whys: list[str] = []
        self.over = trio.Event()
        self._act = act

    @property
    def stream(self) -> Stream:
        assert self.made is not None
        return self.made

    made: Stream | None = None

    def receive(self, data: bytes) -> None:
        self.received += data
        self.feeds += 1
        if self._act is not None:
            self._act(self, data)

    def ended(self, why: str) -> None:
        self.whys.append(why)
        self.over.set()

    async def gone(self) -> str:
        """Wait for the end; its reason."""
        with trio.fail_after(PATIENCE):
            await self.over.wait()
        [why] = self.whys
        return why


def echo(end: End, data: bytes) -> None:
    end.outbox.push(data)


def pair(*, unix: bool = False, buffers: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets; `buffers` makes theirs small, in both directions."""
    if unix:
        return socket.socketpair()
    with socket.socket() as listener:
        if buffers is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = socket.socket()
        if buffers is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    if buffers is not None:
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
    return server, client


def connect(
    reactor: Reactor,
    act: Callable[[End, bytes], None] | None = None,
    *,
    unix: bool = False,
    buffers: int | None = None,
    tls: TlsLayer | None = None,
    received: bytes = b"",
    end: End | None = None,
) -> tuple[trio.socket.SocketType, End]:
    """A connection of which the reactor has one end."""
    server, client = pair(unix=unix, buffers=buffers)
    client.setblocking(False)
    end = end or End(reactor, act)
    end.made = reactor.adopt(server, end, end.outbox, tls=tls, received=received)
    return trio.socket.from_stdlib_socket(client), end


@asynccontextmanager
async def running() -> AsyncIterator[Reactor]:
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        yield reactor
        nursery.cancel_scope.cancel()


async def exactly(peer: trio.socket.SocketType, count: int) -> bytes:
    """So many bytes from a socket."""
    data = bytearray()
    with trio.fail_after(PATIENCE):
        while len(data) < count:
            more = await peer.recv(min(1 << 18, count - len(data)))
            if not more:
                raise EOFError(f"{len(data)} of {count} bytes")
            data += more
    return bytes(data)


async def rest(peer: trio.socket.SocketType) -> bytes:
    """Everything until the end of the connection."""
    data = bytearray()
    with trio.fail_after(PATIENCE):
        while more := await peer.recv(1 << 18):
            data += more
    return bytes(data)


async def send(peer: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await peer.send(view) :]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what it waits for has no event
            await trio.sleep(0.002)
