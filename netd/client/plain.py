"""What is spoken over a connection that has no operations: every payload is a value for the user.

Left out: what a payload's value is (framed.py, broker_plain.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from netd.client.inbox import Inbox

if TYPE_CHECKING:
    from netd.client.inbox import Account
    from netd.client.seams import Loss
    from netd.errors import NetdError


class PlainFace:
    """A connection's face that needs no greeting and keeps nothing from one connection to the next."""

    ready = True
    heartbeat: float | None = None  # only what the user asked for
    silence: float | None = None
    renews = math.inf

    def __init__(self, account: Account) -> None:
        self.inbox: Inbox[Any] = Inbox(account)

    async def prepare(self) -> None:
        pass

    async def renew(self) -> None:
        pass

    def opening(self) -> list[bytes]:
        return []

    def ping(self) -> bytes:
        raise NotImplementedError  # there is no heartbeat

    def received(self, payloads: list[bytes]) -> None:
        raise NotImplementedError

    def lost(self, loss: Loss) -> None:
        pass

    def closed(self, error: NetdError | None) -> None:
        self.inbox.end(error)
