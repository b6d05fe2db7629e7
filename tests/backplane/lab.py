"""A real redis-server in a directory of its own, and daemons of this process that share it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import netd
from netd.backplane.plane import RedisBackplane
from netd.hub.outbox import Outbox, OutboxRules
from netd.hub.session import Session
from netd.settings import Loaded, Settings
from netd.wire import messages
from netd.wire.messages import Event, Message, Ok, Position
from tests.support.process import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from netd.daemon import Daemon

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="there is no redis-server (Debian: apt-get install redis-server)"
)

FREE = {"subscribe": "anyone", "publish": "anyone", "presence": "anyone", "history": "anyone"}
HUB = {
    "backplane": "redis",
    "direct": "anyone",
    "broadcast": "anyone",
    "clients": "anyone",
    "namespace": [
        {"name": "kept", **FREE, "history_size": 1000, "join_leave": True, "join_leave_rate": 1000},
        {"name": "short", **FREE, "history_size": 5},
        {"name": "brief", **FREE},
    ],
}
QUICK = {"timeout": 1.0, "retry": 0.02, "max_retry": 0.05, "heartbeat": 0.1, "expiry": 5.0, "answers": 5.0}


class Redis:
    """One server on a Unix socket, which can be stopped, killed and started again with what it kept."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.socket = directory / "redis.sock"
        self.url = f"unix:{self.socket}"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        here = ["--bind", "127.0.0.1", "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        self._process = subprocess.Popen(
            ["redis-server", *here, *self._options, "--daemonize", "no", "--save", "", "--loglevel", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    async def ready(self) -> None:
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    answer = await trio.to_thread.run_sync(lambda: self.say("PING", quiet=True))
                    if answer.startswith(("PONG", "NOAUTH")):
                        return
                except OSError:
                    pass
                await trio.sleep(0.01)

    def say(self, *words: str, quiet: bool = False) -> str:
        """What redis-cli answers."""
        done = subprocess.run(
            ["redis-cli", "-s", str(self.socket), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None


class _Says:
    def encode(self, event: Event) -> bytes | None:
        return messages.encode(event, "messagepack")


_SAYS = _Says()


class Person:
    """A session, and what it heard."""

    carrier: Any = None
    socket: Any = None
    bytes_in = 0
    bytes_out = 0
    tls = False

    def __init__(self, node: Node, **more: Any) -> None:
        self.node = node
        self.events: deque[Event] = deque()
        self.closed: tuple[int, str] | None = None
        self._news = trio.Event()
        self.outbox = Outbox(OutboxRules(2**24, "disconnect"), self, self)
        self.session = Session(encoder=_SAYS, outbox=self.outbox, link=self, transport="test", **more)
        node.hub.open(self.session)

    # --- what it does ---

    def ask(self, request: messages.Request) -> None:
        self.node.hub.handle(self.session, request)

    async def answer(self, request: Any, kind: type[Any]) -> Any:
        """What it is answered, of this kind; requests have the reference 7."""
        self.ask(request)
        return await self.until(kind, lambda event: event.ref == 7)

    async def hear(self, channel: str, recover: Position | None = None) -> Ok:
        return await self.answer(messages.Subscribe(channel=channel, recover=recover, ref=7), Ok)

    def say(self, channel: str, data: Any, **more: Any) -> None:
        self.ask(messages.Publish(channel=channel, data=data, **more))

    def leave(self) -> None:
        self.node.hub.close(self.session)

    # --- what it hears ---

    async def until(self, kind: type[Any], fits: Callable[[Any], bool] = lambda event: True) -> Any:
        """The first such event there is; those before it are lost."""
        with trio.fail_after(PATIENCE):
            while True:
                while self.events:
                    event = self.events.popleft()
                    if isinstance(event, kind) and fits(event):
                        return event
                self._news = trio.Event()
                await self._news.wait()

    async def messages(self, count: int) -> list[Message]:
        """So many messages; what else comes between is lost."""
        return [await self.until(Message) for _ in range(count)]

    def heard(self) -> list[Event]:
        """What is there now."""
        found = list(self.events)
        self.events.clear()
        return found

    def _take(self) -> None:
        for chunk in self.outbox.take(2**30, 0.0):
            self.events.append(messages.decode_event(bytes(chunk), "messagepack"))
        self._news.set()

    # --- the hub's side ---

    def mark(self, outbox: Outbox) -> None:
        self._take_soon()

    def mark_crowd(self, outboxes: list[Outbox], alone: Any) -> None:
        for outbox in outboxes:
            outbox.owner._take_soon()

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: Any, data: bytes, messages: int) -> Any:
        return outboxes

    def _take_soon(self) -> None:
        trio.lowlevel.current_trio_token().run_sync_soon(self._take)

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        self.closed = code, reason
        self._news.set()

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def pressure(self, over: bool) -> None:
        pass

    def overflow(self) -> None:
        pass


class Node:
    """A daemon of this process with a hub of its own."""

    def __init__(self, daemon: Daemon, settings: dict[str, dict[str, Any]] | None = None) -> None:
        self.daemon = daemon
        self._settings = settings or {}
        self.hub = daemon.hub
        assert isinstance(self.hub.backplane, RedisBackplane)
        self.plane = self.hub.backplane

    async def change(self, section: str, **values: Any) -> None:
        """Reload with other values in a section."""
        self._settings = {**self._settings, section: {**self._settings[section], **values}}
        self.daemon._source = lambda override: Loaded(Settings.embedded(self._settings), {}, [])
        await self.daemon.reload()

    def person(self, **more: Any) -> Person:
        return Person(self, **more)

    async def rest(self) -> None:
        """Return when every node that this one knows has heard what was said so far: the lane is one line."""
        answered = trio.Event()
        self.hub.direct("name:nobody at all", "", answer=lambda count: answered.set())
        with trio.fail_after(PATIENCE):
            await answered.wait()
        await trio.testing.wait_all_tasks_blocked(0.005)

    async def becomes(self, fits: Callable[[], bool]) -> None:
        """Wait for it; nothing tells."""
        with trio.fail_after(PATIENCE):
            while not fits():  # noqa: ASYNC110
                await trio.sleep(0.005)

    async def online(self, others: int | None = None) -> None:
        await self.becomes(lambda: self.plane.online and (others is None or len(self.plane.nodes) == others))

    async def offline(self) -> None:
        await self.becomes(lambda: not self.plane.online)

    @property
    def warnings(self) -> dict[str, str]:
        return {warning.code: warning.message for warning in self.daemon.health.warnings()}


@asynccontextmanager
async def node(redis: Redis | str, name: str = "a", **more: Any) -> AsyncIterator[Node]:
    """A daemon on this Redis, whether that is there or not."""
    url = redis if isinstance(redis, str) else redis.url
    hub = {**HUB, **more.pop("hub", {})}
    settings = {"hub": hub, "backplane": {"url": url, "node": name, **QUICK, **more}}
    async with netd.open(settings) as daemon:
        yield Node(daemon, settings)


@asynccontextmanager
async def nodes(redis: Redis, *names: str, **more: Any) -> AsyncIterator[list[Node]]:
    """Daemons that know each other."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(node(redis, name, **more)) for name in names]
        for one in found:
            await one.online(len(names) - 1)
        yield found


def numbers(events: list[Any]) -> list[Any]:
    """The data of the messages among these."""
    return [messages.data_of(event) for event in events if isinstance(event, Message)]
