"""`netctl broker bench`: messages published to a channel by some, and heard by others, all of them this process.

    each publisher: WINDOW messages out; for every one that is confirmed, the next goes out. Or RATE, come what may

Rules:
- a message carries when it was sent: what a subscriber measures is from the write that carried it to the read that
  brought it, and includes the time in which this process was busy with other connections;
- what a stranger says in the channel is not counted; it should be a channel of one's own;
- publishers do not hear the channel; their own measure is the time to the daemon's confirmation;
- WebSockets here are made of wire/websocket.py, which costs a tenth of what BrokerClient does a message.

Left out: brokers of other makes side by side (tests/bench).
"""

from __future__ import annotations

import os
import ssl
import sys
import time
from base64 import b64encode
from collections import deque
from contextlib import ExitStack
from inspect import isawaitable
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from netd.cli.bench import Times, print_measured, quantiles, rounded, show_progress
from netd.cli.broker_dial import client_of
from netd.cli.output import Column
from netd.cli.output import size as readable_size
from netd.cli.targets import channel_bytes
from netd.client.broker_options import bearer
from netd.client.connection import why
from netd.client.link import dial
from netd.client.refusals import refused_upgrade
from netd.errors import DaemonUnreachable, RequestFailed
from netd.wire import messages, websocket
from netd.wire.upgrade import VERSION, accept_key

if TYPE_CHECKING:
    from netd.client.broker import BrokerClient
    from netd.client.link import Link

_HEAD = 64 * 1024
_TIME = Struct("8sd")
"""Whose message it is, and when it was sent."""
_PIECE = 1 << 20
"""Bytes of messages that are made and written at once."""
_ENDED = "cannot go on: the broker ended a connection"
_SHOWN = (
    (Column("SIZE", "right", spare=4), readable_size, "size"),
    (Column("PUBLISHERS", "right", spare=2), str, "publishers"),
    (Column("SUBSCRIBERS", "right", spare=3), str, "subscribers"),
    (Column("PUBLISHED/S", "right", style="bold"), rounded, "published_per_second"),
    (Column("DELIVERED/S", "right", style="bold"), rounded, "delivered_per_second"),
)
E = TypeVar("E")


async def bench(
    *,
    channel: str,
    size: int,
    publishers: int,
    subscribers: int,
    window: int,
    rate: float | None,
    seconds: float,
    as_json: bool,
    **how: Any,
) -> int:
    """Run it, and print a table or an object."""
    patience = how["timeout"]
    client = await client_of(how, reconnect=False)
    run = Run(client, channel_bytes(channel), size, window, patience)
    with ExitStack() as opened:
        hearing = [await run.open(opened) for _ in range(subscribers)]
        for socket in hearing:
            await run.subscribe(socket)
        talking = [await run.open(opened) for _ in range(publishers)]
        async with trio.open_nursery() as nursery:
            for socket in hearing:
                nursery.start_soon(run.hear, socket)
            for socket in talking:
                nursery.start_soon(run.publish, socket, publishers / rate if rate else None)
            await run.first_answer()
            run.begin()
            if sys.stderr.isatty() and not as_json:
                nursery.start_soon(show_progress, lambda: run.heard.count or run.confirmed.count)
            await trio.sleep(seconds)
            run.finish()
            nursery.cancel_scope.cancel()
    print_measured(run.report(publishers, subscribers, rate), _SHOWN, as_json=as_json)
    return 0


