"""Operations over a FramedClient's connection: requests, subscriptions, and their way through a loss.

    hello -> welcome                          for every connection anew, with the resume secret while it is good
    request(ref) -> answer(ref)               of what was on its way when a connection broke: asked again where asking
                                              twice does no harm, else an error, since nobody knows whether it was done
    subscribe -> ok, messages ...             renewed after every welcome, with the place of the last message taken

Rules:
- a Subscription sees every message of its channel once and in order; where that was not possible it sees a Gap;
- subscriptions go ahead of the queue, so that what the user sends next already finds them;
- the daemon's close says whether coming back makes sense: NORMAL ends the client in peace, FINAL codes end it with an
  error, others are a loss like any.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import trio
from msgspec import UNSET

from netd.client.framed_connection import Loss
from netd.client.framed_inbox import Account, Inbox
from netd.client.framed_queue import NORMAL, Ticket
from netd.client.framed_state import Place, Way
from netd.errors import ClientError, DaemonUnreachable, NetdError, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.messages import CloseCode, Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.framed_connection import Connection
    from netd.client.framed_options import Options, TokenSource

Received: TypeAlias = (
    messages.Message
    | messages.Direct
    | messages.Broadcast
    | messages.Joined
    | messages.Left
    | messages.TextEvent
    | messages.BinaryEvent
    | messages.Error
)
"""What `async for event in client` yields in operations."""

FINAL = {
    CloseCode.PROTOCOL,
    CloseCode.UNSUPPORTED,
    CloseCode.INVALID,
    CloseCode.POLICY,
    CloseCode.REPLACED,
    CloseCode.KICKED,
}
"""Close codes after which the daemon would only close again."""
_PASSING = ("rate", "too-many")
"""Refusals of a hello that time may mend."""
_STATUS = {
    "invalid": 400,
    "denied": 403,
    "not-found": 404,
    "too-large": 413,
    "rate": 429,
    "unsupported": 501,
    "too-many": 503,
}
_UNREADABLE = "cannot read the request: "
RECENT = 1024
"""Events kept for a user who has not begun to read them."""
_SILENT_BEATS = 3.0
"""Heartbeats that may pass without a byte."""


@dataclass(frozen=True)
class Gap:
    """Messages of a channel were lost to this subscription: the daemon no longer had them, or never kept them."""

    channel: str | bytes
    epoch: str | None
    """The epoch that the channel's history has now; None: it keeps none."""
    missed: int | None = None
    """How many, where that is known."""


Item: TypeAlias = messages.Message | messages.Joined | messages.Left | Gap
"""What a Subscription yields: messages and gaps, and with `presence` who joined and left."""


