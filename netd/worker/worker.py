"""Worker: a user's handlers, and the verbs that they use.

    worker = Worker()

    @worker.message
    def message(session, data, token):                  # in a thread; may block
        worker.subscribe(session, "general")
        worker.send_to_channel("general", f"{session} says: {data}")

    @worker.session_closed
    async def closed(session, token):                   # on Trio; must not block
        await worker.send_to_channel("general", f"{session} is gone")

    run(worker)

HANDLERS, all optional, `def` or `async def`:

    http_request(request)              Response, str, bytes, dict, list, or None (200 "OK"); an exception is 500
    session_opened(session)            no worker has seen it before
    message(session, data, token)      text as str, bytes as bytes; token is what set_token last set, or None
    session_closed(session, token)     it hears no channel any more

Rules:
- handlers of one session run one after the other, in the order of its events, whatever their kind; those of different
  sessions, and of different requests, run at once;
- `def` handlers run in threads, `threads` of them for sessions and as many for HTTP; `async def` on Trio, `tasks` each.
  What is beyond waits in the daemon;
- verbs are for both kinds. In a thread (any thread, also one of the user's own) they block and return; on Trio they
  return what is to be awaited. So their type is Any; what they return is said with each;
- a session that is gone is no error: the verb then does nothing, and says so where it returns a bool. Channels are
  named by bytes, and a text is its UTF-8;
- where several daemons share a backplane, a worker has sessions of its own daemon only, and verbs are about those of
  all of them; but to `copy_session` and `info`, a session of another daemon is one that is gone;
- an exception in a handler is logged with its traceback, and the next event goes on.

A verb raises RequestFailed where the daemon refuses (`kind` has its word), DaemonUnreachable while there is no
connection, ProtocolError or TypeError for arguments that cannot be sent. Left out: connecting (running.py), the order
of handlers (desk.py).
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import trio

from netd.errors import DaemonUnreachable, ProtocolError
from netd.wire import workers as wire
from netd.wire.messages import MAX_NAME
from netd.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from netd.worker.http import Body, Request, Response

    Answer = Response | Body

F = TypeVar("F", bound="Callable[..., Any]")
OnRequest = TypeVar("OnRequest", bound="Callable[[Request], Answer | Awaitable[Answer]]")
OnOpened = TypeVar("OnOpened", bound="Callable[[Session], object]")
OnMessage = TypeVar("OnMessage", bound="Callable[[Session, str | bytes, bytes | None], object]")
OnClosed = TypeVar("OnClosed", bound="Callable[[Session, bytes | None], object]")

_ARGUMENTS: dict[wire.Handler, tuple[str, ...]] = {
    "http_request": ("request",),
    "session_opened": ("session",),
    "message": ("session", "data", "token"),
    "session_closed": ("session", "token"),
}

_NORMAL = 128
_MOST = 2**20
"""Handlers at once, as a hello can say it."""


class Handler:
    """A user's function, and which kind it is."""

    __slots__ = ("blocking", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        plain: Any = function
        while isinstance(plain, partial):
            plain = plain.func
        self.blocking = not (
            inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(getattr(plain, "__call__", None))  # noqa: B004
        )
        """It is to run in a thread."""


class Running(Protocol):
    """What carries verbs out while the worker runs (running.py)."""

    token: trio.lowlevel.TrioToken

    async def carry_out(self, verb: wire.Verb, confirm: bool, shape: Callable[[Any], Any]) -> Any: ...
    def post(self, verb: wire.Verb) -> bool: ...
    def stop(self) -> None: ...


class Worker:
    """An application: handlers for what its clients do."""

    def __init__(self, name: str | None = None, *, threads: int = 64, tasks: int = 256) -> None:
        """`name` is what `netctl workers` shows. `threads`: `def` handlers that run at once, `tasks`: `async def` ones;
        so many for sessions, and so many for HTTP."""
        if not (1 <= threads <= _MOST and 1 <= tasks <= _MOST):
            raise ValueError(
                f"cannot work with threads={threads} and tasks={tasks}: each is at least 1, at most {_MOST}"
            )
        if name is not None and not 1 <= len(name) <= MAX_NAME:
            raise ValueError(f"cannot call a worker {name[:20]!r}...: a name has 1 to {MAX_NAME} characters")
        self.name = name
        self.threads = threads
        self.tasks = tasks
        self.handlers: dict[wire.Handler, Handler] = {}
        """What was registered, by name."""
        self.running: Running | None = None
        """Set while the worker runs."""

    # --- handlers ----------------------------------------------------------------------------------------------------

    def http_request(self, handler: OnRequest) -> OnRequest:
        """Decorator: `handler(request)` answers HTTP. Without one, clients get 503 unless another worker has one."""
        return self._register("http_request", handler)

    def session_opened(self, handler: OnOpened) -> OnOpened:
        """Decorator: `handler(session)` is called for a new session. What its client says of itself in a hello (`name`,
        `tags`) comes later: the handlers after this one see it."""
        return self._register("session_opened", handler)

    def message(self, handler: OnMessage) -> OnMessage:
        """Decorator: `handler(session, data, token)` is called for what a client sends to the application."""
        return self._register("message", handler)

    def session_closed(self, handler: OnClosed) -> OnClosed:
        """Decorator: `handler(session, token)` is called when a session has ended; it sees the last token."""
        return self._register("session_closed", handler)

    def _register(self, name: wire.Handler, function: F) -> F:
        if name in self.handlers:
            raise ValueError(f"cannot have two handlers for {name}: {self.handlers[name].function!r} is one already")
        if not callable(function):
            raise TypeError(f"cannot call {function!r} for {name}: write @worker.{name} above the function, no ()")
        _check(name, function)
        self.handlers[name] = Handler(function)
        return function

    # --- verbs -------------------------------------------------------------------------------------------------------

    def send(
        self,
        session: Session | str,
        data: str | bytes | dict[str, Any] | list[Any],
        *,
        priority: int = _NORMAL,
        ephemeral: bool = False,
        confirm: bool = False,
    ) -> Any:
        """Send to one session: text, bytes, or a dict or list as JSON text. None at once, as soon as it is queued.

        With `confirm` a bool, once the daemon has it: whether there is such a session. `priority` is 0 to 255, lower
        first; `ephemeral`: may be dropped if the client is slow.
        """
        verb = wire.Send(session=_id(session), data=_text_or_bytes(data), priority=priority, ephemeral=ephemeral)
        return self._do(verb, confirm, bool)

    def send_to_channel(
        self,
        channel: str | bytes,
        data: Any,
        *,
        sender: Session | str | None = None,
        priority: int = _NORMAL,
        ephemeral: bool = False,
        confirm: bool = False,
    ) -> Any:
        """Publish text, bytes or a JSON value to all who hear a channel. None at once, as soon as it is queued.

        With `confirm` an int, once the daemon has it: how many sessions it reached, or None where it is still under
        way between machines. `sender` is from whom clients see it.
        """
        verb = wire.Publish(
            channel=_channel(channel),
            data=_plain(data),
            from_=None if sender is None else _id(sender),
            priority=priority,
            ephemeral=ephemeral,
        )
        return self._do(verb, confirm, _count)

    def direct(self, to: Session | str, data: Any, *, priority: int = _NORMAL, ephemeral: bool = False) -> Any:
        """Send text, bytes or a JSON value to a session's id, "name:NAME" or "tag:KEY=VALUE": int, to how many."""
        return self._do(
            wire.SendDirect(to=_id(to), data=_plain(data), priority=priority, ephemeral=ephemeral), True, int
        )

    def broadcast(self, data: Any, *, priority: int = _NORMAL, ephemeral: bool = False) -> Any:
        """Send text, bytes or a JSON value to all sessions: int, to how many."""
        return self._do(wire.SendBroadcast(data=_plain(data), priority=priority, ephemeral=ephemeral), True, int)

    def subscribe(self, session: Session | str, channel: str | bytes) -> Any:
        """Have a session hear a channel: True if it did not before."""
        return self._do(wire.Subscribe(session=_id(session), channel=_channel(channel)), True, bool)

    def unsubscribe(self, session: Session | str, channel: str | bytes) -> Any:
        """Have a session hear a channel no more: True if it did before."""
        return self._do(wire.Unsubscribe(session=_id(session), channel=_channel(channel)), True, bool)

    def copy_subscriptions(self, source: str | bytes, target: str | bytes) -> Any:
        """Have all who hear the channel `source` hear `target` too: int, how many did not before.

        RequestFailed where a bound keeps some of them from it; the others hear it all the same.
        """
        return self._do(wire.CopySubscriptions(source=_channel(source), target=_channel(target)), True, int)

    def copy_session(self, source: Session | str, target: Session | str) -> Any:
        """Have the session `target` hear what `source` hears too: int, how many channels are new to it."""
        return self._do(wire.CopySession(source=_id(source), target=_id(target)), True, int)

    def set_token(self, session: Session | str, token: str | bytes | None) -> Any:
        """Keep a token with a session, at most 8 KiB, None for none: True if there is such a session.

        Later handlers are given it, the one for the session's end included, and those of a session that resumes this
        one. If it is a token of the daemon's own ([[hub.token]], JWT), the session may from then on do what that
        permits, and what it had before no more, until the token is taken away; not so the one that resumes it, until
        the token is set again (in session_opened, say).
        """
        raw = _utf8(token, "a token") if isinstance(token, str) else token
        return self._do(wire.SetToken(session=_id(session), token=raw), True, bool)

    def close(self, session: Session | str, code: int = 1000, reason: str = "") -> Any:
        """End a session, with a code of RFC 6455 section 7.4: True if there was one."""
        return self._do(wire.CloseSession(session=_id(session), code=code, reason=reason), True, bool)

    def presence(self, channel: str | bytes) -> Any:
        """Who is in a channel: a list of clients (`session`, `name`, `transport`, `tags`)."""
        return self._do(wire.AskPresence(channel=_channel(channel)), True, _clients)

    def history(self, channel: str | bytes, *, since: wire.Position | None = None, limit: int = 100) -> Any:
        """What a channel keeps, oldest first: `epoch`, `offset` and `messages`, or None where it keeps nothing.

        A message has `data`, `from_`, `offset` and `time`. `since` is a Position(epoch, offset) to go on behind.
        """
        return self._do(wire.AskHistory(channel=_channel(channel), since=since, limit=limit), True, _page)

    def info(self, session: Session | str) -> Any:
        """A session by its id, also one of another worker: a Session as it is now, None if there is none."""
        return self._do(wire.AskInfo(session=_id(session)), True, _session)

    def stop(self) -> None:
        """Leave the daemon as at SIGTERM: take nothing new, finish what runs. From any thread; does not wait."""
        if self.running is not None:
            self.running.stop()

    def _do(self, verb: wire.Verb, confirm: bool, shape: Callable[[Any], Any]) -> Any:
        running = self.running
        if running is None:
            raise DaemonUnreachable("cannot ask anything of the daemon: this worker does not run")
        if trio.lowlevel.in_trio_task():
            return running.carry_out(verb, confirm, shape)
        try:
            if not confirm and running.post(verb):
                return None
            return trio.from_thread.run(running.carry_out, verb, confirm, shape, trio_token=running.token)
        except trio.RunFinishedError:
            raise DaemonUnreachable("cannot ask anything of the daemon: this worker has ended") from None


def _check(name: wire.Handler, function: Callable[..., Any]) -> None:
    """Raises TypeError for a function that cannot be called as this handler, so that no client has to find out."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"cannot use {function!r} for {name}: nothing in it would run, as it has a `yield`")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # written in C, and it says nothing of its arguments
    arguments = _ARGUMENTS[name]
    try:
        signature.bind(*arguments)
    except TypeError as error:
        called = f"{name}({', '.join(arguments)})"
        raise TypeError(f"cannot use {function!r} for {name}: it is called as {called}: {error}") from None


# --- arguments and answers -------------------------------------------------------------------------------------------


def _id(session: Session | str) -> str:
    if isinstance(session, Session):
        return session.id
    if isinstance(session, str):
        return session
    raise TypeError(f"cannot use {session!r} as a session: it is a Session or a session's id")


def _channel(channel: str | bytes) -> bytes:
    if isinstance(channel, str):
        return _utf8(channel, "a channel")
    if isinstance(channel, bytes | bytearray | memoryview):
        return bytes(channel)
    raise TypeError(f"cannot use {channel!r} as a channel: it is str or bytes")


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(f"cannot use {text[:50]!r} as {what}: {error.reason}", origin="local") from None


def _text_or_bytes(data: Any) -> str | bytes:
    if isinstance(data, dict | list):
        try:
            return msgspec.json.encode(data).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ProtocolError(f"cannot send this as JSON: {error}", origin="local") from None
    if isinstance(data, str):
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"cannot send {type(data).__name__} to a session: it is str, bytes, dict or list")


def _plain(data: Any) -> Any:
    return bytes(data) if isinstance(data, bytearray | memoryview) else data


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _clients(value: Any) -> list[wire.Client]:
    return msgspec.convert(value, list[wire.Client])


def _page(value: Mapping[str, Any] | None) -> wire.HistoryPage | None:
    return msgspec.convert(value, wire.HistoryPage | None)


def _session(value: Mapping[str, Any] | None) -> Session | None:
    return None if value is None else Session(msgspec.convert(value, wire.SessionState))
