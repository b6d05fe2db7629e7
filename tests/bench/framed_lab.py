"""What the framed bench measures with: its C programs compiled, servers on one core, load on the other.

    with Workshop() as shop:                        # compiles framed_peers/*.c into a directory of its own
        async with peer(shop, "C") as server:       # or daemon(...): netd itself
            figures = await shop.load("echo_load", port=server.port, pid=server.pid, size=64)

Every process is a child of this one, on loopback, and killed at the end. Servers say their port on their first line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import trio

from tests.support.process import NetdProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SOURCES = Path(__file__).parent / "framed_peers"
_PATIENCE = 60.0
"""Seconds after which a program that should have ended is given up."""

_PINNED = """
import os, resource, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Before exec, so that every thread of the program is born on its core."""

_DAEMON = """
[log]
level = "warning"

[trace]
enabled = false

[framed]
max_connections = 20_000
connections_per_address = 20_000

[[framed.listen]]
address = "127.0.0.1:{echo}"
mode = "echo"

[[framed.listen]]
address = "127.0.0.1:{operations}"
mode = "operations"

[hub]
max_sessions = 20_000
resume_seconds = {resume}

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
"""
"""Limits of number wide enough for the crowd that a bench is; everything else as it is by default, and on."""


class CannotMeasure(Exception):
    """Something that no figure can be had without; says what to do."""


@dataclass(frozen=True)
class Server:
    """A running echo server: its process and its ports (`operations`: netd's listener that speaks them)."""

    pid: int
    port: int
    operations: int = 0


@dataclass(frozen=True)
class Peer:
    """A server to compare with: the command that starts it, and why it cannot be had here (None: it can)."""

    command: list[str]
    absent: str | None = None


def peers(shop: Workshop) -> dict[str, Peer]:
    """Every echo server this bench knows of, the limit first."""
    node = shutil.which("node") or shutil.which("nodejs")
    uvloop = importlib.util.find_spec("uvloop")
    return {
        "C epoll": Peer([shop.program("echo_server")]),
        "node net": Peer([node or "node", str(_SOURCES / "echo_node.js")], None if node else "apt: nodejs"),
        "uvloop": Peer([sys.executable, str(_SOURCES / "echo_uvloop.py")], None if uvloop else "pip: uvloop"),
        "naive Trio": Peer([sys.executable, str(_SOURCES / "echo_trio.py")]),
    }


class Workshop:
    """A temporary directory with the compiled programs of `sources`; which core is whose."""

    def __init__(self, sources: Path = _SOURCES) -> None:
        self._sources = sources
        cores = sorted(os.sched_getaffinity(0))
        self.load_core, self.server_core = cores[0], cores[-1]
        self.shared = len(cores) == 1
        """True: there is one core only, and the figures say little."""

    def __enter__(self) -> Self:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise CannotMeasure("there is no C compiler, and the load generator is in C (apt: gcc)")
        self._temporary = tempfile.TemporaryDirectory(prefix="netd-bench-")
        self.directory = Path(self._temporary.name)
        for source in sorted(self._sources.glob("*.c")):
            command = [compiler, "-O2", "-o", self.program(source.stem), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
            if done.returncode:
                self._temporary.cleanup()
                raise CannotMeasure(f"{source.name} does not compile (apt: libc6-dev):\n{done.stderr}")
        return self

    def __exit__(self, *exc: object) -> None:
        self._temporary.cleanup()

    def program(self, name: str) -> str:
        return str(self.directory / name)

    def keep(self, name: str, data: bytes) -> str:
        """A file with these bytes, for a program to read; returns its path."""
        path = self.directory / name
        path.write_bytes(data)
        return str(path)

    def pinned(self, core: int) -> list[str]:
        """What stands before a command that is to stay on `core`."""
        return [sys.executable, "-c", _PINNED, str(core)]

    def loading(self, name: str, **arguments: Any) -> list[str]:
        """The command of one of the load programs, on its core."""
        return [*self.pinned(self.load_core), self.program(name), *(f"{key}={arguments[key]}" for key in arguments)]

    async def load(self, name: str, **arguments: Any) -> dict[str, float]:
        """What a load program found out. Raises CannotMeasure with its own words if it could not."""
        with trio.move_on_after(_PATIENCE):
            done = await trio.run_process(
                self.loading(name, **arguments), capture_stdout=True, capture_stderr=True, check=False
            )
            if done.returncode == 0:
                figures: dict[str, float] = json.loads(done.stdout)
                return figures
            words = done.stderr.decode().strip() or f"it ended with status {done.returncode}"
            raise CannotMeasure(f"{name}: {words}")
        raise CannotMeasure(f"{name}: no end after {_PATIENCE:g} s")


@asynccontextmanager
async def started(shop: Workshop, command: list[str]) -> AsyncIterator[Server]:
    """A server on the server's core, listening; killed at the end."""
    async with spawned([*shop.pinned(shop.server_core), *command]) as (process, line):
        if not line.isdigit():
            raise CannotMeasure(f"{Path(command[-1]).name} did not say its port")
        yield Server(process.pid, int(line))


@asynccontextmanager
async def spawned(command: list[str]) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A process and the first line that it prints; what it says on stderr is shown. Killed at the end."""
    process = spawn(command)
    try:
        line = ""
        with trio.move_on_after(_PATIENCE):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        yield process, line.strip()
    finally:
        process.kill()
        process.communicate()


def spawn(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@asynccontextmanager
async def daemon(shop: Workshop, *, resume: int = 60) -> AsyncIterator[Server]:
    """netd itself, `python -m netd`, with a framed listener that echoes and one that speaks operations.

    `resume`: seconds for which a session that has ended is remembered.
    """
    echo, operations = free_ports(2)
    with tempfile.TemporaryDirectory(dir=shop.directory) as directory:
        toml = _DAEMON.format(echo=echo, operations=operations, resume=resume)
        netd = NetdProcess(Path(directory), toml, wrap=shop.pinned(shop.server_core))
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(netd)
            except trio.TooSlowError:
                raise CannotMeasure("the daemon did not get ready; above is what it said") from None
            yield Server(netd.pid, echo, operations)
            print(netd.log(), end="", file=sys.stderr)  # at level warning: nothing, unless it matters


@asynccontextmanager
async def crowd(shop: Workshop, port: int, connections: int, opening: bytes, replies: int) -> AsyncIterator[None]:
    """Connections that have sent `opening`, were answered with `replies` frames, and are silent from then on."""
    command = shop.loading(
        "crowd", port=port, connections=connections, open=shop.keep("opening", opening), replies=replies
    )
    async with spawned(command) as (_, line):
        if line != "ready":
            raise CannotMeasure(f"{connections} connections could not be opened")
        yield


async def abandon(shop: Workshop, port: int, connections: int, opening: bytes) -> None:
    """Open connections and leave every one in the middle of a frame, half of them with a reset."""
    command = shop.loading("crowd", port=port, connections=connections, open=shop.keep("opening", opening), abandon=1)
    with trio.fail_after(_PATIENCE):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"crowd: {done.stderr.decode().strip()}")


# --- what the kernel knows of a process ------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Bytes of memory that are this process's own and resident (proc_pid_smaps(5): private, clean and dirty)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def cpu_seconds(pid: int) -> float:
    """CPU time of all of its threads, user and system (clock_getcpuclockid(3), as Linux makes the id)."""
    return time.clock_gettime((~pid << 3) | 2)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
