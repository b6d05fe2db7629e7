"""The worker service's Trio shell: the socket, the lines of workers, the programs, reload and drain.

    accept --SO_PEERCRED--> Line --hello--> the Pool <--Application-- hub, broker
                                                \\--no worker--> Echo
    generation 1  accepts ......... drains: its workers finish, and come again
    generation 2         starts --> owns the pool, its limits ...
    the Room      pool, application: of the service type, outlives both

Rules:
- sessions belong to the pool: a replacement takes them over with what waits of them. Workers are drained and come again
  by themselves; the daemon's own end, and the replacement has started its own by then;
- a stop lets workers hear of what happened until then, for as long as half of the time there is; they come again when
  the daemon does, unless it was by hand that one was told to go;
- who is no worker (another account, one too many, no hello) is told why and closed.

Left out: what goes to whom (pool.py), what workers ask for (verbs.py).
"""

from __future__ import annotations

import grp
import os
import pwd
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import NotFound, PrepareFailed
from netd.hub.seams import Echo
from netd.net.http import ends_of
from netd.runtime.programs import account_of, obstacle, own_directories
from netd.runtime.service import ServiceType, refusals
from netd.section import Listen
from netd.services.worker.config import WorkerConfig
from netd.services.worker.counters import Collector
from netd.services.worker.line import Line
from netd.services.worker.notices import Joined, Left
from netd.services.worker.pool import Pool
from netd.services.worker.programs import Programs
from netd.services.worker.verbs import Verbs
from netd.services.worker.views import ProgramView, WorkerSnapshot
from netd.wire.workers import Goodbye

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netd.errors import ApplicationError, ConfigProblem
    from netd.hub.hub import Hub
    from netd.hub.session import Session
    from netd.runtime.listeners import Listener
    from netd.runtime.programs import Account
    from netd.runtime.service import Context
    from netd.services.worker.views import WorkerView
    from netd.wire.workers import Hello, HttpRequest, HttpResponse

_FAREWELL = 1.0
"""Seconds for the last goodbyes."""

_OFTEN = 0.01
"""Seconds between two looks at the workers, at the least."""

log = structlog.get_logger("netd.worker")


class Room:
    """Of one service type: what outlives its generations."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.owner: WorkerService | None = None
        """The generation that answers for the sessions."""
        self.rejected = 0
        self._pool: Pool | None = None

    def pool(self, config: WorkerConfig, context: Context) -> Pool:
        """Made for the first generation."""
        if self._pool is None:
            echo = Echo()
            self._pool = Pool(config, clock=time.monotonic, echo=echo.message, sessions=self.hub.present)
            context.metrics.registry.register(Collector(self._pool))
        return self._pool

    def take_over(self, owner: WorkerService, application: Application) -> None:
        self.owner = owner
        self.hub.application = application

    def give_up(self, owner: WorkerService) -> None:
        """There is nobody any more who would answer, unless another generation has taken over."""
        if self.owner is owner:
            self.owner = None
            self.hub.application = Echo()
            if self._pool is not None:
                self._pool.end()


class Application:
    """hub.seams.Application: what has no worker is echoed, or refused."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._echo = Echo()

    def opened(self, session: Session) -> None:
        self._pool.opened(session)

    def message(self, session: Session, data: str | bytes) -> None:
        if not self._pool.message(session, data):
            self._echo.message(session, data)

    def closed(self, session: Session, code: int, reason: str) -> None:
        self._pool.closed(session, int(code), reason)

    def resumed(self, session: Session, former: str) -> None:
        self._pool.resumed(session, former)

    async def request(self, request: HttpRequest) -> HttpResponse:
        outcome: list[HttpResponse | ApplicationError] = []
        over = trio.Event()

        def answer(what: HttpResponse | ApplicationError) -> None:
            outcome.append(what)
            over.set()

        pool = self._pool
        seconds = pool.config.request_timeout
        ticket = pool.ask(request, answer)
        timeout = False
        try:
            with trio.move_on_after(seconds) as scope:
                await over.wait()
            timeout = scope.cancelled_caught
        finally:
            pool.abandon(ticket, timeout=timeout)
        if not outcome:
            raise pool.late(ticket, seconds)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


