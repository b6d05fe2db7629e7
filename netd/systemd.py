"""What netd says to systemd and what it is handed by it: notify, watchdog, sockets by name, the fd store.

    Notifier      READY=1, STATUS=, RELOADING=1, STOPPING=1, ... and the fd store; does nothing without NOTIFY_SOCKET
    listen_fds    the sockets of netd.socket and of the fd store, by name (sd_listen_fds_with_names(3))
    watchdog      WATCHDOG=1, but only while the event loop is seen to work

Rules:
- the environment is read once and what was read is removed from it: no child of ours may think it is meant;
- talking to systemd never stops the daemon: a message that cannot be sent is logged. Only messages that must arrive
  wait for room in the queue, and at most a second;
- sdnotify carries the strings; file descriptors travel as SCM_RIGHTS next to them, which sdnotify cannot do.

Sources: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd's "File Descriptor Store".
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Self

import structlog
import trio
from sdnotify import SystemdNotifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

_LISTEN_FDS_START = 3
_SEND_TIMEOUT = 1.0
_STATUS_LENGTH = 512

STORE_MAX = 512
"""FileDescriptorStoreMax= of netd.service: systemd tells a service of it only since version 254 ($FDSTORE)."""

log = structlog.get_logger("netd.systemd")


# --- telling -------------------------------------------------------------------------------------------------------


class _Strings(SystemdNotifier):  # type: ignore[misc]  # sdnotify has no types
    """sdnotify on a socket of ours: its own constructor wants the environment, and leaks the socket when it fails."""

    def __init__(self, address: str) -> None:
        self.debug = True  # errors are raised, not swallowed
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError:
            self.socket.close()
            raise


class Notifier:
    """The notify socket of the service manager; inert when there is none."""

    def __init__(self, address: str | None, *, store_max: int = STORE_MAX) -> None:
        """`address` as in NOTIFY_SOCKET: an absolute path, or "@" and an abstract name."""
        self.store_max = store_max
        """How many descriptors systemd keeps for us."""
        self._sd: _Strings | None = None
        if address:
            try:
                self._sd = _Strings(address)
            except OSError as error:
                log.warning("cannot reach the notify socket", address=address, error=str(error))

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        store_max = environ.pop("FDSTORE", "")
        return cls(environ.pop("NOTIFY_SOCKET", None), store_max=int(store_max) if store_max.isdecimal() else STORE_MAX)

    @property
    def active(self) -> bool:
        return self._sd is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is finished."""
        self._send("READY=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}", wait=False)

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it. The time is CLOCK_MONOTONIC, as Type=notify-reload wants it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        self._send("STOPPING=1", *([f"STATUS={_one_line(status)}"] if status else []))

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much more time for the start, reload or stop that is under way."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1", wait=False)

    def store(self, name: str, sock: socket.socket) -> None:
        """Leave a copy of `sock` with systemd, which hands it to the next process of this service under `name`.

        `name`: at most 255 ASCII characters, no control characters and no colon. Systemd gives no answer: what is
        beyond FileDescriptorStoreMax= (`store_max`) is dropped, and so is a socket that it has under another name.
        """
        _check_name(name)
        self._send("FDSTORE=1", f"FDNAME={name}", fds=[sock.fileno()])

    def unstore(self, name: str) -> None:
        """Have systemd close every descriptor that it keeps under `name`."""
        _check_name(name)
        self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def close(self) -> None:
        """Let go of the notify socket; whatever is said afterwards is not sent."""
        if self._sd is not None:
            self._sd.socket.close()
            self._sd = None

    def _send(self, *lines: str, fds: Sequence[int] = (), wait: bool = True) -> bool:
        """False when it could not be sent. With `wait` a full queue (of net.unix.max_dgram_qlen) is waited for."""
        if self._sd is None:
            return False
        self._sd.socket.settimeout(_SEND_TIMEOUT if wait else 0.0)
        text = "\n".join(lines)
        try:
            if fds:
                socket.send_fds(self._sd.socket, [text.encode()], fds)
            else:
                # sdnotify encodes as Latin-1; systemd wants UTF-8, whose bytes survive the trip through Latin-1
                self._sd.notify(text.encode().decode("latin-1"))
        except OSError as error:
            log.warning("cannot tell systemd", text=lines[0], error=str(error))
            return False
        return True


