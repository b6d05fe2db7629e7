"""The stream between a client's socket (or TLS) and the WebSocket library: what the library lacks.

    socket --[TLS]-- ClientStream -- WebSocketConnection -- Session

Rules:
- a write that waits longer than `write_timeout` ends the connection: a client that never reads costs only itself;
- input is paced: a client that sends faster than `input_rate` is read more slowly, so that it cannot take the event
  loop from the others (each tiny frame costs the library some 30 us);
- `expect` tells when given bytes went to the kernel: the library's own ping waits for the pong instead;
- `ended` says that nothing more will be read, which the library does not tell while a handshake is unfinished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netd.services.trace.limits import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.services.trace.config import TraceConfig

GOODBYE = 1.0
"""Seconds for TLS to say close_notify."""


class ClientStream(trio.abc.Stream):
    """`config` is asked anew each time, so that live changes hold for connections that are there already."""

    def __init__(self, inner: trio.abc.Stream, config: Callable[[], TraceConfig]) -> None:
        self._inner = inner
        self._config = config
        self._pace = Pace(config().input_rate, trio.current_time())
        self._expected: dict[bytes, Callable[[], None]] = {}
        self.ended = trio.Event()
        self.stalled = False
        """It was ended because the client did not read."""
        self.inspect: Callable[[], None] = lambda: None
        """Called after every read; may raise BrokenResourceError to refuse what arrived."""

    def expect(self, data: bytes, written: Callable[[], None]) -> None:
        """Call `written` once a write with `data` in it was accepted by the kernel."""
        self._expected[data] = written

    def forget(self, data: bytes) -> None:
        """No longer expect it."""
        self._expected.pop(data, None)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(self._config().write_timeout) as patience:
            await self._inner.send_all(data)
        if patience.cancelled_caught:
            self.stalled = True
            self.ended.set()
            await trio.aclose_forcefully(self._inner)
            raise trio.BrokenResourceError("cannot write: the client does not read")
        for expected in [expected for expected in self._expected if expected in bytes(data)]:
            self._expected.pop(expected)()

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._inner.receive_some(max_bytes)
            self.inspect()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        delay = self._pace.delay(len(data), self._config().input_rate, trio.current_time())
        if delay:
            await trio.sleep(delay)
        return data

    async def aclose(self) -> None:
        self.ended.set()
        # cancelled or late, a TLS stream closes its transport and leaves close_notify out (RFC 8446 section 6.1)
        with trio.move_on_after(GOODBYE):
            await self._inner.aclose()
