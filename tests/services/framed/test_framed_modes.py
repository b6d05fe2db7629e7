"""What becomes of payloads: operations, echo, channels."""

from __future__ import annotations

import json

import cbor2
import msgspec
import pytest
import trio

from netd.hub.config import HubConfig
from netd.services.framed.config import FramedConfig
from tests.services.framed.lab import echoes, eventually, listening, serving

# --- echo ---


async def test_an_echo_sends_back_what_came_in_its_order_empty_frames_too() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        payloads = [b"hello", b"", b"x" * 70_000, b"\x00\xff", b"{}"]
        await client.send(*payloads)
        assert [await client.next() for _ in payloads] == payloads
        view = house.service.connections()[0]
        assert (view.messages_in, view.messages_out, view.mode) == (5, 5, "echo")
        assert view.bytes_in == view.bytes_out == sum(map(len, payloads)) + 4 * len(payloads)


async def test_an_echo_without_framing_returns_the_stream() -> None:
    async with serving(mode="echo", framing="none", handshake="none") as house:
        client = await house.client()
        await client.raw(b"GET / HTTP/1.0\r\n")
        assert await client.bytes(16) == b"GET / HTTP/1.0\r\n"


@pytest.mark.parametrize(
    ("codec", "good", "bad"),
    [
        ("text", "grün".encode(), b"\xff"),
        ("json", b'{"a": [1, null]}', b"{"),
        ("cbor", cbor2.dumps({"a": 1}), b"\x1c"),
        ("messagepack", msgspec.msgpack.encode([1, "two"]), b"\xc1"),
    ],
)
async def test_a_checked_echo_ends_with_the_first_payload_that_does_not_decode(
    codec: str, good: bytes, bad: bytes
) -> None:
    async with serving(mode="echo", codec=codec, handshake="none") as house:
        client = await house.client()
        await client.send(good, good, bad, good)
        assert await client.rest() == [good, good]
        await eventually(lambda: house.exchange.closes[1007] == 1)


# --- operations ---


async def test_operations_in_json_and_in_messagepack_by_the_first_byte() -> None:
    async with serving() as house:
        text, binary = await house.client(), await house.client()
        await text.hello(name="text")
        await binary.send(msgspec.msgpack.encode({"type": "hello", "version": 1, "name": "binary"}))
        welcome = msgspec.msgpack.decode(await binary.next())
        assert welcome["type"] == "welcome"
        assert welcome["server"] == "netd"
        assert (await text.ask("subscribe", channel="public:a"))["type"] == "ok"
        published = {"type": "publish", "channel": "public:a", "data": {"n": 1}}
        await binary.send(msgspec.msgpack.encode(published))
        message = await text.hear("message")
        assert (message["channel"], message["data"], message["from"]) == ("public:a", {"n": 1}, welcome["session"])


@pytest.mark.parametrize("codec", ["json", "messagepack"])
async def test_a_listener_may_fix_the_format(codec: str) -> None:
    encode = {"json": msgspec.json.encode, "messagepack": msgspec.msgpack.encode}[codec]
    decode = {"json": msgspec.json.decode, "messagepack": msgspec.msgpack.decode}[codec]
    async with serving(codec=codec) as house:
        client = await house.client()
        await client.send(encode({"type": "ping", "ts": 5}))
        assert decode(await client.next()) == {"type": "pong", "ts": 5}


async def test_the_name_of_a_session_comes_from_its_hello_or_from_its_tags() -> None:
    async with serving() as house:
        one, two = await house.client(), await house.client()
        await one.hello(name="anna", tags={"role": "admin"})
        await two.say("handshake", version="1.0", tags={"name": "bert", "device": 7})
        await two.hello()
        clients = (await one.ask("list"))["clients"]
        assert {(each["name"], each.get("tags", {}).get("device")) for each in clients} == {
            ("anna", None),
            ("bert", "7"),
        }
        assert (await one.ask("direct", to="tag:device=7", data="psst"))["delivered"] == 1
        assert (await two.hear("direct"))["data"] == "psst"
        assert (await two.ask("direct", to="name:anna", data=[1]))["delivered"] == 1
        assert (await one.hear("direct"))["data"] == [1]


async def test_what_cannot_be_read_is_answered_and_the_session_goes_on() -> None:
    async with serving() as house:
        client = await (await house.client()).hello()
        await client.send(b"{", b'{"type": "nonsense"}', b"")
        for _ in range(3):
            assert (await client.hear("error"))["code"] == "invalid"
        assert (await client.ask("ping", ts=1))["type"] == "pong"


async def test_text_comes_back_where_there_is_no_application() -> None:
    async with serving() as house:
        client = await house.client()
        await client.say("text", text="hello")
        assert await client.hear("text") == {"type": "text", "text": "hello"}


async def test_a_close_is_obeyed() -> None:
    async with serving() as house:
        client = await (await house.client()).hello()
        after = b'{"type": "publish", "channel": "public:a", "data": 1}'
        await client.send(b'{"type": "close", "code": 1000, "reason": "done"}', after, b"nonsense")
        assert [json.loads(payload)["type"] for payload in await client.rest()] == ["close"]
        assert house.hub.info().published == 0
        await eventually(lambda: not house.hub.sessions)


