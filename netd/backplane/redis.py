"""The connection to Redis: two sockets, one for what is asked and one for what is heard. Trio, over coredis.

    plane.next_call -> EVALSHA, PUBLISH (pipelined, in order) -> answers -> call.answer
    SUBSCRIBE lane, to:NODE -> Inbound (bounded) -> plane.arrived

Rules:
- one `serve` is one life: connect, look at what is there, load the scripts, hear the lanes, join; then until something
  is wrong. Whatever that is ends both sockets and is one `Away`, which says why and what to do about it;
- no wait is without a bound: whatever Redis does not answer in `timeout` is that, an established connection too: each
  of the two is asked for a sign of life every `heartbeat`;
- what came is delivered in slices of 2 ms, so that a flood does not keep the daemon from everything else; in between,
  the rest is moved into the bounded queue;
- an answer that Redis gives to one of our calls as an error is taken for Redis not being usable: our own calls have
  none, and it is tried anew.

Importing this file imports coredis, which takes a while: only the unit does, when it starts. coredis' clients, with
pools, retries and telemetry, are not used: order over one connection is what the backplane stands on.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import anyio
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis import exceptions
from coredis.connection import TCPConnection, TCPLocation, UnixDomainSocketConnection, UnixDomainSocketLocation

from netd.backplane import scripts
from netd.backplane.inbound import Inbound
from netd.errors import NetdError, sole
from netd.net.tls import reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from coredis.connection import BaseConnection

    from netd.backplane.config import BackplaneConfig
    from netd.backplane.desk import Call
    from netd.backplane.plane import RedisBackplane

LEAST = (6, 2)
"""The oldest version that has what the scripts use."""
WINDOW = 64
"""Calls that may wait for their answers on the connection."""
PUSHED = "_push_message_buffer_out"
"""Where coredis keeps what it was pushed, which it does not promise: without it push_messages does, with less behind
the bounds of the inbound queue."""
_SLICE = 0.002
_LAST_SLICE = 0.05

_TROUBLES = (exceptions.RedisError, OSError, trio.TooSlowError)  # TimeoutError is an OSError

# what it logs with tracebacks is told by Away, in a sentence
logging.getLogger("coredis").setLevel(logging.CRITICAL)


class Away(NetdError):
    """Redis cannot be used now. `advice` says what may help."""

    kind = "unavailable"

    def __init__(self, message: str, advice: str) -> None:
        self.advice = advice
        super().__init__(message)


class _Lost(Away):
    """The connection ended; if anything else is told too, that says why."""


def _connection(config: BackplaneConfig, password: str | None, context: ssl.SSLContext | None) -> BaseConnection:
    parts = urlsplit(config.url)
    more: dict[str, Any] = {
        "stream_timeout": config.timeout,
        "connect_timeout": config.timeout,
        "username": config.username,
        "password": password,
        "ssl_context": context,
    }
    if parts.scheme == "unix":
        return UnixDomainSocketConnection(UnixDomainSocketLocation(unquote(parts.path)), **more)
    more["db"] = int(parts.path.strip("/") or "0")
    host = parts.hostname or ""
    port = parts.port or 6379
    return TCPConnection(TCPLocation(host, port), socket_keepalive=True, **more)


def tls_context(config: BackplaneConfig) -> ssl.SSLContext | None:
    """For rediss://; blocks. Raises OSError."""
    if not config.url.startswith("rediss:"):
        return None
    return ssl.create_default_context(cafile=None if config.ca is None else str(config.ca))


