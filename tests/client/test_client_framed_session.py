"""FramedClient's operations: requests, answers, subscriptions, and what a lost connection does to them.

Over 600 lines, and one file all the same: every operation is asked of the same scripted daemon.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.testing

from netd.client import FramedClient, Gap, Reconnect
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Binary,
    BinaryEvent,
    Broadcast,
    Client,
    Clients,
    Close,
    Direct,
    Error,
    Hello,
    History,
    Joined,
    Left,
    ListClients,
    Message,
    Ok,
    Ping,
    Pong,
    Position,
    Presence,
    Publish,
    SendBroadcast,
    SendDirect,
    Subscribe,
    Text,
    TextEvent,
    Unsubscribe,
    Welcome,
)
from tests.support.framedpeer import PATIENCE, FramedPeer

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)
E = "epoch-1"


@pytest.fixture(params=["messagepack", "json"])
async def both(request):
    async with FramedPeer(format=request.param) as peer:
        yield peer


def client_of(peer: FramedPeer, **options) -> FramedClient:
    codec = "json" if peer.format == "json" else "raw"
    return FramedClient(peer.address, **({"reconnect": SOON, "linger": 0.01, "codec": codec} | options))


async def answers(link, *scripted) -> None:
    """Read a request of each kind and say what belongs to it; `ref` is filled in."""
    for kind, answer in scripted:
        request = await link.request(kind)
        await link.say(answer(request))


def message(offset: int | None, data: object = "hi", *, epoch: str | None = E, channel: str = "public:a") -> Message:
    return Message(channel, from_="s-2", **messages.data_fields(data), offset=offset, epoch=epoch)


class Room:
    """A subscribed client, and the peer's side of it."""

    def __init__(self, peer, client, link, subscription):
        self.peer, self.client, self.link, self.subscription = peer, client, link, subscription

    async def lose(self) -> None:
        """The connection is gone, and made again as far as the TCP connection."""
        await self.link.abort()
        self.link = await self.peer.accept()

    async def take(self, count: int) -> list:
        with trio.fail_after(PATIENCE):
            return [await anext(self.subscription) for _ in range(count)]


async def enter(peer, client, *, resume: str | None = None, offset: int | None = 4, epoch: str | None = E) -> Room:
    link = await peer.accept()

    async def serve() -> None:
        await link.welcome(resume=resume)
        await link.confirm("public:a", epoch=epoch, offset=offset)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        subscription = await client.subscribe("public:a")
    return Room(peer, client, link, subscription)


# --- requests ---------------------------------------------------------------------------------------------------------