class Subscription:
    """One channel. An async iterator of Message and Gap (and, with `presence`, of Joined and Left).

    It ends when it is unsubscribed or the client is closed; if the daemon takes it away (the permission was withdrawn),
    iterating raises RequestFailed. As `async with` it unsubscribes at the end.
    """

    def __init__(self, session: Session, channel: bytes, place: Place, presence: bool) -> None:
        self._session = session
        self._inbox: Inbox[Item] = Inbox(session.account)
        self._place = place
        self._read = Position(place.epoch, place.offset) if place.epoch is not None else None
        self._asked_before = place.known
        self._confirmed = trio.Event()
        self._presence = presence
        self.name = channel
        self.error: NetdError | None = None

    @property
    def channel(self) -> str | bytes:
        """The channel's name: text where it is UTF-8."""
        return readable(self.name)

    @property
    def position(self) -> Position | None:
        """Behind the last message that was read here: give it to `subscribe` to go on from it. None: no history."""
        return self._read

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Item:
        return self._note(await self._inbox.take())

    async def take_all(self, most: int = 1024) -> list[Item]:
        """All that is here, at least one. StopAsyncIteration at the end."""
        return [self._note(item) for item in await self._inbox.take_all(most)]

    async def unsubscribe(self) -> None:
        """Hear no more of it. What was not read is dropped."""
        await self._session.unsubscribe(self)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._inbox.ended:
            with suppress(ClientError):  # without a connection there is nothing to unsubscribe from
                await self.unsubscribe()

    def behind(self, item: Item, before: Position | None) -> Position | None:
        """The position after reading `item` at `before`."""
        if isinstance(item, messages.Message) and item.offset is not None:
            epoch = item.epoch or self._place.epoch
            return Position(epoch, item.offset) if epoch is not None else None
        return None if isinstance(item, Gap) else before

    def _note(self, item: Item) -> Item:
        self._read = self.behind(item, self._read)
        return item

    # --- for the session ----------------------------------------------------------------------------------------------

    def request(self, ref: int) -> messages.Subscribe:
        recover = Position(self._place.epoch, self._place.offset) if self._place.epoch is not None else None
        return messages.Subscribe(**messages.channel_fields(self.name), ref=ref, recover=recover)

    def confirm(self, ok: messages.Ok) -> None:
        """The daemon has subscribed us. What follows is new, or is what we missed."""
        counters = self._session.connection.counters
        if ok.recovered:
            counters.recovered += 1
        else:
            self._place.move(ok.epoch, ok.offset)
            if self._asked_before:
                counters.gaps += 1
                self._inbox.put(Gap(self.channel, ok.epoch), 0)
            elif ok.epoch is not None:
                self._read = Position(ok.epoch, ok.offset or 0)
        self._asked_before = True
        self._confirmed.set()

    def take(self, message: messages.Message, size: int) -> None:
        counters = self._session.connection.counters
        missed = self._place.admit(message.epoch, message.offset)
        if missed is None:
            counters.duplicates += 1
            return
        if missed:
            counters.gaps += 1
            self._inbox.put(Gap(self.channel, self._place.epoch, missed if missed > 0 else None), 0)
        self._inbox.put(message, size)

    def witness(self, event: messages.Joined | messages.Left, size: int) -> bool:
        if self._presence:
            self._inbox.put(event, size)
        return self._presence

    def end(self, error: NetdError | None, *, discard: bool = False) -> None:
        self.error = error
        self._inbox.end(error, discard=discard)
        self._confirmed.set()

    async def confirmed(self) -> None:
        await self._confirmed.wait()


class _Pending(Ticket):
    """A request whose answer somebody awaits."""

    __slots__ = ("answer", "arrived", "payload", "priority", "repeatable", "what")

    def __init__(self, what: str, payload: bytes, priority: int, repeatable: bool) -> None:
        super().__init__()
        self.what = what
        self.payload = payload
        self.priority = priority
        self.repeatable = repeatable
        self.answer: Any = None
        self.arrived = trio.Event()

    def resolve(self, answer: object) -> None:
        self.answer = answer
        self.arrived.set()


