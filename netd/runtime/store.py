"""The store: one SQLite database, one writer in a thread of its own, bounded queue, bounded tables.

    write(sql, parameters) --> queue (bounded) --> writer thread: one transaction for all that waits
    query(sql, parameters) --> a read-only connection, in a worker thread, bounded rows and time

Rules:
- `write` never waits and never fails: past the bound it is dropped, counted, and a health warning says so;
- every room has its own numbered steps of schema (`migrate`); each runs once, in a transaction with its record;
- a table that grows has a retention (`retain`): by age and by rows, enforced by the writer;
- a failing disk costs what could not be written and raises a warning, which goes when writing works again;
- leaving the context writes what is still queued.

Without a path everything is kept in memory, for embedded daemons and tests. Left out: any knowledge of what is stored.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import structlog
import trio

from netd.errors import StartFailed, TooBusy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from netd.runtime.health import Health
    from netd.runtime.metrics import Metrics

MAX_QUEUED = 8192
"""Writes that may wait for the disk."""
MAX_ROWS = 10_000
"""Rows that one query may give, whatever limit it asks for."""
_QUERY_SECONDS = 5.0
_RETAIN_SECONDS = 60.0
_RETAIN_WRITES = 1000  # retention also runs after so many writes
_RETAIN_CHUNK = 1000  # rows that one deletion takes, so that the queue is not kept waiting
_BUSY_SECONDS = 2.0
CLOSE_SECONDS = 10.0
"""How long the end of the daemon waits for the disk."""
_PROGRESS_STEPS = 20_000  # virtual machine steps between two looks at the clock

_NAME = re.compile(r"^[a-z_][a-z0-9_]*$")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS netd_migrations (
    room TEXT NOT NULL, number INTEGER NOT NULL, applied REAL NOT NULL, PRIMARY KEY (room, number)
)
"""

_T = TypeVar("_T")

log = structlog.get_logger("netd.store")


@asynccontextmanager
async def open_store(
    path: Path | None, *, health: Health | None = None, metrics: Metrics | None = None, max_queued: int = MAX_QUEUED
) -> AsyncIterator[Store]:
    """The database at `path`, made if it is not there; in memory without one.

    Raises StartFailed when it cannot be opened, is damaged, or cannot be written to.
    """
    store = Store(path, health, metrics, max_queued)
    await store._open()
    try:
        yield store
    finally:
        # shielded: the queue is bounded and so is the wait, and what was accepted is not to be lost to a cancellation
        with trio.CancelScope(shield=True):
            await store._close()


