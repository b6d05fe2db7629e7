"""What a connection may cost, and that a limit holds from the next message on, for those who are there too."""

from __future__ import annotations

import json
import socket
import time

import pytest
import trio

from netd.hub.config import HubConfig
from netd.net.linux import SO_BUF_LOCK, SOCK_SNDBUF_LOCK
from netd.services.framed.notices import Backpressure, Closed, Drain, Rejected
from netd.wire.framing import frame
from tests.services.framed.lab import OPEN, PATIENCE, PUBLIC, Client, House, echoes, eventually, listening, serving


async def stalled(house: House, number: int = 0) -> Client:
    """A client that has a small buffer and reads nothing."""
    return await house.client(number, buffer=4096)


# --- who may come ---


async def test_one_too_many_is_closed_and_room_is_made_again() -> None:
    async with serving(mode="echo", limits={"max_connections": 2}) as house:
        first, second = await house.client(), await house.client()
        third = await house.client(settled=False)
        assert await third.over() == b""
        assert house.exchange.rejections["clients"] == 1
        first.socket.close()
        await eventually(lambda: house.exchange.places.total == 1)
        assert await echoes(await house.client())
        assert await echoes(second)
        assert house.notices(Rejected)[0].why == "clients"


async def test_one_too_many_of_an_address_is_closed() -> None:
    async with serving(mode="echo", limits={"connections_per_address": 1}) as house:
        assert await echoes(await house.client())
        assert await (await house.client(settled=False)).over() == b""
        assert house.exchange.rejections["address"] == 1
        await house.live(connections_per_address=2)
        assert await echoes(await house.client())


async def test_arrivals_are_bounded_by_themselves() -> None:
    async with serving(mode="echo", handshake="required", limits={"arriving": 2}) as house:
        slow = [await house.client(settled=False) for _ in range(2)]
        await eventually(lambda: house.service.snapshot().arriving == 2)
        assert await (await house.client(settled=False)).over() == b""
        assert house.exchange.rejections["arriving"] == 1
        await slow[0].send(b'{"type": "handshake"}', b"in")
        assert await slow[0].next() == b"in"


async def test_sessions_the_hub_has_no_room_for_are_closed() -> None:
    async with serving(hub=OPEN.model_copy(update={"max_sessions": 1})) as house:
        client = await (await house.client()).hello()
        last = json.loads((await (await house.client(settled=False)).rest())[-1])
        assert (last["type"], last["code"]) == ("close", 1013)
        assert house.exchange.rejections["policy"] == 1
        await eventually(lambda: house.exchange.places.total == 1)
        assert (await client.ask("ping", ts=1))["type"] == "pong"


# --- sizes ---


async def test_the_largest_frame_is_inclusive_and_a_larger_one_ends_the_session() -> None:
    async with serving(mode="echo", limits={"max_frame": 1000}) as house:
        client = await house.client()
        assert await echoes(client, b"x" * 1000)
        await client.send(b"before", b"x" * 1001, b"after")
        assert await client.rest() == [b"before"]
        await eventually(lambda: house.notices(Closed))
        assert house.notices(Closed)[0].code == 1009


async def test_in_operations_it_is_told_before_the_end() -> None:
    async with serving(limits={"max_frame": 100}) as house:
        client = await house.client()
        await client.say("ping", ts=1)
        await client.raw((101).to_bytes(4, "big"))
        messages = [json.loads(payload) for payload in await client.rest()]
        assert [message["type"] for message in messages] == ["pong", "close"]
        assert messages[1]["code"] == 1009


async def test_a_smaller_limit_holds_for_who_is_there() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        assert await echoes(client, b"x" * 500)
        await house.live(max_frame=100)
        await client.send(b"x" * 101)
        assert await client.rest() == []


async def test_unfinished_frames_are_bounded_in_total() -> None:
    async with serving(mode="echo", handshake="none", limits={"max_unfinished": 1 << 20}) as house:
        small, large, other = await house.client(), await house.client(), await house.client()
        await small.raw(frame(b"x" * 10_000)[:5_000])
        for hungry in (large, other):
            await hungry.raw((1 << 22).to_bytes(4, "big") + b"x" * 800_000)
        await eventually(lambda: house.exchange.closes[1013] == 1)
        await small.raw(frame(b"x" * 10_000)[5_000:])
        assert await small.next() == b"x" * 10_000
        assert len(house.exchange.connections) == 2


# --- times ---


