"""The trace service in its unit: replaced under its clients' feet, refused, crashed."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from netd.errors import PrepareFailed
from netd.runtime.bus import Bus
from netd.runtime.config import RestartPolicy
from netd.runtime.generation import Shared
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.store import open_store
from netd.runtime.unit import Unit
from netd.services.trace.config import TraceConfig, TraceListen
from netd.services.trace.service import service_type
from tests.services.trace.lab import PATIENCE, ScriptedTracer, connected_to, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ANY = TraceListen(address="127.0.0.1:0")
POLICY = RestartPolicy(drain=5.0)


@pytest.fixture
async def unit(nursery: trio.Nursery) -> AsyncGenerator[Unit, None]:
    bus = Bus()
    health = Health(bus)
    listeners = Listeners(health=health)
    async with open_store(None) as store:
        shared = Shared(bus, health, Metrics(), store, listeners)
        one = Unit(service_type(ScriptedTracer()), TraceConfig(listen=[ANY]), shared, policy=lambda: POLICY)
        async with trio.open_nursery() as running:
            await running.start(one.run)
            yield one
            running.cancel_scope.cancel()
    listeners.close()


def port(unit: Unit, number: int = 0) -> int:
    return int(unit.snapshot().addresses[number].rpartition(":")[2])


async def settle(unit: Unit, config: TraceConfig | None) -> str:
    with trio.fail_after(PATIENCE):
        return (await unit.settled(unit.want(config))).outcome


async def test_a_replacement_keeps_its_port_and_tells_the_old_ones_clients(unit: Unit) -> None:
    assert await settle(unit, TraceConfig(listen=[ANY])) == "running"
    first = port(unit)
    async with connected_to(first) as old:
        await old.until("clientDone")
        assert await settle(unit, TraceConfig(listen=[ANY, ANY])) == "running"
        assert port(unit) == first
        assert (await old.closed())[0] == 1001
        for number in (0, 1):
            async with connected_to(port(unit, number)) as new:
                await new.until("clientDone")


async def test_who_was_traced_a_moment_ago_is_remembered_over_a_replacement(unit: Unit) -> None:
    assert await settle(unit, TraceConfig(listen=[ANY], address_burst=1, client_interval=1000)) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("clientDone")
    assert await settle(unit, TraceConfig(listen=[ANY, ANY], address_burst=1, client_interval=1000)) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("waiting")


async def test_a_live_change_disturbs_nobody(unit: Unit) -> None:
    assert await settle(unit, TraceConfig(listen=[ANY])) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("clientDone")
        assert await settle(unit, TraceConfig(listen=[ANY], reveal_private=True, rounds=2, interval=0.1)) == "running"
        assert unit.snapshot().generation == 1
        await client.say({"type": "ping"})
        assert (await client.next())["type"] == "pong"


async def test_what_cannot_be_prepared_leaves_the_running_one_alone(unit: Unit) -> None:
    assert await settle(unit, TraceConfig(listen=[ANY])) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("clientDone")
        with pytest.raises(PrepareFailed, match=r"nowhere\.mmdb"):
            await unit.prepare(TraceConfig(listen=[ANY], asn=Path("/nowhere.mmdb")))
        with pytest.raises(PrepareFailed, match="cannot listen"):
            await unit.prepare(TraceConfig(listen=[ANY, TraceListen(address="192.0.2.1:1")]))
        await client.say({"type": "ping"})
        assert (await client.next())["type"] == "pong"
        assert len(unit.snapshot().addresses) == 1


async def test_stopping_ends_everything_and_starting_begins_anew(unit: Unit) -> None:
    assert await settle(unit, TraceConfig(listen=[ANY])) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("clientDone")
        assert await settle(unit, None) == "stopped"
        assert (await client.closed())[0] == 1001
    assert unit.snapshot().addresses == []
    assert await settle(unit, TraceConfig(listen=[ANY])) == "running"
    async with connected_to(port(unit)) as client:
        await client.until("clientDone")
    await eventually(lambda: unit.service is not None and unit.service.snapshot().clients == 0)


async def test_two_entries_cannot_have_one_address(unit: Unit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = TraceListen(address=f"127.0.0.1:{server.getsockname()[1]}")
    with pytest.raises(PrepareFailed, match="twice"):
        await unit.prepare(TraceConfig(listen=[free, free]))
