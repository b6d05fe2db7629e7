"""Finished traces in the store: one row each, its hops as JSON in that row.

Rules:
- a trace is one write, so that it is there as a whole or not at all, and retention cannot leave hops behind;
- `add` never waits; reading happens in the store's own threads;
- lists are newest first and go on from an id (`before`), not from a number of rows, so that new traces shift nothing;
- works with the trace service stopped: whoever comes first makes the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netd.services.trace import protocol
from netd.services.trace.rounds import HopRow, Summary

if TYPE_CHECKING:
    import sqlite3

    from netd.runtime.store import Store
    from netd.services.trace.config import HistoryConfig
    from netd.services.trace.ids import Ids

MAX_LIST = 1000
_DAY = 86_400.0

MIGRATIONS = (
    """
    CREATE TABLE trace_history (
        id TEXT PRIMARY KEY,        -- sorts by time
        time REAL NOT NULL,         -- of its end, seconds since the epoch
        client_id TEXT,             -- NULL: asked for by an operator for a target
        address TEXT NOT NULL,
        reason TEXT NOT NULL,
        method TEXT,
        dest_ttl INTEGER,
        path_rtt_ms REAL,
        detail TEXT NOT NULL        -- JSON: the summary and the hops, as REST shows them
    )
    """,
    "CREATE INDEX trace_history_time ON trace_history (time)",
    "CREATE INDEX trace_history_client ON trace_history (client_id, id)",
)

_COLUMNS = "id, time, client_id, address, reason, method, dest_ttl, path_rtt_ms"


@dataclass(frozen=True, slots=True)
class Record:
    """A finished trace. `time` is of its end, in seconds since the epoch; `address` as people write it."""

    id: str
    time: float
    client_id: str | None
    address: str
    reason: str
    summary: Summary
    rows: Sequence[HopRow]
    known: Mapping[str, Mapping[str, Any]]
    """What else is known of routers, by address: name, asn, as_name."""


class History:
    """The table of traces."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ready = False

    async def open(self) -> None:
        """Make the table if it is not there."""
        if not self._ready:
            await self._store.migrate("trace", MIGRATIONS)
            self._ready = True

    async def continue_ids(self, ids: Ids) -> None:
        """Have `ids` go on above the newest id there is, even if the clock was set back meanwhile."""
        await self.open()
        for row in await self._store.query("SELECT max(id) AS id FROM trace_history", (), limit=1):
            if row["id"] is not None:
                ids.after(row["id"])

    def configure(self, config: HistoryConfig) -> None:
        """How much is kept, from now on."""
        self._store.retain(
            "trace_history", time_column="time", max_age=config.max_age_days * _DAY, max_rows=config.max_rows
        )

    def add(self, record: Record) -> None:
        """Write a finished trace, some time soon."""
        summary = protocol.summary_json(record.summary) | {"reason": record.reason}
        hops = [protocol.row_json(row) for row in record.rows]
        for hop in hops:
            hop.update(record.known.get(hop["router"], {}))
        self._store.write(
            f"INSERT OR REPLACE INTO trace_history ({_COLUMNS}, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.time,
                record.client_id,
                record.address,
                record.reason,
                record.summary.method,
                record.summary.dest_ttl,
                protocol.to_ms(record.summary.path_rtt.mean),
                json.dumps({**summary, "hops": hops}, separators=(",", ":")),
            ),
        )

    async def list(
        self, *, limit: int = 50, before: str | None = None, client_id: str | None = None
    ) -> list[dict[str, Any]]:
        """Traces without their hops, newest first. `limit` 1 to MAX_LIST."""
        await self.open()
        await self._store.flush()
        conditions, parameters = ["id < ?"], [before if before is not None else "~"]
        if client_id is not None:
            conditions.append("client_id = ?")
            parameters.append(client_id)
        rows = await self._store.query(
            f"SELECT {_COLUMNS} FROM trace_history WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
            (*parameters, min(max(limit, 1), MAX_LIST)),
            limit=MAX_LIST,
        )
        return [_plain(row) for row in rows]

    async def show(self, trace_id: str) -> dict[str, Any] | None:
        """One trace with its hops; None if it is not (or no longer) there."""
        await self.open()
        await self._store.flush()
        rows = await self._store.query(
            f"SELECT {_COLUMNS}, detail FROM trace_history WHERE id = ?", (trace_id,), limit=1
        )
        if not rows:
            return None
        whole = _plain(rows[0])
        detail: dict[str, Any] = json.loads(whole.pop("detail"))
        return whole | detail


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    return {key: row[key] for key in row.keys()}  # noqa: SIM118 - a Row iterates its values
