"""What a WebSocket owes its client: closes, pings, limits, slow readers, half a connection."""

from __future__ import annotations

import os

import pytest
import trio

from netd.services.broker.notices import Backpressure, Closed
from netd.wire.messages import CloseCode
from netd.wire.websocket import BINARY, PING, TEXT, Close, Pong, frame
from tests.services.broker.lab import OPEN, PATIENCE, PUBLIC, eventually, serving


def masked(opcode: int, payload: bytes = b"") -> bytes:
    return frame(opcode, payload, key=os.urandom(4))


# --- closes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "answered"), [(1000, 1000), (4321, 4321), (None, 1005)])
async def test_a_close_is_answered_with_its_code(code: int | None, answered: int) -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        assert await client.close(code, "bye" if code else "") == Close(answered, "bye" if code else "")
        await eventually(lambda: not house.exchange.connections)
        (closed,) = house.notices(Closed)
        assert closed.code == (code or 1000)
        # a code of the client's own is no label of a metric
        known = str(code or 1000) if code != 4321 else "0"
        assert house.counted("netd_broker_closed_total", code=known) == 1


async def test_what_waits_goes_out_before_the_answer_to_a_close_and_what_comes_behind_it_is_ignored() -> None:
    async with serving() as house:
        client = await house.client("/app")
        close = b"\x88\x80" + bytes(4)
        await client.raw(masked(TEXT, b"one") + masked(TEXT, b"two") + close + masked(TEXT, b"three") + b"\xff\xff")
        assert await client.rest() == ["one", "two", Close(1005, "")]


async def test_operations_hear_a_close_message_and_a_close_frame() -> None:
    async with serving() as house:
        client = await (await house.client()).hello()
        house.hub.kick(client.id, CloseCode.KICKED, "out with you")
        last = await client.hear("close")
        assert (last["code"], last["reason"]) == (4010, "out with you")
        assert await client.ended() == Close(4010, "out with you")


async def test_a_client_that_asks_to_be_closed_is() -> None:
    async with serving() as house:
        client = await house.client()
        await client.say("close", code=1000, reason="enough")
        assert (await client.hear("close"))["reason"] == "enough"
        assert (await client.ended()).code == 1000


async def test_a_code_that_must_not_be_sent_becomes_another() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        (connection,) = house.exchange.connections
        connection.close(1006, "no such frame")
        assert await client.ended() == Close(1000, "no such frame")


async def test_a_client_that_vanishes_is_forgotten() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        client.socket.close()
        await eventually(lambda: not house.exchange.connections and not house.hub.sessions)
        assert house.exchange.places.total == 0


# --- what breaks the protocol ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"not masked"), 1002),
        (b"\x83\x80" + bytes(4), 1002),
        (b"\x80\x80" + bytes(4), 1002),
        (b"\xc1\x80" + bytes(4), 1002),
        (b"\x89\xfe\x00\x7e" + bytes(4), 1002),
        (b"\x88\x81" + bytes(5), 1002),
        (masked(TEXT, b"\xff"), 1007),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big"), 1009),
    ],
    ids=["mask", "opcode", "continuation", "rsv", "long ping", "short close", "utf-8", "too large"],
)
async def test_what_breaks_rfc_6455_ends_the_connection_with_its_code_once_what_came_before_was_served(
    sent: bytes, code: int
) -> None:
    async with serving() as house:
        client = await house.client("/app")
        await client.raw(masked(TEXT, b"before") + sent + masked(TEXT, b"after"))
        before, close = await client.rest()
        assert (before, close.code) == ("before", code)
        assert close.reason.startswith("cannot ")


async def test_a_limit_that_a_reload_changes_holds_from_the_next_message_on() -> None:
    async with serving() as house:
        client, other = await house.client("/app"), await house.client("/app")
        await client.binary(b"x" * 1000)
        assert await client.message() == b"x" * 1000
        await house.live(max_message=999)
        await client.binary(b"x" * 1000)
        assert (await client.ended()).code == 1009
        await other.binary(b"x" * 999)
        assert await other.message() == b"x" * 999


