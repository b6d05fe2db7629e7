"""What a client's connection is made of: the Face that is spoken over it, the Transport that makes its Wires, and the
Loss that ends each. No code of its own; connection.py drives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from netd.errors import NetdError

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from netd.client.state import Counters


@dataclass(frozen=True)
class Loss:
    """Why a connection ended."""

    reason: str
    clean: bool = False
    """The peer said that no more comes, between two frames."""
    ends: bool = False
    """Connecting again would not help, or is not wanted."""
    error: NetdError | None = None
    """What the users of a client that ends are told; None: it ended in peace."""
    least: float | None = None
    """Seconds the peer asks us to stay away."""


class Face(Protocol):
    """What is spoken over a connection."""

    ready: bool
    """Whether the queue may go out."""
    heartbeat: float | None
    """Seconds between pings."""
    silence: float | None
    """Seconds without a byte after which the peer counts as gone."""
    renews: float
    """When (trio's clock) `renew` is to be called; inf: not."""

    async def prepare(self) -> None: ...  # whatever it takes to have an opening
    async def renew(self) -> None: ...  # what would not last
    def opening(self) -> list[bytes]: ...  # payloads that begin a connection
    def ping(self) -> bytes: ...
    def received(self, payloads: list[bytes]) -> None: ...
    def lost(self, loss: Loss) -> None: ...
    def closed(self, error: NetdError | None) -> None: ...


class Ended(Exception):
    """What `Wire.receive` raises when nothing more comes."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss.reason)
        self.loss = loss


class Wire(Protocol):
    """One connection that lives: whole payloads, both ways. One task sends, one receives; both may be cancelled, and
    the wire cannot be used any more then.
    """

    opened: float
    """When it was made."""
    heard: float
    """When something last arrived."""
    wake: Callable[[], None]
    """To be called when the wire itself has something to send."""
    discarding: bool
    """Set when nobody is interested any more in what arrives, only in its end."""

    @property
    def unsent(self) -> bool: ...  # `send` has something to do without being given anything
    async def send(self, framed: list[bytes]) -> None: ...  # until the kernel has all
    def send_nowait(self, framed: list[bytes]) -> None: ...  # what it can at once, the rest with the next `send`
    async def receive(self) -> list[bytes]: ...  # at least one payload, or Ended, or as what the network raises
    async def say_goodbye(self) -> None: ...  # nothing more comes from us
    def close(self) -> None: ...  # at once


class Transport(Protocol):
    """How wires are made to one peer."""

    prepares: bool
    """Whether `dial` has the face prepared."""
    otherwise: str
    """What to ask a person whose peer does not speak operations."""
    unanswered: str
    """What to ask one whose peer does not answer a hello."""
    pushes: bool
    """Whether its wires can `send_nowait`."""

    @property
    def address(self) -> object: ...  # for people: what str() of it gives
    def frame(self, payload: bytes) -> bytes: ...  # as it is queued. ProtocolError if it is too long
    async def dial(self, nursery: trio.Nursery, counters: Counters, face: Face) -> Wire: ...  # or a NetdError
    def opening(self) -> list[bytes]: ...  # what a connection begins with, whatever is spoken then
    def missing(self, wire: Wire) -> str | None: ...  # what a peer may miss that hangs up without a word
