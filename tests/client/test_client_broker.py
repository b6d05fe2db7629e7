"""BrokerClient over one WebSocket, with a broker that says what the test wants."""

from __future__ import annotations

import re
import socket
import struct
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest
import trio
import trio.lowlevel

from netd.client import BrokerClient, Reconnect, broker_wire
from netd.client.link import CHUNK
from netd.errors import DaemonUnreachable, NetdError, ProtocolError, RequestFailed
from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Binary,
    BinaryEvent,
    Client,
    Clients,
    Close,
    Direct,
    Error,
    Hello,
    History,
    ListClients,
    Message,
    Ok,
    Ping,
    Presence,
    Publish,
    SendBroadcast,
    SendDirect,
    Text,
    TextEvent,
    Unsubscribe,
)
from netd.wire.upgrade import accept_key
from netd.wire.websocket import TEXT, frame
from tests.support.authority import Authority, serving
from tests.support.brokerpeer import BrokerPeer
from tests.support.framedpeer import PATIENCE

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)


@pytest.fixture(params=["json", "messagepack"])
async def peer(request):
    async with BrokerPeer(format=request.param) as peer:
        yield peer


@pytest.fixture
async def json_peer():
    async with BrokerPeer() as peer:
        yield peer


def client_of(peer, **options):
    return BrokerClient(peer.url, **({"reconnect": SOON, "linger": 0.5, "format": peer.format} | options))


class Met:
    """A client that is in, and the peer's end of its connection."""

    def __init__(self, client):
        self.client = client

    async def welcome(self, peer):
        self.link = await peer.accept()
        self.hello = await self.link.welcome(resume="r-1")

    async def answering(self, *script):
        """(kind of the request, its answers): in this order."""
        for kind, answers in script:
            request = await self.link.request(kind)
            await self.link.say(*answers(request.ref))


@asynccontextmanager
async def meeting(peer, **options):
    met = Met(client_of(peer, **options))
    peer.tasks.start_soon(met.welcome, peer)
    with trio.fail_after(PATIENCE):
        async with met.client:
            yield met


async def refusal(client) -> NetdError:
    """What entering it raises."""
    with trio.fail_after(PATIENCE), pytest.raises(NetdError) as caught:
        async with client:
            raise AssertionError("it was let in")
    return caught.value


# --- coming in --------------------------------------------------------------------------------------------------------


async def test_it_greets_when_entered_and_parts_in_peace(peer):
    async with meeting(peer, name="alpha", token="t", tags={"a": "b"}) as met:
        assert met.hello == Hello(1, "alpha", "t", {"a": "b"}, ref=met.hello.ref)
        assert met.client.session_id == "s-1"
        assert (await met.client.hello()).session == "s-1"
        assert met.client.state.name == "connected"
        assert met.link.ws.subprotocol == ("netd.json" if peer.format == "json" else "netd.msgpack")
    assert met.client.state.name == "closed"
    assert met.client.failure is None
    await met.link.request(Close)
    with pytest.raises(trio.EndOfChannel):
        await met.link.receive()
    assert met.link.ws.closed.code == 1000  # the closing handshake, not just the end of TCP


async def test_the_upgrade_has_path_host_and_headers(json_peer):
    asked = {}

    async def look():
        stream = await json_peer.stream()
        line, *headers = bytes(await stream.receive_some(65536)).decode().splitlines()
        asked.update({name.lower(): value for name, _, value in (header.partition(": ") for header in headers)})
        asked["path"] = line.split()[1]
        await stream.send_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        url = f"{json_peer.url}/elsewhere?x=1"
        await refusal(BrokerClient(url, token="tok", token_in="header", headers={"X-Site": "lab"}))
    assert asked["path"] == "/elsewhere?x=1"
    assert asked["host"] == f"127.0.0.1:{json_peer.port}"
    assert asked["authorization"] == "Bearer tok"
    assert asked["x-site"] == "lab"


async def test_a_token_in_the_header_is_not_in_the_hello_as_well(json_peer):
    async with meeting(json_peer, token="tok", token_in="header") as met:
        assert met.hello.token is None


