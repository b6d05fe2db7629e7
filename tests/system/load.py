"""Clients that keep coming while a daemon is restarted, counted by what became of each connection.

    load.py [--rate N] [--once] NAME=KIND:ADDRESS ...

    framed, framed-tls     127.0.0.1:9000, [::1]:9000 or a path: a hello, its welcome, a ping and its pong
    websocket              an upgrade, the first message, and a close
    broker                 an upgrade at /app, a message and its echo, and a close
    http                   ADDRESS/PATH: a GET; ADDRESS may be a Unix socket's path: /run/x.sock:/v1/status
    staying-framed, staying-websocket      as above, but --crowd clients that stay until the daemon ends them
    session                one FramedClient that comes back: it publishes to public:load, and hears itself

It prints "loading" once every target has answered (every client of a crowd), goes on until its standard input ends,
lets what is under way finish, and prints one JSON object. For each target but sessions:

    ok          the exchange was complete
    told        the daemon said that it ends (a close, a 503) instead of answering, or while the client stayed
    reset       the connection was made and ended without a word
    refused     nobody listened: ECONNREFUSED, or no such socket
    timed_out   no answer within PATIENCE
    failed      anything else; `errors` says what

    slowest_connect, slowest_exchange      in seconds; a client that queues waits in its exchange

Run by a Python with the test tools, in the network of the machine under test.
"""

from __future__ import annotations

import argparse
import json
import ssl
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import trio

from netd.client import FramedClient
from netd.client.framed import Gap
from netd.client.options import Reconnect
from netd.errors import NetdError
from netd.wire import messages
from netd.wire.framing import FrameDecoder, FrameLimits, frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATIENCE = 20.0
"""Seconds for one connection, from connect to the end of its exchange."""
IN_FLIGHT = 200
"""Connections of one target at once: past it no new ones are made until some have ended."""
CHANNEL = "public:load"

Outcome = str


class Told(Exception):
    """The daemon said that it will not go on."""


class Reset(Exception):
    """The connection ended without a word."""


@dataclass
class Report:
    counts: Counter[Outcome] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    slowest_connect: float = 0.0
    slowest_exchange: float = 0.0

    def as_json(self) -> dict[str, Any]:
        names = ("ok", "told", "reset", "refused", "timed_out", "failed")
        return {
            **{name: self.counts[name] for name in names},
            "slowest_connect": round(self.slowest_connect, 3),
            "slowest_exchange": round(self.slowest_exchange, 3),
            "errors": dict(self.errors),
        }


# --- one connection --------------------------------------------------------------------------------------------------


async def connect(address: str) -> trio.SocketStream:
    """By hand, so that what the kernel said is what is seen."""
    if address.startswith("/"):
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        target: Any = address
    else:
        host, _, port = address.rpartition(":")
        family = trio.socket.AF_INET6 if host.startswith("[") else trio.socket.AF_INET
        sock = trio.socket.socket(family)
        target = (host.strip("[]"), int(port))
    try:
        await sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def some(stream: trio.abc.Stream) -> bytes:
    data = bytes(await stream.receive_some(65536))
    if not data:
        raise Reset("end of stream")
    return data


async def framed(stream: trio.abc.Stream, answered: Callable[[], object] | None = None) -> None:
    decoder = FrameDecoder(FrameLimits())
    ready: list[bytes] = []

    async def ask(request: messages.Request, kind: type | None) -> None:
        await stream.send_all(frame(messages.encode(request, "json")))
        while True:
            while not ready:
                ready.extend(decoder.receive(await some(stream)))
            event = messages.decode_event(ready.pop(0), "json")
            if isinstance(event, messages.Close):
                raise Told(f"close {event.code}")
            if kind is not None and isinstance(event, kind):
                return

    await ask(messages.Hello(version=1), messages.Welcome)
    await ask(messages.Ping(ts=1), messages.Pong)
    if answered is not None:
        answered()
        await ask(messages.Ping(ts=2), None)  # whatever comes, until the close


@cache
def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def framed_tls(stream: trio.SocketStream) -> None:
    secured = trio.SSLStream(stream, _any_certificate(), https_compatible=True)
    await secured.do_handshake()
    await framed(secured)


