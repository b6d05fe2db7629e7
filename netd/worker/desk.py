"""What is done with what the daemon hands over: a session's events one after the other, requests at once.

    desk = Desk(worker, nursery)
    desk.serve(link)              # what this connection brings, from now on
    desk.receive(message)         # never waits; handlers run in the nursery

Rules:
- a session has a lane: its events wait in it, and its next handler begins when the one before has ended. Lanes outlive
  a connection, so that the order holds too where a handler is still running when the daemon hands over the next event;
- what waits was bounded by the daemon's window, which conversation.py checks. What was handed over on a connection and
  has not begun when that ends is dropped: the daemon has given it up;
- a handler that has begun is let end, also when its connection is gone;
- what the daemon cancels: an `async def` handler is cancelled. A thread cannot be: it is said where it stands, and its
  session goes on when it has ended. Whoever waits longer than the daemon has patience is dropped as hung;
- what a handler raises is logged with its traceback and goes no further, but for SystemExit and KeyboardInterrupt.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import traceback
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from netd import __version__
from netd.errors import NetdError, ProtocolError
from netd.wire import workers as wire
from netd.worker.http import Request, Response
from netd.worker.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.worker.link import Link
    from netd.worker.worker import Handler, Worker

log = logging.getLogger("netd.worker")


class _Event(NamedTuple):
    """What was handed over of a session, and waits for its handler."""

    link: Link
    n: int
    handler: Handler | None
    what: str
    arguments: tuple[Any, ...]
    """Of the handler, without the token."""
    token: bytes | None
    last: bool


class _Lane:
    """One session's events in order."""

    __slots__ = ("busy", "events")

    def __init__(self) -> None:
        self.events: deque[_Event] = deque()
        self.busy = False


class _Run:
    """A handler at work."""

    __slots__ = ("cancelled", "scope", "thread", "unwanted")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        """Of an `async def` handler."""
        self.thread = 0
        """Where a `def` handler runs, as the interpreter numbers it; 0 for none."""
        self.unwanted = False
        """The daemon waits for it no more: a `def` handler that has no thread yet need not begin."""
        self.cancelled = False
        """It did not come to its end, or never began."""


