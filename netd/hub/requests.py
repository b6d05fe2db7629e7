"""What each request of a client does, and how it is answered. Pure.

Rules:
- a request that carries `ref` is answered by Ok, by what it asks for, or by Error; without one, only by the latter two;
- nothing has to come first: without a hello a client is anonymous, has the name and tags that its transport gave it,
  and cannot be resumed;
- a client's fault is an Error and never an exception; the connection stays;
- a direct message that reaches nobody is a fault of that kind (not-found): the client should know;
- limits are checked before anything is done: operations and bytes a second of the session, messages a second of a
  namespace; tokens a second. What could not be read costs the same. Pong costs its bytes alone, and Close nothing;
- a request that is refused for its session's limits is answered each time, as its client waits for that; what could not
  be read, and a pong, once a second at most;
- an answer is bounded before it is encoded: a history has as many messages as fit, and lists that do not are refused;
- what takes other machines is answered when the backplane has answered, maybe later; other requests are not behind it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from netd.budget import Bucket
from netd.errors import Denied, NotFound
from netd.hub import presence
from netd.hub.grants import NEVER, Grant
from netd.hub.permissions import Refusal, shown, valid
from netd.hub.session import NO_TAGS, encoded
from netd.hub.stays import new_secret, opens
from netd.wire import messages
from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Binary,
    Clients,
    Close,
    CloseCode,
    Error,
    Event,
    Hello,
    History,
    ListClients,
    Ok,
    Ping,
    Pong,
    Presence,
    Publish,
    Refresh,
    Request,
    SendBroadcast,
    SendDirect,
    Subscribe,
    Text,
    Unsubscribe,
    Welcome,
    channel_fields,
    channel_of,
    data_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from netd.errors import ProtocolError
    from netd.hub.history import Page, Publication
    from netd.hub.hub import Hub
    from netd.hub.permissions import Realm
    from netd.hub.session import Session


MAX_HISTORY = 2**20
"""Bytes of messages, about, in the answer to one request for history; a single message may be longer."""
TOKENS_PER_SECOND = 10.0
"""That a session may show, and so many at once: each may take a signature's check for every key, and all that comes in
one read is served before anybody else is."""
_LEAST_CLIENT = 48
"""Bytes of a session in a list, without its name and tags."""


def handle(hub: Hub, session: Session, request: Request, size: int) -> None:
    """Do what `request` asks and answer it."""
    if session.closing:
        return
    session.messages_in += 1
    kind = type(request)
    if kind is Pong:
        _pong(hub, session, size)
        return
    if (
        (expires := session.grants.expires) != NEVER
        and expires <= hub.clock()
        and not hub.lose_token(session, "it has expired")
    ):
        return
    try:
        if kind is not Close:
            _pace(hub, session, size)
        _OPERATIONS[kind](hub, session, request)
    except Denied as error:
        _refuse(session, request, "denied", str(error))
    except NotFound as error:
        _refuse(session, request, "not-found", str(error))
    except Refusal as error:
        _refuse(session, request, error.code, str(error))


def refuse(hub: Hub, session: Session, error: ProtocolError, ref: int | str | None, size: int) -> None:
    """`Hub.refuse`."""
    if session.closing:
        return
    session.messages_in += 1
    session.refused += 1
    try:
        _pace(hub, session, size)
    except Refusal as refusal:
        _mention(hub, session, refusal, ref)
        return
    codes: dict[int | None, str] = {CloseCode.TOO_LARGE: "too-large", CloseCode.UNSUPPORTED: "unsupported"}
    session.send(Error(code=codes.get(error.close, "invalid"), message=str(error), ref=ref))


def _pong(hub: Hub, session: Session, size: int) -> None:
    try:
        _pace_bytes(hub, session, size)
    except Refusal as refusal:
        session.refused += 1
        _mention(hub, session, refusal, None)


def _mention(hub: Hub, session: Session, refusal: Refusal, ref: int | str | None) -> None:
    """Tell a session that it is above its limits, if it was not told within this second."""
    if not _short(hub, session, "told", 1.0, 1.0, 1.0):
        session.send(Error(code=refusal.code, message=str(refusal), ref=ref))


def _refuse(session: Session, request: Request, code: str, message: str) -> None:
    session.refused += 1
    session.send(Error(code=code, message=message, ref=request.ref))


def _pace(hub: Hub, session: Session, size: int) -> None:
    config = hub.config
    if config.messages_per_second:
        rate = config.messages_per_second
        if _short(hub, session, "", 1.0, rate, config.burst or rate):
            raise Refusal("rate", f"cannot do more than {rate:g} operations a second (hub.messages_per_second)")
    _pace_bytes(hub, session, size)


def _pace_bytes(hub: Hub, session: Session, size: int) -> None:
    rate = hub.config.bytes_per_second
    if rate and size and _short(hub, session, "bytes", float(size), rate, rate):
        raise Refusal("rate", f"cannot take more than {rate:g} bytes a second (hub.bytes_per_second)")


def _pace_realm(hub: Hub, session: Session, realm: Realm) -> None:
    rate = realm.rules.rate
    if rate and _short(hub, session, f":{realm.name}", 1.0, rate, realm.rules.burst or rate):
        realm.refused += 1
        why = f"namespace {realm.name!r} takes {rate:g} messages a second of a session {realm.key('rate')}"
        raise Refusal("rate", f"cannot publish: {why}")


def _short(hub: Hub, session: Session, limit: str, amount: float, rate: float, burst: float) -> bool:
    """Take `amount` from one of the session's buckets; True if it is not there. More than a burst takes a full one."""
    burst = max(burst, 1.0)
    found = bucket(hub, session, limit, rate, burst)
    if found.draw(rate, min(amount, burst)):
        return True
    found.tokens -= max(0.0, amount - burst)
    return False


