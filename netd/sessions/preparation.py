"""What a service with sessions acquires before it serves: listeners, certificates, and what its transport wants more.

Rules:
- everything that can fail fails here, as PrepareFailed with a sentence, and what was acquired is given back;
- `check_tls` asks the same functions, for who wants to know beforehand.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from netd.net import certificates
from netd.net.certificates import Certificate
from netd.net.linux import TCP_SAVE_SYN
from netd.runtime.service import refusals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from netd.errors import ConfigProblem
    from netd.runtime.listeners import Listener
    from netd.runtime.service import Context
    from netd.section import Listen

WayT = TypeVar("WayT")


class Prepared(Generic[WayT]):
    """What `prepare` acquired: bound listeners, each with what its clients need."""

    def __init__(self, context: Context) -> None:
        self.ways: list[WayT] = []
        self._context = context

    def close(self) -> None:
        self._context.listeners.release(abandon=True)


async def prepare_each(
    listens: Sequence[Any], context: Context, one: Callable[[Any, int, Context], Awaitable[WayT]]
) -> Prepared[WayT]:
    """Acquire everything that can fail for each of the listeners. Raises PrepareFailed."""
    prepared: Prepared[WayT] = Prepared(context)
    try:
        for number, listen in enumerate(listens):
            prepared.ways.append(await one(listen, number, context))
    except BaseException:
        prepared.close()
        raise
    return prepared


async def certificate_of(listen: Listen, number: int, service: str) -> Certificate | None:
    """The certificate of a listener, as far as it has one. Raises PrepareFailed."""
    if listen.tls is None:
        return None
    return await trio.to_thread.run_sync(partial(Certificate, listen.tls, number, service=service))


async def listener_of(listen: Listen, context: Context) -> Listener:
    """The listening socket, which keeps the SYNs of its clients for the tracer. Raises PrepareFailed."""
    options = [] if listen.address.startswith("unix:") else [(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)]
    return await context.listeners.open(listen, options=options)


def check_tls(listen: Listen, number: int, service: str) -> Iterator[ConfigProblem]:
    """What `certificate_of` would refuse. Blocks."""
    if listen.tls is not None:
        yield from refusals(f"listen.{number}.tls", partial(certificates.load, listen.tls, service=service))
