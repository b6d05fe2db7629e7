"""A stream of server-sent events from the daemon, for as long as the caller wants it.

    async with client.events(kinds=("hop",)) as events:
        async for event in events: ...

                 +---------------- event, event, ... ----------------+
    open --> reading --connection lost--> waiting --opened again--> reading     (Last-Event-ID: nothing is told twice)
                |                            \\--patience over--> DaemonUnreachable, or the end after `ended`
                \\--a `last` event, patience 0--> the end

Rules:
- the first connection is made in `async with`, so a daemon that is not there is known at once; only a stream that once
  worked is opened again, and only if `patience` (seconds without a connection) allows it;
- a daemon that says `ended` (it is stopping) may be restarting: that too is waited for within `patience`;
- cancelling the wait for the next event costs the connection but no event: the next wait resumes after the last one.

Left out: what the events mean.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx
import trio

from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire.sse import SseParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_FIRST_DELAY = 0.25  # seconds before the first attempt to connect again, doubling up to _LONGEST_DELAY
_LONGEST_DELAY = 2.0


@dataclass(frozen=True)
class ServerEvent:
    """One event: `kind` as the notice names it ("hop", "missed", "ended"), its fields, its id ("<boot>-<serial>")."""

    kind: str
    data: dict[str, Any]
    id: str

    @property
    def service(self) -> str:
        """The service it comes from, "" where the stream does not say."""
        return str(self.data.get("service") or "")

    def as_json(self) -> dict[str, Any]:
        """One flat object, as `netctl --json` prints it. Streams that cannot be resumed have no ids."""
        return {"event": self.kind, **({"id": self.id} if self.id else {}), **self.data}


class EventStream:
    """Use it as `async with`, then `async for`; one reader. Made by ControlClient.

    `request` is given the last event's id ("" for none) and returns the checked response with its body unread;
    `explain` turns what the HTTP library raised into a sentence. `last` names the events after which nothing comes.
    """

    def __init__(
        self,
        request: Callable[[str], Awaitable[httpx.Response]],
        explain: Callable[[BaseException], DaemonUnreachable],
        *,
        since: str = "",
        patience: float = 0.0,
        last: frozenset[str] = frozenset({"ended"}),
    ) -> None:
        self._request = request
        self._explain = explain
        self._patience = patience
        self._last = last
        self._parser = SseParser()
        self._parser.resume_from(since)
        self._ready: deque[ServerEvent] = deque()
        self._response: httpx.Response | None = None
        self._body: AsyncIterator[bytes] | None = None
        self._ended = False
        self._over = False

    @property
    def last_id(self) -> str:
        """The id to resume after, "" before the first event with an id."""
        return self._parser.last_id

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._over = True
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerEvent:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    async def _read(self) -> None:
        """Wait for more bytes; `_ready` may or may not have grown afterwards."""
        # out of `self` while it is waited for: a cancelled read leaves a finished body, and bytes cut anywhere
        body, self._body = self._body, None
        try:
            if body is None:
                raise httpx.ReadError("the wait for an event was cancelled")
            chunk = await anext(body)
        except StopAsyncIteration:
            await self._lost(httpx.RemoteProtocolError("the daemon ended the stream"))
        except httpx.TransportError as error:
            await self._lost(error)
        else:
            self._body = body
            self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        for event in self._parser.feed(chunk):
            again, self._ended = self._ended, event.name in self._last
            # a draining daemon says `ended` to each attempt to come back: once is enough
            if again and self._ended:
                continue
            fields = _fields(event.data)
            if event.name == "error" and isinstance(refusal := fields.get("error"), dict):
                # the daemon's own refusal in the middle of a stream; a notice of kind "error" has no such field
                raise RequestFailed(str(refusal.get("kind")), str(refusal.get("message")), status=200)
            self._ready.append(ServerEvent(event.name, fields, event.id))
        if self._ended and not self._patience:
            self._over = True

    async def _lost(self, error: httpx.TransportError) -> None:
        """The connection is gone: end, fail, or be connected again when this returns."""
        await self._disconnect()
        failure: Exception = self._explain(error)
        delay = max(_FIRST_DELAY, min(self._parser.retry or 0.0, _LONGEST_DELAY))
        with trio.move_on_after(self._patience):
            while self._patience:
                await trio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY)
                try:
                    await self._connect()
                except DaemonUnreachable as again:
                    failure = again
                except RequestFailed as again:
                    if again.status != 503:  # 503: it is starting, or stopping; anything else will not get better
                        raise
                    failure = again
                else:
                    return
        self._over = True
        if not self._ended:
            raise failure

    async def _connect(self) -> None:
        self._parser.reset()
        try:
            self._response = await self._request(self._parser.last_id)
        except httpx.TransportError as error:
            raise self._explain(error) from error
        self._body = self._response.aiter_bytes()

    async def _disconnect(self) -> None:
        response, self._response = self._response, None
        body, self._body = self._body, None
        if response is not None:
            await finish(response, body)


async def finish(response: httpx.Response, body: AsyncIterator[bytes] | None) -> None:
    """Close a response whose body may be half read.

    An HTTP body is a stack of async generators, each suspended in the next; closing the outermost leaves the inner ones
    to the garbage collector, which Trio rightly complains about. A read that is cancelled unwinds them all, in order.
    """
    if body is not None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                async for _ in body:
                    pass
            except httpx.TransportError:
                pass  # it was broken already, and nobody wants its bytes any more
    await response.aclose()


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; ProtocolError beyond. The response is closed either way."""
    body = response.aiter_bytes()
    taken = bytearray()
    try:
        async for chunk in body:
            taken += chunk
            if len(taken) > limit:
                raise ProtocolError(f"cannot take the daemon's answer: it is longer than {limit} bytes")
    finally:
        await finish(response, body)
    return bytes(taken)


def _fields(data: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError:
        raise ProtocolError(f"cannot read an event: its data is not JSON: {data[:80]!r}") from None
    if not isinstance(fields, dict):
        raise ProtocolError(f"cannot read an event: its data is not an object: {data[:80]!r}")
    return fields
