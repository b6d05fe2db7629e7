"""A client's connection for as long as the client lives: made again when lost, bounded both ways.

    users --send--> SendQueue --writer--> Link ... Link --reader--> Face (plain payloads or operations)
                                    |
                  run: dial, live, lose, back off, dial ...

Rules:
- users only enqueue: cancelling a `send` either leaves nothing behind or a whole frame. The writer sends, and a
  cancelled writer means a connection that is closed. Only a user who begins to wait for an answer does not wait for
  the writer's turn: what is queued goes to the kernel at once, as far as it takes it (`push`);
- what a lost connection had taken from the queue is gone as far as anybody knows; what is still queued goes over the
  next one;
- what a connection has to say first (handshake, hello, subscriptions) goes ahead of the queue;
- reading pauses while what was received is not read (framed_inbox.py); a paused connection is not held to be silent;
- no error of the network leaves `run`: it is in the state, and is raised to whoever uses the client after its end.
"""

from __future__ import annotations

import math
import random
import ssl
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import trio

from netd.client.framed_link import dial
from netd.client.framed_queue import NORMAL, SendQueue
from netd.client.framed_state import Backoff, Counters, State
from netd.errors import DaemonUnreachable, NetdError, ProtocolError
from netd.wire.framing import FrameDecoder, FrameLimits, NoFraming, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from netd.client.framed_inbox import Account
    from netd.client.framed_link import Link
    from netd.client.framed_options import Options, Tcp, Unix
    from netd.client.framed_queue import Ticket
    from netd.wire.framing import Framing

BATCH = 128 * 1024
"""Bytes the writer takes at once: what comes later with a lower number waits for so much at most, and for what the
kernel holds (trio keeps that small, TCP_NOTSENT_LOWAT)."""
AT_ONCE = 16 * 1024
"""Bytes that a task may queue before others have their turn."""
_TLS_ALERT = b"\x15\x03"
"""How a TLS server begins its answer to what is no TLS (RFC 8446 section 5.1)."""
WORDLESS = 5.0
"""Seconds after which a peer that hangs up without having said anything did not miss anything at the beginning."""
LAST_WORDS = 1.0
"""Seconds that a broken connection is still read from."""


@dataclass(frozen=True)
class Loss:
    """Why a connection ended."""

    reason: str
    clean: bool = False
    """The peer said that no more comes, between two frames."""
    ends: bool = False
    """Connecting again would not help, or is not wanted."""
    error: NetdError | None = None
    """What the users of a client that ends are told; None: it ended in peace."""
    least: float | None = None
    """Seconds the peer asks us to stay away."""


class Face(Protocol):
    """What is spoken over a connection."""

    ready: bool
    """Whether the queue may go out."""
    heartbeat: float | None
    """Seconds between pings."""
    silence: float | None
    """Seconds without a byte after which the peer counts as gone."""

    async def prepare(self) -> None: ...  # whatever it takes to have an opening
    def opening(self) -> list[bytes]: ...  # payloads that begin a connection
    def ping(self) -> bytes: ...
    def received(self, payloads: list[bytes]) -> None: ...
    def lost(self, loss: Loss) -> None: ...
    def closed(self, error: NetdError | None) -> None: ...


