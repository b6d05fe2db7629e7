"""HTTP requests that the application answers: bounded in number, passed whole, and their answers looked at.

    request --room?--> body --> hub.application.request --> answer --sane?--> client

Rules:
- so many wait at once, in all and from one address; who comes then is told to come back;
- a client that goes takes its request with it: the application is told;
- a worker is the user's own code, and no more trusted than its library: an answer that is no HTTP, or would be another
  one behind it (CR, LF, NUL), is not sent on (502). What belongs to the connection is ours, and dropped;
- the request is passed on as it came, its path not normalised, and with every header: tokens in it are the
  application's, and nobody here looks at them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import trio

from netd.budget import Places
from netd.hub.seams import HttpRequest, HttpResponse
from netd.services.broker.answers import Answered, say
from netd.services.broker.caller import TooMany

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.net.asgi import Receive, Scope, Send
    from netd.services.broker.caller import Caller
    from netd.services.broker.config import BrokerConfig

MAX_HEADERS: Final = 256
MAX_HEAD: Final = 65_536
"""Headers of an answer, and their bytes."""
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_OURS: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)
"""Of one connection only (RFC 9110 section 7.6.1), and what is counted here."""


class Requests:
    """Those that wait for the application."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.waiting = Places()

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        caller: Caller,
        config: BrokerConfig,
        cors: list[tuple[bytes, bytes]],
    ) -> None:
        """Have the application answer. Raises Answered, TooMany and ApplicationError."""
        why = self.waiting.enter(
            caller.key, limit=config.max_requests_waiting, limit_per_key=config.requests_per_address
        )
        if why == "address":
            most = config.requests_per_address
            raise TooMany(f"cannot have more than {most} requests of one address wait (broker.requests_per_address)", 1)
        if why is not None:
            most = config.max_requests_waiting
            what = f"cannot have more than {most} requests wait for workers (broker.max_requests_waiting)"
            raise Answered(503, "too-busy", what, [(b"retry-after", b"1")])
        try:
            body = await whole_body(receive, config.http.max_body, "(broker.http.max_body)")
            if body is None:
                return
            response = await self._ask(_request(scope, caller, body), receive)
        finally:
            self.waiting.leave(caller.key)
        if response is not None:
            status, headers, body = checked(response, scope["method"])
            if any(name == b"access-control-allow-origin" for name, _ in cors):
                # one answer to the browser's question, and it is the configuration's
                headers = [header for header in headers if header[0].lower() != b"access-control-allow-origin"]
            await say(send, status, [*headers, *cors], body)

    async def _ask(self, request: HttpRequest, receive: Receive) -> HttpResponse | None:
        """The answer; None: the client has gone."""
        found: list[HttpResponse] = []
        failed: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                found.append(await self._hub.application.request(request))
            except Exception as error:  # noqa: BLE001 - raised again, without the nursery's group around it
                failed.append(error)
            nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]
        return found[0] if found else None


async def whole_body(receive: Receive, most: int, key: str) -> bytes | None:
    """The body of a request; None: the client has gone. Raises Answered (413) for one beyond `most` bytes (`key` says
    where that stands)."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message["body"]
        if len(body) > most:
            raise Answered(413, "too-large", f"cannot take a body above {most} bytes {key}")
        if not message["more_body"]:
            return bytes(body)


def _request(scope: Scope, caller: Caller, body: bytes) -> HttpRequest:
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return HttpRequest(
        method=scope["method"],
        target=target.decode("latin-1"),
        headers=scope["headers"],
        body=body,
        client=caller.address,
        scheme=scope["scheme"],
        http_version=scope["http_version"],
    )


def checked(response: HttpResponse, method: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body to send on. Raises Answered (502) for what is no answer."""
    status: Any = response.status
    if type(status) is not int or not 200 <= status <= 599:
        raise _nonsense(f"its status is {str(status)[:40]}")
    headers = response.headers
    if len(headers) > MAX_HEADERS:
        raise _nonsense(f"it has {len(headers)} headers: {MAX_HEADERS} is the most")
    size = 0
    dropped = set(_OURS)
    length: bytes | None = None
    for header in headers:
        name, value = header
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _nonsense(f"its header {name[:60]!r} is none")
        size += len(name) + len(value) + 4
        if (lower := name.lower()) == b"connection":
            dropped.update(each.strip(b" \t").lower() for each in value.split(b","))
        elif lower == b"content-length" and value.isdigit():
            length = value
    if size > MAX_HEAD:
        raise _nonsense(f"its headers have {size} bytes: {MAX_HEAD} is the most")
    kept = [(name, value.strip(b" \t")) for name, value in headers if name.lower() not in dropped]
    if method == "HEAD" and not response.body and length is not None and len(length) < 20:
        kept.append((b"content-length", length))
    return status, kept, response.body


def _nonsense(why: str) -> Answered:
    return Answered(502, "application", f"cannot pass on what the worker answered: {why}")
