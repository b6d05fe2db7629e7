"""Trace clients behind a proxy: limits, events and views have the client's address, from trusted proxies only."""

from __future__ import annotations

import ipaddress
import struct
from contextlib import asynccontextmanager

import trio
from trio_websocket import wrap_client_stream

from netd.net.proxy import SIGNATURE
from netd.services.trace.config import TraceListen
from netd.services.trace.notices import ClientConnected
from tests.services.trace.lab import PATIENCE, Client, ScriptedTracer, eventually, handshake, read_all, serving


def header(source: str, port: int = 50312) -> bytes:
    packed = ipaddress.ip_address(source).packed
    family = 1 if len(packed) == 4 else 2
    body = packed + packed + struct.pack("!HH", port, 8080)
    return SIGNATURE + struct.pack("!BBH", 0x21, family << 4 | 1, len(body)) + body


LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


def behind(*networks: str) -> TraceListen:
    return TraceListen(address="127.0.0.1:0", proxy_protocol=list(networks))


@asynccontextmanager
async def proxied(house, head: bytes):
    """A WebSocket client whose connection begins with `head`."""
    stream = await house.raw()
    await stream.send_all(head)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            ws = await wrap_client_stream(nursery, stream, f"127.0.0.1:{house.port}", "/")
        yield Client(ws)
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def test_a_client_is_whom_the_header_names():
    async with serving(listen=behind("127.0.0.0/8")) as house:
        for source, shown in (("192.0.2.7", "192.0.2.7:50312"), ("2001:db8::7", "[2001:db8::7]:50312")):
            async with proxied(house, header(source)) as client:
                assert (await client.next())["type"] == "connected"
                assert house.service.clients()[0].address == shown
                assert house.notices(ClientConnected)[-1].address == shown
            await eventually(lambda: house.service.snapshot().connections == 0)


async def test_a_proxys_own_connection_is_the_proxys():
    async with serving(listen=behind("127.0.0.0/8")) as house, proxied(house, LOCAL) as client:
        await client.next()
        assert house.service.clients()[0].address.startswith("127.0.0.1:")


async def test_limits_count_the_clients_and_not_the_proxy():
    listen = behind("127.0.0.0/8")
    async with serving(ScriptedTracer("hang"), listen=listen, clients_per_address=1, max_clients=3) as house:
        async with proxied(house, header("192.0.2.1")) as first, proxied(house, header("192.0.2.2")) as second:
            await first.next()
            await second.next()
            refused = await house.raw()
            await refused.send_all(header("192.0.2.1") + handshake())
            assert b"503" in await read_all(refused)
            assert house.counted("netd_trace_refused_total", why="address") == 1
            assert house.service.snapshot().connections == 2
            async with proxied(house, header("192.0.2.3")) as third:
                await third.next()
                full = await house.raw()
                assert b"503" in await read_all(full), "as many as may be, before a header is waited for"
        await eventually(lambda: house.service.snapshot().connections == 0)


async def test_what_is_no_header_ends_alone_and_costs_no_place():
    async with serving(listen=behind("127.0.0.0/8"), handshake_timeout=0.2) as house:
        for nonsense in (
            handshake(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + handshake(),
            header("192.0.2.1")[:20],
        ):
            stream = await house.raw()
            await stream.send_all(nonsense)
            assert await read_all(stream) == b""
        await eventually(lambda: house.service.snapshot().connections == 0)
        assert house.service.clients() == []


async def test_a_header_from_anybody_else_is_not_believed():
    async with serving(listen=behind("192.0.2.0/24")) as house:
        async with house.client() as client:
            await client.next()
            assert house.service.clients()[0].address.startswith("127.0.0.1:")
        liar = await house.raw()
        await liar.send_all(header("192.0.2.7") + handshake())
        assert b" 101 " not in await read_all(liar)


async def test_trust_is_live():
    async with serving(listen=behind()) as house, house.client() as client:
        await client.next()
        house.service.reconfigure(house.service.config.model_copy(update={"listen": [behind("127.0.0.1/32")]}))
        async with proxied(house, header("192.0.2.7")) as named:
            await named.next()
            assert {one.address.split(":")[0] for one in house.service.clients()} == {"127.0.0.1", "192.0.2.7"}