async def test_a_refused_upgrade_says_by_which_rule(json_peer):
    async def refuse():
        request, _ = await json_peer.offer()
        said = b'{"error": {"kind": "denied", "message": "the token has expired"}}'
        await request.reject(401, extra_headers=[(b"content-type", b"application/json")], body=said)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        error = await refusal(client_of(json_peer, token="old", token_in="header"))
    assert isinstance(error, RequestFailed)
    assert (error.status, error.kind) == (401, "denied")
    assert str(error) == f"cannot connect to {json_peer.url}/ws: it answers 401: the token has expired"


async def test_a_refused_hello_raises_where_the_client_is_entered(json_peer):
    async def refuse():
        link = await json_peer.accept()
        hello = await link.request(Hello)
        await link.say(Error(ref=hello.ref, code="denied", message="cannot accept the token: no"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        error = await refusal(client_of(json_peer))
    assert error.kind == "denied"


async def test_nobody_there():
    async with BrokerPeer() as peer:
        pass
    error = await refusal(client_of(peer))
    assert isinstance(error, DaemonUnreachable)
    assert "connection refused" in str(error)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", "it ended the connection instead of answering; does it want TLS (wss://)?"),
        (b"HTTP/1.1 200 O", "does it speak WebSocket there?"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "it answers 200"),
        (
            b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\n",
            "WebSocket",
        ),
        (b"HTTP/1.1 403 No\r\ncontent-length: 1000000\r\n\r\n" + bytes(100_000), "more than 65536 bytes"),
        (b"HTTP/1.1 403 No\r\ncontent-length: 10\r\n\r\nabc", "it ended the connection"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "the peer speaks TLS; write wss://"),
        (
            b"\x00\x00\x00\x10{framed}\r\n\r\n",
            "the peer does not speak WebSocket as it should; is this the address of a broker?",
        ),
    ],
)
async def test_something_else_answers(json_peer, answer, expected):
    async def say():
        stream = await json_peer.stream()
        await stream.receive_some(65536)
        with trio.move_on_after(PATIENCE), suppress(trio.BrokenResourceError):  # it may have heard enough
            await stream.send_all(answer)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        assert expected in str(await refusal(client_of(json_peer)))


async def test_what_begins_like_no_http_need_not_end_to_be_told(json_peer):
    async def say():
        stream = await json_peer.stream()
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(65536):
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        error = await refusal(client_of(json_peer, connect_timeout=600))
    assert "is this the address of a broker?" in str(error)


@pytest.mark.parametrize(
    ("scheme", "advice"), [("ws", "does it want TLS (wss://)?"), ("wss", "if it has none, write ws://")]
)
async def test_a_server_that_resets_what_it_does_not_understand(json_peer, scheme, advice):
    async def reset():
        stream = await json_peer.stream()
        await stream.receive_some(1)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reset)
        error = await refusal(BrokerClient(json_peer.url.replace("ws", scheme), tls=scheme == "wss"))
    assert str(error).endswith(f": connection reset by peer; {advice}")


async def test_a_broker_that_does_not_answer(json_peer):
    error = await refusal(client_of(json_peer, connect_timeout=0.5))  # connecting itself is in it
    assert "no answer to the upgrade within 0.5 s" in str(error)


async def test_a_broker_that_does_not_answer_the_hello(json_peer):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(json_peer.accept)
        error = await refusal(client_of(json_peer, answer_timeout=0.05, reconnect=False))
    assert isinstance(error, DaemonUnreachable)


async def test_a_peer_that_speaks_something_else(json_peer):
    async def chat():
        link = await json_peer.accept()
        await link.ws.send_message("good morning")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat)
        error = await refusal(client_of(json_peer))
    assert "does not speak them" in str(error)
    assert "(/ws)?" in str(error)


async def test_a_patient_client_waits_for_its_broker():
    async with BrokerPeer() as peer:
        await peer.stop()
        failed = trio.Event()
        client = client_of(
            peer,
            reconnect=Reconnect(first=0.01, longest=0.02, patient=True),
            on_state=lambda state: failed.set() if state.attempt == 2 else None,
        )
        async with trio.open_nursery() as nursery:

            async def later():
                await failed.wait()
                await peer.open()
                link = await peer.accept()
                await link.welcome()

            nursery.start_soon(later)
            with trio.fail_after(PATIENCE):
                async with client:
                    assert client.session_id == "s-1"


