"""A broker in a thread of its own, and WebSocket clients that are nothing but a socket and bytes.

    with broker({"max_message": 2**24}) as house:          # a daemon with this [broker]; plain functions may use it
        wire = house.wire("/app")                          # a socket that has been upgraded
        answer = wire.talk(raw(0x81, b"hi") + GOODBYE)     # all that came until the connection was over

What comes back is read by a decoder that is too simple to be wrong (tests/support/websocketpeer.py).
"""

from __future__ import annotations

import base64
import json
import os
import queue
import selectors
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

import netd
from netd.wire.websocket import Decoder, Limits, frame
from tests.support.websocketpeer import raw, said

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from netd.wire.deflate import Decompressor

PATIENCE = 30.0
"""Seconds after which a test that waits for something gives up."""

OPEN = {
    "namespace": [
        {
            "name": "public",
            "subscribe": "anyone",
            "publish": "anyone",
            "presence": "anyone",
            "history": "anyone",
            "history_size": 100,
        }
    ],
    "direct": "anyone",
    "broadcast": "anyone",
    "clients": "anyone",
}

GOODBYE = raw(0x88, b"\x03\xe8")
"""A client's Close, 1000."""


class Answer(NamedTuple):
    """What came until the connection was over."""

    events: list[tuple[str, Any]]
    error: int | None
    """The code that our own decoder ended with; None: all of it was a WebSocket's."""

    @property
    def close(self) -> int | None:
        """The code of the Close that came last; None: it ended without one."""
        return self.events[-1][1][0] if self.events and self.events[-1][0] == "close" else None

    @property
    def before(self) -> list[tuple[str, Any]]:
        """What came before the Close."""
        return [event for event in self.events if event[0] != "close"]


class Wire:
    """One upgraded connection."""

    def __init__(self, sock: socket.socket, extensions: str, rest: bytes) -> None:
        self.socket = sock
        self.extensions = extensions
        """The value of Sec-WebSocket-Extensions in the answer; "" without."""
        self._rest = rest

    def talk(self, stream: bytes, *, chop: int = 0, inflate: Decompressor | None = None) -> Answer:
        """Send all of this, in pieces of so many bytes where told, and read until the other side closes."""
        received = [self._rest]
        deadline = time.monotonic() + PATIENCE
        self.socket.setblocking(False)
        at = 0
        with self.socket, selectors.DefaultSelector() as waiting:
            waiting.register(self.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if stream else 0))
            while True:
                for _, ready in waiting.select(PATIENCE):
                    deadline = time.monotonic() + PATIENCE  # of silence
                    try:
                        if ready & selectors.EVENT_READ:
                            data = self.socket.recv(1 << 18)
                            if not data:
                                return self._read(b"".join(received), inflate)
                            received.append(data)
                        if ready & selectors.EVENT_WRITE:
                            at += self.socket.send(stream[at : at + (chop or 1 << 18)])
                    except BlockingIOError:
                        continue
                    except (ConnectionResetError, BrokenPipeError):
                        return self._read(b"".join(received), inflate)
                    if at >= len(stream):
                        waiting.modify(self.socket, selectors.EVENT_READ)
                assert time.monotonic() < deadline, f"it goes on after {b''.join(received)[:200]!r}"

    def _read(self, data: bytes, inflate: Decompressor | None) -> Answer:
        decoder = Decoder(Limits(1 << 28, max_fragments=1 << 20), masked=False, inflate=inflate)
        events = said(decoder.receive(data))
        return Answer(events, decoder.error.close if decoder.error else None)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def next(self, count: int) -> bytes:
        """So many bytes."""
        data, self._rest = self._rest, b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, f"it ended after {data!r}"
            data += more
        return data

    def frame(self) -> tuple[int, bytes]:
        """The next frame: its first byte and its payload."""
        first, size = self.next(2)
        if size > 125:
            size = int.from_bytes(self.next(2 if size == 126 else 8))
        return first, self.next(size)

    def say(self, **message: Any) -> None:
        """One message of the vocabulary, in JSON."""
        self.send(frame(1, json.dumps(message).encode(), key=b"mask"))

    def hear(self, *types: str) -> dict[str, Any]:
        """The next message of the vocabulary, or the next of these types."""
        while True:
            first, payload = self.frame()
            if first & 0x0F == 1:
                message: dict[str, Any] = json.loads(payload)
                if not types or message["type"] in types:
                    return message
            assert first & 0x0F in (1, 9, 10), f"it ended with {payload!r}"

    def ended(self) -> tuple[int | None, str]:
        """The code and reason of its Close, once it has ended; without one None and why."""
        data = self._rest
        try:
            while more := self.socket.recv(1 << 18):
                data += more
        except OSError as error:
            return None, str(error)
        finally:
            self.socket.close()
        found = said(Decoder(Limits(1 << 28), masked=False).receive(data))
        return found[-1][1] if found and found[-1][0] == "close" else (None, "without a Close")

    def close(self) -> None:
        self.socket.close()


