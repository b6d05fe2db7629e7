"""What was refused, an operation or a WebSocket's upgrade, as an error with a sentence: who refused, and by which rule.
Pure. Of an upgrade:

401, 403, 404 ...     asking again would bring the same answer: RequestFailed ends the client
429, 5xx              it may have room later: DaemonUnreachable, with what Retry-After asks for
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from netd.client.state import MOST_AWAY
from netd.errors import DaemonUnreachable, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.wire.messages import Error

_KINDS = {400: "invalid", 401: "denied", 403: "denied", 404: "not-found", 421: "denied", 426: "unsupported"}
_LONGEST = 300
"""Characters of what the peer says."""
_STATUS = {
    "invalid": 400,
    "denied": 403,
    "not-found": 404,
    "too-large": 413,
    "rate": 429,
    "unsupported": 501,
    "too-many": 503,
}
"""Of the daemon's codes, what HTTP would say."""


def refused(error: Error) -> RequestFailed:
    """The error for the daemon's answer to an operation."""
    return RequestFailed(error.code, error.message, status=_STATUS.get(error.code, 500))


def refused_upgrade(
    url: object, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes | None
) -> RequestFailed | DaemonUnreachable:
    """The error for an answer that is no 101."""
    known = {bytes(name).lower(): bytes(value).decode("latin-1") for name, value in headers}
    kind, message = _said(body or b"")
    where = known.get(b"location")
    if 300 <= status < 400 and where is not None:
        path, query, _ = where.partition("?")  # which is our own as a rule, and may have a token
        message = f"it redirects to {_shown(path)}{'?...' if query else ''}: connect there"
    sentence = f"cannot connect to {url}: it answers {status}" + (f": {message}" if message else "")
    if status == 429 or status >= 500:
        error = DaemonUnreachable(sentence)
        error.retry_after = _seconds(known.get(b"retry-after"))
        return error
    if not message and status == 404:
        sentence += "; is this the path of operations (/ws)?"
    if not message and status == 200:
        sentence += "; it does not speak WebSocket there"
    return RequestFailed(kind or _KINDS.get(status, "invalid"), sentence, status=status)


def _said(body: bytes) -> tuple[str, str]:
    """The daemon's error: its kind and its message; of somebody else, at most some text."""
    try:
        answer = json.loads(body)
        error = answer["error"] if isinstance(answer, dict) else None
        if isinstance(error, dict):
            return _shown(str(error.get("kind", ""))), _shown(str(error.get("message", "")))
    except (ValueError, KeyError, RecursionError):
        pass
    text = body[: 4 * _LONGEST].decode(errors="replace").strip()
    return "", "" if text.startswith("<") else _shown(text)


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_LONGEST])


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds (RFC 9110 section 10.2.3); a date in it is nobody's habit, and means None."""
    return min(float(value), MOST_AWAY) if value is not None and value.isascii() and value.isdigit() else None
