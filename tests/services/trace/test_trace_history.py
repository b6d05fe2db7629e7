"""The history of traces in a real store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.runtime.store import open_store
from netd.services.trace.config import HistoryConfig
from netd.services.trace.history import History, Record
from netd.services.trace.ids import Ids
from netd.services.trace.rounds import Rounds
from tests.services.trace.lab import PATIENCE, ROUTE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from netd.runtime.store import Store


@pytest.fixture
async def store() -> AsyncGenerator[Store, None]:
    async with open_store(None) as opened:
        yield opened


IDS = Ids()


def record(time: float = 1_000.0, client_id: str | None = "client000", **more: Any) -> Record:
    rounds = Rounds()
    rounds.add(ROUTE)
    known = {"198.51.100.7": {"name": "r2.example", "asn": 64500}}
    values = {
        "id": IDS.new(),
        "time": time,
        "client_id": client_id,
        "address": "192.0.2.7:50312",
        "reason": "destination",
        "summary": rounds.summary(),
        "rows": rounds.rows(),
        "known": known,
    }
    return Record(**{**values, **more})


async def test_what_was_added_is_shown_whole(store: Store) -> None:
    history = History(store)
    await history.open()
    one = record()
    history.add(one)
    found = await history.show(one.id)
    assert found is not None
    assert (found["id"], found["client_id"], found["reason"], found["dest_ttl"]) == (
        one.id,
        "client000",
        "destination",
        5,
    )
    assert [hop["router"] for hop in found["hops"]] == ["192.168.1.1", "198.51.100.7", None, "203.0.113.9"]
    assert (found["hops"][1]["name"], found["hops"][1]["asn"]) == ("r2.example", 64500)
    assert found["probes"] == ROUTE.probes
    assert "detail" not in found


async def test_lists_are_newest_first_and_go_on_from_an_id(store: Store) -> None:
    history = History(store)
    records = [record() for _ in range(5)]
    await history.open()
    for one in records:
        history.add(one)
    ids = [one.id for one in records]
    first = await history.list(limit=2)
    assert [one["id"] for one in first] == ids[:2:-1]
    history.add(record())  # what comes meanwhile shifts nothing
    rest = await history.list(before=first[-1]["id"])
    assert [one["id"] for one in rest] == ids[2::-1]
    assert "hops" not in rest[0]


async def test_a_client_has_a_list_of_its_own(store: Store) -> None:
    history = History(store)
    await history.open()
    mine, other, nobodys = record(client_id="mine00000"), record(client_id="other0000"), record(client_id=None)
    for one in (mine, other, nobodys):
        history.add(one)
    assert [one["id"] for one in await history.list(client_id="mine00000")] == [mine.id]
    assert len(await history.list()) == 3


async def test_what_is_not_there_is_none(store: Store) -> None:
    history = History(store)
    assert await history.list() == []
    assert await history.show("000000000") is None


@pytest.mark.parametrize("bounds", [{"max_rows": 3}, {"max_age_days": 1}])
async def test_the_table_is_cut_to_its_bounds(store: Store, bounds: dict[str, int]) -> None:
    history = History(store)
    await history.open()
    now = time.time()
    kept = [record(time=now) for _ in range(3)]
    for one in [*(record(time=now - 100_000) for _ in range(20)), *kept]:
        history.add(one)
    assert len(await history.list()) == 23
    history.configure(HistoryConfig(**bounds))
    with trio.fail_after(PATIENCE):
        while len(await history.list()) > 3:
            pass
    assert {one["id"] for one in await history.list()} == {one.id for one in kept}


async def test_history_and_ids_survive_a_restart_with_a_clock_set_back(tmp_path: Path) -> None:
    file = tmp_path / "netd.sqlite"
    late, early = Ids(lambda: 2_000.0), Ids(lambda: 1_000.0)
    async with open_store(file) as store:
        history = History(store)
        await history.open()
        first = record(id=late.new())
        history.add(first)
        await store.flush()
    async with open_store(file) as store:
        history = History(store)
        await history.continue_ids(early)
        second = record(id=early.new())
        history.add(second)
        assert [one["id"] for one in await history.list()] == [second.id, first.id]


async def test_two_may_open_it(store: Store) -> None:
    one, other = History(store), History(store)
    await one.open()
    await other.open()
    one.add(record())
    assert len(await other.list()) == 1
