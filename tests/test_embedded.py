"""The daemon inside somebody's Trio program, and services that crash in it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio_websocket import ConnectionClosed

import netd
from netd.client import ControlClient
from netd.daemon import _reload_by_signal
from netd.errors import ConfigError, PrepareFailed, RequestFailed
from netd.runtime.health import WarningRaised
from netd.runtime.unit import UnitChanged
from netd.services.trace.service import TraceService
from tests.support.process import PATIENCE
from tests.support.websocket import websocket

README = Path(__file__).parents[1] / "README.md"
LOOPBACK = {"trace": {"listen": [{"address": "127.0.0.1:0"}]}}


async def test_it_serves_inside_the_block_and_not_after_it():
    async with netd.open(LOOPBACK) as daemon:
        [address] = daemon.addresses("trace")
        with daemon.notices() as notices, trio.fail_after(PATIENCE):
            async with websocket(f"ws://{address}/") as ws:
                connected = json.loads(await ws.get_message())
                async for notice in notices:
                    if notice.kind == "clientDone":
                        break
        assert notice.client_id == connected["client_id"]
    host, port = address.split(":")
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream(host, int(port))


async def test_stop_ends_the_notices():
    async with netd.open(LOOPBACK) as daemon:
        seen = []
        with trio.fail_after(PATIENCE):
            notices = daemon.notices()
            daemon.stop()
            async for notice in notices:
                seen.append(notice)
    changes = [notice for notice in seen if isinstance(notice, UnitChanged)]
    assert [change.state for change in changes if change.service == "trace"] == ["draining", "stopped"]


async def test_leaving_after_a_stop_still_drains():
    """It must not be taken for a second, impatient stop."""
    codes = []

    async def client(address, *, task_status):
        async with websocket(f"ws://{address}/") as ws:
            task_status.started()
            try:
                while True:
                    await ws.get_message()
            except ConnectionClosed as closed:
                codes.append(closed.reason.code)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery, netd.open(LOOPBACK) as daemon:
            await nursery.start(client, daemon.addresses("trace")[0])
            daemon.stop()
    assert codes == [1001]


async def test_what_the_program_raises_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with netd.open(LOOPBACK):
            _ = 1 // 0


async def test_a_wrong_key_and_a_taken_port_are_errors_of_their_own():
    with pytest.raises(ConfigError, match=r"trace\.lisen: .*did you mean listen"):
        async with netd.open({"trace": {"lisen": []}}):
            pass
    async with netd.open(LOOPBACK) as daemon:
        with pytest.raises(PrepareFailed, match="another program listens there already"):
            async with netd.open({"trace": {"listen": [{"address": daemon.addresses("trace")[0]}]}}):
                pass


async def test_trouble_with_the_store_is_a_matter_of_health(tmp_path):
    async with netd.open({**LOOPBACK, "state_directory": str(tmp_path / "state")}) as daemon:
        with daemon.notices(WarningRaised) as notices, trio.fail_after(PATIENCE):
            daemon._store.write("INSERT INTO nowhere VALUES (1)", ())
            async for notice in notices:
                assert notice.code == "store.failing"
                break
        assert daemon.health.status == "failing"
        assert b"netd_store_" in daemon.metrics.render()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_reload_by_signal_that_fails_inside_harms_nobody(monkeypatch):
    async with netd.open(LOOPBACK) as daemon:

        async def broken():
            await trio.lowlevel.checkpoint()
            raise RuntimeError("a bug")

        monkeypatch.setattr(daemon, "reload", broken)
        with capture_logs() as logs:
            await _reload_by_signal(daemon)
        assert [line["event"] for line in logs] == ["reload failed inside"]
        assert daemon.state == "running"


async def test_a_service_that_crashes_in_a_loop_harms_nobody(tmp_path, monkeypatch):
    socket = tmp_path / "control.sock"
    settings = {
        **LOOPBACK,
        "control": {"socket": str(socket), "group": None},
        "metrics": {"listen": [{"address": "127.0.0.1:0"}]},
        "supervisor": {"backoff_initial": 0.01, "backoff_max": 0.02, "burst": 4},
    }
    runs = 0

    async def crash(self, *, task_status):
        nonlocal runs
        runs += 1
        task_status.started()
        raise RuntimeError(f"crash number {runs}")

    async with netd.open(settings) as daemon, ControlClient(socket) as control:
        await control.service_stop("trace", wait=20)
        with monkeypatch.context() as patched, trio.fail_after(PATIENCE):
            patched.setattr(TraceService, "run", crash)
            notices = daemon.notices(UnitChanged)
            with pytest.raises(RequestFailed, match="crash number 1"):
                await control.service_start("trace", wait=20)
            async for notice in notices:
                if notice.service == "trace" and notice.state == "failed":
                    break
            assert "crash number 4" in notice.error

            status = await control.status()
            units = {unit["name"]: unit for unit in status["services"]}
            assert units["trace"]["state"] == "failed"
            assert "crash number 4" in units["trace"]["error"]
            assert units["metrics"]["state"] == "running"
            assert units["metrics"]["restarts"] == 0
            assert not status["ready"]
            assert [warning["severity"] for warning in status["warnings"] if warning["service"] == "trace"] == ["error"]
            [metrics] = units["metrics"]["addresses"]
            async with await trio.open_tcp_stream(*split(metrics)) as scrape:
                await scrape.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                body = b"".join([chunk async for chunk in scrape])
            assert b'netd_service_up{service="trace"} 0.0' in body
            with pytest.raises(RequestFailed, match="crash number"):
                await control.service_start("trace", wait=20)

        # whoever mended it starts it again
        change = await control.service_start("trace", wait=20)
        assert change["result"]["state"] == "running"
        assert (await control.ready())["ready"]


def split(address: str) -> tuple[str, int]:
    host, port = address.rsplit(":", 1)
    return host, int(port)


async def test_the_example_in_the_readme_runs(tmp_path):
    """As written, but for the port: any free one, so that the test disturbs nobody."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [example] = [text for text in examples if "netd.open" in text]
    assert "127.0.0.1:8080" in example
    program = tmp_path / "example.py"
    program.write_text(example.replace("127.0.0.1:8080", "127.0.0.1:0"))

    process = await trio.lowlevel.open_process([sys.executable, "-u", str(program)], stdout=subprocess.PIPE)
    with trio.fail_after(PATIENCE):
        said = b""
        while not said.endswith(b"\n"):
            said += await process.stdout.receive_some()
        async with websocket(f"ws://{said.decode().split()[-1]}/"):
            async for chunk in process.stdout:
                said += chunk
            assert await process.wait() == 0
    kinds = [line.split()[0] for line in said.decode().splitlines()[1:]]
    assert kinds[0] == "clientConnected"
    assert "clientDone" in kinds
