"""The anomaly service over a pretended hub, and /v1/anomaly over the service."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog
import trio
import trio.testing
from fastapi import Depends, FastAPI

from netd.errors import PrepareFailed
from netd.net.rest import Access, Caller, known_query, render_errors, set_caller
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.metrics import Metrics
from netd.runtime.service import Context
from netd.services.anomaly import api
from netd.services.anomaly.adapters import AdapterFailed
from netd.services.anomaly.config import AnomalyConfig
from netd.services.anomaly.service import AnomalyService, PreparedAnomaly, prepare, service_type


@dataclass
class Session:
    """As much of a hub's session as is looked at."""

    id: str
    name: str | None = None
    transport: str = "framed"
    internal: bool = False
    messages_in: int = 0
    messages_out: int = 0
    link: Any = field(default_factory=lambda: SimpleNamespace(bytes_in=0, bytes_out=0))
    outbox: Any = field(default_factory=lambda: SimpleNamespace(size=0, pressed=False))

    def receive(self, messages: int, size: int = 100) -> None:
        self.messages_in += messages
        self.link.bytes_in += messages * size


class Hub:
    def __init__(self, *sessions: Session) -> None:
        self.sessions = {one.id: one for one in sessions}


class Scorer:
    """An adapter that answers what a test says."""

    def __init__(self, config) -> None:
        self.config = config
        self.asked: list[dict] = []
        self.answer: dict | Exception = {}
        self.hold: trio.Event | None = None
        self.ended = False

    async def run(self, *, task_status) -> None:
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self.ended = True

    async def score(self, asked):
        self.asked.append(asked)
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class House:
    def __init__(self, hub: Hub, service: AnomalyService, context: Context, health: Health, adapter) -> None:
        self.hub, self.service, self.context, self.health, self.adapter = hub, service, context, health, adapter

    async def samples(self, count: int, speak=None) -> None:
        """So many samples more; `speak()` before each."""
        wanted = self.service.snapshot().samples
        for _ in range(count):
            if speak is not None:
                speak()
            wanted += 1
            while self.service.snapshot().samples < wanted:  # noqa: ASYNC110  # the clock jumps there
                await trio.sleep(0.5)
        await trio.testing.wait_all_tasks_blocked()

    @property
    def warnings(self):
        return {one.code: one for one in self.health.warnings()}

    def metric(self, name: str) -> float | None:
        return self.context.metrics.registry.get_sample_value(name)


@asynccontextmanager
async def serving(*sessions: Session, adapter: bool = False, **fields):
    if adapter:
        fields["adapter"] = {"use": "python", "target": "a:b", **fields.get("adapter", {})}
    config = AnomalyConfig(enabled=True, **fields)
    health = Health(Bus())
    context = Context(
        name="anomaly",
        bus=Bus(),
        health=health.for_service("anomaly"),
        metrics=Metrics(),
        store=None,
        listeners=None,
        log=structlog.get_logger("netd.anomaly"),
        state_directory=None,
        draining=trio.Event(),
        drain_deadline=lambda: math.inf,
    )
    hub = Hub(*sessions)
    scorer = Scorer(config.adapter) if adapter else None
    service = AnomalyService(config, PreparedAnomaly(scorer), context, hub=hub)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: service.run(task_status=task_status))
        yield House(hub, service, context, health, scorer)
        context.draining.set()


async def test_every_session_but_the_daemons_own_is_watched_and_scored(autojump_clock):
    steady, idle, own = Session("steady", "s"), Session("idle"), Session("own", internal=True)
    async with serving(steady, idle, own) as house:
        await house.samples(12, lambda: steady.receive(100))
        found = {one.session: one for one in house.service.worst(10)}
        assert found.keys() == {"steady", "idle"}
        assert (found["steady"].name, found["steady"].transport, found["steady"].source) == ("s", "framed", "builtin")
        assert (found["idle"].coherence, found["idle"].entropy, found["idle"].anomaly) == (1.0, 0.0, 0.0)
        snapshot = house.service.snapshot()
        assert (snapshot.tracked, snapshot.learning, snapshot.over, snapshot.scoring) == (2, 0, 0, "builtin")
        assert house.metric("netd_anomaly_sessions") == 2