class Session:
    """What is spoken over the connection, in operations."""

    def __init__(self, connection: Connection, account: Account, options: Options) -> None:
        self.connection = connection
        self.account = account
        self.format: messages.Format = "json" if _codec_name(options.codec) == "json" else "messagepack"
        self.events: Inbox[Received] = Inbox(account, recent=RECENT)
        self.subscriptions: dict[bytes, Subscription] = {}
        self.welcome: messages.Welcome | None = None
        self.ready = False
        self.heartbeat: float | None = None
        self.silence: float | None = None
        self._options = options
        self._name = options.name
        self._token: str | None = None
        self._source: TokenSource | None = None
        self._take(options.token)
        self._tags = dict(options.tags) or None
        self._way = Way()
        self._refs = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._subscribing: dict[int, Subscription] = {}
        self._hello_ref: int | None = None
        self._resuming = False
        self._greeted = trio.Event()
        self._refused: NetdError | None = None

    # --- requests -----------------------------------------------------------------------------------------------------

    def _take(self, token: str | TokenSource | None) -> None:
        if callable(token):
            self._token, self._source = None, token
        elif token is not None:
            self._token, self._source = token, None

    async def prepare(self) -> None:
        """Have a fresh token for the next hello, where the user gave a function for it."""
        if self._source is None:
            return
        timeout = self._options.answer_timeout
        with trio.move_on_after(timeout) as waited:
            found = self._source()
            token = found if isinstance(found, str) else await found
        if waited.cancelled_caught:
            raise DaemonUnreachable(f"cannot get a token: none within {timeout:g} s")
        self._token = token

    async def refresh(self, token: str | TokenSource | None) -> float | None:
        before = self._token, self._source
        self._take(token)
        try:
            await self.prepare()
            shown = self._token
            if shown is None:
                raise ProtocolError("cannot refresh the token: this client has none; give it one", origin="local")
            answer = await self.request("refresh the token", lambda ref: messages.Refresh(shown, ref=ref))
        except (RequestFailed, ProtocolError):
            self._token, self._source = before
            raise
        return getattr(answer, "expires", None)

    def introduce(self, name: str | None, token: str | TokenSource | None, tags: dict[str, str] | None) -> None:
        """Who we are from the next hello on; None leaves a part as it is."""
        self._name = self._name if name is None else name
        self._take(token)
        self._tags = self._tags if tags is None else tags

    async def greeted(self) -> messages.Welcome:
        """The daemon's welcome on the connection that lives, or on the next one."""
        timeout = self._options.answer_timeout
        with trio.move_on_after(timeout):
            while not self.ready:
                if self._refused is not None:
                    raise self._refused
                self.connection.check_open()
                if self._greeted.is_set():
                    self._greeted = trio.Event()
                await self._greeted.wait()
        if not self.ready or self.welcome is None:
            raise DaemonUnreachable(
                f"cannot greet {self.connection.address}: no welcome within {timeout:g} s; "
                "is its mode operations, and does it speak this codec and framing?"
            )
        return self.welcome

    async def request(
        self,
        what: str,
        build: Callable[[int], messages.Request],
        *,
        priority: int = NORMAL,
        repeatable: bool = False,
    ) -> Any:
        """Send it and return the answer. RequestFailed if that is an error, DaemonUnreachable if none comes."""
        ref, timeout = next(self._refs), self._options.answer_timeout
        pending = _Pending(what, self._payload(what, build(ref)), priority, repeatable)
        self._pending[ref] = pending
        self._await(+1)
        try:
            with trio.move_on_after(timeout):
                await self.connection.send(pending.payload, priority, pending)
                if len(self._pending) == 1:  # of many at once, the writer makes one system call
                    self.connection.push()
                await pending.arrived.wait()
        finally:
            self._await(-1)
            del self._pending[ref]
            pending.withdrawn = True  # if it is still queued: what nobody waits for should not happen later
        match pending.answer:
            case None:
                state = "no answer" if pending.left else f"it could not be sent, the connection is {self._state()}"
                raise DaemonUnreachable(f"cannot {what}: {state} within {timeout:g} s")
            case messages.Error() as error:
                raise _failed(error)
            case NetdError() as error:
                raise error
            case answer:
                return answer

    async def tell(self, what: str, request: messages.Request, priority: int) -> None:
        """Send it without asking for an answer."""
        await self.connection.send(self._payload(what, request), priority)

    def _payload(self, what: str, request: messages.Request) -> bytes:
        """The request as it goes out. ProtocolError for what the daemon could not read."""
        payload = messages.encode(request, self.format)
        try:
            messages.decode_request(payload, self.format)
        except ProtocolError as error:
            raise ProtocolError(f"cannot {what}: {str(error).removeprefix(_UNREADABLE)}", origin="local") from None
        return payload

    async def subscribe(self, channel: bytes, recover: Position | None, presence: bool) -> Subscription:
        if channel in self.subscriptions:
            raise ProtocolError(
                f"cannot subscribe to {readable(channel)!r} twice: this client is subscribed", origin="local"
            )
        place = Place(recover.epoch, recover.offset) if recover is not None else Place()
        subscription = Subscription(self, channel, place, presence)
        self._payload(f"subscribe to {readable(channel)!r}", subscription.request(0))
        self.subscriptions[channel] = subscription
        timeout = self._options.answer_timeout
        self._await(+1)
        try:
            if self.ready:
                self._ask(subscription)
            with trio.move_on_after(timeout) as waited:
                await subscription.confirmed()
        except BaseException:
            self._abandon(subscription)
            raise
        finally:
            self._await(-1)
        if subscription.error is not None:
            raise subscription.error
        if waited.cancelled_caught:
            self._abandon(subscription)
            raise DaemonUnreachable(
                f"cannot subscribe to {readable(channel)!r}: no answer within {timeout:g} s, "
                f"the connection is {self._state()}"
            )
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.name) is not subscription:
            return
        del self.subscriptions[subscription.name]
        subscription.end(None, discard=True)
        if self.ready:
            fields = messages.channel_fields(subscription.name)
            await self.request(
                f"unsubscribe from {subscription.channel!r}",
                lambda ref: messages.Unsubscribe(**fields, ref=ref),
                repeatable=True,
            )

    def _ask(self, subscription: Subscription) -> None:
        ref = next(self._refs)
        self._subscribing[ref] = subscription
        self.connection.say_first(messages.encode(subscription.request(ref), self.format))

    def _abandon(self, subscription: Subscription) -> None:
        """Nobody waits for this subscription any more; the daemon may have made it."""
        if self.subscriptions.pop(subscription.name, None) is not None and self.ready:
            fields = messages.channel_fields(subscription.name)
            self.connection.say_first(messages.encode(messages.Unsubscribe(**fields), self.format))
        subscription.end(None, discard=True)

    def _await(self, change: int) -> None:
        self.account.awaited += change
        self.account.changed()

    def _state(self) -> str:
        return self.connection.state.name

    # --- the connection's face ----------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        self.heartbeat, self.silence = None, self._options.answer_timeout
        return [self._hello(self._way.usable(trio.current_time()))]

    def say_hello(self) -> None:
        """Begin operations on a connection that was plain so far."""
        self.silence = self._options.answer_timeout
        self.connection.say_first(self._hello(None))
        self.connection.changed()

    def _hello(self, resume: str | None) -> bytes:
        self._hello_ref = next(self._refs)
        self._resuming = resume is not None
        hello = messages.Hello(messages.VERSION, self._name, self._token, self._tags, resume, ref=self._hello_ref)
        return messages.encode(hello, self.format)

    def ping(self) -> bytes:
        return messages.encode(messages.Ping(round(trio.current_time() * 1000)), self.format)

    def last_words(self) -> bytes:
        return messages.encode(messages.Close(CloseCode.NORMAL), self.format)

    def received(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            try:
                # a daemon that refuses us before it has heard us says so in JSON
                event = messages.decode_event(payload, messages.sniff(payload))
            except ProtocolError as error:
                self.connection.counters.undecodable += 1
                self.connection.drop(Loss(str(error)))
                return
            self._see(event, len(payload))

    def _see(self, event: messages.Event, size: int) -> None:
        match event:
            case messages.Message():
                message: messages.Message = _plain_data(event)
                subscription = self.subscriptions.get(messages.channel_of(message))
                if subscription is not None:
                    subscription.take(message, size)
                else:
                    self.events.put(message, size)
            case messages.Ok() | messages.Error():
                self._answered(event, size)
            case messages.Clients() | messages.Presence() | messages.History() | messages.Pong():
                self._answered(event, size)
            case messages.Direct() | messages.Broadcast() | messages.BinaryEvent():
                self.events.put(_plain_data(event), size)
            case messages.TextEvent():
                self.events.put(event, size)
            case messages.Joined() | messages.Left():
                subscription = self.subscriptions.get(messages.channel_of(event))
                if subscription is None or not subscription.witness(event, size):
                    self.events.put(event, size)
            case messages.Ping():
                self.connection.say_pong(messages.encode(messages.Pong(event.ts, ref=event.ref), self.format))
            case messages.Welcome():
                self._welcomed(event)
            case messages.Close():
                self.connection.drop(_loss(event))

    def _answered(self, event: Any, size: int) -> None:
        ref = event.ref
        if isinstance(ref, int) and (pending := self._pending.get(ref)) is not None:
            pending.resolve(event)
        elif isinstance(ref, int) and (subscription := self._subscribing.pop(ref, None)) is not None:
            if self.subscriptions.get(subscription.name) is not subscription:
                return
            if isinstance(event, messages.Error):
                del self.subscriptions[subscription.name]
                subscription.end(_failed(event))
            else:
                subscription.confirm(event)
        elif isinstance(event, messages.Error):
            if ref is not None and ref == self._hello_ref:
                self._unwelcome(event)
            elif event.channel is not UNSET or event.channel64 is not UNSET:
                self._lose(messages.channel_of(event), event, size)
            else:
                self.events.put(event, size)

    def _lose(self, channel: bytes, error: messages.Error, size: int) -> None:
        """The daemon took a subscription away: what was heard can still be read, then the reader learns why."""
        subscription = self.subscriptions.pop(channel, None)
        if subscription is None:
            self.events.put(error, size)
        else:
            subscription.end(_failed(error))

    def _welcomed(self, welcome: messages.Welcome) -> None:
        if self._resuming and self.welcome is not None and welcome.session == self.welcome.session:
            self.connection.counters.resumed += 1
        self.welcome = welcome
        self._hello_ref = None
        self._way.given(welcome.resume)
        self.heartbeat = welcome.heartbeat or None
        self.silence = welcome.heartbeat * _SILENT_BEATS or None
        self.ready = True
        self._subscribing.clear()
        for subscription in self.subscriptions.values():
            self._ask(subscription)
        self._greeted.set()
        self.connection.changed()

    def _unwelcome(self, error: messages.Error) -> None:
        """The daemon refused our hello."""
        if self._resuming:
            self._way.given(None)
            self.connection.say_first(self._hello(None))  # the secret was too old; come as somebody new
            return
        failed = _failed(error)
        if error.code in _PASSING and self.welcome is not None:
            self.connection.drop(Loss(str(failed)))
            return
        self._refused = failed
        self._greeted.set()
        self.connection.drop(Loss(str(failed), ends=True, error=failed))

    def lost(self, loss: Loss) -> None:
        if self.ready:
            self._way.lost(trio.current_time())
        self.ready = False
        self.silence = self.heartbeat = None
        self._subscribing.clear()
        for pending in list(self._pending.values()):
            if not pending.left or pending.arrived.is_set():
                continue
            if pending.repeatable:
                pending.left = False
                self.connection.put_again(pending.payload, pending.priority, pending)
            else:
                pending.resolve(
                    DaemonUnreachable(
                        f"cannot tell whether the daemon did it ({pending.what}): "
                        f"the connection was lost before its answer ({loss.reason})"
                    )
                )

    def closed(self, error: NetdError | None) -> None:
        self.ready = False
        self._greeted.set()
        self.events.end(error)
        for subscription in self.subscriptions.values():
            subscription.end(error)
        gone = error or DaemonUnreachable(f"cannot get an answer from {self.connection.address}: this client is closed")
        for pending in self._pending.values():
            if not pending.arrived.is_set():
                pending.resolve(gone)


def readable(channel: bytes) -> str | bytes:
    """A channel's name as people write it: text where it is UTF-8."""
    try:
        return channel.decode()
    except UnicodeDecodeError:
        return channel


def _plain_data(event: Any) -> Any:
    """The event with its data in `data`, whichever field it travelled in."""
    if event.data is UNSET and event.data64 is not UNSET:
        return msgspec.structs.replace(event, data=event.data64, data64=UNSET)
    return event


def _failed(error: messages.Error) -> RequestFailed:
    return RequestFailed(error.code, error.message, status=_STATUS.get(error.code, 500))


def _loss(close: messages.Close) -> Loss:
    try:
        word = CloseCode(close.code).name.lower().replace("_", "-")
    except ValueError:
        word = str(close.code)
    reason = f"the daemon closed the session: {word} ({close.code})" + (f": {close.reason}" if close.reason else "")
    if close.code == CloseCode.NORMAL:
        return Loss(reason, ends=True)
    if close.code in FINAL:
        return Loss(reason, ends=True, error=RequestFailed(word, f"cannot go on: {reason}", status=403))
    return Loss(reason, least=close.retry_after)


def _codec_name(codec: object) -> str:
    return codec if isinstance(codec, str) else str(getattr(codec, "name", ""))
