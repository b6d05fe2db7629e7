"""BrokerClient through losses: what it comes back from and how, what it does not come back from, and what is told."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import pytest
import trio

from netd.client import BrokerClient, Gap, Reconnect, session
from netd.errors import DaemonUnreachable, RequestFailed
from netd.wire.messages import (
    AskHistory,
    Close,
    CloseCode,
    Error,
    Hello,
    History,
    Message,
    Ok,
    Publish,
    Refresh,
    Unsubscribe,
    Welcome,
)
from tests.support.brokerpeer import BrokerLink, BrokerPeer
from tests.support.framedpeer import PATIENCE

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)
E = "epoch-1"


def message(offset, epoch=E):
    return Message(channel="public:a", data=offset, offset=offset, epoch=epoch)


class Room:
    """A client that has subscribed to public:a at offset 4, and the broker's end of it."""

    def __init__(self, peer, client):
        self.peer = peer
        self.client = client

    async def serve(self):
        self.link = await self.peer.accept()
        await self.link.welcome("s-1", resume="r-1", heartbeat=0.0)
        await self.link.confirm("public:a", epoch=E, offset=4)

    async def lose(self):
        await self.link.abort()
        await self.back()

    async def back(self, **confirmed):
        """The next connection, greeted; what its subscribe asks for."""
        self.link = await self.peer.accept()
        self.hello = await self.link.welcome("s-1", resume="r-2")
        confirmed = {"epoch": E, "offset": 4, "recovered": True} | confirmed
        return await self.link.confirm("public:a", **confirmed)

    async def take(self, count):
        return [await anext(self.heard) for _ in range(count)]


@pytest.fixture
async def peer():
    async with BrokerPeer() as peer:
        yield peer


@pytest.fixture
def states():
    return []


@pytest.fixture
async def room(peer, states):
    with trio.fail_after(PATIENCE):
        client = BrokerClient(peer.url, reconnect=SOON, linger=0.01, on_state=states.append)
        room = Room(peer, client)
        peer.tasks.start_soon(room.serve)
        async with client:
            room.heard = await client.subscribe("public:a")
            yield room


def backoffs(states):
    return [state for state in states if state.name == "backoff"]


# --- nothing missed, nothing twice ------------------------------------------------------------------------------------


async def test_a_reset_connection_goes_on_where_it_was(room, states):
    await room.link.say(message(5), message(6))
    assert [each.data for each in await room.take(2)] == [5, 6]
    await room.link.abort()
    asked = await room.back(offset=8)
    assert (asked.recover.epoch, asked.recover.offset) == (E, 6)
    assert room.hello.resume == "r-1"
    await room.link.say(message(6), message(7), message(8), message(9))
    assert [each.data for each in await room.take(3)] == [7, 8, 9]
    counters = room.client.telemetry().counters
    assert (counters.reconnects, counters.resumed, counters.recovered) == (1, 1, 1)
    assert (counters.gaps, counters.duplicates) == (0, 1)
    assert "reset" in backoffs(states)[0].reason


async def test_what_cannot_be_sent_says_why_and_holds_up_nobody_who_leaves(peer):
    client = BrokerClient(peer.url, reconnect=Reconnect(first=600, longest=600), linger=600)
    room = Room(peer, client)
    peer.tasks.start_soon(room.serve)
    with trio.fail_after(PATIENCE):
        async with client:
            await client.subscribe("public:a")
            await room.link.abort()
            async for state in client.states():
                if state.name == "backoff":
                    break
            client._session.requests.patience = 0.05  # from here on
            with pytest.raises(DaemonUnreachable) as caught:
                await client.publish("public:a", "x")
    assert re.fullmatch(
        r"cannot publish to 'public:a': it could not be sent within 0.05 s, the state is backoff \(.*reset.*\)",
        str(caught.value),
    )


async def test_a_history_that_is_too_short_is_exactly_one_gap(room):
    await room.link.abort()
    await room.back(offset=50, recovered=False)
    await room.link.say(message(51), message(52))
    gap, *rest = await room.take(3)
    assert gap == Gap("public:a", E)
    assert [each.data for each in rest] == [51, 52]
    assert room.client.telemetry().counters.gaps == 1


async def test_a_new_epoch_is_exactly_one_gap(room):
    await room.link.abort()
    await room.back(epoch="epoch-2", offset=0, recovered=False)
    await room.link.say(message(1, "epoch-2"))
    assert await room.take(2) == [Gap("public:a", "epoch-2"), message(1, "epoch-2")]