async def test_a_spike_raises_a_warning_that_names_it_and_passes(autojump_clock):
    odd, others = Session("odd", "meter-7"), [Session(f"s{n}") for n in range(3)]

    def speak():
        for one in (odd, *others):
            one.receive(100)

    async with serving(odd, *others) as house:
        await house.samples(12, speak)
        assert house.warnings == {}
        odd.receive(100_000)
        await house.samples(1, speak)
        warning = house.warnings["anomaly.score"]
        assert "1 session is past the anomaly threshold 0.9; the worst is odd (meter-7) with 1.00" in warning.message
        assert "netctl sessions show odd" in warning.advice
        assert house.service.worst(1)[0].session == "odd"
        assert house.service.snapshot().over == house.metric("netd_anomaly_over_threshold") == 1
        await house.samples(1, speak)
        assert house.warnings == {}
        assert house.metric("netd_anomaly_over_threshold") == 0


async def test_who_leaves_is_forgotten_and_takes_the_warning_along(autojump_clock):
    odd = Session("odd")
    async with serving(odd) as house:
        await house.samples(12, lambda: odd.receive(10))
        odd.receive(100_000)
        await house.samples(1)
        assert "anomaly.score" in house.warnings
        del house.hub.sessions["odd"]
        assert house.service.worst(10) == [], "even before the next sample"
        await house.samples(1)
        assert (house.warnings, house.service.snapshot().tracked) == ({}, 0)


async def test_past_the_bound_sessions_are_counted_and_not_watched(autojump_clock):
    async with serving(*(Session(f"s{n}") for n in range(10)), max_sessions=4) as house:
        await house.samples(1)
        snapshot = house.service.snapshot()
        assert (snapshot.tracked, snapshot.untracked) == (4, 6)
        assert house.metric("netd_anomaly_untracked") == 6


async def test_a_reload_of_live_fields_counts_at_once(autojump_clock):
    session = Session("s")
    async with serving(session, interval=3600) as house:
        await house.samples(1)
        house.service.reconfigure(AnomalyConfig(enabled=True, interval=1, threshold=0.01, warmup=4))
        began = trio.current_time()
        await house.samples(10, lambda: session.receive(100))
        assert trio.current_time() - began < 20
        assert house.service.snapshot().threshold == 0.01


async def test_at_its_end_nobody_is_watched(autojump_clock):
    async with serving(Session("s")) as house:
        await house.samples(1)
    assert house.metric("netd_anomaly_sessions") == 0
    assert house.metric("netd_anomaly_samples_total") >= 1


# --- an adapter -------------------------------------------------------------------------------------------------------


async def test_an_adapter_is_asked_about_those_that_did_something_and_overrules(autojump_clock):
    one, idle = Session("one"), Session("idle")
    async with serving(one, idle, adapter=True) as house:
        house.adapter.answer = {"one": {"anomaly": 0.95}}
        await house.samples(10, lambda: one.receive(100))
        assert house.adapter.asked[-1]["sessions"].keys() == {"one"}
        assert house.adapter.asked[-1]["serial"] > house.adapter.asked[0]["serial"]
        [first, second] = house.service.worst(2)
        assert (first.session, first.anomaly, first.source, first.figure) == ("one", 0.95, "python", "")
        assert (second.session, second.source) == ("idle", "builtin")
        assert house.service.snapshot().scoring == "python"
        assert "with 0.95" in house.warnings["anomaly.score"].message
    assert house.adapter.ended


