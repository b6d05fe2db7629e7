"""A session of the hub as an operator sees it: what the hub knows of it, what its socket says, where its path goes.

    hub session --link--> socket --> tcp_info
                     \\--> carrier --> tracer --> path

Rules:
- nothing is kept here: every view is of the moment it is asked for;
- whatever a transport cannot tell is a Conflict that says so, or a path that ends "no-carrier": never a guess;
- secrets stay where they are: of a token its name is shown, of a resume secret nothing.
"""

from __future__ import annotations

import socket
from base64 import b64encode
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from time import time
from typing import TYPE_CHECKING, Any

from netd.errors import Conflict, NotFound
from netd.net.paths.path import Path, TraceOptions
from netd.net.sockdiag import tcp_info
from netd.services.trace.protocol import row_json, summary_json
from netd.services.trace.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.hub import Hub
    from netd.hub.session import Session
    from netd.net.paths.tracer import Tracer

MAX_CHANNELS = 1000
"""Channels that one view names."""
_CURSOR = "{:.6f}-{}"


@dataclass(frozen=True)
class SessionRow:
    """One session of a list. `opened` is in seconds since the epoch; `channels` counts; bytes are of its socket.

    `outbox` is in bytes; `pressed`: it is above its upper mark. `dropped` and `refused` count messages.
    """

    id: str
    name: str | None
    transport: str
    listener: str
    address: str
    tls: bool
    tags: dict[str, str]
    token: str | None
    opened: float
    channels: int
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    outbox: int
    pressed: bool
    dropped: int
    refused: int


@dataclass(frozen=True)
class ChannelName:
    """`name` is the channel's name where it is text, else null; then `name64` is it, in base64."""

    name: str | None
    name64: str | None


@dataclass(frozen=True)
class SessionView(SessionRow):
    """One session whole. `subscriptions` are at most the first 1000 of its `channels`, by name."""

    subscriptions: list[ChannelName] = field(default_factory=list)
    traceable: bool = False
    """It has something to trace with: a TCP connection that a message can be sent on."""


def find(hub: Hub, session_id: str) -> Session:
    """Raises NotFound."""
    session = hub.sessions.get(session_id)
    if session is None or session.internal:
        raise NotFound(f"cannot find session {session_id!r}: it is not connected", path="id")
    return session


def row(session: Session) -> SessionRow:
    return SessionRow(**_fields(session))


def view(session: Session) -> SessionView:
    names = sorted(session.channels or ())[:MAX_CHANNELS]
    subscriptions = [named(name) for name in names]
    return SessionView(**_fields(session), subscriptions=subscriptions, traceable=_carrier(session) is not None)


def _fields(session: Session) -> dict[str, Any]:
    link, outbox = session.link, session.outbox
    return {
        "id": session.id,
        "name": session.name,
        "transport": session.transport,
        "listener": session.listener,
        "address": session.address,
        "tls": link.tls,
        "tags": dict(session.tags),
        "token": session.token,
        "opened": session.opened,
        "channels": len(session.channels or ()),
        "messages_in": session.messages_in,
        "messages_out": session.messages_out,
        "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out,
        "outbox": outbox.size,
        "pressed": outbox.pressed,
        "dropped": session.dropped,
        "refused": session.refused,
    }


def named(channel: bytes) -> ChannelName:
    """A channel's name as JSON can say it."""
    try:
        return ChannelName(channel.decode(), None)
    except UnicodeDecodeError:
        return ChannelName(None, b64encode(channel).decode("ascii"))


# --- lists -----------------------------------------------------------------------------------------------------------


def listed(
    sessions: Iterable[Session],
    *,
    transport: str | None,
    tag: str | None,
    name: str | None,
    prefix: str | None,
    limit: int,
    after: str | None,
) -> tuple[list[Session], str | None]:
    """Sessions in the order of their coming, and the cursor that goes on after them (None: these are all).

    `tag` is "KEY=VALUE", `after` a cursor of an earlier answer: whoever left meanwhile is not missed.
    """
    key, _, value = (tag or "").partition("=")
    found = [
        session
        for session in sessions
        if not session.internal
        and (transport is None or session.transport == transport)
        and (tag is None or session.tags.get(key) == value)
        and (name is None or session.name == name)
        and (prefix is None or session.id.startswith(prefix))
    ]
    found.sort(key=_place)
    if after is not None:
        found = found[bisect_right(found, _cursor(after), key=_place) :]
    page = found[:limit]
    return page, _CURSOR.format(page[-1].opened, page[-1].id) if len(found) > limit and page else None


def _place(session: Session) -> tuple[float, str]:
    # as exact as a cursor says it
    return round(session.opened, 6), session.id


def _cursor(text: str) -> tuple[float, str]:
    opened, _, session_id = text.partition("-")
    return float(opened), session_id


# --- what the kernel thinks ------------------------------------------------------------------------------------------


def tcp_of(session: Session) -> dict[str, int | None]:
    """`struct tcp_info` of the session's socket; names and units as the kernel's. Raises Conflict where it has none."""
    sock = session.link.socket
    why = ""
    if sock is None:
        why = f"its transport ({session.transport}) has no socket of its own"
    elif sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        why = "its socket is not TCP"
    else:
        try:
            return asdict(tcp_info(sock))
        except OSError as error:
            why = f"its connection is gone ({(error.strerror or str(error)).lower()})"
    raise Conflict(f"cannot tell what TCP does for session {session.id}: {why}")


# --- its path --------------------------------------------------------------------------------------------------------


def _carrier(session: Session) -> Any:
    """What the tracer needs of it; None where there is no TCP to trace."""
    sock = session.link.socket
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return session.link.carrier


async def trace(session: Session, tracer: Tracer, options: TraceOptions) -> dict[str, Any]:
    """One round inside the session's own connection, as the trace service shows traces.

    Whatever is in its way is the `reason`: "no-carrier" for a session that has nothing to trace with.
    """
    carrier = _carrier(session)
    address = session.address
    if carrier is None:
        path = Path((), "tcp", "no-carrier", None, None, None, None, 0, 0.0)
    else:
        path = await tracer.trace(carrier, options)
    rounds = Rounds()
    rounds.add(path)
    hops = [row_json(one) for one in rounds.rows()]
    return {
        "session": session.id,
        "address": address,
        "time": time(),
        **summary_json(rounds.summary()),
        "reason": path.reason,
        "hops": hops,
    }
