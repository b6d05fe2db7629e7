"""What the tracer is handed of a session."""

from __future__ import annotations

import trio

from tests.services.trace.lab import PATIENCE, ScriptedTracer, serving


async def test_a_carriers_socket_outlives_its_rounds_and_ends_with_the_session() -> None:
    """The tracer looks after the socket's error queue by it, for as long as something may come (looped.py)."""
    tracer = ScriptedTracer()
    async with serving(tracer, rounds=2, interval=0.1) as house:
        async with house.client() as client:
            while (await client.next())["type"] != "clientDone":
                pass
            assert len(tracer.sockets) == 2
            assert tracer.sockets[0] is tracer.sockets[1], "one descriptor for a session, however many rounds"
            assert tracer.sockets[0].fileno() >= 0
        with trio.fail_after(PATIENCE):
            while tracer.sockets[0].fileno() >= 0:
                await trio.lowlevel.checkpoint()
