"""ASGI 3 as netd's front door speaks it: its types, and an h11 request as a scope. Pure.

The scope is the one of the ASGI HTTP specification 2.3, with three extensions of ours:

    scope["extensions"]["netd.peer"]      Peer of a Unix socket, or None
    scope["extensions"]["netd.draining"]  trio.Event, set once the front door closes: streams end themselves then
    scope["extensions"]["netd.handover"]  Handover: answers with a head and takes the connection away from HTTP

An application whose peer is gone or too slow is cancelled; it does not get an error from `send`. There is no lifespan:
the daemon starts and stops what an application needs.

Whose host a request is for is said once: where the target names one (absolute-form), it stands in place of the Host
header (RFC 9112 3.2.2), so that nobody further in reads another than we have judged.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import trio

if TYPE_CHECKING:
    import h11

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
    """Both ends of a connection: two addresses where it is TCP, the peer where it is a Unix socket.

    Whoever knows better than the socket (a PROXY header names the client) gives `serve_connection` its own.
    """

    peer: Peer | None = None
    client: tuple[str, int] | None = None
    server: tuple[str, int | None] | None = None
    scheme: str = "http"
    """ "https" where there is TLS."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A connection that HTTP is through with. Whoever has this closes it."""

    stream: trio.abc.HalfCloseableStream
    """As it was given to the front door: a trio.SocketStream, or a TlsStream (net/tls.py)."""
    received: bytes
    """What the client has sent behind its request, as far as it was read (plaintext, under TLS)."""


Handover = Callable[[int, list[tuple[bytes, bytes]]], Awaitable[Handed]]
"""`await handover(status, headers)` writes a response's head and gives the connection away.

With 101 the headers are the application's; with 200 what follows is a body that ends with the connection, and the
front door says so ("connection: close", "date"). Raises ProtocolError, and nothing has been written then, once a
response has begun, while `receive` waits, while a body has not been read to its end, and for 101 in HTTP/1.0. An
application that raises afterwards has not taken the connection, which is closed.
"""


class Refused(Exception):  # a verdict on a request, not an error of ours
    """A request that is answered by the front door itself, after which the connection is closed."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status, self.kind, self.message = status, kind, message
        super().__init__(message)


_ABSOLUTE = re.compile(rb"https?://([^/]*)", re.IGNORECASE)


def headers_of(request: h11.Request) -> list[tuple[bytes, bytes]]:
    """Its headers as the scope has them: names in lower case. h11's own sequence of them is slow to walk."""
    return [(name.lower(), value) for name, value in request.headers.raw_items()]


def check_head(request: h11.Request, limits: HttpLimits, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Raise Refused for a head that is out of bounds, or that two readers could understand differently.

    `headers` are those of `headers_of`, where they are at hand. h11 has already refused what breaks RFC 9112: several
    different Content-Length, a Transfer-Encoding other than chunked, a missing or doubled Host.
    """
    headers = headers_of(request) if headers is None else headers
    size = len(request.method) + len(request.target) + 12
    for name, value in headers:
        size += len(name) + len(value) + 4
    if size > limits.max_head or len(headers) > limits.max_headers:
        bounds = f"{limits.max_headers} headers and {limits.max_head} bytes"
        raise Refused(431, "invalid", f"cannot take a request head beyond {bounds}")
    if not request.http_version.startswith(b"1."):
        raise Refused(505, "invalid", f"cannot speak HTTP/{request.http_version.decode('ascii')}: use HTTP/1.1")
    names = dict(headers)
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        # RFC 9112 6.1: the shape of request smuggling; no honest client sends it
        raise Refused(400, "invalid", "cannot take Transfer-Encoding with Content-Length, or in HTTP/1.0")
    if request.method == b"CONNECT":
        raise Refused(501, "invalid", "cannot serve CONNECT: this is no proxy")
    length = int(names.get(b"content-length", 0))
    if length > limits.max_body:
        raise Refused(413, "invalid", f"cannot take a body of {length} bytes: at most {limits.max_body} (max_body)")


def check_lines(head: bytes) -> None:
    """Raise Refused for lines that two readers could divide differently: h11 takes what RFC 9112 says may be taken.

    A bare LF as the end of a line, and a bare CR in one (section 2.2: h11 takes it in what extends a chunk), and a line
    that goes on in the next one (obs-fold, section 5.2).
    """
    if not head.count(b"\n") == head.count(b"\r\n") == head.count(b"\r"):
        raise Refused(400, "invalid", "cannot read the request: a line ends with LF or has CR in it; end it with CR LF")
    if b"\n " in head or b"\n\t" in head:
        raise Refused(400, "invalid", "cannot read the request: a header goes on in the next line (obs-fold)")


def request_scope(
    request: h11.Request, ends: Ends, draining: trio.Event, headers: list[tuple[bytes, bytes]] | None = None
) -> Scope:
    """The ASGI scope of a request. Raises Refused for a target that names no path."""
    headers = headers_of(request) if headers is None else headers
    target, _, query = request.target.partition(b"?")
    if absolute := _ABSOLUTE.match(target):  # absolute-form, which every server must take (RFC 9112 3.2.2)
        host = absolute[1]
        if not host or b"@" in host:
            raise Refused(400, "invalid", "cannot find a target that names no host, or a user with it (RFC 9110 4.2.4)")
        target = target[absolute.end() :] or b"/"
        headers = [(b"host", host), *(header for header in headers if header[0] != b"host")]  # HTTP/1.0 may have none
    if not target.startswith(b"/"):
        raise Refused(400, "invalid", f"cannot find {target.decode('ascii', 'replace')!r}: a path begins with /")
    # bytes that are no UTF-8 are for those who read raw_path: a channel's name may have any
    path = (unquote_to_bytes(target) if b"%" in target else target).decode("utf-8", "replace")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.http_version.decode("ascii"),
        "method": request.method.decode("ascii"),
        "scheme": ends.scheme,
        "path": path,
        "raw_path": target,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ends.client,
        "server": ends.server,
        "state": {},
        "extensions": {"netd.peer": ends.peer, "netd.draining": draining},
    }
