"""What a clean stop saves of the hub, and a start takes up again: histories, epochs, offsets. Pure.

    {"netd-hub": 1, "saved": seconds, "channels": [[name, epoch, offset, [[time, sender, data], ...]], ...]}

Rules:
- MessagePack, with its version first; another version, or anything that is not as it says, is an error and changes
  nothing;
- a channel's messages are in order and end at its offset, so that they need no offsets of their own;
- limits are not applied here: `Histories.configure` applies those of the configuration that reads it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from netd.errors import NetdError
from netd.hub.history import ChannelHistory, Publication, measure
from netd.hub.permissions import Refusal
from netd.wire.messages import MAX_CHANNEL

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1

_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    time: float
    sender: str | None
    data: Any


class _Channel(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: Annotated[bytes, Meta(min_length=1, max_length=MAX_CHANNEL)]
    epoch: Annotated[str, Meta(min_length=1, max_length=64)]
    offset: _Count
    messages: list[_Message]


class _Saved(msgspec.Struct, forbid_unknown_fields=True, rename={"version": "netd-hub"}):
    version: int
    saved: float
    channels: list[_Channel]


_decode = msgspec.msgpack.Decoder(_Saved).decode


def dump(histories: Iterable[ChannelHistory], now: float) -> bytes:
    """Histories as bytes."""
    channels = [
        _Channel(
            history.name,
            history.epoch,
            history.offset,
            [_Message(entry.time, entry.sender, entry.taken().data) for entry in history.entries or ()],
        )
        for history in histories
    ]
    return msgspec.msgpack.encode(_Saved(VERSION, now, channels))


def load(data: bytes, now: float) -> list[ChannelHistory]:
    """Bytes as histories. Raises NetdError for what `dump` did not write.

    Times in the future (the clock was set back) count as now, or those messages would never be too old.
    """
    try:
        saved = _decode(data)
    except (ValueError, RecursionError) as error:
        raise NetdError(f"cannot read the saved state of the hub: {str(error)[:200]}") from None
    if saved.version != VERSION:
        raise NetdError(f"cannot read the saved state of the hub: its version is {saved.version}, not {VERSION}")
    seen: dict[bytes, ChannelHistory] = {}
    for channel in saved.channels:
        if channel.name in seen or len(channel.messages) > channel.offset:
            raise NetdError(f"cannot read the saved state of the hub: the channel {channel.name!r} makes no sense")
        seen[channel.name] = _history(channel, now)
    return list(seen.values())


def _history(channel: _Channel, now: float) -> ChannelHistory:
    history = ChannelHistory(channel.name, channel.epoch, channel.offset)
    first = channel.offset - len(channel.messages) + 1
    for offset, message in enumerate(channel.messages, first):
        if not math.isfinite(message.time):
            raise NetdError(f"cannot read the saved state of the hub: a time in {channel.name!r} is {message.time}")
        try:
            measure(message.data)
        except Refusal as error:
            raise NetdError(f"cannot read the saved state of the hub: {error}") from None
        publication = Publication(
            channel.name,
            message.data,
            message.sender,
            time=min(message.time, now),
            offset=offset,
            epoch=channel.epoch,
        )
        history.keep(publication.kept())
    return history
