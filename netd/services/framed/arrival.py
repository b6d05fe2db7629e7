"""How a client arrives: whatever may wait, before its connection goes to the reactor.

    PROXY header --> TLS (netd/sessions/arrival.py) --> required handshake --> verifier --> Arrived

Rules:
- a client that is refused is told why where its mode has a word for it, once and without waiting for it to read;
- the user's verifier decides last. It cannot hold us up: a `def` runs in a thread of its own, of which there are at
  most VERIFIERS at once, and is left alone when time is up.

Left out: limits on who may come at all (service.py); what the handshake has to say (protocol.py).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import trio

from netd.errors import PrepareFailed, ProtocolError
from netd.services.framed.config import FramedListen
from netd.services.framed.doors import Door
from netd.services.framed.keys import KeyFiles
from netd.services.framed.modes import Mode
from netd.services.framed.protocol import FirstFrame, judge
from netd.sessions import arrival
from netd.sessions.arrival import Rejected
from netd.wire.handshake import Handshake
from netd.wire.messages import CloseCode

VERIFIERS = 8
"""Threads in which verifiers may run at once; who comes then waits for one, within its own deadline."""
_READ = 65_536
_LAST_WORD = 1.0
"""Seconds for a refused client to take what it is told."""

Verifier: TypeAlias = Callable[[Handshake], Any]
"""`def` or `async def`; what it answers is taken for true or false."""


@dataclass(slots=True)
class Entrance(arrival.Entrance):
    """A listener of one generation, with what its connections need on their way in."""

    listen: FramedListen
    door: Door
    keys: KeyFiles
    verifier: Verifier | None
    mode: Mode
    """Of its clients; the door may be another generation's by now, and have another."""
    threads: trio.CapacityLimiter
    """For verifiers; the same in every generation, so that those that hang are not joined by as many more."""

    @property
    def waits(self) -> bool:
        return bool(self.certificate or self.listen.handshake == "required" or self.listen.proxy_protocol)


@dataclass(slots=True)
class Arrived(arrival.Arrived):
    """A client on its way in."""

    handshake: Handshake | None = None


def load_verifier(reference: str) -> Verifier | None:
    """The function that "module:function" names; None for "". Imports the module: blocks. Raises PrepareFailed."""
    if not reference:
        return None
    module, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise PrepareFailed("framed", f"cannot use verifier {reference!r}: {error}") from error
    if not callable(found):
        raise PrepareFailed("framed", f"cannot use verifier {reference!r}: it is no function")
    return found  # type: ignore[no-any-return]


class Way(arrival.Way):
    """The way in of one client."""

    _entrance: Entrance
    _arrived: Arrived

    async def walk(self) -> None:
        """TLS, the required handshake and the verifier. Raises Rejected."""
        await super().walk()
        if self._entrance.listen.handshake == "required":
            await self._introduce()

    async def refuse(self, error: ProtocolError) -> None:
        """Tell it, as far as its mode has a word for that, and let it read it."""
        arrived, stream = self._arrived, self._stream
        last = self._entrance.mode.farewell(error.close or CloseCode.POLICY, str(error)[:123], None)
        with trio.move_on_after(_LAST_WORD), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if last is not None and (arrived.tls is not None or self._entrance.certificate is None):
                if arrived.tls is not None:
                    arrived.tls.encrypt([last])
                    arrived.tls.goodbye()
                    last = arrived.tls.outgoing()
                await stream.send_all(last)
                await stream.send_eof()
                # closed with unread input, the connection would be reset and the word lost
                while await stream.receive_some(_READ):
                    pass

    # --- inside ---

    async def _introduce(self) -> None:
        entrance, arrived, door = self._entrance, self._arrived, self._entrance.door
        first = FirstFrame()
        payload = first.receive(arrived.received)
        while payload is None:
            payload = first.receive(await self._read())
        keys = await entrance.keys.current(self._health)
        terms = replace(door.terms, keys=keys)
        try:
            found = judge(payload, terms, now=door.exchange.clock(), nonces=door.nonces)
        except ProtocolError as error:
            raise Rejected("handshake", error) from None
        assert found is not None
        arrived.received = first.rest()
        if entrance.verifier is not None and not await _ask(entrance.verifier, found, entrance.threads):
            raise Rejected("verifier", ProtocolError("cannot accept the handshake", close=CloseCode.POLICY))
        arrived.handshake = found

    async def _read(self) -> bytes:
        """Plaintext; some, or none if a record is not whole."""
        data, layer = await self._read_plain(), self._arrived.tls
        if layer is None:
            return data
        try:
            plain = layer.receive(data)
        except OSError as error:  # SSLError
            raise Rejected("tls") from error
        if out := layer.outgoing():
            await self._stream.send_all(out)
        if layer.closed and not plain:
            raise Rejected("gone")
        return plain


async def _ask(verifier: Verifier, found: Handshake, threads: trio.CapacityLimiter) -> bool:
    """Whether the user's function finds the handshake good. Raises whatever it raises."""
    if inspect.iscoroutinefunction(verifier):
        return bool(await verifier(found))
    answer = await trio.to_thread.run_sync(verifier, found, abandon_on_cancel=True, limiter=threads)
    return bool(answer)
