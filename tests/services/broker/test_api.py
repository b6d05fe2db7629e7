"""/v1/broker over the running service, and over none."""

from __future__ import annotations

from netd.services.broker.api import router
from tests.services.broker.lab import eventually, serving
from tests.sessions.api import api_of


async def test_the_service_and_its_connections_over_rest() -> None:
    async with serving(deflate=True) as house, api_of("broker", router, house.service) as api:
        full = await (await house.client()).hello(name="anna")
        plain = await house.client("/ws/public:room", offer="permessage-deflate")
        await plain.text("hello")
        await house.events()
        await eventually(lambda: house.service.count == 3)
        await eventually(lambda: house.hub.info().published == 1)
        status = (await api.get("/v1/broker")).json()
        assert status["running"] is True
        assert (status["sessions"], status["connections"], status["total"], status["arriving"]) == (3, 3, 3, 0)
        assert [(one["tls"], one["connections"]) for one in status["listeners"]] == [(False, 3)]
        assert status["messages_in"] == sum(view.messages_in for view in house.service.connections()) == 2
        assert status["limits"]["max_message"] == 4 << 20
        listed = (await api.get("/v1/broker/connections", params={"limit": 1})).json()
        assert (listed["total"], [one["name"] for one in listed["connections"]]) == (3, ["anna"])
        listed = (await api.get("/v1/broker/connections")).json()["connections"]
        told = [(one["mode"], one["transport"], one["deflate"], one["channel"]) for one in listed]
        assert told == [
            ("operations", "websocket", False, None),
            ("channel", "websocket", True, "public:room"),
            ("events", "sse", False, "public:room"),
        ]
        one = (await api.get(f"/v1/broker/connections/{full.id}")).json()
        assert (one["id"], one["paused"], one["pid"]) == (full.id, [], None)
        assert (await api.get("/v1/broker/connections/00000000-0000-4000-8000-000000000000")).status_code == 404


async def test_a_stopped_service_shows_just_that() -> None:
    async with api_of("broker", router, None) as api:
        status = (await api.get("/v1/broker")).json()
        assert (status["running"], status["listeners"], status["requests"]) == (False, [], 0)
        assert (await api.get("/v1/broker/connections")).json() == {"connections": [], "total": 0}
        assert (await api.get("/v1/broker/connections/00000000-0000-4000-8000-000000000000")).status_code == 409