async def test_every_operation_has_its_request_and_its_answer(both):
    someone = Client("s-2", "beta", "framed", {"site": "lab"})
    kept = message(1)
    async with client_of(both, name="alpha", token="t", tags={"site": "lab"}) as client:
        link = await both.accept()
        await link.receive()  # the handshake with the tags

        async def serve() -> None:
            assert await link.welcome() == Hello(messages.VERSION, "alpha", "t", {"site": "lab"}, ref=1)
            await answers(
                link,
                (Publish, lambda it: Ok(ref=it.ref, delivered=3)),
                (SendDirect, lambda it: Ok(ref=it.ref, delivered=1)),
                (SendBroadcast, lambda it: Ok(ref=it.ref)),
                (Text, lambda it: Ok(ref=it.ref)),
                (Binary, lambda it: Ok(ref=it.ref)),
                (ListClients, lambda it: Clients(ref=it.ref, clients=[someone])),
                (AskPresence, lambda it: Presence(ref=it.ref, channel="public:a", clients=[someone])),
                (AskHistory, lambda it: History(ref=it.ref, channel="public:a", epoch=E, offset=1, messages=[kept])),
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            assert await client.publish("public:a", {"n": 1}, priority=3, ephemeral=True) == 3
            assert await client.direct("name:beta", b"\x00") == 1
            assert await client.broadcast("all") is None
            await client.text("hello", confirm=True)
            await client.binary(b"\x01", confirm=True)
            assert await client.clients("public:a") == [someone]
            assert await client.presence("public:a") == [someone]
            assert await client.history("public:a", limit=5) == History(
                ref=9, channel="public:a", epoch=E, offset=1, messages=[kept]
            )
        assert client.session_id == "s-1"


async def test_a_name_that_is_no_text_travels_as_bytes(both):
    async with client_of(both) as client:
        link = await both.accept()

        async def serve() -> None:
            await link.welcome()
            request = await link.request(Publish)
            assert messages.channel_of(request) == b"\xff\x00"
            assert messages.data_of(request) == b"\xfe"
            await link.say(Ok(ref=request.ref))
            request = await link.request(Subscribe)
            await link.say(Ok(ref=request.ref, channel64=b"\xff\x00"))
            await link.say(Message(channel64=b"\xff\x00", data64=b"\xfe"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await client.publish(b"\xff\x00", b"\xfe")
            subscription = await client.subscribe(b"\xff\x00")
            assert (await anext(subscription)).data == b"\xfe"
        assert subscription.channel == b"\xff\x00"


async def test_a_refusal_is_raised_with_its_kind(peer):
    async with client_of(peer) as client:
        link = await peer.accept()

        async def serve() -> None:
            await link.welcome()
            await answers(
                link,
                (Publish, lambda it: Error(ref=it.ref, code="denied", message="cannot publish to 'x': no")),
                (Subscribe, lambda it: Error(ref=it.ref, code="too-many", message="cannot subscribe: enough")),
            )
            await link.confirm("x", epoch=E, offset=0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(RequestFailed, match="cannot publish to 'x': no") as refused:
                await client.publish("x", "y")
            assert (refused.value.kind, refused.value.status, refused.value.exit_code) == ("denied", 403, 77)
            with pytest.raises(RequestFailed, match="enough"):
                await client.subscribe("x")
            await client.subscribe("x")  # the refused one is not in the way


async def test_answers_find_their_requests_in_whatever_order_they_come(peer):
    async with client_of(peer) as client:
        link = await peer.accept()
        got = {}

        async def publish(number: int) -> None:
            got[number] = await client.publish("a", number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.welcome)
            await client.hello()
            for number in range(5):
                nursery.start_soon(publish, number)
            requests = [await link.request(Publish) for _ in range(5)]
            await link.say(*(Ok(ref=each.ref, delivered=10 * each.data) for each in reversed(requests)))
        assert got == {number: 10 * number for number in range(5)}


async def test_no_answer_in_time_is_an_error_and_the_next_request_is_fine(peer):
    async with client_of(peer) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.welcome)
            await client.hello()
        patience = client._session.requests.patience  # for what is answered, however busy the machine is
        client._session.requests.patience = 0.05
        with pytest.raises(DaemonUnreachable, match=r"cannot publish to 'a': no answer within 0.05 s"):
            await client.publish("a", 1)
        client._session.requests.patience = patience
        late = await link.request(Publish)
        await link.say(Ok(ref=late.ref, delivered=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers, link, (Publish, lambda it: Ok(ref=it.ref, delivered=2)))
            assert await client.publish("a", 2) == 2


async def test_no_welcome_says_what_to_look_at(peer):
    async with client_of(peer, answer_timeout=0.05, reconnect=False) as client:
        await peer.accept()
        with pytest.raises(DaemonUnreachable, match=r"no welcome within|nothing arrived for"):
            await client.publish("a", 1)


async def test_a_hello_that_is_refused_ends_the_client(peer):
    async with client_of(peer, token="wrong") as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                answers, link, (Hello, lambda it: Error(ref=it.ref, code="denied", message="cannot: no"))
            )
            with pytest.raises(RequestFailed, match="cannot: no"):
                await client.publish("a", 1)
        assert [state.name async for state in client.states()][-1] == "closed"
        with pytest.raises(RequestFailed, match="cannot: no"):
            await client.publish("a", 1)


async def test_plain_and_operations_do_not_mix(peer):
    async with client_of(peer) as client:
        await client.send(b"plain")
        with pytest.raises(ProtocolError, match="cannot use operations: this client has sent plain payloads"):
            await client.publish("a", 1)
    async with client_of(peer) as client:
        await peer.accept()
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.welcome)
            await client.hello()
        with pytest.raises(ProtocolError, match="cannot send a plain payload"):
            await client.send(b"plain")


async def test_ping_measures_and_pings_are_answered(peer):
    async with client_of(peer) as client:
        link = await peer.accept()

        async def serve() -> None:
            await link.welcome()
            await answers(link, (Ping, lambda it: Pong(it.ts, ref=it.ref)))
            await link.say(Ping(7, pad="x" * 100), Ping(8, pad="y"))
            while True:
                pong = messages.decode_request(await link.receive(), "messagepack")
                if pong == Pong(8):
                    return
                assert pong == Pong(7)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            assert await client.ping() >= 0


async def test_without_confirmation_a_refusal_is_an_event(peer):
    async with client_of(peer) as client:
        link = await peer.accept()

        async def serve() -> None:
            await link.welcome()
            request = await link.request(Publish)
            assert request.ref is None
            await link.say(Error(code="rate", message="cannot publish so fast"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            assert await client.publish("a", 1, confirm=False) is None
            assert (await client.receive()).code == "rate"


async def test_events_that_belong_to_no_subscription_are_the_clients(both):
    said = [
        Direct("s-2", "hi"),
        Broadcast("s-2", {"a": 1}),
        TextEvent("echo"),
        Message("elsewhere", data="x"),
        Joined("s-3", channel="elsewhere"),
        Left("s-3", channel="elsewhere"),
    ]
    async with client_of(both) as client:
        link = await both.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.welcome)
            await client.hello()
        await link.say(*said, BinaryEvent(data64=b"\xff"))
        assert [await client.receive() for _ in said] == said
        assert (await client.receive()).data == b"\xff"


async def test_whoever_does_not_read_events_is_not_held_up_by_them(peer):
    async with client_of(peer, inbox_messages=2000) as client:
        room = await enter(peer, client)
        await room.link.say(*(Direct("s", number) for number in range(3000)), message(5))
        assert (await room.take(1))[0].offset == 5
        telemetry = client.telemetry()
        assert telemetry.unread_messages <= 1024
        assert telemetry.missed == 3000 - 1024
        assert (await client.receive()).data == 3000 - 1024


async def test_publishing_inside_a_loop_over_a_full_subscription_gets_its_answers(peer):
    async with client_of(peer, inbox_messages=10) as client:
        room = await enter(peer, client, offset=0)
        await room.link.say(*(message(offset) for offset in range(1, 31)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers, room.link, *[(Publish, lambda it: Ok(ref=it.ref))] * 30)
            with trio.fail_after(PATIENCE):
                for _ in range(30):
                    await anext(room.subscription)
                    await client.publish("b", "seen")


# --- subscriptions ----------------------------------------------------------------------------------------------------


async def test_messages_come_in_order_and_the_position_is_that_of_the_last_one_read(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        assert room.subscription.position == Position(E, 4)
        await room.link.say(message(5, "a"), message(6, b"b"), message(7, [1]))
        assert [each.data for each in await room.take(2)] == ["a", b"b"]
        assert room.subscription.position == Position(E, 6)


async def test_a_channel_is_subscribed_once(peer):
    async with client_of(peer) as client:
        await enter(peer, client)
        with pytest.raises(ProtocolError, match="cannot subscribe to 'public:a' twice"):
            await client.subscribe("public:a")


async def test_leaving_the_with_unsubscribes_and_ends_the_iteration(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers, room.link, (Unsubscribe, lambda it: Ok(ref=it.ref)))
            async with room.subscription:
                pass
        assert [item async for item in room.subscription] == []
        assert client.telemetry().subscriptions == 0


async def test_joined_and_left_for_those_who_ask(peer):
    async with client_of(peer) as client:
        link = await peer.accept()

        async def serve() -> None:
            await link.welcome()
            await link.confirm("public:a")
            await link.say(Joined("s-3", channel="public:a"), Left("s-3", channel="public:a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            subscription = await client.subscribe("public:a", presence=True)
            assert isinstance(await anext(subscription), Joined)
            assert isinstance(await anext(subscription), Left)


async def test_going_on_from_a_position_of_an_earlier_run(peer):
    async with client_of(peer) as client:
        link = await peer.accept()

        async def serve() -> None:
            await link.welcome()
            asked = await link.confirm("public:a", epoch=E, offset=2, recovered=True)
            assert asked.recover == Position(E, 2)
            await link.say(message(3), message(4))
            await answers(link, (Unsubscribe, lambda it: Ok(ref=it.ref)))
            asked = await link.confirm("public:a", epoch="other", offset=9, recovered=False)
            assert asked.recover == Position(E, 3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            subscription = await client.subscribe("public:a", recover=Position(E, 2))
            assert (await anext(subscription)).offset == 3
            await subscription.unsubscribe()
            subscription = await client.subscribe("public:a", recover=subscription.position)
            assert await anext(subscription) == Gap("public:a", "other")


async def test_a_subscribe_that_is_given_up_is_taken_back(peer):
    async with client_of(peer) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.welcome)
            await client.hello()
        with trio.move_on_after(0.02):
            await client.subscribe("public:a")
        asked = await link.request(Subscribe)
        await link.request(Unsubscribe)
        await link.say(Ok(ref=asked.ref, channel="public:a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.confirm, "public:a")
            await client.subscribe("public:a")


# --- across connections -----------------------------------------------------------------------------------------------


async def test_missed_messages_come_without_a_gap_and_without_a_duplicate(both):
    async with client_of(both) as client:
        room = await enter(both, client)
        await room.link.say(message(5), message(6))
        await room.take(1)  # 6 is received and not read yet
        await trio.testing.wait_all_tasks_blocked()
        await room.lose()
        await room.link.welcome("s-9")
        asked = await room.link.confirm("public:a", epoch=E, offset=6, recovered=True)
        assert asked.recover == Position(E, 6)
        await room.link.say(message(6), message(7), message(8))
        assert [each.offset for each in await room.take(3)] == [6, 7, 8]
        counters = client.telemetry().counters
        assert (counters.reconnects, counters.recovered, counters.gaps, counters.duplicates) == (1, 1, 0, 1)


async def test_what_cannot_be_recovered_is_a_gap(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.lose()
        await room.link.welcome("s-9")
        await room.link.confirm("public:a", epoch="epoch-2", offset=1, recovered=False)
        await room.link.say(message(2, epoch="epoch-2"))
        gap, after = await room.take(2)
        assert gap == Gap("public:a", "epoch-2")
        assert after.offset == 2
        assert room.subscription.position == Position("epoch-2", 2)
        assert client.telemetry().counters.gaps == 1


async def test_a_channel_without_history_always_has_a_gap(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client, epoch=None, offset=None)
        assert room.subscription.position is None
        await room.lose()
        await room.link.welcome("s-9")
        assert (await room.link.confirm("public:a")).recover is None
        await room.link.say(message(None, epoch=None))
        gap, after = await room.take(2)
        assert gap == Gap("public:a", None)
        assert after.data == "hi"


async def test_a_hole_in_what_comes_is_a_gap_of_known_size(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.link.say(message(5), message(9))
        assert (await room.take(3))[1] == Gap("public:a", E, 3)


async def test_the_session_comes_back_by_its_secret(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client, resume="secret-1")
        await room.lose()
        assert (await room.link.welcome("s-1", resume="secret-2")).resume == "secret-1"
        await room.link.confirm("public:a", epoch=E, offset=4, recovered=True)
        await room.link.say(message(5))
        await room.take(1)
        assert client.telemetry().counters.resumed == 1
        await room.lose()
        assert (await room.link.welcome("s-1")).resume == "secret-2"


async def test_a_secret_that_is_refused_is_no_reason_to_give_up(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client, resume="secret-1")
        await room.lose()
        hello = await room.link.request(Hello)
        await room.link.say(Error(ref=hello.ref, code="not-found", message="cannot resume"))
        assert (await room.link.welcome("s-2")).resume is None
        await room.link.confirm("public:a", epoch=E, offset=4, recovered=True)
        await room.link.say(message(5))
        await room.take(1)
        assert client.session_id == "s-2"


async def test_a_request_that_was_under_way_fails_and_one_that_was_not_is_sent_later(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        outcomes = {}

        async def publish(name: str) -> None:
            try:
                outcomes[name] = await client.publish("b", name)
            except DaemonUnreachable as error:
                outcomes[name] = error

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, "under way")
                await room.link.request(Publish)
                await peer.stop()
                states = client.states()
                await room.link.abort()
                while (await anext(states)).name != "backoff":
                    pass
                nursery.start_soon(publish, "later")
                await trio.testing.wait_all_tasks_blocked(0.005)
                await peer.open()
                await (await peer.accept()).abort()  # lost again, before anything of ours could leave
                link = await peer.accept()
                await link.welcome("s-2")
                await link.confirm("public:a", epoch=E, offset=4, recovered=True)
                request = await link.request(Publish)
                assert request.data == "later"
                await link.say(Ok(ref=request.ref, delivered=1))
        assert "cannot tell whether the daemon did it (publish to 'b')" in str(outcomes["under way"])
        assert outcomes["later"] == 1


async def test_what_nobody_waits_for_any_more_does_not_happen_later(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.lose()  # from now on requests wait for a welcome
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.publish, "b", "too late")
            await trio.testing.wait_all_tasks_blocked()
            assert client.telemetry().queued_bytes > 0
            nursery.cancel_scope.cancel()
        await room.link.welcome("s-2")
        await room.link.confirm("public:a", epoch=E, offset=4, recovered=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.publish, "b", "in time")
            request = await room.link.request(Publish)
            assert request.data == "in time"
            await room.link.say(Ok(ref=request.ref))


async def test_a_question_that_was_under_way_is_asked_again(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await client.clients() == []

            nursery.start_soon(ask)
            await room.link.request(ListClients)
            await room.lose()
            await room.link.welcome("s-2")
            await room.link.confirm("public:a", epoch=E, offset=4, recovered=True)
            await answers(room.link, (ListClients, lambda it: Clients(ref=it.ref, clients=[])))


async def test_a_permission_that_is_gone_ends_its_subscription_only(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.lose()
        await room.link.welcome("s-2")
        await answers(room.link, (Subscribe, lambda it: Error(ref=it.ref, code="denied", message="cannot hear it now")))
        with pytest.raises(RequestFailed, match="cannot hear it now"):
            await room.take(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answers, room.link, (Publish, lambda it: Ok(ref=it.ref)))
            await client.publish("b", 1)


@pytest.mark.parametrize("code", [messages.CloseCode.KICKED, messages.CloseCode.REPLACED, messages.CloseCode.POLICY])
async def test_some_closes_are_final(peer, code):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.link.say(message(5), Close(code, "because"))
        await room.take(1)
        with pytest.raises(RequestFailed, match=rf"the daemon closed the session: [a-z]+ \({int(code)}\): because"):
            await room.take(1)
        assert client.state.final
        assert str(client.failure) == client.state.reason


async def test_a_normal_close_ends_the_client_in_peace(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.link.say(message(5), Close(messages.CloseCode.NORMAL))
        assert [each.offset async for each in room.subscription] == [5]
        assert (client.state.final, client.failure) == (True, None)


async def test_other_closes_are_a_loss_and_the_daemon_says_for_how_long(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        states = client.states()
        await room.link.say(Close(messages.CloseCode.GOING_AWAY, "restart", 0.05))
        while (state := await anext(states)).name != "backoff":
            pass
        assert 0.05 <= state.seconds < 0.1
        assert "going-away (1001): restart" in state.reason
        link = await peer.accept()
        await link.welcome("s-2")


async def test_a_close_that_lies_behind_a_broken_pipe_is_found(peer):
    async with client_of(peer, reconnect=False) as client:
        room = await enter(peer, client)
        # said and hung up while the client is busy writing: its next write fails before it has read the reason
        await room.link.say(Close(messages.CloseCode.SLOW, "too slow"))
        await room.link.abort()
        with suppress(DaemonUnreachable):
            while True:
                await client.publish("b", "x" * 100_000, confirm=False)
                await trio.testing.wait_all_tasks_blocked()
        assert "slow (4008): too slow" in str(client.failure)


async def test_a_silent_daemon_is_asked_and_then_given_up(peer):
    async with client_of(peer) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:

            async def welcome() -> None:
                await link.welcome(heartbeat=0.02)

            nursery.start_soon(welcome)
            await client.hello()
        ping = messages.decode_request(await link.receive(), "messagepack")
        assert isinstance(ping, Ping)
        link = await peer.accept()
        await link.welcome("s-2")


async def test_an_event_that_is_none_is_a_loss(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.link.send(b"\xc1nonsense")
        link = await peer.accept()
        await link.welcome("s-2")
        assert client.telemetry().counters.undecodable == 1


async def test_a_welcome_that_comes_twice_and_answers_to_nobody_harm_nothing(peer):
    async with client_of(peer) as client:
        room = await enter(peer, client)
        await room.link.say(Ok(ref=999), Pong(1), Clients(ref="who", clients=[]), Error(ref=998, code="x", message="y"))
        await room.link.say(Welcome("s-1", "netd", "0.1.0"))
        await room.link.confirm("public:a", epoch=E, offset=4, recovered=True)
        await room.link.say(message(5))
        assert (await room.take(1))[0].offset == 5


async def test_closing_says_so_to_the_daemon(peer):
    async def serve() -> None:
        link = await peer.accept()
        await link.welcome()
        assert (await link.request(Close)).code == messages.CloseCode.NORMAL
        await link.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with client_of(peer, linger=PATIENCE) as client:
            await client.hello()
