"""What workers ask for, over the socket and done to a hub with people in it."""

from __future__ import annotations

import pytest

from netd.hub.config import HubConfig, Namespace, Token
from netd.wire.messages import BinaryEvent, Broadcast, Client, Direct, Position, TextEvent
from netd.wire.messages import Message as Heard
from netd.wire.workers import (
    AskHistory,
    AskInfo,
    AskPresence,
    CloseSession,
    CopySession,
    CopySubscriptions,
    Error,
    Publish,
    Send,
    SendBroadcast,
    SendDirect,
    SessionKnown,
    SessionOpened,
    SetToken,
    Subscribe,
    Unsubscribe,
)
from tests.services.worker.lab import serving

ANYONE = {"subscribe": "anyone", "publish": "anyone", "presence": "anyone", "history": "anyone"}
SECRET = "a secret of thirty-two characters"
HUB = HubConfig(
    namespace=[
        Namespace(name="public", history_size=10, max_message=1024, **ANYONE),
        Namespace(name="closed"),
        Namespace(name="members", subscribe="token", publish="token"),
    ],
    token=[Token(name="member", secret=SECRET, subscribe=["members:*"], publish=["members:*"], tags={"who": "member"})],
    max_subscriptions=3,
)
ROOM = b"public:room"


@pytest.fixture
async def house(tmp_path):
    async with serving(tmp_path, hub=HUB) as house:
        yield house


@pytest.fixture
async def worker(house):
    return await house.worker()


async def test_send_reaches_a_session_as_text_or_bytes(house, worker):
    alice = house.person()
    await worker.next(SessionOpened)
    assert await worker.ask(Send, session=alice.session.id, data="text") is True
    assert await worker.ask(Send, session=alice.session.id, data=b"\xff") is True
    assert alice.heard() == [TextEvent("text"), BinaryEvent(data64=b"\xff")]
    assert await worker.ask(Send, session="nobody", data="x") is False
    assert await worker.ask(Send, session="name:nobody", data="x") is False


async def test_subscriptions_are_added_once_and_taken_away_once(house, worker):
    alice = house.person()
    await worker.next(SessionOpened)
    who = alice.session.id
    assert await worker.ask(Subscribe, session=who, channel=ROOM) is True
    assert await worker.ask(Subscribe, session=who, channel=ROOM) is False
    assert await worker.ask(Publish, channel=ROOM, data={"a": 1}, from_=who) == 1
    [message] = alice.heard()
    assert isinstance(message, Heard)
    assert (message.data, message.from_) == ({"a": 1}, who)
    assert await worker.ask(Unsubscribe, session=who, channel=ROOM) is True
    assert await worker.ask(Unsubscribe, session=who, channel=ROOM) is False
    for verb in (Subscribe, Unsubscribe):
        assert await worker.ask(verb, session="nobody", channel=ROOM) is False


async def test_a_worker_needs_no_permission_and_keeps_to_the_bounds(house, worker):
    alice = house.person()
    await worker.next(SessionOpened)
    for channel in (b"closed:\xff\x00", b"closed:2", b"no-namespace"):
        assert await worker.ask(Subscribe, session=alice.session.id, channel=channel) is True
    full = await worker.ask(Subscribe, session=alice.session.id, channel=b"closed:4")
    assert isinstance(full, Error)
    assert (full.code, "max_subscriptions" in full.message) == ("too-many", True)
    large = await worker.ask(Publish, channel=ROOM, data="x" * 2000)
    assert (large.code, "max_message" in large.message) == ("too-large", True)


async def test_what_is_refused_is_told_without_a_ref_too(house, worker):
    await worker.say(Publish(channel=ROOM, data="x" * 2000))
    error = await worker.next(Error)
    assert (error.ref, error.code) == (None, "too-large")
    await worker.say(Publish(channel=ROOM, data="x"))
    await worker.quiet()


async def test_copying_a_channel_adds_its_hearers_to_another(house, worker):
    alice, bob, carol = (house.person() for _ in range(3))
    alice.hear(ROOM)
    bob.hear(ROOM)
    bob.hear("public:other")
    carol.hear("public:other")
    assert await worker.ask(CopySubscriptions, source=ROOM, target=b"public:other") == 1
    assert await worker.ask(CopySubscriptions, source=ROOM, target=b"public:other") == 0
    assert await worker.ask(CopySubscriptions, source=b"public:nobody", target=b"public:other") == 0
    assert alice.session.channels == bob.session.channels == {ROOM, b"public:other"}
    assert carol.session.channels == {b"public:other"}


async def test_one_who_may_hear_no_more_keeps_nobody_else_from_a_copy(house, worker):
    full, free = house.person(), house.person()
    for person in (full, free):
        person.hear(ROOM)
    for number in range(house.hub.config.max_subscriptions - 1):
        full.hear(b"%s:%d" % (ROOM, number))
    refused = await worker.ask(CopySubscriptions, source=ROOM, target=b"public:other")
    assert (refused.code, "max_subscriptions" in refused.message) == ("too-many", True)
    assert b"public:other" in free.session.channels
    assert b"public:other" not in full.session.channels
    assert await worker.ask(Unsubscribe, session=full.session.id, channel=ROOM) is True
    assert await worker.ask(CopySubscriptions, source=b"public:other", target=ROOM) == 0


async def test_copying_a_session_is_a_union(house, worker):
    alice, bob = house.person(), house.person()
    alice.hear(ROOM)
    bob.hear("public:other")
    assert await worker.ask(CopySession, source=alice.session.id, target=bob.session.id) == 1
    assert bob.session.channels == {ROOM, b"public:other"}
    assert await worker.ask(CopySession, source=alice.session.id, target="nobody") == 0