def _one_line(text: str) -> str:
    """`text` as one assignment's value: a line break in it would be read as the next assignment."""
    return " ".join(text.split())[:_STATUS_LENGTH]


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 255 or ":" in name or not name.isascii() or not name.isprintable():
        raise ValueError(f"cannot store a descriptor as {name!r}: 1 to 255 printable ASCII characters without a colon")


# --- being handed sockets ------------------------------------------------------------------------------------------


def listen_fds(
    environ: MutableMapping[str, str] = os.environ, *, first: int = _LISTEN_FDS_START
) -> dict[str, list[socket.socket]]:
    """The sockets that were passed to this process, by name; names repeat where several sockets share one.

    They are made close-on-exec and non-blocking. A descriptor that is no socket is closed with a warning. Empty when
    the variables are absent, are meant for another process, or make no sense (which is logged).
    """
    count_text = environ.pop("LISTEN_FDS", None)
    pid = environ.pop("LISTEN_PID", None)
    names_text = environ.pop("LISTEN_FDNAMES", "")
    environ.pop("LISTEN_PIDFDID", None)
    if count_text is None or pid != str(os.getpid()):
        return {}
    if not count_text.isdecimal() or not 0 <= int(count_text) <= 4096:
        log.warning("cannot use the sockets that were passed", listen_fds=count_text)
        return {}
    names = names_text.split(":") if names_text else []
    passed: dict[str, list[socket.socket]] = {}
    for index in range(int(count_text)):
        fd = first + index
        name = names[index] if index < len(names) else "unknown"
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            log.warning("cannot use a descriptor that was passed", fd=fd, name=name, error=str(error))
            _close_quietly(fd)
            continue
        sock.set_inheritable(False)
        sock.setblocking(False)
        passed.setdefault(name, []).append(sock)
    return passed


def _close_quietly(fd: int) -> None:
    try:
        os.close(fd)
    except OSError as error:
        log.debug("descriptor was not open", fd=fd, error=str(error))


# --- the watchdog --------------------------------------------------------------------------------------------------


def watchdog_interval(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Seconds within which systemd wants to hear of us (WatchdogSec=); None when it does not."""
    usec, pid = environ.pop("WATCHDOG_USEC", None), environ.pop("WATCHDOG_PID", None)
    if usec is None or (pid is not None and pid != str(os.getpid())):
        return None
    if not usec.isdecimal() or int(usec) == 0:
        log.warning("cannot use the watchdog interval", watchdog_usec=usec)
        return None
    return int(usec) / 1_000_000


async def watchdog(
    notifier: Notifier,
    interval: float,
    pulse: Callable[[], Awaitable[object]],
    *,
    clock: Callable[[], float] = time.monotonic,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Feed systemd's watchdog for as long as the event loop is healthy; runs until cancelled.

    Four beats an `interval` (seconds, from `watchdog_interval`). A beat is good when, within a quarter of the interval
    and counted from when it was due, a byte went through the kernel and came back as a wake-up of the loop's poll and
    `pulse` returned (every unit's task answered). A late or missing beat is not fed: a loop that is blocked, or so busy
    that it answers nobody in time, starves the watchdog, which is its purpose. `clock` is real time, not trio's.
    """
    bound = interval / 4
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        task_status.started()
        due = clock()
        healthy = True
        while True:
            answered = False
            with trio.move_on_after(bound):
                theirs.send(b"\0")
                await trio.lowlevel.wait_readable(ours.fileno())  # through epoll; a recv would find the data without it
                ours.recv(64)
                await pulse()
                answered = True
            late = clock() - due
            if answered and late <= bound:
                notifier.watchdog()
            if healthy != (answered and late <= bound):
                healthy = not healthy
                if healthy:
                    log.info("event loop is in time again, watchdog fed")
                else:
                    log.error("watchdog not fed", answered=answered, late_s=round(late, 3), bound_s=bound)
            due = max(due + bound, clock() + bound / 4)  # beats that were missed are not made up for
            await trio.sleep(due - clock())
