"""What outlives a clean stop, and what is made of bytes that no stop wrote."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import NetdError
from tests.hub.room import Position, Room, config, public

KEEPS = config(public(history_size=5), public("short", history_size=5, history_seconds=10))


def full() -> Room:
    room = Room(KEEPS)
    for number in range(7):
        room.hub.publish(b"public:a", {"n": number})
        room.hub.publish(b"short:a", b"\xff%d" % number)
        room.now += 1
    room.hub.publish(b"public:\xff", "text")
    return room


def restarted(data: bytes, later: float = 0.0, configuration=KEEPS, now: float = 1_000_007.0) -> Room:
    room = Room(configuration)
    room.now = now + later
    room.hub.load(data)
    return room


def test_a_client_recovers_across_a_restart():
    room = full()
    epoch = room.hub.channel(b"public:a").epoch
    again = restarted(room.hub.dump())
    assert again.hub.channels() == room.hub.channels()
    assert again.hub.info().history_bytes == room.hub.info().history_bytes
    person = again.person()
    ok = person.hear("public:a", Position(epoch, 5))
    assert ok.recovered
    assert [(each.data, each.offset) for each in person.missed] == [({"n": 5}, 6), ({"n": 6}, 7)]
    again.hub.publish(b"public:a", "next")
    assert [(each.data, each.offset, each.epoch) for each in person.heard()] == [("next", 8, epoch)]
    assert again.hub.history(b"short:a").messages == room.hub.history(b"short:a").messages
    assert again.hub.history(b"public:\xff").messages == room.hub.history(b"public:\xff").messages


def test_a_crash_makes_another_epoch():
    epoch = full().hub.channel(b"public:a").epoch
    person = Room(KEEPS).person()
    ok = person.hear("public:a", Position(epoch, 5))
    assert (ok.recovered, ok.offset) == (False, 0)
    assert ok.epoch != epoch


def test_ages_count_while_the_daemon_is_stopped():
    room = restarted(full().hub.dump(), later=6.0)
    assert [each.offset for each in room.hub.history(b"short:a").messages] == [5, 6, 7]
    room = restarted(full().hub.dump(), later=1000.0)
    assert room.hub.history(b"short:a").messages == []
    assert len(room.hub.history(b"public:a").messages) == 5


def test_a_clock_that_was_set_back_keeps_nothing_for_ever():
    room = restarted(full().hub.dump(), later=-900_000.0)
    assert len(room.hub.history(b"short:a").messages) == 5
    room.now += 10
    assert room.hub.history(b"short:a").messages == []


def test_todays_limits_hold():
    data = full().hub.dump()
    room = restarted(data, configuration=config(public(history_size=2)))
    assert [each.offset for each in room.hub.history(b"public:a").messages] == [6, 7]
    assert [info.name for info in room.hub.channels()] == [b"public:a", b"public:\xff"]
    room = restarted(data, configuration=config(public(history_size=5), history_bytes=700))
    assert room.hub.info().history_bytes <= 700
    room = restarted(data, configuration=config(public(history_size=5), max_channels=1))
    assert len(room.hub.channels()) == 1


def test_a_position_outlives_messages_that_have_no_room():
    room = full()
    position = room.hub.history(b"public:a")
    again = restarted(room.hub.dump(), configuration=config(public(history_size=5), history_bytes=0))
    assert again.person().hear("public:a", Position(position.epoch, 7)).recovered
    assert not again.person().hear("public:a", Position(position.epoch, 6)).recovered


def encoded(**change) -> bytes:
    message = [1.0, "sender", "data"]
    saved = {"netd-hub": 1, "saved": 1.0, "channels": [[b"public:a", "epoch", 4, [message]]]}
    return msgspec.msgpack.encode(saved | change)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"{}",
        b"\x80",
        msgspec.msgpack.encode([1]),
        encoded()[:-1],
        encoded() + b"\x00",
        encoded(**{"netd-hub": 2}),
        encoded(extra=1),
        encoded(channels=None),
        encoded(channels=[[b"", "epoch", 4, []]]),
        encoded(channels=[[b"x" * 256, "epoch", 4, []]]),
        encoded(channels=[["text", "epoch", 4, []]]),
        encoded(channels=[[b"a", "", 4, []]]),
        encoded(channels=[[b"a", "e" * 65, 4, []]]),
        encoded(channels=[[b"a", "e", -1, []]]),
        encoded(channels=[[b"a", "e", 2**60, []]]),
        encoded(channels=[[b"a", "e", 1.5, []]]),
        encoded(channels=[[b"a", "e", 0, [[1.0, None, "x"]]]]),
        encoded(channels=[[b"a", "e", 1, [[float("nan"), None, "x"]]]]),
        encoded(channels=[[b"a", "e", 1, [[float("inf"), None, "x"]]]]),
        encoded(channels=[[b"a", "e", 1, [[1.0, 7, "x"]]]]),
        encoded(channels=[[b"a", "e", 1, [[1.0, None]]]]),
        encoded(channels=[[b"a", "e", 1, [[1.0, None, "x", 1]]]]),
        encoded(channels=[[b"a", "e", 1, [[1.0, None, msgspec.msgpack.Ext(5, b"x")]]]]),
        encoded(channels=[[b"a", "e", 1, []], [b"a", "e", 1, []]]),
        encoded(channels=[[b"a", "e", 1, [[1.0, None, "x"]]]]).replace(b"\xa1x", b"\x91" * 10_000 + b"\x90"),
    ],
)
def test_bytes_that_no_stop_wrote_change_nothing(data: bytes):
    room = full()
    before = room.hub.channels(), room.hub.info(), room.hub.dump()
    with pytest.raises(NetdError, match="cannot read the saved state of the hub"):
        room.hub.load(data)
    assert (room.hub.channels(), room.hub.info(), room.hub.dump()) == before


def test_the_format_is_as_it_is_written_down():
    room = Room(KEEPS)
    room.hub.load(encoded())
    (message,) = room.hub.history(b"public:a").messages
    assert (message.data, message.sender, message.offset, message.epoch, message.time) == (
        "data",
        "sender",
        4,
        "epoch",
        1.0,
    )


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_raise_nothing_else(noise: bytes, place: int, byte: int):
    room = full()
    good = bytearray(room.hub.dump())
    good[place % len(good)] = byte
    for data in (noise, bytes(good), bytes(good[:place])):
        again = Room(KEEPS)
        try:
            again.hub.load(data)
        except NetdError:
            assert again.hub.channels() == []
        else:
            again.hub.sweep()
            again.hub.load(again.hub.dump())
            for info in again.hub.channels():
                again.hub.history(info.name)
