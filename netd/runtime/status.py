"""The line that `systemctl status` shows of a running daemon: what runs and where, and whether something is wrong.

    "trace running on 127.0.0.1:8080 and 2 more, framed backoff, 1 warning (netctl health)"

Left out: what is said while the daemon starts, reloads or ends (daemon.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netd.runtime.health import WarningCleared, WarningRaised
from netd.runtime.unit import UnitChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netd.runtime.bus import Bus
    from netd.runtime.unit import UnitSnapshot


def summary(units: Iterable[UnitSnapshot], warnings: int) -> str:
    """The line; `warnings` is how many hold."""
    parts = [_in_brief(unit) for unit in units]
    if warnings:
        parts.append(f"{warnings} warning{'s' if warnings > 1 else ''} (netctl health)")
    return ", ".join(parts)


def _in_brief(unit: UnitSnapshot) -> str:
    if not unit.addresses:
        return f"{unit.name} {unit.state}"
    more = f" and {len(unit.addresses) - 1} more" if len(unit.addresses) > 1 else ""
    return f"{unit.name} {unit.state} on {unit.addresses[0]}{more}"


async def keep_status(
    bus: Bus,
    line: Callable[[], str | None],
    say: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`say` the line whenever it has become another one, from now on; None: not at the moment. Until cancelled."""
    said = line()
    with bus.subscribe(UnitChanged, WarningRaised, WarningCleared) as notices:
        task_status.started()
        async for _ in notices:
            now = line()
            if now is not None and now != said:
                said = now
                say(now)
