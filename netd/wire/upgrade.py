"""The WebSocket handshake as a server sees it: a request's head -> an answer (RFC 6455 section 4.2), sans-IO.

    answer = upgrade(request.method, request.http_version, request.headers, subprotocols=("netd.v1",))
    answer.status, answer.headers           101, or a refusal with its `reason` in words; the caller sends it either way

Rules:
- headers are pairs of bytes as h11 gives them: names in lower case, one pair for each line;
- what the RFC demands of a request is demanded: GET, HTTP/1.1 or later, one Host, `websocket` in Upgrade, `upgrade` in
  Connection, a key of 16 bytes in base64, version 13. Another version is told ours (426, section 4.4);
- a request with a body is refused: its bytes would be read as frames, by us or by a proxy that thinks otherwise;
- of the subprotocols that the client asks for, the one that comes first in our list is chosen; with none in common
  there is none in the answer, and the client decides whether to go on (section 4.2.2);
- what is repeated and must not be is refused, as two readers could choose differently.

Left out: whether this Host and this Origin are welcome (both are in the answer), the path, tokens.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from netd.errors import ProtocolError
from netd.wire.deflate import Agreed, negotiate, parse_extensions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netd.wire.deflate import DeflateSettings

VERSION: Final = b"13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(rb"[0-9]\.[0-9]")
MAX_SUBPROTOCOLS = 64
"""How many a client may ask for."""

Headers: TypeAlias = "Iterable[tuple[bytes, bytes]]"


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The connection is to become a WebSocket: send `status` and `headers`, then frames."""

    headers: list[tuple[bytes, bytes]]
    host: str
    origin: str | None
    """As the client sent it; browsers do, others need not. Not checked."""
    subprotocol: str | None
    deflate: Agreed | None
    """What permessage-deflate is used with, None without it."""
    status: ClassVar[int] = 101


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request is no handshake, or not one that can be met."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Those that the status demands; length and type of a body are the caller's."""
    reason: str


def accept_key(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key, section 4.2.2 step 5.4."""
    return b2a_base64(sha1(key + _GUID, usedforsecurity=False).digest(), newline=False)


def wants_upgrade(headers: Headers) -> bool:
    """Whether a request asks for a WebSocket at all; otherwise it is HTTP. Whether it asks well is `upgrade`'s."""
    return b"websocket" in _elements(value for name, value in headers if name == b"upgrade")


def upgrade(
    method: bytes,
    http_version: bytes,
    headers: Headers,
    *,
    subprotocols: Sequence[str] = (),
    deflate: DeflateSettings | None = None,
) -> Upgrade | Refusal:
    """What to answer. `subprotocols`: ours, the best first. `deflate`: None does not compress, whatever is offered."""
    given: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        given.setdefault(name, []).append(value.strip(b" \t"))
    if method != b"GET":
        return _refusal(405, f"the method {_shown(method)} is not GET", (b"Allow", b"GET"))
    if not _VERSION.fullmatch(http_version) or http_version < b"1.1":
        return _refusal(400, f"HTTP/{_shown(http_version)} has no upgrades: use 1.1")
    host = given.get(b"host", [])
    if len(host) != 1 or not host[0]:
        return _refusal(400, f"there are {len(host)} Host headers: send one" if len(host) != 1 else "Host is empty")
    if b"websocket" not in _elements(given.get(b"upgrade", [])):
        why = "it is none (Upgrade names no websocket): open it as ws:// or wss://"
        return _refusal(426, why, (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))
    if b"upgrade" not in _elements(given.get(b"connection", [])):
        return _refusal(400, "Connection does not name upgrade")
    version = given.get(b"sec-websocket-version", [])
    if version != [VERSION]:
        return _refusal(
            426,
            f"Sec-WebSocket-Version is {_shown(b', '.join(version)) if version else 'missing'}: 13 is what there is",
            (b"Sec-WebSocket-Version", VERSION),
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
        )
    keys = given.get(b"sec-websocket-key", [])
    if len(keys) != 1 or not is_key(keys[0]):
        return _refusal(400, "Sec-WebSocket-Key is not 16 bytes in base64, once")
    if given.get(b"transfer-encoding") or any(length != b"0" for length in given.get(b"content-length", [])):
        return _refusal(400, "the request has a body")
    origins = given.get(b"origin", [])
    if len(origins) > 1:
        return _refusal(400, f"there are {len(origins)} Origin headers")
    asked = _protocols(given.get(b"sec-websocket-protocol", []))
    if asked is None:
        return _refusal(400, f"Sec-WebSocket-Protocol is no list of at most {MAX_SUBPROTOCOLS} different names")
    try:
        # also where they are not used: what does not follow the grammar fails the handshake (section 9.1)
        offers = parse_extensions(b",".join(given.get(b"sec-websocket-extensions", [])).decode("latin-1"))
    except ProtocolError as error:
        return Refusal(400, [], str(error))
    agreed = negotiate(offers, deflate) if deflate is not None else None
    chosen = next((name for name in subprotocols if name in asked), None)
    answer = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", accept_key(keys[0])),
    ]
    if chosen is not None:
        answer.append((b"Sec-WebSocket-Protocol", chosen.encode()))
    if agreed is not None:
        answer.append((b"Sec-WebSocket-Extensions", agreed.answer.encode()))
    return Upgrade(
        headers=answer,
        host=host[0].decode("latin-1"),
        origin=origins[0].decode("latin-1") if origins else None,
        subprotocol=chosen,
        deflate=agreed,
    )


def _elements(values: Iterable[bytes]) -> set[bytes]:
    """The elements of a list in any number of headers, lower case (RFC 9110 section 5.6.1)."""
    return {element.strip(b" \t").lower() for value in values for element in value.split(b",")}


def _protocols(values: Sequence[bytes]) -> set[str] | None:
    """The subprotocols asked for, None if that is no list of different tokens (section 4.1)."""
    names = [name for value in values for element in value.split(b",") if (name := element.strip(b" \t"))]
    if len(names) > MAX_SUBPROTOCOLS or not all(map(_TOKEN.fullmatch, names)) or (values and not names):
        return None
    asked = {name.decode() for name in names}
    return asked if len(asked) == len(names) else None


def is_key(key: bytes) -> bool:
    """Whether it is what Sec-WebSocket-Key has to be, section 4.2.1 point 5."""
    try:
        return len(key) == 24 and len(a2b_base64(key, strict_mode=True)) == 16
    except Base64Error:
        return False


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))


def _refusal(status: int, why: str, *headers: tuple[bytes, bytes]) -> Refusal:
    return Refusal(status, list(headers), f"cannot upgrade to a WebSocket: {why}")