async def test_a_kicked_client_is_told_why() -> None:
    async with serving() as house:
        client = await (await house.client()).hello(name="anna")
        assert house.hub.kick("name:anna", reason="enough") == 1
        last = json.loads((await client.rest())[-1])
        assert (last["type"], last["code"], last["reason"]) == ("close", 4010, "enough")
        await eventually(lambda: house.exchange.closes[4010] == 1)


async def test_a_session_that_is_resumed_keeps_its_id_and_its_old_connection_ends() -> None:
    async with serving() as house:
        first = await house.client()
        await first.say("hello", version=1, name="anna")
        welcome = await first.hear("welcome")
        second = await house.client()
        await second.say("hello", version=1, resume=welcome["resume"])
        again = await second.hear("welcome")
        assert again["session"] == welcome["session"]
        assert json.loads((await first.rest())[-1])["code"] == 4009
        await eventually(lambda: len(house.service.connections()) == 1)
        assert house.service.connection(welcome["session"]).name == "anna"


# --- channel ---


async def test_payloads_of_devices_are_published_to_a_channel_of_their_own() -> None:
    devices = listening(mode="channel", channel="public:devices:{tags.device}", codec="json")
    async with serving(devices, listening()) as house:
        device, watcher = await house.client(0), await house.client(1)
        await device.send(b'{"type": "handshake", "version": "1", "tags": {"device": "alpha"}}')
        await watcher.hello()
        await eventually(lambda: "device" in next(iter(house.exchange.connections)).session.tags)
        await watcher.ask("subscribe", channel="public:devices:alpha")
        await device.send(b'{"temperature": 21.5}', b"[1]")
        assert (await watcher.hear("message"))["data"] == {"temperature": 21.5}
        assert (await watcher.hear("message"))["data"] == [1]
        await watcher.say("publish", channel="public:devices:alpha", data={"set": 20})
        assert json.loads(await device.next()) == {"set": 20}
        await watcher.say("direct", to="tag:device=alpha", data="you")
        assert json.loads(await device.next()) == "you"
        assert house.service.connections()[0].channel == "public:devices:alpha"


async def test_a_plain_client_hears_the_others_and_not_itself() -> None:
    async with serving(mode="channel", channel="public:room", handshake="none", codec="text") as house:
        one, two = await house.client(), await house.client()
        await one.send(b"from one")
        assert await two.next() == b"from one"
        await two.send(b"from two")
        assert await one.next() == b"from two"


async def test_a_plain_client_hears_itself_where_it_is_to() -> None:
    async with serving(mode="channel", channel="public:room", handshake="none", echo_own=True) as house:
        client = await house.client()
        await client.send(b"\x00\x01")
        assert await client.next() == b"\x00\x01"


async def test_raw_text_and_values_reach_a_raw_client_as_bytes() -> None:
    raw = listening(mode="channel", channel="public:room", handshake="none", codec="raw")
    async with serving(raw, listening()) as house:
        plain, full = await house.client(0), await (await house.client(1)).hello()
        for data in ("text", {"a": 1}):
            await full.say("publish", channel="public:room", data=data)
        assert [await plain.next(), await plain.next()] == [b"text", b'{"a":1}']
        await full.ask("subscribe", channel="public:room")
        await plain.send(b"\xff\x00")
        assert (await full.hear("message"))["data64"] == "/wA="


@pytest.mark.parametrize("first", [b"hello", b'{"type": "handshake", "tags": {"room": "a"}}', b'{"a": 1}'])
async def test_a_client_without_the_tag_is_refused(first: bytes) -> None:
    async with serving(mode="channel", channel="public:{tags.device}") as house:
        client = await house.client()
        await client.send(first, b"more")
        assert await client.rest() == []
        await eventually(lambda: house.exchange.closes[1008] == 1)
        assert house.hub.info().published == 0


PRIVATE = {"name": "private", "subscribe": "token", "publish": "token"}


def with_token(*names: str, secret: str = "a-secret-of-sixteen", publish: str = "private:*") -> HubConfig:
    tokens = [
        {"name": name, "secret": secret + name, "subscribe": ["private:*"], "publish": [publish]} for name in names
    ]
    return HubConfig(namespace=[PRIVATE], token=tokens)


async def test_sessions_have_the_token_of_their_listener() -> None:
    plain = listening(mode="channel", channel="private:room", handshake="none", codec="text", token="devices")
    async with serving(plain, listening(token="devices"), hub=with_token("devices", "other")) as house:
        device, full = await house.client(0), await (await house.client(1)).hello()
        assert (await full.ask("subscribe", channel="private:room"))["type"] == "ok"
        await device.send(b"hello")
        assert (await full.hear("message"))["data"] == "hello"
        # what it permits is as the hub has it now
        house.hub.reconfigure(with_token("devices", publish="private:elsewhere"))
        assert (await full.ask("publish", channel="private:room", data="no"))["code"] == "denied"
        assert len(house.hub.sessions) == 2


