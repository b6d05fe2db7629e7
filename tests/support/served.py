"""A scripted peer on a Trio loop in a thread, for tests that run a whole program against it."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.support.framedpeer import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


@contextmanager
def served(peer: Any, script: Callable[[Any], Awaitable[None]]) -> Iterator[str]:
    """Run `script(peer)` meanwhile; yields the peer's address. What it raises is raised at the end."""
    addresses: queue.Queue[str] = queue.Queue()
    failures: list[BaseException] = []

    async def main() -> None:
        async with peer:
            addresses.put(peer.address)
            await script(peer)

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001  # raised below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield addresses.get(timeout=PATIENCE)
    finally:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