class Socket:
    """A WebSocket that was upgraded: events in, frames out."""

    def __init__(self, link: Link, most: int) -> None:
        self.link = link
        self._decoder = websocket.Decoder(websocket.Limits(most), masked=False)
        self._ready: deque[messages.Event] = deque()

    async def say(self, *requests: messages.Request) -> None:
        await self.send(b"".join(map(framed, requests)))

    async def send(self, data: bytes) -> None:
        """DaemonUnreachable if the broker is gone."""
        try:
            await self.link.send(data)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise DaemonUnreachable(_ENDED) from error

    async def receive(self) -> list[messages.Event]:
        """All that has come, at least one. DaemonUnreachable at the end."""
        while True:
            try:
                data = await self.link.receive()
            except (trio.BrokenResourceError, ssl.SSLError):
                data = b""
            if not data:
                raise DaemonUnreachable(_ENDED)
            if events := await self.take(data):
                return events

    async def take(self, data: bytes) -> list[messages.Event]:
        """The messages in these bytes; pings are answered."""
        found: list[messages.Event] = []
        for event in self._decoder.receive(data):
            match event:
                case websocket.Messages(payloads=payloads):
                    found += [messages.decode_event(payload, "messagepack") for payload in payloads]
                case websocket.Ping(payload=payload):
                    await self.send(websocket.frame(websocket.PONG, payload, key=os.urandom(4)))
                case websocket.Close(code=code, reason=reason):
                    raise _closed(code, reason)
        if self._decoder.error is not None:
            raise self._decoder.error
        return found

    async def answer(self, kind: type[E]) -> E:
        """The next event of this kind; what comes before it is of no interest. RequestFailed for a refusal."""
        while True:
            for event in await self.receive():
                refuse(event)
                if isinstance(event, kind):
                    return event


def framed(request: messages.Request) -> bytes:
    return websocket.frame(websocket.BINARY, messages.encode(request, "messagepack"), key=os.urandom(4))


def refuse(event: messages.Event) -> None:
    """Raise what the daemon refuses us with, if that is what this is."""
    if isinstance(event, messages.Error):
        raise RequestFailed(event.code, f"cannot measure: the daemon says: {event.message}", status=403)
    if isinstance(event, messages.Close):
        raise _closed(event.code, event.reason)


def _closed(code: int, reason: str) -> DaemonUnreachable:
    why = (
        "; this client does not keep up: try a smaller --window, or a --rate" if code == messages.CloseCode.SLOW else ""
    )
    return DaemonUnreachable(f"cannot go on: the broker closed a connection ({code}: {reason}){why}")