async def websocket(
    stream: trio.SocketStream, answered: Callable[[], object] | None = None, *, path: str = "/", first: bytes = b""
) -> None:
    request = (
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    await stream.send_all("".join(f"{line}\r\n" for line in (*request, "")).encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += await some(stream)
    head, _, data = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        raise Told(head.splitlines()[0].decode())
    if first:
        await stream.send_all(first)
    while True:
        opcode, payload, data = await _websocket_frame(stream, data)
        if opcode == 8:
            raise Told(f"close {struct.unpack('!H', payload[:2])[0]}")
        if answered is None:
            break
        answered()
        if opcode == 9:
            await stream.send_all(bytes([0x8A, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
    await stream.send_all(bytes([0x88, 0x82, 0, 0, 0, 0]) + struct.pack("!H", 1000))


async def broker(stream: trio.SocketStream) -> None:
    await websocket(stream, path="/app", first=bytes([0x81, 0x84, 0, 0, 0, 0]) + b"load")


async def _websocket_frame(stream: trio.SocketStream, data: bytes) -> tuple[int, bytes, bytes]:
    """The next frame's opcode and payload, and what came after it (RFC 6455 section 5.2; from a server, unmasked)."""
    while True:
        if len(data) >= 2:
            size, start = data[1], 2
            if size == 126 and len(data) >= 4:
                size, start = struct.unpack("!H", data[2:4])[0], 4
            if (data[1] != 126 or start == 4) and len(data) >= start + size:
                return data[0] & 0x0F, data[start : start + size], data[start + size :]
        data += await some(stream)


async def http(path: str, stream: trio.SocketStream) -> None:
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while more := bytes(await stream.receive_some(65536)):
        data += more
    if not data:
        raise Reset("end of stream")
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise Told(head.splitlines()[0].decode())
    length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length:"))
    if len(body) < int(length.partition(b":")[2]):
        raise Reset("end of stream within the body")


async def attempt(
    address: str, exchange: Callable[[trio.SocketStream], Awaitable[None]], report: Report, patience: float = PATIENCE
) -> None:
    start = trio.current_time()
    outcome, error = "timed_out", ""
    with trio.move_on_after(patience):
        try:
            stream = await connect(address)
            connected = trio.current_time()
            report.slowest_connect = max(report.slowest_connect, connected - start)
            try:
                await exchange(stream)
            finally:
                await trio.aclose_forcefully(stream)
            report.slowest_exchange = max(report.slowest_exchange, trio.current_time() - connected)
            outcome = "ok"
        except Told as told:
            outcome, error = "told", str(told)
        except (Reset, trio.BrokenResourceError, ConnectionResetError, BrokenPipeError) as reset:
            # what is under it says how: RST, or TLS that ends early
            outcome, error = "reset", repr(reset.__cause__ or reset)
        except (ConnectionRefusedError, FileNotFoundError) as refused:
            outcome, error = "refused", repr(refused)
        except (OSError, NetdError) as failed:
            outcome, error = "failed", repr(failed)
    report.counts[outcome] += 1
    if error:
        report.errors[error] += 1


# --- a target --------------------------------------------------------------------------------------------------------


class Target:
    """Connections to one listener, at a rate, each on its own."""

    def __init__(self, kind: str, address: str) -> None:
        self.report = Report()
        self.answered = trio.Event()
        if kind == "http":
            address, _, path = address.partition("/") if not address.startswith("/") else address.partition(":")
            self.exchange: Callable[[trio.SocketStream], Awaitable[None]] = partial(http, f"/{path.lstrip('/')}")
        else:
            self.exchange = {
                "framed": framed,
                "framed-tls": framed_tls,
                "websocket": websocket,
                "broker": broker,
            }[kind]
        self.address = address

    async def one(self) -> None:
        await attempt(self.address, self.exchange, self.report)
        if self.report.counts["ok"]:
            self.answered.set()

    async def run(self, rate: float, stop: trio.Event) -> None:
        places = trio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            try:
                await self.one()
            finally:
                places.release()

        async with trio.open_nursery() as nursery:
            while not stop.is_set():
                await places.acquire()
                nursery.start_soon(one)
                with trio.move_on_after(1 / rate):
                    await stop.wait()

    def as_json(self) -> dict[str, Any]:
        return self.report.as_json()


class Crowd:
    """Clients that stay, each until its connection ends."""

    def __init__(self, kind: str, address: str, size: int) -> None:
        self.report = Report()
        self.answered = trio.Event()
        self.exchange = {"staying-framed": framed, "staying-websocket": websocket}[kind]
        self.address = address
        self.size = size

    async def run(self, rate: float, stop: trio.Event) -> None:
        there: set[int] = set()

        def answered(number: int) -> None:
            there.add(number)
            if len(there) == self.size:
                self.answered.set()

        async with trio.open_nursery() as nursery:
            for number in range(self.size):
                exchange = partial(self.exchange, answered=partial(answered, number))
                nursery.start_soon(attempt, self.address, exchange, self.report, 6 * PATIENCE)

    def as_json(self) -> dict[str, Any]:
        return self.report.as_json()


class Session:
    """A session that comes back: what it published with a confirmation, and what came back."""

    def __init__(self, address: str) -> None:
        self.address = address if not address.startswith("/") else f"unix:{address}"
        self.answered = trio.Event()
        self.confirmed: list[int] = []
        self.unsure: list[int] = []
        self.received: list[int] = []
        self.gaps = 0
        self.connections = 0
        self._last = trio.Event()

    async def run(self, rate: float, stop: trio.Event) -> None:
        def count(state: Any) -> None:
            self.connections += state.name == "connected"

        async with (
            FramedClient(self.address, reconnect=Reconnect(patient=True), on_state=count) as client,
            await client.subscribe(CHANNEL) as heard,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._hear, heard)
            number = 0
            while not stop.is_set():
                number += 1
                await self._publish(client, number)
                with trio.move_on_after(1 / rate):
                    await stop.wait()
            with trio.move_on_after(PATIENCE):
                while not self._last.is_set():
                    await self._publish(client, -1)
                    with trio.move_on_after(0.5):
                        await self._last.wait()
            nursery.cancel_scope.cancel()

    async def _publish(self, client: FramedClient, number: int) -> None:
        try:
            await client.publish(CHANNEL, number)
        except NetdError:
            self.unsure.append(number)
        else:
            self.confirmed.append(number)
            self.answered.set()

    async def _hear(self, heard: Any) -> None:
        async for item in heard:
            if isinstance(item, Gap):
                self.gaps += 1
            elif item.data == -1:
                self._last.set()
            else:
                self.received.append(item.data)

    def as_json(self) -> dict[str, Any]:
        received = set(self.received)
        return {
            "connections": self.connections,
            "confirmed": len([number for number in self.confirmed if number > 0]),
            "unsure": len([number for number in self.unsure if number > 0]),
            "received": len(self.received),
            "lost": len([number for number in self.confirmed if number > 0 and number not in received]),
            "twice": len(self.received) - len(received),
            "in_order": self.received == sorted(self.received),
            "gaps": self.gaps,
            "ended": self._last.is_set(),
        }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="NAME=KIND:ADDRESS")
    parser.add_argument("--rate", type=float, default=15.0, help="connections a second to each target")
    parser.add_argument("--crowd", type=int, default=50, help="clients of a staying target")
    parser.add_argument("--once", action="store_true", help="one connection to each, at once")
    arguments = parser.parse_args()
    targets: dict[str, Target | Crowd | Session] = {}
    for text in arguments.targets:
        name, _, rest = text.partition("=")
        kind, _, address = rest.partition(":")
        if kind.startswith("staying-"):
            targets[name] = Crowd(kind, address, arguments.crowd)
        else:
            targets[name] = Session(address) if kind == "session" else Target(kind, address)

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for target in targets.values():
            if arguments.once:
                assert isinstance(target, Target), "only single connections are made once"
                nursery.start_soon(target.one)
            else:
                nursery.start_soon(target.run, arguments.rate, stop)
        if not arguments.once:
            async with trio.open_nursery() as answers:
                for target in targets.values():
                    answers.start_soon(target.answered.wait)
            print("loading", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            stop.set()
    print(json.dumps({name: target.as_json() for name, target in targets.items()}))


if __name__ == "__main__":
    trio.run(main)
