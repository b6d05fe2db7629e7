"""A broker that does what a test says, a step at a time: the other end for tests of netd.js, which are synchronous.

    with Peer() as peer:
        link = peer.accept()
        link.welcome(resume="s1")              # reads the hello and answers it
        request = link.request("publish")      # pings and pongs in between do not count
        link.say(type="ok", ref=request["ref"])
        link.abort()                           # without a close frame, as a network that fails

Everything waits PATIENCE seconds at most. What the client says is read as the vocabulary has it: a message that
netd.wire.messages refuses fails the test.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from netd.wire import messages

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

PATIENCE = 20.0


class Link:
    """One accepted connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.done = threading.Event()

    def receive(self) -> dict[str, Any]:
        """What the client says next, as it is."""
        text = self.connection.recv(PATIENCE)
        assert isinstance(text, str), "the client spoke in binary"
        messages.decode_request(text.encode(), "json")
        found: dict[str, Any] = json.loads(text)
        return found

    def request(self, kind: str) -> dict[str, Any]:
        while True:
            request = self.receive()
            if request["type"] == kind:
                return request
            assert request["type"] in ("ping", "pong"), f"{request} instead of {kind}"

    def say(self, *events: dict[str, Any], **fields: Any) -> None:
        for event in [*events, *([fields] if fields else [])]:
            messages.decode_event(json.dumps(event).encode(), "json")
            self.connection.send(json.dumps(event))

    def welcome(self, session: str = "s-1", **fields: Any) -> dict[str, Any]:
        hello = self.request("hello")
        self.say({"type": "welcome", "session": session, "server": "netd", "version": "0", **fields})
        self.say(type="ok", ref=hello["ref"])
        return hello

    def confirm(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Answer a subscribe for this channel."""
        request = self.request("subscribe")
        assert request["channel"] == channel
        self.say({"type": "ok", "ref": request["ref"], "channel": channel, **fields})
        return request

    def publish(self, *offsets: int, channel: str = "public:a", epoch: str = "e1") -> None:
        """Messages of a channel whose data are their offsets."""
        for offset in offsets:
            self.say(type="message", channel=channel, data=offset, offset=offset, epoch=epoch)

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.connection.close(code, reason)
        self.done.set()

    def abort(self) -> None:
        self.connection.socket.shutdown(socket.SHUT_RDWR)
        self.done.set()

    def closed(self) -> int | None:
        """The code of the client's close, once it has closed; what it still says does not count."""
        try:
            while True:
                self.connection.recv(PATIENCE)
        except ConnectionClosed as error:
            return error.rcvd.code if error.rcvd else None


class Peer:
    """The listening side."""

    def __init__(self) -> None:
        self._links: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._all: list[Link] = []
        self._over = False
        self._server = serve(self._arrived, "127.0.0.1", 0, subprotocols=["netd.json"], ping_interval=None)  # type: ignore[list-item]
        self.port: int = self._server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        for link in self._all:
            link.done.set()
        self._server.shutdown()
        self._thread.join()

    def accept(self) -> Link:
        return self._links.get(timeout=PATIENCE)

    def nobody_came(self) -> bool:
        return self._links.empty()

    def _arrived(self, connection: ServerConnection) -> None:
        link = Link(connection)
        self._all.append(link)
        self._links.put(link)
        if not self._over:  # whose page goes on coming back
            link.done.wait()  # the connection ends with this function
