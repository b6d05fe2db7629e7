"""A framed server that does what a test says, a step at a time: the other end for client tests.

    async with FramedPeer() as peer, FramedClient(peer.address) as client:
        link = await peer.accept()
        await link.receive()                  # one payload
        await link.send(b"...")               # one frame; hand several over to have them in one segment
        await link.welcome(resume="s1")       # operations: reads the hello and answers it
        request = await link.request(Publish)
        await link.say(Ok(ref=request.ref))

Everything waits PATIENCE seconds at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

import trio

from netd.wire import messages
from netd.wire.framing import FrameDecoder, FrameLimits, frames

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from netd.client import FramedClient, Subscription

PATIENCE = 20.0
R = TypeVar("R")


class OperationsLink:
    """What is said in operations over one connection, whatever carries its payloads."""

    def __init__(self, format: messages.Format) -> None:
        self.format: messages.Format = format

    async def receive(self) -> bytes:
        raise NotImplementedError

    async def send(self, *payloads: bytes) -> None:
        raise NotImplementedError

    async def say(self, *events: messages.Event) -> None:
        await self.send(*(messages.encode(event, self.format) for event in events))

    async def request(self, kind: type[R]) -> R:
        """The next request, which has to be of this kind; pings and pongs in between do not count."""
        while True:
            request: Any = messages.decode_request(await self.receive(), self.format)
            if isinstance(request, kind):
                return request
            assert isinstance(request, messages.Ping | messages.Pong), f"{request} instead of {kind.__name__}"

    async def welcome(
        self, session: str = "s-1", *, resume: str | None = None, heartbeat: float = 0.0
    ) -> messages.Hello:
        hello = await self.request(messages.Hello)
        await self.say(messages.Welcome(session, "netd", "0.1.0", heartbeat, resume))
        return hello

    async def confirm(self, channel: str, **fields: Any) -> messages.Subscribe:
        """Answer a subscribe for this channel."""
        request = await self.request(messages.Subscribe)
        assert request.channel == channel
        await self.say(messages.Ok(ref=request.ref, channel=channel, **fields))
        return request


class PeerLink(OperationsLink):
    """One accepted connection."""

    def __init__(self, stream: trio.abc.Stream, format: messages.Format) -> None:
        super().__init__(format)
        self.stream = stream
        self._decoder = FrameDecoder(FrameLimits())
        self._ready: list[bytes] = []

    async def receive(self) -> bytes:
        """The next payload; trio.EndOfChannel when the client has closed."""
        with trio.fail_after(PATIENCE):
            while not self._ready:
                data = await self.stream.receive_some(65536)
                if not data:
                    raise trio.EndOfChannel
                self._ready += self._decoder.receive(bytes(data))
        return self._ready.pop(0)

    async def send(self, *payloads: bytes) -> None:
        await self.send_raw(frames(payloads))

    async def send_raw(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def ended(self) -> None:
        """Until the client has closed its side; what it still sends is dropped."""
        with trio.fail_after(PATIENCE):
            while await self.stream.receive_some(65536):
                pass

    async def close(self) -> None:
        """Cleanly: FIN, and no reset for what was not read."""
        with trio.move_on_after(PATIENCE):
            if isinstance(self.stream, trio.SocketStream):
                await self.stream.send_eof()
                await self.ended()
        await trio.aclose_forcefully(self.stream)

    async def abort(self) -> None:
        await trio.aclose_forcefully(self.stream)


class FramedPeer:
    """The listening side. `tls`: a server's context; `path`: a Unix socket instead of TCP."""

    def __init__(
        self, *, format: messages.Format = "messagepack", tls: ssl.SSLContext | None = None, path: Path | None = None
    ) -> None:
        self.format: messages.Format = format
        self._tls = tls
        self._path = path
        self._links: list[PeerLink] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"unix:{self._path}" if self._path is not None else f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        with trio.CancelScope(shield=True):
            for link in self._links:
                await trio.aclose_forcefully(link.stream)

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        if self._path is not None:
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(str(self._path))
        else:
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

    async def accept(self) -> PeerLink:
        with trio.fail_after(PATIENCE):
            stream: trio.abc.Stream = await self._listener.accept()
            if self._tls is not None:
                secured = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
                try:
                    await secured.do_handshake()
                except BaseException:
                    await trio.aclose_forcefully(secured)
                    raise
                stream = secured
        self._links.append(PeerLink(stream, self.format))
        return self._links[-1]


async def begun(client: FramedClient, link: PeerLink, *channels: str, offset: int = 5) -> list[Subscription]:
    """Greeted, and subscribed to these channels, each of which is at this offset of epoch "e"."""

    async def serve() -> None:
        await link.welcome()
        for channel in channels:
            await link.confirm(channel, epoch="e", offset=offset)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.hello()
        return [await client.subscribe(channel) for channel in channels]
