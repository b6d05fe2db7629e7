"""What a subscription leaves behind: nothing at the daemon, and nothing in the client, however its reader left."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from netd.client import FramedClient, Gap, Reconnect
from netd.errors import DaemonUnreachable, RequestFailed
from netd.wire.messages import Close, CloseCode, Error, Message, Ok, Publish, Subscribe, Unsubscribe
from tests.support.framedpeer import PATIENCE, FramedPeer, PeerLink

SOON = Reconnect(first=0.001, longest=0.001, jitter=0)


@pytest.fixture
async def peer():
    async with FramedPeer() as peer:
        yield peer


async def begun(client: FramedClient, link: PeerLink, *channels: str) -> list:
    """Greeted, and subscribed to these, at offset 5."""

    async def serve() -> None:
        await link.welcome()
        for channel in channels:
            await link.confirm(channel, epoch="e", offset=5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await client.hello()
        return [await client.subscribe(channel) for channel in channels]


def message(offset: int, channel: str = "public:a") -> Message:
    return Message(channel, data=offset, offset=offset, epoch="e")


# --- at the daemon ----------------------------------------------------------------------------------------------------


async def test_who_is_cancelled_out_of_a_subscription_is_subscribed_no_more(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        with trio.CancelScope() as scope:
            async with subscription:
                scope.cancel()
                await trio.sleep_forever()
        assert (await link.request(Unsubscribe)).channel == "public:a"


async def test_a_subscription_that_takes_the_place_of_another_is_asked_for_after_it(peer):
    """Whatever waits in the queue between the two."""
    async with FramedClient(peer.address, linger=0.01, rate=1000, burst=1000) as client:
        link = await peer.accept()
        [before] = await begun(client, link, "public:a")
        await client.publish("public:b", "x" * 2000, confirm=False)  # at this rate, what follows waits for seconds
        await link.request(Publish)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(before.unsubscribe)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(client.subscribe, "public:a")
            left = await link.request(Unsubscribe)
            again = await link.request(Subscribe)
            await link.say(Ok(ref=left.ref), Ok(ref=again.ref, channel="public:a"))


# --- in the client ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["async with", "unsubscribe"])
async def test_what_was_taken_away_and_is_read_no_more_does_not_hold_up_the_others(peer, way):
    async with FramedClient(peer.address, linger=0.01, inbox_messages=4) as client:
        link = await peer.accept()
        first, second = await begun(client, link, "public:a", "public:b")
        taken_away = Error(code="denied", message="no more", channel="public:a")
        await link.say(*(message(6 + number) for number in range(6)), taken_away)
        with trio.fail_after(PATIENCE):
            while client.telemetry().unread_messages < 6:
                await trio.testing.wait_all_tasks_blocked()
            if way == "async with":
                async with first:
                    await anext(first)
            else:
                await first.unsubscribe()
            assert client.telemetry().unread_messages == 0
            await link.say(message(6, "public:b"))
            assert (await anext(second)).data == 6
            with pytest.raises(RequestFailed, match="no more"):
                await anext(first)


async def test_a_subscription_that_was_never_confirmed_is_none(peer):
    """The daemon parts in peace meanwhile."""
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)

        async def part() -> None:
            await link.request(Subscribe)
            await link.say(Close(CloseCode.NORMAL))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(part)
            with trio.fail_after(PATIENCE), pytest.raises(DaemonUnreachable, match="this client is closed"):
                await client.subscribe("public:a")


# --- a node that knows no place ---------------------------------------------------------------------------------------


async def test_who_was_at_a_node_without_history_knows_still_what_it_has(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a")  # it cannot see the history just now
        await link.say(Message("public:a", data="aside"), message(4), message(5), message(6))
        with trio.fail_after(PATIENCE):
            items = [await anext(subscription) for _ in range(3)]
        assert items[0] == Gap("public:a", None)
        assert [each.data for each in items[1:]] == ["aside", 6]
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        asked = await link.confirm("public:a", epoch="e", offset=6, recovered=True)
        assert (asked.recover.epoch, asked.recover.offset) == ("e", 6)


async def test_and_asks_for_what_came_since(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link, "public:a")
        for recover in (5, 5):
            await link.abort()
            link = await peer.accept()
            await link.welcome()
            asked = await link.confirm("public:a")
            assert (asked.recover.epoch, asked.recover.offset) == ("e", recover)