class Run:
    """One measurement."""

    def __init__(self, client: BrokerClient, channel: bytes, size: int, window: int, patience: float) -> None:
        self.heard = Times()
        self.confirmed = Times()
        self._client = client
        self._fields = messages.channel_fields(channel)
        self._size = size
        self._window = window
        self._patience = patience
        self._mark = os.urandom(8)
        self._rest = bytes(size - _TIME.size)
        self._answered = trio.Event()
        self._began = self._ended = 0.0

    async def open(self, opened: ExitStack) -> Socket:
        """A session; `opened` closes it."""
        options, url = self._client.options, self._client.address
        token = options.token() if callable(options.token) else options.token
        if isawaitable(token):
            token = await token
        link = await dial(url.peer, options)
        opened.callback(link.close)
        with trio.move_on_after(self._patience):
            in_header = options.token_in == "header"
            rest = await self._upgrade(link, dict(options.headers), token if in_header else None)
            socket = Socket(link, max(options.max_message, 2 * self._size))
            shown = None if in_header else token
            await socket.say(messages.Hello(messages.VERSION, options.name, shown, dict(options.tags) or None, ref=1))
            if rest:
                await socket.take(rest)
            await socket.answer(messages.Welcome)
            return socket
        raise DaemonUnreachable(f"cannot begin at {url}: no welcome within {self._patience:g} s")

    async def _upgrade(self, link: Link, headers: dict[str, str], token: str | None) -> bytes:
        """RFC 6455 section 4.1. What came behind the answer."""
        url, key = self._client.address, b64encode(os.urandom(16))
        headers |= {"Host": url.host, "Upgrade": "websocket", "Connection": "Upgrade"}
        headers |= {"Sec-WebSocket-Key": key.decode(), "Sec-WebSocket-Version": VERSION.decode()}
        headers["Sec-WebSocket-Protocol"] = "netd.msgpack"
        if token is not None:
            headers["Authorization"] = bearer(token)
        lines = [f"GET {url.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        data = b""
        try:
            await link.send("\r\n".join([*lines, "", ""]).encode())
            while b"\r\n\r\n" not in data and len(data) < _HEAD:
                more = await link.receive()
                if not more:
                    raise DaemonUnreachable(f"cannot begin at {url}: it ended the connection instead of answering")
                data += more
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            raise DaemonUnreachable(f"cannot begin at {url}: {why(error)}") from error
        head, _, rest = data.partition(b"\r\n\r\n")
        status, *fields = head.split(b"\r\n")
        said = [(name.strip().lower(), value.strip()) for name, _, value in (field.partition(b":") for field in fields)]
        words = status.split(maxsplit=2)
        if len(words) < 2 or not words[1].isdigit():
            raise DaemonUnreachable(f"cannot begin at {url}: what answers there is no HTTP")
        if words[1] != b"101":
            raise refused_upgrade(url, int(words[1]), said, rest)
        if dict(said).get(b"sec-websocket-accept") != accept_key(key):
            raise DaemonUnreachable(f"cannot begin at {url}: its answer is to another upgrade")
        return rest

    async def subscribe(self, socket: Socket) -> None:
        with trio.move_on_after(self._patience):
            await socket.say(messages.Subscribe(**self._fields, ref=2))
            await socket.answer(messages.Ok)
            return
        raise DaemonUnreachable(f"cannot subscribe at {self._client.address}: no answer within {self._patience:g} s")

    async def first_answer(self) -> None:
        with trio.move_on_after(self._patience):
            await self._answered.wait()
            return
        raise DaemonUnreachable(f"cannot measure {self._client.address}: nothing came back within {self._patience:g} s")

    def begin(self) -> None:
        self.heard, self.confirmed = Times(), Times()
        self._began = time.perf_counter()

    def finish(self) -> None:
        self._ended = time.perf_counter()

    # --- the two sides ------------------------------------------------------------------------------------------------

    async def hear(self, socket: Socket) -> None:
        while True:
            now_events = await socket.receive()
            now = time.perf_counter()
            for event in now_events:
                if isinstance(event, messages.Message):
                    if (sent := self._sent_at(messages.data_of(event))) is not None:
                        self.heard.add(now - sent, 1)
                else:
                    refuse(event)

    def _sent_at(self, data: object) -> float | None:
        """When this message of ours was sent; None: it is somebody else's."""
        if not isinstance(data, bytes) or len(data) != self._size:
            return None
        mark, sent = _TIME.unpack_from(data)
        return sent if mark == self._mark else None

    async def publish(self, socket: Socket, interval: float | None) -> None:
        """Keep a window of messages under way, or send one every so many seconds, until cancelled."""
        sent: deque[float] = deque()
        async with trio.open_nursery() as nursery:
            if interval is not None:
                nursery.start_soon(self._pace, socket, sent, interval)
            else:
                await self._send(socket, sent, self._window)
            while True:
                answers = 0
                events = await socket.receive()
                now = time.perf_counter()
                for event in events:
                    refuse(event)
                    if isinstance(event, messages.Ok) and sent:
                        self.confirmed.add(now - sent.popleft(), 1)
                        answers += 1
                if answers:
                    self._answered.set()
                    if interval is None:
                        await self._send(socket, sent, answers)

    async def _pace(self, socket: Socket, sent: deque[float], interval: float) -> None:
        due = trio.current_time()
        while True:
            await self._send(socket, sent, 1)
            due += interval
            await trio.sleep_until(due)

    async def _send(self, socket: Socket, sent: deque[float], count: int) -> None:
        most = max(1, _PIECE // self._size)
        while count > 0:
            now, part = time.perf_counter(), min(count, most)
            payload = messages.encode(
                messages.Publish(**self._fields, data64=_TIME.pack(self._mark, now) + self._rest, ref=3), "messagepack"
            )
            sent.extend([now] * part)
            pieces = [websocket.frame(websocket.BINARY, payload, key=os.urandom(4)) for _ in range(part)]
            await socket.send(b"".join(pieces))
            count -= part

    def report(self, publishers: int, subscribers: int, rate: float | None) -> dict[str, Any]:
        seconds = max(self._ended - self._began, 1e-9)
        measured = self.heard if subscribers else self.confirmed
        return {
            "url": str(self._client.address),
            "size": self._size,
            "publishers": publishers,
            "subscribers": subscribers,
            "window": None if rate else self._window,
            "rate": rate,
            "seconds": round(seconds, 3),
            "published": self.confirmed.count,
            "delivered": self.heard.count,
            "published_per_second": round(self.confirmed.count / seconds, 1),
            "delivered_per_second": round(self.heard.count / seconds, 1),
            "measured": "delivery" if subscribers else "confirmation",
        } | quantiles(measured)
