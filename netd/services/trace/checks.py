"""What the trace service's `prepare` would refuse, but for the listening itself, told beforehand."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from netd.net import certificates
from netd.runtime.service import refusals
from netd.services.trace.names import open_systems

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.errors import ConfigProblem
    from netd.services.trace.config import TraceConfig


def check(config: TraceConfig) -> Iterator[ConfigProblem]:
    """Blocks: the AS table is read whole, as the service would read it."""

    def open_and_close() -> None:
        systems = open_systems(config.asn)
        if systems is not None:
            systems.close()

    yield from refusals("asn", open_and_close)
    for number, listen in enumerate(config.listen):
        if listen.tls is not None:
            yield from refusals(f"listen.{number}.tls", partial(certificates.load, listen.tls, service="trace"))
