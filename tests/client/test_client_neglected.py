"""What a client's user does not do, or does wrong, harms no other part of it: unread events, an on_state that raises,
more subscriptions than the daemon takes at once.
"""

from __future__ import annotations

import gc

import pytest
import trio
import trio.testing

from netd.client import FramedClient, Reconnect, session
from netd.errors import DaemonUnreachable
from netd.wire.messages import Direct, Error, Message, Ok, Subscribe
from tests.support.framedpeer import PATIENCE, begun

SOON = Reconnect(first=0.001, longest=0.001, jitter=0)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"inbox_messages": 10}, 1), ({"inbox_bytes": 4096}, 512), ({"inbox_bytes": 4096}, 8000)],
    ids=["many", "large", "one that is larger than all there may be"],
)
async def test_events_that_nobody_reads_do_not_hold_up_a_subscription(peer, options, size):
    async with FramedClient(peer.address, linger=0.01, **options) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a", offset=0)
        for number in range(30):
            await link.say(
                Direct("s-2", data="x" * size), Message("public:a", data=number, offset=number + 1, epoch="e")
            )
            with trio.fail_after(PATIENCE):
                assert (await anext(subscription)).data == number
        assert client.telemetry().missed > 0


async def test_what_is_kept_of_them_are_the_last(peer):
    async with FramedClient(peer.address, linger=0.01, inbox_messages=10) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a", offset=0)
        await link.say(*(Direct("s-2", data=number) for number in range(30)), Message("public:a", data="end"))
        with trio.fail_after(PATIENCE):
            await anext(subscription)
            heard = [(await client.receive()).data for _ in range(30 - client.telemetry().missed)]
    assert heard == list(range(30))[-len(heard) :]
    assert 0 < len(heard) < 10


async def test_a_subscription_that_the_daemon_is_too_busy_for_is_asked_for_again(peer, monkeypatch):
    """After a reconnect all are asked for at once (hub.messages_per_second)."""
    monkeypatch.setattr(session, "ASK_AGAIN", 0.01)
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        subscriptions = await begun(client, link, "public:a", "public:b", offset=0)
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        refused = await link.request(Subscribe)
        await link.say(Error(ref=refused.ref, code="rate", message="cannot do more"))
        await link.confirm("public:b", epoch="e", offset=0, recovered=True)
        again = await link.confirm("public:a", epoch="e", offset=1, recovered=True)
        assert again.recover == refused.recover
        await link.say(Message("public:a", data="missed", offset=1, epoch="e"))
        with trio.fail_after(PATIENCE):
            assert (await anext(subscriptions[0])).data == "missed"


async def test_one_that_was_unsubscribed_meanwhile_is_not(peer, monkeypatch, autojump_clock):
    monkeypatch.setattr(session, "ASK_AGAIN", 1.0)
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01, answer_timeout=60) as client:
        link = await peer.accept()
        [subscription] = await begun(client, link, "public:a", offset=0)
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        refused = await link.request(Subscribe)
        await link.say(Error(ref=refused.ref, code="rate", message="cannot do more"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.unsubscribe)
            request = await link.request(object)
            await link.say(Ok(ref=request.ref))
        with trio.move_on_after(10) as waited:
            raise AssertionError(await link.request(Subscribe))
        assert waited.cancelled_caught


async def test_a_sender_that_waits_is_told_though_on_state_raises(peer):
    def on_state(state):
        if state.final:
            raise ZeroDivisionError

    told: list[str] = []
    client = FramedClient(peer.address, reconnect=False, queue_bytes=1, linger=0.01, on_state=on_state)

    async def send_on() -> None:
        while True:
            await client.send(bytes(1 << 20))

    async def send() -> None:
        """Beside the `async with`, so that its end does not cancel this."""
        with trio.fail_after(PATIENCE), pytest.raises(DaemonUnreachable) as failed:
            await send_on()
        told.append(str(failed.value))

    async def live(nursery: trio.Nursery) -> None:
        async with client:
            link = await peer.accept()
            nursery.start_soon(send)
            while not client.telemetry().counters.backpressure:
                await trio.testing.wait_all_tasks_blocked()
            await link.abort()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            await live(nursery)
    assert told[0].startswith("cannot ")


async def test_watching_states_and_leaving_costs_nothing_and_who_stays_is_told(peer):
    async with FramedClient(peer.address, linger=0.01, reconnect=False) as client:
        link = await peer.accept()
        stays = client.states()
        for _ in range(1000):
            async for state in client.states():
                assert state.name == "connected"
                break
        gc.collect()
        assert client._connection is not None
        assert len(client._connection._watchers) == 1
        await link.abort()
        with trio.fail_after(PATIENCE):
            assert [state.name async for state in stays] == ["connected", "closed"]
