"""The broker on real loopback sockets, with a hub and a reactor of its own, and a WebSocket client that hides nothing.

    async with serving() as house:
        client = await house.client("/ws/public:room")
        await client.text("hello")
        assert await client.message() == "hello"

`Client` knows frames and nothing else; `say` and `hear` speak the message vocabulary in JSON.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from netd.services.broker.config import BrokerConfig, BrokerListen
from netd.services.broker.service import service_type
from netd.wire import deflate, websocket
from netd.wire.upgrade import accept_key
from netd.wire.websocket import BINARY, PING, TEXT, Close, Decoder, Limits, Messages, Ping, Pong, frame
from tests.sessions import lab
from tests.sessions.lab import OPEN, PATIENCE, POLICY, PUBLIC, eventually, proxied, running, trusting

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Iterable

    from netd.hub.config import HubConfig
    from netd.runtime.config import RestartPolicy

__all__ = ["OPEN", "PATIENCE", "PUBLIC", "Client", "House", "eventually", "listening", "proxied", "serving", "trusting"]

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


class Client:
    """One WebSocket, seen from its other end."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self.stream = stream
        self.socket = sock
        self.decoder = Decoder(Limits(1 << 30), masked=False)
        self.packer: deflate.Compressor | None = None
        self.events: deque[Any] = deque()
        self.wire = 0
        """Bytes that came behind the handshake."""
        self._ref = 0
        self.id = ""
        self.answer = b""
        """The head of the answer to the handshake."""

    async def handshake(self, path: str, headers: Iterable[str] = (), offer: str = "") -> Client:
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade", *headers]
        lines += [f"Sec-WebSocket-Key: {KEY.decode()}", "Sec-WebSocket-Version: 13"]
        if offer:
            lines.append(f"Sec-WebSocket-Extensions: {offer}")
        await self.raw("\r\n".join([*lines, "", ""]).encode())
        with trio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self.answer:
                data = await self.stream.receive_some(65536)
                assert data, f"the connection ended after {self.answer!r}"
                self.answer += data
        self.answer, _, rest = self.answer.partition(b"\r\n\r\n")
        assert self.answer.startswith(b"HTTP/1.1 101 "), self.answer
        assert accept_key(KEY) in self.answer
        for line in self.answer.split(b"\r\n"):
            if line.lower().startswith(b"sec-websocket-extensions:"):
                agreed = deflate.accept(line.partition(b":")[2].decode().strip(), deflate.DeflateSettings())
                assert agreed is not None
                self.packer = agreed.compressor(client=True)
                self.decoder = Decoder(Limits(1 << 30), masked=False, inflate=agreed.decompressor(client=True))
        self._feed(rest)
        return self

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def frame(self, opcode: int, payload: bytes = b"") -> None:
        if self.packer is not None and opcode in (TEXT, BINARY):
            await self.raw(frame(opcode, self.packer.message(payload), key=os.urandom(4), compressed=True))
        else:
            await self.raw(frame(opcode, payload, key=os.urandom(4)))

    async def text(self, text: str) -> None:
        await self.frame(TEXT, text.encode())

    async def binary(self, data: bytes) -> None:
        await self.frame(BINARY, data)

    async def ping(self, payload: bytes = b"") -> None:
        await self.frame(PING, payload)

    async def close(self, code: int | None = 1000, reason: str = "") -> Close:
        """Say goodbye; what the answer is. Whatever comes before it is dropped."""
        await self.raw(websocket.close(code, reason, key=os.urandom(4)))
        return await self.ended()

    async def event(self) -> Any:
        """The next event, a message at a time: str or bytes, Ping, Pong, Close. EndOfChannel at the end of TCP."""
        with trio.fail_after(PATIENCE):
            while not self.events:
                try:
                    data = bytes(await self.stream.receive_some(65536))
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    self.socket.close()  # the other side lingers until it has our FIN
                    raise trio.EndOfChannel
                self._feed(data)
        return self.events.popleft()

    async def message(self) -> str | bytes:
        """The next message; control frames before it are passed over."""
        while not isinstance(event := await self.event(), str | bytes):
            assert not isinstance(event, Close), event
        return event

    async def pong(self) -> bytes:
        while not isinstance(event := await self.event(), Pong):
            pass
        return event.payload

    async def pinged(self) -> bytes:
        while not isinstance(event := await self.event(), Ping):
            pass
        return event.payload

    async def ended(self) -> Close:
        """The Close that comes, after which the connection ends."""
        last = None
        while True:
            try:
                event = await self.event()
            except trio.EndOfChannel:
                assert last is not None, "the connection ended without a Close"
                return last
            if isinstance(event, Close):
                last = event

    async def rest(self) -> list[Any]:
        """Everything until the end of TCP."""
        found = []
        while True:
            try:
                found.append(await self.event())
            except trio.EndOfChannel:
                return found

    def _feed(self, data: bytes) -> None:
        self.wire += len(data)
        for event in self.decoder.receive(data):
            if isinstance(event, Messages):
                self.events += [payload.decode() if event.text else payload for payload in event.payloads]
            else:
                self.events.append(event)
        assert self.decoder.error is None, self.decoder.error

    # --- the message vocabulary, in JSON ---

    async def say(self, type: str, **fields: Any) -> None:
        await self.text(json.dumps({"type": type, **fields}))

    async def hear(self, type: str | None = None) -> dict[str, Any]:
        """The next message; or the next of this type."""
        while True:
            message: dict[str, Any] = json.loads(await self.message())
            if type is None or message["type"] == type:
                return message

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request: ok, error, or what was asked for."""
        self._ref += 1
        await self.say(type, ref=self._ref, **fields)
        while True:
            message = await self.hear()
            if message.get("ref") == self._ref:
                return message

    async def hello(self, **fields: Any) -> Client:
        await self.say("hello", version=1, **fields)
        self.id = (await self.hear("welcome"))["session"]
        return self


class Stream:
    """One event stream, seen from its other end."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.head = b""
        self._data = b""

    async def open(self, path: str, headers: Iterable[str] = ()) -> Stream:
        await self.stream.send_all("\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode())
        self.head = await self._until(b"\r\n\r\n")
        return self

    async def event(self) -> dict[str, str]:
        """The next event: its fields. Comments are passed over. EndOfChannel at the end."""
        while True:
            lines = (await self._until(b"\n\n")).decode().split("\n")
            found = {name: value for name, _, value in (line.partition(": ") for line in lines if line[:1] != ":")}
            if any(found):
                return found

    async def comment(self) -> str:
        """The next block, which is a comment."""
        block = (await self._until(b"\n\n")).decode()
        assert block.startswith(":"), block
        return block

    async def _until(self, mark: bytes) -> bytes:
        with trio.fail_after(PATIENCE):
            while mark not in self._data:
                data = bytes(await self.stream.receive_some(65536))
                if not data:
                    raise trio.EndOfChannel
                self._data += data
        found, _, self._data = self._data.partition(mark)
        return found


class House(lab.House):
    """A running broker and everything around it."""

    async def client(
        self,
        path: str = "/ws",
        number: int = 0,
        *,
        headers: Iterable[str] = (),
        offer: str = "",
        tls: ssl.SSLContext | None = None,
        buffer: int | None = None,
        before: bytes = b"",
    ) -> Client:
        """A WebSocket of listener `number`, let in; closed at the end of the test. `before` goes ahead of it all."""
        here = self.service.snapshot().total
        stream, sock = await self.connect(number, tls=tls, buffer=buffer)
        if before:
            await stream.send_all(before)
        client = await Client(stream, sock).handshake(path, headers, offer)
        await eventually(lambda: self.service.snapshot().total > here)
        return client

    async def events(self, path: str = "/channels/public:room/events", headers: Iterable[str] = ()) -> Stream:
        """An event stream; closed at the end of the test."""
        stream, _ = await self.connect()
        return await Stream(stream).open(path, headers)


def listening(**fields: Any) -> BrokerListen:
    """A listener on a free port of 127.0.0.1."""
    return BrokerListen(**{"address": "127.0.0.1:0", **fields})


@asynccontextmanager
async def serving(
    *listeners: BrokerListen,
    hub: HubConfig = OPEN,
    policy: RestartPolicy = POLICY,
    clock: Callable[[], float] = time.time,
    listen: dict[str, Any] | None = None,
    house_type: type[Any] = House,
    **limits: Any,
) -> AsyncGenerator[Any, None]:
    """The broker in its unit. Either `listeners`, or the fields of one. `limits` are not validated: short times."""
    config = BrokerConfig(listen=list(listeners) or [listening(**(listen or {}))]).model_copy(update=limits)
    async with running(service_type, config, house_type, hub=hub, policy=policy, clock=clock) as house:
        yield house
