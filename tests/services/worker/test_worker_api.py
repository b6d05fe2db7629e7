"""/v1/worker over the running service, the configuration's own refusals, and the metrics."""

from __future__ import annotations

import httpx
import pytest
from fastapi import Depends, FastAPI
from pydantic import ValidationError

from netd.client import shapes
from netd.net.rest import Access, Caller, known_query, render_errors, set_caller
from netd.services.worker import api
from netd.services.worker.config import WorkerConfig
from netd.services.worker.notices import Joined, Left
from netd.services.worker.views import ProgramView, WorkerSnapshot, WorkerView
from netd.settings import Settings
from tests.services.worker.lab import eventually, serving
from tests.support.accounts import NOBODY, why_not_nobody


def test_the_client_calls_everything_what_the_daemon_does():
    of_the_daemon = (WorkerView, ProgramView, api.WorkerStatus)
    of_the_client = (shapes.WorkerInfo, shapes.WorkerProgram, shapes.WorkerStatus)
    for here, there in zip(of_the_daemon, of_the_client, strict=True):
        assert set(here.__annotations__) == set(there.__annotations__)
    assert {"running", *WorkerSnapshot.__annotations__} == set(api.WorkerStatus.__annotations__)


def front(service, access: Access = Access.WRITE) -> httpx.AsyncClient:
    app = FastAPI(dependencies=[Depends(known_query)])
    app.include_router(api.router(service), prefix="/v1/worker")
    render_errors(app)

    async def asgi(scope, receive, send):
        set_caller(scope, Caller(None, access))
        await app(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app=asgi), base_url="http://netd")


async def test_workers_are_listed_shown_drained_and_disconnected(tmp_path):
    async with serving(tmp_path) as house, front(lambda: house.service) as http:
        worker = await house.worker("chat")
        listed = (await http.get("/v1/worker")).json()
        assert (listed["running"], listed["joined"]) == (True, 1)
        [view] = listed["workers"]
        assert (view["name"], view["state"]) == ("chat", "serving")
        assert (await http.get(f"/v1/worker/{view['id']}")).json()["pid"] == view["pid"]
        assert (await http.get("/v1/worker/99")).status_code == 404
        assert (await http.post(f"/v1/worker/{view['id']}/drain")).json()["state"] == "leaving"
        assert (await worker.over()).code == "drained"
        other = await house.worker("other")
        [view] = (await http.get("/v1/worker")).json()["workers"]
        assert (await http.delete(f"/v1/worker/{view['id']}")).status_code == 200
        assert (await other.over()).code == "stopping"
        await eventually(lambda: len(house.notices(Left)) == 2)
        assert [notice.name for notice in house.notices(Joined)] == ["chat", "other"]
        assert [notice.code for notice in house.notices(Left)] == ["drained", "stopping"]


async def test_who_may_only_read_may_not_drain(tmp_path):
    async with serving(tmp_path) as house, front(lambda: house.service, Access.READ) as http:
        await house.worker()
        assert (await http.post("/v1/worker/1/drain")).status_code == 403
        assert (await http.delete("/v1/worker/1")).status_code == 403


async def test_a_stopped_service_says_so():
    async with front(lambda: None) as http:
        assert (await http.get("/v1/worker")).json()["running"] is False
        assert (await http.get("/v1/worker/1")).status_code == 409


async def test_figures_are_counted(tmp_path):
    async with serving(tmp_path) as house:
        await house.worker()
        house.person()
        assert house.counted("netd_worker_workers") == 1
        assert house.counted("netd_worker_sessions") == 1
        assert house.counted("netd_worker_in_flight") == 1
        assert house.counted("netd_worker_requests_total", how="refused") == 0


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"socket": "relative.sock"}, "must be absolute"),
        ({"socket": "/" + "x" * 100}, "longer than 90 bytes"),
        ({"group": "no group"}, "write a login name"),
        ({"command": [""]}, "write the program and its arguments"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"environment": {"1X": "y"}}, "letters, digits and underscores"),
        ({"user": "nobody"}, "cannot run nothing as another account"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(config, why):
    with pytest.raises(ValidationError, match=why):
        WorkerConfig(**config)


@pytest.mark.parametrize(
    ("control", "worker"),
    [
        ("/run/netd/control.sock", "/run/netd/worker.sock"),
        ("/tmp/a.sock", "/tmp/a.worker.sock"),
        (None, None),
    ],
)
def test_the_socket_is_beside_the_control_socket(control, worker):
    settings = Settings.embedded({"control": {"socket": control}, "worker": {}})
    assert (settings.worker.socket and str(settings.worker.socket)) == worker


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
async def test_a_group_may_be_a_number(tmp_path):
    async with serving(tmp_path, group=str(NOBODY)) as house:
        assert (tmp_path / "worker.sock").stat().st_gid == NOBODY
        assert not house.health.warnings()


async def test_a_group_that_is_asked_for_and_not_there_is_a_warning(tmp_path):
    async with serving(tmp_path, group="no-such-group") as house:
        assert [warning.code for warning in house.health.warnings()] == ["worker.group"]
    async with serving(tmp_path) as house:
        assert not house.health.warnings()
