"""What the tracer needs of a trace client: WebSocket pings, and how long their pongs take.

Rules: a ping is written by a task of the session, never by the tracer's, so that giving up a trace tears no frame; its
payload is unique among the pings under way, and plain text for whoever reads a packet dump.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed

from netd.net.paths.looped import read_queue

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from trio_websocket import WebSocketConnection

    from netd.services.trace.stream import ClientStream

_PAYLOAD = 125
"""The most a ping may carry (RFC 6455 section 5.5): 127 bytes on the wire, a byte for each probe."""


class Ping:
    """One ping of the protocol: written, then answered. Both events are set at the latest when the connection ends."""

    def __init__(self, stream: ClientStream, text: bytes) -> None:
        self._stream = stream
        self._payload = text.ljust(_PAYLOAD, b".")
        self._written_at = 0.0
        self.written = trio.Event()
        self.answered = trio.Event()
        self.rtt_ms: float | None = None
        """Milliseconds from written to answered; None if it never was."""

    @property
    def sent(self) -> bool:
        """The kernel has it."""
        return self._written_at > 0

    async def run(self, ws: WebSocketConnection) -> None:
        self._stream.expect(self._payload, self._on_written)
        try:
            await ws.ping(self._payload)
            self.rtt_ms = (trio.current_time() - self._written_at) * 1000
        except ConnectionClosed:
            pass  # the session's reader ends the stay; whoever waits for this ping finds it unanswered
        finally:
            self._stream.forget(self._payload)
            self.written.set()
        if self.rtt_ms is not None:
            self.answered.set()

    def _on_written(self) -> None:
        self._written_at = trio.current_time()
        self.written.set()


class PingCarrier:
    """netd.net.paths.path.Carrier by WebSocket pings: through TLS, and in order with everything else that is sent."""

    def __init__(self, start_ping: Callable[[], Ping], sock: socket.socket, saved_syn: bytes) -> None:
        self._start_ping = start_ping
        self._socket = sock
        self._saved_syn = saved_syn
        self._ping: Ping | None = None

    @property
    def socket(self) -> socket.socket:
        return self._socket

    @property
    def saved_syn(self) -> bytes:
        return self._saved_syn

    async def carry(self) -> bool:
        self._ping = self._start_ping()
        await self._ping.written.wait()
        return self._ping.sent

    def read_errors(self) -> bytes | None:
        return read_queue(self._socket)

    async def pong(self) -> float | None:
        """Milliseconds to the pong of the last ping carried, or of one sent now if there was none; waits for it."""
        if self._ping is None:
            self._ping = self._start_ping()
        await self._ping.answered.wait()
        return self._ping.rtt_ms