class Connection:
    """See the file's head. `face` may be changed before anything but the handshake was said."""

    def __init__(self, address: Tcp | Unix, options: Options, account: Account, face: Face) -> None:
        self.address = address
        self.options = options
        self.face = face
        self.counters = Counters()
        self.state = State("connecting", attempt=1)
        self.error: NetdError | None = None
        """Why the client ended for good, if not by its own wish."""
        self.queue = SendQueue(options.queue_bytes, rate=options.rate, burst=options.burst, now=trio.current_time())
        self._signer = load_signer(options.signer)
        self._account = account
        account.before_wait = self.push
        self._limits = FrameLimits(options.max_frame)
        self._backoff = Backoff(options.again)
        self._watchers: list[States] = []
        # of the link that lives
        self._link: Link | None = None
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
    def link(self) -> Link | None:
        """The connection that lives, if one does."""
        return self._link

    @property
    def over(self) -> bool:
        """Whether the client has ended for good."""
        return self.state.final

    def frame(self, payload: bytes) -> bytes:
        """The payload as it goes over the wire. ProtocolError if it is longer than a frame may be."""
        if len(payload) > self.options.max_frame:
            raise ProtocolError(
                f"cannot send {len(payload)} bytes: max_frame is {self.options.max_frame}", origin="local", close=1009
            )
        return payload if self.options.framing == "none" else frame(payload)

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
        if self._link is not None:
            self._first.append(self.frame(payload))
            self._wake.set()

    def say_pong(self, payload: bytes) -> None:
        """Ahead of the queue; the last one counts, so that a peer that only ever pings costs one frame of memory."""
        self._pong = self.frame(payload)
        self._wake.set()

    def push(self) -> None:
        """Send now what the writer would send next, unless it is at it."""
        link = self._link
        if link is None or self._writing or self._finishing or link.unsent or not self._wake.is_set():
            return
        if data := self._next():
            link.send_nowait(data)
            self.counters.bytes_out += len(data)

    def changed(self) -> None:
        """The face has become ready, or has other timers now."""
        self._wake.set()
        self._timers.set()

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
        while not self.over and (len(self.queue) or self._writing or self._first or self._unsent):
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()

    async def finish(self, last: bytes | None) -> None:
        """Send what is queued, then `last`, and part in peace; as long as that takes.

        What still arrives is discarded: closing a socket with unread input would reset the connection and could take
        our own last words with it (RFC 1122 section 4.2.2.13).
        """
        await self.flush()
        if self._link is None or self.over:
            return
        if last is not None:
            self.say_first(last)
        self._finishing = True
        self._wake.set()
        self._account.let_go()
        await self._ended.wait()

    @property
    def _unsent(self) -> bool:
        """Whether the kernel has not yet taken all that was pushed."""
        return self._link is not None and self._link.unsent

    def states(self) -> States:
        """Changes from now on, the present state first."""
        watcher = States(self._watchers)
        watcher.note(self.state)
        if not self.over:
            self._watchers.append(watcher)
        return watcher

    # --- across connections -------------------------------------------------------------------------------------------

    async def first(self) -> Link:
        """The first connection. DaemonUnreachable, unless the policy is to be patient; then after max_attempts."""
        self._note(State("connecting", attempt=1))
        try:
            try:
                return await dial(self.address, self.options)
            except DaemonUnreachable as error:
                policy = self._backoff.policy
                if not (policy.enabled and policy.patient):
                    raise
                link = await self._again(Loss(str(error)))
                if link is None:
                    assert self.error is not None
                    raise self.error from error
                return link
        except NetdError as error:
            self._end(error)
            raise

    async def run(self, link: Link, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live with this connection and those after it. Started once connected; returns when nothing more will be."""
        self._started = task_status.started
        try:
            while True:
                loss = await self._live(link)
                self.face.lost(loss)
                if self._finishing:
                    return
                again = await self._again(loss)
                if again is None:
                    return
                link = again
                self.counters.reconnects += 1
        finally:
            link.close()
            self._end(None)

    async def _again(self, loss: Loss) -> Link | None:
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
                return await dial(self.address, self.options)
            except DaemonUnreachable as error:
                reason = str(error)
            except NetdError as error:  # a file of ours that is gone: waiting will not bring it back
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
        self._note(State("closed", reason=str(error) if error is not None else reason))
        self._watchers.clear()
        self._senders.unpark_all()

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _live(self, link: Link) -> Loss:
        self._link, self._loss, self._write_failed = link, None, None
        self._scope = trio.CancelScope()
        self._first, self._ping, self._pong = [], None, None
        self._writing = self._paused = False
        link.wake = self._wake.set
        self.counters.connections += 1
        ended: Loss | None = None
        try:
            with self._scope:
                try:
                    await self.face.prepare()
                except NetdError as error:
                    return Loss(str(error))
                opening = [*first_payloads(self.options, self._signer), *self.face.opening()]
                self._first = [self.frame(payload) for payload in opening]
                self._note(State("connected"))
                started, self._started = self._started, None
                if started is not None:
                    started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, link)
                    nursery.start_soon(self._watch, link)
                    ended = await self._read(link)
                    nursery.cancel_scope.cancel()
        finally:
            self._link = None
            link.close()
        if trio.current_time() - link.opened >= self._backoff.policy.steady:
            self._backoff.steady()
        return self._cause(link, ended)

    def _cause(self, link: Link, ended: Loss | None) -> Loss:
        """Of all that went wrong, what came first: what we were told or decided, what reading met, what writing met."""
        if self.face.ready:
            self._understood = True
        elif not self._understood and self._loss is not None and self.counters.undecodable:
            return self._speaks_otherwise(self._loss)
        if self._loss is not None:
            return self._loss
        loss = ended or self._write_failed or Loss("the connection broke")
        if trio.current_time() - link.opened < WORDLESS and not self.counters.bytes_in:
            return replace(loss, reason=f"{loss.reason} before it said anything; {self._wanted(link)}")
        return loss

    def _speaks_otherwise(self, loss: Loss) -> Loss:
        """The first that a peer says is no answer to a hello: it would say the same on every connection."""
        error = DaemonUnreachable(
            f"cannot use operations with {self.address}: the peer does not speak them, or in another codec "
            f"({loss.reason}); is its mode operations?"
        )
        return Loss(loss.reason, ends=True, error=error)

    def _wanted(self, link: Link) -> str:
        """What a peer may miss that hangs up without a word."""
        shake = "another handshake" if self.options.greets else "a handshake"
        return f"does it want {shake if link.tls else f'TLS, or {shake}'}?"

    async def _read(self, link: Link) -> Loss:
        decoder: Framing = (NoFraming if self.options.framing == "none" else FrameDecoder)(self._limits)
        try:
            while True:
                if self._account.full and not self._finishing:
                    await self._pause(link)
                data = await link.receive()
                if not data:
                    if decoder.buffered:
                        return Loss("the peer ended the connection in the middle of a frame")
                    if link.torn:
                        return Loss("the connection ended without TLS saying so")
                    return Loss("the peer ended the connection", clean=True)
                self.counters.bytes_in += len(data)
                if self._finishing:
                    continue
                if payloads := decoder.receive(data):
                    self.counters.messages_in += len(payloads)
                    self.face.received(payloads)
                if decoder.error is not None:
                    alert = not link.tls and data.startswith(_TLS_ALERT)
                    return Loss(f"{decoder.error}{'; does it want TLS?' if alert else ''}")
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            return Loss(_why(error))
        except NetdError as error:
            return Loss(str(error))

    async def _pause(self, link: Link) -> None:
        self.counters.pauses += 1
        self._paused = True
        await self._account.room()
        self._paused = False
        link.heard = trio.current_time()
        self._timers.set()

    async def _write(self, link: Link) -> None:
        try:
            while True:
                data = self._next()
                if data or link.unsent:
                    self._writing = True
                    await link.send(data)
                    self._writing = False
                    self.counters.bytes_out += len(data)
                    continue
                self._idle.set()
                if self._finishing:
                    await link.say_goodbye()
                    return
                delay = self.queue.wait(trio.current_time()) if self.face.ready else None
                if delay is None:
                    await self._wake.wait()
                else:
                    with trio.move_on_after(delay):
                        await self._wake.wait()
                if self._wake.is_set():
                    self._wake = trio.Event()
                    link.wake = self._wake.set
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
            # the peer may have said why, and that may lie in the kernel still: the reader has a moment to find it
            self._write_failed = Loss(_why(error))
            await trio.sleep(LAST_WORDS)
            self._scope.cancel()

    def _next(self) -> bytes:
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
        return b"".join(chunks)

    async def _watch(self, link: Link) -> None:
        """Pings, and what silence means."""
        pinged = trio.current_time()
        while True:
            now = trio.current_time()
            due = math.inf
            limits = [limit for limit in (self.options.idle_timeout, self.face.silence) if limit is not None]
            if limits and not self._paused:
                due = link.heard + min(limits)
                if due <= now:
                    self.drop(Loss(f"nothing arrived for {min(limits):g} s"))
                    return
            heartbeat = self.options.heartbeat
            if heartbeat is None:
                # the peer's interval is about silence: whoever is heard need not be asked
                heartbeat, pinged = self.face.heartbeat, max(pinged, link.heard)
            if heartbeat is not None and self.face.ready:
                if pinged + heartbeat <= now:
                    self._ping, pinged = self.frame(self.face.ping()), now
                    self._wake.set()
                due = min(due, pinged + heartbeat)
            with trio.move_on_at(due):
                await self._timers.wait()
            if self._timers.is_set():
                self._timers = trio.Event()

    def _put(self, framed: bytes, priority: int, ticket: Ticket | None) -> None:
        self.queue.put(framed, priority, ticket)
        self._wake.set()


class States:
    """The connection's states as they change: an async iterator that ends after "closed".

    At most KEPT are kept for a reader that does not read; the oldest go.
    """

    KEPT = 64

    def __init__(self, watchers: list[States]) -> None:
        self._watchers = watchers
        self._kept: deque[State] = deque(maxlen=self.KEPT)
        self._changed = trio.Event()
        self._over = False

    def note(self, state: State) -> None:
        self._kept.append(state)
        self._changed.set()

    def __aiter__(self) -> States:
        return self

    async def __anext__(self) -> State:
        await trio.lowlevel.checkpoint()
        while not self._kept:
            if self._over:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        state = self._kept.popleft()
        self._over = state.final
        return state

    def close(self) -> None:
        """Nobody reads any more."""
        if self in self._watchers:
            self._watchers.remove(self)


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


def _why(error: BaseException) -> str:
    """The kernel's or OpenSSL's word behind what was raised."""
    if isinstance(error, ssl.SSLError):
        from netd.net.tls import reason_of

        return f"TLS failed: {reason_of(error)}"
    cause = error.__cause__ or error
    return (
        (cause.strerror or str(cause)).lower() if isinstance(cause, OSError) else str(cause) or "the connection broke"
    )