async def test_fragments_without_end_are_cut_off() -> None:
    async with serving(max_fragments=100) as house:
        client = await house.client("/app")
        await client.raw(b"\x01\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 200)
        assert (await client.ended()).code == 1009


async def test_those_who_hold_most_of_what_is_unfinished_are_ended() -> None:
    async with serving(max_unfinished=100_000) as house:
        large, small = await house.client("/app"), await house.client("/app")
        await large.raw(b"\x82\xff" + (200_000).to_bytes(8, "big") + bytes(4) + bytes(150_000))
        await small.raw(b"\x82\xff" + (200_000).to_bytes(8, "big") + bytes(4) + bytes(1000))
        assert (await large.ended()).code == 1013
        await small.raw(bytes(199_000))
        assert len(await small.message()) == 200_000


# --- pings -----------------------------------------------------------------------------------------------------------


async def test_pings_are_answered_also_within_a_message() -> None:
    async with serving() as house:
        client = await house.client("/app")
        first, rest = b"\x01\x83" + bytes(4) + b"abc", b"\x80\x83" + bytes(4) + b"def"
        await client.raw(first + masked(PING, b"one") + masked(PING, b"two") + rest)
        assert sorted([await client.pong(), await client.pong()]) == [b"one", b"two"]
        assert await client.message() == "abcdef"


async def test_of_a_flood_of_pings_the_last_is_answered_and_few_others() -> None:
    async with serving() as house:
        client = await house.client("/app")
        await client.raw(b"".join(masked(PING, b"%d" % number) for number in range(2000)))
        count = 1
        while (await client.pong()) != b"1999":
            count += 1
        assert count < 200


async def test_a_silent_client_is_pinged_and_stays_if_it_answers() -> None:
    async with serving(ping_interval=0.01, ping_timeout=10.0) as house:
        client = await house.client("/ws/public:room")
        payload = await client.pinged()
        await client.frame(0xA, payload)
        await client.pinged()
        assert not house.notices(Closed)


async def test_half_a_connection_is_noticed() -> None:
    async with serving(ping_interval=0.01, ping_timeout=0.5) as house:
        client = await house.client("/ws/public:room")
        close = await client.ended()  # it reads, and answers no ping
        assert (close.code, close.reason) == (1011, "did not answer a ping")


async def test_an_event_stream_is_kept_alive_by_comments_and_need_not_answer() -> None:
    async with serving(ping_interval=0.01, ping_timeout=0.01) as house:
        stream = await house.events()
        await stream.event()
        assert await stream.comment() == ":"
        assert await stream.comment() == ":"


async def test_an_idle_client_is_ended() -> None:
    async with serving(idle_timeout=0.5) as house:
        client = await house.client("/ws/public:room")
        assert await client.ended() == Close(1000, "idle")


async def test_a_ping_to_be_traced_by_is_long_enough() -> None:
    async with serving() as house:
        client = await house.client()
        (connection,) = house.exchange.connections
        carrier = connection.carrier
        assert carrier is not None
        carried: list[bool] = []
        async with trio.open_nursery() as nursery:

            async def carry() -> None:
                carried.append(await carrier.carry())

            nursery.start_soon(carry)
            assert 96 <= len(await client.pinged()) <= 125
        assert carried == [True]


# --- slow readers ----------------------------------------------------------------------------------------------------


async def test_one_that_does_not_read_is_cut_off_and_the_others_are_not() -> None:
    async with serving(backpressure=256 * 1024, max_message=64 * 1024, send_buffer=16 * 1024) as house:
        deaf = await house.client("/ws/public:room?role=sub", buffer=4096)
        good = await house.client("/ws/public:room?role=sub")
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(400):
                    house.hub.publish(b"public:room", b"%d" % number + bytes(2000))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(publish)
            for number in range(400):
                assert (await good.message()).startswith(b"%d" % number)
        await eventually(lambda: house.notices(Closed))
        (closed,) = house.notices(Closed)
        assert (closed.code, closed.why) == (4008, "did not read")
        assert house.notices(Backpressure)
        assert deaf.socket.fileno() >= 0


async def test_drop_oldest_keeps_the_connection_and_the_newest() -> None:
    limits = {"backpressure": 128 * 1024, "max_message": 64 * 1024, "send_buffer": 16 * 1024}
    async with serving(slow_consumer="drop-oldest", **limits) as house:
        client = await house.client("/ws/public:room?role=sub", buffer=4096)
        for number in range(500):
            house.hub.publish(b"public:room", b"%03d" % number + bytes(2000))
            await trio.lowlevel.checkpoint()
        seen = []
        while not seen or seen[-1] != 499:
            message = await client.message()
            assert isinstance(message, bytes)
            seen.append(int(message[:3]))
        assert seen == sorted(seen)
        assert len(seen) < 500
        (view,) = house.service.connections()
        assert view.dropped == 500 - len(seen)


async def test_pongs_do_not_pile_up_for_one_that_does_not_read() -> None:
    async with serving(backpressure=128 * 1024, max_message=64 * 1024, send_buffer=16 * 1024) as house:
        client = await house.client("/ws/public:room?role=sub", buffer=4096)
        for _ in range(100):
            house.hub.publish(b"public:room", bytes(1000))
        with trio.move_on_after(PATIENCE):
            for _ in range(200):
                await client.raw(masked(PING, bytes(125)) * 16)
        await eventually(lambda: house.reactor.snapshot().dirty == 0)
        assert house.exchange.totals().dropped == 0
        assert all(one.outbox.size <= 128 * 1024 for one in house.exchange.connections)


async def test_one_that_sends_too_fast_is_made_to_wait_and_no_longer_than_today_s_limits_want() -> None:
    async with serving(input_rate=1000, input_burst=1000) as house:
        client = await house.client("/app")
        await client.raw(masked(BINARY, bytes(1000)) * 60)
        await eventually(lambda: [view.paused for view in house.service.connections()] == [["rate"]])
        await house.live(input_rate=0)
        for _ in range(60):
            assert len(await client.message()) == 1000


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_second_hello_with_a_narrower_token_ends_what_it_does_not_permit() -> None:
    from netd.hub.config import Token

    wide = Token(name="wide", secret="w" * 32, subscribe=["secret:*"])
    narrow = Token(name="narrow", secret="n" * 32, subscribe=["secret:b"])
    secret = PUBLIC.model_copy(update={"name": "secret", "subscribe": "token"})
    hub = OPEN.model_copy(update={"namespace": [secret], "token": [wide, narrow]})
    async with serving(hub=hub) as house:
        client = await (await house.client()).hello(token="w" * 32)
        for channel in ("secret:a", "secret:b"):
            assert (await client.ask("subscribe", channel=channel))["type"] == "ok"
        await client.say("hello", version=1, token="n" * 32)
        error = await client.hear("error")
        assert (error["code"], error["channel"]) == ("denied", "secret:a")
        house.hub.publish(b"secret:a", 1)
        house.hub.publish(b"secret:b", 2)
        assert (await client.hear("message"))["data"] == 2


async def test_pongs_that_nobody_asked_for_are_taken() -> None:
    async with serving() as house:
        client = await house.client("/app")
        await client.raw(masked(0xA, b"unasked") + masked(TEXT, b"hello"))
        assert not isinstance(await client.event(), Pong)
