"""Sending messages as operations, for every client's commands: many, and whether the daemon took them.

Of many the last is confirmed, which says that all were seen; refusals of the others have come by then.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
import trio

from netd.cli.dial import warn
from netd.cli.output import counted, print_json, size
from netd.wire import messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from netd.client.operations import OperationsClient


def pieces_of(data: bytes, lines: bool) -> list[bytes]:
    """The messages that DATA stands for."""
    return [piece for piece in data.splitlines() if piece] if lines else [data]


def repeated(values: list[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield from values


async def deliver(
    client: OperationsClient,
    values: list[Any],
    count: int,
    *,
    channel: str | bytes | None,
    to: str | None,
    **more: Any,
) -> tuple[dict[str, Any], int]:
    """Send each value `count` times: to a channel, to sessions, or to everybody. A report, and the exit code."""
    send: Callable[[Any, bool], Awaitable[int | None]] = (
        (lambda value, confirm: client.publish(channel, value, confirm=confirm, **more))
        if channel
        else (lambda value, confirm: client.direct(to, value, confirm=confirm, **more))
        if to
        else (lambda value, confirm: client.broadcast(value, confirm=confirm, **more))
    )
    total, delivered, code = len(values) * count, None, 0
    report: dict[str, Any] = {"sent": total}
    for number, value in enumerate(repeated(values, count), 1):
        delivered = await send(value, number == total)
    if delivered is not None:
        report["delivered"] = delivered
    if refused := _refusals(client):
        report["refused"] = len(refused)
        warn(f"{len(refused)} of {total} were refused: {refused[0].message}")
        code = 1
    return report, code


def _refusals(client: OperationsClient) -> list[messages.Error]:
    """Errors for messages that nobody waited for. All are here: the confirmation came behind them."""
    found: list[messages.Error] = []
    with suppress(trio.WouldBlock, StopAsyncIteration):
        while True:
            if isinstance(event := client.receive_nowait(), messages.Error):
                found.append(event)
    return found


def print_report(report: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """What was sent; for people only where that says something, unless `quiet`."""
    if as_json:
        print_json(report)
    elif not quiet:
        reached = f", to {report['delivered']}" if "delivered" in report else ""
        sent = counted(report["sent"], "message")
        click.echo(f"sent {sent}{reached}, {size(report['bytes'])} in {report['seconds']:.3g} s")