async def test_an_idle_client_is_closed_and_one_that_speaks_is_not() -> None:
    async with serving(limits={"idle_timeout": 1.2}) as house:
        idle, busy = await house.client(), await house.client()
        gone = trio.Event()

        async def speak() -> None:
            while not gone.is_set():
                await busy.ask("ping", ts=1)
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak)
            last = json.loads((await idle.rest())[-1])
            gone.set()
        assert (last["type"], last["code"], last["reason"]) == ("close", 1000, "idle")
        assert len(house.exchange.connections) == 1


async def test_a_silent_client_is_pinged_and_need_not_answer() -> None:
    async with serving(limits={"ping_interval": 0.3}) as house:
        client = await (await house.client()).hello()
        one, two = await client.hear("ping"), await client.hear("ping")
        assert two["ts"] > one["ts"]
        assert abs(one["ts"] / 1000 - time.time()) < 60
        assert (await client.ask("ping", ts=1))["type"] == "pong"


async def test_the_welcome_says_how_often_it_is_pinged() -> None:
    async with serving(limits={"ping_interval": 17.0}) as house:
        client = await house.client()
        await client.say("hello", version=1)
        assert (await client.hear("welcome"))["heartbeat"] == 17.0


async def test_keepalive_and_send_buffer_are_set_on_sockets_and_changed_on_them() -> None:
    async with serving(mode="echo", limits={"keepalive": 30.0, "send_buffer": 65_536}) as house:
        await house.client()
        (connection,) = house.exchange.connections
        sock = connection.socket

        def options() -> tuple[int, int, int, int]:
            return (
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
            )

        assert options() == (1, 30, 10, 2 * 65_536)
        await house.live(keepalive=90.0, send_buffer=100_000)
        assert options() == (1, 90, 30, 200_000)
        await house.live(keepalive=0.0)
        assert options()[0] == 0
        # and by a new generation
        grown = house.service.config.model_copy(
            update={"keepalive": 60.0, "listen": [*house.service.config.listen] * 2}
        )
        assert await house.settle(grown) == "running"
        assert options() == (1, 60, 20, 200_000)


async def test_a_send_buffer_that_is_not_configured_any_more_goes_back_to_the_kernel() -> None:
    async with serving(mode="echo", limits={"send_buffer": 65_536}) as house:
        await house.client()
        (connection,) = house.exchange.connections
        try:
            assert connection.socket.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == SOCK_SNDBUF_LOCK
        except OSError:
            pytest.skip("this kernel has no SO_BUF_LOCK: it came with 5.14")
        await house.live(send_buffer=0)
        assert connection.socket.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK) == 0
        assert connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * 65_536


# --- rates ---


async def test_input_above_its_rate_waits_and_loses_nothing() -> None:
    async with serving(mode="echo", limits={"input_rate": 200_000, "input_burst": 50_000}) as house:
        client = await house.client()
        begun = trio.current_time()
        payloads = [bytes([number]) * 10_000 for number in range(20)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, *payloads)
            assert [await client.next() for _ in payloads] == payloads
        # but for what the burst and one read let through at once: the limit is what is held against the clock
        assert trio.current_time() - begun >= (200_080 - 50_000 - 131_072) / 200_000


async def test_input_that_is_paused_says_so_and_is_lifted_by_its_time() -> None:
    async with serving(mode="echo", limits={"input_rate": 100_000, "input_burst": 1000}) as house:
        client = await house.client()
        await client.send(b"x" * 30_000)
        await eventually(lambda: house.service.connections()[0].paused == ["rate"])
        assert await client.next() == b"x" * 30_000
        await eventually(lambda: house.service.connections()[0].paused == [])


async def test_output_keeps_to_its_rate_and_burst_in_every_stretch_of_time() -> None:
    rate, burst = 100_000, 20_000
    room = {"channel": "public:room", "handshake": "none", "codec": "raw"}
    async with serving(mode="channel", **room, limits={"rate": rate, "burst": burst}) as house:
        client = await house.client()
        began = trio.current_time()
        for _ in range(60):
            house.hub.publish(b"public:room", b"x" * 996)
        arrived = 0
        while arrived < 60_000:
            arrived += len(await client.bytes(1))
            assert arrived <= burst + rate * (trio.current_time() - began) + 1000
        assert trio.current_time() - began >= (60_000 - burst) / rate * 0.9


async def test_more_urgent_messages_go_first() -> None:
    async with serving(limits={"rate": 2000, "burst": 1}) as house:
        client = await (await house.client()).hello()
        await client.ask("subscribe", channel="public:room")
        for number, priority in enumerate((200, 128, 5, 128, 0)):
            house.hub.publish(b"public:room", f"{number}" + " " * 300, priority=priority)
        order = [(await client.hear("message"))["data"][0] for _ in range(5)]
        # the first may be on its way already when the others come
        assert [number for number in order if number != "0"] == ["4", "2", "1", "3"]
        assert order[-1] == "0" or order[0] == "0"


