"""Ended sessions that may be resumed: their number and time are bounded."""

from __future__ import annotations

from netd.hub.stays import Stays, new_secret, opens
from tests.hub.room import Room


def test_the_oldest_is_forgotten_first():
    room = Room()
    stays = Stays(2)
    people = [room.person() for _ in range(3)]
    secrets = [new_secret(person.session) for person in people]
    for person in people:
        stays.keep(person.session, 0.0, 60.0)
    assert len(stays) == 2
    assert stays.claim(secrets[0], 1.0) is None
    assert stays.claim(secrets[1], 1.0).id == people[1].session.id
    assert stays.claim(secrets[1], 1.0) is None


def test_time_is_up():
    room = Room()
    stays = Stays(9)
    early, late = room.person().session, room.person().session
    secret = new_secret(early), new_secret(late)
    stays.keep(early, 0.0, 60.0)
    stays.keep(late, 30.0, 60.0)
    stays.sweep(60.0)
    assert len(stays) == 1
    assert stays.claim(secret[1], 89.0) is not None
    stays.keep(late, 30.0, 60.0)
    assert stays.claim(secret[1], 90.0) is None


def test_a_session_that_was_never_welcomed_is_not_kept():
    stays = Stays(9)
    stays.keep(Room().person().session, 0.0, 60.0)
    assert len(stays) == 0
    assert not opens("anything", None)


def test_secrets_are_never_stored():
    session = Room().person().session
    secret = new_secret(session)
    assert secret.encode() not in session.resume
    assert opens(secret, session.resume)
    assert not opens(secret + "x", session.resume)
    assert len(secret) <= 128