async def test_a_token_is_kept_and_told_before_the_answer(house, worker):
    alice = house.person()
    await worker.next(SessionOpened)
    await worker.say(SetToken(session=alice.session.id, token=b"\xffmine", ref=100))
    assert (await worker.next(SessionKnown)).session.token == b"\xffmine"
    assert (await worker.next()).value is True
    assert alice.session.application_token == b"\xffmine"
    assert (await worker.ask(AskInfo, session=alice.session.id))["token"] == b"\xffmine"
    assert await worker.ask(SetToken, session=alice.session.id, token=b"") is True
    assert alice.session.application_token is None
    assert await worker.ask(SetToken, session="nobody", token=b"x") is False


async def test_a_token_of_the_hub_gives_what_it_permits(house, worker):
    alice = house.person()
    await worker.next(SessionOpened)
    await worker.say(SetToken(session=alice.session.id, token=SECRET.encode(), ref=100))
    state = (await worker.next(SessionKnown)).session
    assert (state.grant, state.tags) == ("member", {"who": "member"})
    assert alice.hear("members:1")
    # what the hub does not know leaves it as it is
    assert await worker.ask(SetToken, session=alice.session.id, token=b"other") is True
    assert alice.session.token == "member"


async def test_closing_a_session_ends_it_and_its_subscriptions(house, worker):
    alice = house.person()
    alice.hear(ROOM)
    assert await worker.ask(CloseSession, session=alice.session.id, code=4000, reason="enough") is True
    assert alice.closed == [(4000, "enough")]
    assert house.hub.channel(ROOM).subscribers == 0
    assert await worker.ask(CloseSession, session=alice.session.id) is False


async def test_presence_and_history(house, worker):
    alice = house.person(name="alice", tags={"k": "v"})
    alice.hear(ROOM)
    [seen] = await worker.ask(AskPresence, channel=ROOM)
    assert seen == {"session": alice.session.id, "name": "alice", "transport": "test", "tags": {"k": "v"}}
    for data in ("text", b"\x00", {"n": [1]}):
        await worker.ask(Publish, channel=ROOM, data=data, from_=alice.session.id)
    page = await worker.ask(AskHistory, channel=ROOM)
    assert [each["data"] for each in page["messages"]] == ["text", b"\x00", {"n": [1]}]
    assert page["messages"][0]["from"] == alice.session.id
    assert page["offset"] == 3
    since = {"epoch": page["epoch"], "offset": 2}
    later = await worker.ask(AskHistory, channel=ROOM, since=Position(**since), limit=10)
    assert [each["offset"] for each in later["messages"]] == [3]
    assert await worker.ask(AskHistory, channel=b"closed:1") is None
    assert await worker.ask(AskPresence, channel=b"closed:1") == []


async def test_direct_and_broadcast(house, worker):
    alice, bob = house.person(name="alice", tags={"device": "a"}), house.person()
    assert await worker.ask(SendDirect, to="name:alice", data={"x": 1}) == 1
    assert await worker.ask(SendDirect, to="tag:device=a", data="hi") == 1
    assert await worker.ask(SendDirect, to="nobody", data="hi") == 0
    assert await worker.ask(SendBroadcast, data=[1]) == 2
    assert alice.heard() == [Direct(data={"x": 1}), Direct(data="hi"), Broadcast(data=[1])]
    assert bob.heard() == [Broadcast(data=[1])]


async def test_info_of_a_session(house, worker):
    alice = house.person(name="alice", address="192.0.2.7:1")
    found = await worker.ask(AskInfo, session=alice.session.id)
    assert (found["id"], found["name"], found["address"]) == (alice.session.id, "alice", "192.0.2.7:1")
    assert await worker.ask(AskInfo, session="nobody") is None


async def test_a_session_that_another_machine_may_have_is_the_backplanes(house, worker, monkeypatch):
    alice = house.person()
    await worker.next(SessionOpened)
    letters = []

    def send(letter, answer):
        letters.append(letter)
        answer(house.hub.deliver_letter(letter))
        return 0

    plane = house.hub.backplane
    monkeypatch.setattr(plane, "others", True, raising=False)
    monkeypatch.setattr(plane, "send", send)
    monkeypatch.setattr(plane, "kick", lambda target, code, reason, answer: answer(1))
    assert await worker.ask(Send, session="elsewhere", data="x", priority=3) is False
    [letter] = letters
    assert (letter.to, letter.data, letter.priority, letter.application) == ("elsewhere", "x", 3, True)
    assert await worker.ask(Send, session="name:alice", data="x") is False
    assert len(letters) == 1
    assert await worker.ask(CloseSession, session="elsewhere") is True
    # and what arrives for a session here is what the application would have sent
    letter.to = alice.session.id
    assert house.hub.deliver_letter(letter) == 1
    assert alice.heard() == [TextEvent("x")]


async def test_presence_counts_other_machines(house, worker, monkeypatch):
    there = [Client(session="far", name="bob")]
    monkeypatch.setattr(house.hub.backplane, "elsewhere", lambda channel, limit, answer: answer(1, there))
    alice = house.person()
    alice.hear(ROOM)
    assert [each["session"] for each in await worker.ask(AskPresence, channel=ROOM)] == [alice.session.id, "far"]
    monkeypatch.setattr(house.hub.backplane, "elsewhere", lambda channel, limit, answer: answer(10_000, []))
    refused = await worker.ask(AskPresence, channel=ROOM)
    assert (refused.code, "max_listed" in refused.message) == ("too-many", True)
