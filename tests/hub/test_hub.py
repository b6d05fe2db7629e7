"""The hub's verbs for transports, the control API and the daemon.

Over 600 lines, and one file all the same: it goes through hub.py, one verb after the other.
"""

from __future__ import annotations

import pytest

from netd.errors import ConfigError, ProtocolError, TooBusy
from netd.hub.config import Namespace, Token
from netd.hub.history import Publication
from netd.hub.outbox import OutboxRules
from netd.hub.permissions import Permissions, Refusal
from netd.hub.seams import MemoryBackplane
from netd.hub.tokens import Tokens
from netd.wire.messages import (
    Broadcast,
    Close,
    CloseCode,
    Direct,
    Error,
    Hello,
    Joined,
    Left,
    Message,
    Ok,
    Publish,
    SendDirect,
    Subscribe,
    Text,
    Unsubscribe,
)
from tests.hub.room import JSON, Position, Room, Speaks, config, public

SECRET = "a secret of enough characters"


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_reaches_every_subscriber_encoded_once_for_each_encoder():
    room = Room()
    json, packed = Speaks("json"), Speaks("messagepack")
    people = [room.person(b"public:a", encoder=encoder) for encoder in (json, packed, json, json, packed)]
    other = room.person(b"public:b")
    json.encoded = packed.encoded = 0
    assert room.hub.publish(b"public:a", "hello") == 5
    assert (json.encoded, packed.encoded) == (1, 1)
    chunks = [person.outbox.chunks[0] for person in people]
    assert chunks[0] is chunks[2] is chunks[3]
    assert chunks[1] is chunks[4]
    for person in people:
        (message,) = person.heard()
        assert message == Message(channel="public:a", data="hello")
    assert other.heard() == []


def test_an_encoder_that_cannot_say_it_is_left_out():
    room = Room()

    class Broken:
        format = "json"

        def encode(self, event):
            raise ProtocolError("cannot say it")

    mute, broken = room.person(encoder=Speaks(mute=(Message,))), room.person(encoder=Broken())
    for person in (mute, broken):
        room.hub.subscribe(person.session, b"public:a")
    hears = room.person(b"public:a")
    assert room.hub.publish(b"public:a", "x") == 1
    assert hears.said() == ["x"]
    assert mute.heard() == []
    assert broken.outbox.size == 0


@pytest.mark.parametrize("data", ["text", b"\xff\x00", {"a": [1, None]}, None, 3, ""])
@pytest.mark.parametrize("format", ["json", "messagepack"])
def test_data_arrives_as_it_was(data, format):
    room = Room()
    person = room.person(b"public:a", encoder=Speaks(format))
    room.hub.publish(b"public:a", data)
    room.hub.direct(person.session.id, data)
    room.hub.broadcast(data)
    assert person.said() == [data] * 3


def test_names_of_bytes():
    room = Room(config(public(""), public("é")))
    for name in (b"\xff\xfe", "é:1".encode(), b"\x00"):
        person = room.person(name)
        room.hub.publish(name, "x")
        (message,) = person.heard()
        assert (message.channel if isinstance(message.channel, str) else message.channel64) in (
            name,
            name.decode(errors="replace"),
        )
    assert [info.name for info in room.hub.channels()] == sorted([b"\xff\xfe", "é:1".encode(), b"\x00"])


def test_what_was_published_before_a_direct_message_comes_before_it():
    room = Room()
    listener, speaker = room.person(b"public:a"), room.person()
    for number in range(3):
        speaker.ask(Publish(channel="public:a", data=f"p{number}"))
        speaker.ask(SendDirect(to=listener.session.id, data=f"d{number}"))
    assert listener.said() == ["p0", "d0", "p1", "d1", "p2", "d2"]


def test_priorities_and_ephemeral_reach_the_outbox():
    room = Room()
    rules = OutboxRules(2000, "drop-ephemeral")
    person = room.person(b"public:a", rules=rules)
    room.hub.publish(b"public:a", "later", priority=200)
    room.hub.publish(b"public:a", "usual")
    room.hub.publish(b"public:a", "urgent", priority=1)
    assert person.said() == ["urgent", "usual", "later"]
    for _ in range(100):
        room.hub.publish(b"public:a", "e" * 100, ephemeral=True)
    room.hub.publish(b"public:a", "kept" * 100)
    assert person.said()[-1] == "kept" * 100
    assert person.session.dropped > 80
    assert person.closed == []


