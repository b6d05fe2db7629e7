"""/v1/sessions: every transport's sessions; their TCP and path, and messages and ends for them.

What is below /v1/sessions/ is percent-encoded: an id, or (to send and to kick) "name:NAME" or "tag:KEY=VALUE".
"""

from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

import trio
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict

from netd.control import connections
from netd.control.answers import answered
from netd.control.connections import SessionRow, SessionView
from netd.control.host import Host
from netd.control.routes.messages import Delivered, MessageBody
from netd.errors import NotFound, TooBusy
from netd.net.paths.path import TraceOptions
from netd.net.rest import Read, Write, until_gone
from netd.wire.messages import MAX_NAME, MAX_REASON

MAX_LIST = 1000
"""Sessions of one answer."""
LONGEST_TRACE = 60.0
"""Seconds for a trace, whatever is asked: waiting for its turn, for a message to trace with, and its rounds."""

Id = Annotated[str, Path(description="A session's id.")]
Target = Annotated[str, Path(description='A session\'s id, "name:NAME" or "tag:KEY=VALUE"; percent-encoded.')]
Short = Annotated[str | None, Query(max_length=MAX_NAME)]


class SessionList(BaseModel):
    """In the order of their coming. `next` is what `after` takes to go on; null: there are no more."""

    sessions: list[SessionRow]
    next: str | None
    total: int
    """Sessions there are, whatever was asked for."""


class TcpInfo(BaseModel):
    """`struct tcp_info` (linux/tcp.h), names and units as there; null is what this kernel does not tell."""

    model_config = ConfigDict(extra="allow")

    state: int | None
    rtt_us: int | None
    min_rtt_us: int | None
    snd_cwnd: int | None
    total_retrans: int | None


class SessionPath(BaseModel):
    """One round inside the session's own connection. `reason` says how it ended; more fields may come."""

    model_config = ConfigDict(extra="allow")

    session: str
    address: str
    time: float
    reason: str
    method: str | None = None
    dest_ttl: int | None = None
    path_rtt_ms: float | None = None
    tcp_rtt_ms: float | None = None
    probes: int
    elapsed_ms: float
    hops: list[dict[str, Any]]


class Kicked(BaseModel):
    """How many sessions that was."""

    kicked: int


def router(host: Host) -> APIRouter:
    routes = APIRouter(prefix="/sessions", tags=["sessions"])

    @routes.get("")
    async def list_sessions(
        caller: Read,
        transport: Annotated[str | None, Query(max_length=32, description="Only this transport's.")] = None,
        tag: Annotated[
            str | None, Query(max_length=2 * MAX_NAME + 1, pattern="=", description='Only with this tag, "KEY=VALUE".')
        ] = None,
        name: Annotated[str | None, Query(max_length=MAX_NAME, description="Only of this name.")] = None,
        id: Annotated[str | None, Query(max_length=64, description="Only ids that begin so.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 100,
        after: Annotated[
            str | None, Query(pattern=r"^\d{1,12}\.\d{6}-.{1,64}$", description="`next` of an earlier answer.")
        ] = None,
    ) -> SessionList:
        """The sessions of every transport, in the order of their coming."""
        hub = host.hub
        found, following = connections.listed(
            hub.sessions.values(), transport=transport, tag=tag, name=name, prefix=id, limit=limit, after=after
        )
        total = sum(not session.internal for session in hub.sessions.values())
        return SessionList(sessions=[connections.row(one) for one in found], next=following, total=total)

    @routes.get("/{id}")
    async def get_session(id: Id, caller: Read) -> SessionView:
        """One session, with its channels."""
        return connections.view(connections.find(host.hub, _text(id)))

    @routes.get("/{id}/tcp")
    async def get_session_tcp(id: Id, caller: Read) -> TcpInfo:
        """What the kernel thinks of the session's connection, now. 409 for one that is not TCP."""
        return TcpInfo(**connections.tcp_of(connections.find(host.hub, _text(id))))

    @routes.post("/{id}/trace")
    async def trace_session(
        id: Id,
        caller: Write,
        request: Request,
        max_hops: Annotated[int, Query(ge=1, le=32, description="Farthest router to ask.")] = 30,
        hop_timeout: Annotated[
            float, Query(ge=0.1, le=5, allow_inf_nan=False, description="Seconds to wait for a hop.")
        ] = 1.2,
    ) -> SessionPath:
        """Trace the path to the session inside its own connection: one round, answered when it is over."""
        session = connections.find(host.hub, _text(id))
        options = TraceOptions(max_hops=max_hops, timeout=hop_timeout, share=False)
        found: dict[str, Any] | None = None
        gone = False
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await until_gone(request)
                gone = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            with trio.move_on_after(LONGEST_TRACE):
                found = await connections.trace(session, host.tracer, options)
            nursery.cancel_scope.cancel()
        if found is None:
            why = "nobody waits for it any more" if gone else f"it takes longer than {LONGEST_TRACE:g} s"
            raise TooBusy(f"cannot finish the trace of session {session.id}: {why}")
        return SessionPath(**found)

    @routes.delete("/{target}")
    async def kick_sessions(
        target: Target,
        caller: Write,
        code: Annotated[int, Query(ge=1000, le=4999, description="The close code they are told.")] = 4010,
        reason: Annotated[str, Query(max_length=MAX_REASON, description="The reason they are told.")] = "",
    ) -> Kicked:
        """End sessions and their connections; they cannot be resumed. 404 if there is none."""
        text = _text(target)
        kicked = await answered(lambda answer: host.hub.kick(text, code, reason, answer), f"kick {text!r}")
        if not kicked:
            raise _nobody("kick", text)
        return Kicked(kicked=kicked)

    @routes.post("/{target}/messages", response_model_exclude_none=True)
    async def send_message(target: Target, body: MessageBody, caller: Write) -> Delivered:
        """Send a direct message to sessions. 404 if there is none; fewer than there are: an outbox was full."""
        hub, text = host.hub, _text(target)
        content = body.content()
        delivered = await answered(
            lambda answer: hub.direct(text, content, priority=body.priority, ephemeral=body.ephemeral, answer=answer),
            f"send to {text!r}",
        )
        # nobody here, and no other machine says that it had somebody
        if not delivered and not hub.find(text):
            raise _nobody("send to", text)
        return Delivered(delivered)

    return routes


def _text(segment: str) -> str:
    """A segment of the path as text; what is no UTF-8 is the name of nobody."""
    return unquote_to_bytes(segment).decode("utf-8", "replace")


def _nobody(verb: str, target: str) -> NotFound:
    return NotFound(f"cannot {verb} {target!r}: there is no such session", path="target")
