"""A request of the broker's site as it is being answered: what is known of it, its body, and what became of it. Pure.

Rules:
- a header that counts is there once, or the request is refused: two readers could choose differently;
- a body is read when it is known how large it may be, and nothing is made of it but what it says it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.errors import ControlError
from netd.hub.permissions import Refusal
from netd.services.broker import protocol
from netd.services.broker.application import whole_body

if TYPE_CHECKING:
    from netd.net.asgi import Handed, Message, Receive, Scope, Send
    from netd.services.broker.answers import Headers
    from netd.services.broker.origins import Site
    from netd.services.broker.visit import Visit

GONE: Any = object()
"""In place of a body whose sender has gone."""
_ESCAPED = 6
"""Bytes that JSON may write one byte of text in."""


class Request:
    """A request as it is being answered."""

    __slots__ = (
        "_send",
        "cors",
        "headers",
        "method",
        "path",
        "query",
        "receive",
        "route",
        "scope",
        "site",
        "status",
        "visit",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = scope["headers"]
        self.visit: Visit = scope["extensions"]["netd.visit"]
        self.site: Site | None = None
        """What it is for, as an origin; None where nobody said."""
        self.cors: Headers = []
        """What every answer to it says."""
        self.route = "none"
        self.status = 0
        """Of the answer, once there is one."""

    def header(self, name: bytes) -> bytes | None:
        """The one header of this name. Raises ControlError when there are more."""
        found = [value for each, value in self.headers if each == name]
        if len(found) > 1:
            raise ControlError(f"cannot take {len(found)} headers {name.decode('ascii')}: send one")
        return found[0] if found else None

    @property
    def has_body(self) -> bool:
        """Whether it says that it has one."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.headers
        )

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def handover(self, status: int, headers: Headers) -> Handed:
        handed: Handed = await self.scope["extensions"]["netd.handover"](status, headers)
        self.status = status
        return handed

    async def data(self, most: int, key: str) -> Any:
        """The body as a message's data of at most so many bytes (`key` says where that stands), or GONE."""
        coding = self.header(b"content-encoding")
        if coding is not None and coding.lower() != b"identity":
            raise protocol.Unsupported(f"cannot take a body in {coding[:40].decode('latin-1')!r}: send it as it is")
        kind = self.header(b"content-type") or b""
        json = kind.partition(b";")[0].strip().lower() == b"application/json"
        bound = most * _ESCAPED if json else most  # what is measured is the value, and not how it was written
        length = self.header(b"content-length")
        if length is not None and int(length) > bound:
            raise Refusal("too-large", f"cannot take a body of {int(length)} bytes: at most {bound} {key}")
        body = await whole_body(self.receive, bound, key)
        return GONE if body is None else protocol.data_of(kind, body)