async def test_operations_a_second_are_the_hubs_and_refuse_without_closing() -> None:
    async with serving(hub=OPEN.model_copy(update={"messages_per_second": 1.0, "burst": 3})) as house:
        client = await house.client()
        answers = [await client.ask("ping", ts=1) for _ in range(5)]
        assert [answer["type"] for answer in answers] == ["pong"] * 3 + ["error"] * 2
        assert answers[-1]["code"] == "rate"


@pytest.mark.parametrize("lifted", [0, 50_000_000])
async def test_who_is_held_back_by_a_rate_goes_on_when_it_is_lifted(lifted: int) -> None:
    async with serving(mode="echo", limits={"input_rate": 10, "input_burst": 10}) as house:
        client = await house.client()
        (connection,) = house.exchange.connections
        await client.send(b"x" * 1000)
        assert await client.next() == b"x" * 1000
        assert house.service.connections()[0].paused == ["rate"]
        timers = house.reactor.snapshot().timers
        await house.live(input_rate=lifted, input_burst=0)
        await eventually(lambda: not connection.held)
        assert await echoes(client)
        assert house.reactor.snapshot().timers < timers


async def test_a_rate_that_is_lowered_keeps_who_is_held_back() -> None:
    async with serving(mode="echo", limits={"input_rate": 20, "input_burst": 10}) as house:
        client = await house.client()
        await client.send(b"x" * 1000)
        assert await client.next() == b"x" * 1000
        await house.live(input_rate=10)
        assert house.service.connections()[0].paused == ["rate"]
        # and so does a new generation
        grown = house.service.config.model_copy(update={"input_rate": 0, "listen": [*house.service.config.listen] * 2})
        assert await house.settle(grown) == "running"
        assert await echoes(client)


async def test_an_echo_that_waits_for_its_reader_goes_on_when_more_may_wait() -> None:
    limits = {"backpressure": 65_536, "send_buffer": 4096, "max_frame": 1000}
    async with serving(mode="echo", handshake="none", limits=limits) as house:
        client = await stalled(house)
        (connection,) = house.exchange.connections
        data = frame(b"x" * 1000) * 2000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.raw, data)
            await eventually(lambda: connection.held)
            await house.live(backpressure=8 << 20)
            # all of it is read, although nobody takes what comes back
            await eventually(lambda: connection.bytes_in == len(data))
        assert not connection.held


async def test_output_that_a_rate_holds_back_goes_on_when_it_is_lifted() -> None:
    async with serving(limits={"rate": 10, "burst": 10}) as house:
        client = await (await house.client()).hello()
        for number in range(3):
            house.hub.direct(client.id, f"{number}" * 2000)
        await eventually(lambda: house.reactor.snapshot().timers)
        await house.live(rate=0)
        assert [(await client.hear("direct"))["data"][0] for _ in range(3)] == ["0", "1", "2"]


async def test_a_connection_that_ended_leaves_neither_its_timer_nor_its_frame() -> None:
    async with serving(mode="echo", handshake="none", limits={"input_rate": 1000}) as house:
        idle = house.reactor.snapshot().timers
        client = await house.client()
        (connection,) = house.exchange.connections
        await client.raw((300_000).to_bytes(4, "big") + bytes(100_000))
        await eventually(lambda: connection.held and connection.decoder.buffered)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()
        # nothing is read from it, so nothing but its end is seen
        await eventually(lambda: not house.exchange.connections)
        assert house.reactor.snapshot().timers == idle
        assert connection.decoder.buffered == 0


# --- who does not read ---


async def test_a_client_that_does_not_read_is_closed_within_the_bound_and_told() -> None:
    limits = {"backpressure": 300_000, "send_buffer": 8192}
    async with serving(limits=limits) as house:
        client = await (await stalled(house)).hello()
        await client.ask("subscribe", channel="public:room")
        (connection,) = house.exchange.connections
        most = 0
        for _ in range(200):
            house.hub.publish(b"public:room", "x" * 10_000)
            most = max(most, connection.outbox.size)
            await trio.lowlevel.checkpoint()
        assert most <= 300_000
        await eventually(lambda: house.exchange.closes[4008] == 1)
        assert house.hub.sessions == {}
        (told,) = house.notices(Backpressure)
        assert 150_000 < told.queued <= 300_000
        assert house.notices(Closed)[0].why == "did not read"
        assert house.counted("netd_framed_backpressure_total") == 1


