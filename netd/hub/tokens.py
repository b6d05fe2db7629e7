"""Tokens: what a client shows -> what it may do. Static ones, from the configuration; signed.py has the others. Pure.

Rules:
- secrets are kept as SHA-256 digests and compared in constant time, all of them each time;
- what is no static token and has the form of a signed one is verified with the keys, if there are any;
- the secrets and keys that stand in files are read by whoever builds the hub: `secret_files` and `key_files` say which,
  and `Tokens` is given what they hold.
"""

from __future__ import annotations

import hmac
import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from netd.errors import ConfigError, ConfigProblem, Denied
from netd.hub.config import MIN_SECRET
from netd.hub.grants import ANONYMOUS, Grant, digest, grant
from netd.hub.signed import Keys, looks_signed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from netd.hub.config import HubConfig

_NONE: Mapping[str, str] = MappingProxyType({})


def secret_files(config: HubConfig) -> dict[str, Path]:
    """Token name -> the file its secret has to be read from."""
    return {token.name: token.file for token in config.token if token.file is not None}


class Tokens:
    """The tokens of one configuration.

    `secrets` has, by token name, the text of every file that `secret_files` names, and `keys` that of `key_files`.
    Raises ConfigError for one that is missing or too short, or that two tokens share.
    """

    def __init__(self, config: HubConfig, secrets: Mapping[str, str] = _NONE, keys: Mapping[str, str] = _NONE) -> None:
        problems: list[ConfigProblem] = []
        self._grants: dict[bytes, Grant] = {}
        for index, token in enumerate(config.token):
            path = f"hub.token.{index}"
            secret = secrets.get(token.name, "").strip() if token.secret is None else token.secret.get_secret_value()
            made = grant([token], token=token.name, path=path, digest=digest(secret))
            if len(secret) < MIN_SECRET:
                why = f"its file was not read or holds fewer than {MIN_SECRET} characters"
                problems.append(ConfigProblem(path, f"cannot use the token {token.name!r}: {why}"))
            elif (other := self._grants.get(made.digest)) is not None:
                why = f"it has the secret of {other.token!r}"
                problems.append(ConfigProblem(path, f"cannot use the token {token.name!r}: {why}"))
            self._grants[made.digest] = made
        try:
            self._keys = Keys(config, keys)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    def resolve(self, text: str, now: float = math.inf) -> Grant:
        """What the token `text` permits. Raises Denied for one that is unknown, or is not valid `now`."""
        shown = digest(text)
        found = None
        for known, each in self._grants.items():
            if hmac.compare_digest(known, shown):
                found = each
        if found is None:
            if self._keys and looks_signed(text):
                return self._keys.verify(text, now)
            raise Denied("cannot accept the token: it is none of those configured (hub.token)")
        return found

    def grant_of(self, name: str) -> Grant | None:
        """What the token of this name permits, for sessions that have it without showing it; None: there is none."""
        return next((each for each in self._grants.values() if each.token == name), None)

    def renew(self, former: Grant, now: float = math.inf) -> Grant:
        """What a grant of an earlier configuration is worth in this one: nothing, if its secret or key is gone."""
        if former.claims is not None:
            return self._keys.renew(former, now) or ANONYMOUS
        return self._grants.get(former.digest, ANONYMOUS)


__all__ = ["ANONYMOUS", "Grant", "Tokens", "digest", "secret_files"]
