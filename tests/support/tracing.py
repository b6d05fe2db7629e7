"""What the tracer's tests share: a tracer that runs in the lab's server namespace."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from netd.net.paths.tracer import Tracer

if TYPE_CHECKING:
    from netd.net.paths.budget import TracerLimits


@asynccontextmanager
async def tracer_in(lab, *, limits: TracerLimits | None = None, open_socket=None):
    """A running tracer whose sockets are in the server's namespace."""
    tracer = Tracer(limits, open_socket=open_socket or lab.server.socket)
    async with trio.open_nursery() as nursery:
        await nursery.start(_run, tracer)
        yield tracer
        nursery.cancel_scope.cancel()


async def _run(tracer, task_status):
    await tracer.run(task_status=task_status)


def addresses(path) -> list[str | None]:
    return [hop.addr for hop in path.hops]
