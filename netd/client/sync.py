"""Clients for scripts that have no event loop: SyncFramedClient, SyncBrokerClient.

    with SyncBrokerClient("ws://127.0.0.1:3000") as client:
        client.publish("public:a", "hi")
        for message in client.subscribe("public:a"):
            print(message.data)

The client lives on a Trio loop in a thread of its own; every call here is one call there. It reconnects, recovers,
answers pings and queues just the same while the script does something else.

Rules:
- Ctrl-C (and whatever a signal handler raises) ends the call that waits, and leaves the client in order: the call is
  cancelled over there, what had arrived already is there for the next call, and the `with` closes the client;
- methods may be called from several threads;
- a batch of messages crosses between the threads at once, so that a loop over them costs little a message;
- `on_state` is called in that thread. It must not call the client, whose answer would wait for `on_state` to return:
  that is a ProtocolError. `state` and `session_id` may be read there;
- the thread ends with the `with`. A script that dies without leaving it is not held up: the thread is a daemon thread.

Left out: everything else; the methods are those of the client that it runs (operations.py), and so are their errors.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import outcome
import trio

from netd.client.queue import NORMAL
from netd.errors import DaemonUnreachable, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from netd.client.operations import OperationsClient
    from netd.client.options import TokenSource
    from netd.client.state import State, Telemetry
    from netd.client.subscription import Item, Subscription
    from netd.wire import messages
    from netd.wire.messages import Position

T = TypeVar("T")

_UNWIND = 5.0
"""Seconds that an interrupted call may take to end over there; it does so at once unless the machine is very busy."""


class SyncOperationsClient:
    """A client on a loop of its own. Iterating yields what the client yields."""

    def __init__(self, client: OperationsClient) -> None:
        self._client = client
        self._loop = _Loop(client)
        self._received = _Buffer(self._loop, client.receive_all)

    def __enter__(self) -> Self:
        """Connect. DaemonUnreachable if that fails, unless `reconnect` is patient."""
        self._loop.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._loop.stop(at_once=kind is not None)

    # --- what is received ---------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Until everything queued was handed to the kernel."""
        self._loop.call(self._client.flush)

    def __iter__(self) -> Iterator[Any]:
        """The values (or events) as they come, until the client has ended."""
        return iter(self._received)

    def receive(self, timeout: float | None = None) -> Any:
        """The next value or event. TimeoutError after `timeout` seconds; EOFError when no more will come."""
        return self._received.take(timeout)

    # --- operations ---------------------------------------------------------------------------------------------------

    def refresh(self, token: str | TokenSource | None = None) -> float | None:
        """Show a fresh token on the live session. Returns the seconds until it expires."""
        return self._loop.call(lambda: self._client.refresh(token))

    def subscribe(
        self, channel: str | bytes, *, recover: Position | None = None, presence: bool = False, pattern: bool = False
    ) -> SyncSubscription:
        """Hear a channel, or those that match: iterate over what this returns."""
        made = self._loop.call(
            lambda: self._client.subscribe(channel, recover=recover, presence=presence, pattern=pattern)
        )
        return SyncSubscription(self._loop, made)

    def publish(
        self,
        channel: str | bytes,
        data: messages.Data,
        *,
        priority: int = NORMAL,
        ephemeral: bool = False,
        confirm: bool = True,
    ) -> int | None:
        """Publish text, bytes or a JSON-like value. Returns how many got it, if the daemon says."""
        return self._loop.call(
            lambda: self._client.publish(channel, data, priority=priority, ephemeral=ephemeral, confirm=confirm)
        )

    def direct(
        self, to: str, data: messages.Data, *, priority: int = NORMAL, ephemeral: bool = False, confirm: bool = True
    ) -> int | None:
        """Send to a session's id, "name:NAME" or "tag:KEY=VALUE"."""
        return self._loop.call(
            lambda: self._client.direct(to, data, priority=priority, ephemeral=ephemeral, confirm=confirm)
        )

    def broadcast(
        self, data: messages.Data, *, priority: int = NORMAL, ephemeral: bool = False, confirm: bool = True
    ) -> int | None:
        """Send to every session."""
        return self._loop.call(
            lambda: self._client.broadcast(data, priority=priority, ephemeral=ephemeral, confirm=confirm)
        )

    def text(self, text: str, *, priority: int = NORMAL, confirm: bool = False) -> None:
        """Send text to the daemon's application."""
        self._loop.call(lambda: self._client.text(text, priority=priority, confirm=confirm))

    def binary(self, data: bytes, *, priority: int = NORMAL, confirm: bool = False) -> None:
        """Send bytes to the daemon's application."""
        self._loop.call(lambda: self._client.binary(data, priority=priority, confirm=confirm))

    def clients(self, channel: str | bytes | None = None) -> list[messages.Client]:
        """Who is connected, or who is subscribed to a channel."""
        return self._loop.call(lambda: self._client.clients(channel))

    def presence(self, channel: str | bytes) -> list[messages.Client]:
        """Who is in a channel, where its namespace tracks that."""
        return self._loop.call(lambda: self._client.presence(channel))

    def history(
        self, channel: str | bytes, *, since: Position | None = None, limit: int | None = None
    ) -> messages.History:
        """What a channel keeps, oldest first."""
        return self._loop.call(lambda: self._client.history(channel, since=since, limit=limit))

    def ping(self) -> float:
        """Seconds to the daemon and back."""
        return self._loop.call(self._client.ping)

    # --- how it goes --------------------------------------------------------------------------------------------------

    @property
    def address(self) -> Any:
        """The peer; for people, what str() of it gives."""
        return self._client.address

    @property
    def state(self) -> State:
        """The connection's state now."""
        return self._client.state

    @property
    def session_id(self) -> str | None:
        """The session's id, once greeted."""
        return self._client.session_id

    def telemetry(self) -> Telemetry:
        """A snapshot of state, queues and counters."""
        return self._loop.call(self._telemetry)

    async def _telemetry(self) -> Telemetry:
        return self._client.telemetry()


