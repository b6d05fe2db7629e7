"""What a subscription leaves behind: nothing at the daemon, and nothing in the client, however its reader left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netd.client import FramedClient, Gap, Reconnect, session, state
from netd.errors import DaemonUnreachable, RequestFailed
from netd.wire.messages import (
    Close,
    CloseCode,
    Error,
    Joined,
    Message,
    Ok,
    Position,
    Publish,
    Subscribe,
    TextEvent,
    Unsubscribe,
)
from tests.support.framedpeer import PATIENCE, begun

if TYPE_CHECKING:
    from netd.client import Subscription
    from tests.support.framedpeer import PeerLink

SOON = Reconnect(first=0.001, longest=0.001, jitter=0)


def message(offset: int, channel: str = "public:a") -> Message:
    return Message(channel, data=offset, offset=offset, epoch="e")


async def by_pattern(client: FramedClient, link: PeerLink) -> Subscription:
    """Subscribed to all public channels."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(link.confirm, "public:*", pattern=True))
        return await client.subscribe("public:*")


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


async def test_what_it_heard_there_without_offsets_does_not_come_again_elsewhere(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        await link.say(*(Message("public:a", data=f"local {number}", origin=f"n:{number}") for number in (1, 2)))
        with trio.fail_after(PATIENCE):
            assert [(await anext(subscription)).data for _ in range(2)] == ["local 1", "local 2"]
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=5, recovered=True)
        await link.say(Ok(channel="public:a", epoch="e", offset=5))  # that node knows nothing of them
        again = [Message("public:a", data=f"local {n}", offset=5 + n, epoch="e", origin=f"n:{n}") for n in (1, 2, 3)]
        await link.say(*again)
        with trio.fail_after(PATIENCE):
            assert (await anext(subscription)).data == "local 3"
        assert client.telemetry().counters.duplicates == 2


async def test_nor_where_that_node_has_said_where_the_channel_is(peer):
    """It does as the first of them are in the history, or one of another node is: the others follow."""
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        await link.say(*(Message("public:a", data=f"local {number}", origin=f"n:{number}") for number in (1, 2)))
        await link.say(Ok(channel="public:a", epoch="e", offset=6), message(7))
        with trio.fail_after(PATIENCE):
            assert [(await anext(subscription)).data for _ in range(3)] == ["local 1", "local 2", 7]
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=7, recovered=True)
        await link.say(Message("public:a", data="local 2", offset=8, epoch="e", origin="n:2"), message(9))
        with trio.fail_after(PATIENCE):
            assert (await anext(subscription)).data == 9