async def test_a_hole_is_told_with_its_size(room):
    await room.link.say(message(5), message(9))
    assert await room.take(3) == [message(5), Gap("public:a", E, 3), message(9)]


async def test_what_waited_to_be_sent_goes_over_the_next_connection_once(room):
    states = room.client.states()
    await room.link.abort()
    while (await anext(states)).name != "backoff":
        pass
    async with trio.open_nursery() as nursery:
        told = []

        async def publish():
            told.append(await room.client.publish("public:a", "later"))

        nursery.start_soon(publish)
        await room.back()
        request = await room.link.request(Publish)
        await room.link.say(Ok(ref=request.ref, delivered=1))
    assert told == [1]


async def test_what_was_on_its_way_is_asked_again_only_where_that_does_no_harm(room):
    async with trio.open_nursery() as nursery:
        found = {}

        async def publish():
            with pytest.raises(DaemonUnreachable, match="cannot tell whether the daemon did it"):
                await room.client.publish("public:a", "x")

        async def history():
            found["history"] = await room.client.history("public:a")

        nursery.start_soon(publish)
        await room.link.request(Publish)
        nursery.start_soon(history)
        await room.link.request(AskHistory)
        await room.link.abort()
        await room.back()
        again = await room.link.request(AskHistory)
        await room.link.say(History(ref=again.ref, epoch=E, offset=4, messages=[], channel="public:a"))
    assert found["history"].offset == 4


# --- when to come back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [CloseCode.GOING_AWAY, 1012, CloseCode.TRY_LATER, CloseCode.SLOW, CloseCode.INTERNAL])
async def test_a_close_that_is_no_verdict_is_followed_by_coming_back(room, states, code):
    await room.link.close(int(code), "the daemon stops")
    await room.back()
    assert f"({int(code)}): the daemon stops" in backoffs(states)[0].reason


async def test_a_broker_that_drains_says_when(peer):
    waited = trio.Event()
    states = []

    def note(state):
        states.append(state)
        if state.name == "backoff":
            waited.set()

    client = BrokerClient(peer.url, reconnect=SOON, linger=0.01, on_state=note)

    async def serve():
        link = await peer.accept()
        await link.welcome()
        await link.say(Close(CloseCode.GOING_AWAY, "the daemon stops", 30.0))
        await link.close(1001)

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with client:
            await waited.wait()
    assert 30.0 <= backoffs(states)[0].seconds < 31.0


async def test_a_broker_that_is_full_at_the_upgrade_is_left_alone_for_as_long_as_it_asks(peer):
    client_states = []
    waited = trio.Event()

    def note(state):
        client_states.append(state)
        if state.name == "backoff" and "503" in state.reason:
            waited.set()

    async def serve():
        link = await peer.accept()
        await link.welcome()
        await link.abort()
        request, _ = await peer.offer()
        await request.reject(503, extra_headers=[(b"Retry-After", b"30")], body=b"full")

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=SOON, linger=0.01, on_state=note):
            await waited.wait()
    last = backoffs(client_states)[-1]
    assert 30.0 <= last.seconds < 31.0
    assert last.attempt == 2


async def test_a_broker_that_does_not_come_back_is_given_up(peer):
    policy = Reconnect(first=0.01, longest=0.01, max_attempts=3)

    async def serve():
        link = await peer.accept()
        await link.welcome()
        await peer.stop()
        await link.abort()

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=policy, linger=0.01) as client:
            with pytest.raises(DaemonUnreachable, match="3 attempts failed"):
                await client.receive()
    assert isinstance(client.failure, DaemonUnreachable)


async def test_silence_is_a_loss_and_what_was_said_meanwhile_is_fetched(peer):
    """A half-open connection: nothing arrives any more, and nobody says so."""
    async with trio.open_nursery() as nursery:
        states = []
        client = BrokerClient(peer.url, reconnect=SOON, linger=0.01, on_state=states.append)

        async def serve():
            link = await peer.accept()
            await link.welcome(heartbeat=0.05)
            await link.confirm("public:a", epoch=E, offset=4)
            link = await peer.accept()
            await link.welcome()
            asked = await link.confirm("public:a", epoch=E, offset=5, recovered=True)
            assert asked.recover.offset == 4
            await link.say(message(5))

        nursery.start_soon(serve)
        with trio.fail_after(PATIENCE):
            async with client:
                heard = await client.subscribe("public:a")
                assert (await anext(heard)).data == 5
    assert backoffs(states)[0].reason == "nothing arrived for 0.15 s"


