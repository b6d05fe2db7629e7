"""The framed service on real loopback sockets, with a hub and a reactor of its own.

    async with serving(mode="echo") as house:
        client = await house.client()
        await client.send(b"hello")
        assert await client.next() == b"hello"

`Client` knows frames and nothing else; `say` and `hear` speak the message vocabulary in JSON.
"""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from netd.services.framed.config import FramedConfig, FramedListen
from netd.services.framed.service import service_type
from netd.wire.framing import FrameDecoder, FrameLimits, frame
from tests.sessions import lab
from tests.sessions.lab import OPEN, PATIENCE, POLICY, PUBLIC, SIGNATURE, eventually, proxied, running, trusting

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable

    from netd.hub.config import HubConfig
    from netd.runtime.config import RestartPolicy

__all__ = [
    "OPEN",
    "PATIENCE",
    "POLICY",
    "PUBLIC",
    "SIGNATURE",
    "Client",
    "House",
    "echoes",
    "eventually",
    "listening",
    "proxied",
    "serving",
    "trusting",
]


class Client:
    """One framed connection, seen from its other end."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self.stream = stream
        self.socket = sock
        self._decoder = FrameDecoder(FrameLimits(1 << 30))
        self._frames: list[bytes] = []
        self._ref = 0
        self.id = ""

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send(self, *payloads: bytes) -> None:
        await self.raw(b"".join(map(frame, payloads)))

    async def next(self) -> bytes:
        """The next payload. EndOfChannel when the connection is over."""
        with trio.fail_after(PATIENCE):
            while not self._frames:
                data = await self._some()
                if not data:
                    raise trio.EndOfChannel
                self._frames += self._decoder.receive(data)
        return self._frames.pop(0)

    async def rest(self) -> list[bytes]:
        """Everything until the connection is over."""
        payloads = []
        while True:
            try:
                payloads.append(await self.next())
            except trio.EndOfChannel:
                return payloads

    async def rest_or(self, payload: bytes) -> bool:
        """Whether `payload` comes next, rather than the end."""
        try:
            return await self.next() == payload
        except trio.EndOfChannel:
            return False

    async def bytes(self, count: int) -> bytes:
        """So many bytes, frames or not."""
        data = b""
        with trio.fail_after(PATIENCE):
            while len(data) < count:
                more = await self._some()
                assert more, f"the connection ended after {data!r}"
                data += more
        return data

    async def over(self) -> bytes:
        """Wait for the end; whatever came before it."""
        data = b""
        with trio.fail_after(PATIENCE):
            while more := await self._some():
                data += more
        return data

    async def _some(self) -> bytes:
        try:
            data = bytes(await self.stream.receive_some(65536))
        except trio.BrokenResourceError:
            data = b""
        if not data:
            # the other side lingers until it has our FIN
            self.socket.close()
        return data

    # --- the message vocabulary, in JSON ---

    async def say(self, type: str, **fields: Any) -> None:
        await self.send(json.dumps({"type": type, **fields}).encode())

    async def hear(self, type: str | None = None) -> dict[str, Any]:
        """The next message; or the next of this type, and pings are skipped anyway."""
        while True:
            message: dict[str, Any] = json.loads(await self.next())
            if message["type"] == type or (type is None and message["type"] != "ping"):
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


class House(lab.House):
    """A running service and everything around it."""

    async def client(
        self, number: int = 0, *, tls: ssl.SSLContext | None = None, buffer: int | None = None, settled: bool = True
    ) -> Client:
        """A client of listener `number`, let in unless `settled` is False; closed at the end of the test."""
        before = self.service.snapshot().total
        client = Client(*await self.connect(number, tls=tls, buffer=buffer))
        if settled:
            await eventually(lambda: self.service.snapshot().total > before)
        return client


def listening(**fields: Any) -> FramedListen:
    """A listener on a free port of 127.0.0.1."""
    return FramedListen(**{"address": "127.0.0.1:0", **fields})


@asynccontextmanager
async def serving(
    *listeners: FramedListen,
    hub: HubConfig = OPEN,
    policy: RestartPolicy = POLICY,
    limits: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.time,
    **listen: Any,
) -> AsyncGenerator[House, None]:
    """The service in its unit. Either `listeners`, or the fields of one. `limits` are not validated: short times."""
    config = FramedConfig(listen=list(listeners) or [listening(**listen)]).model_copy(update=limits or {})
    async with running(service_type, config, House, hub=hub, policy=policy, clock=clock) as house:
        yield house


async def echoes(client: Client, payload: bytes = b"are you there") -> bool:
    """Whether a payload comes back."""
    await client.send(payload)
    return await client.rest_or(payload)
