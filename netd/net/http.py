"""The one HTTP front door: ASGI applications on Trio streams, every connection guarded and bounded.

    listener.accept() --> serve --> _Connection (a task each) --> Exchange (one request) --> app(scope, receive, send)

Rules:
- a connection costs at most what HttpLimits says, and whatever it does ends with it: its guard is the only place that
  catches everything, and logs it;
- nothing is shielded. Drain closes at once every connection without a request in progress, lets the others finish
  (their responses say "connection: close") and cancels at the deadline what is left: a peer that never reads included.
  Who has only just connected has a moment for a first request, which may be on its way;
- refusals made here have the one error shape of net/rest.py;
- a connection that an application took over (`netd.handover`) is none of the front door's from then on: it is not
  counted, not closed, and not waited for.

The application does not know who serves it; see net/asgi.py for what it finds in its scope. Imports no FastAPI.
Left out: handshakes of TLS (a TlsStream is as good as a socket here), what is spoken after an upgrade, HTTP/2.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import h11
import structlog
import trio

from netd.net.asgi import (
    App,
    Ends,
    Handed,
    Handover,
    Message,
    Peer,
    Receive,
    Refused,
    Scope,
    Send,
    check_head,
    check_lines,
    headers_of,
    request_scope,
)
from netd.net.exchange import READ, Exchange, Line, Lost
from netd.net.http_limits import HttpLimits
from netd.net.tls import TlsStream

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "App",
    "Ends",
    "FrontDoor",
    "Handed",
    "Handover",
    "HttpLimits",
    "Message",
    "Peer",
    "Receive",
    "Scope",
    "Send",
    "ends_of",
    "serve",
    "serve_connection",
]

log = structlog.get_logger("netd.net")

_ROOT_RESERVE = 4
"""Connections that root may have above `max_connections`, so that the operator always gets in."""
_LINGER = 1.0
"""Seconds for a peer that is still sending to read why it was refused."""
_LINGER_BYTES = 1048576
_FRESH = 1.0
"""Seconds from its accept within which a connection's first request is still taken when the door closes: it was made in
good faith, and closing it would be a reset where the next generation would have answered."""


class Accepts(Protocol):
    """What `serve` needs of a listener (runtime/listeners.py)."""

    async def accept(self) -> trio.abc.HalfCloseableStream: ...


async def serve(
    listener: Accepts,
    app: App,
    limits: HttpLimits | Callable[[], HttpLimits],
    draining: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` to whoever connects to `listener`, until `draining` is set; then return within `limits.drain` s.

    `limits` may be a callable: each new connection is given what it returns then. The listener is not closed.
    Raises only what `listener.accept` raises.
    """
    current: Callable[[], HttpLimits] = limits if callable(limits) else lambda: limits
    door = FrontDoor(app, current, draining)
    async with trio.open_nursery() as nursery:
        accepting = trio.CancelScope()

        async def accept() -> None:
            with accepting:
                while True:
                    await door.admit(await listener.accept(), nursery)

        nursery.start_soon(accept)
        task_status.started()
        await draining.wait()
        accepting.cancel()
        nursery.cancel_scope.deadline = trio.current_time() + current().drain
        door.close()


async def serve_connection(
    stream: trio.abc.HalfCloseableStream,
    app: App,
    limits: HttpLimits,
    draining: trio.Event,
    *,
    received: bytes = b"",
    ends: Ends | None = None,
) -> bool:
    """Serve one connection until it ends, and close it. Raises nothing but cancellation.

    `received` is what was read of it already; `ends` says who is at both ends where the socket does not know. Setting
    `draining` ends it after its request in progress; an idle one notices only when it is cancelled. True: the
    application took the connection over, and it is not closed.
    """
    return await _Connection(stream, app, limits, draining, ends or ends_of(stream), received).run()


