"""What becomes of a connection's bytes: the base of every transport's modes. Pure; shared by many connections.

Rule: a mode holds nothing of a connection. What is of one (its decoder, its channel) stands in the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.errors import ProtocolError
from netd.wire import messages, rows
from netd.wire.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.hub.hub import Hub
    from netd.hub.session import Encoder
    from netd.wire.messages import Format, Request


class Mode:
    """The base: of what arrives nothing is known, and nothing is said."""

    __slots__ = ()

    name = ""
    transport = ""
    """What `Session.transport` says."""
    encoder: Encoder
    """Of its sessions."""
    settled = True
    """False while it is not known yet what the client speaks."""
    speaks = True
    """Its clients may say something; those of other modes are never idle."""
    pings = False
    """It has a harmless message, which keeps a connection alive and by which it can be traced."""

    def decoder(self, limits: Any) -> Any:
        """What splits a connection's bytes; it has `buffered`, the bytes that it holds. `limits` is the door's."""
        raise NotImplementedError

    def opened(self, connection: Any) -> None:
        """The session is open. Raises ProtocolError to refuse it."""

    def received(self, connection: Any, data: bytes) -> None:
        """Bytes came. Raises ProtocolError to end the connection."""
        raise NotImplementedError

    def pressure(self, connection: Any, over: bool) -> None:
        """More than half of what may wait for the client does, or less than an eighth again."""

    def lost(self, connection: Any, channel: bytes | None, why: str) -> None:
        """The session may not hear a channel any more (None: its token counts no more), and was told so if there is a
        word for it here. Where there is none, what it is there for may be over."""

    def ping(self, ts: int, *, padded: bool = False) -> bytes | None:
        """A harmless message as it goes on the wire, of at least 96 bytes if `padded`; None: the mode has none.

        `ts` is milliseconds since the epoch.
        """
        return None

    def farewell(self, code: int, reason: str, retry_after: float | None) -> bytes | None:
        """The last message as it goes on the wire; None: the mode has none."""
        return None


def serve_requests(connection: Any, hub: Hub, payloads: list[bytes], format: Format, *, last: bool = False) -> None:
    """Have the hub answer requests of the message vocabulary. What cannot be read is an answer too; once the connection
    ends, what else came with it is not served. `last`: nothing came after these in this read."""
    session = connection.session
    left = len(payloads)
    each: Iterable[tuple[Row | Request | ProtocolError, bytes]]
    each = [(rows.read_one(payloads[0], format), payloads[0])] if left == 1 else rows.read(payloads, format)
    for found, payload in each:
        if isinstance(found, Row):
            left -= len(found)
            hub.publish_row(session, found, last=last and not left)
        elif isinstance(found, ProtocolError):
            left -= 1
            hub.refuse(session, found, messages.ref_of(payload, format), size=len(payload))
        else:
            left -= 1
            hub.handle(session, found, len(payload))
        if connection.closing:
            return
