"""What every client of the hub's operations does, whatever carries them: its life, and a method for each operation.

    async with await client.subscribe("public:a") as messages:
        await client.publish("public:a", "hi")
        async for message in messages:
            print(message.from_, message.data)

Rules:
- a lost connection is made again (Reconnect), subscriptions are renewed and missed messages fetched: a subscription
  yields every message once and in order, or a Gap where that was not possible. Only the first connection raises;
- the operations only queue whole payloads, for one writer: cancelling them never tears one;
- everything is bounded (ClientOptions): past `queue_bytes` senders wait, past `inbox_messages` or `inbox_bytes` nothing
  is read from the socket until the user has read;
- nothing runs after the `async with`; before it ends well, what is queued has `linger` seconds to leave;
- every failure is a NetdError: DaemonUnreachable (no connection, no answer), RequestFailed (refused, with its `kind`),
  ProtocolError (not what was agreed on).

Left out: the life of a connection (connection.py), the vocabulary (session.py), what carries it (framed.py, broker.py),
scripts without Trio (sync.py).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import trio

from netd.client.inbox import Account
from netd.client.queue import NORMAL
from netd.client.state import State, Telemetry
from netd.client.subscription import readable
from netd.errors import NetdError, ProtocolError
from netd.wire import messages

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from netd.client.connection import Connection
    from netd.client.inbox import Inbox
    from netd.client.options import ClientOptions, TokenSource
    from netd.client.session import Session
    from netd.client.states import States
    from netd.client.subscription import Subscription
    from netd.wire.messages import Position


class OperationsClient:
    """One peer. Methods may run concurrently."""

    def __init__(self, address: Any, options: ClientOptions) -> None:
        self._address = address
        self._options = options
        self._account = Account(options.inbox_messages, options.inbox_bytes)
        self._session: Session | None = None
        self._connection: Connection | None = None
        self._nurseries: AbstractAsyncContextManager[trio.Nursery, bool | None] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        """Connect. DaemonUnreachable if that fails, unless `reconnect` is patient."""
        if self._connection is not None:
            raise ProtocolError("cannot enter a client twice: make a new one", origin="local")
        self._connection = self._made()
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        try:
            wire = await self._connection.first(self._nursery)
            await self._nursery.start(self._connection.run, wire)
            await self._connected()
        except BaseException as error:
            await self._leave(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            if error is None:
                await self.aclose()
        finally:
            swallowed = await self._leave(error)
        return swallowed

    async def _leave(self, error: BaseException | None) -> bool | None:
        """Nothing runs after this. What the user raised is no affair of the nursery and should reach them as it is, in
        no group; only a cancellation may be the nursery's own: True if it was.
        """
        assert self._nursery is not None
        assert self._nurseries is not None
        self._nursery.cancel_scope.cancel()
        ours = error is not None and _cancelled(error)
        told = (type(error), error, error.__traceback__) if ours and error is not None else (None, None, None)
        try:
            return await self._nurseries.__aexit__(*told) and ours
        except BaseExceptionGroup as group:  # what a function of the user's raised is theirs to catch by its kind
            alone = _alone(group)
            if alone is group:
                raise
        raise alone

    async def aclose(self) -> None:
        """Send what is queued, part in peace, and end; `linger` seconds at most. Leaving the `async with` does this."""
        connection = self._open
        last = self._session.last_words() if self._session is not None and self._session.ready else None
        with trio.move_on_after(self._options.linger):
            await connection.finish(last)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # --- what is received ---------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        """Events that belong to no Subscription.

        Of those only the last 1024 are kept until somebody begins to iterate, so that whoever is only interested in
        subscriptions need not; what was dropped is counted as `missed`. Afterwards every one is kept, and has to be
        read.
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

    async def flush(self) -> None:
        """Until everything queued was handed to the kernel."""
        await self._open.flush()

    # --- operations ---------------------------------------------------------------------------------------------------

    async def hello(self) -> messages.Welcome:
        """The daemon's welcome. RequestFailed if it refuses us."""
        raise NotImplementedError

    async def refresh(self, token: str | TokenSource | None = None) -> float | None:
        """Show a fresh token on the live session, which keeps what the new one permits too; the hellos of later
        connections show it as well. None: what the option `token` gives now. Returns the seconds until it expires.

        RequestFailed if the daemon refuses it; the session then goes on with the one it has.
        """
        return await (await self._greeted()).refresh(token)

    async def subscribe(
        self, channel: str | bytes, *, recover: Position | None = None, presence: bool = False, pattern: bool = False
    ) -> Subscription:
        """Hear a channel. With `recover` (a Subscription's `position`), first what was published after it.

        `presence`: yield Joined and Left too; otherwise they are events of the client. A channel has one Subscription.

        Where its namespace has wildcards, "public:a.*" and "public:a.>" are all channels that match: their messages
        come with the real channel, without recovery (a reconnect is a Gap) and without presence. Where it has none,
        these are ordinary names, unless `pattern` is true: then RequestFailed("unsupported").
        """
        session = await self._greeted()
        return await session.subscribe(_name(channel), recover, presence, pattern)

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
        return await self._deliver(f"publish to {_shown(channel)}", messages.Publish, fields, priority, confirm)

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
        answer = await self._ask(f"see who is in {_shown(channel)}", messages.AskPresence, fields, repeatable=True)
        return list(answer.clients)

    async def history(
        self, channel: str | bytes, *, since: Position | None = None, limit: int | None = None
    ) -> messages.History:
        """What a channel keeps, oldest first, after `since` if given; with the channel's epoch and newest offset."""
        fields = messages.channel_fields(_name(channel)) | {"since": since, "limit": limit}
        answer: messages.History = await self._ask(
            f"read the history of {_shown(channel)}", messages.AskHistory, fields, repeatable=True
        )
        return answer

    async def ping(self) -> float:
        """Seconds to the daemon and back, through its message path."""
        started = trio.current_time()
        await self._ask("ping", messages.Ping, {"ts": round(started * 1000)}, repeatable=False)
        return trio.current_time() - started

    # --- how it goes --------------------------------------------------------------------------------------------------

    @property
    def address(self) -> Any:
        """The peer; for people, what str() of it gives."""
        return self._address

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

    # --- what a client makes of it ------------------------------------------------------------------------------------

    def _made(self) -> Connection:
        """The connection, when the client is entered."""
        raise NotImplementedError

    async def _connected(self) -> None:
        """The first connection stands."""

    async def _greeted(self) -> Session:
        """The session, once there has been a welcome."""
        raise NotImplementedError

    # --- within -------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ProtocolError("cannot use a client before `async with` has connected it", origin="local")
        return self._connection

    def _inbox(self) -> Inbox[Any]:
        """What is received, by somebody who is interested in all of it."""
        assert self._session is not None
        self._session.events.recent = None
        return self._session.events

    async def _ask(self, what: str, build: Any, fields: dict[str, Any], *, repeatable: bool) -> Any:
        session = await self._greeted()
        return await session.requests.ask(
            what,
            lambda ref: build(**fields, ref=ref),
            repeatable=repeatable,
        )

    async def _deliver(self, what: str, build: Any, fields: dict[str, Any], priority: int, confirm: bool) -> int | None:
        session = await self._greeted()
        if not confirm:
            await session.requests.tell(what, build(**fields), priority)
            return None
        answer = await session.requests.ask(what, lambda ref: build(**fields, ref=ref), priority=priority)
        return getattr(answer, "delivered", None)


def _name(channel: str | bytes) -> bytes:
    try:
        return channel.encode() if isinstance(channel, str) else bytes(memoryview(channel))  # bytes(7) are seven zeros
    except UnicodeEncodeError:
        raise ProtocolError(f"cannot use the channel {channel!r}: its text is no Unicode", origin="local") from None


def _shown(channel: str | bytes) -> str:
    return repr(readable(_name(channel)))


def _alone(error: BaseException) -> BaseException:
    """What a group of one comes down to."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)
