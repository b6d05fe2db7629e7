"""What an application of another machine wants done to sessions here."""

from __future__ import annotations

import pytest

from netd.hub.orders import carry_out
from netd.hub.seams import MemoryBackplane, Order
from netd.wire.messages import MAX_CHANNEL
from tests.hub.room import Room


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