async def serve(
    plane: RedisBackplane,
    config: BackplaneConfig,
    password: str | None,
    context: ssl.SSLContext | None,
    *,
    online: Callable[[], None],
    leaving: trio.Event,
    stays: Callable[[], bool],
) -> None:
    """One life of the connection: returns when `leaving` is set and everything has been said, else raises Away.

    `stays`: the node does not end with this life, so that there is no goodbye. `online` is called when the plane is
    connected.
    """
    try:
        await _Life(plane, config, password, context).run(online, leaving, stays)
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is not None and (rest is None or isinstance(_first(rest), (Away, *_TROUBLES))):
            raise cancelled from None  # what broke over it is of no interest
        error = _first(group)
        if isinstance(error, Away):
            raise error from None
        if isinstance(error, _TROUBLES):
            raise away(error, config) from error
        raise
    except _TROUBLES as error:
        raise away(error, config) from error
    finally:
        plane.cut()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What several tasks found at once is one trouble: an Away among it says most, then what Redis answered."""
    found: list[BaseException] = []
    waiting: deque[BaseException] = deque([group])
    while waiting:
        error = sole(waiting.popleft())
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        else:
            found.append(error)
    strange = [each for each in found if not isinstance(each, (Away, *_TROUBLES))]
    told = [each for each in found if isinstance(each, Away) and not isinstance(each, _Lost)]
    answered = [each for each in found if isinstance(each, exceptions.ResponseError)]
    lost = [each for each in found if isinstance(each, _Lost)]
    return group if strange else (told or answered or lost or found)[0]


class _Life:
    """Two connections, from the first byte to the last."""

    def __init__(
        self, plane: RedisBackplane, config: BackplaneConfig, password: str | None, context: ssl.SSLContext | None
    ) -> None:
        self._plane = plane
        self._config = config
        self._how = config, password, context
        self._calls = _connection(*self._how)
        self._news = trio.Event()
        self._work = trio.Event()
        self._subscribed = trio.Event()
        self._waiting: deque[tuple[Any, Call]] = deque()
        self._room = trio.Event()
        self._sent = trio.Event()
        self._answered = trio.Event()
        self._living = trio.CancelScope()
        """Until it leaves, it beats."""
        self._loaded: dict[str, Any] = {}
        self._inbound = Inbound(config.inbound_messages, config.inbound_bytes, lambda: self._news.set())

    async def run(self, online: Callable[[], None], leaving: trio.Event, stays: Callable[[], bool]) -> None:
        plane, config = self._plane, self._config
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(4 * config.timeout):
                    await nursery.start(self._hold, self._calls)
                    await self._look()
                    for name, text in scripts.ALL.items():
                        self._loaded[name] = await self._calls.create_request(b"SCRIPT LOAD", text)
                    self._lanes = _connection(*self._how)
                    await nursery.start(self._hold, self._lanes)
                    nursery.start_soon(self._hear)
                    nursery.start_soon(self._hear_refusals)
                    self._lanes.send_command(b"SUBSCRIBE", plane.lane, plane.own_lane)
                    await self._subscribed.wait()
                    await self._pages(plane.clearing)
                    joined = await self._ask(plane.joining())
                    seen: list[Any] = []
                    plane.beat(seen.append)  # the first heartbeat tells who else is there
                    call = plane.next_call()
                    assert call is not None
                    beaten = await self._ask(call)
                    call.answer(beaten)
                plane.on_call = lambda: self._work.set()
                plane.connected(joined, list(plane.nodes.items()))
                online()
                nursery.start_soon(self._deliver)
                nursery.start_soon(self._send)
                nursery.start_soon(self._collect)
                nursery.start_soon(self._beat)
                nursery.start_soon(self._check_lanes)
                nursery.start_soon(self._expire)
                await leaving.wait()
                await self._leave(stays)
                nursery.cancel_scope.cancel()
        finally:
            plane.on_call = _nothing
            if plane.online:  # what has come already is here
                until = time.perf_counter() + _LAST_SLICE
                while len(self._inbound) and time.perf_counter() < until:
                    plane.arrived(self._inbound.take())
            waiting, self._waiting = self._waiting, deque()
            for _, call in waiting:
                call.answer(None)

    async def _hold(self, connection: BaseConnection, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await connection.run(task_status=task_status)
        finally:
            for each in vars(connection).values():  # it leaves them open where it could not connect
                if isinstance(each, MemoryObjectReceiveStream | MemoryObjectSendStream):
                    each.close()
        raise self._lost()

    def _lost(self) -> Away:
        advice = "see whether it is running; its log says if it closed it (client-output-buffer-limit)"
        return _Lost(f"cannot use Redis at {self._config.url}: the connection was lost", advice)

    async def _look(self) -> None:
        """Whether this Redis can do what is asked of it."""
        version = self._calls.server_version or "0"
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < LEAST:
            least = ".".join(map(str, LEAST))
            raise Away(f"cannot use Redis {version} at {self._config.url}", f"install {least} or newer")
        try:
            said = await self._calls.create_request(b"INFO", b"server", decode=False)
        except exceptions.ResponseError:
            return  # it may not be asked; then we shall see
        if isinstance(said, bytes) and b"redis_mode:cluster" in said:
            raise Away(f"cannot use Redis at {self._config.url}: it is a cluster", "use a Redis that is none")

    def _request(self, call: Call) -> Any:
        if not call.script:
            command, *arguments = call.arguments
            return self._calls.create_request(command, *arguments)
        loaded = self._loaded[call.script]
        return self._calls.create_request(b"EVALSHA", loaded, len(call.keys), *call.keys, *call.arguments)

    async def _ask(self, call: Call) -> Any:
        return await self._request(call)

    async def _pages(self, ask: Callable[[bytes], Call], cursor: bytes = b"0") -> None:
        """Ask on for as long as there is a next page."""
        while True:
            answer = await self._ask(ask(cursor))
            if not isinstance(answer, list) or not answer or answer[0] == b"0":
                return
            cursor = answer[0]

    async def _send(self) -> None:
        while True:
            while len(self._waiting) < WINDOW and (call := self._plane.next_call()) is not None:
                try:
                    request = self._request(call)
                except BaseException:  # the connection has ended already
                    call.answer(None)
                    raise
                self._waiting.append((request, call))
                self._sent.set()
            if self._plane.flooded:
                raise Away(
                    f"cannot use Redis at {self._config.url}: more is asked of it than it answers",
                    "see whether it is overloaded, or give it a faster machine",
                )
            if len(self._waiting) >= WINDOW:
                self._room = trio.Event()
                await self._room.wait()
            else:
                self._work = trio.Event()
                await self._work.wait()
            await trio.lowlevel.checkpoint()

    async def _collect(self) -> None:
        while True:
            while not self._waiting:
                self._sent = trio.Event()
                await self._sent.wait()
            request, call = self._waiting[0]
            result = await request
            self._waiting.popleft()
            self._room.set()
            self._answered.set()
            call.answer(result)
            if self._plane.unsettled:
                self._news.set()
            if call.script == "publish" and isinstance(result, list) and result[1]:
                why = result[1].decode("utf-8", "replace")[:200]
                raise Away(f"cannot publish through Redis at {self._config.url}: {why}", _advice(why))

    async def _hear(self) -> None:
        lanes = {self._plane.lane, self._plane.own_lane}
        buffer = getattr(self._lanes, PUSHED, None)
        async with aclosing(self._lanes.push_messages if buffer is None else self._drained(buffer)) as everything:
            async for kind, *rest in everything:
                if kind == b"message" and isinstance(rest[1], bytes):
                    self._inbound.put(rest[1])
                elif kind == b"subscribe":
                    lanes.discard(rest[0])
                    if not lanes:
                        self._subscribed.set()

    async def _drained(self, buffer: MemoryObjectReceiveStream[Any]) -> AsyncGenerator[Any, None]:
        """What coredis' push_messages gives, but all that is there at once rather than one for each turn of the loop:
        its buffer has no bound."""
        while True:
            try:
                pushed = buffer.receive_nowait()
            except anyio.WouldBlock:
                try:
                    pushed = await buffer.receive()
                except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                    raise self._lost() from None
            yield pushed

    async def _hear_refusals(self) -> None:
        """What it says to SUBSCRIBE when it will not."""
        async with aclosing(self._lanes.streamed_messages) as answers:
            async for said in answers:
                if isinstance(said, Exception):
                    raise said

    async def _deliver(self) -> None:
        plane, inbound = self._plane, self._inbound
        told = 0
        while True:
            begun = time.perf_counter()
            while len(inbound):
                plane.arrived(inbound.take())
                if time.perf_counter() - begun > _SLICE:
                    await trio.lowlevel.checkpoint()
                    begun = time.perf_counter()
            plane.settle()
            if inbound.overflowed():
                plane.figures.dropped += inbound.dropped - told
                told = inbound.dropped
                plane.resync()
            if not len(inbound):
                self._news = trio.Event()
                await self._news.wait()

    async def _beat(self) -> None:
        with self._living:
            while True:
                await trio.sleep(self._config.heartbeat)
                done = trio.Event()
                self._plane.beat(lambda result, done=done: done.set())  # type: ignore[misc]
                await done.wait()  # _collect sees to it that there is an end to it

    async def _check_lanes(self) -> None:
        while True:
            await trio.sleep(self._config.heartbeat)
            await self._lanes.create_request(b"PING")

    async def _expire(self) -> None:
        while True:
            await trio.sleep(self._plane.config.answers / 4)
            self._plane.questions.expire(trio.current_time())

    async def _leave(self, stays: Callable[[], bool]) -> None:
        """Say what is still to be said, and goodbye; in `timeout`, or not at all."""
        plane = self._plane
        with trio.move_on_after(self._config.timeout):
            await self._all_answered()
            if stays():
                return
            self._living.cancel()  # one more sign of life would bring it back
            await self._all_answered()
            await self._calls.create_request(b"PUBLISH", plane.lane, plane.goodbye())
            left = await self._ask(plane.leave())
            if isinstance(left, list) and left and left[0] != b"0":
                await self._pages(plane.leave, left[0])

    async def _all_answered(self) -> None:
        plane = self._plane
        while plane.outgoing.unsent or plane.asking or self._waiting:
            self._answered = trio.Event()
            await self._answered.wait()


def away(error: BaseException, config: BackplaneConfig) -> Away:
    """What is wrong, in a sentence, and what may help."""
    cause: BaseException | None = error
    reason = ""
    while cause is not None:  # the library wraps what the kernel said
        inner = sole(cause)
        if isinstance(inner, TimeoutError | trio.TooSlowError):
            reason = f"no answer within {config.timeout:g} s"
        elif isinstance(inner, ssl.SSLWantReadError):
            pass  # what was waited for in vain
        elif isinstance(inner, ssl.SSLError):
            reason = f"TLS failed: {reason_of(inner)}"
        elif isinstance(inner, OSError):
            reason = (inner.strerror or str(inner)).lower()
        elif isinstance(inner, exceptions.ResponseError | exceptions.BusyLoadingError) or not reason:
            reason = str(inner) or type(inner).__name__
        cause = inner.__cause__ or (inner.__context__ if not inner.__suppress_context__ else None)
    if reason.lower().startswith("connection lost"):
        reason = "the connection was lost"
    elif "already authenticated" in reason:  # it says how a program is to ask for more
        reason = "it wants authentication, and was shown no password"
    reason = "".join(char if char.isprintable() else "?" for char in reason[:200]).rstrip(".")
    return Away(f"cannot use Redis at {config.url}: {reason}", _advice(reason))


def _advice(reason: str) -> str:
    text = reason.upper()
    for words, advice in (
        (
            ("NOAUTH", "WRONGPASS", "AUTHENTICAT", "INVALID USERNAME"),
            "see backplane.username and .password (or .password_file)",
        ),
        (("NOPERM", "PERMISSION", "CAN'T RUN"), "give its user what netd/backplane/scripts.py lists (ACL SETUSER)"),
        (("LOADING",), "wait: it is reading its data"),
        (("READONLY", "READ ONLY"), "this is a replica: let backplane.url name the primary"),
        (("OOM", "OUT OF MEMORY", "MAXMEMORY"), "give it more memory (maxmemory), or keep less history"),
        (("MISCONF",), "see its log: it cannot write its data to disk"),
        (("SPEAK TLS",), "let backplane.url begin with redis://, which is without TLS"),
        (("CERTIFICATE", "SSL", "TLS"), "see backplane.ca, and the certificate that it shows"),
        (("NO ANSWER",), "see whether it is overloaded, stopped, behind a firewall, or without TLS (redis://)"),
    ):
        if any(word in text for word in words):
            return advice
    return "see whether it is running, and backplane.url (rediss:// where it wants TLS)"


def _nothing() -> None:
    pass


__all__ = ["Away", "away", "serve", "tls_context"]
