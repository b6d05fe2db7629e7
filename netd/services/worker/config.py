"""The [worker] section: where application workers connect, which the daemon starts itself, and what none may exceed.

Pure. What is a worker's own (how many handlers it runs at once) it says itself, within these bounds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, StringConstraints, model_validator

from netd.section import Section, fixed, live, replace

_ACCOUNT = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")


def _account(name: str) -> str:
    if not _ACCOUNT.match(name):
        raise ValueError(f"cannot use {name!r} as an account: write a login name or a numeric id")
    return name


def _absolute(path: Path | None) -> Path | None:
    if path is None:
        return None
    if not path.is_absolute():
        raise ValueError(f"cannot use {str(path)!r} as the workers' socket: the path must be absolute")
    if len(str(path).encode()) > 90:
        # sun_path holds 107 bytes, and the socket is bound under a longer temporary name first (unix(7))
        raise ValueError(f"cannot use {str(path)!r} as the workers' socket: the path is longer than 90 bytes")
    return path


def _command(words: list[str]) -> list[str]:
    if words and not words[0]:
        raise ValueError('cannot start it: write the program and its arguments, ["/usr/bin/python3", "-m", "chat"]')
    if any("\0" in word for word in words):
        raise ValueError("cannot start it: an argument has a NUL byte")
    return words


def _environment(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not _VARIABLE.match(name):
            raise ValueError(f"cannot set the variable {name!r}: write letters, digits and underscores")
        if "\0" in value:
            raise ValueError(f"cannot set the variable {name!r}: its value has a NUL byte")
    return variables


Account = Annotated[str, AfterValidator(_account)]
SocketPath = Annotated[Path | None, AfterValidator(_absolute)]
Word = Annotated[str, StringConstraints(max_length=4096)]


class WorkerConfig(Section):
    """The `[worker]` section: application workers, the user's own code in processes of its own. Times are in seconds,
    sizes in bytes."""

    enabled: bool = live(True)
    """Run the service. Without it, or with no worker connected, text and binary messages are echoed and HTTP requests
    are answered with 503."""
    socket: SocketPath = replace(None)
    """The Unix socket to which workers connect. None: worker.sock beside the control socket, /run/netd/worker.sock as a
    rule (NAME.worker.sock where that is called NAME.sock); where there is no control socket, none."""
    group: Account | None = fixed("netd-worker")
    """Group of the socket file: its members may connect. None: the daemon's own group."""
    mode: int = fixed(0o660, ge=0, le=0o777)
    """Permissions of the socket file."""
    users: list[Account] = live([], max_length=64)
    """Accounts that may be workers, besides root, the daemon's own and `user`. Empty: whoever may open the socket."""

    # workers that the daemon starts
    command: Annotated[list[Word], AfterValidator(_command)] = replace([], max_length=256)
    """A worker that the daemon starts itself, and again when it ends: the program and its arguments. No shell reads it.
    It has no capabilities, an empty stdin, and what it writes goes to the daemon's log. However the daemon ends, so
    does it, with what it has started."""
    count: int = replace(1, ge=1, le=64)
    """How many of them."""
    user: Account | None = replace(None)
    """The account that they run as, where the daemon is root and could change it (and then there has to be one). None:
    the daemon's own. As a service, the daemon then gives that account no access to the control socket, unless
    control.users or control.content_users names it, and keeps its workers from its state, its credentials and /run/netd
    (they may connect there), where the kernel has Landlock (Debian's has). What a drop-in adds by StateDirectory= or
    RuntimeDirectory= counts as the daemon's too: CacheDirectory= is for what a program keeps. What is put beside those
    directories later they see once they are started again. Code that is not to be trusted runs better as
    netd-worker@.service. By hand, its workers may do what you may."""
    directory: Path = replace(Path("/"))
    """Their working directory."""
    environment: Annotated[dict[str, str], AfterValidator(_environment)] = replace(default_factory=dict, max_length=64)
    """Their variables, besides PATH, HOME, LANG, TZ and NETD_WORKER_SOCKET."""

    # how long what may take
    wait: float = live(5.0, ge=0, le=300)
    """For so long after the last worker has gone, and after the start where there is a `command`, messages and requests
    wait for the next one, before they are echoed and refused. After the start, sessions wait for all `count` of them,
    to be shared out, and no longer than this."""
    request_timeout: float = live(30.0, gt=0, le=3600)
    """For one HTTP request, waiting included; then the client gets 504, and its handler is cancelled."""
    message_timeout: float = live(60.0, gt=0, le=86_400)
    """For one handler of a session; then it is cancelled."""
    hang: float = live(10.0, gt=0, le=300)
    """A worker that does not answer a ping, does not read, or does not end what was cancelled within this time is hung:
    it is disconnected, and killed if it is the daemon's own. For a request whose client has gone, this time begins when
    its request_timeout is over."""
    ping: float = live(5.0, gt=0, le=300)
    """Between two pings."""
    hello_timeout: float = live(10.0, gt=0, le=120)
    """For a worker to say who it is. A program of `command` that takes longer from its start on is a health warning."""
    drain: float = live(10.0, ge=0, le=300)
    """For a worker that is to go: what it has in hand may take so long to end."""

    # what may wait
    max_workers: int = live(64, ge=1, le=4096)
    """Workers connected at once; one more is refused."""
    max_frame: int = replace(16 * 1024 * 1024, ge=64 * 1024, le=256 * 1024 * 1024)
    """The longest message to or from a worker. A worker that sends a longer one is disconnected, a request that is
    longer is answered with 413."""
    buffer: int = live(4 * 1024 * 1024, ge=64 * 1024, le=256 * 1024 * 1024)
    """While so much waits for a worker to read, it is handed nothing more, and nothing more is read from it."""
    window: int = live(16, ge=1, le=1024)
    """Events of one session that a worker has in hand at once: those are lost if it goes. More than before counts for
    workers that connect from then on."""
    session_queue: int = live(256, ge=1, le=100_000)
    """Messages of one session that wait for its worker; past it nothing more is read from the client."""
    session_bytes: int = live(1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """The same in bytes."""
    max_bytes: int = live(256 * 1024 * 1024, ge=1024 * 1024, le=64 * 1024**3)
    """Bytes that wait for all sessions; past it nothing more is read from a client of whom something waits."""
    max_waiting: int = live(256, ge=0, le=100_000)
    """HTTP requests that wait because every worker is busy; one more is answered with 503."""
    max_ended: int = live(10_000, ge=1, le=1_000_000)
    """Sessions that are over and of which a worker has yet to hear; past it the oldest are forgotten."""
    log_rate: int = live(50, ge=1, le=10_000)
    """Lines a second of the daemon's own workers that go to the log; the rest is counted."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.user is not None and not self.command:
            raise ValueError("cannot run nothing as another account: write a command, or leave user out")
        return self
