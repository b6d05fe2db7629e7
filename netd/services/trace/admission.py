"""Who is let in: the path and the Origin of a WebSocket handshake. Pure.

Rules:
- the path must be the listener's, byte for byte; a query is ignored;
- no Origin header: no browser, let in (RFC 6455 section 10.2: a program could send any Origin it likes anyway);
- an Origin whose host and port are those of the Host header: a page of this very host, let in;
- any other Origin must be in the list, or the list must have "*". "null" (a sandboxed page, a file) only by the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_DEFAULT_PORTS = {"http": "80", "ws": "80", "https": "443", "wss": "443"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a handshake is refused: HTTP status, the word for metrics, the sentence for the body."""

    status: int
    why: str
    message: str


def refusal(
    target: str, host: str, headers: Iterable[tuple[bytes, bytes]], *, path: str, origins: Collection[str]
) -> Refusal | None:
    """None when the handshake may go on. `target` is the request target, `headers` lower-case names with values."""
    if target.partition("?")[0] != path:
        return Refusal(404, "path", f"cannot find {target[:80]!a}: traces are at {path}")
    asked = [value for name, value in headers if name == b"origin"]
    if not asked:
        return None
    origin = asked[0].decode("latin-1").strip().lower()
    if len(asked) == 1 and (origin in origins or "*" in origins or _same_host(origin, host)):
        return None
    return Refusal(403, "origin", f"cannot serve pages of {origin[:80]!a}: trace.origins does not list it")


def _same_host(origin: str, host: str) -> bool:
    scheme, separator, place = origin.partition("://")
    if not separator or not place or not host:
        return False
    try:
        # the WebSocket library hands the host decoded; browsers write both headers in their ASCII form
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    default = ":" + _DEFAULT_PORTS.get(scheme, "")
    return place.removesuffix(default) == ascii_host.lower().removesuffix(default)
