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

Rules:
- a lost connection is made again (Reconnect), subscriptions are renewed and missed messages fetched: a subscription
  yields every message once and in order, or a Gap where that was not possible. Only the first connection raises;
- `send` and the operations only queue whole frames, for one writer: cancelling them never tears a frame;
- everything is bounded (Options): past `queue_bytes` senders wait, past `inbox_messages` or `inbox_bytes` nothing is
  read from the socket until the user has read;
- nothing runs after the `async with`; before it ends well, what is queued has `linger` seconds to leave;
- every failure is a NetdError: DaemonUnreachable (no connection, no answer), RequestFailed (refused, with its `kind`),
  ProtocolError (not what was agreed on).

Left out: TLS and sockets (framed_link.py), the life of a connection (framed_connection.py), the vocabulary
(framed_session.py), scripts without Trio (framed_sync.py).
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Self

import trio

from netd.client.framed_connection import Connection, Loss, States
from netd.client.framed_inbox import Account, Inbox
from netd.client.framed_options import DEFAULT_ADDRESS, FramedOptions, Options, parse_address
from netd.client.framed_queue import NORMAL
from netd.client.framed_session import Gap, Session, Subscription
from netd.client.framed_state import State, Telemetry
from netd.errors import NetdError, ProtocolError
from netd.wire import messages
from netd.wire.codecs import Codec, codec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType
    from typing import Unpack

    from netd.client.framed_options import TokenSource
    from netd.wire.messages import Position

__all__ = ["FramedClient", "Gap", "State", "Subscription", "Telemetry"]


