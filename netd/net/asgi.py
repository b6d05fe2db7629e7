"""ASGI 3 as netd's front door speaks it: its types, and an h11 request as a scope. Pure.

The scope is the one of the ASGI HTTP specification 2.3, with two extensions of ours:

    scope["extensions"]["netd.peer"]      Peer of a Unix socket, or None
    scope["extensions"]["netd.draining"]  trio.Event, set once the front door closes: streams end themselves then

An application whose peer is gone or too slow is cancelled; it does not get an error from `send`. There is no lifespan:
the daemon starts and stops what an application needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    import h11
    import trio

    from netd.net.http_limits import HttpLimits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Peer:
    """Who connected to a Unix socket (SO_PEERCRED, unix(7)), as of connect(2)."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Ends:
    """Both ends of a connection: two addresses where it is TCP, the peer where it is a Unix socket."""

    peer: Peer | None = None
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None


class Refused(Exception):  # a verdict on a request, not an error of ours
    """A request that is answered by the front door itself, after which the connection is closed."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        super().__init__(message)


def check_head(request: h11.Request, limits: HttpLimits) -> None:
    """Raise Refused for a head that is out of bounds, or that two readers could understand differently.

    h11 has already refused what breaks RFC 9112 outright: several different Content-Length, a Transfer-Encoding other
    than chunked, a missing or doubled Host.
    """
    size = len(request.method) + len(request.target) + 12
    size += sum(len(name) + len(value) + 4 for name, value in request.headers)
    if size > limits.max_head or len(request.headers) > limits.max_headers:
        bounds = f"{limits.max_headers} headers and {limits.max_head} bytes"
        raise Refused(431, "invalid", f"cannot take a request head beyond {bounds}")
    if not request.http_version.startswith(b"1."):
        raise Refused(505, "invalid", f"cannot speak HTTP/{request.http_version.decode('ascii')}: use HTTP/1.1")
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        # RFC 9112 6.1: the shape of request smuggling; no honest client sends it
        raise Refused(400, "invalid", "cannot take Transfer-Encoding with Content-Length, or in HTTP/1.0")
    if request.method == b"CONNECT":
        raise Refused(501, "invalid", "cannot serve CONNECT: this is no proxy")
    length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
    if length > limits.max_body:
        raise Refused(413, "invalid", f"cannot take a body of {length} bytes: the limit is {limits.max_body}")


def request_scope(request: h11.Request, ends: Ends, draining: trio.Event) -> Scope:
    """The ASGI scope of a request. Raises Refused for a target that names no path."""
    target, _, query = request.target.partition(b"?")
    if target[:7].lower() == b"http://":  # absolute-form, which every server must take (RFC 9112 3.2.2)
        _, slash, rest = target[7:].partition(b"/")
        target = slash + rest or b"/"
    if not target.startswith(b"/"):
        raise Refused(400, "invalid", f"cannot find {target.decode('ascii', 'replace')!r}: a path begins with /")
    # bytes that are no UTF-8 are for those who read raw_path: a channel's name may have any
    path = unquote_to_bytes(target).decode("utf-8", "replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version.decode("ascii"),
        "method": request.method.decode("ascii"),
        "scheme": "http",
        "path": path,
        "raw_path": target,
        "query_string": query,
        "root_path": "",
        "headers": [(name, value) for name, value in request.headers],
        "client": ends.client,
        "server": ends.server,
        "state": {},
        "extensions": {"netd.peer": ends.peer, "netd.draining": draining},
    }
