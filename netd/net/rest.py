"""What every router shares: one error shape, access levels, common models, event streams.

    from netd.net.rest import EventStream, RequestBody, ServerEvent, Wait, Write

    @router.post("/clients/{id}/trace")
    async def trace(id: str, caller: Write) -> TraceView: ...      # 403 for a caller without write access

Rules:
- every error leaves as {"error": {"kind", "message", "path"?}}: routes raise a NetdError and never build one by hand;
- every route names the access it needs by a parameter of type Read, Content or Write; every granted write is logged;
- routes are `async def`: FastAPI would run a plain `def` in a thread, away from the Trio thread that owns everything;
- an unknown field of a body and an unknown query parameter are refused;
- what answers GET answers HEAD, by `answer_head` in the application's front: no route names HEAD.

Who has which access is not decided here (control/access.py does): the front of an application stores a `Caller` by
`set_caller`, and a request without one may do nothing. Importing this file imports FastAPI; routers are imported late.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import trio
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response

from netd.errors import ConfigError, ControlError, Denied, NetdError, ReloadRefused, ServiceError
from netd.net.http import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from netd.net.http import App, Message, Receive, Scope, Send

log = structlog.get_logger("netd.net")


# --- access --------------------------------------------------------------------------------------------------------


class Access(IntEnum):
    """What a caller may do; each level includes those below it."""

    NONE = 0
    READ = 1
    """Metadata, with secrets redacted."""
    CONTENT = 2
    """Messages and packets too."""
    WRITE = 3
    """Change the daemon."""


@dataclass(frozen=True)
class Caller:
    """Who asks. `peer` is None where the transport tells no credentials (TCP)."""

    peer: Peer | None
    access: Access

    def __str__(self) -> str:
        return f"uid {self.peer.uid} (pid {self.peer.pid})" if self.peer else "a peer without credentials"


NOBODY = Caller(None, Access.NONE)


def set_caller(scope: Scope, caller: Caller) -> None:
    """Store who asks; for the application's front, before any route runs."""
    scope.setdefault("state", {})["caller"] = caller


def caller_of(request: Request) -> Caller:
    """Who asks; NOBODY where no front stored a caller."""
    caller = request.scope.get("state", {}).get("caller", NOBODY)
    assert isinstance(caller, Caller)
    return caller


def _needs(access: Access) -> Callable[[Request], Awaitable[Caller]]:
    async def check(request: Request) -> Caller:
        caller = caller_of(request)
        peer = {"pid": caller.peer.pid, "uid": caller.peer.uid} if caller.peer else {}
        what = {"method": request.method, "path": request.url.path}
        if caller.access < access:
            log.warning("request denied", needs=access.name.lower(), **what, **peer)
            raise Denied(
                f"cannot {request.method} {request.url.path}: {caller} has no {access.name.lower()} access; "
                + _ADVICE[access]
            )
        if access is Access.WRITE:
            # whole, even where the route wants no body: half a request must not be carried out
            await request.body()
            log.info("write request", **what, **peer)
        return caller

    return check


_ADVICE = {
    Access.READ: "ask through the control socket",
    Access.CONTENT: "run as root, or have the account added to control.content_users",
    Access.WRITE: "run as root, or have the account added to control.users",
}

Read = Annotated[Caller, Depends(_needs(Access.READ))]
"""Parameter type of a route that shows metadata."""
Content = Annotated[Caller, Depends(_needs(Access.CONTENT))]
"""Parameter type of a route that shows messages or packets."""
Write = Annotated[Caller, Depends(_needs(Access.WRITE))]
"""Parameter type of a route that changes the daemon."""


# --- requests ------------------------------------------------------------------------------------------------------


class RequestBody(BaseModel):
    """Base of what a route takes as its JSON body: frozen, unknown fields refused, no lenient conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Wait = Annotated[
    float,
    Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for the change to end; 0 answers at once."),
]
"""Query parameter of every route that begins or follows a change."""


async def known_query(request: Request) -> None:
    """Refuse query parameters that the route does not take: a misspelt `?wiat=5` must not pass for success."""
    route = request.scope.get("route")
    dependant = getattr(route, "dependant", None)
    if dependant is None or not request.query_params:
        return
    known = _query_names(dependant)
    for name in request.query_params:
        if name not in known:
            takes = "it takes " + ", ".join(sorted(known)) if known else "it takes none"
            raise ControlError(f"cannot use query parameter {name!r} on {request.url.path}: {takes}", path=name)


async def until_gone(request: Request) -> None:
    """Return once the client has hung up, or the front door drains: waiting on for it would serve nobody."""
    draining: trio.Event | None = request.scope.get("extensions", {}).get("netd.draining")
    async with trio.open_nursery() as nursery:
        if draining is not None:
            nursery.start_soon(_until_set, draining, nursery.cancel_scope)
        await _until_gone(request.receive, nursery.cancel_scope)


def _query_names(dependant: Any) -> set[str]:
    names = {field.alias for field in dependant.query_params}
    return names.union(*(_query_names(inner) for inner in dependant.dependencies))


async def answer_head(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Have `app` answer HEAD as the GET it stands for, without its body (RFC 9110 9.3.2).

    A stream is cancelled with its first part: nobody would ever read it, so nothing may wait for its end.
    """
    with trio.CancelScope() as answering:

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "body": b"", "more_body": False})
            if message.get("more_body"):
                answering.cancel()
                await trio.lowlevel.checkpoint()

        await app({**scope, "method": "GET"}, receive, without_body)


