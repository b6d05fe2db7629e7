"""What `netctl framed send` does: plain payloads or operations out, and whether the peer took them.

Rules:
- operations are sent and confirmed as sending.py says;
- nobody confirms a plain payload. So its sender stays until nothing came for QUIET seconds, MOST at most: a daemon that
  refuses says so at once. A peer that hangs up then without a word may have taken it or not: that is no success;
- a refusal is an `error` or `close` of the message vocabulary, which a peer says in JSON or MessagePack whatever the
  codec; a payload of our own that comes back is none.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from netd.cli.data import operation_data, plain_value
from netd.cli.framed_dial import client_of
from netd.cli.message_view import writer
from netd.cli.sending import deliver, pieces_of, print_report, repeated
from netd.cli.targets import channel_bytes
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.codecs import codec as codec_of
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    pieces = pieces_of(data, lines)
    total = len(pieces) * count
    started = time.monotonic()
    report: dict[str, Any] = {"sent": total}
    code = 0
    plain = channel is None and to is None and not broadcast
    if plain:
        name = how["codec"] or "raw"
        payloads = [codec_of(name).encode(plain_value(piece, name, form)) for piece in pieces]
        # what a peer says to refuse us may be in no form of our codec
        how["codec"] = "raw"
        framed = how["framing"] != "none"
        async with client_of(address, how, reconnect=False) as client:
            sender = _Plain(client, payloads, codec=name, framed=framed, answers=total if answer else 0)
            await sender.send(repeated(payloads, count), priority, writer(as_json))
            counters = client.telemetry().counters
    else:
        values = [operation_data(piece, form) for piece in pieces]
        where = channel_bytes(channel) if channel is not None else None
        async with client_of(address, how, reconnect=False) as client:
            report, code = await deliver(
                client, values, count, channel=where, to=to, priority=priority, ephemeral=ephemeral
            )
            counters = client.telemetry().counters
    report |= {"bytes": counters.bytes_out, "seconds": round(time.monotonic() - started, 6)}
    if not answer:
        print_report(report, as_json=as_json, quiet=plain and total == 1)
    return code


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
