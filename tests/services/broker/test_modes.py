"""What becomes of what clients send: operations, a channel, the application, an event stream."""

from __future__ import annotations

import json

import msgspec
import pytest
import trio

from netd.hub.config import HubConfig, Namespace
from tests.services.broker.lab import OPEN, PUBLIC, eventually, serving

MUTE = Namespace(name="mute", subscribe="anyone", publish="nobody")
POST = Namespace(name="post", subscribe="nobody", publish="anyone")
SHUT = Namespace(name="shut", subscribe="nobody", publish="nobody")
KEPT = PUBLIC.model_copy(update={"name": "kept", "history_size": 10})
MANY = OPEN.model_copy(update={"namespace": [PUBLIC, MUTE, POST, SHUT, KEPT]})


async def test_operations_in_json_and_in_messagepack_meet_in_a_channel() -> None:
    async with serving() as house:
        one, other = await house.client(), await house.client()
        await one.hello(name="one")
        await other.binary(msgspec.msgpack.encode({"type": "hello", "version": 1}))
        welcome = msgspec.msgpack.decode(await other.message())
        assert welcome["type"] == "welcome"
        await other.binary(msgspec.msgpack.encode({"type": "subscribe", "channel": "public:room", "ref": 1}))
        assert msgspec.msgpack.decode(await other.message())["ref"] == 1
        assert (await one.ask("publish", channel="public:room", data={"level": 2}))["delivered"] == 1
        message = msgspec.msgpack.decode(await other.message())
        assert (message["data"], message["from"]) == ({"level": 2}, one.id)
        # the first frame has settled what it is answered in; another kind is understood all the same
        await other.text(json.dumps({"type": "ping", "ts": 5}))
        assert msgspec.msgpack.decode(await other.message()) == {"type": "pong", "ts": 5}
        modes = {view.id: (view.mode, view.transport) for view in house.service.connections()}
        assert modes == {one.id: ("operations", "websocket"), welcome["session"]: ("operations", "websocket")}


async def test_what_cannot_be_read_is_answered_and_the_connection_stays() -> None:
    async with serving() as house:
        client = await house.client()
        await client.text('{"type": "publish", "ref": 9}')
        error = await client.hear("error")
        assert (error["code"], error["ref"]) == ("invalid", 9)
        await client.text("")
        assert (await client.hear("error"))["code"] == "invalid"
        assert (await client.hello()).id


async def test_a_plain_websocket_publishes_frames_and_hears_them_as_they_were() -> None:
    async with serving() as house:
        one = await house.client("/ws/public:room")
        other = await house.client("/ws/public:room")
        full = await (await house.client()).hello()
        await full.ask("subscribe", channel="public:room")
        await one.text("grüße")
        await one.binary(b"\x00\xff")
        assert [await other.message(), await other.message()] == ["grüße", b"\x00\xff"]
        assert (await full.hear("message"))["data"] == "grüße"
        assert (await full.hear("message"))["data64"] == "AP8="
        await full.say("publish", channel="public:room", data=[1, None])
        # its own messages are not among them
        assert await one.message() == await other.message() == "[1,null]"
        views = [view for view in house.service.connections() if view.mode == "channel"]
        assert [view.channel for view in views] == ["public:room"] * 2


async def test_who_asks_for_an_echo_hears_itself() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room?echo=1")
        await client.text("hello")
        assert await client.message() == "hello"


async def test_roles() -> None:
    async with serving(hub=MANY) as house:
        listener = await house.client("/ws/public:room?role=sub")
        speaker = await house.client("/ws/public:room?role=pub")
        await speaker.text("one")
        assert await listener.message() == "one"
        await listener.text("two")
        close = await listener.ended()
        assert (close.code, "role is sub" in close.reason) == (1008, True)
        # of "both" it does what it may
        deaf = await house.client("/ws/post:box")
        await deaf.text("x")
        mute = await house.client("/ws/mute:room")
        await mute.text("nobody hears this")
        await eventually(lambda: house.hub.info().published == 2)
        await mute.ping(b"still here")
        assert await mute.pong() == b"still here"


