"""A daemon that is killed takes its programs along, and all that these have started: nobody else would end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import trio

from netd.runtime import programs
from netd.runtime.programs import launch
from tests.support.process import PATIENCE, NetdProcess

# deaf to a polite end, and busy with a descriptor that scripts like: {fifo} is at its end when all of it is gone
BODY = "trap '' TERM HUP; exec 3>{fifo}; sleep 1000 & echo started >&3; wait"
WORKER = """
[worker]
command = ["/bin/sh", "-c", "{body}"]
{user}
"""
ADAPTER = """
[anomaly]
enabled = true
interval = 0.2
adapter.use = "command"
adapter.command = ["/bin/sh", "-c", "{body}"]
"""
# Trio starts processes in threads that end when there is nothing to do for a while: here at once
THREADS_END = """
import os, subprocess, sys, trio, trio._core._thread_cache
from netd.runtime.programs import launch
trio._core._thread_cache.IDLE_TIMEOUT = 0

async def main():
    process = await launch(["/bin/cat"], stdin=subprocess.PIPE)
    while len(os.listdir("/proc/self/task")) > 1:
        await trio.sleep(0.01)
    await process.stdin.send_all(b"alive")
    sys.stdout.write((await process.stdout.receive_some()).decode())
    process.kill()
    await process.wait()

trio.run(main)
"""


async def read(fifo: trio.abc.ReceiveStream) -> bytes:
    with trio.fail_after(PATIENCE):
        return bytes(await fifo.receive_some(100))


@pytest.fixture
async def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    # with a writer of our own at first, or it would be at its end now
    writing = os.open(path, os.O_RDWR)
    async with trio.lowlevel.FdStream(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as stream:

        async def begun() -> None:
            assert await read(stream) == b"started\n"
            os.close(writing)

        yield path, stream, begun


@pytest.mark.parametrize("toml", [WORKER, ADAPTER], ids=["worker", "adapter"])
async def test_what_a_daemon_has_started_goes_with_it_when_it_is_killed(tmp_path, fifo, toml):
    path, stream, begun = fifo
    toml = toml.format(body=BODY.format(fifo=path), user='user = "0"' if os.geteuid() == 0 else "")
    async with NetdProcess(tmp_path, toml) as netd:
        await begun()
        netd.signal(signal.SIGKILL)
        assert await netd.exited() == -signal.SIGKILL
        assert await read(stream) == b""


def test_it_does_not_go_with_the_thread_that_has_started_it():
    ran = subprocess.run(
        [sys.executable, "-c", THREADS_END], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "alive"), ran.stderr


async def test_one_whose_daemon_is_gone_before_it_could_say_so_does_not_start(monkeypatch):
    reading, writing = os.pipe()
    os.close(writing)
    monkeypatch.setattr(programs, "_lifeline", lambda: reading)
    process = await launch(["/bin/echo", "started"], stderr=subprocess.STDOUT)
    os.close(reading)
    assert process.stdout is not None
    async with process.stdout:
        said = b"".join([data async for data in process.stdout])
    assert await process.wait() in (1, -signal.SIGKILL)
    assert said in (b"cannot start anything: the daemon is gone\n", b"")


async def test_where_that_cannot_be_arranged_the_program_starts_and_says_so(monkeypatch):
    real = '"/proc/self/fd/{lifeline}"'
    assert programs._LAUNCHER.count(real) == 1
    monkeypatch.setattr(programs, "_LAUNCHER", programs._LAUNCHER.replace(real, '"/nowhere"'))
    process = await launch(["/bin/echo", "started"], stderr=subprocess.STDOUT)
    assert process.stdout is not None
    async with process.stdout:
        said = b"".join([data async for data in process.stdout]).decode()
    assert await process.wait() == 0
    complaint, started = said.splitlines()
    assert complaint.startswith("netd cannot have /bin/echo end with it where it is killed: no such file")
    assert started == "started"
