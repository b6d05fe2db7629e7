"""The daemon's one reactor: where a connection lives once it only carries messages.

    Trio task (accept, TLS, handshake: all that may wait) --adopt--> stream in the reactor, the task ends

    round:  epoll -> recv -> endpoint.receive -> outboxes marked -> every marked outbox flushed with one send
    then:   another round while there is something, Trio's turn after 2 ms or 16 rounds; else wait for the epoll in Trio

Rules:
- one Trio task; its epoll is level-triggered and nested in Trio's own; nothing in a round waits;
- a stream is read once a round (READ bytes at most) and written once a round (WRITE bytes at most), so that a flood of
  one delays the others by no more than that;
- a round whose 2 ms are over stops where it is: what is left of it is done after Trio's turn and before the next poll,
  first what is to be sent, then what is to be read; so nobody is passed over, and nobody is served twice meanwhile;
- what cannot be stopped is one `receive` of one read (four if they are small) but by its endpoint, which may put back
  what it has no time for (`over`, `Stream.put_back`), one `ended`, one `take` and its send (sixteen if small, or 64 KiB
  to a crowd), one call for a descriptor that is watched (a listening socket's). A stream reads little at first, more
  while its reads are full and cheap, less after one that took longer than 2 ms (`Stream.pace`). What remains is what
  one message costs: to reach thousands of subscribers, say;
- EPOLLOUT is asked for only after a short write, EPOLLIN is given back while a stream is paused;
- what goes wrong with one stream ends that one; the reactor's guard logs it;
- EPOLLERR with SO_ERROR 0 means that the error queue has something: it is taken off at once, or epoll would report it
  for ever, and kept for the carrier if a trace is looping packets (SO_TIMESTAMPING is set);
- what a crowd was sent at once is counted later, for all of it: when somebody asks, or one of them goes (`settle`);
- it outlives the generations of services; cancelled, it closes what is left.

Waiting in Trio costs some 15 us on the way of every message. Where the last waits were shorter than that is worth
(`_NEAR`), the epoll is asked again and again for `_SPIN` before the wait; where such looks find nothing, they stop.

It is one long file because the hot path and its ways out of it have to be read together.

Left out: accepting (`watch` says when), TLS handshakes and limits (services); what the bytes mean (endpoints); what
waits (outboxes).
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import trio

from netd.errors import NetdError
from netd.net.linux import SO_TIMESTAMPING, queued_packet
from netd.net.stream import CLOSING, GONE, LINGERING, LOOPED, MAX_LOOPED, OPEN, Endpoint, Outgoing, Stream
from netd.net.timers import SLICE, Timer, Timers
from netd.net.tls import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netd.net.stream import OutgoingOfCrowd
    from netd.net.tls import TlsLayer

    OutgoingOfCrowdT = TypeVar("OutgoingOfCrowdT", bound=OutgoingOfCrowd)

__all__ = ["Endpoint", "Outgoing", "Reactor", "ReactorSnapshot", "Stream", "Timer", "plain_socket"]

_ARENA: Final = 8 << 20
"""Freed once, a block of this size teaches glibc's malloc (mallopt(3), M_MMAP_THRESHOLD) to take such from the heap
and to keep 16 MiB of it. Otherwise each round gives its buffers back to the kernel and faults them in anew: half of all
time with large messages. Other allocators ignore it."""
WRITE: Final = 262_144
"""Bytes taken from an outbox at once; also what may be ahead of an urgent message."""
_JOIN: Final = 4096
"""Chunks of this size on average are cheaper joined than handed to the kernel one by one."""
_CHUNKS: Final = 1024
"""IOV_MAX of Linux."""
_EVENTS: Final = 128
"""Streams read in one round, if there is time for them all."""
_SMALL: Final = 1023
_LOOK: Final = 4
_LOOK_SENT: Final = 16
"""The clock is looked at after so many reads or writes of less than _SMALL bytes, and after each of more. A look costs
60 ns, and a small message's way through a round not ten times as much."""
_LOOK_BYTES: Final = 65_536
"""To a crowd, at which most sends are alike, it is looked at after no more than so many bytes: some 50 us."""
_ROUNDS: Final = 16
_SPIN: Final = 50e-6
"""Seconds for which the epoll is asked again instead of waiting for it. No task is delayed for longer by that."""
_NEAR: Final = 120e-6
"""A wait in Trio that was shorter would have been spared by looking again."""
_EAGER: Final = 8
"""So many near waits more than others, and looking again begins."""
_CONTROL: Final = 1 << 20
"""Bytes of answers to TLS messages (alerts, key updates) that may wait for a peer that does not read."""
_LINGER: Final = 1.0
"""Seconds a peer has for its FIN after ours."""
_SOON: Final = 0.001
"""Seconds that nobody waits for once more."""
_OWED: Final = 16
"""Crowds whose counters may wait."""
_QUEUED: Final = 64
"""Packets taken off an error queue in one round."""
_AGAIN: Final = 1.0
"""Seconds after which an outbox that a rate holds back is asked again at the latest: something more urgent and smaller
may wait there by now."""

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_ERR: Final = select.EPOLLERR
_HUP: Final = select.EPOLLHUP

