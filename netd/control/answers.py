"""Waiting for what the hub's backplane answers, which may come from other machines, or at once. Bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from netd.errors import TooBusy

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 40.0
"""A backplane answers by itself before (backplane.answers, and a quarter more); this is for one that forgets to."""


async def answered(ask: Callable[[Callable[..., None]], object], what: str) -> Any:
    """What `ask` has its argument called with: one thing, or a tuple of several. Raises TooBusy after SECONDS.

    `what` is for that: "cannot WHAT: ...".
    """
    given: list[tuple[Any, ...]] = []
    arrived = trio.Event()

    def take(*answer: Any) -> None:
        given.append(answer)
        arrived.set()

    ask(take)
    if not given:
        with trio.move_on_after(SECONDS):
            await arrived.wait()
    if not given:
        raise TooBusy(f"cannot {what}: the other machines have not answered within {SECONDS:g} s")
    return given[0][0] if len(given[0]) == 1 else given[0]