async def test_a_client_is_entered_once(json_peer):
    async with meeting(json_peer) as met:
        with pytest.raises(ProtocolError, match="enter a client twice"):
            await met.client.__aenter__()
    with pytest.raises(ProtocolError, match="before `async with`"):
        await client_of(json_peer).publish("a", "b")


async def test_being_cancelled_while_connecting_leaves_nothing(json_peer):
    with trio.move_on_after(0.05) as scope:
        async with client_of(json_peer):
            pass
    assert scope.cancelled_caught


async def test_what_the_user_raises_comes_out_as_it_is(json_peer):
    with pytest.raises(KeyError):
        async with meeting(json_peer):
            raise KeyError("mine")


# --- operations -------------------------------------------------------------------------------------------------------


async def test_every_operation(peer):
    async with meeting(peer) as met, trio.open_nursery() as nursery:
        client, link = met.client, met.link
        kept = [Message(channel="a", data=1)]
        nursery.start_soon(
            met.answering,
            (Publish, lambda ref: [Ok(ref=ref, delivered=2)]),
            (Publish, lambda ref: [Ok(ref=ref, delivered=1)]),
            (SendDirect, lambda ref: [Ok(ref=ref, delivered=1)]),
            (SendBroadcast, lambda ref: [Ok(ref=ref, delivered=9)]),
            (ListClients, lambda ref: [Clients(ref=ref, clients=[Client("s-1")])]),
            (AskPresence, lambda ref: [Presence(ref=ref, clients=[Client("s-2")], channel="a")]),
            (AskHistory, lambda ref: [History(ref=ref, epoch="e", offset=3, messages=kept, channel="a")]),
        )
        with trio.fail_after(PATIENCE):
            assert await client.publish("a", {"x": [1, None]}) == 2
            assert await client.publish(b"\xff", b"\x00\xff") == 1
            assert await client.direct("name:x", "hi") == 1
            assert await client.broadcast("all") == 9
            assert [each.session for each in await client.clients()] == ["s-1"]
            assert [each.session for each in await client.presence("a")] == ["s-2"]
            assert (await client.history("a")).messages[0].data == 1
        await client.text("to the application")
        await client.binary(b"\x00")
        assert (await link.request(Text)).text == "to the application"
        await link.request(Binary)
        await link.say(TextEvent("answer"), BinaryEvent(data64=b"\x01"), Direct("s-9", data="psst"))
        events = client.__aiter__()
        assert (await anext(events)).text == "answer"
        assert (await anext(events)).data == b"\x01"
        assert (await anext(events)).data == "psst"


async def test_a_subscription_hears_and_ends(peer):
    async with meeting(peer) as met, trio.open_nursery() as nursery:

        async def serve():
            await met.link.confirm("public:a", epoch="e", offset=4)
            await met.link.say(*(Message(channel="public:a", data=n, offset=5 + n, epoch="e") for n in range(100)))
            request = await met.link.request(Unsubscribe)
            late = Message(channel="public:a", data="on the way", offset=105, epoch="e")
            await met.link.say(late, Ok(ref=request.ref), TextEvent("that is all"))

        nursery.start_soon(serve)
        with trio.fail_after(PATIENCE):
            async with await met.client.subscribe("public:a") as heard:
                assert [(await anext(heard)).data for _ in range(100)] == list(range(100))
                assert heard.position.offset == 104
            assert (await met.client.receive()).text == "that is all"


async def test_what_is_no_channel_is_not_sent(json_peer):
    async with meeting(json_peer) as met:
        with pytest.raises(ProtocolError, match=r"^cannot use the channel .*: its text is no Unicode"):
            await met.client.publish("public:\ud800", "x")
        with pytest.raises(TypeError, match="bytes-like"):  # and not seven zeros
            await met.client.publish(7, "x")