class SyncSubscription:
    """One channel: iterate over it. As `with` it unsubscribes at the end."""

    def __init__(self, loop: _Loop, subscription: Subscription) -> None:
        self._loop = loop
        self._subscription = subscription
        self._buffer = _Buffer(loop, subscription.take_all)
        self._position = subscription.position

    @property
    def channel(self) -> str | bytes:
        """The channel's name: text where it is UTF-8."""
        return self._subscription.channel

    @property
    def position(self) -> Position | None:
        """Behind the last message that was read here: give it to `subscribe` to go on from it. None: no history."""
        return self._position

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self.receive()
        except EOFError:
            raise StopIteration from None

    def receive(self, timeout: float | None = None) -> Item:
        """The next one. TimeoutError after `timeout` seconds; EOFError when no more will come."""
        item = self._buffer.take(timeout)
        self._position = self._subscription.behind(item, self._position)
        return item

    def unsubscribe(self) -> None:
        """Hear no more of it."""
        self._loop.call(self._subscription.unsubscribe)
        self._buffer.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call(lambda: self._subscription.__aexit__(None, None, None))
        self._buffer.clear()


class _Buffer(Generic[T]):
    """What has crossed over from the loop and was not read yet."""

    def __init__(self, loop: _Loop, take_all: Callable[[], Awaitable[list[T]]]) -> None:
        self._loop = loop
        self._take_all = take_all
        self._items: deque[T] = deque()

    def take(self, seconds: float | None) -> T:
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                if not self._loop.call(lambda: self._fill(seconds)):
                    raise EOFError("cannot receive any more: the stream has ended") from None

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                item = self.take(None)
            except EOFError:
                return
            yield item

    def clear(self) -> None:
        self._items.clear()

    async def _fill(self, seconds: float | None) -> bool:
        """On the loop. What was taken is in the buffer before anybody can be interrupted."""
        try:
            if seconds is None:
                self._items += await self._take_all()
            else:
                with trio.fail_after(seconds):
                    self._items += await self._take_all()
        except StopAsyncIteration:
            return False
        except trio.TooSlowError:
            raise TimeoutError(f"cannot receive: nothing came within {seconds:g} s") from None
        return True


class _Answer(Generic[T]):
    """What the loop's thread hands to a thread that waits for it, once.

    Not a Future: its condition is Python code, in which Ctrl-C may strike between taking its lock and the `with` that
    gives it back; the loop would then wait for that lock for ever. A SimpleQueue is one call into C.
    """

    __slots__ = ("_queue", "done")

    def __init__(self) -> None:
        self._queue: SimpleQueue[outcome.Outcome[T]] = SimpleQueue()
        self.done = False
        """It was answered, whether or not anybody has taken it."""

    def set(self, result: outcome.Outcome[T]) -> None:
        self.done = True
        self._queue.put(result)

    def wait(self, seconds: float | None = None) -> outcome.Outcome[T] | None:
        """The answer; None when there is none within `seconds`. Only the first to ask is given it."""
        try:
            return self._queue.get(timeout=seconds)
        except Empty:
            return None

    def take(self) -> T:
        """Wait for the answer, and unwrap it."""
        result = self.wait()
        assert result is not None
        return result.unwrap()


