"""`netctl framed bench`: as many messages as an echo gives back, and how long each takes.

    each connection: WINDOW messages out; for every one that comes back, the next goes out

Rules:
- a message's time is from the send call that carried it to the read that brought it back, so it includes the time in
  which this process was busy with other connections;
- what came back during the last moments is counted, what is then still under way is not.

Left out: servers of other makes side by side (tests/bench).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import trio

from netd.cli.bench import Times, print_measured, quantiles, rounded, show_progress
from netd.cli.framed_dial import client_of
from netd.cli.output import Column
from netd.cli.output import size as readable_size
from netd.client.framed_wire import first_payloads, load_signer
from netd.client.link import dial
from netd.errors import DaemonUnreachable, RequestFailed
from netd.wire import messages
from netd.wire.framing import FrameDecoder, FrameLimits, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.framed import FramedClient
    from netd.client.link import Link

_INLINE = 32 * 1024
"""Bytes in flight up to which a connection sends and receives in turn; beyond, both ends could wait for each other."""
_NO_ECHO = "is its mode echo? (for a listener of mode operations: --operations)"
_LIMITED = (
    "it may have reached a limit (framed.connections_per_address, framed.max_connections): "
    "netctl framed info counts whom it did not let in"
)

_SHOWN = (
    (Column("SIZE", "right", spare=5), readable_size, "size"),
    (Column("CONNECTIONS", "right", spare=4), str, "connections"),
    (Column("WINDOW", "right", spare=3), str, "window"),
    (Column("MSG/S", "right", style="bold"), rounded, "messages_per_second"),
    (Column("MB/S", "right", spare=2), "{:,.2f}".format, "megabytes_per_second"),
)


class Flight:
    """Messages under way on one connection: (when sent, how many of them)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._sent: deque[list[float]] = deque()

    def took_off(self, count: int) -> None:
        self._sent.append([time.perf_counter(), count])

    def landed(self, count: int) -> int:
        """How many of them were ours (a server's own ping is none)."""
        now, left = time.perf_counter(), count
        while left and self._sent:
            oldest = self._sent[0]
            part = min(left, int(oldest[1]))
            self._run.times.add(now - oldest[0], part)
            oldest[1] -= part
            left -= part
            if not oldest[1]:
                self._sent.popleft()
        return count - left


async def bench(
    address: str,
    *,
    size: int,
    connections: int,
    window: int,
    seconds: float,
    operations: bool,
    as_json: bool,
    **how: Any,
) -> int:
    """Run it, and print a table or an object."""
    if how["framing"] == "none":
        raise RequestFailed("invalid", "cannot count messages without frames: leave --framing as it is", status=400)
    patience = how["timeout"]
    client = client_of(address, how, reconnect=False)
    payload = bytes(size)
    if operations:
        payload = messages.encode(messages.Binary(data64=payload), "messagepack")
    run = Run(client, frame(payload), connections, window, operations, patience)
    with ExitStack() as opened:
        links = [await run.open(opened) for _ in range(connections)]
        await _measure(run, links, seconds, quietly=as_json)
    print_measured(run.report(size, connections, window), _SHOWN, as_json=as_json)
    return 0


async def _measure(run: Run, links: list[Link], seconds: float, *, quietly: bool) -> None:
    async with trio.open_nursery() as nursery:
        for link in links:
            nursery.start_soon(run.drive, link)
        await run.first_answer()
        run.begin()
        if sys.stderr.isatty() and not quietly:
            nursery.start_soon(show_progress, lambda: run.times.count)
        await trio.sleep(seconds)
        run.finish()
        nursery.cancel_scope.cancel()