def bucket(hub: Hub, session: Session, limit: str, rate: float, burst: float) -> Bucket:
    """One of the session's buckets, as of now."""
    now = hub.clock()
    if session.buckets is None:
        session.buckets = {}
    found = session.buckets.get(limit)
    if found is None:
        found = session.buckets[limit] = Bucket(burst, now)
    found.stamp = min(found.stamp, now)  # the wall clock may be set back, and nobody should have to wait for it
    found.refill(now, rate, burst)
    return found


def _answer(session: Session, event: Event) -> None:
    """Send an answer that may be long; one that has no room is no reason to cut the client off."""
    data = encoded(session.encoder, event)
    if data is None:
        return
    if len(data) > room(session):
        raise _too_long(session, len(data))
    session.outbox.push(data)


def room(session: Session) -> int:
    """Bytes that its outbox would still take in."""
    return max(0, session.outbox.rules.bound - session.outbox.size)


def _too_long(session: Session, least: int) -> Refusal:
    return Refusal("too-large", f"cannot answer with {least} bytes or more: there is room for {room(session)}")


def _when(session: Session, request: Request, then: Callable[..., None]) -> Callable[..., None]:
    """`then`, to be called once a backplane has answered: what it refuses is told to the session, if that is there."""

    def answered(*answer: Any) -> None:
        if session.closing:
            return
        try:
            then(*answer)
        except NotFound as error:
            _refuse(session, request, "not-found", str(error))
        except Refusal as error:
            _refuse(session, request, error.code, str(error))

    return answered


def _done(session: Session, request: Request, **more: Any) -> None:
    if request.ref is not None:
        session.send(Ok(ref=request.ref, **more))


# --- hello -----------------------------------------------------------------------------------------------------------


def _hello(hub: Hub, session: Session, request: Hello) -> None:
    if str(request.version) != str(messages.VERSION):
        what = f"cannot speak version {request.version} of the messages: this is {messages.VERSION}"
        raise Refusal("unsupported", what)
    grants = session.grants if request.token is None else _resolve(hub, session, request.token)
    if request.resume is not None and (session.resume is not None or session.channels):
        raise Refusal("invalid", "cannot resume a session once this one has begun: say so in the first request")
    for key in request.tags or ():
        if "=" in key:  # or "a=b" with the value "c" and "a" with "b=c" were the same target
            raise Refusal("invalid", f'cannot have the tag {key!r}: there may be no "=" in its key')
    own = {**session.own_tags, **(request.tags or {})}
    _check_tags(session, own, grants)
    hub.unindex(session)
    if request.resume is not None:
        own = _resume(hub, session, request.resume, own, {*session.fixed_tags, *grants.tags})
    session.tag(MappingProxyType(own) if own else NO_TAGS, grants=grants)
    if request.name is not None:
        session.name = request.name
    elif session.name is None:
        session.name = grants.subject
    hub.index(session)
    hub.backplane.changed(session)
    hub.watch(session)
    secret = new_secret(session) if hub.config.resume_seconds else None
    session.send(
        Welcome(
            session=session.id,
            server=hub.server,
            version=hub.version,
            heartbeat=session.heartbeat,
            resume=secret,
            expires=_expires(hub, grants),
        )
    )
    _done(session, request)
    if request.token is not None:  # another may permit less than the one before
        hub.revoke_subscriptions(session)


def _resolve(hub: Hub, session: Session, token: str) -> Grant:
    """`Hub.resolve`, as often as a session may ask for it."""
    if _short(hub, session, "token", 1.0, TOKENS_PER_SECOND, TOKENS_PER_SECOND):
        raise Refusal("rate", f"cannot look at more than {TOKENS_PER_SECOND:g} tokens a second of a session")
    return hub.resolve(token)