class PreparedWorker:
    """What `prepare` acquired."""

    def __init__(self, listener: Listener | None, account: Account | None) -> None:
        self.listener = listener
        self.account = account

    def close(self) -> None:
        """The listener goes with its leases."""


async def prepare(config: WorkerConfig, context: Context) -> PreparedWorker:
    """Listen, and find what is to be started. Raises PrepareFailed."""
    account = await trio.to_thread.run_sync(runnable, config, context.state_directory)
    if config.socket is None:
        return PreparedWorker(None, account)
    listen = Listen(address=f"unix:{config.socket}")
    listener = await context.listeners.open(listen, mode=config.mode, group=config.group)
    return PreparedWorker(listener, account)


def runnable(config: WorkerConfig, state: Path | None = None) -> Account | None:
    """Whom the daemon's own workers run as; None: its own account. `state`: where it keeps its own. Blocks. Raises
    PrepareFailed."""
    if not config.command:
        return None
    program = config.command[0]
    if config.socket is None:
        raise PrepareFailed("worker", f"cannot start {program!r}: there is no socket for workers (worker.socket)")
    account = None
    if config.user is not None:
        account = account_of(config.user, "worker", group=config.group)
    elif os.geteuid() == 0:
        why = "set worker.user, or ask as the account that the daemon runs as"
        raise PrepareFailed("worker", f"cannot start a worker as root, who may control the daemon: {why}")
    variables, directory = config.environment, str(config.directory)
    hidden = own_directories(state)
    why_not = obstacle(config.command, variables=variables, directory=directory, account=account, hidden=hidden)
    if why_not is not None:
        whom = "" if account is None else f" as {account.name!r} (worker.user)"
        raise PrepareFailed(
            "worker",
            f"cannot start {program!r} in {directory!r}{whom}: {why_not}; change worker.command or worker.directory, "
            f"or let {'the daemon' if account is None else 'that account'} use them",
        )
    if account is not None and not _may_connect(config, account):
        raise PrepareFailed(
            "worker",
            f"cannot start {program!r} as {account.name!r} (worker.user): it could not connect to "
            f"{str(config.socket)!r}; have that belong to a group whose members may write (worker.group, worker.mode)",
        )
    return account


def _may_connect(config: WorkerConfig, account: Account) -> bool:
    """Whether the socket will let it in. Blocks."""
    if account.uid in (0, os.geteuid()) or config.mode & 0o002:
        return True
    try:
        gid = os.getegid() if config.group is None else _gid(config.group)
    except KeyError:
        gid = os.getegid()
    return gid in account.groups and bool(config.mode & 0o020)


def check(config: WorkerConfig) -> Iterator[ConfigProblem]:
    """What `prepare` would refuse but for the listening itself. Blocks."""
    yield from refusals("command", partial(runnable, config))


