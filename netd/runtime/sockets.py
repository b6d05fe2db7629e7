"""Listening sockets as the kernel knows them: made, recognised, named. No trio, no ownership (listeners.py).

Rules:
- everything raises OSError, with a sentence of its own where the kernel's would not do;
- an IPv6 socket takes IPv6 only (IPV6_V6ONLY);
- a Unix socket appears under its name only when mode and group are right, and takes the place of another only if nobody
  listens behind that one. Two processes that do this at the same moment are not kept apart: the later one has the name.
"""

from __future__ import annotations

import errno
import grp
import os
import secrets
import socket
import stat
from pathlib import Path
from typing import NamedTuple

import structlog

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn."""
_MAX_UNIX_PATH = 107 - len(".12345678")  # sun_path without its NUL, less what the temporary name adds

log = structlog.get_logger("netd.listeners")


class Inode(NamedTuple):
    """Which file a path is."""

    number: int
    device: int


NO_INODE = Inode(0, 0)
"""No file, or none that can be a listener's."""


def listen_inet(host: str, port: int, interface: str | None, *, shared: bool) -> socket.socket:
    """A listening TCP socket; `shared` lends it SO_REUSEPORT while it is bound, next to rivals that have it."""
    # getaddrinfo only parses here (AI_NUMERICHOST); it is what understands "fe80::1%eth0"
    family, kind, _, _, target = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if interface is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_unix(path: Path, mode: int, group: str | None) -> tuple[socket.socket, Inode]:
    """A listening Unix socket at `path`, and its inode."""
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {_MAX_UNIX_PATH} bytes")
    _check_replaceable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(3)}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # nobody may connect before mode and group are right: it listens only afterwards
        sock.bind(os.fspath(temporary))
        try:
            temporary.chmod(mode)
            if group is not None:
                _give_to_group(temporary, group)
            sock.listen(BACKLOG)
            inode = inode_of(temporary)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException:
        sock.close()
        raise
    return sock, inode


def _check_replaceable(path: Path) -> None:
    """Raise OSError unless `path` is free, or a socket behind which nobody listens."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens, and slowly
    raise OSError(errno.EADDRINUSE, "another program listens there already")


def _give_to_group(path: Path, group: str) -> None:
    try:
        wanted = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        if path.stat().st_gid != wanted:  # it has our own by itself, and netd.service refuses chown(2) whoever asks
            os.chown(path, -1, wanted)
    except (KeyError, PermissionError) as error:
        unknown = isinstance(error, KeyError)
        why = "there is no such group" if unknown else "we are not a member of it, or our unit refuses chown(2)"
        log.warning("cannot give the socket to its group, only our own may use it", group=group, why=why)


def listens_at(sock: socket.socket, target: tuple[str, int] | Path, interface: str | None, inode: Inode | None) -> bool:
    """Whether an inherited socket is what `target` asks for.

    `inode` is None for a socket of netd.socket. For one of the fd store its name was right already; a Unix socket must
    then have been put at this path, and the path still be the very file that we made.
    """
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    if isinstance(target, Path):
        if sock.family != socket.AF_UNIX:
            return False
        if inode is None:
            return bool(sock.getsockname() == os.fspath(target))
        return _same_place(path_of(sock), target) and inode_of(target) == inode != NO_INODE
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
    if device != (interface or ""):
        return False
    host, port = target
    wanted = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    actual = sock.getsockname()
    if sock.family != wanted[0] or actual[0] != wanted[4][0] or actual[3:] != wanted[4][3:]:
        return False
    return actual[1] == port or (port == 0 and inode is not None)


def _same_place(path: Path | None, target: Path) -> bool:
    """Whether both are one name in one directory, whatever that is called (/var/run is /run)."""
    if path is None or path.name != target.name:
        return False
    try:
        return path.parent == target.parent or path.parent.samefile(target.parent)
    except OSError:
        return False


def inode_of(path: Path) -> Inode:
    """Of a Unix socket's path; NO_INODE if something else is there."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return NO_INODE  # gone, or out of reach: not the file that we made
    return Inode(found.st_ino, found.st_dev) if stat.S_ISSOCK(found.st_mode) else NO_INODE


def path_of(sock: socket.socket) -> Path | None:
    """Where a Unix socket that `listen_unix` made was put: its own name is the temporary one."""
    if sock.family != socket.AF_UNIX:
        return None
    temporary = Path(os.fsdecode(sock.getsockname()))
    name = temporary.name.removeprefix(".").rpartition(".")[0]
    return temporary.with_name(name) if name else None


def address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def port_of(sock: socket.socket) -> int | None:
    return None if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])
