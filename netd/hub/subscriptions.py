"""How a session begins and ceases to hear a channel: bounds, what it missed, and who is told. Pure.

    subscribe -> waits in the channel -> the backplane answers -> Ok, what was missed, what came meanwhile -> live

Rules:
- nothing is sent twice and nothing is left out: what comes while the backplane looks history up is held, and what
  history has too is not sent again. The answer, what was missed and what was held follow each other with the normal
  priority, whatever theirs was;
- recovery is all or nothing. It fails when a message is gone for good, when there are more than `hub.max_listed`, when
  they have no room in the outbox (found out before they are encoded), or when the namespace does not permit it to this
  session; the client then goes on from the position it is told;
- a pattern (patterns.py) has no position: nothing is recovered, and it is live with the answer;
- Joined and Left go to the channel's other subscribers, where its namespace has join_leave: to those that may ask who
  is there, to none that has much waiting, and no more of them than `join_leave_rate`. Nobody is cut off over them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.hub import presence
from netd.hub.channels import Channel
from netd.hub.patterns import MAX_TOKENS, Pattern
from netd.hub.permissions import Refusal, shown, valid
from netd.hub.session import encoded, offer
from netd.wire.messages import Ok, Position, channel_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.hub.history import Page, Publication
    from netd.hub.hub import Hub
    from netd.hub.permissions import Realm
    from netd.hub.session import Session
    from netd.wire.messages import Joined, Left

_ANSWER = 512
"""Bytes left for the answer to a subscription, before what was missed."""


def subscribe(
    hub: Hub,
    session: Session,
    channel: bytes,
    recover: Position | None,
    checked: bool,
    answer: Callable[[Ok], None] | None,
    pattern: bool = False,
) -> None:
    """`Hub.subscribe`."""
    realm = hub.permissions.realm(valid(channel))
    if checked and "subscribe" not in realm.open:
        hub.allowed(session, "subscribe", channel)
    wild = realm.wild(channel)
    if pattern and not wild:
        raise _no_pattern(realm, channel)
    if session.closing or hub.sessions.get(session.id) is not session:
        return
    if session.channels is not None and channel in session.channels:
        if answer is not None and wild:
            answer(_ok_pattern(channel, recover))
        elif answer is not None:
            _tell_position(hub, channel, recover, answer)
        return
    _has_room(hub, session, channel, realm)
    if wild:
        if answer is not None:
            answer(_ok_pattern(channel, recover))
        if not session.closing:  # its outbox may have been full
            _enter_pattern(hub, session, channel, realm, placed=not checked)
        return
    place = hub.heard.get(channel)
    if place is None:
        place = hub.heard[channel] = Channel(channel, realm)
    _note(hub, session, channel, placed=not checked)
    if recover is None and answer is None and hub.backplane.at_once and not realm.rules.history_size:
        # there is no position, and nobody would be told
        _go_live(hub, session, place)
    else:
        _find_position(hub, session, place, recover, checked, answer)


def _find_position(
    hub: Hub,
    session: Session,
    place: Channel,
    recover: Position | None,
    checked: bool,
    answer: Callable[[Ok], None] | None,
) -> None:
    """Ask the backplane where a channel is, and for what was missed since `recover`."""
    channel = place.name
    held = place.wait(session)
    place.realm.changed(channel)
    if recover is None or (checked and not hub.permissions.permits(session, "recover", channel)):

        def located(position: Position | None) -> None:
            # one who may not have what it missed, but has missed nothing, is told so
            nothing: list[Publication] | None = [] if recover is not None and position == recover else None
            _enter(hub, session, place, held, position, answer, recover, nothing)

        hub.backplane.position(channel, located)
        return

    def arrived(page: Page | None) -> None:
        position = None if page is None else Position(page.epoch, page.offset)
        missed = page.messages if page is not None and page.complete else None
        _enter(hub, session, place, held, position, answer, recover, missed)

    hub.backplane.history(channel, recover, hub.config.max_listed, arrived)


def unsubscribe(hub: Hub, session: Session, channel: bytes) -> bool:
    """`Hub.unsubscribe`."""
    if session.channels is None or channel not in session.channels:
        return False
    session.channels.discard(channel)
    session.channels = session.channels or None
    if session.placed is not None:
        session.placed.discard(channel)
        session.placed = session.placed or None
    hub.subscriptions -= 1
    realm = hub.permissions.realm(channel)
    if (pattern := realm.pattern(channel)) is not None:
        _leave_pattern(session, pattern)
        hub.backplane.left(channel, session, last=not len(pattern))
        return True
    place = hub.heard[channel]
    was_live = session in place.subscribers
    held = place.release(session)
    place.remove(session)
    realm.changed(channel)
    if place.idle:
        del hub.heard[channel]
    hub.backplane.left(channel, session, last=place.idle)
    if was_live and place.realm.rules.join_leave and not session.internal:
        _announce(hub, place, presence.left(channel, session))
    if held and not session.closing and realm.patterns is not None and realm.patterns.reach(session, channel):
        for each in held:  # it would have heard them through a pattern if it had not waited
            if data := _told(session, each):
                session.outbox.push(data, ephemeral=each.ephemeral)
    return True


def copy(hub: Hub, source: Session, target: Session) -> int:
    """`Hub.copy_subscriptions`."""
    new = sorted((source.channels or set()) - (target.channels or set()))
    patterns = 0
    for more, channel in enumerate(new):
        realm = hub.permissions.realm(channel)
        _has_room(hub, target, channel, realm, more, patterns)
        patterns += realm.wild(channel)
    for channel in new:
        subscribe(hub, target, channel, None, False, None)
    return len(new)


def _note(hub: Hub, session: Session, name: bytes, placed: bool) -> None:
    """It has one more subscription."""
    if session.channels is None:
        session.channels = {name}
    else:
        session.channels.add(name)
    if placed:
        session.placed = session.placed or set()
        session.placed.add(name)
    hub.subscriptions += 1


def _enter_pattern(hub: Hub, session: Session, name: bytes, realm: Realm, placed: bool) -> None:
    """Have a session hear all channels that match."""
    pattern = realm.pattern(name)
    if pattern is None:
        pattern = Pattern(name, realm)
        realm.put(pattern)
    _note(hub, session, name, placed)
    session.patterns += 1
    pattern.add(session)
    if realm.patterns is not None:
        realm.patterns.changed()
    hub.backplane.joined(name, session)


def _leave_pattern(session: Session, pattern: Pattern) -> None:
    session.patterns -= 1
    pattern.remove(session)
    if not len(pattern):
        pattern.realm.drop(pattern)
    elif pattern.realm.patterns is not None:
        pattern.realm.patterns.changed()


def _no_pattern(realm: Realm, name: bytes) -> Refusal:
    what = f"cannot subscribe to {shown(name)} as a pattern"
    if realm.rules.wildcards:
        return Refusal("invalid", f'{what}: it has no token "*", nor ">" at its end')
    realm.refused += 1
    return Refusal("unsupported", f"{what}: namespace {realm.name!r} allows no wildcards {realm.key('wildcards')}")


def _has_room(hub: Hub, session: Session, channel: bytes, realm: Realm, more: int = 0, patterns: int = 0) -> None:
    """Raise Refusal where a bound is in the way of one more subscription (besides `more` others, of which so many are
    patterns)."""
    config = hub.config
    place: Channel | Pattern | None
    if realm.wild(channel):
        place = realm.pattern(channel)
        _has_room_for_pattern(hub, session, channel, realm, patterns)
    else:
        place = hub.heard.get(channel)
    if len(session.channels or ()) + more >= config.max_subscriptions:
        why = f"a session has at most {config.max_subscriptions} subscriptions (hub.max_subscriptions)"
    elif place is None and not realm.wild(channel) and len(hub.heard) >= config.max_channels:
        why = f"there are {len(hub.heard)} channels already (hub.max_channels)"
    elif place is not None and len(place) >= realm.rules.max_subscribers:
        realm.refused += 1
        why = f"it has {len(place)} subscribers already {realm.key('max_subscribers')}"
    else:
        return
    raise Refusal("too-many", f"cannot subscribe to {shown(channel)}: {why}")


def _has_room_for_pattern(hub: Hub, session: Session, name: bytes, realm: Realm, more: int) -> None:
    what, most = f"cannot subscribe to {shown(name)}", hub.config.max_patterns
    if name.count(b".") >= MAX_TOKENS:
        raise Refusal("invalid", f"{what}: a pattern has at most {MAX_TOKENS} tokens")
    if session.patterns + more >= most:
        raise Refusal("too-many", f"{what}: a session has at most {most} patterns (hub.max_patterns)")
    if realm.pattern(name) is None and len(realm.patterns or ()) >= realm.rules.max_patterns:
        realm.refused += 1
        why = f"namespace {realm.name!r} has {realm.rules.max_patterns} patterns already {realm.key('max_patterns')}"
        raise Refusal("too-many", f"{what}: {why}")


def _enter(
    hub: Hub,
    session: Session,
    place: Channel,
    held: list[Publication],
    position: Position | None,
    answer: Callable[[Ok], None] | None,
    recover: Position | None = None,
    missed: list[Publication] | None = None,
) -> None:
    """The backplane has answered: go live. `missed` is None when recovery failed, or was not asked for."""
    if not place.waits(session, held):
        return  # it has left meanwhile
    place.release(session)
    place.realm.changed(place.name)
    at = 0 if position is None else position.offset
    all_held = held
    held = [each for each in held if each.offset is None or each.offset > at]
    first = next((each.offset for each in held if each.offset is not None), at + 1)
    late = [(data, each.ephemeral) for each in held if (data := _told(session, each))]
    old = None
    if missed is not None and first == at + 1:
        # a recovery must not end in the slow-consumer policy
        outbox = session.outbox
        old = _within(session, missed, outbox.rules.bound - outbox.size - _ANSWER - sum(len(data) for data, _ in late))
    if old is None:
        missed = None
        patterns = place.realm.patterns
        if len(held) < len(all_held) and patterns is not None and patterns.reach(session, place.name):
            # what is before the position, it would have heard through a pattern if it had not waited
            first = next((each.offset for each in all_held if each.offset is not None), first)
            late = [(data, each.ephemeral) for each in all_held if (data := _told(session, each))]
        at = first - 1
    if answer is not None:
        start = recover if missed is not None and recover is not None else position and Position(position.epoch, at)
        answer(_ok(place.name, start, None if recover is None else missed is not None))
    for data in old or ():
        session.outbox.push(data)
    for data, ephemeral in late:
        session.outbox.push(data, ephemeral=ephemeral)
    if session.closing or place.name not in (session.channels or ()):
        return  # its outbox was full, and its subscriptions have ended with it
    _go_live(hub, session, place)


def _go_live(hub: Hub, session: Session, place: Channel) -> None:
    place.add(session)
    place.realm.changed(place.name)
    hub.backplane.joined(place.name, session)
    if place.realm.rules.join_leave and not session.internal:
        _announce(hub, place, presence.joined(place.name, session), but=session)


def _told(session: Session, publication: Publication) -> bytes | None:
    """A message as the session is told it; None where it is not."""
    if session.deaf and publication.sender == session.id:
        return None
    return encoded(session.encoder, publication.event())


def _within(session: Session, publications: list[Publication], room: int) -> list[bytes] | None:
    """Messages as they go on the wire; None if they take more than `room` bytes, of which no more are encoded."""
    if publications and sum(publication.least for publication in publications) > room:
        return None
    found: list[bytes] = []
    for publication in publications:
        data = _told(session, publication) or b""
        room -= len(data)
        if room < 0:
            return None
        if data:
            found.append(data)
    return found


def _announce(hub: Hub, place: Channel, event: Joined | Left, but: Session | None = None) -> None:
    """Tell a channel's subscribers, here and on other machines, who came or went."""
    somebody = len(place.subscribers) > (but is not None)
    if (somebody or hub.backplane.others) and place.tells(hub.clock()):
        if somebody:
            _offer(hub, place, event, but)
        hub.backplane.tell(place.name, event)


