"""The client for browsers, as it is served: netd.js and its types, read once."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

_TYPES = {"netd.js": b"text/javascript; charset=utf-8", "netd.d.ts": b"application/typescript; charset=utf-8"}


class File(NamedTuple):
    """One file. `headers` are those of its answer, 304 included."""

    body: bytes
    tag: bytes
    headers: list[tuple[bytes, bytes]]


def load() -> dict[str, File]:
    """Every file that is there, by name. Blocks."""
    found = {}
    folder = files("netd") / "client" / "browser"
    for name, kind in _TYPES.items():
        file = folder / name
        if file.is_file():
            body = file.read_bytes()
            tag = b'"%b"' % sha256(body).hexdigest()[:32].encode("ascii")
            headers = [
                (b"content-type", kind),
                (b"etag", tag),
                (b"cache-control", b"public, max-age=0, must-revalidate"),
                (b"x-content-type-options", b"nosniff"),
            ]
            found[name] = File(body, tag, headers)
    return found


def is_known(tag: bytes, if_none_match: bytes) -> bool:
    """Whether a client has this version already (RFC 9110 section 13.1.2: compared weakly)."""
    return any(
        each == b"*" or each.removeprefix(b"W/") == tag
        for each in (one.strip(b" \t") for one in if_none_match.split(b","))
    )
