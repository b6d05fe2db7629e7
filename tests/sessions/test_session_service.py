"""What all services with sessions do alike, without one of them."""

from __future__ import annotations

from netd.sessions.service import farewell


def test_a_crowd_is_asked_to_come_back_one_after_another_and_a_few_at_once() -> None:
    assert max(farewell(2)[2] for _ in range(100)) < 0.01
    waits = sorted(farewell(5000)[2] for _ in range(1000))
    assert 0 <= waits[0] < 1
    assert 9 < waits[-1] <= 10
    assert 4 < waits[500] < 6
