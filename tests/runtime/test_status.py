"""The status line: what it says of units and warnings, and when it is said again."""

from __future__ import annotations

import trio
import trio.testing

from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.status import keep_status, summary
from netd.runtime.unit import UnitSnapshot


def unit(name: str, state: str, *addresses: str) -> UnitSnapshot:
    return UnitSnapshot(name, state, 0.0, 1, 0, None, None, list(addresses), True)


def test_what_it_says() -> None:
    units = [
        unit("alpha", "running", "127.0.0.1:1"),
        unit("beta", "running", "[::1]:2", "[::1]:3"),
        unit("c", "failed"),
    ]
    line = "alpha running on 127.0.0.1:1, beta running on [::1]:2 and 1 more, c failed"
    assert summary(units, 0) == line
    assert summary(units, 1) == f"{line}, 1 warning (netctl health)"
    assert summary(units, 2) == f"{line}, 2 warnings (netctl health)"


async def test_it_is_said_again_when_it_has_changed_and_may_be_said(nursery: trio.Nursery) -> None:
    bus = Bus()
    health = Health(bus)
    said: list[str] = []
    busy = False
    await nursery.start(
        keep_status, bus, lambda: None if busy else f"{min(len(health.warnings()), 2)} warnings", said.append
    )
    for number in range(3):
        health.warn(f"alpha.{number}", "cannot do it")
        await trio.testing.wait_all_tasks_blocked()
    assert said == ["1 warnings", "2 warnings"], "the third makes no difference"
    busy = True
    health.clear("alpha.0")
    health.clear("alpha.1")
    await trio.testing.wait_all_tasks_blocked()
    busy = False
    health.clear("alpha.2")
    await trio.testing.wait_all_tasks_blocked()
    assert said[2:] == ["0 warnings"]
