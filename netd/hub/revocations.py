"""Signed tokens that count no more before they expire: by their id (jti), or by whom they are for (sub). Pure.

Rules:
- one of a `sub` is of every token that was issued (iat) up to that moment, or does not say when: a token issued later
  is good again, so that somebody can log in anew;
- each is kept for as long as it is asked to be, which should be until the tokens would have expired;
- there are at most `limit`. What is more is refused: none is forgotten before its time, or a token would be good again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from netd.errors import Denied, NetdError, TooBusy
from netd.wire.messages import MAX_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.grants import Grant

Kind = Literal["jti", "sub"]


class Revocation(Struct, frozen=True):
    """`since` is when it was made, `until` when it is forgotten; seconds since the epoch."""

    kind: Kind
    value: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    since: float
    until: float

    def covers(self, grant: Grant) -> bool:
        """Whether it is of this token."""
        claims = grant.claims
        if claims is None:
            return False
        if self.kind == "jti":
            return claims.jti == self.value
        return claims.sub == self.value and (claims.iat is None or claims.iat <= self.since)


class Revocations:
    """All of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[tuple[str, str], Revocation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Revocation]:
        """The one that is forgotten first comes first."""
        return sorted(self._known.values(), key=lambda each: (each.until, each.kind, each.value))

    def add(self, kind: Kind, value: str, now: float, seconds: float) -> Revocation:
        """Revoke. One that is there already is as new, and kept for no shorter. TooBusy: there are too many."""
        self.sweep(now)
        before = self._known.get((kind, value))
        if before is None and len(self._known) >= self.limit:
            raise TooBusy(f"cannot revoke: there are {self.limit} revocations already (hub.max_revocations)")
        until = now + seconds if before is None else max(before.until, now + seconds)
        made = self._known[kind, value] = Revocation(kind, value, now, until)
        return made

    def take(self, made: Revocation) -> bool:
        """One that was made elsewhere. False: this says nothing new, or there are too many."""
        before = self._known.get((made.kind, made.value))
        if before is not None:
            if made.since <= before.since and made.until <= before.until:
                return False
            made = Revocation(made.kind, made.value, max(made.since, before.since), max(made.until, before.until))
        elif len(self._known) >= self.limit:
            return False
        self._known[made.kind, made.value] = made
        return True

    def check(self, grant: Grant, now: float) -> None:
        """Raise Denied for a token that was revoked."""
        claims = grant.claims
        if claims is None or not self._known:
            return
        for kind, value in (("jti", claims.jti), ("sub", claims.sub)):
            found = None if value is None else self._known.get((kind, value))
            if found is not None and now < found.until and found.covers(grant):
                raise Denied(f"cannot accept the token: it was revoked ({kind})")

    def sweep(self, now: float) -> None:
        """Forget those whose time is over."""
        for key in [key for key, each in self._known.items() if each.until <= now]:
            del self._known[key]

    def dump(self) -> bytes:
        """For `load`: JSON."""
        return msgspec.json.encode(self.all())

    def load(self, data: bytes) -> None:
        """Take up what `dump` gave, besides what there is. NetdError for anything else."""
        try:
            found: Iterable[Revocation] = msgspec.json.decode(data, type=list[Revocation])
        except (ValueError, RecursionError) as error:
            raise NetdError(f"cannot read the revocations: {str(error)[:200]}") from None
        for each in found:
            self._known.setdefault((each.kind, each.value), each)
