"""The status line: what it says of units and warnings, and when it is said again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.status import StatusLine, keep_status, summary
from netd.runtime.unit import UnitSnapshot
from netd.systemd import Notifier
from tests.support.systemd import FakeSystemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    systemd = FakeSystemd(tmp_path)
    yield systemd
    systemd.close()


@pytest.fixture
def status(systemd: FakeSystemd) -> Iterator[StatusLine]:
    notifier = Notifier(systemd.address)
    yield StatusLine(notifier)
    notifier.close()


class Truth:
    """The line as it is now; None while something else has been said."""

    def __init__(self) -> None:
        self.line: str | None = "all is well"
        self.bus = Bus()
        self._health = Health(self.bus)

    async def becomes(self, line: str | None) -> None:
        self.line = line
        self._health.warn("alpha.beta", f"cannot keep to itself that it is {line} now")
        await trio.testing.wait_all_tasks_blocked()


def said(systemd: FakeSystemd) -> list[str]:
    return [message["STATUS"] for message in systemd.read()]


async def test_it_is_said_when_it_has_changed_and_may_be_said(
    nursery: trio.Nursery, systemd: FakeSystemd, status: StatusLine
) -> None:
    truth = Truth()
    status.ready("all is well")
    await nursery.start(keep_status, truth.bus, lambda: truth.line, status.say)
    for line in ("bad", "worse", "worse", None, "worse", None, "well"):
        await truth.becomes(line)
    assert said(systemd) == ["all is well", "bad", "worse", "well"]


async def test_what_a_reload_has_said_is_not_the_last_word(
    nursery: trio.Nursery, systemd: FakeSystemd, status: StatusLine
) -> None:
    truth = Truth()
    status.ready("all is well")
    await nursery.start(keep_status, truth.bus, lambda: truth.line, status.say)
    await truth.becomes(None)
    status.ready("bad")
    await truth.becomes("all is well")
    assert said(systemd) == ["all is well", "bad", "all is well"]


async def test_what_changed_before_it_was_kept_is_said_at_once(
    nursery: trio.Nursery, systemd: FakeSystemd, status: StatusLine
) -> None:
    truth = Truth()
    status.ready("all is well")
    await truth.becomes("bad")
    await nursery.start(keep_status, truth.bus, lambda: truth.line, status.say)
    assert said(systemd) == ["all is well", "bad"]
