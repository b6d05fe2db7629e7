"""What a token permits, however it was shown: a Grant. Pure.

Rules:
- patterns are sorted once, into names and beginnings, so that asking costs a look-up and one `startswith`;
- of a secret, a token or a key only a SHA-256 digest is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated

from msgspec import Meta, Struct

from netd.hub.config import MAX_PATTERNS, Permitted
from netd.wire.messages import MAX_CHANNEL, MAX_NAME, MAX_TAGS

CHANNEL_OPERATIONS = ("subscribe", "publish", "presence", "history")
OPERATIONS = ("direct", "broadcast", "clients")
NEVER = math.inf

_Time = Annotated[float, Meta(ge=0, le=1e11)]
_Word = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Text = Annotated[str, Meta(max_length=1024)]
_Patterns = Annotated[list[Annotated[str, Meta(max_length=MAX_CHANNEL + 1)]], Meta(max_length=MAX_PATTERNS)]
_Tag = Annotated[str, Meta(max_length=MAX_NAME)]


class Permits(Struct, frozen=True, forbid_unknown_fields=True):
    """The claim `netd`."""

    subscribe: _Patterns = []
    publish: _Patterns = []
    presence: _Patterns = []
    history: _Patterns = []
    direct: bool = False
    broadcast: bool = False
    clients: bool = False
    tags: Annotated[dict[_Tag, _Tag], Meta(max_length=MAX_TAGS)] = {}


class Claims(Struct, frozen=True):
    """What counts of a token, as far as it has it."""

    sub: _Word
    exp: _Time | None = None
    nbf: _Time | None = None
    iat: _Time | None = None
    aud: _Text | Annotated[list[_Text], Meta(max_length=64)] | None = None
    iss: _Text | None = None
    jti: _Word | None = None
    netd: Permits = Permits()


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What a token permits. `token` is what it is called, None for who has shown none; `path` is where it is said."""

    token: str | None = None
    path: str = ""
    digest: bytes = b""
    """Of the secret; of a signed token, of the key that it is verified with."""
    operations: frozenset[str] = frozenset()
    """Operations of no channel: direct, broadcast, clients, application."""
    names: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    """By operation (subscribe, publish, presence, history), the channels it may be done to."""
    beginnings: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """The same by the beginning of a channel's name."""
    tags: Mapping[str, str] = field(default_factory=dict)
    expires: float = NEVER
    """Seconds since the epoch from which it permits nothing any more."""
    claims: Claims | None = None
    """Of a signed token: what its claims were. The token itself is not kept."""
    given: bool = False
    """The application has set it for the session, which has not shown it itself (orders.set_token)."""
    lost: str = ""
    """Of who has no token any more: which it was and why, for refusals ("token 'ed:alice': it has expired")."""

    @property
    def subject(self) -> str | None:
        """Whom a signed token is for."""
        return None if self.claims is None else self.claims.sub

    def permits(self, operation: str, channel: bytes | None) -> bool:
        """Whether it permits an operation, on a channel where it has one."""
        if channel is None:
            return operation in self.operations
        return channel in self.names.get(operation, ()) or channel.startswith(self.beginnings.get(operation, ()))

    def covers(self, operation: str, beginning: bytes) -> bool:
        """Whether it permits an operation on every channel whose name begins so."""
        return beginning.startswith(self.beginnings.get(operation, ()))


ANONYMOUS = Grant()


def grant(
    sources: Iterable[Permitted | Permits],
    *,
    token: str,
    path: str,
    digest: bytes,
    expires: float = NEVER,
    claims: Claims | None = None,
) -> Grant:
    """What these permit together: entries of the configuration, and claims. Of tags with one key, that of the first
    counts."""
    sources = list(sources)
    names: dict[str, frozenset[bytes]] = {}
    beginnings: dict[str, tuple[bytes, ...]] = {}
    for operation in CHANNEL_OPERATIONS:
        patterns = [pattern.encode() for source in sources for pattern in getattr(source, operation)]
        names[operation] = frozenset(pattern for pattern in patterns if not pattern.endswith(b"*"))
        beginnings[operation] = tuple(pattern[:-1] for pattern in patterns if pattern.endswith(b"*"))
    operations = {operation for operation in OPERATIONS if any(getattr(source, operation) for source in sources)}
    tags: dict[str, str] = {}
    for source in reversed(sources):
        tags.update(source.tags)
    return Grant(
        token=token,
        path=path,
        digest=digest,
        operations=frozenset(operations | {"application"}),
        names=names,
        beginnings=beginnings,
        tags=MappingProxyType(tags),
        expires=expires,
        claims=claims,
    )


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