# --- when not to ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [CloseCode.KICKED, CloseCode.REPLACED, CloseCode.POLICY])
@pytest.mark.parametrize("how", ["said", "framed"])
async def test_a_verdict_ends_the_client(peer, code, how):
    """Removed (a revoked token, an operator), replaced by another, not permitted: said as a message or in the frame."""

    async def serve():
        link = await peer.accept()
        await link.welcome()
        if how == "said":
            await link.say(Close(int(code), "the token is revoked"))
        await link.close(int(code), "the token is revoked")

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=SOON, linger=0.01) as client:
            with pytest.raises(RequestFailed, match=rf"\({int(code)}\): the token is revoked"):
                await client.receive()
            assert client.state.name == "closed"
            with pytest.raises(RequestFailed):
                await client.publish("a", "b")


async def test_a_normal_close_ends_it_in_peace(peer):
    async def serve():
        link = await peer.accept()
        await link.welcome()
        await link.close(1000)

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=SOON) as client:
            assert [event async for event in client] == []
    assert client.failure is None


async def test_a_token_that_is_refused_at_the_next_upgrade_ends_it(peer):
    async def serve():
        link = await peer.accept()
        await link.welcome()
        await link.abort()
        request, _ = await peer.offer()
        body = b'{"error": {"kind": "denied", "message": "the token is revoked"}}'
        await request.reject(401, extra_headers=[(b"content-type", b"application/json")], body=body)

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=SOON, token="t", token_in="header") as client:
            with pytest.raises(RequestFailed, match="401: the token is revoked") as caught:
                await client.receive()
    assert caught.value.status == 401


# --- tokens -----------------------------------------------------------------------------------------------------------


class Source:
    """Gives "token 1", "token 2", ..."""

    def __init__(self):
        self.given = 0

    async def __call__(self):
        await trio.lowlevel.checkpoint()
        self.given += 1
        return f"token {self.given}"


@pytest.mark.parametrize("place", ["hello", "header"])
async def test_every_connection_shows_a_fresh_token(peer, place):
    shown = []

    async def serve():
        for turn in range(2):
            request, stream = await peer.offer()
            headers = dict(request.headers)
            ws = await request.accept(subprotocol="netd.json")
            link = BrokerLink(ws, stream, "json")
            hello = await link.welcome()
            shown.append(headers[b"authorization"].decode() if place == "header" else hello.token)
            if not turn:
                await link.abort()
            else:
                await link.close(1000)

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, reconnect=SOON, token=Source(), token_in=place) as client:
            assert [event async for event in client] == []
    prefix = "Bearer " if place == "header" else ""
    assert shown == [f"{prefix}token 1", f"{prefix}token 2"]


async def test_a_token_is_refreshed_before_it_expires(peer, monkeypatch):
    monkeypatch.setattr(session, "RENEW_LEAST", 0.01)
    done = trio.Event()

    async def serve():
        link = await peer.accept()
        hello = await link.request(Hello)
        assert hello.token == "token 1"
        await link.say(Welcome("s-1", "netd", "1", expires=0.01))
        for token, expires in (("token 2", 0.01), ("token 3", None)):
            request = await link.request(Refresh)
            assert request.token == token
            await link.say(Ok(ref=request.ref, expires=expires))
        done.set()

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, token=Source(), linger=0.01) as client:
            await done.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert client._session.renews == math.inf


async def test_a_refresh_that_is_refused_is_told_and_tried_again(peer, monkeypatch):
    monkeypatch.setattr(session, "RENEW_LEAST", 0.01)
    monkeypatch.setattr(session, "RENEW_AGAIN", 0.01)
    done = trio.Event()

    async def serve():
        link = await peer.accept()
        await link.request(Hello)
        await link.say(Welcome("s-1", "netd", "1", expires=0.01))
        request = await link.request(Refresh)
        await link.say(Error(ref=request.ref, code="denied", message="no more of these"))
        request = await link.request(Refresh)
        assert request.token == "token 3"
        await link.say(Ok(ref=request.ref))
        done.set()

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, token=Source(), linger=0.01) as client:
            assert "no more of these" in (await client.receive()).message
            await done.wait()


