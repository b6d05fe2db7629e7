"""A worker as a program: its command line, how it ends, and what it tells systemd."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from netd.errors import ConfigError
from netd.wire import workers as wire
from netd.worker import Worker, program
from netd.worker.__main__ import load, main
from tests.support.process import PATIENCE, ROOT, Systemd
from tests.support.workerdaemon import scripted_daemon

APP = """
import threading, time, trio
from netd.worker import Worker, run

worker = Worker()
other = Worker("its own name")

@worker.message
def message(session, data, token):
    print("got", data)
    if data == "block":  # the event loop, until the watchdog has missed a beat
        trio.from_thread.run_sync(time.sleep, 0.3, trio_token=worker.running.token)
    if data == "hang":
        threading.Event().wait()
    if data == "exit":
        raise SystemExit(3)
    worker.send(session, data)

if __name__ == "__main__":
    run(worker)
"""
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("NETD_", "NOTIFY_", "JOURNAL_"))}


@pytest.fixture
def app(tmp_path):
    """A directory with an application in it."""
    directory = tmp_path / "app"
    directory.mkdir()
    (directory / "lab_app.py").write_text(APP)
    return directory


@pytest.fixture
async def daemon(tmp_path):
    async with scripted_daemon(tmp_path) as daemon:
        yield daemon


@asynccontextmanager
async def started(*argv, log, **environ):
    """A Python process; killed if it has not ended by itself."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            [sys.executable, *map(str, argv)],
            cwd=ROOT,
            env=ENVIRON | environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def ended(process) -> int:
    with trio.fail_after(PATIENCE):
        return await process.wait()


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app_name", "why"),
    [
        ("no_such_module", "cannot find the module 'no_such_module' in "),
        ("lab_app.py", "name a module and not a file: lab_app --directory ."),
        ("a/b.py:worker", "name a module and not a file: b --directory a"),
        ("lab_app:nothing", "cannot find a Worker named nothing in 'lab_app': there is other, worker"),
        ("json", "cannot find a Worker named worker or app in 'json': there is none"),
        ("lab_broken", "cannot import 'lab_broken': ZeroDivisionError: division by zero"),
        ("lab_needs", "cannot import 'lab_needs': ModuleNotFoundError: No module named 'no_such_library'"),
        ("lab_app.sub", "cannot find the module 'lab_app.sub' in "),
        (":worker", "cannot"),
        ("..x", "cannot"),
    ],
)
def test_what_cannot_be_run_is_said_with_what_to_do(app, app_name, why, monkeypatch, capsys):
    (app / "lab_broken.py").write_text("1 / 0\n")
    (app / "lab_needs.py").write_text("import no_such_library\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(app)
    assert main([app_name, "--directory", str(app)]) == 78
    assert why in capsys.readouterr().err


def test_which_worker_is_meant(app, monkeypatch):
    monkeypatch.syspath_prepend(app)
    assert load("lab_app") is load("lab_app:worker")
    assert load("lab_app:other").name == "its own name"
    assert load("netd.worker.examples.chat").name == "chat"
    with pytest.raises(ConfigError):
        load("lab_app:Worker")


def test_check_says_what_it_handles(app, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(app)
    monkeypatch.setenv("NETD_WORKER_APP", "lab_app:worker")
    monkeypatch.setenv("NETD_WORKER_DIRECTORY", str(app))
    monkeypatch.setenv("NETD_WORKER_THREADS", "3")
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == "lab_app:worker handles message\n"
    assert load("lab_app").threads == 3
    assert main(["netd.worker.examples.api", "--check"]) == 0
    assert capsys.readouterr().out == "netd.worker.examples.api handles http_request, message\n"


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "cannot run nothing: name a module"),
        (
            ["x", "--threads", "0"],
            "--threads: cannot use '0': write 1 to 4096 (NETD_WORKER_THREADS is the same)",
        ),
        (
            ["x", "--tasks", "many"],
            "--tasks: cannot use 'many': write 1 to 4096 (NETD_WORKER_TASKS is the same)",
        ),
        (
            ["x", "--drain", "x"],
            "--drain: cannot use 'x': write seconds from 0 to 86400 (NETD_WORKER_DRAIN is",
        ),
        (["x", "--name", "x" * 129], "write 1 to 128 characters (NETD_WORKER_NAME is the same)"),
        (["x", "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_wrong_usage(argv, why, capsys, monkeypatch):
    monkeypatch.delenv("NETD_WORKER_APP", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 64
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("drain", ["nan", "inf", "-1", "soon"])
def test_a_drain_that_is_no_time_is_wrong_usage(drain, monkeypatch):
    monkeypatch.setenv("NETD_WORKER_DRAIN", drain)
    with pytest.raises(SystemExit) as caught:
        main(["netd.worker.examples.chat", "--check"])
    assert caught.value.code == 64


def test_a_variable_that_is_empty_is_not_set(monkeypatch, capsys):
    for name in ("DIRECTORY", "SOCKET", "NAME", "THREADS", "TASKS", "DRAIN"):  # as a file of variables may have them
        monkeypatch.setenv(f"NETD_WORKER_{name}", "")
    assert main(["netd.worker.examples.chat", "--check"]) == 0


def test_a_directory_that_is_not_there(tmp_path, capsys):
    assert main(["x", "--directory", str(tmp_path / "none")]) == 78
    assert f"cannot work in {tmp_path / 'none'}: No such file or directory" in capsys.readouterr().err


def test_it_is_imported_fast():
    code = "import json, sys; from netd.worker import Worker, run; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, env=ENVIRON)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    heavy = {"pydantic", "fastapi", "structlog", "httpx", "h11", "cryptography", "coredis", "click", "rich", "asyncio"}
    assert modules & heavy == set()


# --- its life --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["its own program", "netd.worker"])
async def test_sigterm_leaves_in_order(app, daemon, tmp_path, how):
    log = tmp_path / "log"
    argv = [app / "lab_app.py"] if how == "its own program" else ["-m", "netd.worker", "lab_app", "--directory", app]
    async with started(*argv, log=log, NETD_WORKER_SOCKET=str(daemon.path)) as process:
        link = await daemon.accept()
        assert (link.hello.name, link.hello.pid) == ("lab_app", process.pid)
        await link.known("a")
        n = await link.message("a", "x")
        assert (await link.heard(wire.Send)).data == "x"
        assert "got x\n" in log.read_text()  # what a program prints is not kept back
        await link.done(n)
        process.send_signal(signal.SIGTERM)
        await link.heard(wire.Leave)
        await link.say(wire.Goodbye("drained", "it wanted to leave"))
        assert await ended(process) == 0
    assert "got x" in log.read_text()
    assert "INFO netd.worker: SIGTERM: finishing what runs" in log.read_text()


async def test_a_second_signal_does_not_wait(app, daemon, tmp_path):
    log = tmp_path / "log"
    async with started(app / "lab_app.py", "--socket", daemon.path, log=log) as process:
        link = await daemon.accept()
        await link.known("a")
        await link.message("a", "hang")
        process.send_signal(signal.SIGINT)
        await link.heard(wire.Leave)
        process.send_signal(signal.SIGINT)
        assert await ended(process) == 0
    assert "SIGINT again: not waiting for what still runs" in log.read_text()
    assert "Traceback" not in log.read_text()


async def test_a_handler_that_ends_the_program_ends_it(app, daemon, tmp_path):
    async with started(app / "lab_app.py", f"--socket={daemon.path}", log=tmp_path / "log") as process:
        link = await daemon.accept()
        await link.known("a")
        await link.message("a", "exit")
        assert await ended(process) == 3


async def test_it_says_why_it_cannot_go_on(app, daemon, tmp_path):
    log = tmp_path / "log"
    async with started(app / "lab_app.py", "--socket", daemon.path, log=log) as process:
        link = await daemon.connected()
        await link.say(wire.Goodbye("denied", "cannot take uid 7: [worker] users does not have it"))
        assert await ended(process) == 77
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
    assert line == (
        f"ERROR netd.worker: cannot work for the daemon at {daemon.path}: cannot take uid 7: [worker] users does not "
        "have it"
    )
    assert "Traceback" not in log.read_text()


async def test_what_it_tells_systemd(app, daemon, tmp_path):
    systemd = Systemd(tmp_path)
    environ = {
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": "200000",
        "JOURNAL_STREAM": "1:1",
        "NETD_WORKER_APP": "lab_app",
        "NETD_WORKER_DIRECTORY": str(app),
        "NETD_WORKER_SOCKET": str(daemon.path),
        "NETD_WORKER_NAME": "chat",
    }
    log = tmp_path / "log"
    try:
        async with started("-m", "netd.worker", log=log, **environ) as process:
            link = await daemon.accept()
            assert link.hello.name == "chat"
            ready = await systemd.until(READY="1")
            assert ready["STATUS"] == f"connected to netd 0.0.0 at {daemon.path} as worker 1"
            await systemd.until(WATCHDOG="1")
            await link.known("a")
            n = await link.message("a", "block")
            await link.heard(wire.Send)
            await link.done(n)
            await link.close()
            await systemd.until(STATUS="the connection to the daemon has ended")
            link = await daemon.accept()
            await systemd.until(STATUS=ready["STATUS"])
            process.send_signal(signal.SIGTERM)
            await systemd.until(STOPPING="1")
            await link.heard(wire.Leave)
            await link.say(wire.Goodbye("drained"))
            assert await ended(process) == 0
        assert [one for one in systemd.messages if "READY" in one] == [ready]
    finally:
        systemd.close()
    lines = [line for line in log.read_text().splitlines() if not line.startswith("got")]
    assert {line[:3] for line in lines} == {"<3>", "<4>", "<6>"}
    assert any(line.startswith("<3>ERROR netd.systemd: watchdog not fed answered=") for line in lines)


def test_levels_for_the_journal(monkeypatch):
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    program.log_to_stderr()
    (output,) = root.handlers
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "two\nlines", (), None)
    assert output.format(record) == "<3>ERROR x: two\n<3>lines"
    program.log_to_stderr()  # a program that has seen to it itself is left alone
    assert root.handlers == [output]


def test_the_socket_may_be_said_in_the_arguments(tmp_path):
    assert program._from_argv(["--socket", "/a"]).as_posix() == "/a"
    assert program._from_argv(["-v", "--socket=/b", "x"]).as_posix() == "/b"
    assert program._from_argv(["--socket"]) is None


def test_a_worker_without_handlers_is_one_too():
    assert Worker().handlers == {}