def _refresh(hub: Hub, session: Session, request: Refresh) -> None:
    grants = _resolve(hub, session, request.token)
    if session.token is not None and session.grants.subject != grants.subject:
        raise Denied("cannot refresh the token: it is for somebody else (sub) than this session's")
    _check_tags(session, session.own_tags, grants)
    hub.tag(session, grants=grants)
    _done(session, request, expires=_expires(hub, grants))
    hub.revoke_subscriptions(session)


def _check_tags(session: Session, own: Mapping[str, str], grants: Grant) -> None:
    count = len({*own, *session.fixed_tags, *grants.tags})
    if count > messages.MAX_TAGS:
        what = "with those of the token and of the handshake"
        raise Refusal("invalid", f"cannot have {count} tags: {messages.MAX_TAGS} is the most, {what}")


def _expires(hub: Hub, grants: Grant) -> float | None:
    """In how many seconds a token expires, as far as it does."""
    return None if grants.expires == NEVER else min(max(0.0, grants.expires - hub.clock()), 1e9)


def _resume(hub: Hub, session: Session, secret: str, own: dict[str, str], others: set[str]) -> dict[str, str]:
    """Give the session the id and name of the one that the secret is for, and its application token unless it has one;
    nothing if it is for none. Returns its own tags: with those of the other, unless that is too many besides the
    `others` (keys)."""
    other = hub.sessions.get(secret.partition(".")[0])
    if other is not None and other is not session and opens(secret, other.resume):
        hub.end(other, CloseCode.REPLACED, "resumed by another connection", resumable=True)
    stay = hub.stays.claim(secret, hub.clock())
    if stay is None:
        return own
    if session.application_token is None:
        session.application_token = stay.application_token
    hub.rename(session, stay.id)
    session.name = stay.name
    both = {**stay.tags, **own}
    return both if len(both.keys() | others) <= messages.MAX_TAGS else own


# --- channels --------------------------------------------------------------------------------------------------------


def _subscribe(hub: Hub, session: Session, request: Subscribe) -> None:
    def answer(ok: Ok) -> None:
        if request.ref is not None:
            session.send(_with_ref(ok, request.ref))

    channel = valid(channel_of(request))
    hub.subscribe(session, channel, recover=request.recover, answer=answer, pattern=request.pattern)


def _with_ref(ok: Ok, ref: int | str) -> Ok:
    return Ok(
        ref=ref,
        channel=ok.channel,
        channel64=ok.channel64,
        epoch=ok.epoch,
        offset=ok.offset,
        recovered=ok.recovered,
        pattern=ok.pattern,
    )


def _unsubscribe(hub: Hub, session: Session, request: Unsubscribe) -> None:
    channel = valid(channel_of(request))
    hub.unsubscribe(session, channel)
    _done(session, request, **channel_fields(channel))


def _publish(hub: Hub, session: Session, request: Publish) -> None:
    channel = valid(channel_of(request))
    hub.allowed(session, "publish", channel)
    _pace_realm(hub, session, hub.permissions.realm(channel))
    delivered = hub.publish(
        channel, data_of(request), sender=session, priority=request.priority, ephemeral=request.ephemeral
    )
    _done(session, request, delivered=delivered)


def _list(hub: Hub, session: Session, request: ListClients) -> None:
    hub.allowed(session, "clients", None)
    if request.channel is not UNSET or request.channel64 is not UNSET:
        _ask_present(hub, session, request, valid(channel_of(request)))
        return
    _bounded(hub, hub.visible)

    def arrived(count: int, others: list[messages.Client]) -> None:
        _bounded(hub, hub.visible + count)
        _answer(session, Clients(ref=request.ref, clients=_clients(session, hub.present(), others)))

    hub.backplane.elsewhere(None, hub.config.max_listed - hub.visible, _when(session, request, arrived))


def _presence(hub: Hub, session: Session, request: AskPresence) -> None:
    _ask_present(hub, session, request, valid(channel_of(request)))


def _ask_present(hub: Hub, session: Session, request: AskPresence | ListClients, channel: bytes) -> None:
    hub.allowed(session, "presence", channel)
    realm = hub.permissions.realm(channel)
    if not realm.rules.track_presence:
        why = f"namespace {realm.name!r} does not track it {realm.key('track_presence')}"
        raise Refusal("unsupported", f"cannot see who is in {shown(channel)}: {why}")
    place = hub.place(channel)
    here = 0 if place is None else len(place)
    _bounded(hub, here)

    def arrived(count: int, others: list[messages.Client]) -> None:
        place = hub.place(channel)
        _bounded(hub, count + (0 if place is None else len(place)))
        found = _clients(session, () if place is None else place.subscribers, others)
        if isinstance(request, AskPresence):
            _answer(session, Presence(ref=request.ref, clients=found, **channel_fields(channel)))
        else:
            _answer(session, Clients(ref=request.ref, clients=found))

    hub.backplane.elsewhere(channel, hub.config.max_listed - here, _when(session, request, arrived))