@pytest.mark.parametrize("good", [True, False])
async def test_a_token_that_counts_no_more_is_replaced_and_what_it_gave_goes_on(peer, monkeypatch, good):
    monkeypatch.setattr(session, "RENEW_SPREAD", 0.01)
    requests = []

    async def serve():
        link = await peer.accept()
        await link.welcome("s-1")
        await link.confirm("public:a", epoch=E, offset=4)
        await link.say(message(5))
        await link.say(Error(code="denied", message="cannot go on with the token", refresh=True))
        await link.say(Error(code="denied", message="cannot stay subscribed", channel="public:a"))
        refresh = await link.request(Refresh)
        assert refresh.token == "token 2"
        if good:
            await link.say(Ok(ref=refresh.ref))
            requests.append(await link.confirm("public:a", epoch=E, offset=6, recovered=True))
            await link.say(message(6))
        else:
            await link.say(Error(ref=refresh.ref, code="denied", message="no more of these"))

    with trio.fail_after(PATIENCE):
        peer.tasks.start_soon(serve)
        async with BrokerClient(peer.url, token=Source(), linger=0.01) as client:
            subscription = await client.subscribe("public:a")
            assert (await anext(subscription)).data == 5
            assert (await client.receive()).refresh
            if good:
                assert (await anext(subscription)).data == 6
                assert (requests[0].recover.epoch, requests[0].recover.offset) == (E, 5)
            else:
                assert "no more of these" in (await client.receive()).message
                with pytest.raises(RequestFailed, match="cannot stay subscribed"):
                    await anext(subscription)


async def test_what_is_subscribed_to_again_stays_whatever_became_of_the_unsubscribe(peer):
    """A session that comes back has no subscriptions: what ended one before must not be asked of the new one."""
    requests = []

    async def serve(left):
        link = await peer.accept()
        await link.welcome("s-1", resume="r-1")
        await link.confirm("public:a", epoch=E, offset=4)
        await link.request(Unsubscribe)
        await link.abort()
        await left.wait()
        link = await peer.accept()
        await link.welcome("s-1")
        requests.append(await link.confirm("public:a", epoch=E, offset=4))
        requests.append(await link.request(Publish))

    with trio.fail_after(PATIENCE):
        left = trio.Event()
        peer.tasks.start_soon(serve, left)
        async with BrokerClient(peer.url, reconnect=SOON, linger=0.01) as client:
            subscription = await client.subscribe("public:a")
            await subscription.unsubscribe()
            left.set()
            again = await client.subscribe("public:a")
            await client.publish("public:a", 1, confirm=False)
            while len(requests) < 2:
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert again.live
    assert [type(request).__name__ for request in requests] == ["Subscribe", "Publish"]


async def test_a_token_that_cannot_be_had_is_a_connection_that_can_not(peer):
    def broken():
        raise DaemonUnreachable("cannot get a token: the clerk is out")

    with pytest.raises(DaemonUnreachable, match="the clerk is out"):
        async with BrokerClient(peer.url, token=broken):
            pass


@pytest.mark.parametrize("function", ["token", "on_state"])
async def test_what_a_users_function_raises_comes_out_as_it_is(peer, function):
    """Later on: of a task of the client's, whose nursery would wrap it."""
    called = 0

    def fails_later(*_):
        nonlocal called
        called += 1
        if called > 2:
            raise KeyError("mine")
        return "a token"

    async def serve():
        with suppress(trio.ClosedResourceError):
            while True:
                link = await peer.accept()
                await link.welcome()
                await link.abort()

    peer.tasks.start_soon(serve)
    with trio.fail_after(PATIENCE), pytest.raises(KeyError, match="mine"):
        async with BrokerClient(peer.url, reconnect=SOON, linger=0.01, **{function: fails_later}):
            await trio.sleep_forever()


async def test_a_subscription_that_the_daemon_takes_away_ends_with_the_reason(room):
    await room.link.say(message(5), Error(code="denied", message="the token has expired", channel="public:a"))
    assert (await anext(room.heard)).data == 5
    with pytest.raises(RequestFailed, match="the token has expired"):
        await anext(room.heard)
    await room.link.say(Message(channel="public:a", data="stray"))
    assert (await room.client.receive()).data == "stray"
