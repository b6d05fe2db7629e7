"""Sessions that ended and may be resumed: what the secret of a welcome gives back. Pure: `now` is an argument.

Rules:
- a secret is "SESSION.RANDOM", of which only a digest is kept; it is good once, and for `seconds` after the end;
- at most `limit` ended sessions are remembered; the one that ended first is forgotten first.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netd.hub.grants import digest

if TYPE_CHECKING:
    from netd.hub.session import Session


@dataclass(frozen=True, slots=True)
class Stay:
    """What is remembered of a session. `until` is when it is forgotten.

    `tags` are its own: others were for the handshake and the token that came with it, which nobody has shown again.
    """

    id: str
    name: str | None
    tags: Mapping[str, str]
    digest: bytes
    until: float
    application_token: bytes | None = None
    """What the application had set; not what it permitted if it was a token of the hub's: nobody has shown it again."""


def new_secret(session: Session) -> str:
    """A secret for a welcome; the session remembers its digest, and no earlier one."""
    secret = f"{session.id}.{secrets.token_urlsafe(24)}"
    session.resume = digest(secret)
    return secret


def opens(secret: str, kept: bytes | None) -> bool:
    """Whether this secret is the one whose digest was kept."""
    return kept is not None and hmac.compare_digest(kept, digest(secret))


class Stays:
    """The sessions that ended."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._stays: OrderedDict[str, Stay] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stays)

    def keep(self, session: Session, now: float, seconds: float) -> None:
        """A session has ended; remember it if it may be resumed."""
        if session.resume is None or not seconds:
            return
        about = session.id, session.name, session.own_tags
        self._stays[session.id] = Stay(*about, session.resume, now + seconds, session.application_token)
        self._stays.move_to_end(session.id)
        while len(self._stays) > self.limit:
            self._stays.popitem(last=False)

    def claim(self, secret: str, now: float) -> Stay | None:
        """The session that this secret resumes, and no longer does after this; None for one that resumes nothing."""
        stay = self._stays.get(secret.partition(".")[0])
        if stay is None or stay.until <= now or not opens(secret, stay.digest):
            return None
        del self._stays[stay.id]
        return stay

    def sweep(self, now: float) -> None:
        """Forget those whose time is over."""
        while self._stays and next(iter(self._stays.values())).until <= now:
            self._stays.popitem(last=False)