class Run:
    """One measurement."""

    def __init__(
        self, client: FramedClient, framed: bytes, connections: int, window: int, operations: bool, patience: float
    ) -> None:
        self.times = Times()
        self._client = client
        self._signer = load_signer(client.options.signer)
        self._framed = framed
        self._connections = connections
        self._window = window
        self._operations = operations
        self._patience = patience
        self._answered = trio.Event()
        self._measuring = False
        self._began = self._ended = 0.0

    async def open(self, opened: ExitStack) -> Link:
        """A connection that is ready for messages; `opened` closes it."""
        options = self._client.options
        link = await dial(self._client.address, options)
        opened.callback(link.close)
        for payload in first_payloads(options, self._signer):
            await link.send(frame(payload))
        if self._operations:
            hello = messages.Hello(messages.VERSION, token=cast("str | None", options.token), ref=1)
            await link.send(frame(messages.encode(hello, "messagepack")))
            await self._welcome(link)
        return link

    async def _welcome(self, link: Link) -> None:
        decoder = FrameDecoder(FrameLimits(self._client.options.max_frame))
        with trio.move_on_after(self._patience):
            while data := await self._receive(link):
                for payload in decoder.receive(data):
                    event = messages.decode_event(payload, "messagepack")
                    if isinstance(event, messages.Error | messages.Close):
                        raise RequestFailed("denied", f"cannot begin: the daemon says {event}", status=403)
                    if isinstance(event, messages.Welcome):
                        return
            raise self._gone(False)
        raise DaemonUnreachable(f"cannot begin at {self._client.address}: no welcome; is its mode operations?")

    async def first_answer(self) -> None:
        with trio.move_on_after(self._patience):
            await self._answered.wait()
            return
        raise DaemonUnreachable(
            f"cannot measure {self._client.address}: nothing came back within {self._patience:g} s; {_NO_ECHO}"
        )

    def begin(self) -> None:
        self.times = Times()
        self._began = time.perf_counter()
        self._measuring = True

    def finish(self) -> None:
        self._ended = time.perf_counter()

    async def drive(self, link: Link) -> None:
        """Keep a window of messages under way, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                flight, checked = Flight(self), False
                decoder = FrameDecoder(FrameLimits(max(self._client.options.max_frame, len(self._framed))))
                sender = _Sender(link, self._framed, flight, lambda: self._gone(checked))
                if len(self._framed) * self._window > _INLINE:
                    nursery.start_soon(sender.run)
                    sender.inline = False
                await sender.send(self._window)
                while data := await self._receive(link):
                    payloads = decoder.receive(data)
                    if decoder.error is not None:
                        raise decoder.error
                    if payloads:
                        if not self._operations and not checked and payloads[0] != self._framed[4:]:
                            what = "something else comes back"
                            raise DaemonUnreachable(f"cannot measure {self._client.address}: {what}; {_NO_ECHO}")
                        checked = True
                        self._answered.set()
                        if ours := flight.landed(len(payloads)):
                            await sender.send(ours)
                raise self._gone(checked)
        finally:
            link.close()

    async def _receive(self, link: Link) -> bytes:
        """What has come; b"" at the end, also at one that was no goodbye."""
        try:
            return await link.receive()
        except trio.BrokenResourceError:
            return b""

    def _gone(self, served: bool) -> DaemonUnreachable:
        """A connection ended; `served`: not before something had come back over it."""
        what = f"cannot go on: {self._client.address} ended"
        if served:
            return DaemonUnreachable(f"{what} a connection")
        return DaemonUnreachable(f"{what} one of {self._connections} before it said anything; {_LIMITED}")

    def report(self, size: int, connections: int, window: int) -> dict[str, Any]:
        seconds = max(self._ended - self._began, 1e-9)
        rate = self.times.count / seconds
        return {
            "address": str(self._client.address),
            "size": size,
            "connections": connections,
            "window": window,
            "operations": self._operations,
            "seconds": round(seconds, 3),
            "messages": self.times.count,
            "messages_per_second": round(rate, 1),
            "megabytes_per_second": round(rate * size / 1e6, 3),
        } | quantiles(self.times)


class _Sender:
    """The sending half: in turn with receiving, or in a task of its own."""

    def __init__(self, link: Link, framed: bytes, flight: Flight, gone: Callable[[], DaemonUnreachable]) -> None:
        self.inline = True
        self._gone = gone
        self._link = link
        self._framed = framed
        self._flight = flight
        self._due = 0
        self._wake = trio.Event()

    async def send(self, count: int) -> None:
        if self.inline:
            self._flight.took_off(count)
            await self._write(count)
        else:
            self._due += count
            self._wake.set()

    async def run(self) -> None:
        most = max(1, (1 << 20) // len(self._framed))
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._due:
                count = min(self._due, most)
                self._due -= count
                self._flight.took_off(count)
                await self._write(count)

    async def _write(self, count: int) -> None:
        try:
            await self._link.send(self._framed * count)
        except trio.BrokenResourceError as error:
            raise self._gone() from error