def _clients(session: Session, sessions: Iterable[Session], others: Iterable[messages.Client]) -> list[messages.Client]:
    """Sessions here and on other machines, for an answer to this one; Refusal where it would have no room for them."""
    least = 0
    people: Iterable[Session | messages.Client] = (*sessions, *others)
    for each in people:
        tags = each.tags or {}
        least += _LEAST_CLIENT + len(each.name or "") + sum(len(key) + len(value) for key, value in tags.items())
    if least > room(session):
        raise _too_long(session, least)
    return [*presence.clients(sessions), *others]


def _bounded(hub: Hub, count: int) -> None:
    if count > hub.config.max_listed:
        raise Refusal("too-many", f"cannot list {count} sessions: at most {hub.config.max_listed} (hub.max_listed)")


def _history(hub: Hub, session: Session, request: AskHistory) -> None:
    channel = valid(channel_of(request))
    hub.allowed(session, "history", channel)
    hub.one_channel(channel, "read the history of")
    most = hub.config.max_listed
    limit = min(100 if request.limit is None else request.limit, most)

    def arrived(page: Page | None) -> None:
        if page is None:
            realm = hub.permissions.realm(channel)
            if realm.rules.history_size:
                raise Refusal("unavailable", f"cannot read the history of {shown(channel)}: it is out of reach now")
            why = f"namespace {realm.name!r} keeps none {realm.key('history_size')}"
            raise Refusal("unsupported", f"cannot read the history of {shown(channel)}: {why}")
        found = _fitting(session, page.messages, newest=request.since is None)
        about = {"ref": request.ref, "epoch": page.epoch, "offset": page.offset, **channel_fields(channel)}
        while True:
            events = [publication.event() for publication in found]
            try:
                _answer(session, History(messages=events, **about))
            except Refusal:
                if len(found) < 2:
                    raise
            else:
                return
            # text of nothing but control characters is six times as long in JSON, so it is rare to come here
            half = len(found) // 2
            found = found[-half:] if request.since is None else found[:half]

    hub.backplane.history(channel, request.since, limit, _when(session, request, arrived))


def _fitting(session: Session, publications: list[Publication], *, newest: bool) -> list[Publication]:
    """As many of these as an answer has room for: the newest, or the oldest. At least one, if there is any."""
    left = min(room(session), MAX_HISTORY)
    count = 0
    for publication in reversed(publications) if newest else publications:
        left -= publication.weight
        if count and left < 0:
            break
        if not count and publication.least > room(session):
            raise _too_long(session, publication.least)
        count += 1
    return publications[len(publications) - count :] if newest else publications[:count]


# --- sessions --------------------------------------------------------------------------------------------------------


def _direct(hub: Hub, session: Session, request: SendDirect) -> None:
    hub.allowed(session, "direct", None)

    def answered(reached: int) -> None:
        if not reached:
            raise NotFound(f"cannot send to {request.to!r}: no such session is here")
        _done(session, request, delivered=reached)

    hub.direct(
        request.to,
        data_of(request),
        sender=session,
        priority=request.priority,
        ephemeral=request.ephemeral,
        answer=_when(session, request, answered),
    )


def _broadcast(hub: Hub, session: Session, request: SendBroadcast) -> None:
    hub.allowed(session, "broadcast", None)
    hub.broadcast(
        data_of(request),
        sender=session,
        priority=request.priority,
        ephemeral=request.ephemeral,
        answer=_when(session, request, lambda reached: _done(session, request, delivered=reached)),
    )


def _text(hub: Hub, session: Session, request: Text) -> None:
    hub.allowed(session, "application", None)
    hub.application.message(session, request.text)
    _done(session, request)


def _binary(hub: Hub, session: Session, request: Binary) -> None:
    hub.allowed(session, "application", None)
    hub.application.message(session, data_of(request))
    _done(session, request)


def _ping(hub: Hub, session: Session, request: Ping) -> None:
    session.send(Pong(ts=request.ts, ref=request.ref))


def _close(hub: Hub, session: Session, request: Close) -> None:
    session.link.close(CloseCode.NORMAL, request.reason)
    hub.close(session, request.code, request.reason)


_OPERATIONS: dict[type, Callable[[Hub, Session, Any], None]] = {
    Hello: _hello,
    Refresh: _refresh,
    Subscribe: _subscribe,
    Unsubscribe: _unsubscribe,
    Publish: _publish,
    SendDirect: _direct,
    SendBroadcast: _broadcast,
    Text: _text,
    Binary: _binary,
    ListClients: _list,
    AskPresence: _presence,
    AskHistory: _history,
    Ping: _ping,
    Close: _close,
}
