"""Subscribing, recovering what was missed, and the bounds of both."""

from __future__ import annotations

import pytest

from netd.errors import Denied
from netd.hub.config import Namespace, Token
from netd.hub.outbox import OutboxRules
from netd.hub.permissions import Refusal
from netd.wire.messages import Error, Message, Subscribe
from tests.hub.room import Position, Room, config, public

SECRET = "a secret of enough characters"


def said(room: Room, *data: object, channel: bytes = b"public:a") -> None:
    for each in data:
        room.hub.publish(channel, each)


@pytest.fixture
def room() -> Room:
    return Room(config(public(history_size=5), public("forgetful")))


def test_a_subscription_begins_at_the_position_it_is_told(room: Room):
    said(room, 1, 2)
    person = room.person()
    ok = person.hear("public:a")
    assert (ok.offset, ok.recovered, len(ok.epoch)) == (2, None, 11)
    said(room, 3)
    (message,) = person.heard()
    assert (message.data, message.offset, message.epoch) == (3, 3, ok.epoch)
    assert (person.hear("forgetful:a").epoch, person.hear("forgetful:b").offset) == (None, None)


def test_what_was_missed_comes_first_in_order_and_once(room: Room):
    person = room.person()
    epoch = person.hear("public:a").epoch
    said(room, 1, 2)
    person.heard()
    room.hub.unsubscribe(person.session, b"public:a")
    said(room, 3, 4)
    ok = person.hear("public:a", Position(epoch, 2))
    assert (ok.epoch, ok.offset, ok.recovered) == (epoch, 2, True)
    assert [(each.data, each.offset) for each in person.missed] == [(3, 3), (4, 4)]
    said(room, 5)
    assert person.said() == [5]


def test_nothing_missed_is_recovered_too(room: Room):
    person = room.person()
    epoch = person.hear("public:a").epoch
    person.leave()
    again = room.person()
    ok = again.hear("public:a", Position(epoch, 0))
    assert (ok.recovered, ok.offset, ok.epoch, again.missed) == (True, 0, epoch, [])


@pytest.mark.parametrize(("epoch", "offset"), [("other", 9), ("", 9), (None, 3), (None, 11)])
def test_a_gap_is_told_and_nothing_old_is_sent(room: Room, epoch: str | None, offset: int):
    said(room, *range(10))
    now = room.hub.channel(b"public:a").epoch
    person = room.person()
    ok = person.hear("public:a", Position(now if epoch is None else epoch, offset))
    assert (ok.recovered, ok.offset, ok.epoch, person.missed) == (False, 10, now, [])
    said(room, "live")
    assert person.said() == ["live"]


def test_a_channel_without_history_recovers_nothing(room: Room):
    person = room.person()
    ok = person.hear("forgetful:a", Position("e", 1))
    assert (ok.recovered, ok.epoch, ok.offset) == (False, None, None)


def test_a_quiet_channel_is_gone_on_from_for_a_while(room: Room):
    first = room.person()
    epoch = first.hear("public:a").epoch
    first.leave()
    room.now += 59
    room.hub.sweep()
    assert room.person().hear("public:a", Position(epoch, 0)).recovered
    for session in list(room.hub.sessions.values()):
        room.hub.close(session)
    room.now += 60
    room.hub.sweep()
    assert room.hub.channels() == []
    assert room.person().hear("public:a", Position(epoch, 0)).recovered is False


def test_hearing_a_channel_twice_changes_nothing_and_sends_nothing_again(room: Room):
    person = room.person(b"public:a")
    epoch = room.hub.channel(b"public:a").epoch
    said(room, 1, 2)
    person.heard()
    ok = person.hear("public:a", Position(epoch, 0))
    assert (ok.offset, ok.recovered, person.missed) == (2, False, [])
    assert person.hear("public:a").recovered is None
    said(room, 3)
    assert person.said() == [3]
    assert room.hub.info().subscriptions == 1


def test_recovering_never_overflows_the_outbox(room: Room):
    """Or a client whose gap is large would be cut off each time it comes back."""
    epoch = room.person().hear("public:a").epoch
    said(room, *["x" * 1000] * 5)
    person = room.person(rules=OutboxRules(4000))
    ok = person.hear("public:a", Position(epoch, 0))
    assert (ok.recovered, ok.offset, person.missed, person.closed) == (False, 5, [], [])
    assert person.hear("forgetful:a") is not None
    room.hub.unsubscribe(person.session, b"public:a")
    assert person.hear("public:a", Position(epoch, 3)).recovered
    assert len(person.missed) == 2


def test_recovering_is_bounded_by_max_listed():
    room = Room(config(public(history_size=100), max_listed=10))
    epoch = room.person().hear("public:a").epoch
    said(room, *range(11))
    assert room.person().hear("public:a", Position(epoch, 0)).recovered is False
    assert room.person().hear("public:a", Position(epoch, 1)).recovered


