"""Peers that lie, dribble, vanish, never read, never end; and a house that has run out of descriptors."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from netd.wire.framing import frame
from tests.services.framed.lab import PATIENCE, Client, echoes, eventually, listening, proxied, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.section import Tls

RESET = struct.pack("@ii", 1, 0)
"""SO_LINGER that makes close() send a reset."""


async def test_lengths_that_lie_cost_what_arrived_and_no_more() -> None:
    async with serving(mode="echo") as house:
        liars = [await house.client() for _ in range(50)]
        for liar in liars:
            await liar.raw((4 << 20).to_bytes(4, "big") + b"xyz")
        await eventually(lambda: sum(view.unfinished for view in house.service.connections()) == 50 * 7)
        held = sum(sys.getsizeof(piece) for one in house.exchange.connections for piece in one.decoder._pieces or ())
        assert held < 50 * 500
        assert await echoes(await house.client())


@pytest.mark.parametrize("size", [(4 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("handshake", ["none", "optional", "required"])
async def test_lengths_above_the_limit_end_the_connection_at_once(size: int, handshake: str) -> None:
    async with serving(mode="echo", handshake=handshake) as house:
        client = await house.client(settled=False)
        await client.raw(size.to_bytes(4, "big"))
        assert await client.over() == b""
        await eventually(lambda: house.exchange.places.total == 0)


async def test_a_dribble_of_single_bytes_is_a_message_in_the_end() -> None:
    async with serving() as house:
        client = await house.client()
        for byte in frame(b'{"type": "ping", "ts": 12, "ref": 1}') * 3:
            await client.raw(bytes([byte]))
        for _ in range(3):
            assert await client.hear("pong") == {"type": "pong", "ts": 12, "ref": 1}


async def test_a_large_frame_in_small_pieces_comes_back() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        data = frame(os.urandom(300_000))
        for at in range(0, len(data), 97):
            await client.raw(data[at : at + 97])
        assert await client.next() == data[4:]


async def test_an_endless_handshake_ends() -> None:
    async with serving(mode="echo", handshake="required", limits={"handshake_timeout": 0.3}) as house:
        endless = await house.client(settled=False)
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):  # noqa: PT012
            await endless.raw((60_000).to_bytes(4, "big") + b"{")
            while True:
                await endless.raw(b" ")
                await trio.sleep(0.01)
        await eventually(lambda: house.exchange.rejections["timeout"] == 1)
        assert house.exchange.places.total == 0


async def test_two_thousand_connections_opened_and_abandoned() -> None:
    limits = {"max_connections": 5000, "connections_per_address": 5000, "arriving": 5000}
    listeners = listening(), listening(mode="echo"), listening(mode="echo", handshake="required")
    async with serving(*listeners, limits=limits) as house:
        stays = await house.client(1)
        ports = [house.port(number) for number in range(3)]

        async def abandon(number: int) -> None:
            sock = trio.socket.socket()
            await sock.connect(("127.0.0.1", ports[number % 3]))
            if number % 4:
                await sock.send([b"", b"\0", frame(b"hello") + b"\0\0\1\0half", b"\xff"][number % 4])
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()

        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(abandon, number)
        await eventually(lambda: house.exchange.places.total == 1)
        assert len(house.exchange.connections) == len(house.hub.sessions) == house.reactor.snapshot().streams == 1
        assert await echoes(stays)
        assert await echoes(await house.client(1))


async def test_forty_megabytes_published_past_a_peer_that_never_reads_reach_the_others() -> None:
    async with serving() as house:
        deaf, hears = [await (await house.client(buffer=buffer)).hello() for buffer in (4096, None)]
        for client in (deaf, hears):
            await client.ask("subscribe", channel="public:room")
        async with trio.open_nursery() as nursery:
            heard = 0

            async def listen() -> None:
                nonlocal heard
                while heard < 640:
                    assert len((await hears.hear("message"))["data"]) == 62_500
                    heard += 1

            nursery.start_soon(listen)
            for number in range(640):
                house.hub.publish(b"public:room", "x" * 62_500)
                with trio.fail_after(PATIENCE):
                    while number - heard > 20:  # noqa: ASYNC110  # it is the other task's count
                        await trio.sleep(0.001)
        await eventually(lambda: house.exchange.closes[4008] == 1)
        assert list(house.hub.sessions) == [hears.id]


async def test_a_peer_killed_in_the_middle_of_a_frame_leaves_nothing() -> None:
    script = (
        "import socket, sys, time\n"
        "s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        'message = b\'{"type": "publish", "channel": "public:room", "data": 1}\'\n'
        "s.sendall((len(message).to_bytes(4, 'big') + message) * 2 + b'\\0\\0\\0\\x40{\"type\": \"publ')\n"
        "print('sent', flush=True)\n"
        "time.sleep(60)\n"
    )
    async with serving() as house:
        other = await (await house.client()).hello()
        await other.ask("subscribe", channel="public:room")
        with subprocess.Popen([sys.executable, "-c", script, str(house.port())], stdout=subprocess.PIPE) as peer:  # noqa: ASYNC220  # a moment
            assert peer.stdout is not None
            await trio.to_thread.run_sync(peer.stdout.readline)
            assert [(await other.hear("message"))["data"] for _ in range(2)] == [1, 1]
            peer.send_signal(signal.SIGKILL)
        await eventually(lambda: list(house.hub.sessions) == [other.id])
        assert house.hub.info().published == 2
        assert (await other.ask("ping", ts=1))["type"] == "pong"


async def test_a_proxy_header_from_a_stranger_is_not_believed() -> None:
    async with serving(proxy_protocol=["192.0.2.0/24"], handshake="none") as house:
        liar = await house.client()
        address = house.service.connections()[0].address
        assert address.startswith("127.0.0.1:")
        await liar.raw(proxied() + frame(b'{"type": "hello", "version": 1}'))
        await liar.over()
        await eventually(lambda: house.exchange.closes[1009] == 1)


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 11] for at in range(0, len(data), 11))


@pytest.mark.parametrize(
    "garbage",
    [
        frame(b"plain"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x40\x00" + b"\xff" * 16_384,
        b"\x80" * 1000,
    ],
)
async def test_garbage_instead_of_tls_ends_its_connection_alone(tls: Tls, garbage: bytes) -> None:
    async with serving(mode="echo", tls=tls, limits={"handshake_timeout": 1.0}) as house:
        good = await house.client(tls=trusting(FIRST_CERTIFICATE))
        bad = await house.client(settled=False)
        for piece in pieces(garbage):
            try:
                await bad.raw(piece)
            except trio.BrokenResourceError:
                break
        await bad.over()
        await eventually(lambda: house.exchange.places.total == 1)
        assert sum(house.exchange.rejections[why] for why in ("tls", "timeout", "gone")) == 1
        assert await echoes(good)


async def test_nothing_is_said_in_plain_text_where_tls_is_asked_for(tls: Tls) -> None:
    async with serving(tls=tls, handshake="required") as house:
        plain = await house.client(settled=False)
        await plain.send(b'{"type": "handshake"}')
        assert b"close" not in await plain.over()
        assert house.exchange.rejections["tls"] == 1


async def test_garbage_inside_a_tls_stream_ends_it_alone(tls: Tls) -> None:
    async with serving(mode="echo", tls=tls) as house:
        good, bad = [await house.client(tls=trusting(FIRST_CERTIFICATE)) for _ in range(2)]
        assert await echoes(bad)
        await bad.socket.send(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
        await eventually(lambda: len(house.exchange.connections) == 1)
        assert await echoes(good)


async def test_a_tls_peer_that_never_finishes_its_handshake(tls: Tls) -> None:
    async with serving(mode="echo", tls=tls, limits={"handshake_timeout": 0.2}) as house:
        torn = await house.client(settled=False)
        await torn.raw(b"\x16\x03\x01\x02\x00\x01\x00")
        assert await torn.over() == b""
        assert house.exchange.rejections["timeout"] == 1


async def test_a_flood_of_empty_frames_is_echoed() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.raw, bytes(4) * 100_000)
            assert await client.bytes(400_000) == bytes(400_000)
        assert house.service.connections()[0].messages_in == 100_000


async def test_a_flood_of_nonsense_is_refused_one_by_one_and_bounded() -> None:
    async with serving(limits={"backpressure": 65_536, "send_buffer": 4096}) as house:
        client = await house.client(buffer=4096)
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):  # noqa: PT012
            with trio.fail_after(PATIENCE):
                while True:
                    await client.send(*[b"?"] * 1000)
        await eventually(lambda: house.exchange.closes[4008] == 1)


HOUSE = """
import resource, sys, trio
from netd.runtime.health import WarningCleared, WarningRaised
from tests.services.framed.lab import serving

