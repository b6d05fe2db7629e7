"""A session: one client's stay in the hub, whatever its transport. Pure.

Rules:
- a session is made by its transport, which gives it an outbox, an encoder (what it speaks) and a link (how its
  connection is ended, paused and looked at), and is then opened in the hub;
- idle sessions are many: what is empty is None or shared, and nothing is stored that can be asked of the link;
- tags come from three places, which are kept apart: what it says of itself (`own_tags`), what was vouched for
  (`fixed_tags`: a signed handshake) and what its token says. Of one key the token's wins, then what was vouched for;
- a name and own tags are claims: two sessions may have the same ones, and nobody has checked either;
- encoders are shared objects: a message for many sessions is encoded once for each encoder.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from netd.hub.batch import Batch
from netd.hub.encoding import Encoder, encoded
from netd.hub.grants import ANONYMOUS, Grant
from netd.hub.outbox import NORMAL_PRIORITY, Chunk, Outbox, Shared
from netd.wire.messages import MAX_TAGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netd.budget import Bucket
    from netd.hub.outbox import Flusher, OutboxRules
    from netd.wire.messages import Event

__all__ = ["NO_TAGS", "Encoder", "Link", "Session", "encoded", "offer", "spread"]

NO_TAGS: Mapping[str, str] = MappingProxyType({})
_UUIDS = 128
"""Ids of which the random bytes are fetched at once."""
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


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
        "application_token",
        "buckets",
        "channels",
        "closing",
        "deaf",
        "fixed_tags",
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
        "own_tags",
        "patterns",
        "placed",
        "refused",
        "resume",
        "tags",
        "transport",
    )

    tags: Mapping[str, str]
    """Those that it has: the result of the three kinds. Only `tag` changes it."""
    own_tags: Mapping[str, str]
    fixed_tags: Mapping[str, str]
    grants: Grant
    """What its token permits."""

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
        fixed_tags: Mapping[str, str] | None = None,
        grants: Grant = ANONYMOUS,
        opened: float = 0.0,
        internal: bool = False,
    ) -> None:
        """`tags` are its own, `fixed_tags` were vouched for."""
        self.id = id or _random_uuid()
        self.outbox = outbox
        outbox.encoder = encoder
        self.link = link
        self.transport = transport
        self.listener = listener
        self.address = address
        self.name = name
        if tags or fixed_tags or grants.tags:
            self.tag(tags or NO_TAGS, fixed_tags or NO_TAGS, grants)
        else:
            self.tags = self.own_tags = self.fixed_tags = NO_TAGS
            self.grants = grants
        self.opened = opened
        """Set by `hub.open` when it is 0."""
        self.heartbeat = 0.0
        """Seconds between the transport's keepalives, for its welcome; 0: it has none."""
        self.internal = internal
        """The daemon's own (a tail of the control API): in no list, no presence and no broadcast, found by nobody."""
        self.deaf = False
        """It does not hear what it published itself."""
        self.channels: set[bytes] | None = None
        self.placed: set[bytes] | None = None
        """Those of `channels` in which the server side put it: no loss of a permission takes it out of them."""
        self.patterns = 0
        """How many of `channels` are patterns."""
        self.messages_in = 0
        self.refused = 0
        self.buckets: dict[str, Bucket] | None = None
        """By limit: "" for operations, "bytes", "token" for tokens that it shows, "told" for what it is told once a
        second, and ":" + its name for a namespace's rate."""
        self.resume: bytes | None = None
        """What the secret that resumes it hashes to."""
        self.closing = False
        self.application_token: bytes | None = None
        """What the application has set for it, of whatever kind (at most wire.workers.MAX_APPLICATION_TOKEN bytes)."""

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.transport} {self.address}>"

    def tag(
        self,
        own: Mapping[str, str] | None = None,
        fixed: Mapping[str, str] | None = None,
        grants: Grant | None = None,
    ) -> None:
        """Set its own tags, those vouched for, and what its token permits (None: as they are), and `tags` from them.

        Where there would be more than MAX_TAGS, own ones are left out first, then fixed ones. A session that is open is
        tagged by `Hub.tag`, or it would not be found by its tags.
        """
        if own is not None:
            self.own_tags = own or NO_TAGS
        if fixed is not None:
            self.fixed_tags = fixed or NO_TAGS
        if grants is not None:
            self.grants = grants
        granted = self.grants.tags
        some = self.own_tags or self.fixed_tags or granted
        self.tags = _effective(self.own_tags, self.fixed_tags, granted) if some else NO_TAGS

    @property
    def token(self) -> str | None:
        """The name of the token it showed."""
        return self.grants.token

    @property
    def encoder(self) -> Encoder:
        """What it speaks."""
        return self.outbox.encoder  # type: ignore[no-any-return]

    @encoder.setter
    def encoder(self, encoder: Encoder) -> None:
        self.outbox.encoder = encoder

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


def _random_uuid() -> str:
    """As str(uuid.uuid4()), RFC 9562 section 5.4, in a quarter of its time: the kernel is asked for many at once. For
    any thread: each of the servers of one process may have its own."""
    try:
        text = _random.pop()
    except IndexError:
        random = os.urandom(16 * _UUIDS).hex()
        text = random[:32]
        _random.extend([random[at : at + 32] for at in range(32, len(random), 32)])
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANTS[text[16]]}{text[17:20]}-{text[20:]}"


