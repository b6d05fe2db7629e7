"""What `netctl framed send` does: plain payloads or operations out, and whether the peer took them.

Rules:
- of operations the last is confirmed, which says that all were seen; refusals of the others have come by then;
- nobody confirms a plain payload. So its sender stays until nothing came for QUIET seconds, MOST at most: a daemon that
  refuses says so at once. A peer that hangs up then without a word may have taken it or not: that is no success;
- a refusal is an `error` or `close` of the message vocabulary, which a peer says in JSON or MessagePack whatever the
  codec; a payload of our own that comes back is none.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
import trio

from netd.cli.data import operation_data, plain_value
from netd.cli.framed_dial import client_of, warn
from netd.cli.framed_talk import writer
from netd.cli.output import counted, print_json, size
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.codecs import codec as codec_of
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from netd.client.framed import FramedClient

QUIET = 0.1
"""Seconds without a byte after which no refusal is expected any more."""
MOST = 2.0
"""Seconds to wait for that, with a peer that is never quiet."""


async def send(
    address: str,
    data: bytes,
    *,
    channel: str | None,
    to: str | None,
    broadcast: bool,
    priority: int,
    ephemeral: bool,
    count: int,
    lines: bool,
    form: str | None,
    answer: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Send each message `count` times."""
    pieces = [piece for piece in data.splitlines() if piece] if lines else [data]
    total = len(pieces) * count
    started = time.monotonic()
    report: dict[str, Any] = {"sent": total}
    code = 0
    plain = not (channel or to or broadcast)
    if plain:
        name = how["codec"] or "raw"
        payloads = [codec_of(name).encode(plain_value(piece, name, form)) for piece in pieces]
        # what a peer says to refuse us may be in no form of our codec
        how["codec"] = "raw"
        framed = how["framing"] != "none"
        async with client_of(address, how, reconnect=False) as client:
            sender = _Plain(client, payloads, codec=name, framed=framed, answers=total if answer else 0)
            await sender.send(_repeated(payloads, count), priority, writer(as_json))
            counters = client.telemetry().counters
    else:
        values = [operation_data(piece, form) for piece in pieces]
        more: dict[str, Any] = {"priority": priority, "ephemeral": ephemeral}
        async with client_of(address, how, reconnect=False) as client:
            deliver: Callable[..., Awaitable[int | None]] = (
                (lambda value, confirm: client.publish(channel, value, confirm=confirm, **more))
                if channel
                else (lambda value, confirm: client.direct(to, value, confirm=confirm, **more))
                if to
                else (lambda value, confirm: client.broadcast(value, confirm=confirm, **more))
            )
            for number, value in enumerate(_repeated(values, count), 1):
                delivered = await deliver(value, number == total)
            if total and delivered is not None:
                report["delivered"] = delivered
            if refused := _refusals(client):
                report["refused"] = len(refused)
                warn(f"{len(refused)} of {total} were refused: {refused[0].message}")
                code = 1
            counters = client.telemetry().counters
    report |= {"bytes": counters.bytes_out, "seconds": round(time.monotonic() - started, 6)}
    if as_json and not answer:
        print_json(report)
    elif not as_json and (total > 1 or not plain) and not answer:
        reached = f", to {report['delivered']}" if "delivered" in report else ""
        click.echo(f"sent {counted(total, 'message')}{reached}, {size(report['bytes'])} in {report['seconds']:.3g} s")
    return code


def _repeated(values: list[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield from values


def _refusals(client: FramedClient) -> list[messages.Error]:
    """Errors for messages that nobody waited for. All are here: the confirmation came behind them."""
    found: list[messages.Error] = []
    with suppress(trio.WouldBlock, StopAsyncIteration):
        while True:
            if isinstance(event := client.receive_nowait(), messages.Error):
                found.append(event)
    return found


class _Plain:
    """Plain payloads on their way, and what comes meanwhile. `answers`: how many are awaited and printed."""

    def __init__(self, client: FramedClient, own: list[bytes], *, codec: str, framed: bool, answers: int) -> None:
        self._client = client
        self._own = frozenset(own)
        self._codec = codec_of(codec)
        self._framed = framed
        self._answers = answers
        self._ended = trio.Event()
        self._silence = trio.CancelScope()

    async def send(self, payloads: Iterator[bytes], priority: int, write: Callable[[Any], None]) -> None:
        """All of them. RequestFailed if the peer refuses, DaemonUnreachable if it is gone."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hear, write)
            try:
                for payload in payloads:
                    await self._client.send(payload, priority=priority)
                await self._client.flush()
            except DaemonUnreachable:
                await self._ended.wait()  # what it said before may be a reason, and is raised there
                raise
            if self._answers:
                return
            with trio.move_on_after(MOST), self._silence:
                self._silence.deadline = trio.current_time() + QUIET
                await self._ended.wait()
            if self._client.state.final and not self._client.telemetry().counters.messages_in:
                raise DaemonUnreachable(
                    f"cannot tell whether {self._client.address} took it: {self._client.state.reason}"
                )
            nursery.cancel_scope.cancel()

    async def _hear(
        self, write: Callable[[Any], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Read what comes, until all answers have, or the peer has ended."""
        task_status.started()
        left = self._answers
        async for payload in self._client:
            if payload not in self._own and self._framed:
                self._check(payload)
            self._silence.deadline = trio.current_time() + QUIET
            if left:
                write(self._codec.decode(payload))
                left -= 1
                if not left:
                    return
        self._ended.set()
        if left:
            why = self._client.state.reason or "the peer ended the connection"
            raise RequestFailed("closed", f"cannot get all answers: {left} had not come: {why}", status=502)

    def _check(self, payload: bytes) -> None:
        """Raise what the peer refuses us with, if that is what this payload says."""
        try:
            event = messages.decode_event(payload, messages.sniff(payload))
        except ProtocolError:
            return
        where = f"cannot send a plain payload to {self._client.address}"
        match event:
            case messages.Error():
                hint = "if it speaks operations, give --channel, --to or --broadcast"
                raise RequestFailed(event.code, f"{where}: the peer refused it: {event.message}; {hint}", status=400)
            case messages.Close(code=CloseCode.NORMAL):
                return
            case messages.Close():
                try:
                    word = CloseCode(event.code).name.lower().replace("_", "-")
                except ValueError:
                    word = "closed"
                why = f": {event.reason}" if event.reason else ""
                raise RequestFailed(word, f"{where}: the peer closed it, {word} ({event.code}){why}", status=403)
