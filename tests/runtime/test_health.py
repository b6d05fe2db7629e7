"""Health: warnings that last, notices only of changes, owners, bounds."""

from __future__ import annotations

import pytest

from netd.runtime.bus import Bus
from netd.runtime.health import MAX_WARNINGS, Health, WarningCleared, WarningRaised


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def health(bus: Bus) -> Health:
    return Health(bus, clock=iter(range(1000)).__next__)


def published(bus: Bus) -> list[str]:
    """Kinds and codes of all notices so far."""
    return [f"{stamped.notice.kind} {stamped.notice.code}" for stamped in bus._history]


def test_all_is_well_at_first(health: Health) -> None:
    assert health.status == "ok"
    assert health.warnings() == ()


def test_a_warning_holds_until_it_is_cleared(health: Health, bus: Bus) -> None:
    health.warn("disk.slow", "cannot keep up", advice="buy another")
    (warning,) = health.warnings()
    assert (warning.code, warning.severity, warning.message, warning.advice) == (
        "disk.slow",
        "warning",
        "cannot keep up",
        "buy another",
    )
    assert warning.service is None
    assert health.status == "degraded"
    health.clear("disk.slow")
    assert health.status == "ok"
    assert published(bus) == ["warningRaised disk.slow", "warningCleared disk.slow"]


def test_an_error_is_worse_than_any_warning(health: Health) -> None:
    health.warn("a", "x")
    health.warn("b", "x", severity="error")
    assert health.status == "failing"
    health.clear("b")
    assert health.status == "degraded"


def test_only_changes_are_published(health: Health, bus: Bus) -> None:
    for _ in range(3):
        health.warn("disk.slow", "cannot keep up")
    health.warn("disk.slow", "cannot keep up at all")
    for _ in range(3):
        health.clear("disk.slow")
    assert published(bus) == ["warningRaised disk.slow"] * 2 + ["warningCleared disk.slow"]


def test_raising_again_keeps_the_time_of_the_first(health: Health) -> None:
    health.warn("a", "x")
    health.warn("a", "y")
    assert health.warnings()[0].since == 0


def test_notices_carry_what_streams_show(health: Health, bus: Bus) -> None:
    health.for_service("trace").warn("unprivileged", "cannot use raw sockets", advice="grant CAP_NET_RAW")
    health.clear("trace.unprivileged")
    raised, cleared = (stamped.notice for stamped in bus._history)
    assert isinstance(raised, WarningRaised)
    assert isinstance(cleared, WarningCleared)
    assert raised.as_json() == {
        "service": "trace",
        "code": "trace.unprivileged",
        "severity": "warning",
        "message": "cannot use raw sockets",
        "advice": "grant CAP_NET_RAW",
    }
    assert cleared.as_json() == {"service": "trace", "code": "trace.unprivileged"}


def test_a_services_codes_are_its_own(health: Health) -> None:
    alpha, beta = health.for_service("alpha"), health.for_service("beta")
    alpha.warn("slow", "x")
    beta.warn("slow", "x")
    assert [(warning.code, warning.service) for warning in health.warnings()] == [
        ("alpha.slow", "alpha"),
        ("beta.slow", "beta"),
    ]
    alpha.clear("slow")
    assert [warning.code for warning in health.warnings()] == ["beta.slow"]


def test_an_ending_generation_leaves_what_its_successor_raised_again(health: Health, bus: Bus) -> None:
    old, new = health.for_service("alpha"), health.for_service("alpha")
    old.warn("slow", "x")
    old.warn("odd", "x")
    new.warn("slow", "x")
    old.clear_all()
    assert [warning.code for warning in health.warnings()] == ["alpha.slow"]
    assert published(bus) == ["warningRaised alpha.slow", "warningRaised alpha.odd", "warningCleared alpha.odd"]
    new.clear_all()
    assert health.warnings() == ()


def test_the_table_is_bounded_and_says_so(health: Health, bus: Bus) -> None:
    for number in range(MAX_WARNINGS + 100):
        health.warn(f"code{number}", "x")
    assert len(health.warnings()) == MAX_WARNINGS + 1
    assert health.warnings()[-1].code == "health.overflow"
    health.warn("code0", "known ones can still change")
    assert health.warnings()[0].message == "known ones can still change"
    health.clear("code0")
    assert len(health.warnings()) == MAX_WARNINGS - 1
    assert published(bus)[-2:] == ["warningCleared code0", "warningCleared health.overflow"]