class Store:
    """An open store. All methods are for the Trio thread."""

    def __init__(self, path: Path | None, health: Health | None, metrics: Metrics | None, max_queued: int) -> None:
        self.path = path
        self._health = health
        self._writer = _Writer(path, self._trouble, max_queued)
        self._reader: sqlite3.Connection | None = None
        self._reading = trio.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._dropped = 0
        self._written_total = metrics and metrics.counter("netd_store_writes_total", "Rows given to the store")
        self._dropped_total = metrics and metrics.counter(
            "netd_store_dropped_total", "Writes that the store had no room for or could not carry out"
        )

    @property
    def dropped(self) -> int:
        """Writes that were lost since the store was opened."""
        return self._dropped

    def write(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> None:
        """Queue one statement. Statements are carried out in the order of their queueing."""
        if self._writer.put(sql, parameters):
            if self._written_total:
                self._written_total.inc()
            return
        self._lost(1)
        if self._health is not None:
            self._health.warn(
                "store.overflow",
                f"cannot keep up with writing to {self._name}: writes were dropped",
                advice="look at the disk's load; history has gaps, nothing else suffers",
            )

    async def migrate(self, room: str, steps: Sequence[str]) -> None:
        """Bring a room's tables up to date: step 1, 2, ... as far as they were not carried out before.

        A step is one or more SQL statements. Steps are only ever added at the end. Raises StartFailed when one fails
        (it and those after it are then not in force) or when the database has steps that this netd does not know.
        """
        await self._call(lambda: self._writer.migrate(room, tuple(steps)))

    def retain(self, table: str, *, time_column: str, max_age: float, max_rows: int) -> None:
        """Bound a table: rows older than `max_age` seconds and all but the newest `max_rows` are deleted.

        `time_column` holds seconds since the epoch and ought to be indexed. The table has rowids. Called again it
        replaces the bounds.
        """
        if not _NAME.match(table) or not _NAME.match(time_column):
            raise ValueError(f"cannot retain {table}.{time_column}: not plain names")
        self._writer.do(lambda: self._writer.retain(table, time_column, max_age, max_rows))

    async def flush(self) -> None:
        """Return once all that was queued before is written, or was found impossible to write.

        Raises TooBusy when it takes more than 5 seconds.
        """
        with trio.move_on_after(_QUERY_SECONDS):
            await self._call(lambda: None)
            return
        raise TooBusy("cannot wait for the store any longer: its disk is slow, or hangs")

    async def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), *, limit: int = 1000
    ) -> list[sqlite3.Row]:
        """At most `limit` rows (and never more than MAX_ROWS) of what is committed. Queries take turns.

        Raises TooBusy when it takes more than 5 seconds, sqlite3.Error for SQL that is wrong.
        """
        rows = min(limit, MAX_ROWS)
        if rows < 1:  # fetchmany(0) would fetch everything
            await trio.lowlevel.checkpoint()
            return []
        deadline = time.monotonic() + _QUERY_SECONDS
        if self.path is None:  # a database in memory has but one connection
            return await self._call(
                lambda: _fetch(self._writer.connection, sql, parameters, rows, lambda: time.monotonic() > deadline)
            )
        async with self._reading:
            try:
                return await trio.to_thread.run_sync(self._read, sql, parameters, rows, deadline)
            except TooBusy:
                await trio.lowlevel.checkpoint_if_cancelled()  # then that is why it gave up
                raise

    # --- inside ---

    @property
    def _name(self) -> str:
        return "memory" if self.path is None else os.fspath(self.path)

    def _read(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any], rows: int, deadline: float
    ) -> list[sqlite3.Row]:
        if self._reader is None:
            assert self.path is not None
            # queries take turns, but worker threads are not always the same
            self._reader = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=_BUSY_SECONDS
            )
            self._reader.row_factory = sqlite3.Row
        return _fetch(self._reader, sql, parameters, rows, lambda: time.monotonic() > deadline or _cancelled())

    async def _open(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._writer.thread.start()
        try:
            await self._call(self._writer.open)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._close()
            raise

    async def _close(self) -> None:
        self._writer.stop()
        await trio.to_thread.run_sync(self._writer.thread.join, CLOSE_SECONDS)
        if self._writer.thread.is_alive():
            log.error("cannot finish writing the store in time", seconds=CLOSE_SECONDS)
        if self._reader is not None:
            self._reader.close()

    async def _call(self, work: Callable[[], _T]) -> _T:
        """Have the writer thread do `work` after what is queued, and return what it returns or raise what it raises."""
        token = self._token
        assert token is not None
        done = trio.Event()
        results: list[outcome.Outcome[_T]] = []

        def in_thread() -> None:
            results.append(outcome.capture(work))
            _soon(token, done.set)

        if not self._writer.do(in_thread):
            raise StartFailed("store", f"cannot use the store {self._name}: it is closed")
        await done.wait()
        return results[0].unwrap()

    def _trouble(self, lost: int, why: str | None) -> None:
        """Told by the writer thread: `lost` writes failed, or (None) writing works again."""
        if self._token is not None:
            _soon(self._token, self._report, lost, why)

    def _report(self, lost: int, why: str | None) -> None:
        if lost:
            self._lost(lost)
        if self._health is None:
            return
        if why is None:
            self._health.clear("store.failing")
            self._health.clear("store.overflow")
        else:
            self._health.warn(
                "store.failing",
                f"cannot write to the store {self._name}: {why}",
                advice="look at the disk's room and permissions; history has gaps, nothing else suffers",
                severity="error",
            )

    def _lost(self, count: int) -> None:
        self._dropped += count
        if self._dropped_total:
            self._dropped_total.inc(count)


class _Writer:
    """The writer's thread, and the queue to it. `put`, `do` and `stop` are for other threads, the rest for its own."""

    def __init__(self, path: Path | None, trouble: Callable[[int, str | None], None], max_queued: int) -> None:
        self.connection: sqlite3.Connection
        self.thread = threading.Thread(target=self._run, name="netd store", daemon=True)
        self._path = path
        self._trouble = trouble
        self._max_queued = max_queued
        self._writes = 0
        self._queue: deque[tuple[str, Any] | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._open = False
        self._failing = False
        self._overflowed = False
        self._retained: dict[str, tuple[str, float, int]] = {}
        self._retain_at = time.monotonic() + _RETAIN_SECONDS
        self._since_retained = 0

    # --- from other threads ---

    def put(self, sql: str, parameters: Any) -> bool:
        with self._changed:
            if self._stopping or self._writes >= self._max_queued:
                self._overflowed = True
                return False
            self._writes += 1
            self._queue.append((sql, parameters))
            self._changed.notify()
            return True

    def do(self, work: Callable[[], None]) -> bool:
        """Queue work; there are few callers, each waiting for its own, so that this needs no bound."""
        with self._changed:
            if self._stopping:
                return False
            self._queue.append(work)
            self._changed.notify()
            return True

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    # --- in the thread ---

    def open(self) -> None:
        name = ":memory:" if self._path is None else os.fspath(self._path)
        try:
            self.connection = sqlite3.connect(name, isolation_level=None, timeout=_BUSY_SECONDS)
        except sqlite3.Error as error:
            raise StartFailed("store", f"cannot open the store {name}: {error}") from error
        self.connection.row_factory = sqlite3.Row
        try:
            self.connection.execute("PRAGMA journal_mode = WAL").fetchone()
            self.connection.execute("PRAGMA synchronous = NORMAL")
            found = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found).replace("\n", " "))
            self.connection.execute("BEGIN IMMEDIATE")  # says now, not at the first write, if it cannot be written to
            self.connection.execute(_SCHEMA)
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.connection.close()
            advice = "free the lock" if "locked" in str(error) else "move it away to begin a new one"
            raise StartFailed("store", f"cannot open the store {name}: {error} ({advice})") from error
        self._open = True

    def migrate(self, room: str, steps: tuple[str, ...]) -> None:
        row = self.connection.execute("SELECT max(number) FROM netd_migrations WHERE room = ?", (room,)).fetchone()
        applied = row[0] or 0
        if applied > len(steps):
            raise StartFailed(
                "store",
                f"cannot use the tables of {room}: they are at step {applied} and this netd knows {len(steps)} "
                "(a newer netd wrote them; go back to it, or move the store away)",
            )
        for number, step in enumerate(steps[applied:], applied + 1):
            try:
                self.connection.executescript(f"BEGIN IMMEDIATE;\n{step}")
                self.connection.execute("INSERT INTO netd_migrations VALUES (?, ?, ?)", (room, number, time.time()))
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise StartFailed(
                    "store", f"cannot carry out step {number} of the tables of {room}: {error}"
                ) from error
            log.info("store migrated", room=room, step=number)

    def retain(self, table: str, time_column: str, max_age: float, max_rows: int) -> None:
        self._retained[table] = (time_column, max_age, max_rows)
        self._retain_at = 0.0

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    if not self._changed.wait(max(0.0, self._retain_at - time.monotonic()) if self._retained else None):
                        break
                writes: list[tuple[str, Any]] = []
                work: Callable[[], None] | None = None
                while self._queue and work is None:
                    item = self._queue.popleft()
                    if isinstance(item, tuple):
                        writes.append(item)
                    else:
                        work = item
                self._writes -= len(writes)
                done = self._stopping and not self._queue
            if writes:
                self._write(writes)
            if work is not None:
                work()
            if self._open and self._retained:
                self._enforce()
            if done:
                break
        if self._open:
            self._open = False
            self.connection.close()

    def _write(self, writes: list[tuple[str, Any]]) -> None:
        """One transaction for all; a statement that is wrong costs itself, a disk that fails costs them all."""
        lost = 0
        why = None
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            for sql, parameters in writes:
                result = outcome.capture(self.connection.execute, sql, parameters)
                if isinstance(result, outcome.Error):
                    if not self.connection.in_transaction:  # SQLite gave it up as a whole: disk full, I/O error
                        result.unwrap()
                    lost += 1
                    why = str(result.error)
                    log.error("cannot carry out a write", sql=sql[:200], error=why)
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            lost, why = len(writes), str(error)
            log.error("cannot write to the store", lost=lost, error=why)
        self._since_retained += len(writes)
        if why is not None or self._failing:
            self._failing = why is not None
            self._trouble(lost, why)
        elif self._overflowed:
            self._trouble(0, None)
        self._overflowed = False

    def _enforce(self) -> None:
        if time.monotonic() < self._retain_at and self._since_retained < _RETAIN_WRITES:
            return
        self._retain_at = time.monotonic() + _RETAIN_SECONDS
        self._since_retained = 0
        for table, (time_column, max_age, max_rows) in self._retained.items():
            # names were checked by Store.retain
            aged = f"SELECT rowid FROM {table} WHERE {time_column} < ? LIMIT {_RETAIN_CHUNK}"
            many = f"SELECT rowid FROM {table} ORDER BY {time_column} DESC, rowid DESC LIMIT {_RETAIN_CHUNK} OFFSET ?"
            try:
                for select, bound in ((aged, time.time() - max_age), (many, max_rows)):
                    delete = f"DELETE FROM {table} WHERE rowid IN ({select})"
                    if self.connection.execute(delete, (bound,)).rowcount >= _RETAIN_CHUNK:
                        self._retain_at = 0.0  # there is more; the queue comes first
            except sqlite3.Error as error:
                log.error("cannot delete what is past its retention", table=table, error=str(error))

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            try:
                self.connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                log.error("cannot roll back", error=str(error))


def _fetch(
    connection: sqlite3.Connection, sql: str, parameters: Any, rows: int, give_up: Callable[[], bool]
) -> list[sqlite3.Row]:
    connection.set_progress_handler(give_up, _PROGRESS_STEPS)
    try:
        cursor = connection.execute(sql, parameters)
        try:
            return cursor.fetchmany(rows)
        finally:
            cursor.close()
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise TooBusy(f"cannot answer within {_QUERY_SECONDS:g} s: ask for less") from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


def _cancelled() -> bool:
    """Whether whoever waits for this worker thread has been cancelled."""
    try:
        trio.from_thread.check_cancelled()
    except trio.Cancelled:
        return True
    return False


def _soon(token: trio.lowlevel.TrioToken, function: Callable[..., object], *args: object) -> None:
    try:
        token.run_sync_soon(function, *args)
    except trio.RunFinishedError:
        log.debug("the loop has ended, nobody is left to be told")