def tell(hub: Hub, place: Channel, event: Joined | Left) -> None:
    """Tell a channel's subscribers here who came or went on another machine."""
    if place.subscribers and place.tells(hub.clock()):
        _offer(hub, place, event, None)


def _offer(hub: Hub, place: Channel, event: Joined | Left, but: Session | None) -> None:
    subscribers = place.subscribers
    realm, permissions = place.realm, hub.permissions
    if realm.rules.track_presence and permissions.open_to_all("presence", realm):
        offer((each for each in subscribers if each is not but), event)
        return

    def may(session: Session) -> bool:
        asked = realm.rules.track_presence and permissions.permits(session, "presence", place.name)
        return session.internal or asked

    offer((each for each in subscribers if each is not but and may(each)), event)


def _tell_position(hub: Hub, channel: bytes, recover: Position | None, answer: Callable[[Ok], None]) -> None:
    """For one who hears the channel already: where it is. Nothing is recovered, as nothing may be sent twice."""
    hub.backplane.position(channel, lambda position: answer(_ok(channel, position, None if recover is None else False)))


def _ok_pattern(name: bytes, recover: Position | None) -> Ok:
    return Ok(**channel_fields(name), recovered=None if recover is None else False, pattern=True)


def _ok(channel: bytes, position: Position | None, recovered: bool | None) -> Ok:
    return Ok(
        **channel_fields(channel),
        epoch=None if position is None else position.epoch,
        offset=None if position is None else position.offset,
        recovered=recovered,
    )
