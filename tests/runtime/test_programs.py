"""Programs that are started without privileges, and how they are got rid of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import trio

from netd.runtime.programs import how, launch, reap

STATUS = ["/bin/cat", "/proc/self/status"]

# in a process of its own, which makes all that it may do inheritable, and then starts a program
HEIR = f"""
import ctypes, sys, trio
from netd.runtime.programs import launch
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert not libc.capget(header, sets)
sets[2], sets[5] = sets[1], sets[4]
assert not libc.capset(header, sets)

async def main():
    process = await launch({STATUS!r})
    async for data in process.stdout:
        sys.stdout.write(data.decode())
    sys.stderr.write((await process.stderr.receive_some()).decode())
    sys.exit(await process.wait())

trio.run(main)
"""


async def output(command: list[str]) -> str:
    process = await launch(command)
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        said = b"".join([data async for data in process.stdout])
    await process.wait()
    return said.decode()


def sets(status: str) -> dict[str, int]:
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Cap"))
    return {name: int(value, 16) for name, value in lines.items()}


async def test_a_program_has_no_capabilities():
    found = sets(await output(STATUS))
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert found["CapBnd"] == 0 or os.geteuid() != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to leave to others")
def test_what_the_daemon_could_leave_to_root_is_left_to_nobody():
    ran = subprocess.run([sys.executable, "-c", HEIR], capture_output=True, text=True, check=True)
    assert set(sets(ran.stdout).values()) == {0}


async def test_one_that_is_killed_where_nobody_may_wait_is_gone_all_the_same():
    # what it has started goes with it
    process = await launch(["/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"])
    assert process.stdout is not None
    assert process.stderr is not None
    child = int(await process.stdout.receive_some())
    assert reap(process)
    assert how(process.returncode) == f"killed by {signal.SIGKILL.name}"
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert reap(process)  # again, and nothing happens
    assert await process.stdout.receive_some() == b""  # which the child had open too
    assert child != process.pid
    await trio.aclose_forcefully(process.stdout)
    await trio.aclose_forcefully(process.stderr)