async def main():
    async with serving(mode="echo", handshake="none") as house:
        with house.bus.subscribe(WarningRaised, WarningCleared) as warnings:
            in_use = len(__import__("os").listdir("/proc/self/fd"))
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, hard))
            print(house.port(), flush=True)
            async for stamped in warnings:
                print(stamped.notice.kind, stamped.notice.code, flush=True)

trio.run(main)
"""


async def test_without_descriptors_accept_pauses_says_so_and_recovers() -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", HOUSE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as house:  # noqa: ASYNC220
        out = house.stdout
        assert out is not None

        async def line() -> str:
            with trio.fail_after(PATIENCE):
                while True:
                    text = await trio.to_thread.run_sync(out.readline, abandon_on_cancel=True)
                    if not text.startswith("20"):  # the log's
                        return text.strip()

        try:
            port = int(await line())
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(30)]
            assert await line() == "warningRaised framed.accept"
            first = Client(streams[0], streams[0].socket)
            assert await echoes(first)
            for stream in streams[1:]:
                await trio.aclose_forcefully(stream)
            assert await line() == "warningCleared framed.accept"
            late = await trio.open_tcp_stream("127.0.0.1", port)
            assert await echoes(Client(late, late.socket))
            for stream in (late, streams[0]):
                await trio.aclose_forcefully(stream)
        finally:
            house.kill()
