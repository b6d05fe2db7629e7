"""Carriers over plain sockets: what a session looks like to the tracer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from netd.net.paths.looped import read_queue

if TYPE_CHECKING:
    import socket


class PlainCarrier:
    """Sends a WebSocket ping of 127 bytes, as the trace service does, over a bare socket."""

    def __init__(self, sock: socket.socket, syn: bytes = b"") -> None:
        self.socket = sock
        self.saved_syn = syn
        self.carried = 0

    def read_errors(self) -> bytes | None:
        return read_queue(self.socket)

    async def carry(self) -> bool:
        self.socket.send(b"\x89\x7d" + os.urandom(125))
        self.carried += 1
        return True


class MuteCarrier(PlainCarrier):
    """A session without a harmless message."""

    async def carry(self) -> bool:
        return False
