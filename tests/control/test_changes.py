"""Changes outlive whoever asked for them, end whatever happens, and are bounded."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from structlog.testing import capture_logs

from netd.control.changes import KEPT, RUNNING, Changes
from netd.errors import NotFound, TooBusy
from netd.net.rest import Access, Caller
from tests.support.http import Peer as Client
from tests.support.http import front_door, request

ROOT = Caller(None, Access.WRITE)


@asynccontextmanager
async def table():
    async with trio.open_nursery() as nursery:
        yield Changes(nursery, boot="b007")
        nursery.cancel_scope.cancel()


async def nothing():
    await trio.lowlevel.checkpoint()


async def test_a_result_is_kept_as_json():
    @dataclass
    class Result:
        names: tuple[str, ...]

    async def operation():
        return Result(("a", "b"))

    async with table() as changes:
        change = changes.begin("reload", None, operation, ROOT)
        assert change.view.status == "doing"
        assert await change.wait(5)
        assert (change.view.status, change.view.result) == ("done", {"names": ["a", "b"]})


async def test_what_fails_inside_is_logged_and_ends_only_itself():
    async def operation():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("the secret reason")

    with capture_logs() as logs:
        async with table() as changes:
            change = changes.begin("reload", None, operation, ROOT)
            assert await change.wait(5)
            assert change.view.status == "failed"
            assert change.view.error.kind == "internal"
            assert "secret" not in change.view.error.message
            again = changes.begin("reload", None, nothing, ROOT)
            assert await again.wait(5)
    assert [line["exc_info"] for line in logs if line["event"] == "change failed inside"] == [True]


async def test_a_result_that_is_no_json_still_ends_the_change():
    class Odd:
        pass

    async def operation():
        return {"loop": Odd()}

    async with table() as changes:
        change = changes.begin("reload", None, operation, ROOT)
        assert await change.wait(5)


async def test_a_daemon_that_stops_leaves_no_change_doing():
    async with table() as changes:
        change = changes.begin("reload", None, trio.sleep_forever, ROOT)
        await trio.testing.wait_all_tasks_blocked()
    assert (change.view.status, change.view.error.kind) == ("failed", "conflict")
    assert "superseded" in change.view.error.message


async def test_too_many_at_once_are_refused_until_one_ends():
    gate = trio.Event()
    async with table() as changes:
        running = [changes.begin("reload", None, gate.wait, ROOT) for _ in range(RUNNING)]
        with pytest.raises(TooBusy):
            changes.begin("reload", None, nothing, ROOT)
        gate.set()
        assert await running[0].wait(5)
        changes.begin("reload", None, nothing, ROOT)


async def test_only_the_last_are_kept_and_none_that_runs_is_forgotten():
    async with table() as changes:
        slow = changes.begin("reload", None, trio.sleep_forever, ROOT)
        first = changes.begin("reload", None, nothing, ROOT)
        for _ in range(KEPT + 10):
            assert await changes.begin("reload", None, nothing, ROOT).wait(5)
        assert KEPT <= len(changes.views()) <= KEPT + 2
        assert changes.get(slow.view.id) is slow
        with pytest.raises(NotFound):
            changes.get(first.view.id)


async def test_ids_name_one_change_of_one_run():
    async with table() as changes:
        ids = [changes.begin("reload", None, nothing, ROOT).view.id for _ in range(3)]
    assert ids == ["b007-1", "b007-2", "b007-3"]


# --- through the front door ------------------------------------------------------------------------------------------


async def test_a_change_goes_on_when_its_client_hangs_up(control, host, autojump_clock):
    host.gate = trio.Event()
    async with front_door(control.seen_by(0)) as (listener, _, _):
        peer = listener.connect()
        await peer.send(request("POST", "/v1/services/trace/stop?wait=60"))
        await trio.testing.wait_all_tasks_blocked()
        await peer.vanish()
        await trio.testing.wait_all_tasks_blocked()
        host.gate.set()
        await trio.testing.wait_all_tasks_blocked()
    async with control.client() as client:
        [change] = (await client.get("/v1/changes")).json()["changes"]
    assert change["status"] == "done"
    assert host.units["trace"].state == "stopped"


async def test_a_client_that_stopped_listening_keeps_no_connection_busy(control, host, autojump_clock):
    host.gate = trio.Event()
    async with front_door(control.seen_by(0)) as (listener, draining, returned):
        peer: Client = listener.connect()
        await peer.send(request("POST", "/v1/services/trace/stop?wait=60"))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await peer.half_close()
        response = await peer.response("POST")
        assert (response.status, trio.current_time() - began) == (202, 0)
        draining.set()
        await returned.wait()


async def test_drain_answers_whoever_waits_with_the_change_as_it_stands(control, host, autojump_clock):
    host.gate = trio.Event()
    async with front_door(control.seen_by(0)) as (listener, draining, returned):
        peer = listener.connect()
        await peer.send(request("POST", "/v1/services/trace/stop?wait=60"))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        draining.set()
        assert (await peer.response("POST")).status == 202
        await returned.wait()
        assert trio.current_time() == began
