"""A service manager's side of the notify socket: reads messages, keeps descriptors, hands them back by name."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class FakeSystemd:
    """Listens where NOTIFY_SOCKET points. `stored` is its fd store, by name."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self.messages: list[dict[str, str]] = []
        self.stored: dict[str, list[socket.socket]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def read(self) -> list[dict[str, str]]:
        """The messages since the last call, each as its assignments; acts on FDSTORE and FDSTOREREMOVE."""
        fresh = []
        while True:
            fds = array.array("i")
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(16 * fds.itemsize))
            except BlockingIOError:
                break
            for level, kind, payload in ancillary:
                assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
                fds.frombytes(payload)
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            fresh.append(message)
            name = message.get("FDNAME", "stored")
            if "FDSTORE" in message:
                self.stored.setdefault(name, []).extend(socket.socket(fileno=fd) for fd in fds)
            else:
                for fd in fds:
                    os.close(fd)
            if "FDSTOREREMOVE" in message:
                for sock in self.stored.pop(name, []):
                    sock.close()
        self.messages += fresh
        return fresh

    def hand_over(self) -> dict[str, list[socket.socket]]:
        """Copies of what is stored, as a new process finds them among its LISTEN_FDS."""
        self.read()
        return {name: [sock.dup() for sock in socks] for name, socks in self.stored.items()}

    def close(self) -> None:
        """May be called twice: a service manager can go away."""
        if self._socket.fileno() >= 0:
            self.read()
            self._socket.close()
        for socks in self.stored.values():
            for sock in socks:
                sock.close()
