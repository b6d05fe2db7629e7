"""A door of framed TCP: one listener as the connections that came by it see it. Pure; it outlives generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netd.hub.outbox import OutboxRules
from netd.services.framed.protocol import Terms
from netd.sessions import doors
from netd.sessions.doors import set_rules
from netd.wire.framing import FrameLimits
from netd.wire.handshake import Nonces

if TYPE_CHECKING:
    from netd.services.framed.config import FramedConfig, FramedListen
    from netd.services.framed.exchange import Exchange
    from netd.services.framed.keys import KeyFiles
    from netd.services.framed.modes import Mode

_MAX_READ: Final = 256 * 1024
"""Bytes that the reactor reads from one stream at most before it writes."""


def beginning(exchange: Exchange) -> float:
    """Now, for `Nonces.since`: a handshake tells its time in milliseconds."""
    return int(exchange.clock() * 1000) / 1000


class Strangers(Nonces):
    """Of a door where any key may sign: whoever likes can fill such a table, so it is that door's own.

    What is signed by a key that another door lists is remembered with that door's: nobody can fill that, and it is good
    once at all doors together.
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.nonces.capacity, since=beginning(exchange))
        self._exchange = exchange

    def take(self, key: bytes, nonce: str, ts: float, now: float) -> None:
        if self._exchange.lists(key):
            self._exchange.nonces.take(key, nonce, ts, now)
        else:
            super().take(key, nonce, ts, now)

    def check(self, key: bytes, nonce: str, ts: float, now: float) -> bytes:
        shared = self._exchange.nonces
        if self._exchange.lists(key):
            return shared.check(key, nonce, ts, now)
        self.window = shared.window
        return super().check(key, nonce, ts, now)


class Door(doors.Door):
    """Made by Exchange.door."""

    exchange: Exchange
    limits: FrameLimits

    def __init__(self, exchange: Exchange, address: str, interface: str | None) -> None:
        super().__init__(exchange, address, interface)
        self.limits = FrameLimits()
        self.echo_rules = OutboxRules()
        """With room for what was read already when an echo stops reading: its own payloads overflow nothing."""
        self.terms = Terms()
        self.token = ""
        """The name of the token that its sessions have; "": none."""
        self.mode: Mode
        """Of those who come from now on, when their handshakes are done."""
        self.opening: Mode
        """Of those whose first frame may be a handshake."""
        self.listen: FramedListen
        """What it asks of those who come now."""
        self.listed: KeyFiles | None = None
        """The keys that it accepts by name; None: it takes any, or asks for none."""
        self._strangers: Strangers | None = None

    @property
    def nonces(self) -> Nonces:
        """Signed handshakes that were good here."""
        return self.exchange.nonces if self._strangers is None else self._strangers

    def accepts(self, keys: KeyFiles | None) -> None:
        """Signed handshakes are to be by one of `keys`; None: by any."""
        self.listed = keys
        if keys is None:
            if self._strangers is None:
                self._strangers = Strangers(self.exchange)
        elif self._strangers is not None:
            # what they showed here is forgotten, and some of them may be listed now
            self._strangers = None
            self.exchange.nonces.since = beginning(self.exchange)

    def configure(self, config: FramedConfig) -> None:  # type: ignore[override]
        super().configure(config)
        self.limits.max_frame = config.max_frame
        echo = self.echo_rules
        set_rules(echo, config)
        high, low = echo.high, echo.low
        echo.bound = config.backpressure + config.max_frame + _MAX_READ
        echo.high, echo.low = high, low
