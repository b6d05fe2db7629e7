"""One stream of messages in the reactor: a socket, what it feeds, what it sends, and how it ends.

    open --close()--> closing --all sent--> lingering --peer's FIN--> gone
      |  '-----------part()-------------------^ |                      ^
      |                   |                     |                      |
      '-------------------'--- abort(), reset, time is up -------------'

Rules:
- all of it is for the Trio thread; nothing here waits but `written`;
- `ended` is called once, at the end of a batch of the reactor and never from within `close` or `abort`, so that whoever
  walks over sessions may end them;
- input that is paused is not asked of the kernel at all: a level-triggered epoll would report it again and again;
- what was taken from the outbox and did not fit into the socket is older than all that waits there, whatever its
  priority, and goes first;
- a closed stream says so (TLS close_notify, FIN) and then discards what the peer still sends for a moment: closing a
  socket with unread input resets the connection, and the peer would lose the last words (RFC 1122 4.2.2.13).

What is seldom needed (carrier, closing, handed-over bytes) stands in `Rare`, made when it is: an idle stream is small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from netd.net.linux import queued_packet
from netd.net.timers import SLICE

if TYPE_CHECKING:
    import socket
    from collections import deque
    from typing import Self

    from netd.net.reactor import Reactor
    from netd.net.timers import Timer
    from netd.net.tls import TlsLayer

READ: Final = 131_008
"""Bytes of one recv at most: a frame of 64 KiB with its length at once. It is allocated before and shrunk after."""
_FIRST: Final = READ >> 3
_LEAST: Final = READ >> 7
"""Bytes of a recv, at first and at least: 16 KiB are some 600 of the smallest messages, and 1 to 2 ms of work."""
_CHEAP: Final = SLICE / 4

OPEN: Final = 0
CLOSING: Final = 1
LINGERING: Final = 2
GONE: Final = 3

MAX_LOOPED = 64
"""Packets of the error queue that are kept for a carrier; a later one takes the place of the oldest."""

LOOPED = 4096
"""Bytes of a looped packet that are read: its headers and enough of what it carried for any number of probes."""


class Endpoint(Protocol):
    """What a stream feeds; one for each."""

    def receive(self, data: bytes) -> None:
        """What arrived, decrypted. Must not block.

        An exception ends this stream alone: a NetdError after what is queued was sent, anything else at once and with
        its traceback in the log.
        """

    def ended(self, why: str) -> None:
        """The stream is gone; called exactly once, whatever the reason, and nothing after it."""


class Outgoing(Protocol):
    """What a stream sends: netd.hub.outbox.Outbox, or whatever else marks itself when it has something."""

    stream: Any
    """The reactor's own word for the stream; set by `adopt`, None when the stream is gone."""

    @property
    def size(self) -> int:
        """Bytes waiting."""

    def take(self, limit: int, now: float) -> list[bytes]:
        """What may be sent now, in order, about `limit` bytes: at least one chunk if any may. It leaves the outbox."""

    def wait(self, now: float) -> float | None:
        """Seconds until `take` gives more, when bytes wait and a rate holds them back; else None."""


class OutgoingOfCrowd(Outgoing, Protocol):
    """One of many that hold the same chunk and nothing else; the reactor takes it by itself (`Reactor.mark_crowd`)."""

    chunks: Any
    size: int
    left: int
    """Chunks that were taken."""
    encoder: Any
    rules: Any
    flusher: Any


class Rare:
    """What few streams need, and those not for long."""

    __slots__ = ("again", "cut_off", "looped", "peer_ended", "received", "said_goodbye", "until", "waiting", "why")

    def __init__(self) -> None:
        self.why = ""
        self.cut_off: Timer | None = None
        """When the closing takes too long: it has not been over at once."""
        self.until = 0.0
        """When that is (time.monotonic())."""
        self.again: Timer | None = None
        """When the outbox' rate allows more."""
        self.received = b""
        """Plaintext read before the stream came here, or put back, to be fed when it is not paused."""
        self.looped: deque[bytes] | None = None
        self.waiting: list[Written] | None = None
        self.peer_ended = False
        self.said_goodbye = False


class Written:
    """Somebody waits for a write of a certain size: `with stream.written(96) as written: ... await written.wait()`."""

    __slots__ = ("_event", "_stream", "least")

    def __init__(self, stream: Stream, least: int) -> None:
        self._stream = stream
        self._event = trio.Event()
        self.least = least

    async def wait(self) -> bool:
        """Until there was such a write (True), or the stream is gone."""
        await self._event.wait()
        return self.least == 0

    def done(self) -> None:
        """There was one."""
        self.least = 0
        self._event.set()

    def over(self) -> None:
        """There will be none."""
        self._event.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.forget(self)