class FrontDoor:
    """Who is inside, and who may still come in. `serve` is one that accepts by itself.

    `limits` is asked at every connection; `draining` is set before `close` is called.
    """

    def __init__(self, app: App, limits: Callable[[], HttpLimits], draining: trio.Event) -> None:
        self._app = app
        self._limits = limits
        self._draining = draining
        self._inside: set[_Connection] = set()
        self._full = False

    def __len__(self) -> int:
        """Connections inside."""
        return len(self._inside)

    async def admit(self, stream: trio.abc.HalfCloseableStream, nursery: trio.Nursery) -> None:
        """Serve it in a task of `nursery`, or say that there is no room and close it."""
        limits = self._limits()
        ends = ends_of(stream)
        if not self._room(limits, ends):
            await self._turn_away(stream, limits)
            return
        nursery.start_soon(self._host, self._let_in(stream, self._app, limits, ends, b""))

    async def host(
        self,
        stream: trio.abc.HalfCloseableStream,
        *,
        app: App | None = None,
        received: bytes = b"",
        ends: Ends | None = None,
    ) -> bool:
        """As `serve_connection`, counted and bounded with the others; `app` in place of the door's own."""
        limits = self._limits()
        ends = ends or ends_of(stream)
        if not self._room(limits, ends):
            await self._turn_away(stream, limits)
            return False
        return await self._host(self._let_in(stream, app or self._app, limits, ends, received))

    def close(self) -> None:
        """End everyone without a request in progress at once, and the others after theirs."""
        for connection in self._inside:
            connection.drain()

    def _let_in(
        self, stream: trio.abc.HalfCloseableStream, app: App, limits: HttpLimits, ends: Ends, received: bytes
    ) -> _Connection:
        connection = _Connection(stream, app, limits, self._draining, ends, received)
        connection.left = self._inside.discard
        self._inside.add(connection)
        return connection

    async def _host(self, connection: _Connection) -> bool:
        try:
            return await connection.run()
        finally:
            self._inside.discard(connection)

    @staticmethod
    async def _turn_away(stream: trio.abc.HalfCloseableStream, limits: HttpLimits) -> None:
        # best effort, and short: the accept loop waits for it
        try:
            with trio.move_on_after(0.1):
                await _say_busy(stream, limits)
        finally:
            await trio.aclose_forcefully(stream)

    def _room(self, limits: HttpLimits, ends: Ends) -> bool:
        if len(self._inside) < limits.max_connections:
            self._full = False
            return True
        staying = [connection for connection in self._inside if not connection.was_cut]
        if len(staying) < limits.max_connections:
            return True
        if not self._full:
            self._full = True
            log.warning("connections at their limit", limit=limits.max_connections)
        waiting = [connection for connection in staying if connection.waiting_since is not None]
        if waiting:
            min(waiting, key=lambda connection: connection.waiting_since or 0.0).cut()
            return True
        root = ends.peer is not None and ends.peer.uid == 0
        return root and len(staying) < limits.max_connections + _ROOT_RESERVE


