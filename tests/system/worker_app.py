"""An application for the system tests: it says what it is, and what it gets when it reaches for what is not its own."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from netd.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

worker = Worker()
STATUS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


@worker.http_request
def request(request):
    return {"/who": who, "/reach": reach, "/slow": slow}[request.path]()


@worker.message
def message(session, data, token):
    if data == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    worker.send(session, f"{os.getpid()}: {data}")


def who() -> dict[str, Any]:
    with open("/proc/self/status") as file:
        status = {key: value.strip() for key, value in (line.split(":", 1) for line in file) if key in STATUS}
    return {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "status": status}


def reach() -> dict[str, str]:
    """What comes of each attempt: "allowed", or the name of an error."""
    state = os.environ.get("STATE_DIRECTORY", "/nonexistent")
    return {
        "the control socket": outcome(lambda: connect("/run/netd/control.sock")),
        "the workers' socket": outcome(lambda: connect("/run/netd/worker.sock")),
        "a setting through the control socket": outcome(change_something),
        "the daemon's state": outcome(lambda: os.listdir("/var/lib/netd")),
        "a file in the daemon's state": outcome(lambda: write("/var/lib/netd/attempt")),
        "the daemon's credentials": outcome(lambda: read_all("/run/credentials/netd.service")),
        "the daemon's secrets": outcome(lambda: os.listdir("/etc/netd/credentials")),
        "the variables of other workers": outcome(lambda: os.listdir("/etc/netd/workers")),
        "a home": outcome(lambda: os.listdir("/root")),
        "write to /etc": outcome(lambda: write("/etc/attempt")),
        "write to /run/netd": outcome(lambda: write("/run/netd/attempt")),
        "write beside the code": outcome(lambda: write(f"{os.path.dirname(__file__)}/attempt")),
        "write to /tmp": outcome(lambda: write("/tmp/attempt")),
        "write to its state": outcome(lambda: write(f"{state}/attempt")),
        "a raw socket": outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
        "a packet socket": outcome(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
        "a TCP socket": outcome(lambda: socket.socket().close()),
        "become root": outcome(lambda: os.setuid(0)),
        "signal the daemon": outcome(lambda: os.kill(int(os.environ.get("LAB_DAEMON", "0")) or 1, 0)),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "allowed"


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def change_something() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("/run/netd/control.sock")
        sock.sendall(b"POST /v1/services/trace/stop HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\r\n")
        if (answer := sock.recv(4096).split()[1]) != b"200" and answer != b"202":
            raise OSError(f"HTTP {answer.decode()}")


def write(path: str) -> None:
    with open(path, "w"):
        pass
    os.unlink(path)


def read_all(directory: str) -> None:
    for name in os.listdir(directory):
        with open(f"{directory}/{name}") as file:
            file.read()


def slow() -> str:
    import time

    time.sleep(60)
    return "too late"