def test_an_outbox_that_was_empty_is_marked_once():
    room = Room()
    people = [room.person(b"public:a") for _ in range(3)]
    room.dirty.clear()
    for _ in range(2):
        room.hub.publish(b"public:a", "x")
    assert room.dirty == [person.outbox for person in people]
    people[1].heard()
    room.hub.publish(b"public:a", "x", priority=7)
    room.hub.publish(b"public:a", "x")
    assert room.dirty == [*(person.outbox for person in people), people[1].outbox]


def test_a_crowd_is_told_apart_by_what_it_speaks_who_sends_it_and_what_holds_it_back():
    room, other = Room(), Room()
    rules, held = OutboxRules(), OutboxRules(rate=1000, burst=10)
    people = [
        *(room.person(b"public:a", rules=rules) for _ in range(3)),
        *(room.person(b"public:a", rules=rules, encoder=encoder) for encoder in (Speaks(), JSON, JSON)),
        *(room.person(b"public:a", rules=held) for _ in range(3)),
        *(room.person(b"public:a", rules=rules) for _ in range(3)),
    ]
    for person in people[10:]:
        person.outbox.flusher = other
    crowds = []
    for each in (room, other):
        each.dirty.clear()
        each.mark_crowd = lambda outboxes, alone, each=each: (
            Room.mark_crowd(each, outboxes, alone),
            crowds.append(len(outboxes)),
        )
    assert room.hub.publish(b"public:a", "x") == len(people)
    assert sorted(map(id, room.dirty)) == sorted(id(person.outbox) for person in people[:10])
    assert sorted(map(id, other.dirty)) == sorted(id(person.outbox) for person in people[10:])
    assert sum(crowds) >= 4
    assert [person.said() for person in people[:6]] == [["x"]] * 6


def test_what_an_owner_raises_keeps_nobody_elses_message_back():
    room = Room()
    rules = OutboxRules()
    people = [room.person(b"public:a", rules=rules) for _ in range(4)]
    full = room.person(b"public:a", rules=OutboxRules(1000))

    def broken(over: bool) -> None:
        raise RuntimeError("a defect")

    full.outbox.owner = full
    full.pressure = broken
    room.dirty.clear()
    with pytest.raises(RuntimeError, match="a defect"):
        room.hub.publish(b"public:a", "x" * 600)
    assert {id(person.outbox) for person in people} <= set(map(id, room.dirty))


def test_what_is_urgent_and_comes_to_one_of_a_crowd_is_sent_with_the_rest_of_it():
    room = Room()
    people = [room.person(b"public:a") for _ in range(3)]
    room.hub.publish(b"public:a", "to all")
    alone = people[2].outbox.chunks
    room.hub.publish(b"public:a", "urgent", priority=1)
    assert all(person.outbox.chunks is not alone for person in people), "nobody takes it as if it were all there is"
    assert [person.said() for person in people] == [["urgent", "to all"]] * 3


def test_a_few_ephemeral_messages_make_room_for_one_that_is_kept():
    room = Room()
    person = room.person(b"public:a", rules=OutboxRules(2000, "drop-ephemeral"))
    room.hub.publish(b"public:a", "e" * 300, ephemeral=True)
    room.hub.publish(b"public:a", "k" * 1800)
    assert (person.closed, person.session.dropped) == ([], 1)
    assert person.said() == ["k" * 1800]


def test_an_ephemeral_namespace_drops_and_keeps_nothing():
    room = Room(config(public(ephemeral=True, history_size=10)))
    person = room.person(b"public:a", rules=OutboxRules(500, "drop-ephemeral"))
    for number in range(50):
        room.hub.publish(b"public:a", str(number))
    assert person.session.dropped
    assert person.closed == []
    message = person.heard()[-1]
    assert (message.data, message.offset, message.epoch) == ("49", None, None)