class _Connection:
    """One connection, from accept to close.

    waiting (for a head) --head--> answering --response complete--> waiting
       | idle, cut, EOF               | refused, lost, failed, last
       +------------> closed <--------+--handover--> the application's
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        app: App,
        limits: HttpLimits,
        draining: trio.Event,
        ends: Ends,
        received: bytes = b"",
    ) -> None:
        self._line = Line(stream, limits, received)
        self._http = self._line.http
        self._stream = stream
        self._app = app
        self._limits = limits
        self._draining = draining
        self._ends = ends
        self._served = 0
        self._request = ""
        self._between = trio.CancelScope()
        self._handed = False
        self.left: Callable[[_Connection], None] | None = None
        """Called when the application takes the connection over."""
        self.was_cut = False
        self._fresh_until = trio.current_time() + _FRESH
        self.waiting_since: float | None = trio.current_time()
        """Trio time since which no request is in progress; None while one is."""

    def cut(self) -> None:
        """Close at once if no request is in progress, and after it if one is."""
        self.was_cut = True
        self._fresh_until = 0.0
        if self.waiting_since is not None:
            self._between.cancel()

    def drain(self) -> None:
        """`cut`, but for one that has only just come: its first request is the last."""
        if self._served or trio.current_time() >= self._fresh_until:
            self.cut()
        else:
            self.was_cut = True
            self._between.deadline = min(self._between.deadline, self._fresh_until)

    async def run(self) -> bool:
        """The guard: whatever happens in a connection ends here. True: it is the application's now."""
        failed = True
        try:
            try:
                await self._converse()
                failed = False
            except* Exception:
                log.exception(
                    "connection failed", request=self._request, peer=self._ends.peer, client=self._ends.client
                )
            if failed and not self._handed:
                await self._refuse(Refused(500, "internal", f"cannot {self._request}: it failed inside; see the log"))
            elif not self._handed and isinstance(self._stream, TlsStream):
                await self._stream.aclose()  # which says so to the peer: what ends with the connection was not cut off
        finally:
            if failed or not self._handed:
                await trio.aclose_forcefully(self._stream)
        return self._handed and not failed

    async def _converse(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                self._served += 1
                headers = headers_of(request)
                check_head(request, self._limits, headers)
                scope = request_scope(request, self._ends, self._draining, headers)
                self._request = f"{scope['method']} {scope['path']}"
                exchange = Exchange(self._line, request, headers, closing=self._last)

                async def handover(
                    status: int, headers: list[tuple[bytes, bytes]], exchange: Exchange = exchange
                ) -> Handed:
                    handed = await exchange.handover(status, headers)
                    self._handed = True
                    if self.left is not None:
                        self.left(self)
                    return handed

                scope["extensions"]["netd.handover"] = handover
                await exchange.run(self._app, scope)
                if exchange.handed:
                    return
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    break
                self._http.start_next_cycle()
            if self._http.their_state is h11.SEND_BODY:
                await self._linger()
        except Refused as refused:
            log.debug("request refused", status=refused.status, reason=refused.message, peer=self._ends.peer)
            await self._refuse(refused)
        except Lost as lost:
            log.debug("connection lost", reason=str(lost), request=self._request, peer=self._ends.peer)
            self._abort()

    def _last(self) -> bool:
        return self.was_cut or self._draining.is_set() or self._served >= self._limits.max_requests

    async def _next_request(self) -> h11.Request | None:
        """The next request's head; None when the connection is to be closed without another word. Raises Refused."""
        ending = self.was_cut or self._draining.is_set()
        if ending and (self._served or trio.current_time() >= self._fresh_until):
            return None
        begun = bool(self._http.trailing_data[0])
        first = self._served == 0
        now = trio.current_time()
        self.waiting_since = now
        self._between = trio.CancelScope(
            deadline=now + (self._limits.head_timeout if begun or first else self._limits.idle_timeout)
        )
        if ending:
            self._between.deadline = min(self._between.deadline, self._fresh_until)
        try:
            with self._between:
                while True:
                    held = self._http.trailing_data[0]
                    try:
                        event = self._http.next_event()
                    except h11.RemoteProtocolError as error:
                        status = error.error_status_hint
                        # h11 shows the line, and there may be a token in it
                        why = str(error).partition(": bytearray(")[0]
                        raise Refused(status, "invalid", f"cannot read the request: {why}") from None
                    if isinstance(event, h11.Request):
                        check_lines(held[: len(held) - len(self._http.trailing_data[0])])
                        return event
                    if not await self._line.read():
                        if begun:
                            raise Refused(400, "invalid", "cannot read the request: it ended inside its head")
                        return None
                    if not begun:
                        begun = True
                        if not first:
                            self._between.deadline = trio.current_time() + self._limits.head_timeout
        finally:
            self.waiting_since = None
        if begun and not self.was_cut:
            raise Refused(408, "invalid", f"cannot read the request's head within {self._limits.head_timeout:g} s")
        return None

    async def _refuse(self, refused: Refused) -> None:
        """Say why, if no response has begun, and give the peer a moment to read it."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            if self._http.our_state in (h11.SEND_BODY, h11.ERROR):
                self._abort()
            return
        try:
            await self._line.write(_refusal(self._http, refused))
        except Lost:
            self._abort()
        else:
            await self._linger()

    async def _linger(self) -> None:
        """Discard for a moment what still comes in: closing upon unread bytes resets the connection, and the peer
        might lose our answer to that (RFC 9112 9.6)."""
        with trio.move_on_after(_LINGER):
            try:
                await self._stream.send_eof()
                taken = 0
                while taken < _LINGER_BYTES and (data := await self._stream.receive_some(READ)):
                    taken += len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def _abort(self) -> None:
        """Have the close that follows discard what the peer has not taken: the kernel would keep it for minutes."""
        stream = self._stream.transport if isinstance(self._stream, TlsStream) else self._stream
        if isinstance(stream, trio.SocketStream) and stream.socket.family != socket.AF_UNIX:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _refusal(http: h11.Connection, refused: Refused) -> bytes:
    body = json.dumps({"error": {"kind": refused.kind, "message": refused.message}}).encode()
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("connection", "close"),
    ]
    head = http.send(h11.Response(status_code=refused.status, headers=headers))
    try:
        return head + http.send(h11.Data(data=body)) + http.send(h11.EndOfMessage())
    except h11.LocalProtocolError:
        return head  # the answer to HEAD has no body


async def _say_busy(stream: trio.abc.HalfCloseableStream, limits: HttpLimits) -> None:
    line = Line(stream, limits)
    busy = Refused(503, "too-busy", f"cannot serve more than {limits.max_connections} connections: try again later")
    try:
        await line.write(_refusal(line.http, busy))
    except Lost as lost:
        log.debug("connection lost", reason=str(lost))


_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


def ends_of(stream: trio.abc.HalfCloseableStream) -> Ends:
    """Both ends of a socket; nothing of a stream that is none, or whose peer is gone already."""
    scheme = "http"
    if isinstance(stream, TlsStream):
        scheme, stream = "https", stream.transport
    if not isinstance(stream, trio.SocketStream):
        return Ends(scheme=scheme)
    connected = stream.socket
    try:
        if connected.family == socket.AF_UNIX:
            pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return Ends(peer=Peer(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF), scheme=scheme)
        client, server = connected.getpeername()[:2], connected.getsockname()[:2]
        return Ends(client=(client[0], client[1]), server=(server[0], server[1]), scheme=scheme)
    except OSError:  # ENOTCONN: the peer reset the connection before it was accepted
        return Ends(scheme=scheme)