class WorkerService:
    """One generation."""

    def __init__(self, config: WorkerConfig, prepared: PreparedWorker, context: Context, *, room: Room) -> None:
        self._config = config
        self._listener = prepared.listener
        self._context = context
        self._room = room
        self._pool = room.pool(config, context)
        self._verbs = Verbs(room.hub, self._pool)
        self._lines: dict[Line, None] = {}
        self._progress = trio.lowlevel.ParkingLot()
        """Whoever waits for workers to do something, or to go."""
        self._programs = Programs(config, prepared.account, context)
        self._own = {0, os.geteuid()} | ({prepared.account.uid} if prepared.account is not None else set())
        """Accounts that may always be workers."""

    # --- the Service protocol ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        context, room = self._context, self._room
        try:
            async with trio.open_nursery() as lines:
                async with trio.open_nursery() as programs:
                    async with trio.open_nursery() as serving:
                        self._take_over()
                        programs.start_soon(self._programs.run)
                        if self._listener is not None:
                            serving.start_soon(self._accept, self._listener, lines)
                        lines.start_soon(self._look_always)
                        await self._look_at_group()
                        task_status.started()
                        await context.draining.wait()
                        serving.cancel_scope.cancel()
                    await self._drain()
                lines.cancel_scope.cancel()
        finally:
            room.give_up(self)

    def reconfigure(self, config: WorkerConfig) -> None:
        self._config = self._programs.config = config
        if self._room.owner is self:
            self._pool.config = config
        for line in self._lines:
            line.reconfigure(config)

    @property
    def config(self) -> WorkerConfig:
        """As it is now."""
        return self._config

    def snapshot(self) -> WorkerSnapshot:
        pool = self._pool
        return WorkerSnapshot(
            socket=None if self._config.socket is None else str(self._config.socket),
            workers=self.workers(),
            programs=[ProgramView(each.number, each.pid, each.starts, each.ended) for each in self._programs.places],
            sessions=len(pool.seats),
            unassigned=pool.unassigned,
            waiting_events=pool.waiting_events,
            waiting_bytes=pool.bytes,
            waiting_requests=pool.waiting_requests,
            joined=pool.joined,
            crashed=pool.crashed,
            hung=pool.hung,
            rejected=self._room.rejected,
            handled=pool.handled,
            cancelled=pool.cancelled,
            lost=pool.lost,
            dropped=pool.dropped,
            moved=pool.moved,
            pauses=pool.pauses,
            requests=dict(pool.requests),
        )

    # --- for REST ---

    def workers(self) -> list[WorkerView]:
        """Those that are connected, the oldest first."""
        views = (line.view() for line in self._lines)
        return sorted((view for view in views if view is not None), key=lambda view: view.id)

    def worker(self, id: int) -> WorkerView:
        """Raises NotFound."""
        view = self._line(id).view()
        assert view is not None
        return view

    def drain(self, id: int) -> WorkerView:
        """Have a worker finish what it has in hand, and go. Raises NotFound."""
        self._line(id).retire(self._config.drain)
        return self.worker(id)

    def disconnect(self, id: int) -> WorkerView:
        """End a worker's connection at once. Raises NotFound."""
        line = self._line(id)
        view = self.worker(id)
        line.end(Goodbye("stopping", "disconnected by hand"))
        return view

    def _line(self, id: int) -> Line:
        for line in self._lines:
            if line.worker is not None and line.worker.id == id:
                return line
        raise NotFound(f"cannot find worker {id}: it is not connected")

    # --- inside ---

    def _take_over(self) -> None:
        """From here on this generation answers for the sessions, and its limits hold. Cannot fail."""
        pool = self._pool
        pool.config = self._config
        self._room.take_over(self, Application(pool))
        # without a command nobody is waited for, whom the generation before may have waited for
        pool.wait(self._config.wait if self._config.command else 0.0, self._config.count)

    async def _look_at_group(self) -> None:
        config = self._config
        if not await trio.to_thread.run_sync(_has_its_group, config):
            self._context.health.warn(
                "group",
                f"cannot let members of {config.group!r} be workers: {str(config.socket)!r} has another group",
                advice="make the group, add the daemon's account to it, and restart netd; or set worker.group",
            )

    async def _accept(self, listener: Listener, lines: trio.Nursery) -> None:
        while True:
            stream = await listener.accept()
            peer = ends_of(stream).peer
            if peer is None:  # gone before it was accepted
                stream.socket.close()
                continue
            line = Line(stream, self._config, self._pool, self._verbs, self, pid=peer.pid, uid=peer.uid)
            many = len(self._lines) >= self._config.max_workers
            self._lines[line] = None
            lines.start_soon(self._serve, line, many)

    async def _serve(self, line: Line, many: bool) -> None:
        """One connection, to its end. Nothing of it gets out but Cancelled."""
        try:
            if many:
                most = self._config.max_workers
                line.end(Goodbye("too-many", f"there are {most} workers already (worker.max_workers)", retry=True))
            elif not await self._allowed(line.uid):
                line.end(Goodbye("denied", f"account {line.uid} may not be a worker (worker.users)"))
            await line.run()
        except Exception:
            log.exception("worker's connection failed inside", pid=line.pid)
        finally:
            line.shut()
            del self._lines[line]
            self._ended(line)
            self._progress.unpark_all()

    async def _allowed(self, uid: int) -> bool:
        users = self._config.users
        if not users or uid in self._own:
            return True
        return uid in await trio.to_thread.run_sync(_uids, tuple(users), abandon_on_cancel=True)

    def greeted(self, line: Line, hello: Hello) -> None:
        """For a line: a worker has said hello."""
        assert line.worker is not None
        line.program = self._programs.of(line.pid)
        if line.program is not None:
            self._programs.greeted(line.program)
        worker = line.worker
        log.info("worker joined", worker=worker.id, name=hello.name, pid=line.pid, uid=line.uid)
        self._context.bus.publish(Joined(worker=worker.id, name=hello.name, pid=line.pid))

    def progressed(self) -> None:
        """For a line: a worker has said something."""
        self._progress.unpark_all()

    def _ended(self, line: Line) -> None:
        goodbye, worker, hello = line.goodbye, line.worker, line.conversation.hello
        if worker is None or hello is None:
            self._room.rejected += 1
            why = "it went without a hello" if goodbye is None else goodbye.reason
            log.warning("not a worker", pid=line.pid, uid=line.uid, why=why)
            return
        crashed = goodbye is None
        pool = self._pool
        pool.crashed += crashed
        pool.hung += line.hung
        code, why = "crashed", "its connection ended without a word"
        if goodbye is not None:
            code, why = goodbye.code, goodbye.reason
        say = log.info if code == "drained" else log.warning
        say("worker left", worker=worker.id, name=hello.name, pid=line.pid, code=code, why=why, lost=worker.lost)
        self._context.bus.publish(
            Left(worker=worker.id, name=hello.name, pid=line.pid, code=code, why=why, lost=worker.lost)
        )
        if line.program is not None and not (crashed or line.asked or self._context.draining.is_set()):
            self._programs.kill(line.program, why)

    async def _look_always(self) -> None:
        while True:
            config = self._config
            if self._room.owner is self:
                hung = {worker.id for worker in self._pool.look()}
                for line in list(self._lines):
                    if line.worker is not None and line.worker.id in hung:
                        line.hang_up("it does not end what was cancelled")
            now = trio.current_time()
            for line in list(self._lines):
                line.look(now)
            await trio.sleep(max(_OFTEN, min(1.0, config.ping / 2, config.hang / 4, config.message_timeout / 4)))

    async def _drain(self) -> None:
        """Workers finish what they have in hand, and go."""
        replaced = self._room.owner is not self
        left = max(0.0, min(self._config.drain, self._context.drain_deadline() - trio.current_time()))
        by = trio.current_time() + left
        if not replaced:
            with trio.move_on_after(left / 2):
                while any(worker.line for worker in self._pool.workers.values()):
                    await self._progress.park()
        left = max(0.0, by - trio.current_time())
        for line in list(self._lines):
            line.retire(left, retry=True)  # when there is a daemon again, it wants its workers
        self._programs.stop()
        with trio.move_on_at(by):
            while self._lines:
                await self._progress.park()
        for line in list(self._lines):
            line.end(Goodbye("stopping", "the time for what it had in hand is up", True))
        with trio.move_on_after(_FAREWELL):
            while self._lines:
                await self._progress.park()


def _has_its_group(config: WorkerConfig) -> bool:
    """Whether the socket has the group that it is to have, or that of the default which this machine does not know.
    Blocks."""
    group, path = config.group, config.socket
    if group is None or path is None:
        return True
    try:
        return path.stat().st_gid == _gid(group)
    except KeyError:
        return "group" not in config.model_fields_set
    except OSError:
        return False


def _gid(group: str) -> int:
    """KeyError: there is no such group. Blocks."""
    return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def _uids(accounts: tuple[str, ...]) -> set[int]:
    found = set()
    for account in accounts:
        with suppress(KeyError):
            found.add(int(account) if account.isdigit() else pwd.getpwnam(account).pw_uid)
    return found


def service_type(hub: Hub) -> ServiceType:
    """The service, over this hub."""
    room = Room(hub)

    def build(config: WorkerConfig, prepared: PreparedWorker, context: Context) -> WorkerService:
        return WorkerService(config, prepared, context, room=room)

    return ServiceType("worker", WorkerConfig, prepare, build, check)