class Site:
    """Where a broker serves, and its clients."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.tls = tls
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self._sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self.host, self.port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_hostname=self.host)
        self._sockets.append(sock)
        return sock

    def close(self) -> None:
        """Close what its clients have left open."""
        for sock in self._sockets:
            sock.close()

    def get(self, head: str) -> tuple[int, str]:
        """The status and the whole answer to a request head, which is sent as it is; the connection ends."""
        with self.connect() as sock:
            sock.sendall(head.encode("latin-1"))
            sock.shutdown(socket.SHUT_WR)
            data = b""
            while more := sock.recv(65536):
                data += more
        return int(data.split(b" ", 2)[1]), data.decode("latin-1")

    def upgrade(self, path: str, *headers: str, host: str | None = None) -> str:
        """A head that asks for a WebSocket."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {self.address if host is None else host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *headers,
        ]
        return "\r\n".join(lines) + "\r\n\r\n"

    def wire(self, path: str, *headers: str) -> Wire:
        return self.upgraded(self.connect(), path, *headers)

    def upgraded(self, sock: socket.socket, path: str, *headers: str) -> Wire:
        """The same on a connection that is there."""
        sock.sendall(self.upgrade(path, *headers).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            assert more, f"no upgrade: {data!r}"
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        lower = {name.lower(): value for name, value in fields.items()}
        return Wire(sock, lower.get(b"sec-websocket-extensions", b"").decode(), rest)


class House(Site):
    """A running broker; `daemon` is to be touched through `do` alone."""

    def __init__(self, address: str, daemon: Any, token: trio.lowlevel.TrioToken) -> None:
        super().__init__(address)
        self.daemon = daemon
        self._token = token

    def do(self, function: Any, *arguments: Any) -> Any:
        """Call it where the daemon runs; async ones are awaited."""
        return trio.from_thread.run(_awaited, function, arguments, trio_token=self._token)


async def _awaited(function: Any, arguments: tuple[Any, ...]) -> Any:
    result = function(*arguments)
    return await result if hasattr(result, "__await__") else result


@contextmanager
def broker(settings: dict[str, Any] | None = None, **sections: Any) -> Iterator[House]:
    """A daemon with a broker on a port of its own, and a hub that lets strangers do everything in public:*."""
    listen = [{"address": "127.0.0.1:0"}]
    whole = {"hub": OPEN, "broker": {"listen": listen, **(settings or {})}, **sections}
    began: queue.SimpleQueue[Any] = queue.SimpleQueue()
    over = trio.Event()

    async def live() -> None:
        async with netd.open(whole) as daemon:
            began.put((daemon.addresses("broker")[0], daemon, trio.lowlevel.current_trio_token()))
            await over.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # for the test's own thread
            began.put(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    started = began.get(timeout=PATIENCE)
    if isinstance(started, BaseException):
        thread.join()
        raise started
    house = House(*started)
    try:
        yield house
    finally:
        house.close()
        trio.from_thread.run_sync(over.set, trio_token=house._token)
        thread.join()


def message(first: int, payload: bytes) -> bytes:
    """A masked frame with any first byte, made quickly."""
    made = frame(first & 0x0F, payload, key=b"\x5a\x00\xff\x80") if first & 0x80 else b""
    return bytes([first]) + (made or frame(2, payload, key=b"\x5a\x00\xff\x80"))[1:]
