"""The end of a generation: everybody is told, nobody is waited for too long."""

from __future__ import annotations

import select
import socket

import pytest
import trio

from netd.services.trace import tracing
from netd.services.trace.notices import ClientDone, ClientGone
from tests.services.trace.lab import (
    PATIENCE,
    ScriptedTracer,
    eventually,
    frame,
    handshake,
    hop,
    path,
    read_all,
    serving,
)


async def test_a_client_is_told_that_netd_goes_away() -> None:
    async with serving() as house, house.client() as client:
        await client.until("clientDone")
        house.drain()
        code, reason = await client.closed()
        assert code == 1001
        assert reason is not None
        assert "come back in" in reason
        with trio.fail_after(PATIENCE):
            await house.ended.wait()
        assert trio.current_time() < house.deadline


async def test_a_running_trace_is_cut_and_its_end_is_told_first() -> None:
    tracer = ScriptedTracer("hang")
    async with serving(tracer) as house, house.client() as client:
        await tracer.begun.wait()
        house.drain()
        assert (await client.until("clientDone"))[-1]["reason"] == "draining"
        assert (await client.closed())[0] == 1001
        with trio.fail_after(PATIENCE):
            await house.ended.wait()
        assert tracer.cancelled == 1
        assert house.notices(ClientDone)[0].as_json()["reason"] == "draining"
        assert house.notices(ClientGone)[0].as_json()["reason"] == "draining"
        assert (await house.service._history.list())[0]["reason"] == "draining"


async def test_a_client_that_waits_for_its_turn_is_told_too() -> None:
    async with serving(address_burst=1, client_interval=1000.0) as house, house.client() as first:
        await first.until("clientDone")
        async with house.client() as second:
            await second.until("waiting")
            house.drain()
            assert (await second.closed())[0] == 1001


async def test_unfinished_handshakes_are_dropped_and_nobody_new_is_let_in() -> None:
    async with serving() as house:
        silent = await house.raw()
        halfway = await house.raw()
        await halfway.send_all(handshake()[:40])
        await eventually(lambda: house.service.snapshot().connections == 2)
        house.drain(within=60.0)
        assert await read_all(silent) == b""
        await read_all(halfway)
        with trio.fail_after(PATIENCE):
            await house.ended.wait()


@pytest.mark.parametrize("reads_handshake", [True, False])
async def test_a_client_that_never_reads_does_not_hold_it_up(
    reads_handshake: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "PONG_GRACE", 0.001)  # it will not answer pings either
    big = path(*(hop(ttl, f"198.51.100.{ttl}") for ttl in range(1, 33)))
    async with serving(ScriptedTracer(big), rounds=0, interval=0.0, write_timeout=100.0) as house:
        deaf = await house.raw()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await deaf.send_all(handshake())
        if reads_handshake:
            await deaf.receive_some(200)
        await eventually(lambda: len(house.service.clients()) == 1)
        session = next(iter(house.service._sessions.values()))
        own = session._endpoint.sock.fileno()
        await eventually(lambda: not select.select([], [own], [], 0)[1])
        house.drain(within=2.0)
        with trio.fail_after(PATIENCE):
            await house.ended.wait()
        assert trio.current_time() < house.deadline


async def test_a_client_that_ignores_the_closing_handshake_does_not_hold_it_up() -> None:
    async with serving() as house:
        stream = await house.raw()
        await stream.send_all(handshake())
        await eventually(lambda: len(house.service.clients()) == 1)
        house.drain(within=2.0)
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                while True:
                    try:
                        await stream.send_all(frame(1, b'{"type":"ping"}'))
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return
                    await trio.sleep(0.01)

            nursery.start_soon(talk)
            with trio.fail_after(PATIENCE):
                await house.ended.wait()
            nursery.cancel_scope.cancel()
        assert trio.current_time() < house.deadline


async def test_three_hundred_clients_are_all_told_in_time() -> None:
    limits = {"max_clients": 400, "clients_per_address": 400, "address_burst": 400}
    async with serving(**limits) as house, trio.open_nursery() as nursery:
        ready, told = 0, 0

        async def one() -> None:
            nonlocal ready, told
            stream = await house.raw()
            await stream.send_all(handshake())
            data = b""
            while b"clientDone" not in data:
                data += await stream.receive_some(65536)
            ready += 1
            rest = await read_all(stream)
            told += b"\x03\xe9netd is going away" in data + rest

        for _ in range(300):
            nursery.start_soon(one)
        await eventually(lambda: ready == 300)
        house.drain(within=10.0)
        with trio.fail_after(PATIENCE):
            await house.ended.wait()
        assert trio.current_time() < house.deadline
        await eventually(lambda: told == 300)


async def test_without_clients_it_ends_at_once() -> None:
    async with serving() as house:
        house.drain(within=1000.0)
        with trio.fail_after(PATIENCE):
            await house.ended.wait()
