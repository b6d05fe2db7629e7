"""TLS between a socket and a protocol, as bytes in and bytes out: no socket here (ssl.MemoryBIO).

    TlsLayer     the layer itself             handshake     it begins, over a Trio stream
    TlsStream    a Trio stream over both, for those who speak one: HTTP. Its layer can be taken on by the reactor

    ciphertext --receive--> plaintext          plaintext --encrypt--> . --outgoing--> ciphertext
                    '--- handshake, tickets, key updates, alerts -----^

Rules:
- after every `receive`, `outgoing` has what TLS itself wants said (RFC 8446 4.6, 6); it goes to the socket in order
  with everything else;
- what `receive` returns is no larger than what it was given; nothing is held back but an unfinished record (16 KiB);
- OpenSSL bounds empty records, alerts and (RFC 8446 4.6.3) key updates in a row by itself; their answers collect in
  `outgoing` until they are taken, so whoever uses this has to bound that (`pending`);
- renegotiation (TLS 1.2 only) is refused by OpenSSL 3 with an alert, and the connection goes on.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIECE = 1 << 15
"""Bytes given to OpenSSL at once: its memory buffers keep the size they once had."""
_RECORD = 1 << 14
_PART = 1 << 16
"""Bytes that a TlsStream enciphers before it sends them."""
_OWED = 1 << 16
"""Bytes that may wait behind a send that does not move on, before a TlsStream reads no more."""
_LAST_WORD = 1.0
"""Seconds for an alert to be sent after a failed handshake."""

_REASONS = {
    "HTTP_REQUEST": "the client speaks HTTP without TLS",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "the peer offers no TLS version that is allowed here",
    "NO_SHARED_CIPHER": "the peer offers no cipher that is allowed here",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the client shows no certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asks for a client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "no application protocol in common",
}


def reason_of(error: ssl.SSLError) -> str:
    """What went wrong, in words for a log or a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate cannot be verified: {error.verify_message.lower()}"
    if isinstance(error, ssl.SSLEOFError):
        return "the peer closed the connection without a word"
    reason = error.reason or ""
    return _REASONS.get(reason) or reason.lower().replace("_", " ") or str(error)


class TlsLayer:
    """TLS of one connection."""

    __slots__ = ("_collected", "_incoming", "_object", "_outgoing", "_size", "closed", "handshaken")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = True, server_hostname: str | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._collected: list[bytes] = []
        self._size = 0
        self.handshaken = False
        self.closed = False
        """The peer has said close_notify."""

    def receive(self, data: bytes) -> bytes:
        """Ciphertext in, plaintext that is ready out (b"" if none). `receive(b"")` begins a client's handshake.

        Raises ssl.SSLError for whatever TLS does not allow; an alert that says so may be in `outgoing` then.
        """
        if len(data) <= _PIECE:
            return self._receive(data)
        view = memoryview(data)
        return b"".join([self._receive(view[at : at + _PIECE]) for at in range(0, len(data), _PIECE)])

    def _receive(self, data: bytes | memoryview) -> bytes:
        self._incoming.write(data)
        if self.closed:
            self._incoming.read()  # nothing counts after close_notify (RFC 8446 6.1)
            return b""
        if not self.handshaken:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                return b""
            self.handshaken = True
        parts: list[bytes] = []
        while True:
            try:
                part = self._object.read(_RECORD)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                self.closed = True
                break
            if not part:
                self.closed = True
                break
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, chunks: Sequence[bytes]) -> None:
        """Plaintext out; its ciphertext is in `outgoing` then. Small chunks share records. Raises ssl.SSLError."""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if len(data) <= _PIECE:
            self._object.write(data)
            return
        view = memoryview(data)
        for at in range(0, len(data), _PIECE):
            self._object.write(view[at : at + _PIECE])
            self._collect()

    def _collect(self) -> None:
        ciphertext = self._outgoing.read()
        self._collected.append(ciphertext)
        self._size += len(ciphertext)

    @property
    def pending(self) -> int:
        """Bytes that `outgoing` would return."""
        return self._size + self._outgoing.pending

    def outgoing(self) -> bytes:
        """Ciphertext to write now: handshake, tickets, alerts, data, in order."""
        if not self._size:
            return self._outgoing.read()
        self._collect()
        ciphertext = b"".join(self._collected)
        self._collected = []
        self._size = 0
        return ciphertext

    def goodbye(self) -> None:
        """Say close_notify; it is in `outgoing` then. The peer's own is not waited for (RFC 8446 6.1)."""
        with suppress(ssl.SSLError):  # WANT_READ: the peer's has not come; anything else: there is no saying goodbye
            self._object.unwrap()

    def peer_certificate(self) -> bytes | None:
        """The certificate that the peer showed and that was verified, in DER; None if there is none."""
        return self._object.getpeercert(binary_form=True) if self.handshaken else None


