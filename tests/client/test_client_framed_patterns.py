"""FramedClient's subscriptions with wildcards, against a peer that says what a test wants: routing and reconnect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from netd.client import FramedClient, Gap, Reconnect
from netd.errors import RequestFailed
from netd.wire.messages import Error, Message, Ok, Position, Subscribe
from tests.support.framedpeer import PATIENCE

if TYPE_CHECKING:
    from tests.support.framedpeer import FramedPeer, PeerLink


def client_of(peer: FramedPeer) -> FramedClient:
    soon = Reconnect(first=0.001, longest=0.01)
    return FramedClient(peer.address, reconnect=soon, answer_timeout=PATIENCE, linger=0.05)


async def take(subscription, count: int) -> list:
    with trio.fail_after(PATIENCE):
        return [await anext(subscription) for _ in range(count)]


def message(channel: str, offset: int | None, epoch: str | None = "e") -> Message:
    return Message(channel=channel, data=offset, offset=offset, epoch=epoch)


async def subscribed(client: FramedClient, link: PeerLink, channel: str, *, recover=None, **ok):
    made: list = []

    async def ask() -> None:
        made.append(await client.subscribe(channel, recover=recover))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await link.confirm(channel, **ok)
    return made[0]


async def begun(client: FramedClient, peer: FramedPeer) -> PeerLink:
    link = await peer.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.welcome)
        await client.hello()
    return link


def shown(items: list) -> list:
    return [(item.channel, item.missed) if isinstance(item, Gap) else (item.channel, item.offset) for item in items]


async def test_each_channel_of_a_pattern_has_its_own_order_and_gaps(peer):
    async with client_of(peer) as client:
        link = await begun(client, peer)
        every = await subscribed(client, link, "p:>", pattern=True)
        one = await subscribed(client, link, "p:*.b", pattern=True)
        await link.say(
            message("p:a.b", 7), message("p:c", 1), message("p:a.b", 8), message("p:c", 1), message("p:c", 4),
            message("q:a.b", 1), message("p:a.b", None, None), message("p:c", 1, "other"),
        )  # fmt: skip
        assert shown(await take(every, 8)) == [
            ("p:a.b", 7), ("p:c", 1), ("p:a.b", 8), ("p:c", 2), ("p:c", 4), ("p:a.b", None), ("p:c", None), ("p:c", 1),
        ]  # fmt: skip
        assert shown(await take(one, 3)) == [("p:a.b", 7), ("p:a.b", 8), ("p:a.b", None)]
        assert (await client.receive()).channel == "q:a.b"
        assert (every.position, client.telemetry().counters.duplicates) == (None, 1)


async def test_a_name_that_the_daemon_takes_for_ordinary_is_a_channel(peer):
    async with client_of(peer) as client:
        link = await begun(client, peer)
        literal = await subscribed(client, link, "p:*", epoch="e", offset=3)
        await link.say(message("p:a", 1), message("p:*", 4))
        assert shown(await take(literal, 1)) == [("p:*", 4)]
        assert literal.position == Position("e", 4)
        assert (await client.receive()).channel == "p:a"


async def test_after_a_reconnect_nothing_comes_ahead_of_what_was_missed(peer):
    async with client_of(peer) as client:
        link = await begun(client, peer)
        every = await subscribed(client, link, "p:>", pattern=True)
        own = await subscribed(client, link, "p:a", epoch="e", offset=3)
        await link.say(message("p:a", 4))
        assert shown(await take(own, 1) + await take(every, 1)) == [("p:a", 4)] * 2
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        requests = [await link.request(Subscribe) for _ in range(2)]
        assert [(each.channel, each.recover) for each in requests] == [("p:>", None), ("p:a", Position("e", 4))]
        await link.say(
            Ok(ref=requests[0].ref, channel="p:>", pattern=True),
            message("p:a", 6),  # through the pattern, while the channel's own subscription is on its way
            Ok(ref=requests[1].ref, channel="p:a", epoch="e", offset=4, recovered=True),
            message("p:a", 5), message("p:a", 6), message("p:a", 7),
        )  # fmt: skip
        assert shown(await take(own, 3)) == [("p:a", 5), ("p:a", 6), ("p:a", 7)]
        assert shown(await take(every, 3)) == [("p:>", None), ("p:a", 6), ("p:a", 7)]


async def test_a_pattern_that_ends_takes_no_messages_any_more(peer):
    async with client_of(peer) as client:
        link = await begun(client, peer)
        every = await subscribed(client, link, "p:>", pattern=True, recovered=False, recover=Position("e", 1))
        own = await subscribed(client, link, "p:a", epoch="e", offset=3)
        await link.say(
            message("p:a", 4),
            Error(code="denied", message="cannot stay subscribed to 'p:>'", channel="p:>"),
            message("p:a", 5),
            message("p:b", 1),
        )
        assert shown(await take(own, 2)) == [("p:a", 4), ("p:a", 5)]
        assert shown(await take(every, 2)) == [("p:>", None), ("p:a", 4)]
        with pytest.raises(RequestFailed, match="cannot stay"):
            await take(every, 1)
        assert (await client.receive()).channel == "p:b"
