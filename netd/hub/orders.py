"""What an application has done to sessions: subscriptions and tokens, whichever machine it asks on. Pure.

    hear(hub, session, channel)      set_token(hub, session, token)      copy(hub, source, target)
    carry_out(hub, Order("subscribe", id, channel)) -> 1, or 0      what a backplane brings from another machine

Rules:
- nothing is checked against permissions, as the application is the server's side; the hub's bounds hold (Refusal);
- a session that is not here changes nothing, and the count says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from netd.errors import Denied
from netd.hub.grants import ANONYMOUS
from netd.hub.permissions import Refusal, valid

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.hub.seams import Order
    from netd.hub.session import Session


def session_of(hub: Hub, id: str) -> Session | None:
    """The session of this id that an application may change; None: there is none here."""
    session = hub.sessions.get(id)
    return None if session is None or session.internal or session.closing else session


def hear(hub: Hub, session: Session, channel: bytes) -> bool:
    """Have it hear a channel. False: it did before. Raises Refusal."""
    if session.channels is not None and channel in session.channels:
        return False
    hub.subscribe(session, channel, checked=False)
    return session.channels is not None and channel in session.channels


def copy(hub: Hub, source: bytes, target: bytes) -> int:
    """Have all who hear one channel here hear the other too. Returns how many did not before.

    Raises Refusal where a bound keeps some of them from it; the others hear it all the same.
    """
    place = hub.place(valid(source))
    valid(target)
    added, refused = 0, None
    for each in [] if place is None else [*place.subscribers, *(getattr(place, "waiting", None) or ())]:
        if not each.internal and not each.closing:
            try:
                added += hear(hub, each, target)
            except Refusal as error:
                refused = error
    if refused is not None:
        raise refused
    return added


def set_token(hub: Hub, session: Session, token: bytes) -> None:
    """Keep the application's token with a session, b"" for none. Where it is one of the hub's, the session has what
    that permits, in place of what it had, until there is none again. Any other is the application's own, and changes
    nothing of this."""
    session.application_token = token or None
    if token:
        try:
            grants = replace(hub.resolve(token.decode("ascii")), given=True)
        except (Denied, UnicodeDecodeError):
            return
    elif session.grants.given:
        grants = ANONYMOUS
    else:
        return
    hub.tag(session, grants=grants)
    hub.revoke_subscriptions(session)


def carry_out(hub: Hub, order: Order) -> int:
    """Do here what an application of another machine wants. Returns how many sessions it has changed; what this
    machine refuses has changed none, as far as that machine is told."""
    try:
        if order.what == "copy":
            return copy(hub, order.value, order.target)
        session = None if order.session is None else session_of(hub, order.session)
        if session is None:
            return 0
        match order.what:
            case "subscribe":
                return int(hear(hub, session, valid(order.value)))
            case "unsubscribe":
                return int(hub.unsubscribe(session, order.value))
            case "token":
                set_token(hub, session, order.value)
                return 1
    except Refusal:
        return 0