async def test_one_that_reads_in_time_hears_that_it_was_too_slow() -> None:
    async with serving(limits={"backpressure": 100_000, "send_buffer": 8192}) as house:
        client = await (await stalled(house)).hello()
        await client.ask("subscribe", channel="public:room")
        for _ in range(100):
            house.hub.publish(b"public:room", "x" * 10_000)
        last = json.loads((await client.rest())[-1])
        assert (last["type"], last["code"]) == ("close", 4008)


async def test_who_is_ended_while_its_outbox_is_nearly_full_gets_all_of_it_and_is_told() -> None:
    async with serving(limits={"backpressure": 100_000}) as house:
        client = await (await house.client()).hello()
        (connection,) = house.exchange.connections
        # nothing is written meanwhile: the reactor has no turn
        for _ in range(99):
            assert house.hub.direct(client.id, "x" * 950)
        assert house.hub.direct(client.id, "y" * (100_000 - connection.outbox.size - 40))
        assert 99_990 < connection.outbox.size <= 100_000
        house.hub.kick(client.id, reason="enough")
        messages = [json.loads(payload) for payload in await client.rest()]
        assert [message["type"] for message in messages] == ["direct"] * 100 + ["close"]
        assert (messages[-1]["code"], messages[-1]["reason"]) == (4010, "enough")


async def test_a_message_that_is_larger_than_what_may_wait_is_dropped_and_ends_nobody() -> None:
    async with serving(limits={"backpressure": 100_000}) as house:
        client = await (await house.client()).hello()
        assert house.hub.direct(client.id, "x" * 100_001) == 0
        assert house.hub.direct(client.id, "after") == 1
        assert (await client.hear("direct"))["data"] == "after"
        assert house.service.connection(client.id).dropped == 1
        assert not house.notices(Closed)


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-ephemeral"])
async def test_a_policy_that_drops_keeps_the_session(policy: str) -> None:
    limits = {"backpressure": 100_000, "send_buffer": 8192, "slow_consumer": policy}
    async with serving(limits=limits) as house:
        client = await (await stalled(house)).hello()
        await client.ask("subscribe", channel="public:room")
        for number in range(500):
            house.hub.publish(b"public:room", f"{number:06}" + "x" * 2000, ephemeral=True)
            await trio.lowlevel.checkpoint()
        house.hub.direct(client.id, "the end")
        numbers = []
        while (message := await client.hear())["type"] == "message":
            numbers.append(int(message["data"][:6]))
        assert message == {"type": "direct", "data": "the end"}
        assert numbers == sorted(set(numbers))
        assert len(numbers) < 500
        view = house.service.connection(client.id)
        assert view.dropped == 500 - len(numbers)
        await eventually(lambda: house.notices(Drain))


async def test_an_echo_that_is_not_read_stops_reading_and_loses_nothing() -> None:
    limits = {"backpressure": 200_000, "send_buffer": 8192, "max_frame": 1 << 20}
    async with serving(mode="echo", limits=limits) as house:
        client = await stalled(house)
        (connection,) = house.exchange.connections
        payloads = [number.to_bytes(4, "big") * 25_000 for number in range(40)]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, *payloads)
            await eventually(lambda: house.service.connections()[0].paused == ["echo"])
            # 4 MB are offered; what is taken is the bound and what was on its way
            with trio.fail_after(PATIENCE):
                taken = -1
                while taken != connection.bytes_in:
                    taken = connection.bytes_in
                    for _ in range(50):
                        await trio.lowlevel.checkpoint()
            assert connection.outbox.size < 100_000 + 400_000
            assert [await client.next() for _ in payloads] == payloads
        assert house.service.connections()[0].paused == []
        assert connection.outbox.dropped == 0
        assert house.notices(Backpressure)
        assert house.notices(Drain)


async def test_one_frame_larger_than_the_bound_still_comes_back() -> None:
    async with serving(mode="echo", limits={"backpressure": 65_536, "max_frame": 4 << 20}) as house:
        client = await house.client()
        payload = bytes(range(256)) * 16_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, payload, payload)
            assert await client.next() == payload
            assert await client.next() == payload


async def test_a_new_bound_holds_for_who_is_there() -> None:
    room = {"channel": "public:room", "handshake": "none"}
    async with serving(listening(mode="channel", **room), hub=HubConfig(namespace=[PUBLIC])) as house:
        client = await stalled(house)
        (connection,) = house.exchange.connections
        await house.live(backpressure=65_536, send_buffer=4096)
        for _ in range(100):
            house.hub.publish(b"public:room", "x" * 10_000)
            assert connection.outbox.size <= 65_536
        await eventually(lambda: house.exchange.closes[4008] == 1)
        await client.over()