log = structlog.get_logger("netd.reactor")


@dataclass(frozen=True, slots=True)
class ReactorSnapshot:
    """The reactor at a moment; counts are since it was made."""

    streams: int
    paused: int
    dirty: int
    """Outboxes marked and not yet flushed."""
    timers: int
    batches: int
    """Rounds that read or wrote something."""
    polls: int
    """Times that the epoll was asked."""
    waits: int
    """Times that it was waited for in Trio."""


def plain_socket(stream: trio.SocketStream) -> socket.socket:
    """The socket of a Trio stream, out of Trio's hands, for `adopt`."""
    inner = stream.socket
    family, kind, proto = inner.family, inner.type, inner.proto
    return socket.socket(family, kind, proto, fileno=inner.detach())


class Reactor:
    """One per daemon; all methods are for the Trio thread."""

    def __init__(self) -> None:
        self.paused = 0
        """Streams whose input is paused."""
        self._epoll: select.epoll | None = None
        self._wake_fd = -1
        self._streams: list[Stream | None] = []
        """By descriptor."""
        self._count = 0
        self._rest: list[tuple[int, int]] = []
        """What epoll has said and there was no time for. By descriptor: a stream may be gone when its turn comes."""
        self._dirty: list[Outgoing] = []
        self._crowds: list[tuple[Sequence[OutgoingOfCrowd], list[bytes]]] = []
        self._owed: dict[Any, list[Any]] = {}
        """What was sent at once and is not counted yet: to whom, and how many bytes and messages to each; by the first
        of them."""
        self._unflushed: list[Outgoing] = []
        """Marked, and there was no time to flush them. They go before anything more is read."""
        self._fresh: list[Stream] = []
        """Streams that came with bytes already read."""
        self._buried: list[tuple[Stream, str]] = []
        """Streams that are gone and whose endpoints are still to hear of it, and why."""
        self._lingering: dict[Stream, float] = {}
        """Until when: one timer for all, as each of them most often ends before."""
        self._looking = False
        """That timer is set."""
        self._watched: dict[int, Callable[[], None]] = {}
        """Descriptors that are no streams', and what is called while they can be read."""
        self._timers = Timers()
        self._parked = False
        self._working = False
        self._only = False
        """The one thing that this round has read is being served."""
        self._apart = 0.0
        """Seconds of that which were spent in sending at once."""
        self._now = self._until = monotonic()
        self._eager = 0
        self._batches = self._polls = self._waits = 0

    @property
    def now(self) -> float:
        """time.monotonic() as of this batch, or of any moment outside one."""
        return self._now if self._working else monotonic()

    @property
    def over(self) -> bool:
        """The time of this round is: an endpoint that can leave something for the next one does (`Stream.put_back`)."""
        return monotonic() > self._until

    def snapshot(self) -> ReactorSnapshot:
        return ReactorSnapshot(
            streams=self._count,
            paused=self.paused,
            dirty=len(self._dirty) + len(self._unflushed) + sum(len(crowd) for crowd, _ in self._crowds),
            timers=len(self._timers),
            batches=self._batches,
            polls=self._polls,
            waits=self._waits,
        )

    def streams(self) -> list[Stream]:
        """All there are, in no order that means anything."""
        return [stream for stream in self._streams if stream is not None]

    # --- its life ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, then close what is left. `started()`: `adopt` may be called."""
        bytes(_ARENA)
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._grow(self._wake_fd)
        self._epoll.register(self._wake_fd, _IN)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._timers.run, self._ring)
                task_status.started()
                await self._serve(self._epoll)
        finally:
            self._close_all()
            self._epoll.close()
            self._epoll = None
            os.close(self._wake_fd)
            self._wake_fd = -1

    async def _serve(self, epoll: select.epoll) -> None:
        poll = epoll.poll
        fd = epoll.fileno()
        rounds, until = 0, monotonic() + SLICE
        while True:
            now = monotonic()
            if rounds >= _ROUNDS or now > until:
                await trio.lowlevel.checkpoint()
                now = monotonic()
                rounds, until = 0, now + SLICE
                if self._unflushed or self._buried:
                    self._catch_up(now, until)
                    continue
            if self._rest:
                events, self._rest = self._rest, []
            else:
                events = poll(0, _EVENTS)
                self._polls += 1
                if not events and not self._dirty and not self._crowds and not self._fresh and not self._buried:
                    if self._eager >= _EAGER:
                        # other tasks have had their turn within SLICE, and wait for no longer than _SPIN more
                        limit = now + _SPIN
                        while not events and now < limit:
                            events = poll(0, _EVENTS)
                            self._polls += 1
                            now = monotonic()
                        if not events:
                            self._eager -= 2
                    if not events:
                        self._parked = True
                        self._waits += 1
                        try:
                            await trio.lowlevel.wait_readable(fd)
                        finally:
                            self._parked = False
                        asleep, now = now, monotonic()
                        if now - asleep < _NEAR:
                            self._eager = min(self._eager + 1, 2 * _EAGER)
                        elif self._eager:
                            self._eager -= 1
                        rounds, until = 0, now + SLICE
                        continue
            self._round(events, now, until)
            rounds += 1

    def _round(self, events: list[tuple[int, int]], now: float, until: float) -> None:
        """Read what is there, flush what is marked. The hot path of the daemon.

        Past `until` it stops, and leaves `_rest`, `_unflushed`, `_fresh` or `_buried` behind.
        """
        self._now = now
        self._until = until
        self._working = True
        self._batches += 1
        if self._fresh:
            self._feed(until)  # first: what came with a stream is older than what its socket has
        streams = self._streams
        before, small = now, 0
        self._only = len(events) == 1 and not self._dirty and not self._crowds
        self._apart = 0.0
        for fd, what in events:
            stream = streams[fd]
            if stream is None:
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                    continue
                ready = self._watched.get(fd)
                if ready is None:
                    continue
                try:
                    ready()
                except Exception:
                    log.exception("what is called for a descriptor failed", descriptor=fd)
                before, small = monotonic(), 0
                if before > until:
                    self._rest = events[events.index((fd, what)) + 1 :]
                    break
                continue
            read = stream.read
            if what == _IN and stream.plain:
                try:
                    data = stream.socket.recv(read)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.bury(stream, _why(error))
                    continue
                if not data:
                    self._peer_ended(stream)
                    continue
                size = len(data)
                stream.bytes_in += size
                try:
                    stream.endpoint.receive(data)
                except Exception as error:  # noqa: BLE001  # the guard: _failed logs it
                    self._failed(stream, error)
                if size < _SMALL:
                    small += 1
                    if small < _LOOK:
                        continue
            else:
                size = -stream.bytes_in
                self._rarely(stream, what)
                size += stream.bytes_in
            clock = monotonic()
            if self._apart:  # what the answers to others took says nothing of what its own bytes cost
                before += self._apart
                self._apart = 0.0
            if size == read or clock - before > SLICE:
                stream.pace(size, clock - before)
            if clock > until:
                self._rest = events[events.index((fd, what)) + 1 :]
                break
            before, small = clock, 0
        self._only = False
        if self._buried:
            self._bury_all(until)
        if self._crowds:
            crowds, self._crowds = self._crowds, []
            sends = 0
            for crowd, alone in crowds:
                sends = self._send_to_crowd(crowd, alone, until, sends)
            if self._buried:
                self._bury_all(until)
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            small = 0
            marked = iter(dirty)
            for outbox in marked:
                stream = outbox.stream
                if stream is None:
                    continue
                try:
                    if stream.slow:
                        self._flush(stream)
                    else:
                        size = outbox.size
                        chunks = outbox.take(WRITE, now)
                        if len(chunks) == 1:
                            [data] = chunks
                        elif size > _JOIN * len(chunks):
                            self._several(stream, chunks)
                            data = b""
                        else:
                            data = b"".join(chunks)
                        if data:
                            try:
                                sent = stream.socket.send(data)
                            except BlockingIOError:
                                sent = 0
                            stream.sent += sent
                            if sent == size:  # all that waited
                                if size < _SMALL:
                                    small += 1
                                    if small < _LOOK_SENT:
                                        continue
                            elif sent != len(data):
                                self._keep(stream, [memoryview(data)[sent:] if sent else data])
                            elif outbox.size:
                                self._dirty.append(outbox)
                except OSError as error:
                    self.bury(stream, _why(error))
                except Exception as error:  # noqa: BLE001  # the guard: _failed logs it
                    self._failed(stream, error)
                if monotonic() > until:
                    self._unflushed += marked
                    break
                small = 0
            if self._buried:
                self._bury_all(until)
        self._working = False

    def _send_to_crowd(self, crowd: Sequence[OutgoingOfCrowd], alone: list[bytes], until: float, since: int) -> int:
        """What the flush of each comes to, in the fewest words: most of what a publication costs is here.

        The clock was last looked at so many sends ago (`since`). Returns how many it is by now.
        """
        [data] = alone
        size = len(data)
        step = max(1, min(_LOOK_SENT, _LOOK_BYTES // size))
        at = 0
        while at < len(crowd):
            if since >= step:
                if monotonic() > until:
                    self._unflushed += crowd[at:]
                    break
                since = 0
            some = crowd[at : at + step - since]
            at += len(some)
            since += len(some)
            for outbox in some:
                stream = outbox.stream
                if stream is None:
                    continue
                if outbox.chunks is not alone or stream.slow:
                    self._dirty.append(outbox)
                    continue
                outbox.chunks = None
                outbox.size = 0
                outbox.left += 1
                try:
                    sent = stream.socket.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.bury(stream, _why(error))
                    continue
                stream.sent += sent
                if sent != size:
                    self._keep(stream, [memoryview(data)[sent:] if sent else data])
        return since

    def _catch_up(self, now: float, until: float) -> None:
        """A round for what earlier ones had no time to send or to end. Nothing is read, and nothing sent twice."""
        marked, self._dirty, self._unflushed = self._dirty, self._unflushed, []
        crowds, self._crowds = self._crowds, []
        self._round([], now, until)
        self._dirty = [*marked, *self._dirty]
        self._crowds = [*crowds, *self._crowds]

    # --- what comes from outside ---

    def adopt(
        self,
        sock: socket.socket,
        endpoint: Endpoint,
        outbox: Outgoing,
        *,
        tls: TlsLayer | None = None,
        received: bytes = b"",
    ) -> Stream:
        """Take a connected socket over; it is the reactor's from here on, and so is `outbox.stream`.

        `received` is plaintext that was read already: fed at the next batch. What the outbox holds is sent then too.
        Raises RuntimeError if the reactor does not run, and OSError if epoll takes no more (ENOSPC: the limit of
        /proc/sys/fs/epoll/max_user_watches); the socket stays the caller's then.
        """
        if self._epoll is None:
            raise RuntimeError("cannot take over a connection: the reactor is not running")
        fd = sock.fileno()
        if sock.gettimeout() != 0.0:
            sock.setblocking(False)
        if fd >= len(self._streams):
            self._grow(fd)
        stream = Stream(self, sock, endpoint, outbox, tls, self.now)
        self._epoll.register(fd, _IN)
        stream.events = _IN
        if self._rest:  # of a stream that had this descriptor before
            self._rest = [event for event in self._rest if event[0] != fd]
        self._streams[fd] = stream
        self._count += 1
        outbox.stream = stream
        if received or (tls is not None and tls.closed):
            stream.extra().received = received
            stream.plain = False
            self.feed_later(stream)
        if outbox.size or tls is not None:
            self.mark(outbox)
        return stream

    def watch(self, fd: int, ready: Callable[[], None]) -> Callable[[], None]:
        """Have `ready` called once a round for as long as a descriptor that is no stream's (a listening socket's) can
        be read. It must not block; what it raises is logged.

        Returns what ends it, which may be called twice, and has to be before the descriptor is closed. Raises
        RuntimeError if the reactor does not run, and OSError if epoll takes no more.
        """
        epoll = self._epoll
        if epoll is None:
            raise RuntimeError("cannot watch a descriptor: the reactor is not running")
        if fd >= len(self._streams):
            self._grow(fd)
        epoll.register(fd, _IN)
        self._watched[fd] = ready

        def end() -> None:
            if self._watched.get(fd) is ready:
                del self._watched[fd]
                if self._epoll is not None:
                    self._epoll.unregister(fd)

        return end

    def call_at(self, when: float, function: Callable[[], None]) -> Timer:
        """Call `function` once, in a batch of its own, when time.monotonic() has reached `when`."""
        return self._timers.call_at(when, function)

    def reconsider(self) -> None:
        """Rates have changed: ask every outbox that one holds back at once, instead of when it would have been time."""
        for stream in self._streams:
            if stream is not None and stream.rare is not None:
                stream.reconsider()

    def mark(self, outbox: Outgoing) -> None:
        """An outbox has become non-empty."""
        self._dirty.append(outbox)
        if self._parked:
            self._wake()

    def mark_crowd(self, outboxes: Sequence[OutgoingOfCrowd], alone: list[bytes]) -> None:
        """They have become non-empty: the one chunk of `alone`, their `chunks`, is all they hold, and may be sent."""
        self._crowds.append((outboxes, alone))
        if self._parked:
            self._wake()

    def send_at_once(self, outboxes: list[OutgoingOfCrowdT], data: bytes, messages: int) -> list[OutgoingOfCrowdT]:
        """See hub.outbox.Flusher. It is so while the only thing that a round has read is being served: whatever else
        is said in this round goes to who holds nothing by now, or waits behind it."""
        if not self._only:
            return outboxes
        self._only = False
        size = len(data)
        step = max(1, min(_LOOK_SENT, _LOOK_BYTES // size))
        encoder, rules = outboxes[0].encoder, outboxes[0].rules
        others: list[OutgoingOfCrowdT] = []
        begun = monotonic()
        until = self._now + SLICE
        for at in range(0, len(outboxes), step):
            if at and monotonic() > until:
                others += outboxes[at:]
                break
            for outbox in outboxes[at : at + step]:
                stream = outbox.stream
                if (
                    outbox.size
                    or outbox.encoder is not encoder
                    or outbox.rules is not rules
                    or outbox.flusher is not self
                    or stream is None
                    or stream.slow
                ):
                    others.append(outbox)
                    continue
                try:
                    sent = stream.socket.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    self.bury(stream, _why(error))
                    continue
                if sent != size:
                    stream.sent -= size - sent
                    self._keep(stream, [memoryview(data)[sent:] if sent else data])
        if others:
            left_out = set(others)
            outboxes = [outbox for outbox in outboxes if outbox not in left_out]
        if outboxes:
            self._owe(outboxes, size, messages)
        self._apart = monotonic() - begun
        return others

    def _owe(self, outboxes: list[OutgoingOfCrowdT], size: int, messages: int) -> None:
        """Count a send to all of these later: two counters of each were 2 % of what a message to a hundred costs."""
        owed = self._owed.get(outboxes[0])
        if owed is not None and owed[0] == outboxes:
            owed[1] += size
            owed[2] += messages
            return
        if owed is not None or len(self._owed) >= _OWED:
            self.settle()
        self._owed[outboxes[0]] = [outboxes, size, messages]

    def settle(self) -> None:
        """Count what was sent at once, now that somebody asks, or one of them goes."""
        if not self._owed:
            return
        owed, self._owed = self._owed, {}
        for outboxes, size, messages in owed.values():
            for outbox in outboxes:
                outbox.left += messages
                if outbox.stream is not None:
                    outbox.stream.sent += size

    def _wake(self) -> None:
        self._parked = False
        os.eventfd_write(self._wake_fd, 1)

    # --- for Stream ---

    def feed_later(self, stream: Stream) -> None:
        self._fresh.append(stream)
        if self._parked:
            self._wake()

    def arm(self, stream: Stream) -> None:
        """Tell epoll what the stream waits for now."""
        if stream.state == GONE or self._epoll is None:
            return
        wanted = 0
        if stream.state == LINGERING or (stream.state == OPEN and not stream.paused):
            wanted = _IN
        if stream.rest is not None:
            wanted |= _OUT
        if wanted == stream.events:
            return
        fd = stream.socket.fileno()
        try:
            if stream.events < 0:
                self._epoll.register(fd, wanted)
            else:
                self._epoll.modify(fd, wanted)
        except OSError as error:  # no memory, or no more watches
            self.bury(stream, _why(error))
            return
        stream.events = wanted

    def begin_closing(self, stream: Stream, why: str, within: float) -> None:
        rare = stream.extra()
        rare.why = why
        rare.received = b""
        if stream.paused:
            stream.paused = False
            self.paused -= 1
        stream.state = CLOSING
        stream.slow = True
        stream.plain = False
        rare.until = self.now + within
        if stream.rest is not None:
            self._await_end(stream)
        # where there is room for its last words, it says them in this round: no timer is needed till then, and what
        # epoll says of it meanwhile is not looked at
        self.mark(stream.outbox)

    def part(self, stream: Stream, last: bytes, why: str, within: float) -> None:
        """See Stream.part."""
        sock = stream.socket
        if stream.rare is not None:
            stream.rare.received = b""  # or it would stand before the peer's FIN for ever
        try:
            sent = sock.send(last, socket.MSG_MORE)  # until the shutdown sends it, and the FIN with it
            stream.sent += sent
            if sent == len(last):
                sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.bury(stream, _why(error))
            return
        if sent != len(last):
            self._keep(stream, [memoryview(last)[sent:]])
            if not stream.gone:  # epoll did have it
                self.begin_closing(stream, why, within)
            return
        if stream.paused:
            stream.paused = False
            self.paused -= 1
        stream.state = LINGERING
        stream.slow = True
        stream.plain = False
        self.arm(stream)
        if not stream.gone:
            self._linger(stream)

    def bury(self, stream: Stream, why: str) -> None:
        """It is gone: the socket is closed and the endpoint told at the end of the batch."""
        if stream.state == GONE:
            return
        if self._owed:
            self.settle()
        if stream.paused:
            stream.paused = False
            self.paused -= 1
        rare = stream.rare
        if rare is not None:
            why = rare.why or why
            rare.received = b""
            for timer in (rare.cut_off, rare.again):
                if timer is not None:
                    timer.cancel()
            rare.cut_off = rare.again = None
        if stream.state == LINGERING:
            self._lingering.pop(stream, None)
        stream.state = GONE
        stream.slow = True
        stream.plain = False
        stream.rest = None
        stream.outbox.stream = None
        fd = stream.socket.fileno()
        if fd < 0:  # somebody else has closed it, and epoll has forgotten it
            fd = self._streams.index(stream)
        elif self._epoll is not None and stream.events >= 0:
            self._epoll.unregister(fd)
        self._streams[fd] = None
        self._count -= 1
        self._buried.append((stream, why))
        if self._parked:
            self._wake()

    def release(self, stream: Stream) -> socket.socket:
        """Give an open stream's socket back: nothing is read from it or written to it here any more, and its endpoint
        hears nothing more. What its outbox holds stays there."""
        self.settle()
        if stream.paused:
            self.paused -= 1
        if self._epoll is not None and stream.events >= 0:
            self._epoll.unregister(stream.socket.fileno())
        stream.state = GONE
        stream.slow = True
        stream.plain = False
        stream.outbox.stream = None
        self._streams[stream.socket.fileno()] = None
        self._count -= 1
        return stream.socket

    # --- what is rare in a batch ---

    def _rarely(self, stream: Stream, what: int) -> None:
        """Everything but plain input on a plain open stream."""
        try:
            if what & _ERR and not self._error(stream):
                return
            if what & _OUT and stream.rest is not None:
                self._flush(stream, writable=True)
            if stream.state == GONE:
                return
            if what & _IN:
                self._read(stream)
            elif what & _HUP:
                self._hung_up(stream)
        except OSError as error:
            self.bury(stream, _why(error))
        except Exception as error:  # noqa: BLE001  # the guard: _failed logs it
            self._failed(stream, error)

    def _error(self, stream: Stream) -> bool:
        """EPOLLERR. False if the stream is gone."""
        number = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.bury(stream, os.strerror(number).lower())
            return False
        kept = None
        if stream.socket.getsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING):
            rare = stream.extra()
            if rare.looped is None:
                rare.looped = deque(maxlen=MAX_LOOPED)
            kept = rare.looped
        for _ in range(_QUEUED):
            packet = queued_packet(stream.socket, LOOPED if kept is not None else 1)
            if packet is None:
                break
            if kept is not None:
                kept.append(packet)
        return True

    def _read(self, stream: Stream) -> None:
        """One read of a stream in any state. Raises OSError."""
        if stream.state == CLOSING or stream.paused:
            return  # what epoll says was true as it said so
        if stream.rare is not None and stream.rare.received:
            self._feed_one(stream)
            return
        try:
            data = stream.socket.recv(stream.read)
        except BlockingIOError:
            return
        if stream.state == LINGERING:
            if not data:
                self.bury(stream, "")
            return
        if not data:
            self._peer_ended(stream)
            return
        stream.bytes_in += len(data)
        if stream.tls is None:
            self._give(stream, data)
            return
        tls = stream.tls
        try:
            plain = tls.receive(data)
        except ssl.SSLError as error:
            if stream.rest is None and tls.pending:  # an alert; nothing else can be sent any more
                stream.socket.send(tls.outgoing())
            self.bury(stream, f"cannot decrypt: {reason_of(error)}")
            return
        if plain:
            self._give(stream, plain)
        if tls.closed and stream.state == OPEN and not (stream.rare is not None and stream.rare.received):
            self._peer_ended(stream)
        elif tls.pending and stream.state != GONE:
            self._flush(stream)
            if tls.pending > _CONTROL:
                self.bury(stream, "did not read answers of TLS")

    def _hung_up(self, stream: Stream) -> None:
        """EPOLLHUP alone: both directions are shut (or a Unix peer is gone), and nobody is to read now."""
        if stream.paused and stream.state == OPEN:
            # what it sent before is still wanted; epoll would report this for ever meanwhile
            assert self._epoll is not None
            self._epoll.unregister(stream.socket.fileno())
            stream.events = -1
        elif stream.state == OPEN:  # resumed since epoll said so
            self._read(stream)
        else:
            self.bury(stream, "peer closed the connection")

    def _peer_ended(self, stream: Stream) -> None:
        stream.extra().peer_ended = True
        self.begin_closing(stream, "peer closed the connection", 5.0)

    def _failed(self, stream: Stream, error: Exception) -> None:
        """The guard: what an endpoint or an outbox raised."""
        if isinstance(error, NetdError) and stream.state == OPEN:
            log.debug("stream ended", why=str(error))
            stream.close(str(error), within=1.0)
        else:
            log.error("stream broke", exc_info=error)
            self.bury(stream, "internal error")

    def _feed(self, until: float) -> None:
        fresh, self._fresh = self._fresh, []
        rest = iter(fresh)
        for stream in rest:
            self._feed_one(stream)
            if monotonic() > until:
                self._fresh[:0] = rest
                break

    def _feed_one(self, stream: Stream) -> None:
        rare = stream.rare
        if rare is None or stream.paused or stream.state != OPEN:
            return
        received, rare.received = rare.received, b""
        stream.plain = stream.tls is None
        if received:
            self._give(stream, received)
        if stream.tls is not None and stream.tls.closed and stream.state == OPEN and not rare.received:
            self._peer_ended(stream)  # its close_notify came with what was read before

    def _give(self, stream: Stream, data: bytes) -> None:
        try:
            stream.endpoint.receive(data)
        except Exception as error:  # noqa: BLE001  # the guard: _failed logs it
            self._failed(stream, error)

    def _bury_all(self, until: float) -> None:
        while self._buried:
            buried, self._buried = self._buried, []
            rest = iter(buried)
            for stream, why in rest:
                if stream.rare is not None:
                    for written in stream.rare.waiting or ():
                        written.over()
                stream.socket.close()
                try:
                    stream.endpoint.ended(why)
                except Exception:
                    log.exception("an endpoint failed at its end")
                if monotonic() > until:
                    self._buried[:0] = rest
                    return

    # --- writing, when it is more than one send ---

    def _flush(self, stream: Stream, *, writable: bool = False) -> None:
        """Write what may be written now: whatever the hot path does not know. Raises OSError."""
        if stream.state in (GONE, LINGERING) or (stream.rest is not None and not writable):
            return
        chunks = stream.rest
        tls = stream.tls
        if chunks is None:
            outbox = stream.outbox
            taken = outbox.take(WRITE, self._now) if outbox.size else []
            if tls is not None:
                if taken:
                    tls.encrypt(taken)
                taken = [tls.outgoing()] if tls.pending else []
            if not taken:
                if outbox.size:
                    self._hold_back(stream)
                    if stream.state == CLOSING:
                        self._await_end(stream)
                elif stream.state == CLOSING:
                    self._say_goodbye(stream)
                return
            chunks = [*taken]
        sent = self._send(stream, chunks)
        waiting = stream.rare.waiting if stream.rare is not None else None
        for one in waiting or ():
            if sent >= one.least:
                one.done()
        if stream.rest is not None or stream.outbox.size or (tls is not None and tls.pending):
            if stream.state == CLOSING:
                self._await_end(stream)
            if stream.rest is None:
                self.mark(stream.outbox)
        elif stream.state == CLOSING:
            self._say_goodbye(stream)

    def _several(self, stream: Stream, chunks: list[bytes]) -> None:
        """Chunks too large to be joined, or none at all although something waits. Raises OSError."""
        if not chunks:
            self._hold_back(stream)
            return
        self._send(stream, [*chunks])
        if stream.rest is None and stream.outbox.size:
            self._dirty.append(stream.outbox)

    def _send(self, stream: Stream, chunks: list[bytes | memoryview]) -> int:
        """One send; what the kernel does not take becomes the stream's rest. Returns the bytes it took."""
        total = sum(map(len, chunks))
        try:
            if len(chunks) == 1:
                sent = stream.socket.send(chunks[0])
            elif total <= _JOIN * len(chunks) or len(chunks) > _CHUNKS:
                chunks = [b"".join(chunks)]
                sent = stream.socket.send(chunks[0])
            else:
                sent = stream.socket.sendmsg(chunks)
        except BlockingIOError:
            sent = 0
        stream.sent += sent
        if sent != total:
            self._keep(stream, _after(chunks, sent))
        elif stream.rest is not None:
            stream.rest = None
            stream.settle()
            self.arm(stream)
        return sent

    def _keep(self, stream: Stream, rest: list[bytes | memoryview]) -> None:
        """The socket is full: the kernel will say when it takes more."""
        stream.rest = rest
        stream.slow = True
        self.arm(stream)

    def _hold_back(self, stream: Stream) -> None:
        """Bytes wait and may not be sent yet: come back when the outbox' rate allows more."""
        outbox = stream.outbox
        delay = outbox.wait(self._now)
        if delay is None:
            return
        rare = stream.extra()
        if rare.again is not None:
            rare.again.cancel()
        rare.again = self.call_at(self._now + min(delay, _AGAIN), lambda: self.mark(outbox))

    def _say_goodbye(self, stream: Stream) -> None:
        """All is sent. Raises OSError."""
        rare = stream.extra()
        if stream.tls is not None and not rare.said_goodbye:
            rare.said_goodbye = True
            stream.tls.goodbye()
            if stream.tls.pending:
                self._await_end(stream)
                self.mark(stream.outbox)
                return
        if rare.peer_ended:
            self.bury(stream, rare.why)
            return
        stream.socket.shutdown(socket.SHUT_WR)
        stream.state = LINGERING
        self.arm(stream)
        if stream.gone:
            return  # epoll did not have it
        if rare.cut_off is not None:
            rare.cut_off.cancel()
            rare.cut_off = None
        if rare.until < self._now + _LINGER:
            rare.cut_off = self.call_at(rare.until, partial(self.bury, stream, rare.why))
        else:
            self._linger(stream)

    def _linger(self, stream: Stream) -> None:
        """Wait for the peer's FIN, for a bounded time."""
        until = self._lingering[stream] = self.now + _LINGER
        if not self._looking:
            self._look_at(until)

    def _look_at(self, when: float) -> None:
        self._looking = True
        self._timers.call_at(when, self._no_longer)

    def _no_longer(self) -> None:
        """End those who have lingered for long enough, and look again when the next one has."""
        now = self.now
        self._looking = False
        over = []
        for stream, until in self._lingering.items():
            if until > now + _SOON:
                self._look_at(until)
                break
            over.append(stream)
        for stream in over:
            self.bury(stream, "")

    def _await_end(self, stream: Stream) -> None:
        """It is closing, and something is in the way of its last words: what epoll has to say, for a bounded time."""
        rare = stream.extra()
        if rare.cut_off is None:
            rare.cut_off = self.call_at(rare.until, partial(self.bury, stream, rare.why))
        self.arm(stream)

    def _ring(self) -> None:
        """A batch of what is due. Outboxes that are marked meanwhile are flushed in a round of their own."""
        self._now = monotonic()
        self._working = True
        self._timers.call_due(self._now)
        self._working = False

    # --- inside ---

    def _grow(self, fd: int) -> None:
        self._streams.extend([None] * (fd + 64 - len(self._streams)))

    def _close_all(self) -> None:
        for stream in self.streams():
            self.bury(stream, "netd is stopping")
        self._bury_all(float("inf"))
        self._rest = []
        self._watched.clear()
        self._lingering.clear()
        self._looking = False
        self._dirty.clear()
        self._crowds.clear()
        self._unflushed.clear()
        self._fresh.clear()
        self._timers.clear()


def _after(chunks: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of `chunks` after their first `sent` bytes."""
    for number, chunk in enumerate(chunks):
        if sent < len(chunk):
            return [memoryview(chunk)[sent:] if sent else chunk, *chunks[number + 1 :]]
        sent -= len(chunk)
    return []


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"cannot encrypt: {reason_of(error)}"
    return (error.strerror or str(error)).lower()
