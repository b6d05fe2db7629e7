"""A TCP relay between a client and a daemon that a test can make fail: cut, reset, or hold everything back.

async with Relay(port) as relay:
    client_of(f"ws://127.0.0.1:{relay.port}")
    relay.hold()        # nothing gets through any more, and nobody is told: a half-open connection
    relay.silent = True # and neither does what later connections say
    relay.reset()       # every connection is reset; new ones get through
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Self

import trio


class Relay:
    """Listens on `port`, and connects to `target` on this machine."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.taken = 0
        """Connections so far."""
        self.silent = False
        self._held: set[trio.SocketStream] = set()
        self._streams: set[trio.SocketStream] = set()

    async def __aenter__(self) -> Self:
        self._listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = self._listeners[0].socket.getsockname()[1]
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        self._nursery.start_soon(trio.serve_listeners, self._carry, self._listeners)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._nurseries.__aexit__(None, None, None)

    def hold(self) -> None:
        """What the connections that are here now say is swallowed; they stay open."""
        self._held |= self._streams

    def reset(self) -> None:
        """Reset the connections that are here now."""
        for stream in list(self._streams):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            stream.socket.close()

    async def _carry(self, here: trio.SocketStream) -> None:
        self.taken += 1
        try:
            there = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await trio.aclose_forcefully(here)
            return
        self._streams |= {here, there}
        if self.silent:
            self._held |= {here, there}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, here, there)
                nursery.start_soon(self._copy, there, here)
        finally:
            self._streams -= {here, there}
            self._held -= {here, there}
            here.socket.close()
            there.socket.close()

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                if source not in self._held:
                    await sink.send_all(data)
            if source not in self._held:
                await sink.send_eof()