class _Loop:
    """A Trio loop in a thread, with one client on it."""

    def __init__(self, client: OperationsClient) -> None:
        self._client = client
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._stop = trio.Event()
        self._calls: trio.Nursery | None = None
        self._opened: _Answer[None] = _Answer()
        self._lock = threading.Lock()
        self._waiting: set[_Answer[Any]] = set()
        self._ended: outcome.Outcome[None] | None = None

    def start(self) -> None:
        """Returns once the client is connected, or raises why it cannot be."""
        if self._thread is not None:
            raise ProtocolError("cannot enter a client twice: make a new one", origin="local")
        self._thread = threading.Thread(target=self._run, name="netd-client", daemon=True)
        self._thread.start()
        try:
            self._opened.take()
        except BaseException:
            self.stop(at_once=True)
            raise

    def stop(self, *, at_once: bool) -> None:
        """End client and thread; unless at once, after what is queued was sent."""
        assert self._thread is not None
        self._check_thread("leave")
        self._soon(self._scope.cancel if at_once else self._stop.set)
        try:
            self._thread.join()
        except BaseException:
            self._soon(self._scope.cancel)
            self._thread.join(_UNWIND)
            raise
        if not at_once and self._ended is not None:
            self._ended.unwrap()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run it over there, and wait for it. Interrupted, cancel it and wait until it has ended."""
        self._check_thread("call")
        answer: _Answer[T] = _Answer()
        scope = trio.CancelScope()
        with self._lock:
            if self._ended is not None or not self._opened.done:
                raise DaemonUnreachable("cannot use this client: it is closed, or was not opened with `with`")
            self._waiting.add(answer)
        try:
            self._soon(lambda: self._begin(function, answer, scope))
            return answer.take()
        finally:
            if not answer.done:
                self._soon(scope.cancel)
                answer.wait(_UNWIND)
            with self._lock:
                self._waiting.discard(answer)

    def _check_thread(self, what: str) -> None:
        """The loop cannot wait for itself: it would stand still for ever, and everybody with it."""
        if threading.current_thread() is self._thread:
            raise ProtocolError(
                f"cannot {what} this client from within on_state or its codec: note what happened there, and do it "
                "from a thread of your own",
                origin="local",
            )

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = outcome.capture(trio.run, self._serve)
        if not self._opened.done:
            error = ended.error if isinstance(ended, outcome.Error) else _closed()
            self._opened.set(outcome.Error(error))
        with self._lock:
            self._ended = ended
            waiting = [answer for answer in self._waiting if not answer.done]
        for answer in waiting:
            answer.set(ended if isinstance(ended, outcome.Error) else outcome.Error(_closed()))

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with self._client, trio.open_nursery() as self._calls:
                try:
                    self._opened.set(outcome.Value(None))
                    await self._stop.wait()
                    self._calls.cancel_scope.cancel()
                finally:
                    self._calls = None

    def _begin(self, function: Callable[[], Awaitable[T]], answer: _Answer[T], scope: trio.CancelScope) -> None:
        if self._calls is None:
            answer.set(outcome.Error(_closed()))
        else:
            self._calls.start_soon(self._carry_out, function, answer, scope)

    async def _carry_out(
        self, function: Callable[[], Awaitable[T]], answer: _Answer[T], scope: trio.CancelScope
    ) -> None:
        result: outcome.Outcome[T] = outcome.Error(_closed())
        try:
            with scope:
                result = await outcome.acapture(function)
                if isinstance(result, outcome.Error) and isinstance(result.error, trio.Cancelled):
                    cancelled, result = result, outcome.Error(_closed())
                    cancelled.unwrap()  # it belongs to the loop, not to who called
        finally:
            answer.set(result)

    def _soon(self, function: Callable[[], object]) -> None:
        """Run it on the loop, if there still is one."""
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(function)


def _closed() -> DaemonUnreachable:
    return DaemonUnreachable("cannot get an answer: this client was closed")
