"""What there is in the hub now, and what was counted since the daemon began: figures, and channels by name. Pure.

Labels are bounded: there is one for each configured namespace, and none for a channel or a session.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netd.hub.channels import ChannelInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.hub import Hub


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """What happened in a namespace since the daemon began. `refused` counts requests that its rules did not allow."""

    name: str
    channels: int
    published: int
    delivered: int
    refused: int


@dataclass(frozen=True, slots=True)
class HubInfo:
    """The hub now, and what it counted since it began."""

    sessions: int
    channels: int
    subscriptions: int
    resumable: int
    patterns: int
    """Subscriptions with wildcards, the same one of many sessions once."""
    histories: int
    history_messages: int
    history_bytes: int
    history_evicted: int
    opened: int
    messages_in: int
    """Requests of clients."""
    messages_out: int
    """Messages that outboxes took in."""
    published: int
    delivered: int
    """Messages of channels, once for each session they reached."""
    refused: int
    """Requests that were answered with an error."""
    dropped: int
    """Messages that outboxes dropped."""
    namespaces: tuple[NamespaceInfo, ...]


def gather(hub: Hub) -> HubInfo:
    """The figures now. Sums over the sessions there are, so it is for every few seconds and not for every message."""
    counted = dict(hub.past)
    for session in hub.sessions.values():
        for key in counted:
            counted[key] += getattr(session, key)
    channels = Counter(place.realm.path for place in hub.heard.values())
    return HubInfo(
        sessions=len(hub.present()),
        channels=len(hub.heard),
        subscriptions=hub.subscriptions,
        patterns=sum(len(realm.patterns or ()) for realm in hub.permissions.realms()),
        resumable=len(hub.stays),
        histories=len(hub.histories),
        history_messages=hub.histories.messages,
        history_bytes=hub.histories.size,
        history_evicted=hub.histories.evicted,
        opened=hub.opened,
        published=hub.published,
        delivered=hub.delivered,
        namespaces=tuple(
            NamespaceInfo(each.name, channels[each.path], each.published, each.delivered, each.refused)
            for each in hub.permissions.realms()
        ),
        **counted,
    )


def listed(hub: Hub, prefix: bytes, after: bytes | None, limit: int | None) -> list[ChannelInfo]:
    """`Hub.channels`."""
    names: Iterable[bytes] = {*hub.heard, *hub.histories.names(), *(pattern.name for pattern in hub.patterns())}
    if prefix:
        names = (name for name in names if name.startswith(prefix))
    if after is not None:
        names = (name for name in names if name > after)
    return [described(hub, name) for name in (sorted(names) if limit is None else heapq.nsmallest(limit, names))]


def described(hub: Hub, name: bytes) -> ChannelInfo:
    """`Hub.channel`."""
    place, history = hub.heard.get(name), hub.histories.get(name)
    realm = hub.permissions.realm(name)
    if realm.wild(name):
        return ChannelInfo(name, len(realm.pattern(name) or ()), None, None, 0, pattern=True)
    return ChannelInfo(
        name=name,
        subscribers=0 if place is None else len(place),
        epoch=None if history is None else history.epoch,
        offset=None if history is None else history.offset,
        history=0 if history is None else len(history.entries or ()),
    )
