"""A client's connection for as long as the client lives: made again when lost, bounded both ways.

    users --send--> SendQueue --writer--> Wire ... Wire --reader--> Face (plain payloads or operations)
                                    |
                  run: dial, live, lose, back off, dial ...

The Transport makes wires (framed_wire.py: frames over TCP; broker_wire.py: a WebSocket); whatever carries whole
payloads in order can be one (seams.py).

Rules:
- users only enqueue: cancelling a `send` either leaves nothing behind or a whole frame. The writer sends, and a
  cancelled writer means a connection that is closed. Only a user who begins to wait for an answer does not wait for
  the writer's turn: what is queued goes to the kernel at once, as far as it takes it (`push`);
- what a lost connection had taken from the queue is gone as far as anybody knows; what is still queued goes over the
  next one;
- what a connection has to say first (handshake, hello, subscriptions) goes ahead of the queue;
- reading pauses while what was received is not read (inbox.py); a paused connection is not held to be silent;
- no error of the network leaves `run`: it is in the state, and is raised to whoever uses the client after its end.
"""

from __future__ import annotations

import math
import random
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, cast
from weakref import WeakSet

import trio

from netd.client.queue import NORMAL, SendQueue
from netd.client.seams import Ended, Loss
from netd.client.state import Backoff, Counters, State
from netd.client.states import States
from netd.errors import DaemonUnreachable, NetdError

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.inbox import Account
    from netd.client.options import ClientOptions
    from netd.client.queue import Ticket
    from netd.client.seams import Face, Transport, Wire

BATCH = 128 * 1024
"""Bytes the writer takes at once: what comes later with a lower number waits for so much at most, and for what the
kernel holds (trio keeps that small, TCP_NOTSENT_LOWAT)."""
AT_ONCE = 16 * 1024
"""Bytes that a task may queue before others have their turn."""
WORDLESS = 5.0
"""Seconds after which a peer that hangs up without having said anything did not miss anything at the beginning."""
LAST_WORDS = 1.0
"""Seconds that a broken connection is still read from."""


