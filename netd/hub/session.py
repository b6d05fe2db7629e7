"""A session: one client's stay in the hub, whatever its transport. Pure.

Rules:
- a session is made by its transport, which gives it an outbox, an encoder (what it speaks) and a link (how its
  connection is ended, paused and looked at), and is then opened in the hub;
- idle sessions are many: what is empty is None or shared, and nothing is stored that can be asked of the link;
- encoders are shared objects: a message for many sessions is encoded once for each encoder.
"""

from __future__ import annotations

import uuid
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from netd.errors import ProtocolError
from netd.hub.outbox import NORMAL_PRIORITY, Chunk, Outbox, Shared
from netd.hub.tokens import ANONYMOUS, Grant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netd.budget import Bucket
    from netd.wire.messages import Event

NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Encoder(Protocol):
    """What a session speaks."""

    def encode(self, event: Event) -> bytes | None:
        """The event as complete bytes for the wire; None: this transport has no way to say it."""


class Link(Protocol):
    """A session's connection, as much of it as the hub and its users need."""

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        """Say goodbye (a `CloseCode`), send what waits within a bounded time, and end the connection."""

    def pause(self) -> None:
        """Read nothing from the client until `resume`."""

    def resume(self) -> None: ...

    @property
    def carrier(self) -> Any:
        """What the tracer needs of this connection (netd.net.paths.path.Carrier); None: it cannot be traced."""

    @property
    def socket(self) -> Any:
        """The connection's socket, for socket options; None: it has none of its own."""

    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def tls(self) -> bool: ...


class Session:
    """One client's stay. `opened` is in seconds since the epoch, `address` as people write it ("192.0.2.7:5000")."""

    __slots__ = (
        "address",
        "buckets",
        "channels",
        "closing",
        "encoder",
        "grants",
        "heartbeat",
        "id",
        "internal",
        "link",
        "listener",
        "messages_in",
        "name",
        "opened",
        "outbox",
        "placed",
        "refused",
        "resume",
        "tags",
        "transport",
    )

    def __init__(
        self,
        *,
        encoder: Encoder,
        outbox: Outbox,
        link: Link,
        transport: str = "",
        listener: str = "",
        address: str = "",
        id: str | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        grants: Grant = ANONYMOUS,
        opened: float = 0.0,
        internal: bool = False,
    ) -> None:
        self.id = id or str(uuid.uuid4())
        self.encoder = encoder
        self.outbox = outbox
        self.link = link
        self.transport = transport
        self.listener = listener
        self.address = address
        self.name = name
        self.tags: Mapping[str, str] = tags or NO_TAGS
        self.grants = grants
        """What its token permits; `hub.handle` sets it from the client's hello, a transport may before."""
        self.opened = opened
        """Set by `hub.open` when it is 0."""
        self.heartbeat = 0.0
        """Seconds between the transport's keepalives, for its welcome; 0: it has none."""
        self.internal = internal
        """The daemon's own (a tail of the control API): in no list, no presence and no broadcast, found by nobody."""
        self.channels: set[bytes] | None = None
        self.placed: set[bytes] | None = None
        """Those of `channels` in which the server side put it: no loss of a permission takes it out of them."""
        self.messages_in = 0
        self.refused = 0
        self.buckets: dict[str, Bucket] | None = None
        """By limit: "" for operations, "bytes", and ":" + its name for a namespace's rate."""
        self.resume: bytes | None = None
        """What the secret that resumes it hashes to."""
        self.closing = False

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.transport} {self.address}>"

    @property
    def token(self) -> str | None:
        """The name of the token it showed."""
        return self.grants.token

    @property
    def messages_out(self) -> int:
        """Messages that its outbox took in."""
        return self.outbox.messages

    @property
    def dropped(self) -> int:
        """Messages that its outbox dropped."""
        return self.outbox.dropped

    def send(self, event: Event, priority: int = NORMAL_PRIORITY, ephemeral: bool = False) -> bool:
        """Encode and push. False: dropped, or this transport cannot say it."""
        data = encoded(self.encoder, event)
        return bool(data) and self.outbox.push(data, priority, ephemeral)  # type: ignore[arg-type]


def encoded(encoder: Encoder, event: Event) -> bytes | None:
    """The event's bytes, None where this encoder cannot say it: an encoder of a user's must not fail a publisher."""
    try:
        return encoder.encode(event)
    except (ProtocolError, msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def spread(
    sessions: Iterable[Session],
    event: Event,
    priority: int = NORMAL_PRIORITY,
    ephemeral: bool = False,
    but: Session | None = None,
) -> int:
    """Send an event to every session but one, encoded once for each encoder. Returns how many outboxes took it in."""
    plain = priority == NORMAL_PRIORITY and not ephemeral
    known: dict[int, bytes] = {}
    encoder: Encoder | None = None
    data = b""
    alone = Shared()
    size = reached = 0
    for session in sessions:
        if session.encoder is not encoder:
            encoder = session.encoder
            if id(encoder) not in known:
                encoding = encoded(encoder, event) or b""
                known[id(encoder)] = Chunk.of(encoding, ephemeral=True) if ephemeral else encoding
            data = known[id(encoder)]
            # where nothing else waits, it waits in this one list for everybody: a list for each, a thousand at once,
            # would set off the garbage collector with every message (up to a fifth of all time)
            alone = Shared((data,))
            size = len(data)
        if not size or session is but:
            continue
        # The first lines of Outbox.push stand here once more: a call for each subscriber would cost as much as all
        # the rest of a publication to a thousand of them.
        outbox = session.outbox
        waiting = outbox.size
        if plain and waiting + size <= outbox.rules.high:
            if not waiting:
                outbox.chunks = alone
                outbox.size = size
                outbox.mark(outbox)
            else:
                chunks = outbox.chunks
                if chunks is None:
                    outbox.chunks = alone
                elif isinstance(chunks, Shared):
                    outbox.chunks = [*chunks, data]
                else:
                    chunks.append(data)
                outbox.size = waiting + size
            reached += 1
        elif outbox.push(data, priority, ephemeral):
            reached += 1
    return reached
