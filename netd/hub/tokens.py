"""Tokens: what a client shows -> what it may do. Static ones, from the configuration; signed ones come later. Pure.

Rules:
- secrets are kept as SHA-256 digests and compared in constant time, all of them each time;
- the secrets that stand in files are read by whoever builds the hub: `secret_files` says which, and `Tokens` is given
  what they hold.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from netd.errors import ConfigError, ConfigProblem, Denied
from netd.hub.config import MIN_SECRET

if TYPE_CHECKING:
    from pathlib import Path

    from netd.hub.config import HubConfig, Token


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What a token permits. `token` is its name, None for who has shown none; `path` is where it is configured."""

    token: str | None = None
    path: str = ""
    digest: bytes = b""
    operations: frozenset[str] = frozenset()
    """Operations of no channel: direct, broadcast, clients, application."""
    names: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    """By operation (subscribe, publish, presence, history), the channels it may be done to."""
    beginnings: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    """The same by the beginning of a channel's name."""
    tags: Mapping[str, str] = field(default_factory=dict)

    def permits(self, operation: str, channel: bytes | None) -> bool:
        """Whether it permits an operation, on a channel where it has one."""
        if channel is None:
            return operation in self.operations
        return channel in self.names.get(operation, ()) or channel.startswith(self.beginnings.get(operation, ()))


ANONYMOUS = Grant()


def secret_files(config: HubConfig) -> dict[str, Path]:
    """Token name -> the file its secret has to be read from."""
    return {token.name: token.file for token in config.token if token.file is not None}


class Tokens:
    """The tokens of one configuration.

    `secrets` has, by token name, the text of every file that `secret_files` names. Raises ConfigError for one that is
    missing or too short, or that two tokens share.
    """

    def __init__(self, config: HubConfig, secrets: Mapping[str, str] = MappingProxyType({})) -> None:
        problems: list[ConfigProblem] = []
        self._grants: dict[bytes, Grant] = {}
        for index, token in enumerate(config.token):
            path = f"hub.token.{index}"
            secret = secrets.get(token.name, "").strip() if token.secret is None else token.secret.get_secret_value()
            grant = _grant(token, path, digest(secret))
            if len(secret) < MIN_SECRET:
                why = f"its file was not read or holds fewer than {MIN_SECRET} characters"
                problems.append(ConfigProblem(path, f"cannot use the token {token.name!r}: {why}"))
            elif (other := self._grants.get(grant.digest)) is not None:
                why = f"it has the secret of {other.token!r}"
                problems.append(ConfigProblem(path, f"cannot use the token {token.name!r}: {why}"))
            self._grants[grant.digest] = grant
        if problems:
            raise ConfigError(problems)

    def resolve(self, text: str) -> Grant:
        """What the token `text` permits. Raises Denied for one that is unknown."""
        shown = digest(text)
        found = None
        for known, grant in self._grants.items():
            if hmac.compare_digest(known, shown):
                found = grant
        if found is None:
            raise Denied("cannot accept the token: it is none of those configured (hub.token)")
        return found

    def grant_of(self, name: str) -> Grant | None:
        """What the token of this name permits, for sessions that have it without showing it; None: there is none."""
        return next((grant for grant in self._grants.values() if grant.token == name), None)

    def renew(self, grant: Grant) -> Grant:
        """What a grant of an earlier configuration is worth in this one: nothing, if its secret is gone."""
        return self._grants.get(grant.digest, ANONYMOUS)


def digest(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _grant(token: Token, path: str, hashed: bytes) -> Grant:
    names: dict[str, frozenset[bytes]] = {}
    beginnings: dict[str, tuple[bytes, ...]] = {}
    for operation in ("subscribe", "publish", "presence", "history"):
        patterns = [pattern.encode() for pattern in getattr(token, operation)]
        names[operation] = frozenset(pattern for pattern in patterns if not pattern.endswith(b"*"))
        beginnings[operation] = tuple(pattern[:-1] for pattern in patterns if pattern.endswith(b"*"))
    operations = {operation for operation in ("direct", "broadcast", "clients") if getattr(token, operation)}
    return Grant(
        token=token.name,
        path=path,
        digest=hashed,
        operations=frozenset(operations | {"application"}),
        names=names,
        beginnings=beginnings,
        tags=MappingProxyType(dict(token.tags)),
    )