async def test_a_refused_operation_says_why_and_the_session_goes_on(json_peer):
    async with meeting(json_peer) as met, trio.open_nursery() as nursery:
        nursery.start_soon(
            met.answering,
            (Publish, lambda ref: [Error(ref=ref, code="denied", message="cannot publish to 'x': rule 7")]),
            (Publish, lambda ref: [Ok(ref=ref)]),
        )
        with pytest.raises(RequestFailed, match="rule 7"):
            await met.client.publish("x", "y")
        await met.client.publish("x", "y")


# --- both directions at once ------------------------------------------------------------------------------------------


async def test_a_ping_is_answered_while_nobody_reads_messages(json_peer):
    """What is read and not taken never stands in the way of what lies behind it in the same read."""
    async with meeting(json_peer) as met:
        await met.link.send(*(b'{"type":"broadcast","data":%d}' % n for n in range(50)))
        with trio.fail_after(PATIENCE):
            await met.link.ws.ping(b"there?")  # returns with the pong
        assert met.client.telemetry().unread_messages == 50


async def test_a_reader_who_does_not_read_is_felt_by_the_broker_and_loses_nothing(json_peer):
    async with meeting(json_peer, inbox_messages=10) as met, trio.open_nursery() as nursery:
        total = 5000
        text = "x" * 1000
        events = met.client.__aiter__()  # from here on every one is kept

        async def say():
            for number in range(total):
                await met.link.say(Direct("s-2", data=f"{number} {text}"))

        nursery.start_soon(say)
        await trio.testing.wait_all_tasks_blocked(0.05)  # stuck
        telemetry = met.client.telemetry()
        assert telemetry.counters.pauses
        assert telemetry.unread_messages < 200
        with trio.fail_after(PATIENCE):
            for number in range(total):
                assert (await anext(events)).data.startswith(f"{number} ")


async def test_a_cancelled_send_tears_no_frame(json_peer):
    async with meeting(json_peer) as met:
        for number in range(30):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: met.client.text("x" * 100_000, confirm=True))
                    for _ in range(number % 7):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await met.client.text("last")
        with trio.fail_after(PATIENCE):
            while True:
                request = await met.link.request(Text)  # each can be read
                if request.text == "last":
                    break
                assert request.text == "x" * 100_000


async def test_a_large_message_both_ways(peer):
    async with meeting(peer) as met:
        large = "ü" * 400_000
        await met.client.text(large)
        assert (await met.link.request(Text)).text == large
        await met.link.say(TextEvent(large))
        with trio.fail_after(PATIENCE):
            assert (await met.client.receive()).text == large


async def test_one_that_is_too_large_is_not_sent(json_peer):
    async with meeting(json_peer, max_message=1000) as met:
        with pytest.raises(ProtocolError, match="max_message is 1000"):
            await met.client.text("x" * 1000)


@pytest.mark.parametrize("text", ["x" * 2000, "ü" * 900])
async def test_one_from_the_broker_that_is_too_large_ends_the_connection(json_peer, text):
    async with meeting(json_peer, max_message=1000) as met:
        states = met.client.states()
        await met.link.say(TextEvent(text))
        with trio.fail_after(PATIENCE):
            state = await until(states, "backoff")
        assert "max_message is 1000" in state.reason


async def until(states, name):
    async for state in states:
        if state.name == name:
            return state
    raise AssertionError(f"it ended before it was {name}")


async def test_a_broker_that_takes_nothing_counts_as_lost(json_peer, monkeypatch):
    """The peer's trio-websocket reads on only as its messages are taken."""
    monkeypatch.setattr(broker_wire, "PIECE", 1 << 20)
    async with meeting(json_peer, write_timeout=0.1, linger=0.01) as met, trio.open_nursery() as nursery:
        states = met.client.states()

        async def talk():
            while True:
                await met.client.text("x" * 500_000)

        nursery.start_soon(talk)
        with trio.fail_after(PATIENCE):
            state = await until(states, "backoff")
        assert state.reason == "the peer took nothing for 0.1 s"
        nursery.cancel_scope.cancel()


