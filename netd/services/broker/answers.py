"""Answers of the broker's HTTP side: their shape, and the errors that become one. Pure but for awaiting.

    {"error": {"kind", "message"}}       as everywhere in netd (net/rest.py)

`Awaited` is an answer that comes by a callback: at once from a hub of one machine, later from one of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
import trio

from netd.errors import ApplicationError, ControlError, Denied
from netd.hub.permissions import Refusal
from netd.services.broker.caller import TooMany

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.net.asgi import Send

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]

JSON: Final[Headers] = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),  # no page takes it for a script of its own
]
_STATUS: Final = {
    "invalid": 400,
    "denied": 403,
    "not-found": 404,
    "too-large": 413,
    "rate": 429,
    "unsupported": 409,
    "too-many": 409,
}
"""Of the codes of `Refusal`."""


class Answered(Exception):  # a verdict on a request, not an error of ours
    """A request that is answered with an error, and what else the answer says."""

    def __init__(self, status: int, kind: str, message: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status, self.kind, self.message, self.headers = status, kind, message, list(headers)
        super().__init__(message)


def verdict(error: ControlError | ApplicationError) -> Answered:
    """The answer that an error is."""
    if isinstance(error, TooMany):
        return Answered(429, error.kind, str(error), [(b"retry-after", b"%d" % error.retry_after)])
    if isinstance(error, Refusal):
        return Answered(_STATUS.get(error.code, 400), error.code, str(error))
    if isinstance(error, ApplicationError):
        return Answered(error.status, error.kind, str(error), [(b"retry-after", b"1")] if error.status == 503 else [])
    return Answered(error.status, error.kind, str(error))


def unauthorized(error: Denied) -> Answered:
    """A token that is not accepted (RFC 6750 section 3)."""
    said = str(error).replace("\\", "/").replace('"', "'").encode("ascii", "replace")
    challenge = b'Bearer realm="netd", error="invalid_token", error_description="%b"' % said
    printable = bytes(byte if 32 <= byte < 127 else 63 for byte in challenge)
    return Answered(401, error.kind, str(error), [(b"www-authenticate", printable)])


async def say(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
    """A whole answer."""
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


async def say_json(send: Send, status: int, body: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await say(send, status, [*JSON, *headers], msgspec.json.encode(body))


async def say_why(send: Send, answered: Answered, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    body = {"error": {"kind": answered.kind, "message": answered.message}}
    await say_json(send, answered.status, body, [*answered.headers, *headers])


class Awaited(Generic[T]):
    """An answer that whoever is asked gives to a function, now or later."""

    def __init__(self) -> None:
        self._values: list[T] = []
        self._come: trio.Event | None = None

    def take(self, value: T) -> None:
        """To be called with the answer."""
        self._values.append(value)
        if self._come is not None:
            self._come.set()

    async def get(self, seconds: float, what: str) -> T:
        """The answer. Raises Answered (504) when it has not come in so many seconds."""
        if not self._values:
            self._come = trio.Event()
            with trio.move_on_after(seconds):
                await self._come.wait()
            if not self._values:
                why = f"cannot {what}: the backplane did not answer within {seconds:g} s (broker.answer_timeout)"
                raise Answered(504, "timeout", why)
        return self._values[0]
