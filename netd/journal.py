"""journald's native protocol: one log entry is one datagram of fields.

Rules:
- sending never waits: the socket does not block, and an entry that finds no room is refused (`False`);
- a value with a newline, or any other byte, arrives as it is: the binary form gives its length instead of escaping it;
- an entry too large for a datagram travels as a sealed memory file, as in sd_journal_send(3).

Reference: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = Path("/run/systemd/journal/socket")

_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]")
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_SEND_BUFFER = 8 << 20  # what libsystemd asks for; the kernel gives net.core.wmem_max at most


def is_stream(fd: int, journal_stream: str | None) -> bool:
    """Whether `fd` is the stream to the journal that $JOURNAL_STREAM ("device:inode") tells of (systemd.exec(5))."""
    try:
        device, inode = map(int, (journal_stream or "").split(":"))
        status = os.fstat(fd)
    except (OSError, ValueError):
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def field_name(key: str) -> str:
    """A name journald accepts: upper case, digits and underscores, at most 64, no underscore or digit in front."""
    return _NOT_IN_NAMES.sub("_", key.upper()).lstrip("_0123456789")[:64] or "FIELD"


def encode(fields: Mapping[str, str]) -> bytes:
    """Fields as a datagram; names as `field_name` gives them."""
    parts = []
    for name, value in fields.items():
        content = value.encode("utf-8", "backslashreplace")
        if b"\n" in content:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(content)), content))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), content))
    return b"".join(parts)


class Journal:
    """A way to journald. Needs no connection: journald may restart meanwhile."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Hand one entry over. False: journald has no room at the moment. OSError: there is no journald."""
        entry = encode(fields)
        try:
            self._socket.sendto(entry, self._path)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            if error.errno != errno.EMSGSIZE:
                raise
            return self._send_as_file(entry)
        return True

    def _send_as_file(self, entry: bytes) -> bool:
        file = os.memfd_create("netd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(entry)
            while view:
                view = view[os.write(file, view) :]
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
            self._socket.sendmsg([], [rights], 0, self._path)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        self._socket.close()