async def test_the_brokers_own_pings_in_operations_are_answered(json_peer):
    async with meeting(json_peer) as met:
        await met.link.say(Ping(7, ref=3))
        assert b'"pong"' in await met.link.receive()


async def test_a_broken_frame_ends_the_connection_with_a_reason(json_peer):
    async with meeting(json_peer) as met:
        states = met.client.states()
        await met.link.stream.send_all(b"\xff\x00")
        with trio.fail_after(PATIENCE):
            state = await until(states, "backoff")
        assert state.reason == "the peer broke the rules of WebSocket: Invalid opcode 0xf"
        with pytest.raises(trio.EndOfChannel):
            await met.link.receive()
        assert met.link.ws.closed.code == 1002  # which trio-websocket itself does not say


# --- hostile ----------------------------------------------------------------------------------------------------------


async def upgraded(peer) -> trio.abc.Stream:
    """A connection after the upgrade, without anybody who knows WebSocket at this end."""
    stream = await peer.stream()
    request = bytes(await stream.receive_some(65536))
    key = re.search(rb"(?i)sec-websocket-key: (\S+)", request)[1]
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    await stream.send_all(head + b"sec-websocket-accept: " + accept_key(key) + b"\r\n\r\n")
    return stream


def welcome_frame() -> bytes:
    return frame(TEXT, b'{"type":"welcome","session":"s-1","server":"netd","version":"1"}')


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_arrives_is_a_loss_with_a_reason(json_peer, seed):
    random = Random(seed)
    noise = random.randbytes(random.choice((1, 30, 3000)))
    if seed % 3 == 0:  # frames that are frames, and say nothing that makes sense
        noise = b"".join(frame(random.choice((TEXT, 2, 8, 9, 10)), random.randbytes(20)) for _ in range(5))
    told = trio.Event()

    async def say():
        stream = await upgraded(json_peer)
        with suppress(trio.BrokenResourceError):
            await stream.send_all(welcome_frame() + noise)
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say)
        reasons = []

        def note(state):
            if state.reason:
                reasons.append(state.reason)
                told.set()

        with trio.fail_after(PATIENCE), suppress(NetdError):
            async with client_of(json_peer, reconnect=False, linger=0.01, on_state=note):
                await told.wait()
        assert all(reasons)


async def test_a_flood_of_pings_costs_no_more_than_its_bound(json_peer):
    """The broker pings and reads no answer."""
    async with trio.open_nursery() as nursery:

        async def flood():
            stream = await upgraded(json_peer)
            await stream.send_all(welcome_frame())
            pings = frame(9, b"x" * 125) * 500
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(pings)

        nursery.start_soon(flood)
        with trio.fail_after(PATIENCE):
            async with client_of(json_peer, linger=0.01, reconnect=False) as client:
                wire = client._connection.wire
                while len(wire._out) <= broker_wire.ANSWERS:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked(0.02)  # it reads no more
                assert len(wire._out) < broker_wire.ANSWERS + 2 * CHUNK
        nursery.cancel_scope.cancel()


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_wss_with_an_authority_of_ones_own(tmp_path):
    authority = Authority(tmp_path)
    async with (
        BrokerPeer(tls=serving(authority.issue("127.0.0.1"))) as peer,
        meeting(peer, tls=authority.file) as met,
    ):
        await met.client.text("secret")
        assert (await met.link.request(Text)).text == "secret"
        with trio.fail_after(PATIENCE):
            await met.link.ws.ping(b"x")


async def test_wss_with_a_stranger_is_no_connection(tmp_path):
    authority = Authority(tmp_path)
    async with BrokerPeer(tls=serving(authority.issue("127.0.0.1"))) as peer, trio.open_nursery() as nursery:

        async def listen():
            with pytest.raises(trio.BrokenResourceError):
                await peer.accept()

        nursery.start_soon(listen)
        assert "certificate" in str(await refusal(client_of(peer)))


async def test_no_request_of_a_closed_client_hangs(json_peer):
    async with meeting(json_peer) as met:
        client = met.client
    with pytest.raises(DaemonUnreachable, match="this client is closed"):
        await client.publish("a", "b")
    with pytest.raises(DaemonUnreachable):
        await client.hello()
