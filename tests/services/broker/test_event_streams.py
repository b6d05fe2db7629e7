"""Event streams of several channels: where each of them stands, and how they go on from there."""

from __future__ import annotations

import json

import pytest

from netd.errors import ControlError
from netd.services.broker.encoders import Several
from netd.services.broker.protocol import positions_of
from netd.wire.messages import Message, Ok, Position
from tests.services.broker.lab import OPEN, PUBLIC, House, Stream, serving

KEPT = PUBLIC.model_copy(update={"name": "kept", "history_size": 10})
MANY = OPEN.model_copy(update={"namespace": [PUBLIC, KEPT]})
PATH = "/channels/kept:a/events?channel=public:b&channel=kept:c"


async def said(stream: Stream, count: int) -> list[tuple[str, int]]:
    """What so many messages say, and where."""
    found = []
    while len(found) < count:
        event = await stream.event()
        if event["event"] == "message":
            data = json.loads(event["data"])
            found.append((data["channel"], data["data"]))
    return found


async def position(house: House, name: bytes) -> str:
    about = house.hub.channel(name)
    return f"{about.epoch}:{about.offset}"


async def test_a_stream_of_several_channels_goes_on_in_all_of_them() -> None:
    async with serving(hub=MANY) as house:
        stream = await house.events(PATH)
        first = [await stream.event() for _ in range(3)]
        assert [json.loads(event["data"])["channel"] for event in first] == ["kept:a", "public:b", "kept:c"]
        house.hub.publish(b"kept:a", 1)
        house.hub.publish(b"kept:c", 2)
        house.hub.publish(b"public:b", 3)
        house.hub.publish(b"kept:a", 4)
        last = [await stream.event() for _ in range(4)]
        a, c = await position(house, b"kept:a"), await position(house, b"kept:c")
        assert last[3]["id"] == f"{a},-,{c}"
        assert "id" not in last[2]  # no history, no position
        for number in range(3):
            house.hub.publish(b"kept:c", 10 + number)
            house.hub.publish(b"kept:a", 20 + number)
        again = await house.events(PATH, [f"Last-Event-ID: {last[1]['id']}"])
        expected = [("kept:a", 4), ("kept:a", 20), ("kept:a", 21), ("kept:a", 22)]
        expected += [("kept:c", 10), ("kept:c", 11), ("kept:c", 12)]
        assert await said(again, 7) == expected
        house.hub.publish(b"kept:c", 30)
        event = await again.event()
        assert event["id"] == f"{await position(house, b'kept:a')},-,{await position(house, b'kept:c')}"


async def test_wherever_a_stream_breaks_off_it_goes_on_without_a_gap_or_a_repetition() -> None:
    async with serving(hub=MANY) as house:
        stream = await house.events(PATH)
        start = [await stream.event() for _ in range(3)][-1]["id"]
        for number in range(5):
            house.hub.publish(b"kept:a", number)
            house.hub.publish(b"kept:c", 10 + number)
        whole = await house.events(PATH, [f"Last-Event-ID: {start}"])
        events = [await whole.event() for _ in range(13)]
        for cut, event in enumerate(events):
            if "id" not in event:
                continue
            heard = sorted(json.loads(each["data"])["data"] for each in events[: cut + 1] if each["event"] == "message")
            rest = await house.events(PATH, [f"Last-Event-ID: {event['id']}"])
            missing = await said(rest, 10 - len(heard))
            assert sorted([*heard, *(number for _, number in missing)]) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_an_answer_that_nothing_was_recovered_puts_a_stream_back() -> None:
    several = Several([b"a", b"b"])
    assert several.encode(Message(channel="a", data=1, epoch="e", offset=7)).startswith(b"id: e:7,-\n")  # type: ignore[union-attr]
    assert several.encode(Ok(channel="a", epoch="e", offset=3, recovered=False)).startswith(b"id: e:3,-\n")  # type: ignore[union-attr]
    assert several.encode(Ok(channel="b", epoch="f", offset=1, recovered=True)).startswith(b"id: e:3,f:1\n")  # type: ignore[union-attr]
    # what comes by a pattern has no place of its own
    assert several.encode(Message(channel="c", data=1, epoch="g", offset=9)).startswith(b"id: e:3,f:1\n")  # type: ignore[union-attr]


def test_an_id_of_several_channels_is_of_as_many() -> None:
    assert positions_of("e:1,-,f:2", 3) == (Position("e", 1), None, Position("f", 2))
    assert positions_of("e:1", 3) == Position("e", 1)
    assert positions_of("e,1:1", 1) == Position("e,1", 1)
    for text in ("e:1,f:2", "e:1,f:2,", "e:1,f:2,g", "e:1,f:2,-,-"):
        with pytest.raises(ControlError):
            positions_of(text, 3)
