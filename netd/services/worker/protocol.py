"""A worker's connection: bytes in, messages out, and what time demands. Sans-IO; wire/workers.py is the specification.

    connected --hello--> welcomed --...--> fault: what the goodbye has to say
            \\--anything else, or nothing in time--------^

Rules:
- what came before a fault is returned and counts; after it nothing is read;
- whether a worker is welcome is not decided here: the first message returned is its hello;
- pings and their answers stay here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from netd.errors import ProtocolError
from netd.wire.framing import TOO_LARGE, FrameDecoder, FrameLimits
from netd.wire.workers import VERSION, Goodbye, Hello, Ping, Pong, decode_from_worker, encode, version_of

if TYPE_CHECKING:
    from netd.services.worker.config import WorkerConfig
    from netd.wire.workers import FromWorker, ToWorker

_MAX_HELLO = 16 * 1024
"""Bytes of a hello: strangers say it."""
_OUTSTANDING = 64
"""Pings that may wait for an answer; past it they are as good as one."""


class Conversation:
    """One connection. `now` is monotonic seconds."""

    def __init__(self, config: WorkerConfig, now: float) -> None:
        self.config = config
        """May be replaced; a new `max_frame` counts for connections that are yet to come."""
        self.hello: Hello | None = None
        self.fault: Goodbye | None = None
        """Why it has to end."""
        self._limits = FrameLimits(min(_MAX_HELLO, config.max_frame))
        self._most = config.max_frame
        self._decoder = FrameDecoder(self._limits)
        self._since = now
        self._next_ping = 1
        self._pinged = now
        self._pings: deque[tuple[int, float]] = deque()
        """Those not answered, and when they were sent."""

    def receive(self, data: bytes) -> list[FromWorker]:
        """The messages that these bytes complete, but for pongs."""
        found: list[FromWorker] = []
        if self.fault is not None:
            return found
        try:
            for payload in self._decoder.receive(data):
                message = self._read(payload)
                if isinstance(message, Pong):
                    self._answered(message)
                elif self._takes(message):
                    found.append(message)
                else:
                    return found
            if self._decoder.error is not None:
                raise self._decoder.error
        except ProtocolError as error:
            self.fault = Goodbye("too-large" if error.close == TOO_LARGE else "invalid", str(error)[:500])
        return found

    def write(self, message: ToWorker) -> bytes | None:
        """Its bytes; None for what is longer than `max_frame`."""
        data = encode(message)
        return None if len(data) - 4 > self._most else data

    def look(self, now: float) -> Ping | None:
        """What time demands: a ping, or `fault`."""
        if self.fault is not None:
            return None
        config = self.config
        if self.hello is None:
            if now - self._since > config.hello_timeout:
                self.fault = Goodbye("invalid", f"cannot wait longer than {config.hello_timeout:g} s for the hello")
            return None
        if self._pings and now - self._pings[0][1] > config.hang:
            self.fault = Goodbye("hung", f"cannot wait longer than {config.hang:g} s for the answer to a ping", True)
            return None
        if now - self._pinged < config.ping or len(self._pings) >= _OUTSTANDING:
            return None
        ping = Ping(self._next_ping)
        self._pings.append((self._next_ping, now))
        self._next_ping += 1
        self._pinged = now
        return ping

    def _read(self, payload: bytes) -> FromWorker:
        try:
            return decode_from_worker(payload)
        except ProtocolError:
            if self.hello is None and (version := version_of(payload)) != VERSION:
                return Hello(version, "worker", 0, [])  # which is all that there is to say of it
            raise

    def _takes(self, message: FromWorker) -> bool:
        """False: it is the end, and `fault` says why. Raises ProtocolError."""
        if self.hello is not None:
            if type(message) is Hello:
                raise ProtocolError("cannot take a second hello")
            return True
        if not isinstance(message, Hello):
            raise ProtocolError("cannot take anything before the hello")
        if message.version != VERSION:
            why = f"cannot speak version {message.version} of the workers' protocol: this is {VERSION}"
            self.fault = Goodbye("version", why)
            return False
        self.hello = message
        # its next length is read with this; what came in one piece with the hello was held against the lower one
        self._limits.max_frame = self._most
        return True

    def _answered(self, pong: Pong) -> None:
        if self.hello is None:
            raise ProtocolError("cannot take anything before the hello")
        # an answer stands for those before it
        while self._pings and self._pings[0][0] <= pong.n:
            self._pings.popleft()
