"""The daemon as a process: start, signals, reload, drain, and what it tells systemd."""

from __future__ import annotations

import json
import signal
import socket
import stat
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed

from netd.daemon import Daemon
from netd.errors import RequestFailed
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.section import Listen
from netd.settings import Loaded, Settings
from netd.systemd import Notifier
from tests.support.accounts import open_to_all, why_not_nobody
from tests.support.process import PATIENCE, NetdProcess, Systemd
from tests.support.systemd import FakeSystemd
from tests.support.websocket import websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_websocket import WebSocketConnection

TRACE = '[[trace.listen]]\naddress = "127.0.0.1:0"\n'
RELOAD_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall(b"POST /v1/reload?wait=1 HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    while more := s.recv(65536):
        sys.stdout.buffer.write(more)
"""


async def trace_url(netd: NetdProcess) -> str:
    async with netd.client() as control:
        units = {unit["name"]: unit for unit in await control.services()}
    return f"ws://{units['trace']['addresses'][0]}/"


@asynccontextmanager
async def traced_client(netd: NetdProcess) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket client whose first trace is over. Its messages must be read, or trio-websocket answers no pings."""
    async with websocket(await trace_url(netd)) as ws:
        with trio.fail_after(PATIENCE):
            while json.loads(await ws.get_message())["type"] != "clientDone":
                pass
        yield ws


async def test_it_serves_and_stops_and_tells_systemd(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd:
        async with netd.client() as control:
            status = await control.status()
        assert (status["state"], status["ready"], status["pid"]) == ("running", True, netd.pid)
        assert stat.S_IMODE(netd.socket.stat().st_mode) == 0o660

        netd.signal(signal.SIGTERM)
        await netd.systemd.until(STOPPING="1")
        assert await netd.exited() == 0


async def test_a_client_is_traced_and_told(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd, websocket(await trace_url(netd)) as ws:
        with trio.fail_after(PATIENCE):
            connected, done = json.loads(await ws.get_message()), json.loads(await ws.get_message())

        assert connected["type"] == "connected"
        assert done["type"] == "clientDone"
        async with netd.client() as control:
            [trace] = await control.traces()
        assert trace["client_id"] == connected["client_id"]


@pytest.mark.parametrize(
    ("toml", "code", "says"),
    [
        ("[trace]\nmax_hop = 3\n", 78, "netd.toml:2: trace.max_hop: "),
        ('[[trace.listen]]\naddress = "127.0.0.1:{taken}"\n', 69, "another program listens there already"),
        ("trace = [\n", 78, "netd.toml:1"),
    ],
)
async def test_what_prevents_a_start_is_said_with_its_exit_code(tmp_path, toml, code, says):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        netd = NetdProcess(tmp_path, toml.replace("{taken}", str(taken.getsockname()[1])))
        netd.start()
        assert await netd.exited() == code
    assert says in netd.log()
    assert "Traceback" not in netd.log()
    netd.systemd.close()


async def test_sighup_reloads_and_a_refused_reload_disturbs_nobody(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd, netd.client() as control:
        before = {unit["name"]: unit["generation"] for unit in await control.services()}
        async with traced_client(netd) as ws:
            netd.config.write_text(TRACE + "[trace]\nmax_hops = 12\n")
            netd.signal(signal.SIGHUP)
            reloading = await netd.systemd.until(RELOADING="1")
            assert int(reloading["MONOTONIC_USEC"]) > 0
            await netd.systemd.until(READY="1")
            assert (await control.config())["values"]["trace"]["max_hops"] == 12

            # fixed: refused by name, and the live change beside it is not made either
            netd.config.write_text(TRACE + "[trace]\nmax_hops = 9\n[control]\nmode = 0o600\n")
            with pytest.raises(RequestFailed, match=r"cannot change control\.mode") as refused:
                await control.reload(wait=20)
            assert (refused.value.kind, refused.value.status) == ("reload-refused", 409)
            assert refused.value.path == "control.mode"

            # broken: all problems at once
            netd.config.write_text(TRACE + "[trace]\nmax_hops = 0\nrounds = -1\nmax_hop = 1\n")
            with pytest.raises(RequestFailed) as broken:
                await control.reload(wait=20)
            assert broken.value.kind == "config"
            assert len(str(broken.value).splitlines()) == 3

            assert (await control.config())["values"]["trace"]["max_hops"] == 12
            assert {unit["name"]: unit["generation"] for unit in await control.services()} == before
            await ws.ping()  # the client noticed nothing


async def test_an_account_that_does_not_exist_is_a_health_warning_until_a_reload_mends_it(tmp_path):
    async with NetdProcess(tmp_path, '[control]\nusers = ["no-such-user"]\n') as netd, netd.client() as control:

        async def told() -> list[str]:
            return [one["message"] for one in (await control.health())["warnings"] if one["code"] == "control.accounts"]

        with trio.fail_after(PATIENCE):
            async with control.events(kinds=["warningRaised", "warningCleared"]) as events:
                if not await told():
                    assert (await anext(events)).data["code"] == "control.accounts"
                assert await told() == ["cannot give access to no-such-user: no such account"]
                netd.config.write_text("")
                await control.reload(wait=20)
                async for event in events:
                    if event.kind == "warningCleared":
                        break
                assert await told() == []


async def test_a_listener_that_cannot_be_had_refuses_the_reload(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd, netd.client() as control:
        before = (await control.health())["warnings"]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            netd.config.write_text(f'[[trace.listen]]\naddress = "127.0.0.1:{port}"\n')
            async with traced_client(netd) as ws:
                with pytest.raises(RequestFailed, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
                    await control.reload(wait=20)
                await ws.ping()
        assert (await control.health())["warnings"] == before


async def test_a_moved_listener_serves_before_the_old_generation_drains(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd, netd.client() as control:
        async with traced_client(netd) as ws:
            netd.config.write_text('[[trace.listen]]\naddress = "127.0.0.2:0"\n')
            change = await control.reload(wait=20)
            assert [entry["path"] for entry in change["result"]["changes"]] == ["trace.listen.0.address"]
            with trio.fail_after(PATIENCE), pytest.raises(ConnectionClosed) as closed:
                await ws.get_message()
            assert closed.value.reason.code == 1001
        assert (await trace_url(netd)).startswith("ws://127.0.0.2:")


async def test_config_set_persists_shows_its_origin_and_survives_a_restart(tmp_path):
    systemd = Systemd(tmp_path)
    async with NetdProcess(tmp_path, TRACE, systemd=systemd) as netd, netd.client() as control:
        await control.config_patch({"trace.max_hops": 17}, wait=20)
        with pytest.raises(RequestFailed, match="cannot change control"):
            await control.config_patch({"control.mode": 0o600, "trace.rounds": 3}, wait=20)
        view = await control.config()
        assert view["values"]["trace"]["max_hops"] == 17
        assert view["origins"]["trace.max_hops"].startswith(str(netd.state / "override.toml:"))
        assert "trace.rounds" not in view["origins"]
        assert "rounds" not in (netd.state / "override.toml").read_text()

    async with NetdProcess(tmp_path, TRACE, systemd=systemd) as netd, netd.client() as control:
        assert (await control.config())["values"]["trace"]["max_hops"] == 17
    systemd.close()


async def test_sigterm_with_500_clients_connected(tmp_path):
    toml = "[trace]\nclients_per_address = 1000\nmax_traces = 1000\nprobes_per_second = 100000\n" + TRACE
    told: list[int] = []

    async with NetdProcess(tmp_path, toml) as netd:
        url = await trace_url(netd)
        ready = trio.Event()
        connected = 0

        async def client() -> None:
            nonlocal connected
            async with websocket(url) as ws:
                connected += 1
                if connected == 500:
                    ready.set()
                try:
                    while True:
                        await ws.get_message()
                except ConnectionClosed as closed:
                    told.append(closed.reason.code)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(500):
                    nursery.start_soon(client)
                await ready.wait()
                netd.signal(signal.SIGTERM)
            assert await netd.exited() == 0
    assert told == [1001] * 500
    assert "Traceback" not in netd.log()


async def test_hostile_peers_of_the_control_socket_do_not_hold_up_a_shutdown(tmp_path):
    events = b"GET /v1/events HTTP/1.1\r\nHost: netd\r\n\r\n"
    async with NetdProcess(tmp_path, "[control.limits]\ndrain = 1.0\n" + TRACE) as netd, AsyncExitStack() as stack:
        for said in (b"", b"GET /v1/sta", b"\x00\xff" * 40, events * 2):
            peer = await stack.enter_async_context(await trio.open_unix_socket(str(netd.socket)))
            await peer.send_all(said)
        async with netd.client() as control:
            assert (await control.ready())["ready"]
        netd.signal(signal.SIGTERM)
        assert await netd.exited() == 0
    assert "Traceback" not in netd.log()


async def test_a_second_signal_no_longer_waits(tmp_path):
    async with NetdProcess(tmp_path, "[supervisor]\ndrain = 3600\n" + TRACE) as netd:
        host, port = (await trace_url(netd)).removeprefix("ws://").rstrip("/").split(":")
        # a client that is half way through its handshake and one that will never read
        stuck = await trio.open_tcp_stream(host, int(port))
        await stuck.send_all(b"GET / HTTP/1.1\r\n")
        netd.signal(signal.SIGTERM)
        await netd.systemd.until(STOPPING="1")
        netd.signal(signal.SIGTERM)
        assert await netd.exited() == 0
        await stuck.aclose()


async def test_listeners_survive_a_kill_through_the_fd_store(tmp_path):
    systemd = Systemd(tmp_path)
    async with NetdProcess(tmp_path, TRACE, systemd=systemd) as netd:
        url = await trace_url(netd)
        host, port = url.removeprefix("ws://").rstrip("/").split(":")
        assert len(systemd.store) == 2  # control and trace
        netd.signal(signal.SIGKILL)
        await netd.exited()

    # nobody is serving, and still nobody is refused
    waiting = await trio.open_tcp_stream(host, int(port))
    async with NetdProcess(tmp_path, TRACE, systemd=systemd) as netd:
        assert await trace_url(netd) == url
        with trio.fail_after(PATIENCE):
            await waiting.send_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await waiting.receive_some()).startswith(b"HTTP/1.1 4")
        await waiting.aclose()
    systemd.close()


async def test_a_start_that_fails_leaves_the_listeners_to_the_next(tmp_path):
    systemd = Systemd(tmp_path)
    async with NetdProcess(tmp_path, TRACE, systemd=systemd) as netd:
        host, port = (await trace_url(netd)).removeprefix("ws://").rstrip("/").split(":")
        kept = sorted(name for name, _ in systemd.store)
        netd.signal(signal.SIGKILL)
        await netd.exited()

    with socket.create_server(("127.0.0.1", 0)) as rival:
        taken = f'[[metrics.listen]]\naddress = "127.0.0.1:{rival.getsockname()[1]}"\n'
        failing = NetdProcess(tmp_path, TRACE + taken, systemd=systemd)
        failing.start()
        assert "another program listens there already" in await systemd.status()
        assert await failing.exited() == 69
    assert sorted(name for name, _ in systemd.store) == kept

    waiting = await trio.open_tcp_stream(host, int(port))
    async with NetdProcess(tmp_path, TRACE, systemd=systemd):
        with trio.fail_after(PATIENCE):
            await waiting.send_all(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await waiting.receive_some()).startswith(b"HTTP/1.1 4")
        await waiting.aclose()
    systemd.close()


@asynccontextmanager
async def manager(tmp_path: Path) -> AsyncIterator[tuple[FakeSystemd, Notifier]]:
    systemd = FakeSystemd(tmp_path)
    notifier = Notifier(systemd.address)
    try:
        yield systemd, notifier
    finally:
        notifier.close()
        systemd.close()


async def test_a_stop_during_the_start_leaves_the_listeners_to_the_next(tmp_path):
    async with manager(tmp_path) as (systemd, notifier):
        before = Listeners(health=Health(Bus()), notifier=notifier)
        listener = await before.lease("framed").open(Listen(address="127.0.0.1:0"))
        host, port = listener.address.split(":")
        before.leave_behind()
        before.close()

        # the stop comes while metrics starts: nobody has asked for framed's yet
        sections = {
            "metrics": {"enabled": True, "listen": [{"address": "127.0.0.1:0"}]},
            "framed": {"enabled": True, "listen": [{"address": listener.address}]},
        }
        settings = Settings.embedded(sections)
        daemon = Daemon(Loaded(settings, {}, []), notifier=notifier, passed=systemd.hand_over())
        daemon.stop()
        with trio.fail_after(PATIENCE):
            await daemon.run()
        assert not [message for message in systemd.read() if "FDSTOREREMOVE" in message]
        assert "framed" in [name.split(".")[0] for name in systemd.stored]
        await (await trio.open_tcp_stream(host, int(port))).aclose()


async def test_the_status_line_is_true_again_after_a_reload(tmp_path):
    loaded = Loaded(Settings.embedded({}), {}, [])

    def source(**_):
        trio.from_thread.run_sync(daemon.health.warn, "alpha.beta", "cannot do it")
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)  # it is looked at, and not to be said now
        return loaded

    async with manager(tmp_path) as (systemd, notifier), trio.open_nursery() as nursery:
        daemon = Daemon(loaded, source=source, notifier=notifier)
        await nursery.start(daemon.run)
        await daemon.reload()
        daemon.health.clear("alpha.beta")
        await trio.testing.wait_all_tasks_blocked()
        lines = [message["STATUS"] for message in systemd.read() if "STATUS" in message]
        assert ["1 warning" in line for line in lines] == [False, True, False]
        daemon.stop()


async def test_the_status_line_says_what_runs_and_what_does_not(tmp_path):
    toml = TRACE + '[[metrics.listen]]\naddress = "127.0.0.1:0"\n[[metrics.listen]]\naddress = "127.0.0.1:0"\n'
    async with NetdProcess(tmp_path, toml) as netd, netd.client() as control:
        ready = next(message for message in netd.systemd.messages if "READY" in message)
        units = {unit["name"]: unit for unit in await control.services()}
        trace, metrics = units["trace"]["addresses"], units["metrics"]["addresses"]
        assert f"trace running on {trace[0]}, " in ready["STATUS"]
        assert f"metrics running on {metrics[0]} and 1 more, " in ready["STATUS"]
        await control.service_stop("trace")
        while "trace stopped" not in await netd.systemd.status():
            pass


@pytest.mark.parametrize(
    ("toml", "says"),
    [("trace = 1\n", "netd.toml:1: trace: "), ("a = 1\nb = 2\n", "netd.toml:1: a: unknown key (and 1 more)")],
)
async def test_why_it_did_not_start_stands_in_the_status_line(tmp_path, toml, says):
    netd = NetdProcess(tmp_path, toml)
    netd.start()
    assert await netd.exited() == 78
    assert says in await netd.systemd.status()
    netd.systemd.close()


async def test_a_hung_loop_is_aborted_with_the_stacks_of_its_threads(tmp_path):
    async with NetdProcess(tmp_path, TRACE) as netd:
        netd.signal(signal.SIGABRT)
        assert await netd.exited() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in netd.log()
    assert "in run" in netd.log().partition("most recent call first")[2]


async def test_the_watchdog_is_fed_while_the_loop_is_healthy(tmp_path):
    netd = NetdProcess(tmp_path, TRACE, environ={"WATCHDOG_USEC": "400000"})
    async with netd:
        for _ in range(3):
            await netd.systemd.until(WATCHDOG="1")
        netd.signal(signal.SIGSTOP)  # a loop that hangs
        while True:
            with trio.move_on_after(1.0) as quiet:
                await netd.systemd.until(WATCHDOG="1")
            if quiet.cancelled_caught:
                break
        netd.signal(signal.SIGCONT)
        await netd.systemd.until(WATCHDOG="1")


@pytest.mark.skipif(why_not_nobody() is not None, reason=str(why_not_nobody()))
async def test_whoever_runs_it_by_hand_may_write_and_others_may_not(tmp_path):
    open_to_all(tmp_path)
    async with NetdProcess(tmp_path, "[control]\nmode = 0o666\n" + TRACE) as netd, netd.client() as control:
        await control.config_patch({"trace.rounds": 2}, wait=20)  # root
        command = [sys.executable, "-c", RELOAD_AS_NOBODY, str(netd.socket)]
        result = await trio.run_process(command, capture_stdout=True)
        assert json.loads(result.stdout.partition(b"\r\n\r\n")[2])["error"]["kind"] == "denied"
