"""FramedClient: framed TCP for Trio programs. Plain payloads with any framed server, operations with netd's hub.

    async with FramedClient("127.0.0.1:9000", codec="json") as client:      # plain payloads
        await client.send({"hello": "world"})
        async for value in client:
            print(value)

    async with FramedClient("127.0.0.1:9000", token="...") as client:       # operations
        async with await client.subscribe("public:a") as messages:
            await client.publish("public:a", "hi")
            async for message in messages:
                print(message.from_, message.data)

A client is plain until its first operation, which greets the daemon; from then on its frames are the message vocabulary
(netd/wire/messages.py) in MessagePack, or in JSON with codec="json".

Besides the rules of every client (operations.py): `send` queues a whole frame, so that cancelling it never tears one.

Left out: the frames (framed_wire.py), TLS and sockets (link.py), scripts without Trio (framed_sync.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import trio

from netd.client.connection import Connection
from netd.client.framed_options import DEFAULT_ADDRESS, FramedOptions, Options, parse_address
from netd.client.framed_wire import FramedTransport
from netd.client.operations import OperationsClient
from netd.client.plain import PlainFace
from netd.client.queue import NORMAL
from netd.client.session import Session
from netd.client.state import State, Telemetry
from netd.client.subscription import Gap, Subscription
from netd.errors import ProtocolError
from netd.wire.codecs import Codec, codec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Unpack

    from netd.client.inbox import Account, Inbox
    from netd.client.options import TokenSource
    from netd.wire import messages

__all__ = ["FramedClient", "Gap", "State", "Subscription", "Telemetry"]


class FramedClient(OperationsClient):
    """One peer. `address` is "host:9000", "[::1]:9000", "unix:/run/x.sock", (host, port) or a Path; the keywords are
    those of Options. Methods may run concurrently.
    """

    def __init__(
        self, address: str | tuple[str, int] | Path = DEFAULT_ADDRESS, **options: Unpack[FramedOptions]
    ) -> None:
        self.options = Options(**options)
        self._peer = parse_address(address)
        super().__init__(self._peer, self.options)
        self._codec: Codec = codec(self.options.codec) if isinstance(self.options.codec, str) else self.options.codec
        self._plain = _Plain(self._codec, self._account, self.options)

    def _made(self) -> Connection:
        made = Connection(FramedTransport(self._peer, self.options), self.options, self._account, self._plain)
        self._plain.connection = made
        return made

    # --- plain payloads -----------------------------------------------------------------------------------------------

    async def send(self, value: Any, *, priority: int = NORMAL) -> None:
        """Encode and queue one payload; waits while `queue_bytes` are queued. Lower priorities go first.

        It is with the peer some time after: `flush` waits until the kernel has it. What a lost connection had taken and
        not delivered is lost; what is still queued then goes over the next one.
        """
        self._stay_plain("send")
        await self._open.send(self._codec.encode(value), priority)

    def send_nowait(self, value: Any, *, priority: int = NORMAL) -> None:
        """The same at once; trio.WouldBlock when the queue is full."""
        self._stay_plain("send")
        self._open.send_nowait(self._codec.encode(value), priority)

    def __aiter__(self) -> Self:
        """Plain: the values received, every one. Operations: events that belong to no Subscription.

        Of those events only the last 1024 are kept until somebody begins to iterate, so that whoever is only interested
        in subscriptions need not; what was dropped is counted as `missed`. Afterwards every one is kept, and has to be
        read. A payload that the codec cannot decode raises ProtocolError in its place; iterating can go on after it.
        """
        self._inbox()
        return self

    # --- operations ---------------------------------------------------------------------------------------------------

    async def hello(
        self,
        *,
        name: str | None = None,
        token: str | TokenSource | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> messages.Welcome:
        """Greet the daemon, which the first operation does by itself. RequestFailed if it refuses.

        What is given here takes the place of the options `name`, `token` and `tags`, for reconnects too.
        """
        session = self._begin()
        if session.welcome is not None and any(each is not None for each in (name, token, tags)):
            raise ProtocolError("cannot say hello again: this session was greeted already", origin="local")
        session.introduce(name, token, dict(tags) if tags is not None else None)
        await self._greet(session)
        return await session.greeted()

    # --- within -------------------------------------------------------------------------------------------------------

    def _inbox(self) -> Inbox[Any]:
        """What is received, by somebody who is interested in all of it."""
        if self._session is None:
            return self._plain.inbox
        return super()._inbox()

    def _stay_plain(self, what: str) -> None:
        if self._session is not None:
            raise ProtocolError(
                f"cannot {what} a plain payload: this client speaks operations; use publish, direct, text or binary",
                origin="local",
            )
        self._plain.used = True

    def _begin(self) -> Session:
        """The session; a plain client becomes one that speaks operations."""
        connection = self._open
        if self._session is None:
            if self._plain.used:
                raise ProtocolError(
                    "cannot use operations: this client has sent plain payloads; use one client for each",
                    origin="local",
                )
            if self.options.framing == "none":
                raise ProtocolError("cannot use operations without frames: leave framing as it is", origin="local")
            format: messages.Format = "json" if getattr(self._codec, "name", "") == "json" else "messagepack"
            self._session = Session(connection, self._account, self.options, format)
            self._plain.inbox.end(None, discard=True)
        return self._session

    async def _greet(self, session: Session) -> None:
        if self._open.face is not session:
            await session.prepare()
        if self._open.face is not session:  # nobody else did meanwhile
            self._open.face = session
            if self._open.over:
                session.closed(self._open.error)
            else:
                session.say_hello()

    async def _greeted(self) -> Session:
        session = self._begin()
        await self._greet(session)
        if session.welcome is None:  # later on, requests wait in the queue for the next welcome
            await session.greeted()
        return session


class _Plain(PlainFace):
    """Plain payloads: what a client speaks before its first operation."""

    def __init__(self, codec: Codec, account: Account, options: Options) -> None:
        super().__init__(account)
        self.used = False
        self.connection: Connection
        self._codec = codec
        self._discard = options.discard
        self._hides_pings = options.heartbeat is not None

    def ping(self) -> bytes:
        return json.dumps({"type": "ping", "ts": round(trio.current_time() * 1000)}, separators=(",", ":")).encode()

    def received(self, payloads: list[bytes]) -> None:
        if self._discard:
            return
        for payload in payloads:
            if self._hides_pings and _is_heartbeat(payload):
                continue
            try:
                value = self._codec.decode(payload)
            except ProtocolError as error:
                self.connection.counters.undecodable += 1
                self.inbox.put(error, len(payload))
            else:
                self.inbox.put(value, len(payload))


def _is_heartbeat(payload: bytes) -> bool:
    """{"type":"ping","ts":...} or its answer, and nothing else in it."""
    if len(payload) > 64 or not payload.startswith(b"{"):
        return False
    try:
        value = json.loads(payload)
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() == {"type", "ts"} and value["type"] in ("ping", "pong")