@pytest.mark.parametrize(
    ("fallback", "meanwhile", "listed"), [("builtin", "the built-in scores count", 1), ("none", "no scores count", 0)]
)
async def test_an_adapter_that_fails_is_warned_of_and_the_fallback_counts(fallback, meanwhile, listed, autojump_clock):
    session = Session("s")
    async with serving(session, adapter=True) as house:
        config = house.service._config
        changed = config.adapter.model_copy(update={"fallback": fallback})
        house.service.reconfigure(config.model_copy(update={"adapter": changed}))
        house.adapter.answer = {"s": {"anomaly": 0.95}}
        await house.samples(10, lambda: session.receive(100))
        assert "anomaly.score" in house.warnings
        house.adapter.answer = AdapterFailed("cannot ask it: it is asleep", "wake it")
        await house.samples(1, lambda: session.receive(100))
        assert house.warnings.keys() == {"anomaly.adapter"}
        warning = house.warnings["anomaly.adapter"]
        assert (warning.advice, meanwhile in warning.message) == ("wake it", True)
        assert "by python (cannot ask it: it is asleep)" in warning.message
        assert len(house.service.worst(5)) == listed
        assert house.service.snapshot().scoring == fallback
        assert house.metric("netd_anomaly_adapter_failures_total") == 1
        house.adapter.answer = {}
        await house.samples(1, lambda: session.receive(100))
        assert house.warnings == {}
        assert house.service.snapshot().scoring == "python"


async def test_a_slow_adapter_holds_no_sample_up_and_is_asked_one_question_at_a_time(autojump_clock):
    session = Session("s")
    async with serving(session, adapter=True) as house:
        house.adapter.hold = trio.Event()
        await house.samples(10, lambda: session.receive(100))
        assert len(house.adapter.asked) == 1
        house.adapter.hold.set()
        await house.samples(2, lambda: session.receive(100))
        assert len(house.adapter.asked) >= 2
        assert house.adapter.asked[1]["serial"] >= 10, "about the present, not about what was missed"


async def test_prepare_refuses_what_cannot_work_and_the_type_is_anomaly():
    kind = service_type(Hub())
    assert (kind.name, kind.config) == ("anomaly", AnomalyConfig)
    async with serving() as house:
        prepared = await prepare(AnomalyConfig(), house.context)
        assert prepared.adapter is None
        prepared.close()
        absent = AnomalyConfig(adapter={"use": "command", "command": ["/nowhere/program"]})
        with pytest.raises(PrepareFailed, match="cannot start '/nowhere/program' for scores: it is not there"):
            await prepare(absent, house.context)


# --- REST -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def asking(service, access=Access.READ):
    app = FastAPI(dependencies=[Depends(known_query)])
    render_errors(app)
    app.include_router(api.router(lambda: service), prefix="/v1/anomaly")

    async def front(scope, receive, send):
        set_caller(scope, Caller(None, access))
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://netd/v1") as client:
        yield client


async def test_rest_shows_the_worst_first_and_one_by_its_id(autojump_clock):
    sessions = [Session(f"s{n}", f"name{n}") for n in range(5)]

    def speak():
        for one in sessions:
            one.receive(100)

    async with serving(*sessions) as house, asking(house.service) as http:
        await house.samples(12, speak)
        sessions[3].receive(100_000)
        await house.samples(1, speak)
        answer = (await http.get("/anomaly?limit=2")).json()
        assert (answer["running"], answer["tracked"], answer["over"], len(answer["sessions"])) == (True, 5, 1, 2)
        worst = answer["sessions"][0]
        assert (worst["session"], worst["name"], worst["transport"]) == ("s3", "name3", "framed")
        assert worst["anomaly"] > 0.9
        assert (await http.get("/anomaly/s3")).json() == worst
        assert (await http.get("/anomaly/nobody")).status_code == 404
        assert (await http.get("/anomaly?limit=100000")).status_code == 422


async def test_rest_of_a_service_that_does_not_run():
    async with asking(None) as http:
        answer = (await http.get("/anomaly")).json()
        assert (answer["running"], answer["sessions"]) == (False, [])
        assert (await http.get("/anomaly/s")).status_code == 409


async def test_rest_is_not_for_strangers():
    async with asking(None, Access.NONE) as http:
        assert (await http.get("/anomaly")).status_code == 403
