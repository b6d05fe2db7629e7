"""The one HTTP front door: ASGI applications on Trio streams, every connection guarded and bounded.

    listener.accept() --> serve --> _Connection (a task each) --> Exchange (one request) --> app(scope, receive, send)

Rules:
- a connection costs at most what HttpLimits says, and whatever it does ends with it: its guard is the only place that
  catches everything, and logs it;
- nothing is shielded. Drain closes at once every connection without a request in progress, lets the others finish
  (their responses say "connection: close") and cancels at the deadline what is left: a peer that never reads included;
- refusals made here have the one error shape of net/rest.py.

The application does not know who serves it; see net/asgi.py for what it finds in its scope. Imports no FastAPI.
Left out: TLS, WebSocket upgrades, HTTP/2 (the streams handed in may be anything half-closeable).
"""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Protocol

import h11
import structlog
import trio

from netd.net.asgi import App, Ends, Message, Peer, Receive, Refused, Scope, Send, check_head, request_scope
from netd.net.exchange import READ, Exchange, Line, Lost
from netd.net.http_limits import HttpLimits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["App", "HttpLimits", "Message", "Peer", "Receive", "Scope", "Send", "serve", "serve_connection"]

log = structlog.get_logger("netd.net")

_ROOT_RESERVE = 4
"""Connections that root may have above `max_connections`, so that the operator always gets in."""
_LINGER = 1.0
"""Seconds for a peer that is still sending to read why it was refused."""
_LINGER_BYTES = 1048576


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
    door = _Door(app, current, draining)
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
    stream: trio.abc.HalfCloseableStream, app: App, limits: HttpLimits, draining: trio.Event
) -> None:
    """Serve one connection until it ends, and close it. Raises nothing but cancellation.

    Setting `draining` ends it after its request in progress; an idle one notices only when it is cancelled.
    """
    await _Connection(stream, app, limits, draining, _ends(stream)).run()


class _Door:
    """Who is inside, and who may still come in."""

    def __init__(self, app: App, limits: Callable[[], HttpLimits], draining: trio.Event) -> None:
        self._app = app
        self._limits = limits
        self._draining = draining
        self._inside: set[_Connection] = set()
        self._full = False

    async def admit(self, stream: trio.abc.HalfCloseableStream, nursery: trio.Nursery) -> None:
        limits = self._limits()
        ends = _ends(stream)
        if not self._room(limits, ends):
            # best effort, and short: the accept loop waits for it
            try:
                with trio.move_on_after(0.1):
                    await _say_busy(stream, limits)
            finally:
                await trio.aclose_forcefully(stream)
            return
        connection = _Connection(stream, self._app, limits, self._draining, ends)
        self._inside.add(connection)
        nursery.start_soon(self._host, connection)

    def close(self) -> None:
        for connection in self._inside:
            connection.cut()

    async def _host(self, connection: _Connection) -> None:
        try:
            await connection.run()
        finally:
            self._inside.discard(connection)

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
       +------------> closed <--------+
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        app: App,
        limits: HttpLimits,
        draining: trio.Event,
        ends: Ends,
    ) -> None:
        self._line = Line(stream, limits)
        self._http = self._line.http
        self._stream = stream
        self._app = app
        self._limits = limits
        self._draining = draining
        self._ends = ends
        self._served = 0
        self._request = ""
        self._between = trio.CancelScope()
        self.was_cut = False
        self.waiting_since: float | None = trio.current_time()
        """Trio time since which no request is in progress; None while one is."""

    def cut(self) -> None:
        """Close at once if no request is in progress, and after it if one is."""
        self.was_cut = True
        if self.waiting_since is not None:
            self._between.cancel()

    async def run(self) -> None:
        """The guard: whatever happens in a connection ends here."""
        failed = False
        try:
            try:
                await self._converse()
            except* Exception:
                log.exception(
                    "connection failed", request=self._request, peer=self._ends.peer, client=self._ends.client
                )
                failed = True
            if failed:
                await self._refuse(Refused(500, "internal", f"cannot {self._request}: it failed inside; see the log"))
        finally:
            await trio.aclose_forcefully(self._stream)

    async def _converse(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                self._served += 1
                check_head(request, self._limits)
                scope = request_scope(request, self._ends, self._draining)
                self._request = f"{scope['method']} {scope['path']}"
                await Exchange(self._line, request, closing=self._last).run(self._app, scope)
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
        if self.was_cut or self._draining.is_set():
            return None
        begun = bool(self._http.trailing_data[0])
        first = self._served == 0
        now = trio.current_time()
        self.waiting_since = now
        self._between = trio.CancelScope(
            deadline=now + (self._limits.head_timeout if begun or first else self._limits.idle_timeout)
        )
        try:
            with self._between:
                while True:
                    try:
                        event = self._http.next_event()
                    except h11.RemoteProtocolError as error:
                        status = error.error_status_hint
                        raise Refused(status, "invalid", f"cannot read the request: {error}") from None
                    if isinstance(event, h11.Request):
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
        if isinstance(self._stream, trio.SocketStream) and self._stream.socket.family != socket.AF_UNIX:
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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


def _ends(stream: trio.abc.HalfCloseableStream) -> Ends:
    """Both ends of a socket; nothing of a stream that is none, or whose peer is gone already."""
    if not isinstance(stream, trio.SocketStream):
        return Ends()
    connected = stream.socket
    try:
        if connected.family == socket.AF_UNIX:
            pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return Ends(peer=Peer(pid, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF))
        client, server = connected.getpeername()[:2], connected.getsockname()[:2]
        return Ends(client=(client[0], client[1]), server=(server[0], server[1]))
    except OSError:  # ENOTCONN: the peer reset the connection before it was accepted
        return Ends()
