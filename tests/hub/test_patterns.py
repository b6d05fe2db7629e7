"""Subscriptions with wildcards: whom a message reaches, who may have them, what they are not, and their bounds."""

from __future__ import annotations

import pytest

from netd.errors import Denied
from netd.hub import patterns
from netd.hub.config import Namespace, Token
from netd.hub.outbox import OutboxRules
from netd.hub.permissions import Refusal
from netd.hub.seams import MemoryBackplane
from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Clients,
    Error,
    ListClients,
    Message,
    Ok,
    Position,
    Presence,
    Publish,
    Subscribe,
    Unsubscribe,
)
from tests.hub.room import Room, config, fields, public

SECRET = "a secret of enough characters"


class Late(MemoryBackplane):
    """One that answers questions about positions when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list = []

    def position(self, channel, answer) -> None:
        self.asked.append(lambda: super(Late, self).position(channel, answer))

    def answer(self) -> None:
        while self.asked:
            self.asked.pop(0)()


@pytest.fixture
def room() -> Room:
    return Room(
        config(public(history_size=5, join_leave=True, wildcards=True), public("plain"), public("", wildcards=True))
    )


def said(room: Room, **channels: object) -> None:
    for name, data in channels.items():
        room.hub.publish(b"public:" + name.replace("_", ".").encode(), data)


# --- whom it reaches --------------------------------------------------------------------------------------------------


def test_a_pattern_brings_the_messages_of_all_channels_that_match_now_and_later(room: Room):
    other = room.person("public:a.b")
    person = room.person()
    (ok,) = person.ask(Subscribe(ref=1, channel="public:a.*"))
    assert ok == Ok(ref=1, channel="public:a.*", pattern=True)
    epoch = room.hub.channel(b"public:a.b").epoch
    assert room.hub.publish(b"public:a.b", "old") == 2
    assert room.hub.publish(b"public:a.new", "new") == 1
    assert room.hub.publish(b"public:a", "none") == 0
    assert room.hub.publish(b"public:a.b.c", "none") == 0
    assert room.hub.publish(b"plain:a.b", "none") == 0
    first, second = person.heard()
    assert first == Message(channel="public:a.b", data="old", offset=1, epoch=epoch)
    assert (second.channel, second.data, second.offset) == ("public:a.new", "new", 1)
    assert other.said() == ["old"]
    assert room.hub.info().delivered == 3
    assert person.ask(Unsubscribe(ref=2, channel="public:a.*")) == [Ok(ref=2, channel="public:a.*")]
    assert room.hub.publish(b"public:a.b", "late") == 1
    assert person.heard() == []
    assert room.hub.permissions.realm(b"public:a").patterns is None
    assert room.hub.info().subscriptions == 1


def test_what_several_subscriptions_match_comes_once(room: Room):
    person = room.person("public:a.b", "public:a.*", "public:>", "public:*.b")
    said(room, a_b=1, a_c=2, x_b=3, x=4, x_y_z=5)
    assert person.said() == [1, 2, 3, 4, 5]
    for name in ("public:>", "public:a.b"):  # what is remembered of a channel does not outlive them
        assert room.hub.unsubscribe(person.session, name.encode())
        said(room, a_b=1, x=4)
        assert person.said() == [1]
    person.hear("public:a.b")
    said(room, a_b=1)
    assert person.said() == [1]


def test_names_without_a_namespace_have_patterns_of_their_own(room: Room):
    person = room.person(b">")
    for name in (b"a", b"a.\xff", b":a", b"public:a"):
        room.hub.publish(name, name.hex())
    assert person.said() == [b"a".hex(), b"a.\xff".hex(), b":a".hex()]


def test_one_who_waits_to_enter_a_channel_hears_what_is_held_once():
    late = Late()
    room = Room(config(public(history_size=5, wildcards=True)), backplane=late)
    person, other = room.person(), room.person()
    person.ask(Subscribe(channel="public:>"))
    other.ask(Subscribe(channel="public:>"))
    room.hub.publish(b"public:a", 0)
    person.ask(Subscribe(channel="public:a"))
    room.hub.publish(b"public:a", 1)
    assert (person.said(), other.said()) == ([], [0, 1])
    late.answer()
    room.hub.publish(b"public:a", 2)
    assert (person.said(), other.said()) == ([1, 2], [2])


def test_what_is_remembered_is_bounded(room: Room, monkeypatch):
    monkeypatch.setattr(patterns, "CACHED", 10)
    people = [room.person("public:>", "public:*") for _ in range(3)]
    table = room.hub.permissions.realm(b"public:a").patterns
    assert table is not None
    for round in range(50):
        said(room, **{f"c{round % 7}": round})
        assert 0 < len(table._seen) <= 10
        assert table._weight == sum(1 + len(each or ()) for each in table._seen.values())
    assert [person.said() for person in people] == [list(range(50))] * 3


def test_who_leaves_while_a_message_is_handed_out_disturbs_nobody(room: Room):
    first = room.person("public:a.>", rules=OutboxRules(400))
    second, third = room.person("public:a.>"), room.person("public:a.>")
    first.overflow = lambda: room.hub.close(second.session)  # type: ignore[method-assign]
    for _ in range(9):
        room.hub.publish(b"public:a.b", "x")
    assert third.said() == ["x"] * 9
    assert second.session.id not in room.hub.sessions
    assert [each.session for each in room.hub.presence(b"public:a.>")] == [first.session.id, third.session.id]


# --- who may ----------------------------------------------------------------------------------------------------------


def test_a_token_has_to_permit_everything_that_a_pattern_could_match():
    token = Token(name="t", secret=SECRET, subscribe=["team:a.*", "team:exact.>", "team:"])
    room = Room(config(Namespace(name="team", wildcards=True), tokens=[token]))
    person = room.person()
    person.hello(token=SECRET)
    allowed = ("team:a.>", "team:a.b.*", "team:a.*.c", "team:a.b")
    for name in allowed:
        person.hear(name)
    for name in ("team:>", "team:*.b", "team:*", "team:exact.>", "team:ab.>"):
        (error,) = person.ask(Subscribe(ref=1, channel=name))
        assert error == Error(
            ref=1,
            code="denied",
            message=f"cannot subscribe to {name!r}: "
            "token 't' does not permit all that it could match (hub.token.0.subscribe)",
        )
    # without the token they end
    room.hub.reconfigure(room.hub.config.model_copy(update={"token": []}))
    lost, *ended = person.heard()
    assert lost.refresh
    assert [each.code for each in ended] == ["denied"] * len(allowed)
    assert room.hub.info().subscriptions == room.hub.info().patterns == 0


def test_the_server_side_needs_no_permission(room: Room):
    room = Room(config(Namespace(name="team", wildcards=True)))
    person, other = room.person(), room.person()
    with pytest.raises(Denied, match="allows subscribe to tokens only"):
        room.hub.subscribe(person.session, b"team:>")
    room.hub.subscribe(person.session, b"team:>", checked=False)
    assert room.hub.copy_subscriptions(person.session.id, other.session.id) == 1
    room.hub.reconfigure(room.hub.config.model_copy(update={"max_subscriptions": 5}))
    room.hub.publish(b"team:a", "x")
    assert (person.said(), other.said()) == (["x"], ["x"])
    other.leave()
    room.hub.publish(b"team:a", "y")
    assert person.said() == ["y"]


# --- where there are no wildcards -------------------------------------------------------------------------------------


def test_without_wildcards_such_names_are_ordinary(room: Room):
    person = room.person("plain:a.*", "plain:>")
    assert room.hub.publish(b"plain:a.b", "no") == 0
    assert room.hub.publish(b"plain:a.*", "yes") == 1
    assert person.said() == ["yes"]
    (error,) = person.ask(Subscribe(ref=1, channel="plain:b.*", pattern=True))
    assert error == Error(
        ref=1,
        code="unsupported",
        message="cannot subscribe to 'plain:b.*' as a pattern: "
        "namespace 'plain' allows no wildcards (hub.namespace.1.wildcards)",
    )
    (error,) = person.ask(Subscribe(ref=1, channel="public:a*", pattern=True))
    assert (error.code, "no token" in error.message) == ("invalid", True)
    assert person.ask(Subscribe(ref=1, channel="public:a.*", pattern=True))[0].pattern


def test_a_reload_of_the_rule_ends_subscriptions_whose_meaning_changed(room: Room):
    person, placed = room.person("public:a.*", "public:a.b", "plain:a.*", "plain:a.b"), room.person()
    room.hub.subscribe(placed.session, b"public:>", checked=False)
    room.hub.publish(b"plain:a.*", "x")
    person.heard()
    room.hub.reconfigure(config(public(history_size=5), public("plain", wildcards=True, history_size=5)))
    one, other = person.heard()
    assert one == Error(
        code="denied",
        message="cannot stay subscribed to 'plain:a.*': namespace 'plain' takes names with wildcards for patterns now "
        "(hub.namespace.1.wildcards)",
        channel="plain:a.*",
    )
    assert "'public' allows no wildcards (hub.namespace.0.wildcards)" in other.message
    assert [each.channel for each in placed.heard()] == ["public:>"]
    assert person.session.channels == {b"public:a.b", b"plain:a.b"}
    assert (person.session.patterns, placed.session.patterns, placed.session.channels) == (0, 0, None)
    person.hear("plain:a.*")
    room.hub.reconfigure(config(public("plain", wildcards=True)))  # and of the namespace that is gone
    assert [each.channel for each in person.heard()] == ["public:a.b"]
    room.hub.reconfigure(config(public("other")))
    assert [(each.channel, "no such namespace" in each.message) for each in person.heard()] == [
        ("plain:a.*", True),
        ("plain:a.b", False),
    ]
    assert room.hub.info().subscriptions == 0


# --- what it is not ---------------------------------------------------------------------------------------------------


def test_a_pattern_is_no_channel(room: Room):
    person = room.person("public:a.*")
    for request, code in (
        (Publish(ref=1, channel="public:a.*", data=1), "invalid"),
        (AskHistory(ref=1, channel="public:a.*"), "unsupported"),
    ):
        (error,) = person.ask(request)
        assert (error.code, "it is a pattern and no channel (hub.namespace.0.wildcards)" in error.message) == (
            code,
            True,
        )
    with pytest.raises(Refusal, match="cannot publish to 'public:>'"):
        room.hub.publish(b"public:>", 1)
    with pytest.raises(Refusal, match="cannot read the history"):
        room.hub.history(b"public:>")
    assert len(room.hub.histories) == 0
    # nothing is recovered, and it says so; hearing it already changes nothing
    recover = Position("x", 3)
    assert room.person().hear("public:a.*", recover) == Ok(ref=1, channel="public:a.*", pattern=True, recovered=False)
    assert person.hear("public:a.*") == Ok(ref=1, channel="public:a.*", pattern=True)
    assert room.hub.info().subscriptions == 2


def test_who_hears_through_a_pattern_is_not_in_the_channel(room: Room):
    watcher = room.person("public:>")
    member = room.person("public:a")
    assert watcher.heard() == []  # no joined
    (there,) = member.ask(AskPresence(channel="public:a"))
    assert [each.session for each in there.clients] == [member.session.id]
    assert room.hub.channel(b"public:a").subscribers == 1
    # of the pattern: who subscribed to just that
    (there,) = member.ask(AskPresence(channel="public:>"))
    assert isinstance(there, Presence)
    assert [each.session for each in there.clients] == [watcher.session.id]
    (there,) = member.ask(ListClients(channel="public:>"))
    assert isinstance(there, Clients)
    assert [each.session for each in there.clients] == [watcher.session.id]
    watcher.leave()
    member.leave()
    assert member.heard() == watcher.heard() == []


def test_patterns_among_channels(room: Room):
    room.person("public:a.*", "public:b")
    room.hub.publish(b"public:c", 1)
    found = [(each.name, each.subscribers, each.pattern) for each in room.hub.channels(b"public:")]
    assert found == [(b"public:a.*", 1, True), (b"public:b", 1, False), (b"public:c", 0, False)]
    info = room.hub.info()
    assert (info.channels, info.patterns, info.subscriptions) == (1, 1, 2)


def test_what_was_saved_of_a_channel_is_forgotten_where_its_name_is_a_pattern():
    room = Room(config(public(history_size=5)))
    room.hub.publish(b"public:a.*", 1)
    room.hub.publish(b"public:a", 1)
    other = Room(config(public(history_size=5, wildcards=True)))
    other.hub.load(room.hub.dump())
    assert [each.name for each in other.hub.histories.all()] == [b"public:a"]


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "rules", "why"),
    [
        ({"max_patterns": 2}, {}, "a session has at most 2 patterns (hub.max_patterns)"),
        ({}, {"max_patterns": 2}, "namespace 'public' has 2 patterns already (hub.namespace.0.max_patterns)"),
        ({"max_subscriptions": 2}, {}, "a session has at most 2 subscriptions (hub.max_subscriptions)"),
    ],
)
def test_bounds(bounds: dict, rules: dict, why: str):
    room = Room(config(public(wildcards=True, **rules), **bounds))
    person = room.person("public:a.*", "public:b.*")
    (error,) = person.ask(Subscribe(ref=1, channel="public:c.*"))
    assert error == Error(ref=1, code="too-many", message=f"cannot subscribe to 'public:c.*': {why}")
    assert room.hub.permissions.realm(b"public:a").patterns.get(b"public:c.*") is None
    room.hub.unsubscribe(person.session, b"public:a.*")
    person.hear("public:c.*")


def test_bounds_of_one_pattern():
    room = Room(config(public(wildcards=True, max_subscribers=1), max_channels=1))
    first, second = room.person("public:a", "public:a.*", "public:b.*"), room.person()
    with pytest.raises(Refusal, match=r"has 1 subscribers already \(hub.namespace.0.max_subscribers\)"):
        room.hub.subscribe(second.session, b"public:a.*")
    with pytest.raises(Refusal, match="at most 16 tokens"):
        room.hub.subscribe(second.session, b"public:" + b"*." * 16)
    room.hub.subscribe(second.session, b"public:" + b"*." * 15)
    assert first.session.patterns == 2


def test_copying_keeps_to_the_bound_on_patterns():
    room = Room(config(public(wildcards=True), max_patterns=2))
    source, target = room.person("public:a.*", "public:b.*"), room.person("public:c.*")
    with pytest.raises(Refusal, match="at most 2 patterns"):
        room.hub.copy_subscriptions(source.session.id, target.session.id)
    assert target.session.channels == {b"public:c.*"}
    assert fields(b"public:c.*") == {"channel": "public:c.*"}
