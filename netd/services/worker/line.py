"""One worker's connection: its reader and its writer, and what the pool says to it.

    accept --peer allowed--> Line.run --hello--> joined to the pool --...--> goodbye, or gone

Rules:
- the pool and the hub only append to what waits to be written (`tell`), and never wait; what waits past `buffer` stops
  the reader, as do _ANSWERS verbs that wait for an answer, and the pool sees that there is no room;
- a line ends once, and says why where the worker may still read it; a hung one is hardly waited for;
- what goes wrong with one line stays with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, cast

import structlog
import trio

from netd import __version__
from netd.errors import ProtocolError
from netd.services.worker.protocol import Conversation
from netd.services.worker.seats import Worker
from netd.services.worker.views import WorkerView
from netd.wire.workers import VERSION, Answer, Done, Drain, Error, Goodbye, Hello, Leave, Response, Welcome

if TYPE_CHECKING:
    from typing import Literal

    from netd.services.worker.config import WorkerConfig
    from netd.services.worker.pool import Pool
    from netd.services.worker.programs import Program
    from netd.services.worker.verbs import Verbs
    from netd.wire.workers import FromWorker, ToWorker, Verb

_READ = 65536
_ANSWERS = 1024
"""Verbs that may wait for an answer, which may be of `max_frame` each."""
_FAREWELL = 2.0
"""Seconds for a goodbye, and what waits before it, to be read."""
_SHORT = 0.2
"""The same for a hung worker: enough for one that reads but whose handlers do not end."""

log = structlog.get_logger("netd.worker")


class Owner(Protocol):
    """Who has the lines."""

    def greeted(self, line: Line, hello: Hello) -> None:
        """It has said hello, and is a worker."""

    def progressed(self) -> None:
        """Something was received."""


class Line:
    """One connection. `pid` and `uid` are the peer's, as of its connect(2)."""

    def __init__(
        self,
        stream: trio.SocketStream,
        config: WorkerConfig,
        pool: Pool,
        verbs: Verbs,
        owner: Owner,
        *,
        pid: int,
        uid: int,
    ) -> None:
        self.pid = pid
        self.uid = uid
        self.program: Program | None = None
        self.worker: Worker | None = None
        self.connected = time.time()
        self.since = trio.current_time()
        self.goodbye: Goodbye | None = None
        """What it ended with, unless it just went."""
        self.hung = False
        self.retiring: float | None = None
        """Until when (trio time) what it has in hand may take."""
        self.asked = False
        """It wanted to go."""
        self.retry = False
        """Whether it had better come again at once."""
        self.config = config
        self.conversation = Conversation(config, trio.current_time())
        self._stream = stream
        self._pool = pool
        self._verbs = verbs
        self._owner = owner
        self._out: list[bytes] = []
        self._size = 0
        self._writable = trio.Event()
        """Something waits to be written."""
        self._relief = trio.lowlevel.ParkingLot()
        """Whoever waits for less to wait."""
        self._over = trio.Event()
        self._gone = False
        self._asked = 0
        """Verbs that wait for an answer."""
        self._window = config.window
        """What its welcome said."""

    # --- the pool's link ---

    @property
    def room(self) -> bool:
        return self._size < self.config.buffer and self.goodbye is None and not self._gone

    def tell(self, message: ToWorker) -> bool:
        if self.goodbye is not None or self._gone:
            return True  # it goes the way of all that was on its way to a worker that has gone
        try:
            data = self.conversation.write(message)
        except ProtocolError as error:
            log.error("cannot tell a worker", worker=self._number, why=str(error))
            return False
        if data is None:
            return False
        self._push(data)
        if isinstance(message, Answer | Error) and message.ref is not None:
            self._asked -= 1
            if self._asked == _ANSWERS - 1:
                self._relief.unpark_all()
        return True

    def finished(self) -> None:
        self.end(Goodbye("drained", "nothing is left to be done", self.retry))

    # --- for the service ---

    async def run(self) -> None:
        """The connection's life. Raises nothing but Cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read)
                await self._over.wait()
                if not self._gone:
                    with trio.move_on_after(_SHORT if self.hung else _FAREWELL):
                        while self._size:
                            await self._relief.park()
                nursery.cancel_scope.cancel()
        finally:
            self.shut()

    def shut(self) -> None:
        """It is over, as far as it ever began. Safe to call again."""
        self._leave()
        self._stream.socket.close()

    def reconfigure(self, config: WorkerConfig) -> None:
        """Other limits from now on."""
        self.config = config
        if self.worker is not None:
            # more than was promised in the welcome, its end could not keep
            self.worker.window = min(config.window, self._window)

    def end(self, goodbye: Goodbye) -> None:
        """Say so, and end it. Only the first counts."""
        if self.goodbye is not None or self._gone:
            return
        data = self.conversation.write(goodbye)
        self.goodbye = goodbye
        if data is not None:
            self._push(data)
        self._leave()
        self._over.set()

    def hang_up(self, why: str) -> None:
        """It is hung: nobody waits for it any more."""
        self.hung = True
        self.end(Goodbye("hung", why, True))

    def retire(self, seconds: float, *, retry: bool = False, asked: bool = False) -> None:
        """Have it go, with so much time for what it has in hand. Not `asked`: it is our wish, and it is told."""
        if self.worker is None:
            self.end(Goodbye("stopping", "no worker is taken any more", retry))
        elif self.retiring is None:
            self.retiring = trio.current_time() + seconds
            self.retry, self.asked = retry, asked
            if not asked:
                self.tell(Drain(seconds))
            self._pool.retire(self.worker)

    def look(self, now: float) -> None:
        """What time demands."""
        self.conversation.config = self.config
        ping = self.conversation.look(now)
        fault = self.conversation.fault
        if ping is not None:
            self.tell(ping)
        elif fault is not None and fault.code == "hung":
            self.hang_up(fault.reason)
        elif fault is not None:
            self.end(fault)
        if self.retiring is not None and now > self.retiring:
            self.end(Goodbye("drained", "its time is up", self.retry))

    def view(self) -> WorkerView | None:
        """None before its hello."""
        worker, hello = self.worker, self.conversation.hello
        if worker is None or hello is None:
            return None
        return WorkerView(
            id=worker.id,
            name=hello.name,
            state="hung" if self.hung else worker.state,
            pid=self.pid,
            uid=self.uid,
            library=hello.library,
            handlers=sorted(hello.handlers),
            program=None if self.program is None else self.program.number,
            connected=self.connected,
            age=trio.current_time() - self.since,
            sessions=len(worker.seats),
            in_flight=len(worker.open),
            requests=worker.requests,
            waiting=len(worker.line),
            queued_bytes=self._size,
            handled=worker.handled,
            cancelled=worker.cancelled,
            refused=worker.refused,
        )

    # --- inside ---

    @property
    def _number(self) -> int | None:
        return None if self.worker is None else self.worker.id

    def _push(self, data: bytes) -> None:
        self._out.append(data)
        self._size += len(data)
        self._writable.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._writable.wait()
                self._writable = trio.Event()
                chunks, self._out = self._out, []
                data = b"".join(chunks)
                await self._stream.send_all(data)
                self._size -= len(data)
                self._relief.unpark_all()
                worker, pool = self.worker, self._pool
                if worker is not None and self.room and not self._gone and (worker.line or pool.waiting_requests):
                    pool.relieved(worker)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose()

    async def _read(self) -> None:
        try:
            while self.goodbye is None:
                data = await self._stream.receive_some(_READ)
                if not data:
                    break
                await self._receive(data)
            else:
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("worker's connection broke", worker=self._number, why=str(error))
        except Exception:
            log.exception("worker's connection failed inside", worker=self._number)
        self._lose()

    def _lose(self) -> None:
        self._gone = True
        self._leave()
        self._over.set()

    async def _receive(self, data: bytes) -> None:
        conversation = self.conversation
        for message in conversation.receive(data):
            # after each of them: a short question may have a long answer
            while (self._size >= self.config.buffer or self._asked >= _ANSWERS) and self.goodbye is None:
                await self._relief.park()
            if self.goodbye is not None:
                return
            self._take(message)
        if conversation.fault is not None:
            self.end(conversation.fault)
        self._owner.progressed()

    def _take(self, message: FromWorker) -> None:
        worker = self.worker
        if isinstance(message, Hello):
            self._welcome(message)
        elif worker is None:
            self.end(Goodbye("invalid", "cannot take anything before the hello"))
        elif isinstance(message, Done):
            for n in message.n:
                if not self._pool.done(worker, n):
                    self.end(Goodbye("invalid", f"cannot take that {n} is done: it is no event that it has in hand"))
                    return
        elif isinstance(message, Response):
            if not self._pool.answered(worker, message.n, message.response):
                self.end(Goodbye("invalid", f"cannot take an answer to {message.n}: it is no request that it has"))
        elif isinstance(message, Leave):
            self.retire(self.config.drain, asked=True)
        else:
            verb = cast("Verb", message)  # Pong stays in the conversation
            self._asked += verb.ref is not None
            self._verbs.perform(verb, self.tell)

    def _welcome(self, hello: Hello) -> None:
        config, pool = self.config, self._pool
        self._window = config.window
        number, pool.next_id = pool.next_id, pool.next_id + 1
        self.worker = Worker(
            number,
            self,
            frozenset(hello.handlers),
            sessions_at_once=hello.sessions,
            requests_at_once=hello.requests,
            window=config.window,
        )
        self.tell(
            Welcome(
                version=VERSION,
                worker=number,
                server="netd",
                release=__version__,
                max_frame=config.max_frame,
                ping=config.ping,
                hang=config.hang,
                request_timeout=config.request_timeout,
                message_timeout=config.message_timeout,
                window=config.window,
            )
        )
        self._owner.greeted(self, hello)
        pool.join(self.worker)

    def _leave(self) -> None:
        """The pool goes on without it. Safe to call again."""
        if self.worker is not None:
            status: Literal[502, 504] = 504 if self.hung else 502
            self._pool.leave(self.worker, status)