# --- errors --------------------------------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    """One error. `kind` is a stable word, `message` a sentence, `path` the field or parameter at fault, if one is."""

    kind: str
    message: str
    path: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer of 400 and above."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be met as it is."},
    "5XX": {"model": ErrorBody, "description": "The daemon cannot meet the request now."},
}
"""The `responses` of an application: every route's errors, in the OpenAPI document."""


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, until one side ends them.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""The `responses` of a route that returns an EventStream. Its `response_class` is a plain `fastapi.Response`: named
there, EventStream would be taken for the media type of the route's errors too."""


def status_of(error: NetdError) -> int:
    """The HTTP status an error is answered with."""
    match error:
        case ControlError():
            return error.status
        case ReloadRefused():
            return 409
        case ConfigError():
            return 422
        case ServiceError():
            return 503
        case _:
            return 500


def error_detail(error: NetdError) -> ErrorDetail:
    """The one shape of an error, as body, as an event, or inside a change."""
    path = getattr(error, "path", None)
    if isinstance(error, ConfigError) and error.problems:
        path = error.problems[0].path
    return ErrorDetail(kind=error.kind, message=str(error), path=path or None)


def error_response(
    status: int, kind: str, message: str, path: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    body = ErrorBody(error=ErrorDetail(kind=kind, message=message, path=path))
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)


_KINDS = {404: "not-found", 405: "invalid", 403: "denied", 409: "conflict"}


def render_errors(app: FastAPI, *, headers: Mapping[str, str] | None = None) -> None:
    """Give `app` the one error shape, whatever goes wrong.

    `headers` go into the answer to an unexpected exception, which Starlette sends around every middleware.
    """

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, NetdError)
        detail = error_detail(error)
        return error_response(status_of(error), detail.kind, detail.message, detail.path)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problems = error.errors()
        where = ".".join(str(part) for part in problems[0]["loc"][1:]) or str(problems[0]["loc"][0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return error_response(422, "invalid", f"cannot accept {where}: {_reason(problems[0])}{more}", where)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"cannot {request.method} {request.url.path}: {str(error.detail).lower()}"
        headers = {
            name: f"{value}, HEAD" if name == "Allow" and "GET" in value.split(", ") else value
            for name, value in (error.headers or {}).items()
        }
        return error_response(error.status_code, _KINDS.get(error.status_code, "invalid"), message, headers=headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        # Starlette raises the error again once this is sent, so that the connection's guard logs its traceback
        message = f"cannot {request.method} {request.url.path}: it failed inside; the log says more"
        return error_response(500, "internal", message, headers=headers)

    app.add_exception_handler(NetdError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, unexpected)


def _reason(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


# --- event streams -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerEvent:
    """One server-sent event. `data` is sent as one line of JSON; `id` is what the client comes back with."""

    event: str
    data: Any
    id: str | None = None

    def encode(self) -> bytes:
        """The event as WHATWG HTML 9.2.5 frames it. Line breaks cannot occur in it: JSON escapes those in `data`."""
        lines = [f"id: {_one_line(self.id)}"] if self.id is not None else []
        lines += [f"event: {_one_line(self.event)}", f"data: {json.dumps(self.data, separators=(',', ':'))}"]
        return ("\n".join(lines) + "\n\n").encode()


def _one_line(text: str) -> str:
    if any(mark in text for mark in "\r\n\0"):
        raise ValueError(f"cannot send {text!r} as the name or id of an event: it has a line break or NUL in it")
    return text


class EventStream(Response):
    """Server-sent events from an async generator, one at a time: a slow reader holds the generator back.

    Ends when the generator ends, when the client goes away, when the front door drains (after an event "ended") or
    when the generator raises a NetdError (after an event "error" in the one error shape). The generator is always
    closed, in the task that iterated it. While it is silent a comment goes out every `heartbeat` seconds, which keeps
    proxies and reveals a dead peer.

        generator --> produce --(rendezvous)--> __call__ --> send
                         ^ cancelled by drain      ^ cancelled by disconnect

    The two are apart so that drain never cuts a send in half.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncGenerator[ServerEvent, None], status_code: int = 200, *, heartbeat: float = 15.0
    ) -> None:
        # FastAPI reads the default of `status_code` for its OpenAPI document
        super().__init__(status_code=status_code, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]  # it has none: it ends when it ends
        self.source = source
        self.heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        draining: trio.Event | None = scope.get("extensions", {}).get("netd.draining")
        producing = trio.CancelScope()
        into, events = trio.open_memory_channel[ServerEvent](0)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._produce, into, producing)
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            if draining is not None:
                nursery.start_soon(_until_set, draining, producing)
            chunk = b": \n\n"  # at once, so that the client has the head of the response and knows that it listens
            while chunk:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await self._next(events)
            if draining is not None and draining.is_set():
                ended = ServerEvent("ended", {"reason": "draining"}).encode()
                await send({"type": "http.response.body", "body": ended, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _next(self, events: trio.MemoryReceiveChannel[ServerEvent]) -> bytes:
        """The next bytes to send, b"" at the end."""
        with trio.move_on_after(self.heartbeat):
            try:
                return (await events.receive()).encode()
            except trio.EndOfChannel:
                return b""
        return b": \n\n"

    async def _produce(self, into: trio.MemorySendChannel[ServerEvent], scope: trio.CancelScope) -> None:
        async with into:
            with scope:
                try:
                    async with aclosing(self.source) as source:
                        async for event in source:
                            await into.send(event)
                except NetdError as error:
                    body = ErrorBody(error=error_detail(error)).model_dump(exclude_none=True)
                    await into.send(ServerEvent("error", body))


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _until_set(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