class Connection:
    """See the file's head. `face` may be changed before anything but the handshake was said."""

    def __init__(
        self, transport: Transport, options: ClientOptions, account: Account, face: Face | None = None
    ) -> None:
        """Without a `face`, that is to be set before `first`."""
        self.transport = transport
        self.address = transport.address
        self.options = options
        self.face = cast("Face", face)
        self.frame = transport.frame
        self.counters = Counters()
        self.state = State("connecting", attempt=1)
        self.error: NetdError | None = None
        """Why the client ended for good, if not by its own wish."""
        self.queue = SendQueue(options.queue_bytes, rate=options.rate, burst=options.burst, now=trio.current_time())
        self._account = account
        account.before_wait = self.push
        self._backoff = Backoff(options.again)
        self._watchers: WeakSet[States] = WeakSet()
        self._nursery: trio.Nursery
        # of the wire that lives
        self._wire: Wire | None = None
        self._scope = trio.CancelScope()
        self._loss: Loss | None = None
        self._write_failed: Loss | None = None
        self._first: list[bytes] = []
        self._ping: bytes | None = None
        self._pong: bytes | None = None
        self._writing = False
        self._paused = False
        # what tasks wait for
        self._wake = trio.Event()
        self._timers = trio.Event()
        self._renewal = trio.Event()
        self._idle = trio.Event()
        self._ended = trio.Event()
        self._senders = trio.lowlevel.ParkingLot()
        self._pressed = False
        self._finishing = False
        self._understood = False
        """Whether a peer has ever spoken what the face speaks."""
        self._started: Callable[[], None] | None = None

    # --- for users ----------------------------------------------------------------------------------------------------

    @property
    def wire(self) -> Wire | None:
        """The connection that lives, if one does."""
        return self._wire

    @property
    def over(self) -> bool:
        """Whether the client has ended for good."""
        return self.state.final

    async def send(self, payload: bytes, priority: int = NORMAL, ticket: Ticket | None = None) -> None:
        """Queue one frame, waiting while the queue is full."""
        framed = self.frame(payload)
        if framed and self.queue.size < AT_ONCE:
            # yielding after each would have the writer send them one by one: a system call for every small message
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        if self._senders or not self.queue.room(len(framed)):
            self.check_open()
            if not self._pressed:
                self._pressed = True
                self.counters.backpressure += 1
            await self._senders.park()
            while not self.over and not self.queue.room(len(framed)):
                await self._senders.park()
        try:
            self.check_open()
            self._put(framed, priority, ticket)
        finally:
            if self._senders and (self.over or self.queue.room(1)):
                self._senders.unpark()  # whoever waits behind us may fit too

    def send_nowait(self, payload: bytes, priority: int = NORMAL) -> None:
        """Queue one frame at once; trio.WouldBlock when the queue is full."""
        framed = self.frame(payload)
        self.check_open()
        if self._senders or not self.queue.room(len(framed)):
            raise trio.WouldBlock
        self._put(framed, priority, None)

    def put_again(self, payload: bytes, priority: int, ticket: Ticket) -> None:
        """Queue a frame that was in the queue before, whatever the bound."""
        self._put(self.frame(payload), priority, ticket)

    def say_first(self, payload: bytes) -> None:
        """Ahead of the queue, on the connection that lives only; nothing without one."""
        if self._wire is not None:
            self._first.append(self.frame(payload))
            self._wake.set()

    def say_pong(self, payload: bytes) -> None:
        """Ahead of the queue; the last one counts, so that a peer that only ever pings costs one frame of memory."""
        self._pong = self.frame(payload)
        self._wake.set()

    def push(self) -> None:
        """Send now what the writer would send next, unless it is at it."""
        wire = self._wire
        if wire is None or self._writing or self._finishing or wire.unsent or not self._wake.is_set():
            return
        if self.transport.pushes and (framed := self._next()):
            wire.send_nowait(framed)

    def changed(self) -> None:
        """The face has become ready, or has other timers now."""
        self._wake.set()
        self._timers.set()
        self._renewal.set()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Have it called, unless the client ends before."""
        self._nursery.start_soon(_called, seconds, call)

    def drop(self, loss: Loss) -> None:
        """End the connection that lives, for this reason."""
        if self._loss is None:
            self._loss = loss
        self._scope.cancel()

    def check_open(self) -> None:
        """Raise what ended the client, if something did."""
        if self.over:
            why = f": {self.state.reason}" if self.state.reason else ""
            raise self.error or DaemonUnreachable(f"cannot send to {self.address}: this client is closed{why}")

    async def flush(self) -> None:
        """Until everything queued was handed to the kernel, or the client has ended."""
        self.push()
        await trio.lowlevel.checkpoint()
        while not self.over and (self.queue or self._writing or self._first or self._unsent):
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    async def finish(self, last: bytes | None) -> None:
        """Send what is queued, then `last`, and part in peace; as long as that takes.

        What still arrives is discarded: closing a socket with unread input would reset the connection and could take
        our own last words with it (RFC 1122 section 4.2.2.13).
        """
        await self.flush()
        if self._wire is None or self.over:
            return
        if last is not None:
            self.say_first(last)
        self._finishing = self._wire.discarding = True
        self._wake.set()
        self._account.let_go()
        await self._ended.wait()

    @property
    def _unsent(self) -> bool:
        """Whether the kernel has not yet taken all that was pushed."""
        return self._wire is not None and self._wire.unsent

    def states(self) -> States:
        """Changes from now on, the present state first."""
        watcher = States(self._watchers)
        watcher.note(self.state)
        if not self.over:
            self._watchers.add(watcher)
        return watcher

    # --- across connections -------------------------------------------------------------------------------------------

    async def first(self, nursery: trio.Nursery) -> Wire:
        """The first connection. DaemonUnreachable, unless the policy is to be patient; then after max_attempts.

        `nursery` is for the tasks of wires, and lives as long as the client.
        """
        self._nursery = nursery
        self._note(State("connecting", attempt=1))
        try:
            try:
                return await self._dial()
            except DaemonUnreachable as error:
                policy = self._backoff.policy
                if not (policy.enabled and policy.patient):
                    raise
                wire = await self._again(Loss(str(error), least=error.retry_after))
                if wire is None:
                    assert self.error is not None
                    raise self.error from error
                return wire
        except NetdError as error:
            self._end(error)
            raise

    async def _dial(self) -> Wire:
        return await self.transport.dial(self._nursery, self.counters, self.face)

    async def run(self, wire: Wire, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live with this connection and those after it. Started once connected; returns when nothing more will be."""
        self._started = task_status.started
        try:
            while True:
                loss = await self._live(wire)
                self.face.lost(loss)
                if self._finishing:
                    return
                again = await self._again(loss)
                if again is None:
                    return
                wire = again
                self.counters.reconnects += 1
        finally:
            wire.close()
            self._end(None)

    async def _again(self, loss: Loss) -> Wire | None:
        """The next connection, after as many delays and attempts as it takes; None: there will be none."""
        if loss.ends:
            self._end(loss.error, loss.reason)
            return None
        reason, least = loss.reason, loss.least
        while True:
            delay = self._backoff.failed(random.random(), least=least)
            attempt, least = self._backoff.attempt, None
            if delay is None:
                self._end(self._gave_up(loss, reason), reason)
                return None
            self._note(State("backoff", attempt, delay, reason))
            await trio.sleep(delay)
            self._note(State("connecting", attempt))
            try:
                return await self._dial()
            except DaemonUnreachable as error:
                reason, least = str(error), error.retry_after
            except NetdError as error:  # a file of ours that is gone, a refusal: waiting will not mend it
                self._end(error)
                return None

    def _gave_up(self, loss: Loss, reason: str) -> NetdError | None:
        policy = self._backoff.policy
        if policy.enabled:
            tries = f"{policy.max_attempts} attempts failed" if policy.max_attempts != 1 else "an attempt failed"
            return DaemonUnreachable(f"cannot reach {self.address} again: {tries}, and at last: {reason}")
        return None if loss.clean else DaemonUnreachable(f"cannot go on with {self.address}: {reason}")

    def _note(self, state: State) -> None:
        self.state = state
        for watcher in self._watchers:
            watcher.note(state)
        if self.options.on_state is not None:
            self.options.on_state(state)

    def _end(self, error: NetdError | None, reason: str = "") -> None:
        """For good, once."""
        if self.over:
            return
        self.error = error
        self._ended.set()
        self._idle.set()
        self.queue.clear()
        self.face.closed(error)
        self._senders.unpark_all()
        try:
            self._note(State("closed", reason=str(error) if error is not None else reason))
        finally:
            self._watchers.clear()

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _live(self, wire: Wire) -> Loss:
        self._wire, self._loss, self._write_failed = wire, None, None
        self._scope = trio.CancelScope()
        self._first, self._ping, self._pong = [], None, None
        self._writing = self._paused = False
        wire.wake = self._wake.set
        self.counters.connections += 1
        ended: Loss | None = None
        try:
            with self._scope:
                if not self.transport.prepares:
                    try:
                        await self.face.prepare()
                    except NetdError as error:
                        return Loss(str(error))
                opening = [*self.transport.opening(), *self.face.opening()]
                self._first = [self.frame(payload) for payload in opening]
                self._note(State("connected"))
                started, self._started = self._started, None
                if started is not None:
                    started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, wire)
                    nursery.start_soon(self._watch, wire)
                    nursery.start_soon(self._renew)
                    ended = await self._read(wire)
                    nursery.cancel_scope.cancel()
        finally:
            self._wire = None
            wire.close()
        if trio.current_time() - wire.opened >= self._backoff.policy.steady:
            self._backoff.steady()
        return self._cause(wire, ended)

    def _cause(self, wire: Wire, ended: Loss | None) -> Loss:
        """Of all that went wrong, what came first: what we were told or decided, what reading met, what writing met."""
        if self.face.ready:
            self._understood = True
        elif not self._understood and self.counters.undecodable and (loss := self._loss or ended) is not None:
            return self._speaks_otherwise(loss)
        if self._loss is not None:
            return self._loss
        loss = ended or self._write_failed or Loss("the connection broke")
        if trio.current_time() - wire.opened < WORDLESS and not self.counters.bytes_in:
            missing = self.transport.missing(wire)
            reason = f"{loss.reason} before it said anything" + (f"; {missing}" if missing else "")
            if self.face.ready or self.counters.connections > 1 or self._backoff.policy.patient:
                return replace(loss, reason=reason)
            # the very first hello was not even refused: this is as good as a first connection that cannot be made
            error = DaemonUnreachable(f"cannot use operations with {self.address}: {reason}")
            return Loss(reason, ends=True, error=error)
        return loss

    def _speaks_otherwise(self, loss: Loss) -> Loss:
        """The first that a peer says is no answer to a hello: it would say the same on every connection."""
        error = DaemonUnreachable(
            f"cannot use operations with {self.address}: the peer does not speak them, or in another codec "
            f"({loss.reason}); {self.transport.otherwise}"
        )
        return Loss(loss.reason, ends=True, error=error)

    async def _read(self, wire: Wire) -> Loss:
        try:
            while True:
                if self._account.full and not self._finishing:
                    await self._pause(wire)
                payloads = await wire.receive()
                self.counters.messages_in += len(payloads)
                self.face.received(payloads)
        except Ended as end:
            return end.loss
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            return Loss(why(error))
        except NetdError as error:
            return Loss(str(error))

    async def _pause(self, wire: Wire) -> None:
        self.counters.pauses += 1
        self._paused = True
        await self._account.room()
        self._paused = False
        wire.heard = trio.current_time()
        self._timers.set()

    async def _write(self, wire: Wire) -> None:
        try:
            while True:
                framed = self._next()
                if framed or wire.unsent:
                    self._writing = True
                    await wire.send(framed)
                    self._writing = False
                    continue
                self._idle.set()
                if self._finishing:
                    await wire.say_goodbye()
                    return
                delay = self.queue.wait(trio.current_time()) if self.face.ready else None
                if delay is None:
                    await self._wake.wait()
                else:
                    with trio.move_on_after(delay):
                        await self._wake.wait()
                if self._wake.is_set():
                    self._wake = trio.Event()
                    wire.wake = self._wake.set
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
            # the peer may have said why, and that may lie in the kernel still: the reader has a moment to find it
            self._write_failed = Loss(why(error))
            await trio.sleep(LAST_WORDS)
            self._scope.cancel()

    def _next(self) -> list[bytes]:
        """What the writer sends now."""
        chunks, self._first = self._first, []
        for waiting in (self._ping, self._pong):
            if waiting is not None:
                chunks.append(waiting)
        self._ping = self._pong = None
        if self.face.ready:
            taken = self.queue.take(BATCH, trio.current_time())
            self.counters.messages_out += len(taken)
            chunks += taken
            if self._senders and self.queue.room(1):
                self._senders.unpark()
            if self._pressed and self.queue.size <= self.queue.bound // 8:
                self._pressed = False
                self.counters.drain += 1
        return chunks

    async def _watch(self, wire: Wire) -> None:
        """Pings, and what silence means."""
        pinged = trio.current_time()
        while True:
            now = trio.current_time()
            due = math.inf
            limits = [limit for limit in (self.options.idle_timeout, self.face.silence) if limit is not None]
            if limits and not self._paused:
                due = wire.heard + min(limits)
                if due <= now:
                    self.drop(Loss(f"nothing arrived for {min(limits):g} s"))
                    return
            heartbeat = self.options.heartbeat
            if heartbeat is None:
                # the peer's interval is about silence: whoever is heard need not be asked
                heartbeat, pinged = self.face.heartbeat, max(pinged, wire.heard)
            if heartbeat is not None and self.face.ready:
                if pinged + heartbeat <= now:
                    self._ping, pinged = self.frame(self.face.ping()), now
                    self._wake.set()
                due = min(due, pinged + heartbeat)
            with trio.move_on_at(due):
                await self._timers.wait()
            if self._timers.is_set():
                self._timers = trio.Event()

    async def _renew(self) -> None:
        """Have the face renew what would not last, in time."""
        while True:
            with trio.move_on_at(self.face.renews) as waited:
                await self._renewal.wait()
                self._renewal = trio.Event()
            if waited.cancelled_caught:
                await self.face.renew()

    def _put(self, framed: bytes, priority: int, ticket: Ticket | None) -> None:
        self.queue.put(framed, priority, ticket)
        self._wake.set()


async def _called(seconds: float, call: Callable[[], None]) -> None:
    await trio.sleep(seconds)
    call()


def why(error: BaseException) -> str:
    """The kernel's or OpenSSL's word behind what was raised."""
    if isinstance(error, ssl.SSLError):
        from netd.net.tls import reason_of

        return f"TLS failed: {reason_of(error)}"
    cause = error.__cause__ or error
    return (
        (cause.strerror or str(cause)).lower() if isinstance(cause, OSError) else str(cause) or "the connection broke"
    )
