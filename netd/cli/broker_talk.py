"""What `netctl broker connect`, `publish` and `subscribe` do with a BrokerClient; what they share with other clients'
commands is in talk.py and sending.py.
"""

from __future__ import annotations

import time
from typing import Any

from netd.cli import talk
from netd.cli.broker_dial import client_of, plain_of
from netd.cli.data import operation_data
from netd.cli.sending import deliver, pieces_of, print_report
from netd.cli.targets import channel_bytes


async def connect(*, plain: str | None, echo: bool, linger: float, as_json: bool, **how: Any) -> int:
    """Lines from standard input out, what comes to standard output."""
    if plain is None:
        return await talk.connect(await client_of(how), linger=linger, as_json=as_json)
    client = await plain_of(how, plain, "echo=1" if echo else "")
    return await talk.connect(client, linger=linger, as_json=as_json, plain=client.send)


async def publish(
    channel: str, data: bytes, *, form: str | None, lines: bool, count: int, as_json: bool, **how: Any
) -> int:
    """Publish each message `count` times."""
    more = {"priority": how.pop("priority"), "ephemeral": how.pop("ephemeral")}
    values = [operation_data(piece, form) for piece in pieces_of(data, lines)]
    started = time.monotonic()
    async with await client_of(how, reconnect=False) as client:
        report, code = await deliver(client, values, count, channel=channel_bytes(channel), to=None, **more)
        counters = client.telemetry().counters
    report |= {"bytes": counters.bytes_out, "seconds": round(time.monotonic() - started, 6)}
    print_report(report, as_json=as_json, quiet=False)
    return code


async def subscribe(**how: Any) -> int:
    """Print what comes."""
    listening = talk.taken_from(how)
    return await talk.listen(await client_of(how), **listening)
