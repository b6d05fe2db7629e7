"""What the tests of the runtime share: a bus, health, listeners, and units that are driven in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from netd.runtime.bus import Bus
from netd.runtime.generation import Shared
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, MutableMapping

    from netd.runtime.store import Store


@pytest.fixture
async def shared() -> AsyncIterator[Shared]:
    bus = Bus()
    health = Health(bus)
    listeners = Listeners(health=health)
    yield Shared(bus, health, Metrics(), cast("Store", cast("Any", None)), listeners)
    listeners.close()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged, and nothing of it on the terminal: crash loops with tracebacks drawn are slow."""
    with capture_logs() as entries:
        yield entries
