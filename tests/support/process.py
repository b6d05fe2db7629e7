"""netd as a process of its own, with a stand-in for the service manager at the other end of its notify socket.

    async with NetdProcess(tmp_path, toml) as netd:      # READY=1 was received
        netd.client()                                     # a ControlClient on its socket
        netd.signal(SIGTERM); await netd.exited()

The stand-in is also the fd store: what one process leaves in it, the next one is handed as LISTEN_FDS.
"""

from __future__ import annotations

import array
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trio

from netd.client import ControlClient

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

    from tests.support.netns import Namespace

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds after which a test that waits for a process gives up."""

_LAUNCH = """
import fcntl, os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]  # out of the way of 3, 4, ...
for number, fd in enumerate(high, start=3):
    os.dup2(fd, number, inheritable=True)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execvp(command[0], command)
"""
"""As systemd does it: the descriptors are 3, 4, ... and the environment names them (sd_listen_fds(3))."""


class Systemd:
    """A notify socket and the fd store behind it."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify.sock")
        self.messages: list[dict[str, str]] = []
        self.store: list[tuple[str, int]] = []
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket._sock.bind(self.address)

    async def until(self, **wanted: str) -> dict[str, str]:
        """Read messages up to the first that says all of `wanted`."""
        with trio.fail_after(PATIENCE):
            while True:
                message = await self._next()
                if wanted.items() <= message.items():
                    return message

    async def status(self) -> str:
        """The next status line."""
        with trio.fail_after(PATIENCE):
            while True:
                if "STATUS" in (message := await self._next()):
                    return message["STATUS"]

    async def _next(self) -> dict[str, str]:
        await trio.lowlevel.wait_readable(self._socket.fileno())
        data, ancillary, _, _ = self._socket._sock.recvmsg(4096, socket.CMSG_SPACE(64 * 4))
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.messages.append(message)
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload)
        if "FDSTORE" in message:
            self.store += [(message["FDNAME"], fd) for fd in fds]
        elif "FDSTOREREMOVE" in message:
            for name, fd in [entry for entry in self.store if entry[0] == message["FDNAME"]]:
                self.store.remove((name, fd))
                os.close(fd)
        return message

    def close(self) -> None:
        self._socket.close()
        for _, fd in self.store:
            os.close(fd)


class NetdProcess:
    """`python -m netd` with this configuration, ready on entry and gone on exit."""

    def __init__(
        self,
        directory: Path,
        toml: str = "",
        *,
        environ: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
        systemd: Systemd | None = None,
        inside: Namespace | None = None,
    ) -> None:
        """`wrap` goes before the command (setpriv ...). `systemd` is shared between the lives of a service."""
        self.config = directory / "netd.toml"
        self.socket = directory / "control.sock"
        self.state = directory / "state"
        self.config.write_text(toml)
        self.systemd = systemd or Systemd(directory)
        self.pid = 0
        self._own_systemd = systemd is None
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NETD_")},
            "NETD_CONTROL__SOCKET": str(self.socket),
            "NETD_CONTROL__GROUP": "",
            "NETD_STATE_DIRECTORY": str(self.state),
            # their default ports are not ours to take: a test that wants a service says where
            **{
                f"NETD_{name.upper()}__ENABLED": "false"
                for name in ("framed", "trace", "broker", "worker")
                if not re.search(rf"^\[*{name}\b", toml, re.MULTILINE)
            },
            "NOTIFY_SOCKET": self.systemd.address,
            **(environ or {}),
        }
        self._wrap = wrap
        self._popen = inside.popen if inside else subprocess.Popen
        self._log = directory / "log"

    async def __aenter__(self) -> Self:
        self.start()
        try:
            await self.systemd.until(READY="1")
        except BaseException:
            await self.__aexit__()
            print(self.log())  # pytest shows it with the failure
            raise
        self.pid = self._process.pid
        return self

    def start(self) -> None:
        """Start the process without waiting for it to be ready."""
        fds = [fd for _, fd in self.systemd.store]
        command = [*self._wrap, sys.executable, "-m", "netd", "--config", str(self.config)]
        if fds:
            names = ":".join(name for name, _ in self.systemd.store)
            command = [sys.executable, "-c", _LAUNCH, ",".join(map(str, fds)), names, *command]
        with self._log.open("ab") as log:
            self._process = self._popen(command, cwd=ROOT, env=self._environ, stdout=log, stderr=log, pass_fds=fds)

    async def __aexit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._own_systemd:
            self.systemd.close()

    def client(self) -> ControlClient:
        return ControlClient(self.socket)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def exited(self) -> int:
        """The exit code, once it has ended."""
        with trio.fail_after(PATIENCE):
            return await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    def log(self) -> str:
        return self._log.read_text()
