"""What went wrong between client and daemon, in one clear sentence that says what to do.

Rules:
- the operating system's word (ENOENT, ECONNREFUSED, EACCES) decides the sentence, never a library's message text;
- every sentence names the socket and the next thing to try.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import httpx

from netd.errors import DaemonUnreachable

if TYPE_CHECKING:
    from pathlib import Path

_START = "start it (systemctl start netd, or netd --config FILE)"
_NAME = "name another socket with --socket or NETD_CONTROL__SOCKET"


def unreachable(error: BaseException, socket: Path, *, timeout: float) -> DaemonUnreachable:
    """The sentence for a connection that could not be made, or that broke before the answer was complete.

    `error` is whatever the HTTP library raised; the OSError at its root decides.
    """
    cause = _os_error(error)
    if cause is not None:
        return DaemonUnreachable(_connect_failed(cause, socket))
    if isinstance(error, httpx.TimeoutException):
        return DaemonUnreachable(
            f"cannot get an answer from the daemon at {socket} within {timeout:g} s: it may be overloaded or stopped; "
            "look at journalctl -u netd"
        )
    why = str(error).strip() or type(error).__name__
    return DaemonUnreachable(
        f"cannot get a whole answer from {socket}: the connection ended ({why}); "
        "the daemon may be stopping, or another program listens there: look at journalctl -u netd"
    )


def _connect_failed(error: OSError, socket: Path) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"cannot reach the daemon: there is no socket {socket}; {_START}, or {_NAME}"
        case errno.ECONNREFUSED if not _is_socket(socket):
            return f"cannot reach the daemon: {socket} is not a socket; {_NAME}"
        case errno.ECONNREFUSED:
            return (
                f"cannot reach the daemon: nobody listens at {socket} any more; {_START}, "
                "or look at journalctl -u netd for why it ended"
            )
        case errno.EACCES | errno.EPERM:
            group = _group(socket)
            join = f"join group {group} (usermod -aG {group} {_user()}, then log in again), or " if group else ""
            return f"cannot use {socket}: permission denied for user {_user()}; {join}use sudo"
        case errno.EAGAIN:
            return f"cannot reach the daemon: too many clients wait at {socket}; try again in a moment"
        case None:  # Python's own check, before the kernel is asked: sun_path holds 107 bytes and a NUL
            return f"cannot use {socket}: {error}; a socket's path has at most 107 bytes: {_NAME}"
        case _:
            return f"cannot reach the daemon at {socket}: {os.strerror(error.errno)}; {_START}, or {_NAME}"


def _os_error(error: BaseException) -> OSError | None:
    """The OSError from connecting in the chain behind `error`; a broken read has one too, which says nothing."""
    if not isinstance(error, httpx.ConnectError):
        return None
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__
    return None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return True  # it is gone, or hidden from us: whatever refused the connection was there a moment ago


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without an entry
        return str(os.geteuid())


def _group(socket: Path) -> str | None:
    """The group that may use the socket: its own, netd's default one where the socket cannot be seen, None for none."""
    import grp

    try:
        found = socket.stat()
        if not found.st_mode & stat.S_IWGRP or found.st_gid == 0:
            return None  # nobody should be sent into the group root
        return grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        return None
    except OSError:
        return "netd"
