"""Notices that strangers cause: so many a second, and the rest is counted."""

from __future__ import annotations

from netd.runtime.bus import Bus
from netd.services.framed.notices import WORDS, Rejected
from netd.sessions.notices import Teller


def test_a_flood_of_rejections_is_told_as_a_trickle_that_says_what_it_leaves_out() -> None:
    bus, now = Bus(), 0.0
    teller = Teller(bus, lambda: now, WORDS)
    with bus.subscribe(Rejected) as told:
        for _ in range(1000):
            teller.rejected("address", "192.0.2.7:1")
        assert len(told._waiting) == 20
        now = 1.0
        teller.rejected("address", "192.0.2.7:2")
        (last,) = list(told._waiting)[20:]
        assert last.notice.as_json() == {"why": "address", "address": "192.0.2.7:2", "unsaid": 980}
        teller.rejected("address", "192.0.2.7:3")
        assert "unsaid" not in told._waiting[-1].notice.as_json()
