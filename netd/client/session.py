"""Operations over a client's connection: requests, subscriptions, and their way through a loss.

    hello -> welcome                          for every connection anew, with the resume secret while it is good
    request(ref) -> answer(ref)               of what was on its way when a connection broke: asked again where asking
                                              twice does no harm, else an error, since nobody knows whether it was done
    subscribe -> ok, messages ...             renewed after every welcome, with the place of the last message taken

Rules:
- a Subscription sees every message of its channel once and in order; where that was not possible it sees a Gap;
- one with wildcards sees those of all channels that match, each in order; nothing is fetched for it, so that every
  reconnect is a Gap. A message that several subscriptions match comes once, and each of them sees it;
- subscriptions go ahead of the queue, so that what the user sends next already finds them; one that the daemon had
  given us and is too busy for now ("rate") is asked for again, not lost;
- the daemon's close says whether coming back makes sense: NORMAL ends the client in peace, FINAL codes end it with an
  error, others are a loss like any.

Over 600 lines, and one file all the same: requests, subscriptions and tokens share what a loss does to them.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import trio
from msgspec import UNSET

from netd.client.connection import Loss
from netd.client.inbox import Account, Inbox
from netd.client.queue import NORMAL, Ticket
from netd.client.refusals import refused
from netd.client.state import MOST_AWAY, Place, Way
from netd.client.subscription import PLACES, Subscription, readable
from netd.errors import DaemonUnreachable, NetdError, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.messages import CloseCode, Position
from netd.wire.wildcards import matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.connection import Connection
    from netd.client.options import ClientOptions, TokenSource

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
_UNREADABLE = "cannot read the request: "
RENEW_AT = 0.8
"""Of the time that a token is good for, how much passes before the function that gives tokens is asked for another."""
RENEW_LEAST = 1.0
"""Seconds between two such at least, however short tokens are good for."""
RENEW_AGAIN = 5.0
"""Seconds until that is tried again."""
RENEW_SPREAD = 1.0
"""Seconds within which a token that counts no more is replaced: all clients are told at once."""
ASK_AGAIN = 0.5
"""Seconds, and as much again at random, until a subscription that the daemon is too busy for is asked for again."""
RECENT = 1024
"""Events kept for a user who has not begun to read them."""
_SILENT_BEATS = 3.0
"""Heartbeats that may pass without a byte."""


class _Pending(Ticket):
    """A request whose answer somebody awaits."""

    __slots__ = ("answer", "arrived", "moot", "payload", "priority", "repeatable", "what")

    def __init__(self, what: str, payload: bytes, priority: int, repeatable: bool, moot: bool) -> None:
        """`moot`: the end of its connection does as well."""
        super().__init__()
        self.moot = moot
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

    def __init__(
        self,
        connection: Connection,
        account: Account,
        options: ClientOptions,
        format: messages.Format,
        *,
        shows_token: bool = True,
    ) -> None:
        """`shows_token`: in its hellos; else that is the transport's affair."""
        self.connection = connection
        self.account = account
        self.format: messages.Format = format
        self.events: Inbox[Received] = Inbox(account, recent=RECENT)
        self.subscriptions: dict[bytes, Subscription] = {}
        self.welcome: messages.Welcome | None = None
        self.ready = False
        self.heartbeat: float | None = None
        self.silence: float | None = None
        self.renews = math.inf
        self._options = options
        self._shows_token = shows_token
        self._name = options.name
        self._token: str | None = None
        self._source: TokenSource | None = None
        self._take(options.token)
        self._tags = dict(options.tags) or None
        self._way = Way()
        self._refs = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._subscribing: dict[int, Subscription] = {}
        self._suspended: dict[Subscription, messages.Error] | None = None
        """While a token that was lost is replaced: the subscriptions that went with it, and why."""
        self._patterns: list[Subscription] = []
        self._covering: dict[bytes, list[Subscription]] = {}
        """Of channels that were heard lately, the patterns that match."""
        self._hello_ref: int | None = None
        self._resuming = False
        self._greeted = trio.Event()
        self._refused: NetdError | None = None

    # --- requests -----------------------------------------------------------------------------------------------------

    @property
    def token(self) -> str | None:
        """The latest there is."""
        return self._token

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
        except BaseException:  # nobody has seen it
            self._token, self._source = before
            raise
        try:
            shown = self._token
            if shown is None:
                raise ProtocolError("cannot refresh the token: this client has none; give it one", origin="local")
            answer = await self.request("refresh the token", lambda ref: messages.Refresh(shown, ref=ref))
        except (RequestFailed, ProtocolError):
            self._token, self._source = before
            raise
        expires: float | None = getattr(answer, "expires", None)
        self._expires(expires)
        again, self._suspended = self._suspended or {}, None
        for subscription in again:
            if self.subscriptions.get(subscription.name) is subscription:
                self._ask(subscription)
        return expires

    async def renew(self) -> None:
        """Refresh the token before it expires. What keeps it from that is tried again, and the session stays anyway."""
        try:
            await self.refresh(None)
        except NetdError as error:
            self.events.put(messages.Error(code="denied", message=f"cannot refresh the token: {error}"), 0)
            self.renews = trio.current_time() + RENEW_AGAIN
            lost, self._suspended = self._suspended or {}, None
            for subscription, taken in lost.items():
                if self.subscriptions.get(subscription.name) is subscription:
                    self._forget(subscription.name)
                    subscription.end(refused(taken))

    def _expires(self, seconds: float | None) -> None:
        """The token is good for so long; None: for ever. Only a function gives another."""
        lasts = seconds is None or self._source is None
        self.renews = math.inf if lasts else trio.current_time() + max((seconds or 0.0) * RENEW_AT, RENEW_LEAST)
        self.connection.changed()

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
                f"{self.connection.transport.unanswered}"
            )
        return self.welcome

    async def request(
        self,
        what: str,
        build: Callable[[int], messages.Request],
        *,
        priority: int = NORMAL,
        repeatable: bool = False,
        moot: bool = False,
    ) -> Any:
        """Send it and return the answer. RequestFailed if that is an error, DaemonUnreachable if none comes.

        What is `moot` without its connection goes ahead of the queue, even if whoever asks is cancelled: as the
        subscriptions do, which may follow it.
        """
        ref, timeout = next(self._refs), self._options.answer_timeout
        pending = _Pending(what, self._payload(what, build(ref)), priority, repeatable, moot)
        self._pending[ref] = pending
        self._await(+1)
        try:
            with trio.move_on_after(timeout):
                if moot:
                    self.connection.say_first(pending.payload)
                    pending.left = True
                else:
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
                raise refused(error)
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

    async def subscribe(
        self, channel: bytes, recover: Position | None, presence: bool, wild: bool = False
    ) -> Subscription:
        if channel in self.subscriptions:
            raise ProtocolError(
                f"cannot subscribe to {readable(channel)!r} twice: this client is subscribed", origin="local"
            )
        place = Place(recover.epoch, recover.offset) if recover is not None else Place()
        subscription = Subscription(self, channel, place, presence, wild)
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
        if not subscription.begun:
            self.connection.check_open()  # it ended in peace, and this with it
        if waited.cancelled_caught:
            self._abandon(subscription)
            raise DaemonUnreachable(
                f"cannot subscribe to {readable(channel)!r}: no answer within {timeout:g} s, "
                f"the connection is {self._state()}"
            )
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        if self.subscriptions.get(subscription.name) is not subscription:
            subscription.discard()
            await trio.lowlevel.checkpoint()
            return
        self._forget(subscription.name)
        subscription.end(None, discard=True)
        if self.ready:
            fields = messages.channel_fields(subscription.name)
            await self.request(
                f"unsubscribe from {subscription.channel!r}",
                lambda ref: messages.Unsubscribe(**fields, ref=ref),
                moot=True,
            )
        else:
            await trio.lowlevel.checkpoint()

    def _ask(self, subscription: Subscription) -> None:
        ref = next(self._refs)
        self._subscribing[ref] = subscription
        self.connection.say_first(messages.encode(subscription.request(ref), self.format))

    def _ask_later(self, subscription: Subscription) -> None:
        """After a reconnect all are asked for at once, which may be more than the daemon takes of one session."""
        welcome = self.welcome

        def ask() -> None:
            if self.ready and self.welcome is welcome and self.subscriptions.get(subscription.name) is subscription:
                self._ask(subscription)

        self.connection.later(ASK_AGAIN * random.uniform(1, 2), ask)

    def _abandon(self, subscription: Subscription) -> None:
        """Nobody waits for this subscription any more; the daemon may have made it."""
        if self._forget(subscription.name) is not None and self.ready:
            fields = messages.channel_fields(subscription.name)
            self.connection.say_first(messages.encode(messages.Unsubscribe(**fields), self.format))
        subscription.end(None, discard=True)

    def _forget(self, name: bytes) -> Subscription | None:
        """This client is subscribed to it no more."""
        subscription = self.subscriptions.pop(name, None)
        if subscription is not None and subscription.pattern:
            self._reroute()
        return subscription

    def _reroute(self) -> None:
        """A subscription with wildcards came or went."""
        self._patterns = [each for each in self.subscriptions.values() if each.pattern and each.live]
        self._covering.clear()

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
        token = self._token if self._shows_token else None
        hello = messages.Hello(messages.VERSION, self._name, token, self._tags, resume, ref=self._hello_ref)
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
                if self._patterns:
                    self._share(message, size)
                elif (subscription := self.subscriptions.get(messages.channel_of(message))) is not None:
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
                self.connection.drop(loss_of(event))

    def _share(self, message: messages.Message, size: int) -> None:
        """A message for every subscription that matches, where some have wildcards."""
        channel = messages.channel_of(message)
        covering = self._covering.get(channel)
        if covering is None:
            if len(self._covering) >= PLACES:
                self._covering.clear()
            covering = self._covering[channel] = [each for each in self._patterns if matches(each.name, channel)]
        own = self.subscriptions.get(channel)
        # What a pattern brings before the daemon has confirmed the channel's own subscription is ahead of its place: it
        # comes once more there, after what was missed.
        if own is not None and (own.live or not covering or message.offset is None):
            own.take(message, size)
        for each in covering:
            each.take(message, size)
        if own is None and not covering:
            self.events.put(message, size)

    def _answered(self, event: Any, size: int) -> None:
        ref = event.ref
        if isinstance(ref, int) and (pending := self._pending.get(ref)) is not None:
            pending.resolve(event)
        elif isinstance(ref, int) and (subscription := self._subscribing.pop(ref, None)) is not None:
            if self.subscriptions.get(subscription.name) is not subscription:
                return
            if isinstance(event, messages.Error) and event.code == "rate" and subscription.begun:
                self._ask_later(subscription)
            elif isinstance(event, messages.Error):
                self._forget(subscription.name)
                subscription.end(refused(event))
            else:
                before = subscription.pattern
                subscription.confirm(event)
                if before or subscription.pattern:
                    self._reroute()
        elif isinstance(event, messages.Ok):
            if ref is None and event.epoch is not None:
                self._level(messages.channel_of(event), event)
        elif isinstance(event, messages.Error):
            if ref is not None and ref == self._hello_ref:
                self._unwelcome(event)
            elif event.channel is not UNSET or event.channel64 is not UNSET:
                self._lose(messages.channel_of(event), event, size)
            else:
                if event.refresh and self._source is not None:
                    self._suspended = self._suspended or {}
                    self.renews = trio.current_time() + random.uniform(0, RENEW_SPREAD)
                    self.connection.changed()
                self.events.put(event, size)

    def _level(self, channel: bytes, ok: messages.Ok) -> None:
        if (own := self.subscriptions.get(channel)) is not None:
            own.level(channel, ok)
        for each in self._patterns:
            if matches(each.name, channel):
                each.level(channel, ok)

    def _lose(self, channel: bytes, error: messages.Error, size: int) -> None:
        """The daemon took a subscription away: what was heard can still be read, then the reader learns why."""
        kept = self.subscriptions.get(channel)
        if kept is not None and self._suspended is not None and error.code == "denied":
            kept.live = False
            self._suspended[kept] = error
            self._reroute()
            return
        subscription = self._forget(channel)
        if subscription is None:
            self.events.put(error, size)
        else:
            subscription.end(refused(error))

    def _welcomed(self, welcome: messages.Welcome) -> None:
        if self._resuming and self.welcome is not None and welcome.session == self.welcome.session:
            self.connection.counters.resumed += 1
        self.welcome = welcome
        self._hello_ref = None
        self._way.given(welcome.resume)
        self.heartbeat = welcome.heartbeat or None
        self.silence = welcome.heartbeat * _SILENT_BEATS or None
        self.ready = True
        self._expires(welcome.expires)
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
        failed = refused(error)
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
        self.renews = math.inf
        self.silence = self.heartbeat = None
        self._subscribing.clear()
        self._suspended = None  # the next connection asks for all of them
        for subscription in self.subscriptions.values():
            subscription.live = False
        self._reroute()
        for pending in list(self._pending.values()):
            if pending.arrived.is_set():
                continue
            if pending.moot:  # asked again it might end what was subscribed to since
                pending.withdrawn = True
                pending.resolve(messages.Ok())
            elif not pending.left:
                continue
            elif pending.repeatable:
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


def _plain_data(event: Any) -> Any:
    """The event with its data in `data`, whichever field it travelled in."""
    if event.data is UNSET and event.data64 is not UNSET:
        return msgspec.structs.replace(event, data=event.data64, data64=UNSET)
    return event


def loss_of(close: messages.Close) -> Loss:
    """What a close of the daemon's means for the client."""
    try:
        word = CloseCode(close.code).name.lower().replace("_", "-")
    except ValueError:
        word = str(close.code)
    reason = f"the daemon closed the session: {word} ({close.code})" + (f": {close.reason}" if close.reason else "")
    if close.code == CloseCode.NORMAL:
        return Loss(reason, ends=True)
    if close.code in FINAL:
        return Loss(reason, ends=True, error=RequestFailed(word, f"cannot go on: {reason}", status=403))
    return Loss(reason, least=min(close.retry_after, MOST_AWAY) if close.retry_after is not None else None)
