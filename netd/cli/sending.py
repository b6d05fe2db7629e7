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
from netd.errors import NetdError
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
        if channel is not None
        else (lambda value, confirm: client.direct(to, value, confirm=confirm, **more))
        if to is not None
        else (lambda value, confirm: client.broadcast(value, confirm=confirm, **more))
    )
    total, delivered, code = len(values) * count, None, 0
    report: dict[str, Any] = {"sent": total}
    refusals = _Refusals(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusals.follow)
        for number, value in enumerate(repeated(values, count), 1):
            delivered = await send(value, number == total)
        nursery.cancel_scope.cancel()
    refusals.finish()
    if delivered is not None:
        report["delivered"] = delivered
    if refusals.count:
        report["refused"] = refusals.count
        warn(f"{refusals.count} of {total} were refused: {refusals.reason}")
        code = 1
    return report, code


class _Refusals:
    """Errors for messages that nobody waited for, counted as they come: there may be as many as there are messages."""

    def __init__(self, client: OperationsClient) -> None:
        self.count = 0
        self.reason = ""
        """That of the first."""
        self._client = client

    async def follow(self) -> None:
        """Until cancelled, or until the client has ended: its error reaches whoever sends."""
        with suppress(NetdError):
            async for event in self._client:
                self._look(event)

    def finish(self) -> None:
        """Look at what is here. All have come: the confirmation of the last message was behind them."""
        with suppress(trio.WouldBlock, StopAsyncIteration):
            while True:
                self._look(self._client.receive_nowait())

    def _look(self, event: object) -> None:
        if isinstance(event, messages.Error):
            self.reason = self.reason or event.message
            self.count += 1


def print_report(report: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    """What was sent; for people only where that says something, unless `quiet`."""
    if as_json:
        print_json(report)
    elif not quiet:
        reached = f", to {report['delivered']}" if "delivered" in report else ""
        sent = counted(report["sent"], "message")
        click.echo(f"sent {sent}{reached}, {size(report['bytes'])} in {report['seconds']:.3g} s")
