"""When sessions may do less than they could: after a reload, without their token, and with one that was revoked. Pure.

Rules:
- what a client subscribed to and may not have any more ends, and it is told with an Error without `ref`, once for each;
  its connection stays;
- where the server side put a session, it stays: no loss of a permission takes it out of a channel. It goes only where
  its name has become a pattern, or is one no more;
- who has lost a token is told to refresh it, is anonymous until then, and has lost the token's tags. What is refused
  to it for that says so, or a client that has no word for errors would be closed without learning what it lacks;
- a session whose token was revoked ends, and cannot be resumed.

Left out: what a session may do (permissions.py), and the moments at which tokens expire (expiry.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from netd.errors import Denied
from netd.hub.grants import ANONYMOUS, NEVER, Grant
from netd.hub.patterns import Pattern
from netd.hub.permissions import shown
from netd.wire.messages import CloseCode, Error, channel_fields

if TYPE_CHECKING:
    from netd.hub.channels import Channel
    from netd.hub.hub import Hub
    from netd.hub.revocations import Revocation
    from netd.hub.session import Session


def renew(hub: Hub, patterns: list[Pattern]) -> None:
    """The hub has another configuration: resolve every session's token anew, and end what is allowed no more.
    `patterns` are those that there were."""
    without: list[tuple[Session, str]] = []
    for session in list(hub.sessions.values()):
        if session.grants.digest:
            grants = _current(hub, session.grants)
            if grants is None:
                without.append((session, _take_token(hub, session, "this configuration takes it no more")))
            else:
                hub.tag(session, grants=grants)
    _end_forbidden(hub, patterns)
    for session, message in without:
        _notify(hub, session, None, message)


def begin(hub: Hub, session: Session) -> None:
    """A stay begins, whose token was resolved a while ago: with what that permits now."""
    if session.grants.digest:
        gone = Grant(lost=f"token {session.token!r}: it is valid no more")
        session.tag(grants=_current(hub, session.grants) or gone)


def _current(hub: Hub, former: Grant) -> Grant | None:
    """What a token that was resolved some time ago permits now; None: nothing any more."""
    now = hub.clock()
    grants = hub.tokens.renew(former, now)
    try:
        hub.revocations.check(grants, now)
    except Denied:
        return None
    if grants is ANONYMOUS:
        return None
    return replace(grants, given=True) if former.given else grants


def _end_forbidden(hub: Hub, patterns: list[Pattern]) -> None:
    """End the subscriptions that are allowed no more. Channels that anyone may hear are looked at once."""
    places: list[Channel | Pattern] = [*hub.heard.values(), *patterns]
    closed = {
        place.name
        for place in places
        if not hub.permissions.open_to_all("subscribe", place.realm)
        or place.realm.wild(place.name) is not isinstance(place, Pattern)
    }
    for session in list(hub.sessions.values()) if closed else ():
        for channel in sorted(closed.intersection(session.channels or ())):
            _end_if_forbidden(hub, session, channel)


def revoke_subscriptions(hub: Hub, session: Session) -> None:
    """`Hub.revoke_subscriptions`."""
    for channel in sorted(session.channels or ()):
        _end_if_forbidden(hub, session, channel)


def _end_if_forbidden(hub: Hub, session: Session, channel: bytes) -> None:
    if session.closing:  # what it was told before was too much for it
        return
    realm = hub.permissions.realm(channel)
    if realm.wild(channel) is not (realm.pattern(channel) is not None):
        what = "takes names with wildcards for patterns now" if realm.wild(channel) else "allows no wildcards"
        why = f"namespace {realm.name!r} {what} {realm.key('wildcards')}"
        if not hub.permissions.exists(realm):
            why = "there is no such namespace any more (hub.namespace)"
        _end(hub, session, channel, f"cannot stay subscribed to {shown(channel)}: {why}")
    elif session.placed is None or channel not in session.placed:
        try:
            hub.permissions.check(session, "subscribe", channel)
        except Denied as error:
            _end(hub, session, channel, str(error))


def _end(hub: Hub, session: Session, channel: bytes, why: str) -> None:
    hub.unsubscribe(session, channel)
    session.send(Error(code="denied", message=why, **channel_fields(channel)))
    _notify(hub, session, channel, why)


def expire(hub: Hub, most: int) -> float | None:
    """`Hub.expire`."""
    now = hub.clock()
    for session in hub.expiries.due(now):
        lose_token(hub, session, "it has expired")
        most -= 1
        if not most:
            break
    following = hub.expiries.next()
    return None if following == NEVER else max(0.0, following - now)


def lose_token(hub: Hub, session: Session, why: str) -> bool:
    """`Hub.lose_token`."""
    message = _take_token(hub, session, why)
    revoke_subscriptions(hub, session)
    _notify(hub, session, None, message)
    return not session.closing


def end_revoked(hub: Hub, made: Revocation) -> int:
    """End the sessions that have a token that was revoked. Returns how many."""
    found = [session for session in hub.sessions.values() if made.covers(session.grants) and not session.closing]
    for session in found:
        hub.end(session, CloseCode.KICKED, "its token was revoked")
    return len(found)


def _take_token(hub: Hub, session: Session, why: str) -> str:
    """Returns what it was told."""
    name = session.token
    hub.tag(session, grants=Grant(lost=f"token {name!r}: {why}"))
    message = f"cannot go on with the token {name!r}: {why}; refresh it"
    session.send(Error(code="denied", message=message, refresh=True))
    return message


def _notify(hub: Hub, session: Session, channel: bytes | None, why: str) -> None:
    for hook in hub.on_lost:
        hook(session, channel, why)