def test_who_may_recover_is_a_permission():
    token = Token(name="t", secret=SECRET, history=["own:*", "token:*"])
    room = Room(
        config(
            public("shut", history_size=5, history="nobody"),
            public("own", history_size=5, history="nobody", recover="token"),
            public("lent", history_size=5, history="nobody", recover="anyone"),
            public("kept", history_size=5, history="anyone", recover="nobody"),
            public("token", history_size=5, history="token"),
            tokens=[token],
        )
    )
    anyone, holder = room.person(), room.person()
    holder.hello(token=SECRET)
    for name, who in {"shut": "", "own": "holder", "lent": "all", "kept": "", "token": "holder"}.items():
        channel = f"{name}:a"
        said(room, 1, 2, channel=channel.encode())
        epoch = room.hub.channel(channel.encode()).epoch
        for person in (anyone, holder):
            may = who == "all" or (who == "holder" and person is holder)
            ok = person.hear(channel, Position(epoch, 0))
            assert (ok.recovered, ok.offset) == ((True, 0) if may else (False, 2))
            assert [each.data for each in person.missed] == ([1, 2] if may else [])
            room.hub.unsubscribe(person.session, channel.encode())
            # one who missed nothing is told so
            assert person.hear(channel, Position(epoch, 2)).recovered
            room.hub.unsubscribe(person.session, channel.encode())
    assert anyone.session.refused == 0
    # the server side is free
    room.hub.subscribe(
        anyone.session,
        b"shut:a",
        recover=Position(room.hub.channel(b"shut:a").epoch, 0),
        checked=False,
    )
    assert anyone.said() == [1, 2]


def test_what_has_an_offset_comes_in_order_whatever_its_priority(room: Room):
    person = room.person(b"public:a", b"forgetful:a")
    for priority in (128, 0, 255, 7):
        room.hub.publish(b"public:a", priority, priority=priority)
        room.hub.publish(b"forgetful:a", priority, priority=priority)
    messages = person.heard()
    assert [each.offset for each in messages if each.offset] == [1, 2, 3, 4]
    assert [each.data for each in messages if not each.offset] == [0, 7, 128, 255]
    epoch = messages[2].epoch
    room.hub.unsubscribe(person.session, b"public:a")
    assert person.hear("public:a", Position(epoch, 0)).recovered  # the first of all is the Ok
    assert [each.offset for each in person.missed] == [1, 2, 3, 4]


def test_a_subscription_without_ref_still_brings_what_was_missed(room: Room):
    epoch = room.person().hear("public:a").epoch
    said(room, 1)
    person = room.person()
    assert person.ask(Subscribe(channel="public:a", recover=Position(epoch, 0))) == [
        Message(channel="public:a", data=1, offset=1, epoch=epoch)
    ]


def test_the_server_side_needs_no_permission_but_a_client_does():
    room = Room(config(Namespace(name="team")))
    person = room.person()
    with pytest.raises(Denied):
        room.hub.subscribe(person.session, b"team:a")
    room.hub.subscribe(person.session, b"team:a", checked=False)
    room.hub.subscribe(person.session, b"elsewhere:a", checked=False)
    said(room, "x", channel=b"team:a")
    said(room, "y", channel=b"elsewhere:a")
    assert person.said() == ["x", "y"]


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ({"max_subscriptions": 2}, "a session has at most 2 subscriptions (hub.max_subscriptions)"),
        ({"max_channels": 2}, "there are 2 channels already (hub.max_channels)"),
    ],
)
def test_bounds_on_channels(bounds: dict, why: str):
    room = Room(config(public(), **bounds))
    person = room.person(b"public:a", b"public:b")
    (error,) = person.ask(Subscribe(channel="public:c", ref=1))
    assert error == Error(code="too-many", message=f"cannot subscribe to 'public:c': {why}", ref=1)
    room.hub.unsubscribe(person.session, b"public:a")
    person.hear("public:c")
    assert room.hub.info().subscriptions == 2


def test_max_subscribers_of_a_namespace():
    room = Room(config(public(max_subscribers=1)))
    first, second = room.person(b"public:a"), room.person()
    with pytest.raises(Refusal, match=r"has 1 subscribers already \(hub.namespace.0.max_subscribers\)"):
        room.hub.subscribe(second.session, b"public:a")
    first.leave()
    second.hear("public:a")


def test_copying_subscriptions_is_a_union(room: Room):
    source, target = room.person(b"public:a", b"public:b"), room.person(b"public:b", b"public:c")
    assert room.hub.copy_subscriptions(source.session.id, target.session.id) == 1
    assert target.session.channels == {b"public:a", b"public:b", b"public:c"}
    assert source.session.channels == {b"public:a", b"public:b"}
    assert room.hub.copy_subscriptions(source.session.id, target.session.id) == 0
    assert room.hub.copy_subscriptions("nobody", target.session.id) == 0
    assert room.hub.copy_subscriptions(source.session.id, "nobody") == 0
    said(room, "x")
    assert target.said() == ["x"]


def test_copying_subscriptions_keeps_to_the_bounds_as_a_whole():
    room = Room(config(public(max_subscribers=2), max_subscriptions=3))
    source, target = room.person(b"public:a", b"public:b"), room.person(b"public:c", b"public:d")
    with pytest.raises(Refusal, match="at most 3"):
        room.hub.copy_subscriptions(source.session.id, target.session.id)
    assert target.session.channels == {b"public:c", b"public:d"}
    room.hub.unsubscribe(target.session, b"public:c")
    room.person(b"public:b")
    with pytest.raises(Refusal, match="2 subscribers already"):
        room.hub.copy_subscriptions(source.session.id, target.session.id)
    assert target.session.channels == {b"public:d"}
    assert room.hub.info().subscriptions == 4