async def test_frames_of_a_burst_stay_in_order_and_of_their_kind() -> None:
    async with serving() as house:
        listener, speaker = await house.client("/ws/public:room"), await house.client("/ws/public:room")
        sent: list[str | bytes] = [(f"{n}" if n % 3 else b"%d" % n) for n in range(1000)]
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for one in sent:
                    await (speaker.text(one) if isinstance(one, str) else speaker.binary(one))

            nursery.start_soon(send)
            assert [await listener.message() for _ in sent] == sent


async def test_the_application_echoes_what_it_is_sent_where_there_is_none() -> None:
    async with serving() as house:
        client = await house.client("/app")
        await client.text("text")
        await client.binary(b"bytes")
        assert [await client.message(), await client.message()] == ["text", b"bytes"]
        assert [view.mode for view in house.service.connections()] == ["application"]


async def test_an_event_stream_tells_where_it_stands_and_then_what_is_said() -> None:
    async with serving(hub=MANY) as house:
        stream = await house.events("/channels/kept:room/events")
        assert b"text/event-stream" in stream.head
        first = await stream.event()
        assert first["event"] == "subscribed"
        position = json.loads(first["data"])
        assert first["id"] == f"{position['epoch']}:0"
        house.hub.publish(b"kept:room", "hello\nworld")
        message = await stream.event()
        assert (message["event"], message["id"]) == ("message", f"{position['epoch']}:1")
        assert json.loads(message["data"])["data"] == "hello\nworld"
        (view,) = house.service.connections()
        assert (view.transport, view.mode, view.channel) == ("sse", "events", "kept:room")
        (session,) = house.hub.present()
        house.hub.direct(session.id, "to you")
        assert (await stream.event())["event"] == "direct"


async def test_an_event_stream_goes_on_from_where_it_was() -> None:
    async with serving(hub=MANY) as house:
        for number in range(5):
            house.hub.publish(b"kept:room", number)
        epoch = house.hub.channel(b"kept:room").epoch
        stream = await house.events("/channels/kept:room/events", [f"Last-Event-ID: {epoch}:2"])
        assert json.loads((await stream.event())["data"])["recovered"] is True
        assert [json.loads((await stream.event())["data"])["data"] for _ in range(3)] == [2, 3, 4]
        lost = await house.events("/channels/kept:room/events", ["Last-Event-ID: another:2"])
        assert json.loads((await lost.event())["data"])["recovered"] is False


async def test_nobody_reads_what_the_client_of_an_event_stream_sends_and_it_may_not_send_much() -> None:
    async with serving() as house:
        stream = await house.events()
        await stream.event()
        await stream.stream.send_all(b"x" * 1000)
        house.hub.publish(b"public:room", "still here")
        assert (await stream.event())["event"] == "message"
        await stream.stream.send_all(b"x" * 1000)
        last = await stream.event()
        assert (last["event"], json.loads(last["data"])["code"]) == ("close", 1008)
        with pytest.raises(trio.EndOfChannel):
            await stream.event()


async def test_a_broadcast_and_a_direct_message_reach_plain_clients_as_frames() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        (session,) = house.hub.present()
        house.hub.direct(session.id, b"direct")
        house.hub.broadcast("to all")
        assert [await client.message(), await client.message()] == [b"direct", "to all"]


async def test_a_session_that_may_not_have_what_it_asks_for_is_told_which_rule_refuses() -> None:
    async with serving(hub=HubConfig(namespace=[SHUT])) as house:
        stream, _ = await house.connect()
        lines = ["GET /ws/shut:room HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
        await stream.send_all("\r\n".join(lines).encode())
        answer = b""
        while b"hub.namespace.0" not in answer:
            more = await stream.receive_some(65536)
            assert more, answer
            answer += more