class FramedClient:
    """One peer. `address` is "host:9000", "[::1]:9000", "unix:/run/x.sock", (host, port) or a Path; the keywords are
    those of Options. Methods may run concurrently.
    """

    def __init__(
        self, address: str | tuple[str, int] | Path = DEFAULT_ADDRESS, **options: Unpack[FramedOptions]
    ) -> None:
        self.address = parse_address(address)
        self.options = Options(**options)
        self._codec: Codec = codec(self.options.codec) if isinstance(self.options.codec, str) else self.options.codec
        self._account = Account(self.options.inbox_messages, self.options.inbox_bytes)
        self._plain = _Plain(self._codec, self._account, self.options)
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._nurseries: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        """Connect. DaemonUnreachable if that fails, unless `reconnect` is patient."""
        if self._connection is not None:
            raise ProtocolError("cannot enter a client twice: make a new one", origin="local")
        self._connection = Connection(self.address, self.options, self._account, self._plain)
        self._plain.connection = self._connection
        link = await self._connection.first()
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        try:
            await self._nursery.start(self._connection.run, link)
        except BaseException as error:
            self._nursery.cancel_scope.cancel()
            await self._nurseries.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None
        assert self._nurseries is not None
        try:
            if error is None:
                await self.aclose()
        finally:
            self._nursery.cancel_scope.cancel()
            # what the user raised is no affair of the nursery and should reach them as it is, in no group; only a
            # cancellation may be the nursery's own
            ours = error is not None and _cancelled(error)
            swallowed = await self._nurseries.__aexit__(*((kind, error, traceback) if ours else (None, None, None)))
        return swallowed and ours

    async def aclose(self) -> None:
        """Send what is queued, part in peace, and end; `linger` seconds at most. Leaving the `async with` does this."""
        connection = self._open
        last = self._session.last_words() if self._session is not None and self._session.ready else None
        with trio.move_on_after(self.options.linger):
            await connection.finish(last)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

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

    async def flush(self) -> None:
        """Until everything queued was handed to the kernel."""
        await self._open.flush()

    def __aiter__(self) -> Self:
        """Plain: the values received, every one. Operations: events that belong to no Subscription.

        Of those events only the last 1024 are kept until somebody begins to iterate, so that whoever is only interested
        in subscriptions need not; what was dropped is counted as `missed`. Afterwards every one is kept, and has to be
        read. A payload that the codec cannot decode raises ProtocolError in its place; iterating can go on after it.
        """
        self._inbox()
        return self

    async def __anext__(self) -> Any:
        return await self.receive()

    async def receive(self) -> Any:
        """The next value or event. StopAsyncIteration at the end; what ended the client, if that was an error."""
        return await self._inbox().take()

    def receive_nowait(self) -> Any:
        """The same at once; trio.WouldBlock when nothing is here yet."""
        return self._inbox().take_nowait()

    async def receive_all(self, most: int = 1024) -> list[Any]:
        """All values or events that are here, at least one. StopAsyncIteration at the end."""
        return await self._inbox().take_all(most)

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

    async def refresh(self, token: str | TokenSource | None = None) -> float | None:
        """Show a fresh token on the live session, which keeps what the new one permits too; the hellos of later
        connections show it as well. None: what the option `token` gives now. Returns the seconds until it expires.

        RequestFailed if the daemon refuses it; the session then goes on with the one it has.
        """
        return await (await self._greeted()).refresh(token)

    async def subscribe(
        self, channel: str | bytes, *, recover: Position | None = None, presence: bool = False
    ) -> Subscription:
        """Hear a channel. With `recover` (a Subscription's `position`), first what was published after it.

        `presence`: yield Joined and Left too; otherwise they are events of the client. A channel has one Subscription.
        """
        session = await self._greeted()
        return await session.subscribe(_name(channel), recover, presence)

    async def publish(
        self,
        channel: str | bytes,
        data: messages.Data,
        *,
        priority: int = NORMAL,
        ephemeral: bool = False,
        confirm: bool = True,
    ) -> int | None:
        """Publish text (str), binary (bytes) or any JSON-like value.

        Returns how many got it, if the daemon says; `confirm=False` returns at once, and a refusal is an Error event.
        `ephemeral`: may be dropped for readers that are slow.
        """
        fields = messages.channel_fields(_name(channel)) | messages.data_fields(data)
        fields |= {"priority": priority, "ephemeral": ephemeral}
        return await self._deliver(f"publish to {channel!r}", messages.Publish, fields, priority, confirm)

    async def direct(
        self, to: str, data: messages.Data, *, priority: int = NORMAL, ephemeral: bool = False, confirm: bool = True
    ) -> int | None:
        """Send to sessions: an id, "name:NAME" or "tag:KEY=VALUE". Returns how many there were."""
        fields = messages.data_fields(data) | {"to": to, "priority": priority, "ephemeral": ephemeral}
        return await self._deliver(f"send to {to!r}", messages.SendDirect, fields, priority, confirm)

    async def broadcast(
        self, data: messages.Data, *, priority: int = NORMAL, ephemeral: bool = False, confirm: bool = True
    ) -> int | None:
        """Send to every session. Returns how many there were."""
        fields = messages.data_fields(data) | {"priority": priority, "ephemeral": ephemeral}
        return await self._deliver("broadcast", messages.SendBroadcast, fields, priority, confirm)

    async def text(self, text: str, *, priority: int = NORMAL, confirm: bool = False) -> None:
        """Send text to the daemon's application; what it says comes as TextEvent or BinaryEvent of the client."""
        await self._deliver("send text", messages.Text, {"text": text, "priority": priority}, priority, confirm)

    async def binary(self, data: bytes, *, priority: int = NORMAL, confirm: bool = False) -> None:
        """The same with bytes."""
        fields = {"data64": bytes(data), "priority": priority}
        await self._deliver("send binary", messages.Binary, fields, priority, confirm)

    async def clients(self, channel: str | bytes | None = None) -> list[messages.Client]:
        """Who is connected, or who is subscribed to a channel."""
        fields = messages.channel_fields(_name(channel)) if channel is not None else {}
        answer = await self._ask("list clients", messages.ListClients, fields, repeatable=True)
        return list(answer.clients)

    async def presence(self, channel: str | bytes) -> list[messages.Client]:
        """Who is in a channel, where its namespace tracks that."""
        fields = messages.channel_fields(_name(channel))
        answer = await self._ask(f"see who is in {channel!r}", messages.AskPresence, fields, repeatable=True)
        return list(answer.clients)

    async def history(
        self, channel: str | bytes, *, since: Position | None = None, limit: int | None = None
    ) -> messages.History:
        """What a channel keeps, oldest first, after `since` if given; with the channel's epoch and newest offset."""
        fields = messages.channel_fields(_name(channel)) | {"since": since, "limit": limit}
        answer: messages.History = await self._ask(
            f"read the history of {channel!r}", messages.AskHistory, fields, repeatable=True
        )
        return answer

    async def ping(self) -> float:
        """Seconds to the daemon and back, through its message path."""
        started = trio.current_time()
        await self._ask("ping", messages.Ping, {"ts": round(started * 1000)}, repeatable=False)
        return trio.current_time() - started

    # --- how it goes --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The connection's state now."""
        return self._open.state

    @property
    def failure(self) -> NetdError | None:
        """What ended the client for good, once its state is "closed"; None if that was its own wish or the peer's."""
        return self._open.error

    def states(self) -> States:
        """The connection's states as they change, the present one first; ends after "closed".

        The last 64 are kept for a reader who is late.
        """
        return self._open.states()

    @property
    def session_id(self) -> str | None:
        """The session's id, once greeted. The same after a reconnect that resumed it."""
        welcome = self._session.welcome if self._session is not None else None
        return welcome.session if welcome is not None else None

    def telemetry(self) -> Telemetry:
        """A snapshot of state, queues and counters."""
        connection, session = self._open, self._session
        return Telemetry(
            state=connection.state,
            address=str(self.address),
            session=self.session_id,
            queued_bytes=connection.queue.size,
            unread_messages=self._account.messages,
            unread_bytes=self._account.bytes,
            subscriptions=len(session.subscriptions) if session is not None else 0,
            missed=session.events.missed if session is not None else 0,
            counters=dataclasses.replace(connection.counters),
        )

    # --- within -------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ProtocolError("cannot use a client before `async with` has connected it", origin="local")
        return self._connection

    def _inbox(self) -> Inbox[Any]:
        """What is received, by somebody who is interested in all of it."""
        if self._session is None:
            return self._plain.inbox
        self._session.events.recent = None
        return self._session.events

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
            self._session = Session(connection, self._account, self.options)
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

    async def _ask(self, what: str, build: Any, fields: dict[str, Any], *, repeatable: bool) -> Any:
        session = await self._greeted()
        return await session.request(
            what,
            lambda ref: build(**fields, ref=ref),
            repeatable=repeatable,
        )

    async def _deliver(self, what: str, build: Any, fields: dict[str, Any], priority: int, confirm: bool) -> int | None:
        session = await self._greeted()
        if not confirm:
            await session.tell(what, build(**fields), priority)
            return None
        answer = await session.request(what, lambda ref: build(**fields, ref=ref), priority=priority)
        return getattr(answer, "delivered", None)


class _Plain:
    """Plain payloads: what a client speaks before its first operation."""

    ready = True
    silence: float | None = None
    heartbeat: float | None = None  # only what the user asked for

    def __init__(self, codec: Codec, account: Account, options: Options) -> None:
        self.inbox: Inbox[Any] = Inbox(account)
        self.used = False
        self.connection: Connection
        self._codec = codec
        self._discard = options.discard
        self._hides_pings = options.heartbeat is not None

    async def prepare(self) -> None:
        pass

    def opening(self) -> list[bytes]:
        return []

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

    def lost(self, loss: Loss) -> None:
        pass

    def closed(self, error: NetdError | None) -> None:
        self.inbox.end(error)


def _is_heartbeat(payload: bytes) -> bool:
    """{"type":"ping","ts":...} or its answer, and nothing else in it."""
    if len(payload) > 64 or not payload.startswith(b"{"):
        return False
    try:
        value = json.loads(payload)
    except ValueError:
        return False
    return isinstance(value, dict) and value.keys() == {"type", "ts"} and value["type"] in ("ping", "pong")


def _name(channel: str | bytes) -> bytes:
    return channel.encode() if isinstance(channel, str) else bytes(channel)


def _cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
