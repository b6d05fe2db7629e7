"""/v1/framed over the running service, and over none."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from netd.errors import NotFound
from netd.services.framed.api import router
from netd.wire.handshake import plain
from netd.wire.probes import SPAN
from tests.services.framed.lab import eventually, listening, serving
from tests.sessions.api import api_of


async def test_the_service_and_its_connections_over_rest() -> None:
    async with serving(listening(), listening(mode="echo")) as house, api_of("framed", router, house.service) as api:
        full, echo = await (await house.client(0)).hello(name="anna"), await house.client(1)
        await echo.send(b"12345678")
        assert await echo.next() == b"12345678"
        status = (await api.get("/v1/framed")).json()
        assert status["running"] is True
        assert (status["sessions"], status["connections"], status["total"], status["arriving"]) == (2, 2, 2, 0)
        assert [(one["mode"], one["connections"]) for one in status["listeners"]] == [("operations", 1), ("echo", 1)]
        assert status["bytes_in"] == sum(view.bytes_in for view in house.service.connections())
        assert status["limits"]["max_frame"] == 4 << 20
        listed = (await api.get("/v1/framed/connections", params={"limit": 1})).json()
        assert (listed["total"], [one["name"] for one in listed["connections"]]) == (2, ["anna"])
        one = (await api.get(f"/v1/framed/connections/{full.id}")).json()
        assert (one["id"], one["mode"], one["paused"], one["pid"]) == (full.id, "operations", [], None)
        assert (await api.get("/v1/framed/connections/00000000-0000-4000-8000-000000000000")).status_code == 404
        for bad in ("/connections/nonsense", "/connections?limit=0", "/connections?most=1"):
            assert (await api.get(f"/v1/framed{bad}")).status_code in (400, 404, 422)


async def test_a_stopped_service_shows_just_that() -> None:
    async with api_of("framed", router, None) as api:
        status = (await api.get("/v1/framed")).json()
        assert (status["running"], status["listeners"], status["sessions"]) == (False, [], 0)
        assert (await api.get("/v1/framed/connections")).json() == {"connections": [], "total": 0}
        assert (await api.get("/v1/framed/connections/00000000-0000-4000-8000-000000000000")).status_code == 409


async def test_a_connection_is_found_by_its_sessions_id() -> None:
    async with serving(listening(), listening(mode="echo")) as house:
        full = await (await house.client(0)).hello(name="anna", tags={"a": "b"})
        echo = await house.client(1)
        await echo.send(plain("3", {"name": "bert"}))
        await eventually(lambda: house.service.connections()[1].name == "bert")
        found = house.service.connection(full.id)
        assert (found.name, found.tags, found.mode, found.version) == ("anna", {"a": "b"}, "operations", None)
        assert found.address == f"127.0.0.1:{full.socket.getsockname()[1]}"
        assert found.listener == f"127.0.0.1:{house.port(0)}"
        assert house.service.connections()[1].version == "3"
        assert [view.name for view in house.service.connections(1)] == ["anna"]
        with pytest.raises(NotFound, match="cannot find connection"):
            house.service.connection("00000000-0000-4000-8000-000000000000")


async def test_the_carrier_of_an_operations_session_is_a_ping_long_enough_to_trace_by() -> None:
    async with serving(listening(), listening(mode="echo")) as house:
        client = await (await house.client(0)).hello()
        carrier = house.hub.sessions[client.id].link.carrier
        assert carrier is house.hub.sessions[client.id].link.carrier
        assert carrier.socket.getpeername() == client.socket.getsockname()
        assert carrier.saved_syn[0] >> 4 == 4  # an IPv4 packet
        assert await carrier.carry()
        ping = await client.hear("ping")
        assert len(ping["pad"]) >= SPAN
        assert (await client.ask("ping", ts=1))["type"] == "pong"


async def test_the_carrier_of_an_echo_waits_for_what_is_written_anyway() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        (connection,) = house.exchange.connections
        carried: list[bool] = []

        async def carry() -> None:
            assert connection.carrier is not None
            carried.append(await connection.carrier.carry())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            await trio.testing.wait_all_tasks_blocked()
            await client.send(b"short")
            assert await client.next() == b"short"
            assert carried == []
            await client.send(b"x" * 200)
            assert await client.next() == b"x" * 200
        assert carried == [True]
