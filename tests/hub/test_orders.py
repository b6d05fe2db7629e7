"""What an application of another machine wants done to sessions here."""

from __future__ import annotations

import pytest

from netd.hub.config import HubConfig, Key, Namespace, Token
from netd.hub.orders import carry_out
from netd.hub.seams import MemoryBackplane, Order
from netd.wire.messages import MAX_CHANNEL, Error, Hello
from tests.hub.room import Room
from tests.support.signed import ED, issue, public

STATIC = "a static token's secret"


@pytest.fixture
def room():
    return Room()


def test_it_is_done_to_the_session_that_is_here(room):
    alice = room.person()
    id = alice.session.id
    assert carry_out(room.hub, Order("subscribe", id, b"secret:room")) == 1  # which no permission is asked for
    assert carry_out(room.hub, Order("subscribe", id, b"secret:room")) == 0
    assert carry_out(room.hub, Order("copy", None, b"secret:room", b"public:room")) == 1
    assert alice.session.channels == {b"secret:room", b"public:room"}
    assert carry_out(room.hub, Order("unsubscribe", id, b"secret:room")) == 1
    assert carry_out(room.hub, Order("unsubscribe", id, b"secret:room")) == 0
    assert carry_out(room.hub, Order("token", id, b"of the application")) == 1
    assert alice.session.application_token == b"of the application"
    assert carry_out(room.hub, Order("token", id, b"")) == 1
    assert alice.session.application_token is None


@pytest.mark.parametrize(
    "order",
    [
        Order("subscribe", "nobody", b"public:room"),
        Order("subscribe", None, b"public:room"),
        Order("subscribe", "name:alice", b"public:room"),
        Order("token", "name:alice", b"t"),
        Order("copy", None, b"", b"public:room"),
        Order("copy", None, b"public:room", b"x" * (MAX_CHANNEL + 1)),
        Order("copy", None, b"nobody:hears", b"public:room"),
    ],
)
def test_what_cannot_be_done_changes_nothing(room, order):
    alice = room.person(name="alice")
    assert carry_out(room.hub, order) == 0
    assert not alice.session.channels
    assert alice.session.application_token is None


@pytest.mark.parametrize("what", ["subscribe", "unsubscribe", "token"])
@pytest.mark.parametrize("value", [b"", b"x" * (MAX_CHANNEL + 1), b"\xff"])
def test_odd_values_are_refused_without_a_word(room, what, value):
    alice = room.person()
    assert carry_out(room.hub, Order(what, alice.session.id, value)) in (0, 1)
    assert all(0 < len(channel) <= MAX_CHANNEL for channel in alice.session.channels or ())


def test_the_daemons_own_sessions_are_nobodys_to_change(room):
    own = room.person(internal=True)
    assert carry_out(room.hub, Order("subscribe", own.session.id, b"public:room")) == 0
    assert carry_out(room.hub, Order("token", own.session.id, b"t")) == 0


def test_one_machine_has_nobody_to_carry_it_to():
    found = []
    MemoryBackplane().carry(Order("subscribe", "far", b"public:room"), found.append)
    assert found == [0]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded():
    permits = {"subscribe": ["chat:*"], "tags": {"team": "a"}}
    return Room(
        HubConfig(
            namespace=[Namespace(name="chat")],
            token=[Token(name="static", secret=STATIC, **permits)],
            key=[Key(name="ed", algorithm="EdDSA", secret=public(ED), **permits)],
        )
    )


def set_token(room, person, token):
    assert carry_out(room.hub, Order("token", person.session.id, token)) == 1
    return [event.message for event in person.heard() if isinstance(event, Error)]


@pytest.mark.parametrize(("token", "name"), [(STATIC, "static"), (issue(), "ed:alice")])
def test_what_a_token_permits_ends_when_the_application_takes_it_away(guarded, token, name):
    alice = guarded.person()
    assert not set_token(guarded, alice, token.encode())
    assert (alice.session.token, dict(alice.session.tags)) == (name, {"team": "a"})
    alice.hear("chat:a")
    guarded.hub.reconfigure(guarded.hub.config)  # which makes the grant anew
    assert not set_token(guarded, alice, b"of the application")
    (told,) = set_token(guarded, alice, b"")
    assert "hub.namespace.0.subscribe" in told
    assert (alice.session.token, dict(alice.session.tags), alice.session.channels) == (None, {}, None)
    assert guarded.hub.find("tag:team=a") == []


def test_what_it_did_not_give_it_does_not_take(guarded):
    alice = guarded.person()
    alice.ask(Hello(version=1, token=STATIC))
    for token in (b"of the application", b"\xff", issue(exp=1.0).encode(), b""):
        assert not set_token(guarded, alice, token)
        assert alice.session.token == "static"
    set_token(guarded, alice, issue().encode())
    alice.ask(Hello(version=1, token=STATIC))  # the client has shown another since
    set_token(guarded, alice, b"")
    assert alice.session.token == "static"
