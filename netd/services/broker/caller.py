"""Who makes an HTTP request: what permissions look at, and how much it may ask for. Pure.

Rules:
- a caller is no session: it is in no list, hears nothing and has no id, so what it publishes has no `from`;
- the budget of an address is drawn before its token is looked at, which may take a signature; that of a token, and of a
  namespace (`rate`), afterwards. A token has one budget however many addresses show it;
- who is over it is told in how many seconds there will be room.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from netd.budget import Buckets
from netd.errors import ControlError
from netd.hub.grants import ANONYMOUS

if TYPE_CHECKING:
    from netd.hub.grants import Grant
    from netd.hub.permissions import Realm


class TooMany(ControlError):
    """More than a budget allows. `retry_after` is in seconds."""

    kind = "rate"
    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(message)


class Caller:
    """What is known of one. `key` is what counts as its address."""

    __slots__ = ("address", "closing", "grants", "internal", "key", "refused")

    def __init__(self, address: str, key: str, grants: Grant = ANONYMOUS) -> None:
        self.address = address
        self.key = key
        self.grants = grants
        self.internal = False
        self.closing = False
        self.refused = 0

    @property
    def owner(self) -> str:
        """Whose budget it draws on: its token's, or its address'."""
        grants = self.grants
        if grants.token is None:
            return f"address {self.key}"
        return f"token {grants.token} {grants.subject or ''}"


class Budgets:
    """Requests, and publishes of a namespace, by whoever makes them. The quietest are forgotten (budget.Buckets)."""

    def __init__(self) -> None:
        self._requests = Buckets()
        self._publishes = Buckets()

    def request(self, who: str, now: float, rate: float, burst: float) -> None:
        """One request of `who`. Raises TooMany. A rate of 0: no bound."""
        if rate and (wait := self._requests.of(who, now, rate, max(burst, 1.0)).draw(rate)):
            raise TooMany(
                f"cannot serve more than {rate:g} requests a second of one {_kind(who)} (broker.http_rate)", wait
            )

    def publish(self, caller: Caller, realm: Realm, now: float) -> None:
        """One message of a caller for a namespace. Raises TooMany."""
        rate = realm.rules.rate
        if not rate:
            return
        burst = float(realm.rules.burst or rate)
        key = f"{realm.name} {caller.owner}"
        if wait := self._publishes.of(key, now, rate, max(burst, 1.0)).draw(rate):
            realm.refused += 1
            why = f"namespace {realm.name!r} takes {rate:g} messages a second of one {_kind(caller.owner)}"
            raise TooMany(f"cannot publish: {why} {realm.key('rate')}", wait)


def _kind(who: str) -> str:
    return who.partition(" ")[0]
