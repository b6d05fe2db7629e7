"""Frames over a byte stream as a client's transport: what FramedClient connects with.

Rules:
- the payloads of one batch leave in one write; a payload longer than `max_frame` is refused before it is queued;
- a peer that announces a longer one, or ends in the middle of one, has ended the connection.

Left out: how the bytes travel (link.py).
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, cast

from netd.client.link import Link, dial
from netd.client.seams import Ended, Loss
from netd.errors import ProtocolError
from netd.wire.framing import FrameDecoder, FrameLimits, NoFraming, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from netd.client.framed_options import Options
    from netd.client.options import Tcp, Unix
    from netd.client.seams import Face, Wire
    from netd.client.state import Counters
    from netd.wire.framing import Framing

_PLAIN = "leave it out (tls, --tls)"
_TLS_ALERT = b"\x15\x03"
"""How a TLS server begins its answer to what is no TLS (RFC 8446 section 5.1)."""
_HTTP = b"HTTP/"


class FramedTransport:
    """Connections to one framed server."""

    prepares = False
    otherwise = "is its mode operations?"
    unanswered = "is its mode operations, and does it speak this codec and framing?"
    pushes = True

    def __init__(self, address: Tcp | Unix, options: Options) -> None:
        self.address = address
        self._options = options
        self._signer = load_signer(options.signer)

    def frame(self, payload: bytes) -> bytes:
        """The payload as it goes over the wire. ProtocolError if it is longer than a frame may be."""
        if len(payload) > self._options.max_frame:
            raise ProtocolError(
                f"cannot send {len(payload)} bytes: max_frame is {self._options.max_frame}", origin="local", close=1009
            )
        return payload if self._options.framing == "none" else frame(payload)

    async def dial(self, nursery: trio.Nursery, counters: Counters, face: Face) -> Wire:
        return FramedWire(await dial(self.address, self._options, plain=_PLAIN), self._options, counters)

    def opening(self) -> list[bytes]:
        return first_payloads(self._options, self._signer)

    def missing(self, wire: Wire) -> str:
        shake = "another handshake" if self._options.greets else "a handshake"
        tls = isinstance(wire, FramedWire) and wire.link.tls
        return f"does it want {shake if tls else f'TLS (tls=True, --tls), or {shake}'}?"


class FramedWire:
    """One connection, and the frames on it."""

    def __init__(self, link: Link, options: Options, counters: Counters) -> None:
        self.link = link
        self.opened = link.opened
        self.discarding = False
        self._counters = counters
        self._decoder: Framing = (NoFraming if options.framing == "none" else FrameDecoder)(
            FrameLimits(options.max_frame)
        )
        self._broken: Loss | None = None

    @property
    def heard(self) -> float:
        return self.link.heard

    @heard.setter
    def heard(self, at: float) -> None:
        self.link.heard = at

    @property
    def wake(self) -> Callable[[], None]:
        return self.link.wake

    @wake.setter
    def wake(self, call: Callable[[], None]) -> None:
        self.link.wake = call

    @property
    def unsent(self) -> bool:
        return self.link.unsent

    async def send(self, framed: list[bytes]) -> None:
        data = b"".join(framed)
        await self.link.send(data)
        self._counters.bytes_out += len(data)

    def send_nowait(self, framed: list[bytes]) -> None:
        data = b"".join(framed)
        self.link.send_nowait(data)
        self._counters.bytes_out += len(data)

    async def receive(self) -> list[bytes]:
        while self._broken is None:
            data = await self.link.receive()
            if not data:
                raise Ended(self._end())
            self._counters.bytes_in += len(data)
            if self.discarding:
                continue
            payloads = self._decoder.receive(data)
            if (error := self._decoder.error) is not None:
                self._counters.undecodable += 1
                self._broken = Loss(f"{error}{self._guess(data)}")
            if payloads:
                return payloads
        raise Ended(self._broken)

    def _guess(self, data: bytes) -> str:
        """What the peer speaks, if that is easily told."""
        if data.startswith(_TLS_ALERT) and not self.link.tls:
            return "; does it want TLS (tls=True, --tls)?"
        return "; it speaks HTTP: is this the address of a framed listener?" if data.startswith(_HTTP) else ""

    def _end(self) -> Loss:
        if self._decoder.buffered:
            return Loss("the peer ended the connection in the middle of a frame")
        if self.link.torn:
            return Loss("the connection ended without TLS saying so")
        return Loss("the peer ended the connection", clean=True)

    async def say_goodbye(self) -> None:
        await self.link.say_goodbye()

    def close(self) -> None:
        self.link.close()


def first_payloads(options: Options, signer: Ed25519PrivateKey | None) -> list[bytes]:
    """The handshake, if one is to be sent: a new one for each connection, since a signed one counts once."""
    if not options.greets:
        return []
    from netd.wire import handshake

    tags = dict(options.tags)
    if signer is None:
        return [handshake.plain(options.version, tags)]
    return [handshake.signed(signer, options.version, tags, now=time.time(), nonce=uuid.uuid4().hex)]


def load_signer(signer: object) -> Ed25519PrivateKey | None:
    """The key that signs handshakes, from its file if need be. ProtocolError when it cannot be used."""
    if signer is None:
        return None
    from netd.wire.handshake import load_private_key

    if not isinstance(signer, str | Path):
        return cast("Ed25519PrivateKey", signer)
    try:
        content = Path(signer).read_bytes()
    except OSError as error:
        raise ProtocolError(f"cannot read the key {signer}: {error.strerror}", origin="local") from error
    return load_private_key(content)
