"""What the anomaly service's `prepare` would refuse, told beforehand: an adapter that is not to be had."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from netd.runtime.service import refusals
from netd.services.anomaly import adapters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.errors import ConfigProblem
    from netd.services.anomaly.config import AnomalyConfig

_KEYS = {"command": "command", "http": "url", "python": "target"}


def check(config: AnomalyConfig) -> Iterator[ConfigProblem]:
    """Imports the user's module, if one is named: blocks. An adapter that does not run holds nothing."""
    key = _KEYS.get(config.adapter.use, "use")
    yield from refusals(f"adapter.{key}", partial(adapters.prepare, config.adapter))