class Stream:
    """Made by `Reactor.adopt`."""

    __slots__ = (
        "bytes_in",
        "endpoint",
        "events",
        "opened",
        "outbox",
        "paused",
        "plain",
        "rare",
        "reactor",
        "read",
        "rest",
        "sent",
        "slow",
        "socket",
        "state",
        "tls",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        endpoint: Endpoint,
        outbox: Outgoing,
        tls: TlsLayer | None,
        opened: float,
    ) -> None:
        self.reactor = reactor
        self.socket = sock
        self.endpoint = endpoint
        self.outbox = outbox
        self.tls = tls
        self.bytes_in = 0
        """Bytes read from the socket since the stream came here (under TLS: of records)."""
        self.sent = 0
        """`bytes_out`, but for what the reactor has yet to count."""
        self.opened = opened
        """Monotonic time."""
        # --- the reactor's ---
        self.state = OPEN
        self.paused = False
        self.events = 0
        """What epoll reports; 0 before it knows the socket."""
        self.plain = tls is None
        """Input is for the endpoint as it is: no TLS, open, not paused."""
        self.read = _FIRST
        """Bytes asked of the next recv."""
        self.slow = tls is not None
        """A flush has more to do than to take and to send."""
        self.rest: list[bytes | memoryview] | None = None
        """Taken from the outbox (and encrypted), and not yet taken by the kernel."""
        self.rare: Rare | None = None

    def pass_on(self, endpoint: Endpoint, outbox: Outgoing, received: bytes = b"") -> None:
        """Have it feed another endpoint and send from another outbox from now on. `received` was read already, and is
        fed at the next batch, before what comes then."""
        self.outbox.stream = None
        self.endpoint = endpoint
        self.outbox = outbox
        outbox.stream = self
        if received:
            self.extra().received = received
            self.plain = False
            self.reactor.feed_later(self)
        if outbox.size:
            self.reactor.mark(outbox)

    @property
    def bytes_out(self) -> int:
        """Bytes that the kernel has taken."""
        self.reactor.settle()
        return self.sent

    @property
    def closed(self) -> bool:
        """Gone, or about to be: nothing more is read."""
        return self.state != OPEN

    @property
    def gone(self) -> bool:
        return self.state == GONE

    @property
    def unsent(self) -> int:
        """Bytes taken from the outbox that the kernel has not taken yet."""
        return sum(map(len, self.rest)) if self.rest else 0

    def pause(self) -> None:
        """Read no more until `resume`. What `receive` was given already is the endpoint's."""
        if not self.paused and self.state == OPEN:
            self.paused = True
            self.plain = False
            self.reactor.paused += 1
            self.reactor.arm(self)

    def resume(self) -> None:
        """Read again."""
        if self.paused and self.state == OPEN:
            self.paused = False
            self.reactor.paused -= 1
            self.reactor.arm(self)
            if self.state != OPEN:
                return  # epoll did not have it
            if self.rare is not None and (self.rare.received or (self.tls is not None and self.tls.closed)):
                self.reactor.feed_later(self)
            else:
                self.plain = self.tls is None

    def put_back(self, data: bytes) -> None:
        """For the endpoint, while it is given something: have the rest of that later, before what comes then."""
        if self.state == OPEN:
            self.extra().received = data
            self.plain = False
            self.reactor.feed_later(self)

    def close(self, why: str, *, within: float = 5.0) -> None:
        """Stop reading, send all that waits, say goodbye; cut off after `within` seconds. The first call counts."""
        if self.state == OPEN:
            self.reactor.begin_closing(self, why, within)

    def part(self, last: bytes, why: str, *, within: float = 5.0) -> None:
        """`close` one for which nothing waits but `last`: that is sent at once, in one packet with the FIN. The
        shortest way where the peer has said goodbye. Not for TLS."""
        if self.state == OPEN:
            self.reactor.part(self, last, why, within)

    def abort(self, why: str) -> None:
        """End it now; what waits is lost."""
        self.reactor.bury(self, why)

    def reconsider(self) -> None:
        """The rate of its outbox has changed, or something urgent waits there: if it is held back, ask it now.

        It is asked once a second anyway.
        """
        again = None if self.rare is None else self.rare.again
        if again is not None and not again.cancelled:
            again.cancel()
            self.reactor.mark(self.outbox)

    def written(self, least: int) -> Written:
        """Watch for a write, from now on, of which the kernel takes at least `least` bytes in one piece.

        That is what a tracer can find again in one packet.
        """
        written = Written(self, least)
        if self.state == GONE:
            written.over()
            return written
        rare = self.extra()
        if rare.waiting is None:
            rare.waiting = []
        rare.waiting.append(written)
        self.slow = True
        return written

    def forget(self, written: Written) -> None:
        """Nobody waits for it any more."""
        if self.rare is not None and self.rare.waiting and written in self.rare.waiting:
            self.rare.waiting.remove(written)
            self.settle()

    def read_errors(self) -> bytes | None:
        """The next packet of the socket's error queue: what the reactor has drained first. Raises OSError if closed."""
        rare = self.rare
        if rare is not None and rare.looped:
            return rare.looped.popleft()
        return queued_packet(self.socket, LOOPED)

    # --- for the reactor ---

    def pace(self, size: int, took: float) -> None:
        """A read of `size` bytes took so many seconds with all that came of it: read more or less from now on.

        What a byte costs differs a thousandfold: part of a large frame, or a message to a thousand subscribers. So it
        is measured. A read that was full and cheap doubles the next; one of more than a slice is cut to what fits one.
        """
        read = self.read
        if took > SLICE:
            fits = size * SLICE / took
            while size > _LEAST and read > fits and read > _LEAST:
                read >>= 1
            self.read = read
        elif size == read and took < _CHEAP:
            self.read = min(2 * read, READ)

    def extra(self) -> Rare:
        if self.rare is None:
            self.rare = Rare()
        return self.rare

    def settle(self) -> None:
        """Whether the next flush is a plain one."""
        self.slow = (
            self.tls is not None
            or self.rest is not None
            or self.state != OPEN
            or (self.rare is not None and bool(self.rare.waiting))
        )
