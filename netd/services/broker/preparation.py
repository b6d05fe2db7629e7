"""What the broker acquires before it serves: listeners and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from netd.sessions.preparation import Prepared, certificate_of, check_tls, listener_of, prepare_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.errors import ConfigProblem
    from netd.net.certificates import Certificate
    from netd.runtime.listeners import Listener
    from netd.runtime.service import Context
    from netd.services.broker.config import BrokerConfig, BrokerListen


class PreparedListener(NamedTuple):
    """One listener, with what its clients need."""

    listener: Listener
    listen: BrokerListen
    certificate: Certificate | None


PreparedBroker = Prepared[PreparedListener]


async def prepare(config: BrokerConfig, context: Context) -> PreparedBroker:
    """Acquire everything that can fail. Raises PrepareFailed."""
    return await prepare_each(config.listen, context, _prepare_one)


async def _prepare_one(listen: BrokerListen, number: int, context: Context) -> PreparedListener:
    certificate = await certificate_of(listen, number, "broker")
    return PreparedListener(await listener_of(listen, context), listen, certificate)


def check(config: BrokerConfig) -> Iterator[ConfigProblem]:
    """What `prepare` would refuse but for the listening itself. Blocks."""
    for number, listen in enumerate(config.listen):
        yield from check_tls(listen, number, "broker")
