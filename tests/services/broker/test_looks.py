"""What a gateway concludes from silence, and what it may not; and how long reads are served beside all the others."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.services.broker.notices import Closed
from netd.sessions.connection import Held
from netd.wire.websocket import BINARY, Close, Ping, frame
from tests.services.broker.lab import House, eventually, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE

if TYPE_CHECKING:
    from netd.section import Tls


async def looked(house: House, times: int = 2) -> None:
    """The look at all connections was taken so often."""
    for _ in range(times):
        for _ in house.exchange.look():
            pass


@pytest.mark.parametrize("limits", [{"idle_timeout": 0.05}, {"ping_interval": 0.01, "ping_timeout": 0.05}])
async def test_one_that_nobody_reads_from_is_neither_idle_nor_dead(limits: dict[str, float]) -> None:
    async with serving(**limits) as house:
        client = await house.client("/ws/public:room")
        (connection,) = house.exchange.connections
        if "ping_timeout" in limits:
            await client.pinged()  # what it answers nobody reads
        connection.hold(Held.HUB)
        await trio.sleep(0.1)
        await looked(house)
        assert not connection.closing
        connection.release(Held.HUB)
        await looked(house, 1)
        assert not connection.closing  # it has its time from now on
        assert (await client.ended()).code in (1000, 1011)


async def test_one_that_does_not_answer_is_not_asked_again_and_again() -> None:
    async with serving(ping_interval=0.02, ping_timeout=0.2) as house:
        client = await house.client("/ws/public:room")
        (connection,) = house.exchange.connections
        await trio.sleep(0.03)
        while not connection.closing:
            await looked(house, 1)
            await trio.sleep(0.02)
        events = await client.rest()
        assert [type(event) for event in events] == [Ping, Close]


async def test_an_event_stream_is_never_idle() -> None:
    async with serving(idle_timeout=0.01) as house:
        stream = await house.events()
        await stream.event()
        await trio.sleep(0.02)
        await looked(house)
        house.hub.publish(b"public:room", "still here")
        assert (await stream.event())["event"] == "message"


async def test_a_ping_does_not_wait_behind_what_waits() -> None:
    async with serving(ping_interval=0.01, send_buffer=8192) as house:
        client = await house.client("/ws/public:room?role=sub", buffer=4096)
        (connection,) = house.exchange.connections
        for _ in range(40):
            house.hub.publish(b"public:room", "x" * 50_000)
        await trio.sleep(0.02)
        await looked(house)
        await client.pinged()
        assert connection.outbox.size + connection.stream.unsent > 1_000_000


async def test_a_stranger_that_breaks_the_rules_in_its_first_frame_was_let_in_all_the_same() -> None:
    async with serving() as house:
        client = await house.client()
        await client.raw(b"\x83\x80\0\0\0\0")
        assert (await client.ended()).code == 1002
        await eventually(lambda: house.notices(Closed))
        assert not any(house.exchange.rejections.values())
        assert set(house.exchange.rejections) == set(house.exchange.reasons)


async def test_an_event_stream_that_takes_nothing_any_more_ends_within_the_time_a_ping_has() -> None:
    async with serving(ping_interval=25.0, ping_timeout=20.0) as house:
        await house.events()
        await eventually(lambda: house.service.count)
        (connection,) = house.exchange.connections
        assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        await house.live(ping_timeout=7.0)
        assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_000


async def test_one_that_never_reads_an_event_stream_is_let_go_though_little_waits_for_it() -> None:
    async with serving(ping_timeout=0.5, send_buffer=8192) as house:
        stream, _ = await house.connect(buffer=2048)
        await stream.send_all(b"GET /channels/public:room/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await eventually(lambda: house.service.count)
        for _ in range(30):
            house.hub.publish(b"public:room", "x" * 10_000)
        await eventually(lambda: not house.service.count)
        (closed,) = house.notices(Closed)
        assert closed.why == "connection timed out"


async def test_the_answer_to_the_handshake_comes_first_however_urgent_the_rest_is() -> None:
    async with serving() as house:
        house.hub.on_opened.append(lambda session: house.hub.direct(session.id, "urgent", priority=0))
        client = await house.client("/ws/public:room")
        assert await client.message() == "urgent"


async def test_a_read_of_thousands_of_messages_does_not_keep_the_others_waiting() -> None:
    async with serving() as house:
        listeners = [await house.client("/ws/public:room?role=sub") for _ in range(5)]
        await house.client("/ws/public:room?role=pub")
        (connection,) = [each for each in house.exchange.connections if each.mode.role == "pub"]
        served: list[int] = []
        publish_many = house.hub.publish_many

        def slow(session: Any, channel: bytes, payloads: list[bytes], **more: Any) -> None:
            served.append(len(payloads))
            time.sleep(0.005)  # as long as it would take for thousands of listeners
            publish_many(session, channel, payloads, **more)

        house.hub.publish_many = slow
        each = frame(BINARY, b"x", key=bytes(4))
        connection.stream.read = 131_008  # as after many that cost little
        count = 100_000 // len(each)
        frames = b"".join(frame(BINARY, b"%d" % (number % 10), key=bytes(4)) for number in range(count))
        connection.receive(frames)
        assert served == [16_384 // len(each)]
        for listener in listeners:
            assert [await listener.message() for _ in range(count)] == [b"%d" % (n % 10) for n in range(count)]
        assert sum(served) == count
        assert len(served) > 5


async def test_what_was_read_already_waits_too_when_its_sender_has_to() -> None:
    async with serving() as house:
        speaker = await house.client("/app")
        (connection,) = house.exchange.connections
        connection.hold(Held.HUB)
        house.reactor._until = float("inf")  # there would be time for all of it
        count = 100_000 // 7
        connection.receive(frame(BINARY, b"x", key=bytes(4)) * count)
        assert 0 < connection.session.messages_in < 3000
        connection.release(Held.HUB)
        await eventually(lambda: connection.session.messages_in == count)
        await speaker.binary(b"last")
        while await speaker.message() != b"last":
            pass


async def test_bombs_of_one_read_do_not_go_off_together() -> None:
    async with serving(deflate=True) as house:
        client = await house.client("/ws/public:room?role=pub", offer="permessage-deflate")
        (connection,) = house.exchange.connections
        assert client.packer is not None
        bomb = frame(BINARY, client.packer.message(bytes(4 << 20)), key=bytes(4), compressed=True)
        connection.receive(bomb * 30)
        assert connection.session.messages_in <= 4
        await eventually(lambda: connection.session.messages_in == 30)


@pytest.mark.parametrize("encrypted", [False, True])
async def test_what_was_put_back_is_served_before_the_end_of_the_connection(encrypted: bool, tls: Tls) -> None:
    async with serving(listen={"tls": tls} if encrypted else None) as house:
        context = trusting(FIRST_CERTIFICATE) if encrypted else None
        client = await house.client("/ws/public:room?role=pub", tls=context)
        (connection,) = house.exchange.connections
        connection.stream.read = 131_008
        publish_many = house.hub.publish_many
        served: list[int] = []

        def slow(session: Any, channel: bytes, payloads: list[bytes], **more: Any) -> None:
            served.append(len(payloads))
            time.sleep(0.003)
            publish_many(session, channel, payloads, **more)

        house.hub.publish_many = slow
        count = 100_000 // 7
        connection.hold(Held.HUB)  # so that all of it comes in one read
        await client.raw(frame(BINARY, b"x", key=bytes(4)) * count)
        await client.stream.aclose()
        connection.release(Held.HUB)
        await eventually(lambda: not house.service.count)
        assert sum(served) == count
        assert len(served) > 5
