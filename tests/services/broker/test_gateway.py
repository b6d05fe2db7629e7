"""The gateway: compression that is shared or not, independent clients, and what stays of connections: nothing."""

from __future__ import annotations

import json

import pytest
import trio
import trio_websocket
from websockets.sync.client import connect

from tests.services.broker.lab import OPEN, PUBLIC, Client, House, eventually, serving
from tests.services.framed.lab import trusting
from tests.services.trace.pems import FIRST_CERTIFICATE

LONG = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 50})
OFFER = "permessage-deflate; client_max_window_bits"


@pytest.fixture(params=[(False, False), (True, True)], ids=["shared", "takeover"])
def deflate(request: pytest.FixtureRequest) -> dict[str, bool]:
    server, client = request.param
    return {"deflate": True, "server_takeover": server, "client_takeover": client}


async def test_a_message_is_compressed_for_those_who_agreed_on_it(deflate: dict[str, bool]) -> None:
    async with serving(**deflate) as house:
        packed = [await house.client("/ws/public:room", offer=OFFER) for _ in range(3)]
        plain = await house.client("/ws/public:room")
        for number in range(5):
            await packed[0].text(f"{number} {LONG}")
            for client in (*packed[1:], plain):
                assert await client.message() == f"{number} {LONG}"
        assert packed[1].wire < plain.wire / 5
        assert sorted(view.deflate for view in house.service.connections()) == [False, True, True, True]


async def test_operations_are_compressed_in_the_format_that_the_first_frame_settles(deflate: dict[str, bool]) -> None:
    async with serving(**deflate) as house:
        client = await (await house.client(offer=OFFER)).hello()
        await client.ask("subscribe", channel="public:room")
        before = client.wire
        house.hub.publish(b"public:room", LONG)
        assert (await client.hear("message"))["data"] == LONG
        assert client.wire - before < 500


async def test_urgent_messages_overtake_compressed_ones_and_all_can_be_read(deflate: dict[str, bool]) -> None:
    async with serving(slow_consumer="drop-oldest", backpressure=300_000, send_buffer=8192, **deflate) as house:
        client = await house.client("/ws/public:room?role=sub", offer=OFFER, buffer=4096)
        (session,) = house.hub.present()
        texts = []
        for number in range(300):
            text = f"{number} " + "".join(chr(33 + (number * at * at) % 90) for at in range(3000))
            texts.append(text)
            house.hub.publish(b"public:room", text)
            if number % 10 == 0:
                house.hub.direct(session.id, f"urgent {number} {LONG}", priority=0)
            if number % 50 == 0:
                await trio.lowlevel.checkpoint()
        house.hub.publish(b"public:room", "the end")
        seen = []
        while not seen or seen[-1] != "the end":
            seen.append(await client.message())
        assert set(seen) - set(texts) >= {"the end"}
        (connection,) = house.exchange.connections
        assert connection.outbox.dropped == 300 + 30 + 1 - len(seen)


async def test_short_messages_are_sent_as_they_are_and_a_reload_says_what_is_short() -> None:
    async with serving(deflate=True) as house:
        client = await house.client("/ws/public:room?role=sub", offer=OFFER)
        before = client.wire
        house.hub.publish(b"public:room", "a" * 100)
        assert await client.message() == "a" * 100
        assert client.wire - before == 102
        await house.live(deflate_least=50)
        before = client.wire
        house.hub.publish(b"public:room", "a" * 100)
        assert await client.message() == "a" * 100
        assert client.wire - before < 20


async def test_a_bomb_is_stopped_where_a_message_may_be_no_longer() -> None:
    async with serving(deflate=True, max_message=1 << 16) as house:
        client = await house.client("/app", offer=OFFER)
        await client.text("x" * (1 << 16))
        assert await client.message() == "x" * (1 << 16)
        await client.text("x" * (1 << 24))
        assert (await client.ended()).code == 1009


async def test_trio_websocket_and_websockets_get_on_with_it() -> None:
    async with serving(deflate=True) as house:
        url = f"ws://127.0.0.1:{house.port()}"
        async with trio_websocket.open_websocket_url(f"{url}/ws/public:room") as one:

            def other() -> list[str | bytes]:
                with connect(f"{url}/ws/public:room?echo=1") as socket:
                    socket.send(LONG)
                    socket.ping().wait(5)
                    return [socket.recv(timeout=5), socket.recv(timeout=5)]

            async with trio.open_nursery() as nursery:
                heard: list[str | bytes] = []

                async def listen() -> None:
                    heard.extend(await trio.to_thread.run_sync(other))

                nursery.start_soon(listen)
                assert await one.get_message() == LONG
                await one.send_message("from trio")
            assert heard == [LONG, "from trio"]
        assert one.closed is not None
        assert one.closed.code == 1000