async def test_a_place_in_another_epoch_is_a_gap(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        await link.say(Ok(channel="public:a", epoch="f", offset=2))
        with trio.fail_after(PATIENCE):
            assert await anext(subscription) == Gap("public:a", "f")
        await link.say(Message("public:a", data="next", offset=3, epoch="f"))
        with trio.fail_after(PATIENCE):
            assert (await anext(subscription)).data == "next"
        assert client.telemetry().counters.gaps == 1


async def test_a_node_that_is_behind_another_does_not_take_the_position_back(peer):
    """Who goes on from it with a subscription of its own would hear messages again."""
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        await link.say(message(6), message(7))
        with trio.fail_after(PATIENCE):
            assert [(await anext(subscription)).data for _ in range(2)] == [6, 7]
        await link.say(Ok(channel="public:a", epoch="e", offset=6), TextEvent("behind it"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).text == "behind it"
        assert subscription.position == Position("e", 7)
        await link.say(Ok(channel="public:a", epoch="e", offset=9), TextEvent("behind it"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).text == "behind it"
        assert subscription.position == Position("e", 9)


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


# --- on the way -------------------------------------------------------------------------------------------------------


def told(offset: int | None, channel: str = "public:a", data: object = "late") -> Message:
    return Message(channel, data=data, offset=offset, epoch="e" if offset is not None else None)


async def test_what_was_on_the_way_from_a_channel_that_was_left_is_for_nobody(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.unsubscribe)
            left = await link.request(Unsubscribe)
            taken_away = Error(code="denied", message="no more", channel="public:a")
            await link.say(told(6), told(None), Joined("s-2", channel="public:a"), taken_away)
            await link.say(Ok(ref=left.ref, channel="public:a"), told(7, data="by the application"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).data == "by the application"


async def test_nor_after_a_subscription_that_was_given_up(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(cancelled_at, link, scope)
                await client.subscribe("public:*", pattern=True)
            asked, left = link.asked, await link.request(Unsubscribe)
            await link.say(Ok(ref=asked.ref, channel="public:*", pattern=True), told(6))
            await link.say(Ok(ref=left.ref, channel="public:*"), told(7, data="by the application"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).data == "by the application"


async def cancelled_at(link: PeerLink, scope: trio.CancelScope) -> None:
    """Cancel whoever has asked for a subscription."""
    link.asked = await link.request(Subscribe)
    scope.cancel()


async def test_a_pattern_that_was_left_too(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        pattern = await by_pattern(client, link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pattern.unsubscribe)
            left = await link.request(Unsubscribe)
            await link.say(told(6), told(6, "other:a", data="by the application"), Ok(ref=left.ref))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).data == "by the application"


async def test_the_next_subscription_does_not_hear_it_either(peer):
    """It would come before what it missed, and what it missed were duplicates then."""
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [before] = await begun(client, link, "public:a")
        position = before.position
        made = []

        async def subscribe() -> None:
            made.append(await client.subscribe("public:a", recover=position))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(before.unsubscribe)
            left = await link.request(Unsubscribe)
            nursery.start_soon(subscribe)
            again = await link.request(Subscribe)
            taken_away = Error(code="denied", message="no more", channel="public:a")
            await link.say(message(7), told(None), taken_away, Ok(ref=left.ref))
            await link.say(Ok(ref=again.ref, channel="public:a", epoch="e", offset=5, recovered=True))
        await link.say(message(6), message(7))
        with trio.fail_after(PATIENCE):
            assert [(await anext(made[0])).data for _ in range(2)] == [6, 7]


async def test_a_new_connection_has_nothing_on_the_way(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.unsubscribe)
            await link.request(Unsubscribe)
            await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.say(told(7, data="by the application"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).data == "by the application"


# --- a daemon that is too busy to leave -------------------------------------------------------------------------------


async def busy(link: PeerLink) -> None:
    left = await link.request(Unsubscribe)
    await link.say(Error(code="rate", message="too much", ref=left.ref), told(6))


async def test_a_daemon_that_was_too_busy_is_asked_again(peer, monkeypatch):
    monkeypatch.setattr(session, "ASK_AGAIN", 0.01)
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subscription.unsubscribe)
                await busy(link)
                left = await link.request(Unsubscribe)
                await link.say(told(7), Ok(ref=left.ref), told(8, data="by the application"))
            assert (await client.receive()).data == "by the application"


async def test_but_not_when_somebody_came_back(peer, monkeypatch):
    monkeypatch.setattr(session, "ASK_AGAIN", 0.01)
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a")
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subscription.unsubscribe)
                await busy(link)
                nursery.start_soon(partial(link.confirm, "public:a", epoch="e", offset=6))
                again = await client.subscribe("public:a")
            await link.say(message(7))
            assert (await anext(again)).data == 7


# --- left and asked for once more -------------------------------------------------------------------------------------


async def test_who_joined_what_was_left_is_not_told_to_the_next_subscription(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        [before] = await begun(client, link, "public:a")
        made = []

        async def subscribe() -> None:
            made.append(await client.subscribe("public:a", presence=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(before.unsubscribe)
            left = await link.request(Unsubscribe)
            nursery.start_soon(subscribe)
            again = await link.request(Subscribe)
            await link.say(Joined("s-2", channel="public:a"), Ok(ref=left.ref))
            await link.say(Ok(ref=again.ref, channel="public:a", epoch="e", offset=5))
        await link.say(Joined("s-3", channel="public:a"))
        with trio.fail_after(PATIENCE):
            assert (await anext(made[0])).session == "s-3"


async def test_a_pattern_that_was_left_twice_is_one_until_the_daemon_has_answered(peer):
    """Whatever became of the second subscription."""
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        pattern = await by_pattern(client, link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pattern.unsubscribe)
            first = await link.request(Unsubscribe)
            with trio.CancelScope() as scope:
                nursery.start_soon(cancelled_at, link, scope)
                await client.subscribe("public:*")
            asked, second = link.asked, await link.request(Unsubscribe)
            await link.say(told(6), Ok(ref=first.ref), Ok(ref=asked.ref, pattern=True), told(7), Ok(ref=second.ref))
            await link.say(told(8, data="by the application"))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).data == "by the application"


async def test_a_pattern_that_was_left_has_no_part_in_what_its_channels_are_refused(peer):
    """The application had subscribed this session to one of them."""
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        pattern = await by_pattern(client, link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pattern.unsubscribe)
            left = await link.request(Unsubscribe)
            of_the_pattern = Error(code="denied", message="no patterns", channel="public:*")
            await link.say(of_the_pattern, Error(code="denied", message="no more", channel="public:a"))
            await link.say(Ok(ref=left.ref))
        with trio.fail_after(PATIENCE):
            assert (await client.receive()).message == "no more"


async def test_a_subscription_that_is_left_before_its_answer_leaves_nothing_behind(peer):
    """A daemon that is still looking for its place need not answer that any more."""
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(cancelled_at, link, scope)
                    await client.subscribe("public:a")
            left = await link.request(Unsubscribe)
            await link.say(Ok(ref=left.ref, channel="public:a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(link.confirm, "public:a"))
            await client.subscribe("public:a")
        assert not client._session._subscribing


# --- without offsets, through a pattern -------------------------------------------------------------------------------


async def test_what_a_pattern_heard_without_offsets_does_not_come_again_elsewhere(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        pattern = await by_pattern(client, link)
        await link.say(*(Message(f"public:{n}", data=f"local {n}", origin=f"n:{n}") for n in (1, 2)))
        await link.say(Ok(channel="public:9", epoch="e", offset=0))  # of the others, nothing is said
        with trio.fail_after(PATIENCE):
            assert [(await anext(pattern)).data for _ in range(2)] == ["local 1", "local 2"]
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:*", pattern=True, recovered=False)
        places = {"offset": 1, "epoch": "e"}
        await link.say(*(Message(f"public:{n}", data=f"local {n}", origin=f"n:{n}", **places) for n in (1, 2, 3)))
        with trio.fail_after(PATIENCE):
            assert await anext(pattern) == Gap("public:*", None)
            assert (await anext(pattern)).data == "local 3"
        assert client.telemetry().counters.duplicates == 2


async def test_what_a_pattern_remembers_is_bounded_however_many_channels_match(peer, monkeypatch):
    monkeypatch.setattr(state, "LOOSE", 8)
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await begun(client, link)
        pattern = await by_pattern(client, link)
        await link.say(*(Message(f"public:{n}", data=n, origin=f"n:{n}") for n in range(20)))
        with trio.fail_after(PATIENCE):
            assert [(await anext(pattern)).data for _ in range(20)] == list(range(20))
        assert len(pattern._place.loose) + sum(len(place.loose) for place in pattern._places.values()) == 8
