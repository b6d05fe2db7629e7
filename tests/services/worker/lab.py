"""The worker service on a real Unix socket, scripted workers, and people in a hub without a transport.

async with serving(tmp_path) as house:
    worker = await house.worker()
    alice = house.person()
    assert (await worker.next(SessionOpened)).session.id == alice.session.id
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from netd.errors import ApplicationError
from netd.services.worker.config import WorkerConfig
from netd.services.worker.service import service_type
from netd.wire.framing import FrameDecoder, FrameLimits
from netd.wire.workers import (
    Answer,
    Done,
    Error,
    Goodbye,
    Hello,
    HttpRequest,
    HttpResponse,
    Ping,
    Pong,
    Response,
    Welcome,
    decode_to_worker,
    encode,
)
from tests.hub.room import Person as Somebody
from tests.sessions import lab
from tests.sessions.lab import OPEN, PATIENCE, POLICY, eventually, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from netd.hub.config import HubConfig
    from netd.hub.hub import Hub
    from netd.runtime.config import RestartPolicy

__all__ = ["OPEN", "PATIENCE", "POLICY", "House", "Person", "Scripted", "asking", "eventually", "serving"]

ALL = ["http_request", "session_opened", "message", "session_closed"]
MessageT = TypeVar("MessageT")


class Scripted:
    """A worker that does what a test says. Pings are answered while it is asked for messages."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.mute = False
        """It answers no pings."""
        self.welcome: Welcome
        self._decoder = FrameDecoder(FrameLimits(1 << 30))
        self._seen: deque[Any] = deque()
        self._ref = 0

    async def say(self, *messages: Any) -> None:
        await self.stream.send_all(b"".join(map(encode, messages)))

    async def raw(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def next(self, kind: type[MessageT] | None = None) -> MessageT:
        """The next message; of this kind, if one is named, and nothing else may come before it. EndOfChannel: over."""
        with trio.fail_after(PATIENCE):
            while True:
                while self._seen:
                    message = self._seen.popleft()
                    if isinstance(message, Ping) and kind is not Ping:
                        if not self.mute:
                            await self.say(Pong(message.n))
                        continue
                    assert kind is None or isinstance(message, kind), message
                    return message
                try:
                    data = bytes(await self.stream.receive_some(65536))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    data = b""
                if not data:
                    raise trio.EndOfChannel
                self._seen.extend(map(decode_to_worker, self._decoder.receive(data)))

    async def skip_to(self, kind: type[MessageT]) -> MessageT:
        while True:
            message = await self.next()
            if isinstance(message, kind):
                return message

    async def ask(self, verb: type, **fields: Any) -> Any:
        """The value of the answer, or the Error."""
        self._ref += 1
        await self.say(verb(ref=self._ref, **fields))
        others = []
        while True:
            message = await self.next()
            if isinstance(message, (Answer, Error)) and message.ref == self._ref:
                self._seen.extendleft(reversed(others))
                return message if isinstance(message, Error) else message.value
            others.append(message)

    async def done(self, *messages: Any) -> None:
        await self.say(Done([each.n for each in messages]))

    async def reply(self, request: Any, body: bytes = b"OK", status: int = 200) -> None:
        await self.say(Response(request.n, HttpResponse(status, body=body)))

    async def quiet(self) -> None:
        """Nothing has been said to it that it has not been asked for."""
        before = self._ref
        from netd.wire.workers import AskInfo

        assert await self.ask(AskInfo, session="nobody") is None
        assert self._ref == before + 1
        assert not [each for each in self._seen if not isinstance(each, Ping)], self._seen

    async def over(self) -> Goodbye | None:
        """What it was told as its connection ended."""
        goodbye = None
        while True:
            try:
                message = await self.next()
            except trio.EndOfChannel:
                return goodbye
            if isinstance(message, Goodbye):
                goodbye = message

    async def gone(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Person(Somebody):
    """A client; counts how often nothing was read from it."""

    paused = False
    pauses = 0

    def pause(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.paused = False

    def tell(self, data: str | bytes) -> None:
        self.room.hub.application.message(self.session, data)


class Hall:
    """As much of tests.hub.room.Room as people need."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.now = 0.0

    def mark(self, outbox: Any) -> None: ...
    def mark_crowd(self, outboxes: Any, alone: Any) -> None: ...

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: Any, data: bytes, messages: int) -> Any:
        return outboxes


class House(lab.House):
    async def stranger(self) -> Scripted:
        """A connection that has said nothing yet."""
        stream, _ = await self.connect()
        assert isinstance(stream, trio.SocketStream)
        return Scripted(stream)

    async def worker(self, name: str = "test", handlers: list[str] | None = None, **hello: Any) -> Scripted:
        worker = await self.stranger()
        await worker.say(Hello(1, name, os.getpid(), ALL if handlers is None else handlers, **hello))
        worker.welcome = await worker.next(Welcome)
        return worker

    def person(self, **more: Any) -> Person:
        return Person(Hall(self.hub), **{"transport": "test", **more})  # type: ignore[arg-type]

    async def request(self, target: str = "/", body: bytes = b"") -> HttpResponse:
        return await self.hub.application.request(HttpRequest("GET", target, [(b"host", b"a")], body))


@asynccontextmanager
async def asking(house: House, target: str = "/", body: bytes = b"") -> AsyncGenerator[list[Any], None]:
    """A request under way; what came of it stands in the list by the end."""
    outcome: list[Any] = []

    async def ask() -> None:
        try:
            outcome.append(await house.request(target, body))
        except ApplicationError as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        yield outcome


@asynccontextmanager
async def serving(
    tmp_path: Path,
    *,
    hub: HubConfig = OPEN,
    policy: RestartPolicy = POLICY,
    limits: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncGenerator[House, None]:
    """The service in its unit. `limits` are not validated: short times."""
    worker = WorkerConfig(**{"socket": tmp_path / "worker.sock", "group": None, "wait": 0.0, **config})
    worker = worker.model_copy(update=limits or {})
    async with running(lambda the_hub, reactor: service_type(the_hub), worker, House, hub=hub, policy=policy) as house:
        yield house
        if config.get("command"):
            await house.settle(None)  # which is what ends programs in order