class Desk:
    """A worker's handlers at work, for one connection after the other."""

    def __init__(self, worker: Worker, nursery: trio.Nursery) -> None:
        self._handlers = worker.handlers
        self._nursery = nursery
        self._lanes: dict[str, _Lane] = {}
        self._sessions: dict[str, Session] = {}
        self._runs: dict[tuple[Link, int], _Run] = {}
        self._link: Link | None = None
        self._idle = trio.lowlevel.ParkingLot()
        blocking = {name for name, handler in worker.handlers.items() if handler.blocking}
        self._in_threads = (bool(blocking - {"http_request"}), "http_request" in blocking)
        self._worker = worker
        self._limiter = trio.CapacityLimiter(worker.threads * max(1, sum(self._in_threads)))

    def hello(self) -> wire.Hello:
        """What this worker can take now. ProtocolError when all of its threads hang."""
        worker = self._worker
        free = int(self._limiter.available_tokens)
        if any(self._in_threads) and not free:
            raise ProtocolError(
                f"cannot go on: all {int(self._limiter.total_tokens)} threads are in handlers that do not end",
                origin="local",
            )
        # each its share of what is left: what is handed over can then begin
        share = max(1, free // max(1, sum(self._in_threads)))
        for_sessions, for_requests = (share if threads else worker.tasks for threads in self._in_threads)
        return wire.Hello(
            version=wire.VERSION,
            name=worker.name or "worker",
            pid=os.getpid(),
            handlers=sorted(worker.handlers),
            sessions=for_sessions,
            requests=for_requests,
            library=f"netd.worker {__version__}",
        )

    @property
    def busy(self) -> bool:
        """Handlers have begun and not ended."""
        return bool(self._runs)

    async def idle(self) -> None:
        """Wait until none is at work."""
        while self._runs:
            await self._idle.park()

    def serve(self, link: Link) -> None:
        """Take what this connection brings; it says anew which sessions are ours."""
        self._link = link
        self._sessions = {}

    def receive(self, message: wire.ToWorker) -> None:
        """Deal with one message of the connection, without waiting. ProtocolError for a session that was never told."""
        link = self._link
        assert link is not None
        match message:
            case wire.Message(n=n, session=id, data=data):
                session = self._known(id, "message")
                self._queue(_Event(link, n, self._handlers.get("message"), "message", (session, data), None, False))
            case wire.Request(n=n, request=request):
                run = self._runs[link, n] = _Run()  # here already: the next message may cancel it
                self._nursery.start_soon(self._answer, link, n, request, run)
            case wire.SessionOpened(n=n, session=state):
                session = self._told(state)
                handler = self._handlers.get("session_opened")
                self._queue(_Event(link, n, handler, "session_opened", (session,), None, False))
            case wire.SessionClosed(n=n, session=id, token=token):
                session = self._known(id, "end")
                del self._sessions[id]
                handler = self._handlers.get("session_closed")
                self._queue(_Event(link, n, handler, "session_closed", (session,), token, True))
            case wire.SessionKnown(session=state):
                self._told(state)
            case wire.Cancel(n=n):
                self._cancel(link, n)
            case wire.Drain(seconds=seconds):
                log.info("the daemon wants this worker to leave within %.3g s", seconds)
            case wire.Error(code=code, message=text):
                log.warning("the daemon refused (%s): %s", code, text)

    def _told(self, state: wire.SessionState) -> Session:
        session = self._sessions.get(state.id)
        if session is None:
            session = self._sessions[state.id] = Session(state)
        else:
            session._state = state
        return session

    def _known(self, id: str, what: str) -> Session:
        session = self._sessions.get(id)
        if session is None:
            raise ProtocolError(f"cannot go on: the daemon told the {what} of a session {id!r} that it never named")
        return session

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _queue(self, event: _Event) -> None:
        id = event.arguments[0].id
        lane = self._lanes.get(id)
        if lane is None:
            if event.handler is None:
                event.link.finish(event.n)
                return
            lane = self._lanes[id] = _Lane()
        lane.events.append(event)
        if not lane.busy:
            lane.busy = True
            self._nursery.start_soon(self._work, id, lane)

    async def _work(self, id: str, lane: _Lane) -> None:
        """Run a session's handlers until nothing waits any more."""
        while lane.events:
            event = lane.events.popleft()
            if event.link is not self._link or event.link.ended is not None:
                continue
            if event.handler is not None:
                await self._handle(event, event.handler)
            event.link.finish(event.n)
        del self._lanes[id]

    async def _handle(self, event: _Event, handler: Handler) -> None:
        session = event.arguments[0]
        arguments = event.arguments
        if event.what == "message":
            arguments = (*arguments, session.token)  # as it is now: the handler before may have set it
        elif event.last:
            arguments = (*arguments, event.token)
        run = self._runs[event.link, event.n] = _Run()
        try:
            with _guard("the %s handler has failed for session %s", event.what, session):
                await _call(handler, arguments, run, self._limiter)
        finally:
            self._ended(event.link, event.n)
        if run.cancelled:
            log.warning("the %s handler for session %s was cancelled: the daemon waits no longer", event.what, session)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _answer(self, link: Link, n: int, asked: wire.HttpRequest, run: _Run) -> None:
        request = Request(
            asked.method,
            asked.target,
            asked.headers,
            asked.body,
            client=asked.client,
            scheme=asked.scheme,
            http_version=asked.http_version,
        )
        handler = self._handlers.get("http_request")
        response = wire.HttpResponse(500, [_TEXT], b"Internal Server Error")
        try:
            with _guard("the http_request handler has failed for %s %s", request.method, request.url):
                if handler is None:
                    response = wire.HttpResponse(404, [_TEXT], b"Not Found")
                else:
                    result = await _call(handler, (request,), run, self._limiter)
                    if not run.cancelled:
                        response = wire.HttpResponse(*Response.of(result).parts())
        finally:
            self._ended(link, n)
        if run.cancelled:
            log.warning("%s %s was cancelled: the daemon waits no longer", request.method, request.url)
        if link.ended is None:
            try:
                link.respond(n, response)
            except NetdError as error:
                log.error("cannot answer %s %s: %s", request.method, request.url, error)
                link.respond(n, wire.HttpResponse(500, [_TEXT], b"Internal Server Error"))

    def _ended(self, link: Link, n: int) -> None:
        del self._runs[link, n]
        if not self._runs:
            self._idle.unpark_all()

    # --- cancelled ---------------------------------------------------------------------------------------------------

    def _cancel(self, link: Link, n: int) -> None:
        run = self._runs.get((link, n))
        if run is not None:
            if run.thread:
                frames = sys._current_frames().get(run.thread)
                where = "".join(traceback.format_stack(frames)) if frames is not None else ""
                log.warning("the daemon waits for a handler no longer, and a thread cannot be ended:\n%s", where)
            else:
                run.unwanted = True
                run.scope.cancel()
            return
        for lane in self._lanes.values():
            for event in lane.events:
                if event.link is link and event.n == n:
                    lane.events.remove(event)
                    link.finish(n)
                    return


_TEXT = (b"content-type", b"text/plain; charset=utf-8")


@contextmanager
def _guard(text: str, *names: object) -> Iterator[None]:
    """What goes wrong in here is logged, and goes no further; also where a nursery of the user's has put it into one
    group with a cancellation, which goes on, as do SystemExit and KeyboardInterrupt."""
    try:
        yield
    except Exception:
        log.exception(text, *names)
    except BaseExceptionGroup as group:
        failed, rest = group.split(Exception)
        if failed is not None:
            log.error(text, *names, exc_info=failed)
        assert rest is not None  # or it were an ExceptionGroup
        raise rest from None


async def _call(handler: Handler, arguments: tuple[Any, ...], run: _Run, limiter: trio.CapacityLimiter) -> Any:
    """What the handler returns. When the daemon cancels it, None, and the run says so."""
    if handler.blocking:
        # abandoned when the worker ends, and not before: its place in the limiter is its until it really has ended
        return await trio.to_thread.run_sync(
            partial(_in_thread, handler, arguments, run), limiter=limiter, abandon_on_cancel=True
        )
    with run.scope:
        return await handler.function(*arguments)
    run.cancelled = True
    return None


def _in_thread(handler: Handler, arguments: tuple[Any, ...], run: _Run) -> Any:
    if run.unwanted:
        run.cancelled = True
        return None
    run.thread = threading.get_ident()
    try:
        result = handler.function(*arguments)
    finally:
        run.thread = 0
    if inspect.iscoroutine(result):  # of a `def` around an `async def`: nothing of that has happened
        result.close()
        raise TypeError(f"cannot await what {handler.function!r} returned: make it `async def` too")
    return result
