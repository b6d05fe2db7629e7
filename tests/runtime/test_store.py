"""Store: a real SQLite file, a real thread, and what goes wrong with both."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netd.errors import StartFailed, TooBusy
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.metrics import Metrics
from netd.runtime.store import MAX_ROWS, Store, open_store

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path
    from typing import Any

TABLE = "CREATE TABLE hops (at REAL NOT NULL, router TEXT); CREATE INDEX hops_at ON hops (at);"
INSERT = "INSERT INTO hops VALUES (?, ?)"


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "netd.db" if request.param == "file" else None


async def routers(store: Store) -> list[str]:
    await store.flush()
    return [row["router"] for row in await store.query("SELECT router FROM hops ORDER BY rowid", limit=MAX_ROWS)]


# --- writing and reading ----------------------------------------------------------------------------------------------


async def test_what_is_written_can_be_read(path: Path | None) -> None:
    async with open_store(path) as store:
        await store.migrate("trace", [TABLE])
        for number in range(100):
            store.write(INSERT, (number, f"r{number}"))
        store.write("INSERT INTO hops VALUES (:at, :router)", {"at": 1000.0, "router": "by name"})
        assert await routers(store) == [f"r{number}" for number in range(100)] + ["by name"]
        (row,) = await store.query("SELECT count(*) AS n FROM hops WHERE at < ?", (10,))
        assert row["n"] == 10


async def test_queries_are_bounded(path: Path | None) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    async with open_store(path) as store:
        assert len(await store.query(endless, limit=5)) == 5
        assert len(await store.query(endless, limit=10**9)) == MAX_ROWS
        assert await store.query(endless, limit=-1) == []


async def test_a_query_that_takes_too_long_is_given_up(path: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netd.runtime.store._QUERY_SECONDS", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with open_store(path) as store:
        with pytest.raises(TooBusy, match="cannot answer within"):
            await store.query(endless)
        assert len(await store.query("SELECT 1")) == 1


async def test_a_query_that_nobody_waits_for_any_more_ends(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with open_store(tmp_path / "netd.db") as store:
        with trio.fail_after(4):  # sooner than the query's own bound
            with trio.move_on_after(0.05) as scope:
                await store.query(endless)
            assert scope.cancelled_caught


async def test_reading_does_not_write(tmp_path: Path) -> None:
    async with open_store(tmp_path / "netd.db") as store:
        await store.migrate("trace", [TABLE])
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await store.query("DELETE FROM hops")


async def test_leaving_writes_what_is_queued(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_store(tmp_path / "netd.db") as store:
            await store.migrate("trace", [TABLE])
            for number in range(2000):
                store.write(INSERT, (number, "late"))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with open_store(tmp_path / "netd.db") as store:
        assert len(await routers(store)) == 2000


# --- too much, and wrong ----------------------------------------------------------------------------------------------


async def test_past_the_bound_writes_are_dropped_counted_and_said(path: Path | None) -> None:
    health, metrics = Health(Bus()), Metrics()
    async with open_store(path, health=health, metrics=metrics, max_queued=10) as store:
        await store.migrate("trace", [TABLE])
        release = await _block(store)
        for number in range(15):
            store.write(INSERT, (number, f"r{number}"))
        assert store.dropped == 5
        assert [warning.code for warning in health.warnings()] == ["store.overflow"]
        assert "netd_store_dropped_total 5.0" in metrics.render().decode()
        release()
        assert await routers(store) == [f"r{number}" for number in range(10)], "the newest are dropped"
        store.write(INSERT, (1, "room again"))
        await store.flush()
        await _settle()
        assert health.warnings() == ()


async def _block(store: Store):
    """Keep the writer thread busy until the function that this gives is called."""
    entered, release = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def wait() -> None:
        token.run_sync_soon(entered.set)
        release.wait(10)

    store._writer.do(wait)
    await entered.wait()
    return release.set


async def _settle() -> None:
    """Let what the writer thread reported arrive."""
    await trio.testing.wait_all_tasks_blocked()


async def test_a_wrong_statement_costs_only_itself(path: Path | None, logged: list[MutableMapping[str, Any]]) -> None:
    health = Health(Bus())
    async with open_store(path, health=health) as store:
        await store.migrate("trace", [TABLE])
        store.write(INSERT, (1, "before"))
        for sql, parameters in [
            ("INSERT INTO nowhere VALUES (1)", ()),
            (INSERT, (None, "not null")),
            (INSERT, (1,)),
            (INSERT, (2**70, "too big")),
            (INSERT, (object(), "no such type")),
            ("SELECT 1; SELECT 2", ()),
            ("gibberish", ()),
        ]:
            store.write(sql, parameters)
        store.write(INSERT, (2, "after"))
        assert await routers(store) == ["before", "after"]
        assert store.dropped == 7
        assert len([entry for entry in logged if entry["event"] == "cannot carry out a write"]) == 7


async def test_a_failing_disk_is_a_warning_until_it_works_again(tmp_path: Path) -> None:
    health = Health(Bus())
    async with open_store(tmp_path / "netd.db", health=health) as store:
        await store.migrate("trace", [TABLE])
        await store._call(lambda: store._writer.connection.execute("PRAGMA max_page_count = 1"))
        store.write(INSERT, (1, "x" * 100_000))
        await store.flush()
        await _settle()
        (warning,) = health.warnings()
        assert warning.code == "store.failing"
        assert "full" in warning.message
        assert store.dropped == 1
        await store._call(lambda: store._writer.connection.execute("PRAGMA max_page_count = 1000000"))
        store.write(INSERT, (1, "fits"))
        assert await routers(store) == ["fits"]
        await _settle()
        assert health.warnings() == ()


async def test_after_the_end_nothing_is_written(tmp_path: Path) -> None:
    async with open_store(tmp_path / "netd.db") as store:
        pass
    store.write(INSERT, (1, "late"))
    assert store.dropped == 1
    with pytest.raises(StartFailed, match="it is closed"):
        await store.flush()


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "netd.db"
    path.write_bytes(b"precious text, not a database" * 100)
    with pytest.raises(StartFailed, match=r"cannot open the store .*netd.db: file is not a database \(move it away"):
        async with open_store(path):
            pass
    assert path.read_bytes().startswith(b"precious")


async def test_a_database_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "netd.db"
    async with open_store(path) as store:
        await store.migrate("trace", [TABLE])
        for number in range(2000):
            store.write(INSERT, (number, "some text to fill pages"))
    data = bytearray(path.read_bytes())
    for page in range(4, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(StartFailed, match="cannot open the store"):
        async with open_store(path):
            pass


@pytest.mark.parametrize("where", ["no/such/directory/netd.db", "."])
async def test_a_place_that_cannot_be_used(tmp_path: Path, where: str) -> None:
    with pytest.raises(StartFailed, match=r"cannot open the store .*: unable to open database file"):
        async with open_store(tmp_path / where):
            pass


async def test_a_database_that_another_process_keeps_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netd.runtime.store._BUSY_SECONDS", 0.01)
    other = sqlite3.connect(tmp_path / "netd.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StartFailed, match="database is locked"):
        async with open_store(tmp_path / "netd.db"):
            pass
    other.close()


# --- migrations -------------------------------------------------------------------------------------------------------


async def test_steps_run_once_each_and_rooms_count_apart(tmp_path: Path) -> None:
    path = tmp_path / "netd.db"
    steps = [TABLE, "ALTER TABLE hops ADD COLUMN ttl INTEGER; UPDATE hops SET ttl = 7;"]
    async with open_store(path) as store:
        await store.migrate("trace", steps[:1])
        store.write(INSERT, (1, "old"))
        await store.flush()
    async with open_store(path) as store:
        await store.migrate("trace", steps)
        await store.migrate("trace", steps)
        await store.migrate("capture", ["CREATE TABLE files (name TEXT)"])
        (row,) = await store.query("SELECT router, ttl FROM hops")
        assert tuple(row) == ("old", 7)
        found = await store.query("SELECT room, number FROM netd_migrations ORDER BY room, number")
        assert [tuple(row) for row in found] == [("capture", 1), ("trace", 1), ("trace", 2)]


async def test_a_step_that_fails_leaves_no_trace_of_itself(path: Path | None) -> None:
    async with open_store(path) as store:
        with pytest.raises(StartFailed, match="cannot carry out step 2 of the tables of trace"):
            await store.migrate("trace", [TABLE, "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1);"])
        tables = [row["name"] for row in await store.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert "hops" in tables
        assert "half" not in tables
        await store.migrate("trace", [TABLE, "CREATE TABLE half (x);"])


async def test_tables_of_a_newer_netd_are_left_alone(tmp_path: Path) -> None:
    async with open_store(tmp_path / "netd.db") as store:
        await store.migrate("trace", [TABLE, "CREATE TABLE more (x);"])
        with pytest.raises(StartFailed, match="they are at step 2 and this netd knows 1"):
            await store.migrate("trace", [TABLE])


# --- retention --------------------------------------------------------------------------------------------------------


async def test_tables_are_bounded_by_age_and_rows(path: Path | None) -> None:
    async with open_store(path) as store:
        await store.migrate("trace", [TABLE])
        now = time.time()
        for age in range(100):
            store.write(INSERT, (now - age * 10 - 1, f"{age}"))
        store.retain("hops", time_column="at", max_age=500, max_rows=1000)
        await store.flush()
        assert await routers(store) == [f"{age}" for age in range(50)]
        store.retain("hops", time_column="at", max_age=500, max_rows=3)
        await store.flush()
        assert await routers(store) == ["0", "1", "2"], "new bounds hold at once, and the newest stay"


async def test_retention_goes_on_by_itself(path: Path | None) -> None:
    async with open_store(path) as store:
        await store.migrate("trace", [TABLE])
        store.retain("hops", time_column="at", max_age=1e9, max_rows=10)
        for number in range(5000):
            store.write(INSERT, (time.time() + number, f"{number}"))
        with trio.fail_after(30):
            while len(await routers(store)) > 1010:  # it is enforced every thousand writes
                store.write(INSERT, (time.time() + 5000, "more"))


async def test_a_large_surplus_goes_in_pieces(path: Path | None) -> None:
    async with open_store(path) as store:
        await store.migrate("trace", [TABLE])
        for number in range(4500):
            store.write(INSERT, (number, "old"))
        await store.flush()
        store.retain("hops", time_column="at", max_age=60, max_rows=1)
        with trio.fail_after(30):
            while await routers(store):  # each look is a turn of the writer, and each turn takes a piece
                pass


@pytest.mark.parametrize(("table", "column"), [("hops; DROP TABLE hops", "at"), ("hops", "at--"), ("", "at")])
async def test_names_are_names(path: Path | None, table: str, column: str) -> None:
    async with open_store(path) as store:
        with pytest.raises(ValueError, match="not plain names"):
            store.retain(table, time_column=column, max_age=1, max_rows=1)


async def test_a_retention_of_what_is_not_there_is_only_logged(
    path: Path | None, logged: list[MutableMapping[str, Any]]
) -> None:
    async with open_store(path) as store:
        store.retain("nowhere", time_column="at", max_age=1, max_rows=1)
        await store.flush()
        await store.flush()
        assert [entry["table"] for entry in logged if "retention" in entry["event"]] == ["nowhere"]