_random: list[str] = []
"""What no id was made of yet."""
os.register_at_fork(after_in_child=_random.clear)  # a child process is not to give the ids that its parent will


def _effective(*origins: Mapping[str, str]) -> Mapping[str, str]:
    """The tags of one who has these; later ones win. What is all from one place is not copied."""
    some = [tags for tags in origins if tags]
    if len(some) < 2:
        return some[0] if some else NO_TAGS
    found: dict[str, str] = {}
    for tags in reversed(some):
        for key, value in tags.items():
            if key not in found and len(found) < MAX_TAGS:
                found[key] = value
    return MappingProxyType(found)


def offer(sessions: Iterable[Session], event: Event) -> None:
    """Send an ephemeral event to those sessions that have plenty of room for it. Ends none of them (`Outbox.offer`)."""
    known: dict[int, bytes] = {}
    for session in sessions:
        data = known.get(id(session.encoder))
        if data is None:
            data = Chunk.of(encoded(session.encoder, event) or b"", ephemeral=True)
            known[id(session.encoder)] = data
        if data:
            session.outbox.offer(data)


def spread(
    outboxes: Iterable[Outbox],
    event: Event | Batch,
    priority: int = NORMAL_PRIORITY,
    ephemeral: bool = False,
) -> int:
    """Put an event into sessions' outboxes, encoded once for each encoder. Returns how many took it in.

    A batch goes as one chunk where there is room for it, so that no policy would have met any of its messages, or will,
    and no rate parts them; elsewhere one by one. What is counted are its messages.
    """
    normal = priority == NORMAL_PRIORITY
    plain = normal and not ephemeral
    known: dict[int, tuple[bytes, int]] = {}
    reached = 0
    if plain and isinstance(event, Batch) and event.last:
        outboxes, reached = _at_once(list(outboxes), event, known)
        if not outboxes:
            return reached
    encoder: Encoder | None = None
    data = b""
    alone = Shared()
    roomy: OutboxRules | None = None
    flusher: Flusher | None = None
    crowd: list[Outbox] = []
    size = more = 0
    try:
        for outbox in outboxes:
            if outbox.encoder is not encoder:
                reached += _mark(crowd, alone, more)
                crowd = []
                encoder = outbox.encoder
                if id(encoder) not in known:
                    count = 1
                    if isinstance(event, Batch):
                        data, count = event.encoded(encoder)
                    else:
                        data = encoded(encoder, event) or b""
                        if ephemeral:
                            data = Chunk.of(data, ephemeral=True)
                    known[id(encoder)] = data, count - 1
                data, more = known[id(encoder)]
                # where nothing else waits, it waits in this one list for everybody: a list for each, a thousand at
                # once, would set off the garbage collector with every message (up to a fifth of all time)
                alone = Shared((data,))
                size = len(data)
                roomy = None
            if not size:
                if more:  # it cannot say them in one chunk
                    assert isinstance(event, Batch)
                    reached += event.push(outbox)
                continue
            # The first lines of Outbox.push stand here once more: a call for each subscriber would cost as much as all
            # the rest of a publication to a thousand of them.
            waiting = outbox.size
            if not waiting and outbox.rules is roomy and outbox.flusher is flusher:  # what most of a crowd are
                outbox.chunks = alone
                outbox.size = size
                crowd.append(outbox)
            elif more and (outbox.rules.rate or not outbox.joins or waiting + size > outbox.rules.plenty):
                assert isinstance(event, Batch)
                reached += event.push(outbox)
            elif (plain or (normal and outbox.rules.policy == "disconnect")) and waiting + size <= outbox.rules.high:
                if not waiting:
                    outbox.chunks = alone
                    outbox.size = size
                    outbox.flusher.mark(outbox)
                    if not outbox.rules.rate:
                        reached += _mark(crowd, alone, more)
                        crowd = []
                        roomy, flusher = outbox.rules, outbox.flusher
                else:
                    chunks = outbox.chunks
                    if chunks is None:
                        outbox.chunks = alone
                    elif isinstance(chunks, Shared):
                        outbox.chunks = [*chunks, data]
                    else:
                        chunks.append(data)
                    outbox.size = waiting + size
                outbox.left += more
                reached += more + 1
            elif outbox.push(data, priority, ephemeral, more + 1):
                reached += more + 1
    finally:  # what waits by now goes out, whatever an outbox' owner has raised
        reached += _mark(crowd, alone, more)
    return reached


def _at_once(outboxes: list[Outbox], batch: Batch, known: dict[int, tuple[bytes, int]]) -> tuple[list[Outbox], int]:
    """Send a batch to those that it may be sent to now. Returns the others, and how many messages have gone."""
    if not outboxes:
        return outboxes, 0
    first = outboxes[0]
    data, count = batch.encoded(first.encoder)
    known[id(first.encoder)] = data, count - 1
    if not data or len(data) > first.rules.high or first.rules.rate or not first.joins:
        return outboxes, 0
    others = first.flusher.send_at_once(outboxes, data, count)
    return others, (len(outboxes) - len(others)) * count


def _mark(crowd: list[Outbox], alone: Shared, more: int) -> int:
    """`alone` holds so many messages more than one."""
    if crowd:
        if more:
            for outbox in crowd:
                outbox.left += more
        crowd[0].flusher.mark_crowd(crowd, alone)
    return len(crowd) * (more + 1)