async def handshake(layer: TlsLayer, stream: trio.abc.Stream, received: bytes = b"") -> bytes:
    """Shake hands over a Trio stream; returns plaintext that came with it.

    `received` is ciphertext that was read already. The deadline is the caller's. Raises ProtocolError when TLS fails or
    the peer leaves, and what the stream raises.
    """
    data = received
    while True:
        try:
            plain = layer.receive(data)
        except ssl.SSLError as error:
            with trio.move_on_after(_LAST_WORD), suppress(trio.BrokenResourceError):
                if alert := layer.outgoing():
                    await stream.send_all(alert)
            raise ProtocolError(f"cannot shake hands: {reason_of(error)}") from None
        if out := layer.outgoing():
            await stream.send_all(out)
        if layer.handshaken:
            return plain
        data = bytes(await stream.receive_some(_RECORD))
        if not data:
            raise ProtocolError("cannot shake hands: the peer closed the connection")


class TlsStream(trio.abc.HalfCloseableStream):
    """A stream over a layer that has shaken hands and the stream that it did so on.

    `received` is plaintext that came with the handshake. A peer that ends the connection without close_notify has not
    ended it: BrokenResourceError, as whatever came last may have been cut off (RFC 8446 6.1). A send that is cancelled
    leaves the stream broken for sending where a record may be torn.
    """

    def __init__(self, layer: TlsLayer, transport: trio.abc.HalfCloseableStream, received: bytes = b"") -> None:
        self.layer = layer
        self.transport = transport
        self._unread = received
        self._turn = trio.Lock()
        self._torn = False
        self._ended = False

    def unread(self) -> bytes:
        """Take what was deciphered and not received yet, for whoever goes on with `layer` and `transport`."""
        unread, self._unread = self._unread, b""
        return unread

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Plaintext; b"" once the peer has said close_notify."""
        if self._unread or self.layer.closed:
            await trio.lowlevel.checkpoint()
        while not self._unread and not self.layer.closed:
            await self._receive()
        if max_bytes is None or len(self._unread) <= max_bytes:
            return self.unread()
        data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
        return data

    async def _receive(self) -> None:
        data = bytes(await self.transport.receive_some(_RECORD))
        if not data:
            raise trio.BrokenResourceError("the peer cut the connection off: it said no close_notify")
        try:
            self._unread = self.layer.receive(data)
        except ssl.SSLError as error:
            with trio.move_on_after(_LAST_WORD), suppress(trio.BrokenResourceError):
                await self._flush()
            raise trio.BrokenResourceError(f"cannot go on with TLS: {reason_of(error)}") from None
        # what TLS itself answers goes with what is being sent; where that does not move on, nothing more is read
        if self.layer.pending and (self.layer.pending > _OWED or not self._turn.locked()):
            await self._flush()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended:
            raise trio.ClosedResourceError("cannot send after the end")
        if not data:
            await trio.lowlevel.checkpoint()
        view = memoryview(data)
        for at in range(0, len(view), _PART):
            self._encrypt(bytes(view[at : at + _PART]))
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        await self.transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say close_notify, once; the transport stays open for what the peer still says (RFC 8446 6.1)."""
        if self._ended:
            await trio.lowlevel.checkpoint()
            return
        self._ended = True
        self.layer.goodbye()
        await self._flush()

    async def aclose(self) -> None:
        """Say close_notify, for a second at most, and close the transport. Cancelled, it only closes."""
        try:
            with trio.move_on_after(_LAST_WORD), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send_eof()
        finally:
            await trio.aclose_forcefully(self.transport)

    def _encrypt(self, data: bytes) -> None:
        try:
            self.layer.encrypt([data])
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(f"cannot go on with TLS: {reason_of(error)}") from None

    async def _flush(self) -> None:
        async with self._turn:
            if self._torn:
                raise trio.BrokenResourceError("an earlier send was cut short")
            self._torn = True
            while self.layer.pending:
                await self.transport.send_all(self.layer.outgoing())
            self._torn = False
