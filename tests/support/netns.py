"""Network namespaces without names: made by a thread, held by a file descriptor, gone when it is closed.

Needs CAP_SYS_ADMIN over the namespaces, which root has and so has whoever runs under `unshare -Urn`. Nothing is written
below /run/netns and no iproute2 is needed, so two labs of two test runs cannot meet.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """Why this process cannot make network namespaces, as a sentence for a skipped test; None if it can."""
    try:
        Namespace("probe").close()
    except OSError as error:
        return f"needs network namespaces (root, or unshare -Urn): {error}"
    return None


def why_no_rules() -> str | None:
    """Why no router can be made silent, a NAT or a firewall here, as a sentence for a skipped test; None if one can."""
    missing = "needs nft (apt: nftables), for a router that is silent, a NAT or a firewall"
    return None if shutil.which("nft") else missing


class Namespace:
    """One network namespace. Whatever is called in it runs in a thread of its own, so that the caller stays outside."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen] = []

        def make() -> int:
            _check(_libc.unshare(_CLONE_NEWNET), f"cannot make the network namespace {name}")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        self.fd = _in_thread(make)

    def call(self, function, *args, **kwargs):
        """function(*args, **kwargs) inside the namespace; what it opens stays there."""

        def inside():
            _check(_libc.setns(self.fd, _CLONE_NEWNET), f"cannot enter the network namespace {self.name}")
            return function(*args, **kwargs)

        return _in_thread(inside)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        return self.call(socket.socket, family, kind, protocol)

    def popen(self, arguments, **options) -> subprocess.Popen:
        """Start a process inside; it is killed, if it still runs, when the namespace is closed."""
        process = self.call(subprocess.Popen, arguments, **options)
        self._processes.append(process)
        return process

    def run(self, arguments, **options) -> subprocess.CompletedProcess:
        """Run a process inside to its end; CalledProcessError if it fails."""
        options = {"check": True, "capture_output": True, "text": True, **options}
        try:
            return self.call(subprocess.run, arguments, **options)
        except subprocess.CalledProcessError as error:
            error.add_note(str(error.stderr))
            raise

    def sysctl(self, settings: dict[str, object], *, optional: bool = False) -> None:
        """Set /proc/sys values by their dotted names; with `optional`, those this kernel lacks are passed over."""

        def write() -> None:
            for name, value in settings.items():
                path = Path("/proc/sys", *name.split("."))
                if optional and not path.exists():
                    continue
                path.write_text(str(value))

        self.call(write)

    def counters(self) -> dict[str, int]:
        """/proc/net/snmp and /proc/net/netstat of the namespace: "Tcp.RetransSegs", "TcpExt.TCPDSACKRecv", ..."""

        def read() -> dict[str, int]:
            found: dict[str, int] = {}
            for file in ("snmp", "netstat"):
                lines = Path("/proc/thread-self/net", file).read_text().splitlines()
                for names, values in zip(lines[::2], lines[1::2], strict=True):
                    room, *keys = names.split()
                    found |= dict(
                        zip((room[:-1] + "." + key for key in keys), map(int, values.split()[1:]), strict=True)
                    )
            return found

        return self.call(read)

    def close(self) -> None:
        """End what was started inside and let go of it. May be called twice."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._processes.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _in_thread(function):
    result, problem = [], []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001  # carried over to the caller's thread
            problem.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return result[0]


def _check(status: int, message: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{message}: {os.strerror(number)}")
