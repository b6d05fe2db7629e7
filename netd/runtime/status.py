"""The line that `systemctl status` shows of a running daemon: what runs and where, and whether something is wrong.

    "trace running on 127.0.0.1:8080 and 2 more, framed backoff, 1 warning (netctl health)"

Rule: whoever tells systemd the line does it through the one StatusLine, which knows what was said last.

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
    from netd.systemd import Notifier


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


class StatusLine:
    """What systemd was told last, by whichever message."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._said: str | None = None

    def ready(self, text: str) -> None:
        """A start or a reload is finished, and this is the line now."""
        self._said = text
        self._notifier.ready(text)

    def say(self, text: str) -> None:
        """Tell the line, unless it is what was told last."""
        if text != self._said:
            self._said = text
            self._notifier.status(text)


async def keep_status(
    bus: Bus,
    line: Callable[[], str | None],
    say: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`say` the line now and whenever it may have become another one; None: not at the moment. Until cancelled."""

    def say_it() -> None:
        if (now := line()) is not None:
            say(now)

    with bus.subscribe(UnitChanged, WarningRaised, WarningCleared) as notices:
        say_it()
        task_status.started()
        async for _ in notices:
            say_it()
