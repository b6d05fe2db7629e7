"""Who is let in: the path and the Origin of a WebSocket handshake. Pure.

Rules:
- the path must be the listener's, byte for byte; a query is ignored;
- no Origin header: no browser, let in (RFC 6455 section 10.2: a program could send any Origin it likes anyway);
- an Origin whose host and port are those of the Host header: a page of this very host, let in if the name proves it:
  over TLS, where our certificate had to fit, or an IP address or localhost. Any other name may have been pointed at
  this address by whoever owns it (DNS rebinding), and has to be listed;
- any other Origin must be in the list, or the list must have "*". "null" (a sandboxed page, a file) only by the list.
"""

from __future__ import annotations

import ipaddress
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
    target: str,
    host: str,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    path: str,
    origins: Collection[str],
    secured: bool,
) -> Refusal | None:
    """None when the handshake may go on.

    `target` is the request target, `headers` are lower-case names with values, `secured` says whether TLS is under it.
    """
    if target.partition("?")[0] != path:
        return Refusal(404, "path", f"cannot find {target[:80]!a}: traces are at {path}")
    asked = [value for name, value in headers if name == b"origin"]
    if not asked:
        return None
    origin = asked[0].decode("latin-1").strip().lower()
    if len(asked) == 1 and (origin in origins or "*" in origins or _same_host(origin, host, secured)):
        return None
    return Refusal(403, "origin", f"cannot serve pages of {origin[:80]!a}: trace.origins does not list it")


def _same_host(origin: str, host: str, secured: bool) -> bool:
    scheme, separator, place = origin.partition("://")
    if not separator or not place or not host:
        return False
    try:
        # the WebSocket library hands the host decoded; browsers write both headers in their ASCII form
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    default = ":" + _DEFAULT_PORTS.get(scheme, "")
    same = place.removesuffix(default) == ascii_host.lower().removesuffix(default)
    return same and (secured or _cannot_be_pointed(place))


def _cannot_be_pointed(place: str) -> bool:
    """Whether this host (and port) is none that DNS resolves: an address, or localhost (RFC 6761 section 6.3)."""
    name = place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True
