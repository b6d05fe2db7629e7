"""The daemon's side of the worker protocol as a test's script says it, on a real Unix socket.

async with scripted_daemon(tmp_path) as daemon, working(worker, daemon.path):
    link = await daemon.accept()                      # the worker's hello was read, and a welcome sent
    n = await link.message(session, "hello")          # what is handed over is numbered
    await link.heard(wire.Send)                       # the next message of this kind; others before it are an error
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from netd.wire import workers as wire
from netd.wire.framing import FrameDecoder, FrameLimits
from netd.worker import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from netd.worker import Worker

PATIENCE = 30.0
"""Seconds after which a test that waits gives up."""
WELCOME = wire.Welcome(
    version=1,
    worker=1,
    server="netd",
    release="0.0.0",
    max_frame=2**20,
    ping=5.0,
    hang=10.0,
    request_timeout=30.0,
    message_timeout=60.0,
    window=16,
)
T = TypeVar("T")


class ScriptedLink:
    """One worker's connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.hello: wire.Hello
        self._decoder = FrameDecoder(FrameLimits(wire.MAX_FRAME))
        self._heard: deque[wire.FromWorker] = deque()
        self._n = 0

    async def say(self, *messages: wire.ToWorker) -> None:
        await self.stream.send_all(b"".join(map(wire.encode, messages)))

    async def next(self) -> wire.FromWorker | None:
        """What the worker says next; None when it has closed."""
        with trio.fail_after(PATIENCE):
            while not self._heard:
                data = await self.stream.receive_some(65536)
                if not data:
                    return None
                self._heard += map(wire.decode_from_worker, self._decoder.receive(data))
        return self._heard.popleft()

    async def heard(self, kind: type[T]) -> T:
        message = await self.next()
        assert isinstance(message, kind), message
        return message

    def number(self) -> int:
        self._n += 1
        return self._n

    async def opened(self, id: str, **state: Any) -> int:
        """Tell of a new session."""
        n = self.number()
        await self.say(wire.SessionOpened(n=n, session=wire.SessionState(id=id, **state)))
        return n

    async def known(self, id: str, **state: Any) -> None:
        await self.say(wire.SessionKnown(session=wire.SessionState(id=id, **state)))

    async def message(self, id: str, data: str | bytes) -> int:
        n = self.number()
        await self.say(wire.Message(n=n, session=id, data=data))
        return n

    async def closed(self, id: str, token: bytes | None = None) -> int:
        n = self.number()
        await self.say(wire.SessionClosed(n=n, session=id, token=token))
        return n

    async def request(self, method: str = "GET", target: str = "/", headers: Any = (), body: bytes = b"") -> int:
        n = self.number()
        asked = wire.HttpRequest(method=method, target=target, headers=list(headers), body=body, client="192.0.2.7:5")
        await self.say(wire.Request(n=n, request=asked))
        return n

    async def done(self, *numbers: int) -> None:
        """Wait until these, and no others, are over; the worker may say so in pieces."""
        left = set(numbers)
        while left:
            said = await self.heard(wire.Done)
            assert set(said.n) <= left, (said, left)
            left -= set(said.n)

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


class ScriptedDaemon:
    def __init__(self, path: Path, listener: trio.SocketListener) -> None:
        self.path = path
        self.links: list[ScriptedLink] = []
        self._listener = listener

    async def connected(self) -> ScriptedLink:
        """The next worker; its hello was read."""
        with trio.fail_after(PATIENCE):
            link = ScriptedLink(await self._listener.accept())
        self.links.append(link)
        link.hello = await link.heard(wire.Hello)
        return link

    async def accept(self, welcome: wire.Welcome = WELCOME) -> ScriptedLink:
        """The next worker, welcomed."""
        link = await self.connected()
        await link.say(welcome)
        return link


@asynccontextmanager
async def scripted_daemon(directory: Path) -> AsyncIterator[ScriptedDaemon]:
    path = directory / "worker.sock"
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(os.fspath(path))
    sock.listen(16)
    async with trio.SocketListener(sock) as listener:
        daemon = ScriptedDaemon(path, listener)
        try:
            yield daemon
        finally:
            for link in daemon.links:
                link.stream.socket.close()
            path.unlink()


@asynccontextmanager
async def working(worker: Worker, path: Path, **options: Any) -> AsyncIterator[None]:
    """The worker at work while the context lasts."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve(worker, path, **options))
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