async def test_over_tls(tls: object) -> None:
    async with serving(listen={"tls": tls}, deflate=True) as house:
        one = await house.client("/ws/public:room", tls=trusting(FIRST_CERTIFICATE), offer=OFFER)
        other = await house.client(tls=trusting(FIRST_CERTIFICATE))
        await other.hello()
        await other.ask("subscribe", channel="public:room")
        await one.text(LONG)
        assert (await other.hear("message"))["data"] == LONG
        assert [view.tls for view in house.service.connections()] == [True, True]


async def test_what_was_sent_with_the_handshake_is_not_lost() -> None:
    async with serving() as house:
        stream, sock = await house.connect()
        client = Client(stream, sock)
        lines = ["GET /app HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
        hello = b"\x81\x82" + bytes(4) + b"hi"
        await client.raw("\r\n".join(lines).encode() + hello[:3])
        await trio.testing.wait_all_tasks_blocked()
        await client.raw(hello[3:])
        data = b""
        while not data.endswith(b"\x81\x02hi"):
            data += await stream.receive_some(4096)
        assert data.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("error", [ValueError, OSError])
@pytest.mark.parametrize("ask", ["client", "events"])
async def test_nothing_stays_of_one_that_cannot_be_taken_over(
    ask: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as house:

        def seat(*arguments: object, **more: object) -> None:
            raise error("no room")

        monkeypatch.setattr(house.exchange, "seat", seat)
        with pytest.raises((AssertionError, trio.EndOfChannel, trio.BrokenResourceError, trio.TooSlowError)):
            await (house.client() if ask == "client" else (await house.events()).event())
        await eventually(lambda: not house.exchange.places.total)
        assert not house.hub.sessions
        why = "gone" if error is OSError else "broken"
        assert house.exchange.rejections[why] == 1


async def test_nothing_stays_of_connections_that_are_gone() -> None:
    async with serving(deflate=True) as house:
        clients = [await house.client("/ws/public:room", offer=OFFER if number % 2 else "") for number in range(50)]
        clients += [await house.client() for _ in range(50)]
        streams = [await house.events() for _ in range(20)]
        await eventually(lambda: house.service.snapshot().sessions == 120)
        for client in clients:
            await client.stream.aclose()
        for stream in streams:
            await stream.stream.aclose()
        await eventually(lambda: not house.exchange.connections)
        await eventually(lambda: house.exchange.places.total == 0)
        assert _empty(house)


def _empty(house: House) -> bool:
    return not house.hub.sessions and not house.hub.heard and not house.exchange._unwelcome


async def test_the_hub_has_no_room_for_another() -> None:
    async with serving(hub=OPEN.model_copy(update={"max_sessions": 1})) as house:
        await house.client("/ws/public:room")
        stream, sock = await house.connect()
        late = await Client(stream, sock).handshake("/ws/public:room")
        assert (await late.ended()).code == 1013
        await eventually(lambda: house.exchange.places.total == 1)
        assert house.counted("netd_broker_rejected_total", why="policy") == 1


async def test_the_token_of_a_handshake_is_its_sessions() -> None:
    from netd.hub.config import Token

    token = Token(name="one", secret="s" * 32, subscribe=["closed:*"], tags={"device": "alpha"})
    closed = PUBLIC.model_copy(update={"name": "closed", "subscribe": "token"})
    async with serving(hub=OPEN.model_copy(update={"namespace": [closed], "token": [token]})) as house:
        await house.client("/ws/closed:room?role=sub", headers=[f"Authorization: Bearer {'s' * 32}"])
        (session,) = house.hub.find("tag:device=alpha")
        assert (session.token, session.transport) == ("one", "websocket")


async def test_contexts_of_their_own_are_for_so_many_websockets() -> None:
    both = {"deflate": True, "server_takeover": True, "client_takeover": True, "max_takeover": 2}
    async with serving(**both) as house:

        def has_context(client: Client) -> bool:
            return b"no_context_takeover" not in client.answer

        clients = [await house.client("/ws/public:room", offer=OFFER) for _ in range(4)]
        assert [has_context(client) for client in clients] == [True, True, False, False]
        await clients[0].text(LONG)
        assert [await client.message() for client in clients[1:]] == [LONG] * 3
        assert (await clients[0].close()).code == 1000
        await eventually(lambda: house.service.count == 3)
        assert has_context(await house.client("/ws/public:room", offer=OFFER))
        await house.live(max_takeover=0)
        assert not has_context(await house.client("/ws/public:room", offer=OFFER))
