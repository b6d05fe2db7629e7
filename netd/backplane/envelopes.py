"""What daemons say to each other through Redis: MessagePack, one array each. Pure.

    on the lane of all:   ["said", node, sequence, channel, data, ...]     a message of a channel
                          ["began", node, channels]                        they have another epoch
                          ["post"...] ["kick"...] ["do"...]                for sessions; answered by ["count"...]
                          ["seek"...]                                      for nodes; answered by ["sought"...]
                          ["news"...]                                      somebody came to a channel, or left it
                          ["revoked"...] ["alive"...] ["gone"...]
    on a node's own lane: ["count", node, ask, count] ["sought", node, ask, channels]

In front of each stands a line: "EPOCH TAB OFFSET" of what Redis has numbered, or nothing.

Rules:
- whoever can write to this Redis can say anything, so all of it is checked as a client's requests are; what cannot be
  read is an error of one kind (ValueError), for the caller to count.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from netd.hub.revocations import Kind  # noqa: TC001  # msgspec reads the annotations
from netd.wire import plain
from netd.wire.messages import MAX_CHANNEL, MAX_NAME, MAX_REASON
from netd.wire.workers import MAX_APPLICATION_TOKEN

MAX_SOUGHT = 1001
"""Channels that a node tells another of at once."""
MAX_BEGUN = 500
"""Channels of which it is told at once that they have another epoch."""

_Node: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
_Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=2 * MAX_NAME + 5)]
_Channel: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=MAX_CHANNEL)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Priority: TypeAlias = Annotated[int, Meta(ge=0, le=255)]


class _Envelope(Struct, array_like=True, frozen=True):
    node: _Node


class Said(_Envelope, tag="said", frozen=True):
    """A message of a channel. `sequence` counts what its node says, in order."""

    sequence: _Count
    channel: _Channel
    data: Any
    sender: _Id | None = None
    priority: _Priority = 128
    ephemeral: bool = False
    time: float = 0.0
    loose: bool = False
    """It was delivered on its node without an offset."""


class Began(_Envelope, tag="began", frozen=True):
    """Messages of these channels were lost, so that they have another epoch now. None: of any."""

    channels: Annotated[list[_Channel], Meta(max_length=MAX_BEGUN)] | None


class Post(_Envelope, tag="post", frozen=True):
    """A message for sessions, or with `to` None for all. `ask` is what the count is to carry; 0: none is wanted."""

    ask: _Count
    to: _Id | None
    data: Any
    sender: _Id | None = None
    priority: _Priority = 128
    ephemeral: bool = False
    application: bool = False


class Kick(_Envelope, tag="kick", frozen=True):
    ask: _Count
    target: _Id
    code: Annotated[int, Meta(ge=1000, le=4999)]
    reason: Annotated[str, Meta(max_length=MAX_REASON)]


class Do(_Envelope, tag="do", frozen=True):
    """`Order` of an application."""

    ask: _Count
    what: Literal["subscribe", "unsubscribe", "token", "copy"]
    session: _Id | None
    value: Annotated[bytes, Meta(max_length=MAX_APPLICATION_TOKEN)]
    target: Annotated[bytes, Meta(max_length=MAX_CHANNEL)] = b""


class Count(_Envelope, tag="count", frozen=True):
    ask: _Count
    count: _Count


class Seek(_Envelope, tag="seek", frozen=True):
    """Which channels are heard there: the first by name that begin with `prefix` and come after `after`."""

    ask: _Count
    prefix: Annotated[bytes, Meta(max_length=MAX_CHANNEL)]
    after: Annotated[bytes, Meta(max_length=MAX_CHANNEL)] | None
    limit: Annotated[int, Meta(ge=0, le=MAX_SOUGHT)]


class Sought(_Envelope, tag="sought", frozen=True):
    """Name and subscribers of each, and whether it is a pattern."""

    ask: _Count
    rows: Annotated[list[tuple[_Channel, _Count, bool]], Meta(max_length=MAX_SOUGHT)]


class News(_Envelope, tag="news", frozen=True):
    """A session came to a channel, or left it."""

    channel: _Channel
    joined: bool
    session: _Id
    name: Annotated[str, Meta(max_length=MAX_NAME)] | None = None


class Revoked(_Envelope, tag="revoked", frozen=True):
    """`Revocation` of the hub."""

    kind: Kind
    value: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    since: float
    until: float


class Alive(_Envelope, tag="alive", frozen=True):
    """The node is here now."""


class Gone(_Envelope, tag="gone", frozen=True):
    """The node has stopped, in an orderly way, or is taken for dead by another."""

    who: _Node


Envelope: TypeAlias = Said | Began | Post | Kick | Do | Count | Seek | Sought | News | Revoked | Alive | Gone

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)

encode = _encoder.encode


def decode(body: bytes) -> Envelope:
    """Raises ValueError for anything else."""
    try:
        plain.check_messagepack(body)
        envelope: Envelope = _decoder.decode(body)
        if isinstance(envelope, Said | Post) and type(envelope.data) not in (str, bytes):
            plain.check(envelope.data)
    except RecursionError:
        raise ValueError("nests too deep") from None
    return envelope


def parse(payload: bytes) -> tuple[str | None, int, bytes]:
    """(epoch, offset, body) of what came on a lane; epoch None where Redis has not numbered it. Raises ValueError."""
    head, newline, body = payload.partition(b"\n")
    if not newline or len(head) > 128:
        raise ValueError("it does not begin with a line")
    if not head:
        return None, 0, body
    epoch, _, offset = head.partition(b"\t")
    if not epoch or not offset.isdigit() or len(offset) > 16:
        raise ValueError("it has no place")
    return epoch.decode("ascii"), int(offset), body