async def test_sessions_whose_listeners_token_has_changed_come_again() -> None:
    before = listening()
    async with serving(before, hub=with_token("devices")) as house:
        old = await (await house.client()).hello()
        listen = before.model_copy(update={"token": "devices"})
        assert await house.settle(FramedConfig(listen=[listen])) == "running"
        client = await (await house.client()).hello()
        house.hub.reconfigure(with_token("devices", secret="another-secret-of-"))
        last = json.loads((await client.rest())[-1])
        assert (last["type"], last["code"], last["retry_after"]) == ("close", 1013, 1.0)
        again = await (await house.client()).hello()
        assert (await again.ask("subscribe", channel="private:room"))["type"] == "ok"
        # who came without one keeps that
        assert (await old.ask("ping", ts=1))["type"] == "pong"


async def test_a_listener_whose_token_there_is_not_says_so_and_serves_nobody() -> None:
    async with serving(token="devices", hub=with_token()) as house:
        await eventually(house.health.warnings)
        (warning,) = house.health.warnings()
        assert (warning.code, "no token 'devices'" in warning.message) == ("framed.token.0", True)
        last = json.loads((await (await house.client(settled=False)).rest())[-1])
        assert (last["type"], last["code"]) == ("close", 1013)
        assert house.exchange.rejections["policy"] == 1
        house.hub.reconfigure(with_token("devices"))
        await (await house.client()).hello()
        await eventually(lambda: not house.health.warnings())


async def test_a_channel_that_is_closed_to_it_refuses_a_plain_client() -> None:
    async with serving(mode="channel", channel="private:{session}", handshake="none") as house:
        client = await house.client(settled=False)
        assert await client.rest() == []
        await eventually(lambda: house.exchange.rejections["policy"] == 1)
        await eventually(lambda: house.exchange.places.total == 0)
        assert house.hub.sessions == {}


@pytest.mark.parametrize("failing", ["hub", "observer"])
async def test_what_others_raise_at_its_end_keeps_nothing_of_a_connection(failing: str) -> None:
    async with serving(listening(), listening(mode="echo")) as house:
        exchange = house.exchange
        gone: list[int] = []
        exchange.changed = lambda: gone.append(len(exchange.connections))

        def broken(*args: object) -> None:
            raise RuntimeError("somebody else's bug")

        client = await (await house.client()).hello()
        other = await house.client(1)
        if failing == "hub":
            house.hub.close = broken  # type: ignore[method-assign]
        else:
            exchange.observer.closed = broken
        client.socket.close()
        await eventually(lambda: len(gone) == 1)
        assert (exchange.places.total, [door.connections for door in exchange.doors.values()]) == (1, [0, 1])
        # and one that we end, as the look at all connections would
        (connection,) = exchange.connections
        connection.end(1000, "enough")
        assert await other.over() == b""
        await eventually(lambda: len(gone) == 2)
        assert (exchange.places.total, exchange.connections) == (0, {})


async def test_an_urgent_message_does_not_tear_an_echo() -> None:
    async with serving(mode="echo", limits={"send_buffer": 4096}) as house:
        client = await house.client(buffer=4096)
        (connection,) = house.exchange.connections
        large = bytes(range(256)) * 8000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, large)
            await eventually(lambda: connection.session.messages_in)
        house.hub.direct(connection.session.id, "urgent", priority=0)
        assert [await client.next(), await client.next()] == [large, b"urgent"]


async def test_a_bug_of_ours_ends_one_connection_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(mode="echo", handshake="none") as house:

        def broken(session: object) -> None:
            monkeypatch.undo()
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(house.hub, "open", broken)
        assert await (await house.client(settled=False)).over() == b""
        await eventually(lambda: house.exchange.places.total == 0)
        assert house.exchange.rejections["broken"] == 1
        assert await echoes(await house.client())


async def test_a_plain_client_may_listen_without_ever_sending() -> None:
    # the first frame may be a handshake, and never comes
    async with serving(mode="channel", channel="public:news") as house:
        client = await house.client()
        house.hub.publish(b"public:news", "extra")
        assert await client.next() == b"extra"


async def test_without_framing_each_chunk_is_a_payload() -> None:
    async with serving(mode="channel", channel="public:lines", framing="none", handshake="none") as house:
        heard = await house.client()
        spoken = await house.client()
        await spoken.raw(b"one line")
        assert await heard.bytes(8) == b"one line"


async def test_messages_of_both_kinds_of_listeners_meet_in_the_hub() -> None:
    plain = listening(mode="channel", channel="public:room", codec="text", handshake="none")
    async with serving(plain, listening(), listening(mode="echo")) as house:
        clients = [await house.client(0), await (await house.client(1)).hello(), await house.client(2)]
        await clients[1].ask("subscribe", channel="public:room")
        await clients[0].send(b"hi")
        assert (await clients[1].hear("message"))["data"] == "hi"
        await clients[2].send(b"alone")
        assert await clients[2].next() == b"alone"
        assert {view.mode for view in house.service.connections()} == {"channel", "operations", "echo"}
