"""A connection that is a session: what the reactor feeds, what the hub holds, what the outbox reports to. Pure.

    reactor --receive(bytes)--> Connection --mode.received--> hub, or straight back into the outbox
    reactor --ended(why)-----> Connection --> hub.close, its place, the observer
    hub -----close, pause----> Connection --> stream
    outbox --pressure, overflow--> Connection --> observer

It is the stream's Endpoint, the session's Link and the outbox's owner in one object, because there are thousands of
them: slots, no closures, nothing allocated for what most never do. Transports add what is theirs in a subclass.

Rules:
- what a connection does with its bytes is its mode's business (modes.py); modes are shared and hold nothing of it;
- limits are read from the door at every use, so that a reload holds from the next message on;
- inbound pauses for reasons of several kinds at once (`Held`) and resumes when the last has gone; who is not
  read from for no fault of its own is neither idle nor silent, and its time begins anew when it is;
- a long read is served in pieces; what there is no time for, or what is held back, is put back for later;
- it ends once, whatever comes first: the hub forgets it at once, and then its last bytes may still be written.

Left out: the socket and its TLS (net/reactor.py), what all connections have in common (exchange.py).
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Any

from netd.budget import Bucket
from netd.errors import ProtocolError
from netd.wire.messages import MAX_REASON, CloseCode

if TYPE_CHECKING:
    from netd.hub.outbox import Outbox
    from netd.hub.session import Session
    from netd.net.carrier import StreamCarrier
    from netd.net.reactor import Timer
    from netd.net.stream import Stream
    from netd.sessions.doors import Door
    from netd.sessions.modes import Mode

FAREWELL = 5.0
"""Seconds for a client to take what waits for it once its connection is ending."""
_PIECE = 16_384
"""Bytes of a read that are served before the clock is looked at: they may be thousands of messages, each for thousands
of clients, or blow up a thousandfold."""
SLOW_FAREWELL = 1.0
"""The same for one that is closed because it does not read, or does not answer."""


class _Nothing:
    """In place of a decoder, once nothing is read any more."""

    __slots__ = ()
    buffered = 0
    error = None


_NOTHING = _Nothing()


class Held(IntFlag):
    """Why nothing is read from a connection."""

    HUB = 1
    ECHO = 2
    """Its echo waits for it."""
    RATE = 4
    """It sent too fast."""
    READER = 8
    """A program that uses the server library has not taken what came before."""
    INFLATED = 16
    """What was decompressed of one read is on its way, and the rest of it waits."""


class Connection:
    """Made by a subclass of Exchange, which gives it outbox, session and stream (`Exchange.seat`)."""

    __slots__ = (
        "_bucket",
        "_carrier",
        "_closing",
        "_earning",
        "channel",
        "decoder",
        "door",
        "heard",
        "held",
        "key",
        "mode",
        "outbox",
        "pinged",
        "session",
        "stream",
    )

    door: Door
    mode: Mode
    stream: Stream
    outbox: Outbox
    session: Session

    def __init__(self, door: Door, mode: Mode, key: str) -> None:
        self.door = door
        self.mode = mode
        self.decoder: Any = mode.decoder(door.limits)
        self.key = key
        """What counts as its address."""
        self.heard = self.pinged = door.exchange.reactor.now
        """When something was last received, and a ping last sent (the reactor's clock)."""
        self.held = 0
        self.channel: bytes | None = None
        """Of a plain client."""
        self._bucket: Bucket | None = None
        self._earning: Timer | None = None
        """Until the bytes that came too fast are made up for; its end lets it be read again."""
        self._carrier: StreamCarrier | None = None
        self._closing: tuple[int, str] | None = None

    # --- the reactor's endpoint ---

    def receive(self, data: bytes) -> None:
        door = self.door
        self.heard = door.exchange.reactor.now
        if self._closing is not None:
            return
        rest = None
        if len(data) > _PIECE:
            data, rest = data[:_PIECE], data
        if door.input_rate:
            self._spend(len(data))
        try:
            self.mode.received(self, data)
            if rest is not None:
                self._go_on(rest)
        except ProtocolError as error:
            self.fail(error)

    def ended(self, why: str) -> None:
        code, reason = self._closing or (CloseCode.NORMAL, why)
        self._closing = (code, reason)
        self._earned()
        # whoever still has the connection need not have what came of a message
        self.decoder = _NOTHING
        self.door.exchange.ended(self, code, reason)

    # --- the outbox's owner ---

    def pressure(self, over: bool) -> None:
        self.mode.pressure(self, over)
        self.door.exchange.pressure(self, over)

    def overflow(self) -> None:
        self.end(CloseCode.SLOW, "did not read", within=SLOW_FAREWELL)

    # --- the session's link ---

    @property
    def socket(self) -> Any:
        """Its socket.socket, for options."""
        return self.stream.socket

    @property
    def tls(self) -> bool:
        return self.stream.tls is not None

    @property
    def bytes_in(self) -> int:
        return self.stream.bytes_in

    @property
    def bytes_out(self) -> int:
        return self.stream.bytes_out

    @property
    def carrier(self) -> StreamCarrier | None:
        """For the tracer; None on a Unix socket, behind which there is no route."""
        if self._carrier is None:
            self._carrier = self.door.exchange.carrier_of(self)
        return self._carrier

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        """Say goodbye where the mode has a word for it, let what waits be written, and end."""
        self.end(code, reason, retry_after)

    def pause(self) -> None:
        self.hold(Held.HUB)

    def resume(self) -> None:
        self.release(Held.HUB)

    # --- for modes and the exchange ---

    @property
    def closing(self) -> bool:
        return self._closing is not None

    def hold(self, why: int) -> None:
        """Read nothing more for this reason. Of what was read already, a piece may still be handed over."""
        if not self.held:
            self.stream.pause()
        self.held |= why

    def release(self, why: int) -> None:
        if self.held & why:
            self.held &= ~why
            if not self.held and self._closing is None:
                self.heard = self.door.exchange.reactor.now
                self.stream.resume()

    def fail(self, error: ProtocolError) -> None:
        """The peer broke the rules."""
        self.end(error.close or CloseCode.PROTOCOL, str(error))

    def end(self, code: int, reason: str, retry_after: float | None = None, *, within: float = FAREWELL) -> None:
        """`close`, with at most `within` seconds for what waits to be written. Once it ends, nothing changes that."""
        if self._closing is None:
            self._closing = (code, reason)
            self._finish(self.mode.farewell(code, reason[:MAX_REASON], retry_after) or b"", within)

    def reconsider(self) -> None:
        """The limits of its door have changed: what the old ones held back goes on as the new ones would have it."""
        if self._earning is not None:
            # what it owes is held against the new rate alone
            self._earned()
            if self.door.input_rate:
                self._spend(0)
            else:
                self._bucket = None
        self.outbox.reconsider()

    def look(self, now: float) -> None:
        """About once a second: end it if it is idle, send a ping if it is silent. `now` is the reactor's clock."""
        door = self.door
        if self.held & ~Held.ECHO:
            return
        silent = now - self.heard
        if door.idle_timeout and silent >= door.idle_timeout and self.mode.speaks:
            self.end(CloseCode.NORMAL, "idle")
        elif door.ping_interval and silent >= door.ping_interval and self.may_ping(now):
            self.pinged = now
            ping = self.mode.ping(door.exchange.milliseconds())
            if ping is not None:
                # who reads slowly, but does, has it in time
                self.outbox.push(ping, 0 if self.outbox.size else 128, True)

    def may_ping(self, now: float) -> bool:
        """Whether it is time for another ping to a silent client."""
        return now - self.pinged >= self.door.ping_interval

    def nudge(self) -> bool:
        """Send a ping long enough to be traced by. False: this mode has none."""
        ping = None if self._closing is not None else self.mode.ping(self.door.exchange.milliseconds(), padded=True)
        return ping is not None and self.outbox.push(ping, 0)

    # --- inside ---

    def _go_on(self, data: bytes) -> None:
        """The first piece of a long read was served: so is the rest, for as long as there is time and nothing holds it
        back. Raises as `Mode.received`."""
        at, reactor, rate = _PIECE, self.door.exchange.reactor, self.door.input_rate
        while at < len(data) and self._closing is None:
            if self.held or reactor.over:
                self.stream.put_back(data[at:])
                return
            piece = data[at : at + _PIECE]
            at += _PIECE
            if rate:
                self._spend(len(piece))
            self.mode.received(self, piece)

    def _finish(self, last: bytes, within: float) -> None:
        """`last` are the last bytes that it is sent, `_closing` says why."""
        code, reason = self._closing or (CloseCode.NORMAL, "")
        self.outbox.finish(last)
        self.door.exchange.forget(self, code, reason)
        self.stream.close(reason, within=within)

    def _part(self, last: bytes) -> None:
        """The same, the short way, where nothing else waits."""
        outbox, stream = self.outbox, self.stream
        if outbox.size or stream.slow:
            self._finish(last, FAREWELL)
            return
        code, reason = self._closing or (CloseCode.NORMAL, "")
        outbox.left += 1
        outbox.finish()  # what is on its way from elsewhere is for nobody now
        self.door.exchange.forget(self, code, reason)
        stream.part(last, reason, within=FAREWELL)

    def _spend(self, size: int) -> None:
        door = self.door
        reactor = door.exchange.reactor
        bucket = self._bucket
        if bucket is None:
            bucket = self._bucket = Bucket(door.input_burst, reactor.now)
        bucket.refill(reactor.now, door.input_rate, door.input_burst)
        delay = bucket.spend(size, door.input_rate)
        if delay > 0 and self._earning is None:
            self.hold(Held.RATE)
            self._earning = reactor.call_at(reactor.now + delay, self._earned)

    def _earned(self) -> None:
        timer, self._earning = self._earning, None
        if timer is not None:
            timer.cancel()
            self.release(Held.RATE)
