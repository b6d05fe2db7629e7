"""What the tracer needs of a session that lives in the reactor (netd.net.paths.path.Carrier).

    carry:  nudge() puts a harmless message into the session's outbox -> the reactor's next flush -> the kernel has it
            no nudge: the session's next genuine write that is long enough

Rules:
- nothing is written but through the outbox and the session's own TLS, so no frame is ever torn;
- looped packets are taken off the error queue by the reactor (it would spin otherwise) and read from the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netd.wire.probes import SPAN

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from netd.net.stream import Stream

_PATIENCE = 5.0
"""Seconds for a write to come by."""


class StreamCarrier:
    """A `Carrier` for one stream; as many as there are traces, one after another."""

    def __init__(self, stream: Stream, saved_syn: bytes, nudge: Callable[[], bool] | None = None) -> None:
        """`nudge` queues a harmless message of at least 96 bytes, or returns False where the session has none.

        Without one, or when it has none, what the session itself says next serves if it comes within 5 s.
        """
        self._stream = stream
        self._saved_syn = saved_syn
        self._nudge = nudge

    @property
    def socket(self) -> socket.socket:
        return self._stream.socket

    @property
    def saved_syn(self) -> bytes:
        return self._saved_syn

    async def carry(self) -> bool:
        with self._stream.written(SPAN) as written:
            if self._nudge is not None:
                self._nudge()
            with trio.move_on_after(_PATIENCE):
                return await written.wait()
        return False

    def read_errors(self) -> bytes | None:
        return self._stream.read_errors()
