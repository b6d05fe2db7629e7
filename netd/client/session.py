"""Operations over a client's connection: requests, subscriptions, and their way through a loss.

    hello -> welcome                          for every connection anew, with the resume secret while it is good
    request(ref) -> answer(ref)               requests.py
    subscribe -> ok, messages ...             renewed after every welcome, with the place of the last message taken

Rules:
- a Subscription sees every message of its channel once and in order; where that was not possible it sees a Gap;
- one with wildcards sees those of all channels that match, each in order; nothing is fetched for it, so that every
  reconnect is a Gap. A message that several subscriptions match comes once, and each of them sees it;
- subscriptions go ahead of the queue, so that what the user sends next already finds them; what the daemon is too busy
  for ("rate"), to give us again what we had or to have us leave, it is asked for again;
- of a subscription that was left, nothing is heard any more, whatever is still on its way;
- the daemon's close says whether coming back makes sense: NORMAL ends the client in peace, FINAL codes end it with an
  error, others are a loss like any.

Left out: which subscription hears a message (subscriptions.py), and what it makes of it (subscription.py).
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import trio
from msgspec import UNSET

from netd.client.inbox import Account, Inbox
from netd.client.refusals import refused
from netd.client.requests import Requests
from netd.client.seams import Loss
from netd.client.state import MOST_AWAY, Place, Way
from netd.client.subscription import Subscription, readable
from netd.client.subscriptions import Subscriptions
from netd.errors import DaemonUnreachable, NetdError, ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.messages import CloseCode, Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.connection import Connection
    from netd.client.options import ClientOptions, TokenSource
    from netd.client.subscriptions import Leaving

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
        self.requests = Requests(connection, account, options.answer_timeout, format)
        self.subscriptions = Subscriptions()
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
        self._subscribing: dict[int, Subscription] = {}
        self._leaving: dict[int, Leaving] = {}
        self._suspended: dict[Subscription, messages.Error] | None = None
        """While a token that was lost is replaced: the subscriptions that went with it, and why."""
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
        timeout = self.requests.patience
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
            answer = await self.requests.ask("refresh the token", lambda ref: messages.Refresh(shown, ref=ref))
        except (RequestFailed, ProtocolError):
            self._token, self._source = before
            raise
        expires: float | None = getattr(answer, "expires", None)
        self._expires(expires)
        again, self._suspended = self._suspended or {}, None
        for subscription in again:
            if self.subscriptions.holds(subscription):
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
                if self.subscriptions.holds(subscription):
                    self.subscriptions.drop(subscription.name)
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
        timeout = self.requests.patience
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

    async def subscribe(
        self, channel: bytes, recover: Position | None, presence: bool, wild: bool = False
    ) -> Subscription:
        if channel in self.subscriptions:
            raise ProtocolError(
                f"cannot subscribe to {readable(channel)!r} twice: this client is subscribed", origin="local"
            )
        place = Place(recover.epoch, recover.offset) if recover is not None else Place()
        subscription = Subscription(self, channel, place, presence, wild)
        self.requests.payload(f"subscribe to {readable(channel)!r}", subscription.request(0))
        self.subscriptions.add(subscription)
        try:
            with self.requests.awaited():
                if self.ready:
                    self._ask(subscription)
                with trio.move_on_after(self.requests.patience) as waited:
                    await subscription.confirmed()
        except BaseException:
            self._leave(subscription)
            raise
        if subscription.error is not None:
            raise subscription.error
        if not subscription.begun:
            self.connection.check_open()  # it ended in peace, and this with it
        if waited.cancelled_caught:
            self._leave(subscription)
            raise self.requests.unanswered(f"subscribe to {readable(channel)!r}", self.ready)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        leaving = self._leave(subscription)
        if leaving is None:
            await trio.lowlevel.checkpoint()
            return
        with self.requests.awaited(), trio.move_on_after(self.requests.patience) as waited:
            self.connection.push()
            await leaving.over.wait()
        if leaving.error is not None:
            raise refused(leaving.error)
        if waited.cancelled_caught:
            raise self.requests.unanswered(f"unsubscribe from {subscription.channel!r}", True)

    def _leave(self, subscription: Subscription) -> Leaving | None:
        """It is read no more. None: the daemon need not be told."""
        if not self.subscriptions.holds(subscription):
            subscription.discard()
            return None
        subscription.end(None, discard=True)
        if not self.ready:
            self.subscriptions.drop(subscription.name)
            return None
        leaving = self.subscriptions.leave(subscription)
        self._ask_to_leave(leaving)
        return leaving

    def _ask(self, subscription: Subscription) -> None:
        ref = subscription.ref = self.requests.number()
        self._subscribing[ref] = subscription
        self.connection.say_first(messages.encode(subscription.request(ref), self.format))

    def _ask_to_leave(self, leaving: Leaving) -> None:
        """Ahead of the queue, as subscriptions are asked for, which may follow it."""
        ref = self.requests.number()
        self._leaving[ref] = leaving
        fields = messages.channel_fields(leaving.subscription.name)
        self.connection.say_first(messages.encode(messages.Unsubscribe(**fields, ref=ref), self.format))

    def _later(self, call: Callable[[], None]) -> None:
        """What the daemon is too busy for: after a reconnect, say, all subscriptions are asked for at once."""
        welcome = self.welcome

        def again() -> None:
            if self.ready and self.welcome is welcome:
                call()

        self.connection.later(ASK_AGAIN * random.uniform(1, 2), again)

    # --- the connection's face ----------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        self.heartbeat, self.silence = None, self.requests.patience
        return [self._hello(self._way.usable(trio.current_time()))]

    def say_hello(self) -> None:
        """Begin operations on a connection that was plain so far."""
        self.silence = self.requests.patience
        self.connection.say_first(self._hello(None))
        self.connection.changed()

    def _hello(self, resume: str | None) -> bytes:
        self._hello_ref = self.requests.number()
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
                if not self.subscriptions.take(message, size):
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
                if not self.subscriptions.witness(event, size):
                    self.events.put(event, size)
            case messages.Ping():
                self.connection.say_pong(messages.encode(messages.Pong(event.ts, ref=event.ref), self.format))
            case messages.Welcome():
                self._welcomed(event)
            case messages.Close():
                self.connection.drop(loss_of(event))

    def _answered(self, event: Any, size: int) -> None:
        ref = event.ref
        if self.requests.answered(ref, event):
            return
        if isinstance(ref, int) and (subscription := self._subscribing.pop(ref, None)) is not None:
            self._subscribed(subscription, event)
        elif isinstance(ref, int) and (leaving := self._leaving.pop(ref, None)) is not None:
            self._left(leaving, event)
        elif isinstance(event, messages.Ok):
            if ref is None and event.epoch is not None:
                self.subscriptions.level(event)
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

    def _subscribed(self, subscription: Subscription, event: messages.Ok | messages.Error) -> None:
        """The daemon has answered that we want to hear it."""
        if isinstance(event, messages.Ok):
            self.subscriptions.confirm(subscription, event)
        elif not self.subscriptions.holds(subscription):
            return
        elif event.code == "rate" and subscription.begun:
            self._later(lambda: self._ask(subscription) if self.subscriptions.holds(subscription) else None)
        else:
            self.subscriptions.drop(subscription.name)
            subscription.end(refused(event))

    def _left(self, leaving: Leaving, event: messages.Ok | messages.Error) -> None:
        """The daemon has answered that we want to hear it no more."""
        if isinstance(event, messages.Error) and event.code == "rate":
            self._later(lambda: self._leave_again(leaving))
        else:
            self._subscribing.pop(leaving.subscription.ref, None)  # that needs no answer any more
            self.subscriptions.left(leaving, event if isinstance(event, messages.Error) else None)

    def _leave_again(self, leaving: Leaving) -> None:
        if not self.subscriptions.leaves(leaving):
            return
        if leaving.subscription.name in self.subscriptions:  # somebody wants it again; if they get it, this is over
            self._later(lambda: self._leave_again(leaving))
        else:
            self._ask_to_leave(leaving)

    def _lose(self, channel: bytes, error: messages.Error, size: int) -> None:
        """The daemon took a subscription away: what was heard can still be read, then the reader learns why."""
        if self.subscriptions.was_left(channel):
            return
        own = self.subscriptions.get(channel)
        if own is None:
            self.events.put(error, size)
        elif self._suspended is not None and error.code == "denied":
            self.subscriptions.suspend(own)
            self._suspended[own] = error
        else:
            self.subscriptions.drop(channel)
            own.end(refused(error))

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
        for subscription in self.subscriptions:
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
        self._leaving.clear()
        self._suspended = None  # the next connection asks for all of them
        self.subscriptions.lost()
        self.requests.lost(loss)

    def closed(self, error: NetdError | None) -> None:
        self.ready = False
        self._greeted.set()
        self.events.end(error)
        self.subscriptions.lost()
        for subscription in self.subscriptions:
            subscription.end(error)
        gone = error or DaemonUnreachable(f"cannot get an answer from {self.connection.address}: this client is closed")
        self.requests.closed(gone)


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
