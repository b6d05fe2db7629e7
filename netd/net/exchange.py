"""One request and its response: h11 events on one side, ASGI messages on the other.

Rules:
- reading is pulled by the application's `receive`, so a body it does not want is never read, and what a peer sends
  ahead is at most one read held back;
- writing waits for the peer at most `write_timeout` for each 64 KiB, and is never shielded;
- an application is cancelled when its peer is gone, too slow, or breaks the rules in mid body. What it would have said
  then is never sent.

      peer --read--> Line.h11 --Data--> receive() --> app --> send() --> Line.h11 --write--> peer

A handover ends an exchange without a response of ours: the application's head is written, the connection is its own.

Left out: trailers, and the ASGI extensions of others. What is spoken after an upgrade is nothing of HTTP's.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import h11
import trio

from netd.errors import ProtocolError
from netd.net.asgi import Handed, Refused, check_lines
from netd.net.tls import TlsStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.net.asgi import App, Message, Scope
    from netd.net.http_limits import HttpLimits

READ = 16384
"""Bytes read at once: little enough that the smallest chunks in it do not hold the event loop for long."""
WRITE = 65536
"""Bytes a peer has to take within one `write_timeout`."""

_TORN = (b"", b"\r", b"\n")
"""What may be taken of the CR LF behind a chunk when a read has ended within it."""

# the server's own business (RFC 9110 7.6.1): what an application says of them is dropped
_CONNECTION_HEADERS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})


class Lost(Exception):  # an end that peers bring about every day, not an error of ours
    """The peer is gone, or takes nothing: nothing more can be said to it."""


class Line:
    """A stream and the HTTP state machine upon it."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, limits: HttpLimits, received: bytes = b"") -> None:
        self.stream = stream
        self.limits = limits
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_head)
        self.reading = False
        self._writing = False
        if received:
            self.http.receive_data(received)

    async def read(self) -> bool:
        """Hand the state machine what arrives next. False: the peer sends nothing more."""
        self.reading = True
        try:
            data = await self.stream.receive_some(READ)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            self.reading = False
        if data:
            self.http.receive_data(bytes(data))
        return bool(data)

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises Lost; always, once a write has been cancelled: nobody knows how far it came."""
        if self._writing:
            raise Lost("an earlier write was cut short")
        self._writing = True
        view = memoryview(data)
        for start in range(0, len(view), WRITE):
            with trio.move_on_after(self.limits.write_timeout) as patience:
                try:
                    await self.stream.send_all(view[start : start + WRITE])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    raise Lost("the peer closed the connection") from None
            if patience.cancelled_caught:
                raise Lost(f"the peer took less than {WRITE} bytes in {self.limits.write_timeout:g} s")
        self._writing = False


class Exchange:
    """One request being answered. `run` once."""

    def __init__(
        self, line: Line, request: h11.Request, headers: list[tuple[bytes, bytes]], *, closing: Callable[[], bool]
    ) -> None:
        """`closing()` is asked as the response begins: whether to announce that the connection ends with it."""
        self._line = line
        self._http = line.http
        self._closing = closing
        self._head_only = request.method == b"HEAD"
        self._read = 0
        self._patience = line.limits.body_timeout
        self._told_all = False  # the application has had the last of the body
        self._held = False  # the peer sent ahead: reading on would have to keep it
        self._gone = False
        self._head: h11.Response | None = None
        self._begun = False
        self.handed = False
        """The connection is the application's now."""
        self._done = trio.Event()
        self._end: Refused | Lost | None = None
        self._alive = trio.CancelScope()
        given = dict(headers)
        self._chunked = b"transfer-encoding" in given
        if not self._chunked and not int(given.get(b"content-length", 0)):
            self._http.next_event()  # EndOfMessage: an application that asks for no body leaves none unread

    async def run(self, app: App, scope: Scope) -> None:
        """Let `app` answer. Raises Refused or Lost when the peer spoilt it, and what `app` itself raises."""
        with self._alive:
            await app(scope, self._receive, self._send)
        if self._end is not None:
            raise self._end
        if not self._done.is_set() and not self.handed:
            if self._gone:
                raise Lost("the peer closed the connection")
            raise ProtocolError("cannot finish the response: the application left it incomplete", origin="local")

    async def _give_up(self, end: Refused | Lost) -> Message:
        self._end = self._end or end
        self._alive.cancel()
        await trio.lowlevel.checkpoint()  # the application ends here, unless it shields itself
        return {"type": "http.disconnect"}

    # --- receive -----------------------------------------------------------------------------------------------------

    async def _receive(self) -> Message:
        if self._done.is_set() or self._end is not None or self.handed:
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        if not self._told_all:
            try:
                return await self._body()
            except (Refused, Lost) as end:
                return await self._give_up(end)
        return await self._disconnect()

    async def _body(self) -> Message:
        """The next part of the body: all that has arrived, or else the next that does."""
        if self._http.they_are_waiting_for_100_continue and not self._begun:
            await self._line.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        part = bytearray()
        while True:
            if self._http.their_state is not h11.SEND_BODY:
                self._told_all = True
                return {"type": "http.request", "body": bytes(part), "more_body": False}
            held = self._http.trailing_data[0] if self._chunked else b""
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                # h11 shows the line
                why = str(error).partition(": bytearray(")[0]
                raise Refused(400, "invalid", f"cannot read the body: {why}") from None
            if self._chunked:
                # lines as well: where they end, a chunk begins, or the next request
                data = len(event.data) if isinstance(event, h11.Data) else 0
                taken = held[: len(held) - len(self._http.trailing_data[0]) - data]
                if taken not in _TORN or isinstance(event, h11.EndOfMessage):
                    check_lines(taken.removeprefix(b"\n") or taken)
            if isinstance(event, h11.Data):
                part += event.data
                self._read += len(event.data)
                if self._read > self._line.limits.max_body:
                    most = self._line.limits.max_body
                    raise Refused(413, "invalid", f"cannot take a body of more than {most} bytes (max_body)")
            elif event is h11.NEED_DATA:
                if part:
                    return {"type": "http.request", "body": bytes(part), "more_body": True}
                await self._more_body()

    async def _more_body(self) -> None:
        began = trio.current_time()
        with trio.move_on_after(self._patience) as patience:
            if not await self._line.read():
                raise Refused(400, "invalid", f"cannot read the body: it ended after {self._read} bytes")
        if patience.cancelled_caught:
            raise Refused(408, "invalid", f"cannot read the body within {self._line.limits.body_timeout:g} s")
        self._patience -= trio.current_time() - began

    async def _disconnect(self) -> Message:
        """Return once the peer is gone or the response is complete."""
        if not self._held and not self._gone:
            if await self._line.read():
                self._held = True
            else:
                self._gone = True
        if self._held:
            await self._done.wait()
        return {"type": "http.disconnect"}

    # --- send --------------------------------------------------------------------------------------------------------

    async def _send(self, message: Message) -> None:
        if self._end is not None:
            await trio.lowlevel.checkpoint()  # only an application that shields itself gets here
            return
        match message["type"]:
            case "http.response.start" if self._head is None and not self.handed:
                headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
                if message["status"] != 426:  # which has to say what to upgrade to (RFC 9110 15.5.22)
                    headers = [header for header in headers if header[0].lower() not in _CONNECTION_HEADERS]
                self._head = h11.Response(status_code=message["status"], headers=headers)
                await trio.lowlevel.checkpoint_if_cancelled()  # the body's turn is soon
            case "http.response.body" if self._head is not None and not self._done.is_set():
                last = not message.get("more_body", False)
                data = self._encode(self._head, message.get("body", b""), last=last)
                try:
                    await self._line.write(data)
                except Lost as lost:
                    await self._give_up(lost)
                if last:
                    # only now: an application that ends itself once `receive` says so must not cut its own last bytes
                    self._done.set()
            case unexpected:
                raise ProtocolError(f"cannot send {unexpected!r} now: it is not the response's turn", origin="local")

    def _encode(self, head: h11.Response, body: bytes, *, last: bool) -> bytes:
        never = head.status_code in (204, 304)
        bodiless = never or self._head_only
        data = b""
        if not self._begun:
            self._begun = True
            known = last and not never and (bool(body) or not self._head_only)
            data += self._http.send(self._complete(head, len(body) if known else None))
        if body and not bodiless:
            data += self._http.send(h11.Data(data=body))
        if last:
            data += self._http.send(h11.EndOfMessage())
        return data

    def _complete(self, head: h11.Response, length: int | None) -> h11.Response:
        """The head as it is sent. `length` is the body's, where it is known."""
        headers = list(head.headers)
        names = {name for name, _ in headers}
        if b"date" not in names:
            headers.append((b"date", _today()))
        if length is not None and b"content-length" not in names:
            headers.append((b"content-length", b"%d" % length))
        if self._http.their_state is h11.SEND_BODY or self._closing():
            # the rest of an unread body would stand where the next request should
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=head.status_code, headers=headers)

    # --- handover ----------------------------------------------------------------------------------------------------

    async def handover(self, status: int, headers: list[tuple[bytes, bytes]]) -> Handed:
        """See asgi.Handover."""
        if why := self._kept(status):
            raise ProtocolError(f"cannot hand the connection over: {why}", origin="local")
        line = self._line
        head = _head_alone(status, headers)
        self._head = h11.Response(status_code=200, headers=[])  # whatever becomes of the write: no response after it
        try:
            await line.write(head)
        except Lost as lost:
            await self._give_up(lost)
            raise  # only an application that shields itself gets here
        self.handed = True
        received = self._http.trailing_data[0]
        if isinstance(line.stream, TlsStream):
            received += line.stream.unread()
        return Handed(line.stream, received)

    def _kept(self, status: int) -> str | None:
        """Why the connection cannot be given away."""
        if self.handed or self._head is not None or self._end is not None:
            return "a response has begun"
        if self._line.reading:
            return "the application waits for what comes next on it"
        if self._http.their_state is h11.SEND_BODY:
            return "the request's body was not read to its end"
        if status == 101:
            return None if self._http.their_http_version == b"1.1" else "there are no upgrades before HTTP/1.1"
        if status != 200:
            return f"{status} does not begin a stream: 101 and 200 do"
        return "there is no body in the answer to HEAD" if self._head_only else None


_HEADERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*\r\n)*")


def _head_alone(status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A response's head, after which the connection is no longer HTTP's. Raises ProtocolError (origin "local") for
    headers that are none."""
    if status != 101:
        headers = [header for header in headers if header[0].lower() not in _CONNECTION_HEADERS]
        headers += [(b"date", _today()), (b"connection", b"close")]
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if not _HEADERS.fullmatch(lines) or lines.count(b"\n") != len(headers):
        raise ProtocolError(f"cannot send {headers!r:.200}: a header is none", origin="local")
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _PHRASES[status], lines)


_PHRASES = {101: b"Switching Protocols", 200: b"OK"}


def _today() -> bytes:
    """The date of an answer (RFC 9110 section 6.6.1), which has seconds."""
    now = int(time.time())
    global _written
    if _written[0] != now:
        _written = now, formatdate(now, usegmt=True).encode("ascii")
    return _written[1]


_written = 0, b""