@pytest.mark.parametrize("size", [0, 1, 10])
def test_max_message_counts_what_the_data_takes(size: int):
    room = Room(config(public(max_message=10)))
    room.hub.publish(b"public:a", "x" * size)
    room.hub.publish(b"public:a", b"x" * size)
    room.hub.publish(b"public:a", "é" * (size // 2))
    room.hub.publish(b"public:a", [1] * (size // 3))
    for data in ("x" * 11, b"x" * 11, "é" * 6, ["x" * 9]):
        with pytest.raises(
            Refusal, match=r"cannot publish 1\d bytes to 'public:a': at most 10 \(hub.namespace.0.max_message\)"
        ):
            room.hub.publish(b"public:a", data)


@pytest.mark.parametrize("data", [object(), {1: 1}, 2**70, float("nan"), {1j}, "\ud800", ["\ud800"], [object()]])
def test_data_that_nobody_could_be_sent_is_refused(data):
    room = Room()
    person = room.person(b"public:a")
    for say in (lambda: room.hub.publish(b"public:a", data), lambda: room.hub.broadcast(data)):
        with pytest.raises(Refusal, match="cannot send this data") as caught:
            say()
        assert caught.value.code == "invalid"
    assert person.heard() == []


def test_data_nested_too_deep_is_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    room = Room()
    with pytest.raises(Refusal, match="cannot send this data"):
        room.hub.publish(b"public:a", deep)
    while deep:  # so that taking it apart does not recurse either
        deep = deep[0]


# --- slow consumers --------------------------------------------------------------------------------------------------


def test_a_slow_consumer_goes_while_messages_are_handed_out_and_nobody_else_notices():
    room = Room(config(public(join_leave=True)))
    crowd = [room.person(b"public:a", rules=OutboxRules(400)) for _ in range(5)]
    slow = crowd[2]
    for person in crowd:
        person.heard()
    while not slow.closed:
        room.hub.publish(b"public:a", "x" * 50)
        for person in crowd:
            if person is not slow:
                person.said()
    assert slow.closed == [(CloseCode.SLOW, "too slow")]
    assert slow.session.id not in room.hub.sessions
    assert room.hub.channel(b"public:a").subscribers == 4
    (last,) = slow.heard()
    assert isinstance(last, Close)
    for person in crowd:
        if person is not slow:
            room.hub.publish(b"public:a", "after")
            assert person.said()[-1] == "after"


@pytest.mark.parametrize("prompt", [True, False])
def test_a_thousand_that_overflow_at_once_end_without_recursion(prompt: bool):
    """Each tells the others that it left."""
    room = Room(config(public(join_leave=True, join_leave_rate=1e6)))
    rules = OutboxRules()
    crowd = [room.person(b"public:a", rules=rules, prompt=prompt) for _ in range(1000)]
    stays = room.person(b"public:a")
    for person in crowd:
        person.heard()
    rules.bound = 700
    while not crowd[0].closed:
        room.hub.publish(b"public:a", "x" * 200)
    for person in crowd:
        room.hub.close(person.session)
    assert all(person.closed for person in crowd)
    assert room.hub.channel(b"public:a").subscribers == 1
    assert sum(isinstance(event, Left) for event in stays.heard()) == 1000
    assert room.hub.info().sessions == 1


def test_whoever_unsubscribes_while_messages_are_handed_out():
    room = Room()
    first, second, third = (room.person(b"public:a", rules=OutboxRules(100_000)) for _ in range(3))

    def pressure(over: bool) -> None:
        room.hub.unsubscribe(third.session, b"public:a")
        room.hub.subscribe(late.session, b"public:a")

    late = room.person()
    second.pressure = pressure  # type: ignore[method-assign]
    room.hub.publish(b"public:a", "x" * 51_000)
    assert len(first.said()) == 1
    assert len(second.said()) == 1
    assert late.heard() == []  # not yet
    third.heard()
    assert room.hub.publish(b"public:a", "y") == 3
    assert late.said() == ["y"]
    assert third.heard() == []


# --- sessions --------------------------------------------------------------------------------------------------------


def test_sessions_are_found_by_id_name_and_tag():
    room = Room()
    one = room.person(name="ann", tags={"device": "alpha"})
    two = room.person(name="ann", tags={"device": "beta", "room": "1"})
    find = room.hub.find
    assert find(one.session.id) == [one.session]
    assert find("name:ann") == [one.session, two.session]
    assert find("tag:room=1") == [two.session]
    assert find("tag:device=gamma") == find("name:bob") == find("nobody") == find("") == []
    two.ask(Hello(version=1, name="bob", tags={"room": "2"}))
    assert find("name:ann") == [one.session]
    assert find("name:bob") == find("tag:room=2") == find("tag:device=beta") == [two.session]
    assert find("tag:room=1") == []
    two.leave()
    assert find("name:bob") == find("tag:room=2") == find(two.session.id) == []
    one.leave()
    assert room.hub._targets == {}


def test_direct_and_broadcast_count_whom_they_reach():
    room = Room()
    one, two, three = room.person(name="x"), room.person(name="x"), room.person()
    assert room.hub.direct("name:x", "d", sender=three.session) == 2
    assert one.heard() == two.heard() == [Direct(data="d", from_=three.session.id)]
    assert room.hub.direct("nobody", "d") == 0
    assert room.hub.broadcast("b", sender=one.session) == 2
    assert one.heard() == []
    assert two.heard() == three.heard() == [Broadcast(data="b", from_=one.session.id)]


def test_kick_ends_sessions_for_good():
    room = Room()
    person = room.person(b"public:a", tags={"k": "v"})
    secret = person.hello().resume
    ended = []
    room.hub.on_closed.append(lambda session, code, reason: ended.append((session, code, reason)))
    assert room.hub.kick("tag:k=v", reason="out") == 1
    assert person.closed == [(CloseCode.KICKED, "out")]
    assert ended == [(person.session, CloseCode.KICKED, "out")]
    assert room.hub.kick("tag:k=v") == 0
    again = room.person()
    assert again.hello(resume=secret).session != person.session.id


def test_the_daemons_own_sessions_are_nobodys():
    room = Room(config(public(join_leave=True)))
    person = room.person(b"public:a")
    tail = room.person(internal=True, name="tail")
    room.hub.subscribe(tail.session, b"public:a", checked=False)
    assert person.heard() == []
    assert [each.session for each in room.hub.presence(b"public:a")] == [person.session.id]
    assert room.hub.find("name:tail") == room.hub.find(tail.session.id) == []
    assert room.hub.kick(tail.session.id) == 0
    room.hub.broadcast("b")
    assert tail.heard() == []
    room.hub.publish(b"public:a", "m")
    assert tail.said() == ["m"]
    assert room.hub.info().sessions == 1
    tail.leave()
    assert [type(event) for event in person.heard()] == [Broadcast, Message]


def test_max_sessions_turns_away_all_but_the_daemons_own():
    room = Room(config(max_sessions=2))
    first = room.person()
    room.person()
    with pytest.raises(TooBusy, match=r"there are 2 already \(hub.max_sessions\)"):
        room.person()
    room.person(internal=True)
    first.leave()
    room.person()


def test_closing_ends_subscriptions_and_is_safe_to_repeat():
    room = Room(config(public(join_leave=True)))
    stays, goes = room.person(b"public:a"), room.person(b"public:a", b"public:b", name="g")
    stays.heard()
    calls = []
    room.hub.on_closed.append(lambda session, code, reason: calls.append((code, reason)))
    room.hub.close(goes.session, 1001, "away")
    room.hub.close(goes.session, 1000, "")
    assert calls == [(1001, "away")]
    assert stays.heard() == [Left(channel="public:a", session=goes.session.id, name="g")]
    assert [info.name for info in room.hub.channels()] == [b"public:a"]
    assert goes.session.channels is None
    assert goes.ask(Publish(channel="public:a", data="ghost")) == []
    room.hub.subscribe(goes.session, b"public:a")
    assert room.hub.info().subscriptions == 1
    assert stays.heard() == []


def test_hooks_and_the_application_see_sessions_come_and_go():
    room = Room(config(tokens=[Token(name="t", secret=SECRET)]))
    seen = []

    class Recorder:
        def opened(self, session):
            seen.append(("opened", session.id))

        def message(self, session, data):
            seen.append(("message", data))

        def closed(self, session, code, reason):
            seen.append(("closed", session.token, session.id in room.hub.sessions))

    room.hub.application = Recorder()
    room.hub.on_opened.append(lambda session: seen.append(("hook", session.id)))
    person = room.person()
    person.hello(token=SECRET)
    person.ask(Text(text="hi"))
    person.leave()
    room.person(internal=True).leave()
    id = person.session.id
    assert seen == [("opened", id), ("hook", id), ("message", "hi"), ("closed", "t", False)]


def test_a_hook_that_closes_others_and_speaks_while_one_ends():
    room = Room()
    one, two, three = (room.person(b"public:a") for _ in range(3))

    def domino(session, code, reason):
        room.hub.publish(b"public:a", "gone")
        for other in (two, three):
            room.hub.close(other.session, 1001, "domino")

    room.hub.on_closed.append(domino)
    one.leave()
    assert room.hub.sessions == {}
    assert two.said() == ["gone"]
    assert room.hub.channels() == []


# --- configuration ---------------------------------------------------------------------------------------------------


def test_a_new_configuration_disconnects_nobody_and_holds_from_the_next_message():
    token = Token(name="t", secret=SECRET, subscribe=["*"], publish=["*"])
    room = Room(config(public(history_size=5), Namespace(name="team"), tokens=[token]))
    guest, member = room.person(b"public:a"), room.person()
    member.hello(token=SECRET)
    member.hear("team:x")
    room.hub.publish(b"public:a", "x" * 100)
    guest.heard()
    room.hub.reconfigure(
        config(public(history_size=5, max_message=50), Namespace(name="team"), tokens=[token], max_sessions=1)
    )
    assert member.session.token == "t"
    assert guest.closed == member.closed == []
    with pytest.raises(Refusal, match="at most 50"):
        room.hub.publish(b"public:a", "x" * 100)
    room.hub.publish(b"team:x", "still")
    assert member.said() == ["still"]
    assert guest.heard() == []
    namespace = room.hub.info().namespaces[0]
    assert (namespace.name, namespace.published, namespace.refused) == ("public", 1, 1)


def test_a_token_that_is_gone_leaves_its_session_anonymous_and_out_of_its_channels():
    token = Token(name="t", secret=SECRET, subscribe=["*"])
    room = Room(config(public(), Namespace(name="team"), tokens=[token]))
    person = room.person()
    person.hello(token=SECRET)
    for channel in ("team:x", "public:a"):
        person.hear(channel)
    room.hub.subscribe(person.session, b"team:placed", checked=False)
    room.hub.reconfigure(config(public(), Namespace(name="team")))
    assert person.session.token is None
    assert person.session.channels == {b"public:a", b"team:placed"}
    lost, error = person.heard()
    assert isinstance(lost, Error)
    assert isinstance(error, Error)
    assert (lost.code, lost.ref, lost.refresh) == ("denied", None, True)
    assert lost.message == "cannot go on with the token 't': this configuration takes it no more; refresh it"
    assert (error.code, error.ref, error.refresh) == ("denied", None, False)
    assert error.message == (
        "cannot subscribe to 'team:x': token 't': this configuration takes it no more (hub.namespace.1.subscribe)"
    )
    assert person.closed == []
    room.hub.reconfigure(config(public()))
    assert not any(each.refresh for each in person.heard()), "once is enough"


def test_finished_tokens_leave_nothing_that_could_fail():
    room = Room()
    new = config(tokens=[Token(name="t", file="/nowhere")])
    tokens = Tokens(new, {"t": SECRET})
    room.hub.reconfigure(new, tokens=tokens)
    assert room.hub.config is new
    assert room.hub.tokens is tokens


def test_a_reload_looks_only_at_channels_that_are_not_open_to_all():
    room = Room(config(public(), public("team")))
    person = room.person(b"public:a", b"team:a")
    asked = []
    check = Permissions.check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Permissions, "check", lambda *call: asked.append(call[2:]) or check(*call))
        room.hub.reconfigure(config(public(), Namespace(name="team")))
    assert asked == [("subscribe", b"team:a")]
    assert person.session.channels == {b"public:a"}


def test_a_configuration_that_cannot_be_changes_nothing():
    room = Room()
    before = room.hub.config, room.hub.permissions, room.hub.tokens
    with pytest.raises(ConfigError):
        room.hub.reconfigure(config(tokens=[Token(name="t", file="/nowhere")]))
    assert (room.hub.config, room.hub.permissions, room.hub.tokens) == before
    room.hub.reconfigure(config(tokens=[Token(name="t", file="/nowhere")]), {"t": SECRET})
    assert room.hub.tokens.resolve(SECRET).token == "t"


# --- the backplane ---------------------------------------------------------------------------------------------------


class Later(MemoryBackplane):
    """A backplane that answers when it is told to."""

    def __init__(self) -> None:
        self.waiting = []

    def _later(self, ask, *question) -> None:
        *question, answer = question
        answers = []
        ask(*question, answers.append)  # what it will answer is as of now
        self.waiting.append(lambda: answer(answers[0]))

    def history(self, *question) -> None:
        self._later(super().history, *question)

    def position(self, *question) -> None:
        self._later(super().position, *question)

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each()


def test_what_comes_while_the_backplane_looks_history_up_is_neither_lost_nor_doubled():
    backplane = Later()
    room = Room(config(public(history_size=10)), backplane=backplane)
    room.hub.publish(b"public:a", "1")
    epoch = room.hub.channel(b"public:a").epoch
    room.hub.publish(b"public:a", "2")
    person = room.person()
    assert person.ask(Subscribe(ref=1, channel="public:a", recover=Position(epoch, 1))) == []
    room.hub.publish(b"public:a", "3")
    room.hub.publish(b"public:a", "brief", ephemeral=True)
    assert person.heard() == []
    backplane.answer()
    ok, *messages = person.heard()
    assert (ok.recovered, ok.offset) == (True, 1)
    assert [(each.data, each.offset) for each in messages] == [("2", 2), ("3", 3), ("brief", None)]
    room.hub.publish(b"public:a", "4")
    assert person.said() == ["4"]


def test_what_the_backplane_knows_already_is_not_sent_again():
    class Slow(Later):
        def _later(self, ask, *question) -> None:
            self.waiting.append(lambda: ask(*question))  # what it will answer is as of then

    backplane = Slow()
    room = Room(config(public(history_size=10)), backplane=backplane)
    person, other = room.person(), room.person()
    person.ask(Subscribe(ref=1, channel="public:a", recover=Position("e", 0)))
    other.ask(Subscribe(ref=1, channel="public:a"))
    for number in (1, 2, 3):
        room.hub.publish(b"public:a", number)
    backplane.answer()
    room.hub.publish(b"public:a", 4)
    for each in (person, other):
        ok, *messages = each.heard()
        assert (ok.offset, [message.data for message in messages]) == (3, [4])


def test_who_overflows_while_it_is_told_what_came_is_not_put_back():
    backplane = Later()
    room = Room(config(public(history_size=10)), backplane=backplane)
    person = room.person(rules=OutboxRules(500))
    person.ask(Subscribe(ref=1, channel="public:a"))
    for _ in range(3):
        room.hub.publish(b"public:a", "x" * 200)
    backplane.answer()
    assert person.closed == [(CloseCode.SLOW, "too slow")]
    assert room.hub.info().subscriptions == room.hub.info().channels == 0


def test_others_hear_the_message_before_they_hear_who_left_over_it():
    room = Room(config(public(join_leave=True)))
    slow = room.person(b"public:a", rules=OutboxRules(300))
    after = room.person(b"public:a")
    slow.heard()
    room.hub.publish(b"public:a", "x" * 150)
    room.hub.publish(b"public:a", "x" * 150)
    assert [type(event) for event in after.heard()] == [Message, Message, Left]


def test_who_leaves_while_the_backplane_looks_history_up_is_not_put_back():
    backplane = Later()
    room = Room(config(public(history_size=10, join_leave=True)), backplane=backplane)
    stays = room.person()
    stays.ask(Subscribe(channel="public:a"))
    backplane.answer()
    one, two = room.person(), room.person()
    for person in (one, two):
        person.ask(Subscribe(ref=1, channel="public:a"))
    room.hub.unsubscribe(one.session, b"public:a")
    two.leave()
    backplane.answer()
    room.hub.publish(b"public:a", "x")
    assert one.heard() == two.heard() == []
    assert stays.said() == ["x"]
    assert room.hub.info().subscriptions == 1


def test_what_is_held_follows_the_answer_whatever_its_priority():
    backplane = Later()
    room = Room(config(public(history_size=10), public("plain")), backplane=backplane)
    person = room.person()
    for channel in ("public:a", "plain:a"):
        person.ask(Subscribe(ref=1, channel=channel))
        room.hub.publish(channel.encode(), "urgent", priority=0)
        room.hub.publish(channel.encode(), "fleeting", priority=0, ephemeral=True)
        backplane.answer()
        assert [type(event) for event in person.heard()] == [Ok, Message, Message]


def test_too_much_while_the_backplane_looks_history_up_is_told_as_a_loss():
    backplane = Later()
    room = Room(config(public(history_size=10)), backplane=backplane)
    person = room.person()
    person.ask(Subscribe(ref=1, channel="public:a", recover=Position("none", 0)))
    for number in range(1200):
        room.hub.publish(b"public:a", number)
    backplane.answer()
    ok, *messages = person.heard()
    assert (ok.recovered, ok.offset) == (False, 200)
    assert [each.data for each in messages] == list(range(200, 1200))


def test_a_backplane_may_deliver_what_was_never_published_here():
    room = Room()
    person = room.person(b"public:a")
    assert room.hub.deliver(Publication(b"public:a", "far", "someone", offset=7, epoch="e")) == 1
    assert room.hub.deliver(Publication(b"public:none", "far")) == 0
    assert person.heard() == [Message(channel="public:a", data="far", from_="someone", offset=7, epoch="e")]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_what_sessions_counted_outlives_them():
    room = Room(config(public(), public("other")))
    one, two = room.person(b"public:a"), room.person(b"public:a", b"other:b", rules=OutboxRules(200, "drop-oldest"))
    for _ in range(10):
        one.ask(Publish(channel="public:a", data="x" * 50))
    one.ask(Publish(channel="nowhere:a", data="x"))
    before = room.hub.info()
    assert (before.sessions, before.channels, before.subscriptions) == (2, 2, 3)
    assert (before.published, before.delivered, before.refused) == (10, 20, 1)
    assert before.dropped == two.session.dropped > 0
    assert [(each.name, each.channels, each.published) for each in before.namespaces] == [
        ("public", 1, 10),
        ("other", 1, 0),
    ]
    one.leave()
    two.leave()
    after = room.hub.info()
    assert (after.messages_in, after.messages_out, after.refused, after.dropped) == (
        before.messages_in,
        before.messages_out,
        before.refused,
        before.dropped,
    )
    assert (after.sessions, after.channels, after.subscriptions, after.opened) == (0, 0, 0, 2)


def test_coming_and_going_cuts_nobody_off():
    """However often it happens, and whatever the policy; a message still does."""
    room = Room(config(public(join_leave=True, join_leave_rate=1e6)))
    people = {
        policy: room.person(b"public:a", rules=OutboxRules(2000, policy))
        for policy in ("disconnect", "drop-oldest", "drop-ephemeral")
    }
    for person in people.values():
        person.heard()
    flaps = room.person()
    for _ in range(500):
        room.hub.subscribe(flaps.session, b"public:a")
        room.hub.unsubscribe(flaps.session, b"public:a")
    for person in people.values():
        assert person.closed == person.pressed == []
        assert 700 < person.outbox.size <= 1000
        assert person.session.dropped + len(person.heard()) == 1000
    while not people["disconnect"].closed:
        room.hub.publish(b"public:a", "x" * 100)


def test_coming_and_going_is_told_a_few_times_a_second():
    room = Room(config(public(join_leave=True, join_leave_rate=4)))
    person, flaps = room.person(b"public:a", b"public:b"), room.person()

    def flap(times: int) -> int:
        for _ in range(times):
            room.hub.subscribe(flaps.session, b"public:a")
            room.hub.unsubscribe(flaps.session, b"public:a")
        return len(person.heard())

    assert flap(50) == 4
    room.now += 0.5
    assert flap(50) == 2
    room.now -= 3600
    assert flap(50) == 0
    room.now += 1
    assert flap(50) == 4
    room.hub.subscribe(flaps.session, b"public:b")  # each channel has its own
    assert [type(event) for event in person.heard()] == [Joined]


def test_only_those_who_may_ask_who_is_there_are_told_who_comes():
    token = Token(name="t", secret=SECRET, presence=["asked:*"])
    shut = {"subscribe": "anyone", "join_leave": True}
    room = Room(
        config(
            Namespace(name="shut", presence="nobody", **shut),
            Namespace(name="asked", **shut),
            public("untracked", join_leave=True, track_presence=False),
            public(join_leave=True),
            tokens=[token],
        )
    )
    channels = (b"shut:a", b"asked:a", b"untracked:a", b"public:a")
    anyone, holder = room.person(*channels), room.person()
    holder.hello(token=SECRET)
    own = room.person(internal=True)
    for channel in channels:
        room.hub.subscribe(holder.session, channel)
        room.hub.subscribe(own.session, channel, checked=False)
    anyone.heard()
    comes = room.person(*channels)

    def told(person) -> list[tuple[str, type]]:
        return [(event.channel, type(event)) for event in person.heard()]

    assert told(anyone) == [("public:a", Joined)]
    assert told(holder) == [("asked:a", Joined), ("public:a", Joined)]
    assert told(own) == [(channel.decode(), Joined) for channel in channels]
    comes.leave()
    assert told(anyone) == [("public:a", Left)]
    assert told(holder) == [("asked:a", Left), ("public:a", Left)]


def test_channels_are_told_in_parts():
    room = Room(config(public(history_size=5), public("other")))
    room.person(*(f"public:{n}" for n in range(5)), "other:a")
    for name in (b"public:0", b"public:9", b"public:\xff"):
        room.hub.publish(name, "x")

    def names(*part, **more) -> list[bytes]:
        return [info.name for info in room.hub.channels(*part, **more)]

    everything = [b"other:a", *(b"public:%d" % n for n in (0, 1, 2, 3, 4, 9)), b"public:\xff"]
    assert names() == everything
    assert names(b"public:") == everything[1:]
    assert names(limit=3) == everything[:3]
    assert names(b"public:", b"public:3", 2) == [b"public:4", b"public:9"]
    assert names(after=b"public:9") == [b"public:\xff"]
    assert names(b"none") == names(limit=0) == []
    assert room.hub.channels(limit=2)[1].history == 1


def test_joined_and_left_where_the_namespace_says_so():
    room = Room(config(public(join_leave=True), public("quiet")))
    one = room.person(b"public:a", b"quiet:a")
    two = room.person(b"public:a", b"quiet:a", name="two")
    assert one.heard() == [Joined(channel="public:a", session=two.session.id, name="two")]
    three = room.person(open=True)
    assert len(three.ask(Subscribe(ref=1, channel="public:a"))) == 1  # nobody is told of itself
    three.leave()
    assert [type(event) for event in one.heard()] == [type(event) for event in two.heard()] == [Joined, Left]
    room.hub.unsubscribe(two.session, b"public:a")
    room.hub.unsubscribe(two.session, b"quiet:a")
    assert one.heard() == [Left(channel="public:a", session=two.session.id, name="two")]
    assert two.heard() == []


def test_who_leaves_while_it_waits_hears_what_came_through_its_pattern():
    backplane = Later()
    room = Room(config(public(history_size=10, wildcards=True)), backplane=backplane)
    person = room.person()
    person.ask(Subscribe(ref=1, channel="public:*"))
    person.ask(Subscribe(ref=2, channel="public:a"))
    room.hub.publish(b"public:a", "1")
    room.hub.publish(b"public:a", "2")
    told = person.ask(Unsubscribe(ref=3, channel="public:a"))
    assert [each.data for each in told if isinstance(each, Message)] == ["1", "2"]
    room.hub.publish(b"public:a", "3")
    backplane.answer()
    assert [each.data for each in person.heard()] == ["3"]


def test_who_leaves_and_comes_back_is_answered_what_it_asked_last():
    backplane = Later()
    room = Room(config(public(history_size=10)), backplane=backplane)
    room.hub.publish(b"public:a", "1")
    epoch = room.hub.channel(b"public:a").epoch
    other = room.person()
    other.ask(Subscribe(ref=1, channel="public:a"))
    backplane.answer()
    other.heard()
    person = room.person()
    person.ask(Subscribe(ref=1, channel="public:a"))
    assert [each.ref for each in person.ask(Unsubscribe(ref=2, channel="public:a"))] == [2]
    person.ask(Subscribe(ref=3, channel="public:a", recover=Position(epoch, 0)))
    backplane.answer()
    ok, message = person.heard()
    assert (ok.ref, ok.recovered) == (3, True)
    assert message.data == "1"
