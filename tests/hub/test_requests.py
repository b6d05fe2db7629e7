"""What clients may ask, and what they are answered.

Over 600 lines, and one file all the same: it goes through requests.py, one request after the other.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.hub.config import Namespace, Token
from netd.hub.outbox import OutboxRules
from netd.wire import messages
from netd.wire.messages import (
    AskHistory,
    AskPresence,
    Binary,
    BinaryEvent,
    Broadcast,
    Client,
    Clients,
    Close,
    CloseCode,
    Direct,
    Error,
    Hello,
    History,
    ListClients,
    Message,
    Ok,
    Ping,
    Pong,
    Presence,
    Publish,
    SendBroadcast,
    SendDirect,
    Subscribe,
    Text,
    TextEvent,
    Unsubscribe,
)
from tests.hub.room import Position, Room, Speaks, config, public

SECRET = "a secret of enough characters"


def error(events) -> Error:
    (found,) = events
    assert isinstance(found, Error), found
    return found


# --- hello -----------------------------------------------------------------------------------------------------------


def test_a_hello_is_welcomed():
    room = Room()
    person = room.person()
    person.session.heartbeat = 30.0
    welcome, ok = person.ask(Hello(version=1, name="ann", tags={"a": "b"}, ref=1))
    assert (welcome.session, welcome.server, welcome.version, welcome.heartbeat) == (
        person.session.id,
        "test",
        "1",
        30.0,
    )
    assert welcome.resume.startswith(person.session.id + ".")
    assert ok == Ok(ref=1)
    assert (person.session.name, dict(person.session.tags)) == ("ann", {"a": "b"})
    assert room.person().hello() is not None


def test_another_version_is_refused():
    answer = error(Room().person().ask(Hello(version=2, ref="r")))
    assert (answer.code, answer.ref) == ("unsupported", "r")
    assert answer.message == "cannot speak version 2 of the messages: this is 1"


def test_an_unknown_token_is_denied_and_changes_nothing():
    room = Room()
    person = room.person()
    answer = error(person.ask(Hello(version=1, token="wrong", name="ann")))
    assert (answer.code, answer.message) == (
        "denied",
        "cannot accept the token: it is none of those configured (hub.token)",
    )
    assert (person.session.token, person.session.name) == (None, None)


def test_a_tokens_tags_win():
    room = Room(config(tokens=[Token(name="t", secret=SECRET, tags={"role": "probe"})]))
    person = room.person(tags={"from": "handshake"})
    person.hello(token=SECRET, tags={"role": "admin", "own": "1"})
    assert dict(person.session.tags) == {"from": "handshake", "role": "probe", "own": "1"}
    assert room.hub.find("tag:role=admin") == []
    person.hello(name="later")
    assert person.session.token == "t"


def test_tags_are_bounded_together():
    room = Room(config(tokens=[Token(name="t", secret=SECRET, tags={f"t{n}": "" for n in range(20)})]))
    person = room.person(tags={"from": "handshake"})
    answer = error(person.ask(Hello(version=1, token=SECRET, tags={f"h{n}": "" for n in range(12)})))
    assert answer.message == "cannot have 33 tags: 32 is the most, with those of the token and of the handshake"
    assert (dict(person.session.tags), person.session.token) == ({"from": "handshake"}, None)
    secret = person.hello(tags={f"h{n}": "" for n in range(31)}).resume
    person.leave()
    again = room.person()
    again.hello(resume=secret, tags={"new": "1"})
    assert dict(again.session.tags) == {"new": "1"}
    assert again.session.id == person.session.id


def test_a_hello_does_not_touch_the_tags_of_a_signed_handshake_or_of_a_token():
    room = Room(config(tokens=[Token(name="t", secret=SECRET, tags={"role": "probe", "site": "a"})]))
    person = room.person(tags={"device": "own"}, fixed_tags={"device": "alpha", "site": "b"})
    person.hello(tags={"device": "beta", "site": "c", "role": "admin", "own": "1"})
    assert dict(person.session.tags) == {"device": "alpha", "site": "b", "role": "admin", "own": "1"}
    assert room.hub.find("tag:device=beta") == []
    person.hello(token=SECRET)
    assert dict(person.session.tags) == {"device": "alpha", "site": "a", "role": "probe", "own": "1"}
    assert room.hub.find("tag:role=admin") == room.hub.find("tag:site=b") == []
    assert room.hub.find("tag:role=probe") == [person.session]


def test_a_tokens_tags_go_with_it():
    other = "another secret of enough characters"
    room = Room(
        config(
            tokens=[
                Token(name="t", secret=SECRET, tags={"role": "admin", "a": "1"}),
                Token(name="u", secret=other, tags={"b": "2"}),
            ]
        )
    )
    person, leaves = room.person(), room.person()
    person.hello(token=SECRET, tags={"own": "1"})
    person.hello(token=other)
    assert dict(person.session.tags) == {"own": "1", "b": "2"}
    assert room.hub.find("tag:role=admin") == []
    person.hello(token=SECRET)

    # on a reload: others, then none
    room.hub.reconfigure(config(tokens=[Token(name="t", secret=SECRET, tags={"role": "guest", "own": "2"})]))
    assert dict(person.session.tags) == {"role": "guest", "own": "2"}
    assert room.hub.find("tag:role=guest") == room.hub.find("tag:own=2") == [person.session]
    secret = leaves.hello(token=SECRET, tags={"own": "3"}).resume
    leaves.leave()
    room.hub.reconfigure(config())
    assert dict(person.session.tags) == {"own": "1"}
    assert room.hub.find("tag:role=guest") == room.hub.find("tag:own=2") == []

    # on resuming without the token
    again = room.person()
    again.hello(resume=secret)
    assert again.session.id == leaves.session.id
    assert (again.session.token, dict(again.session.tags)) == (None, {"own": "3"})


def test_tags_vouched_for_are_not_resumed_but_new_ones_win():
    room = Room()
    first = room.person(fixed_tags={"device": "alpha"})
    secret = first.hello(tags={"device": "x", "own": "1"}).resume
    first.leave()
    again = room.person(fixed_tags={"own": "2"})
    again.hello(resume=secret)
    assert dict(again.session.tags) == {"device": "x", "own": "2"}


def test_a_reload_that_brings_too_many_tags_leaves_claims_out():
    room = Room(config(tokens=[Token(name="t", secret=SECRET)]))
    person = room.person(fixed_tags={"f": ""})
    person.hello(token=SECRET, tags={f"h{n}": "" for n in range(31)})
    room.hub.reconfigure(config(tokens=[Token(name="t", secret=SECRET, tags={f"t{n}": "" for n in range(31)})]))
    assert set(person.session.tags) == {"f", *(f"t{n}" for n in range(31))}
    assert room.hub.find("tag:h0=") == []
    person.leave()
    assert room.hub._targets == {}


def test_a_session_without_tags_holds_nothing_of_its_own():
    sessions = [Room().person().session for _ in range(2)]
    for each in ("tags", "own_tags", "fixed_tags"):
        assert getattr(sessions[0], each) is getattr(sessions[1], each)
    tagged = Room().person(tags={"a": "b"}).session
    assert tagged.tags is tagged.own_tags


def test_no_equals_sign_in_a_tags_key():
    """Or "tag:a=b=c" stood for two tags."""
    person = Room().person()
    answer = error(person.ask(Hello(version=1, tags={"a=b": "c"}, ref=1)))
    assert (answer.code, answer.ref) == ("invalid", 1)
    assert "'a=b'" in answer.message
    person.hello(tags={"a": "b=c"})
    assert person.room.hub.find("tag:a=b=c") == [person.session]


def test_a_session_is_resumed_once_with_its_id_name_and_tags():
    room = Room()
    first = room.person()
    secret = first.hello(name="ann", tags={"a": "b"}).resume
    id = first.session.id
    first.leave()
    assert room.hub.find(id) == []
    renamed = []
    room.hub.on_resumed.append(lambda session, former: renamed.append((session.id, former)))
    second = room.person()
    former = second.session.id
    welcome = second.hello(resume=secret)
    assert welcome.session == second.session.id == id
    assert (second.session.name, dict(second.session.tags)) == ("ann", {"a": "b"})
    assert room.hub.find(id) == room.hub.find("name:ann") == room.hub.find("tag:a=b") == [second.session]
    assert room.hub.find(former) == []
    assert renamed == [(id, former)]
    assert welcome.resume != secret
    third = room.person()
    assert third.hello(resume=secret).session == third.session.id != id
    second.leave()
    assert room.hub.sessions == {third.session.id: third.session}


def test_resuming_a_session_that_is_still_open_replaces_it():
    room = Room(config(public(join_leave=True)))
    first = room.person(b"public:a")
    secret = first.hello(name="ann").resume
    second = room.person()
    assert second.hello(resume=secret).session == first.session.id
    assert first.closed == [(CloseCode.REPLACED, "resumed by another connection")]
    assert room.hub.sessions == {first.session.id: second.session}
    assert room.hub.find("name:ann") == [second.session]


def test_a_secret_is_good_for_a_while_and_only_as_it_is():
    room = Room(config(resume_seconds=60))
    first = room.person()
    secret = first.hello(name="ann").resume
    first.leave()
    for wrong in (first.session.id, first.session.id + ".", secret[:-1], "x", "." + secret, first.session.id + ".x"):
        assert room.person().hello(resume=wrong).session != first.session.id
    room.now += 60
    assert room.person().hello(resume=secret).session != first.session.id
    room.hub.sweep()
    assert len(room.hub.stays) == 0


def test_a_later_hello_makes_the_earlier_secret_worthless():
    room = Room()
    first = room.person()
    old = first.hello().resume
    new = first.hello().resume
    first.leave()
    assert room.person().hello(resume=old).session != first.session.id
    assert room.person().hello(resume=new).session == first.session.id


def test_resuming_after_the_session_has_begun_is_refused():
    room = Room()
    first, second = room.person(), room.person(b"public:a")
    secret = first.hello().resume
    first.leave()
    assert error(second.ask(Hello(version=1, resume=secret))).code == "invalid"
    second.ask(Unsubscribe(channel="public:a"))
    second.hello()
    assert error(second.ask(Hello(version=1, resume=secret))).code == "invalid"


def test_resuming_can_be_turned_off():
    room = Room(config(resume_seconds=0))
    person = room.person()
    assert person.hello().resume is None
    person.leave()
    assert len(room.hub.stays) == 0


# --- channels --------------------------------------------------------------------------------------------------------


def test_a_request_with_ref_is_answered_and_one_without_is_not():
    person = Room().person()
    assert person.ask(Subscribe(channel="public:a", ref="s")) == [Ok(ref="s", channel="public:a")]
    message, ok = person.ask(Publish(channel="public:a", data="x", ref=0))
    assert (message.data, ok) == ("x", Ok(ref=0, delivered=1))
    assert person.ask(Publish(channel="public:a", data=b"\x00".decode())) == [
        Message(channel="public:a", data="\x00", from_=person.session.id)
    ]
    assert person.ask(Unsubscribe(channel="public:a")) == []
    assert person.ask(Unsubscribe(channel="public:a", ref=5)) == [Ok(ref=5, channel="public:a")]
    assert person.ask(Publish(channel="public:a", data="x", ref=6)) == [Ok(ref=6, delivered=0)]


def test_denied_requests_say_which_rule():
    room = Room(config(Namespace(name="public"), clients="nobody", broadcast="nobody", direct="nobody"))
    person = room.person()
    for number, request in enumerate(
        (
            Subscribe(channel="public:a", ref=0),
            Publish(channel="public:a", data="x", ref=1),
            AskPresence(channel="public:a", ref=2),
            AskHistory(channel="public:a", ref=3),
            ListClients(ref=4),
            SendBroadcast(data="x", ref=5),
            SendDirect(to="name:x", data="x", ref=6),
        )
    ):
        answer = error(person.ask(request))
        assert (answer.code, answer.ref) == ("denied", number)
        assert "(hub." in answer.message
    assert person.session.refused == 7
    assert room.hub.publish(b"public:a", "x") == 0


@pytest.mark.parametrize("channel", ["", "x" * 256])
def test_channels_that_cannot_be(channel: str):
    person = Room().person()
    for request in (Subscribe, Unsubscribe, AskPresence, AskHistory):
        assert error(person.ask(request(channel=channel))).code == "invalid"
    assert error(person.ask(Publish(channel=channel, data="x"))).code == "invalid"


def test_too_large_is_refused_and_counted():
    room = Room(config(public(max_message=10)))
    person = room.person(b"public:a")
    answer = error(person.ask(Publish(channel="public:a", data="x" * 11, ref=1)))
    assert (answer.code, answer.message) == (
        "too-large",
        "cannot publish 11 bytes to 'public:a': at most 10 (hub.namespace.0.max_message)",
    )
    assert room.hub.info().namespaces[0].refused == 1


def test_presence_and_lists():
    room = Room(
        config(public(), Namespace(name="hidden", subscribe="anyone"), public("untracked", track_presence=False))
    )
    one = room.person(b"public:a", name="one", transport="framed", tags={"k": "v"})
    two = room.person(b"public:a", b"hidden:a")
    room.person(internal=True)
    first = Client(session=one.session.id, name="one", transport="framed", tags={"k": "v"})
    second = Client(session=two.session.id)
    assert two.ask(AskPresence(channel="public:a", ref=1)) == [
        Presence(ref=1, channel="public:a", clients=[first, second])
    ]
    assert two.ask(ListClients()) == [Clients(clients=[first, second])]
    assert two.ask(ListClients(channel="public:a", ref=2)) == [Clients(ref=2, clients=[first, second])]
    assert two.ask(AskPresence(channel="public:empty")) == [Presence(channel="public:empty", clients=[])]
    assert error(two.ask(ListClients(channel="hidden:a"))).code == "denied"
    answer = error(two.ask(AskPresence(channel="untracked:a")))
    assert (answer.code, "hub.namespace.2.track_presence" in answer.message) == ("unsupported", True)


def test_long_lists_are_refused_by_name():
    room = Room(config(max_listed=2))
    people = [room.person(b"public:a") for _ in range(3)]
    for request in (ListClients(), AskPresence(channel="public:a")):
        answer = error(people[0].ask(request))
        assert (answer.code, answer.message) == (
            "too-many",
            "cannot list 3 sessions: at most 2 (hub.max_listed)",
        )
    people[2].leave()
    assert len(people[0].ask(ListClients())[0].clients) == 2


def test_an_answer_without_room_is_an_error_and_not_the_end():
    room = Room(config(public(history_size=100)))
    room.hub.publish(b"public:a", "x" * 1950)
    person = room.person(rules=OutboxRules(2000))
    answer = error(person.ask(AskHistory(channel="public:a", ref=1)))
    assert (answer.code, answer.ref) == ("too-large", 1)
    assert person.closed == []
    for _ in range(50):
        room.hub.publish(b"public:a", "x" * 100)
    (page,) = person.ask(AskHistory(channel="public:a", limit=3))
    assert len(page.messages) == 3


def test_a_history_is_as_much_as_fits_and_can_be_gone_on_from():
    room = Room(config(public(history_size=100)))
    for number in range(40):
        room.hub.publish(b"public:a", f"{number:4}" * 25)
    epoch = room.hub.channel(b"public:a").epoch
    person = room.person(rules=OutboxRules(4000))
    found, since = [], 0
    while since < 40:
        (page,) = person.ask(AskHistory(channel="public:a", since=Position(epoch, since)))
        found += [each.offset for each in page.messages]
        assert len(page.messages) > 1
        since = found[-1]
    assert found == list(range(1, 41))
    (newest,) = person.ask(AskHistory(channel="public:a"))
    assert newest.messages[-1].offset == 40
    # what is longer in JSON than it is in memory is tried again with less
    for _ in range(10):
        room.hub.publish(b"public:a", "\x00" * 200)
    (page,) = person.ask(AskHistory(channel="public:a"))
    assert 0 < len(page.messages) < 4
    assert page.messages[-1].offset == 50


def test_nothing_that_has_no_room_is_encoded():
    encoder = Speaks()
    room = Room(config(public(history_size=100, max_message=2**20)))
    for _ in range(50):
        room.hub.publish(b"public:a", ["x" * 60_000, []])
    room.hub.publish(b"public:b", "x" * 100_000)
    crowd = [room.person("public:a", tags={str(n): "v" * 100 for n in range(30)}) for _ in range(20)]
    assert len(crowd) == 20
    person = room.person(encoder=encoder, rules=OutboxRules(50_000))
    encoder.encoded = 0
    for request in (
        AskHistory(channel="public:a", ref=1),
        AskHistory(channel="public:b", ref=1),
        AskPresence(channel="public:a", ref=1),
        ListClients(ref=1),
    ):
        answer = error(person.ask(request))
        assert answer.code == "too-large"
        assert "there is room for 50000" in answer.message
    assert encoder.encoded <= 5  # the errors, and one message of a value that may have become shorter
    encoder.encoded = 0
    epoch = room.hub.channel(b"public:a").epoch
    assert person.hear("public:a", Position(epoch, 0)).recovered is False
    assert encoder.encoded == 1
    # a value's length is known when it is encoded: that ends with the first that has no room
    other = room.person(encoder=encoder, rules=OutboxRules(1_200_000))
    encoder.encoded = 0
    assert other.hear("public:a", Position(epoch, 0)).recovered is False
    assert encoder.encoded < 25


def test_one_answer_of_history_is_about_a_mebibyte():
    room = Room(config(public(history_size=100)))
    for _ in range(50):
        room.hub.publish(b"public:a", "x" * 60_000)
    (page,) = room.person().ask(AskHistory(channel="public:a"))
    assert len(page.messages) == 2**20 // 60_300
    assert page.messages[-1].offset == 50


def test_history_is_paged():
    room = Room(config(public(history_size=10), public("none")))
    person = room.person()
    for number in range(12):
        room.hub.publish(b"public:a", number)

    def ask(**more) -> History:
        (page,) = person.ask(AskHistory(channel="public:a", ref=1, **more))
        assert isinstance(page, History)
        assert (page.channel, page.offset, page.ref) == ("public:a", 12, 1)
        return page

    page = ask()
    assert [(each.data, each.offset, each.epoch) for each in page.messages] == [
        (number, number + 1, page.epoch) for number in range(2, 12)
    ]
    assert [each.data for each in ask(limit=2).messages] == [10, 11]
    assert [each.data for each in ask(since=Position(page.epoch, 5), limit=2).messages] == [5, 6]
    assert ask(since=Position(page.epoch, 12)).messages == []
    answer = error(person.ask(AskHistory(channel="none:a")))
    assert (answer.code, "hub.namespace.1.history_size" in answer.message) == ("unsupported", True)


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_direct_message_that_reaches_nobody_is_told():
    room = Room()
    one, two = room.person(name="one"), room.person()
    assert two.ask(SendDirect(to="name:one", data="x", ref=1)) == [Ok(ref=1, delivered=1)]
    assert one.heard() == [Direct(data="x", from_=two.session.id)]
    answer = error(two.ask(SendDirect(to="name:nobody", data="x", ref=2)))
    assert (answer.code, answer.message) == ("not-found", "cannot send to 'name:nobody': no such session is here")


def test_a_broadcast_reaches_all_but_its_sender():
    room = Room()
    one, two = room.person(), room.person()
    assert one.ask(SendBroadcast(data="x", ref=1)) == [Ok(ref=1, delivered=1)]
    assert two.heard() == [Broadcast(data="x", from_=one.session.id)]


def test_the_application_is_an_echo_unless_told_otherwise():
    person = Room().person()
    assert person.ask(Text(text="hi")) == [TextEvent(text="hi")]
    assert person.ask(Binary(data64=b"\x00\xff", ref=1)) == [BinaryEvent(data64=b"\x00\xff"), Ok(ref=1)]
    room = Room(config(application="token"))
    assert error(room.person().ask(Text(text="hi"))).message == (
        "cannot send to the application: it is allowed to tokens only (hub.application)"
    )


def test_ping_is_answered_and_pong_is_not():
    person = Room().person()
    assert person.ask(Ping(ts=5, ref=1)) == [Pong(ts=5, ref=1)]
    assert person.ask(Pong(ts=5)) == []


def test_close_ends_the_stay():
    room = Room()
    person = room.person(b"public:a")
    secret = person.hello().resume
    assert person.ask(Close(code=1001, reason="bye")) == [Close(code=1000, reason="bye")]
    assert room.hub.sessions == {}
    assert room.person().hello(resume=secret).session == person.session.id


def test_what_could_not_be_read_is_refused():
    person = Room().person()
    refuse = person.room.hub.refuse
    refuse(person.session, ProtocolError("cannot read it", close=CloseCode.INVALID), 7)
    refuse(person.session, ProtocolError("cannot take it", close=CloseCode.TOO_LARGE))
    refuse(person.session, ProtocolError("cannot"))
    assert person.heard() == [
        Error(code="invalid", message="cannot read it", ref=7),
        Error(code="too-large", message="cannot take it"),
        Error(code="invalid", message="cannot"),
    ]
    assert (person.session.messages_in, person.session.refused) == (3, 3)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_operations_a_second():
    room = Room(config(messages_per_second=2, burst=3))
    person = room.person()
    answers = [person.ask(Ping(ts=number, ref=number))[0] for number in range(5)]
    assert [type(each) for each in answers] == [Pong, Pong, Pong, Error, Error]
    assert (answers[3].code, answers[3].ref) == ("rate", 3)
    assert answers[3].message == "cannot do more than 2 operations a second (hub.messages_per_second)"
    assert person.session.refused == 2
    assert person.ask(Pong(ts=1)) == []
    room.now += 0.5
    assert [type(person.ask(Ping(ts=1))[0]) for _ in range(2)] == [Pong, Error]
    assert isinstance(room.person().ask(Ping(ts=1))[0], Pong)  # another session has its own
    assert person.closed == []
    person.ask(Close())
    assert person.closed


def test_bytes_a_second():
    room = Room(config(bytes_per_second=100))
    person = room.person()
    assert isinstance(person.ask(Ping(ts=1), 60)[0], Pong)
    assert "100 bytes a second" in error(person.ask(Ping(ts=1), 60)).message
    room.now += 0.25
    assert isinstance(person.ask(Ping(ts=1), 60)[0], Pong)
    room.now += 10
    assert isinstance(person.ask(Ping(ts=1), 1000)[0], Pong)  # above a second's worth: it takes a full bucket, and more
    room.now += 9
    assert error(person.ask(Ping(ts=1), 1)).code == "rate"


def test_a_clock_that_is_set_back_refuses_nobody_for_longer():
    room = Room(config(messages_per_second=1))
    person = room.person()
    assert isinstance(person.ask(Ping(ts=1))[0], Pong)
    room.now -= 3600
    assert error(person.ask(Ping(ts=1))).code == "rate"
    room.now += 1
    assert isinstance(person.ask(Ping(ts=1))[0], Pong)


def test_garbage_is_paced_and_not_answered_each_time():
    room = Room(config(messages_per_second=2, burst=3))
    person = room.person()
    for number in range(1000):
        room.hub.refuse(person.session, ProtocolError("bad"), number)
    assert [(each.code, each.ref) for each in person.heard()] == [
        *(("invalid", n) for n in range(3)),
        ("rate", 3),
    ]
    assert (person.session.messages_in, person.session.refused) == (1000, 1000)
    assert error(person.ask(Ping(ts=1, ref=1))).code == "rate"  # the same buckets
    room.now += 1
    for _ in range(5):
        room.hub.refuse(person.session, ProtocolError("bad"))
    assert [each.code for each in person.heard()] == ["invalid", "invalid", "rate"]


def test_garbage_and_pongs_pay_for_their_bytes():
    room = Room(config(bytes_per_second=100))
    person = room.person()
    for _ in range(5):
        assert person.ask(Pong(ts=1), 20) == []
    for _ in range(5):
        room.hub.refuse(person.session, ProtocolError("bad"), size=20)
        room.hub.handle(person.session, Pong(ts=1), 20)
    assert [each.code for each in person.heard()] == ["rate"]
    assert error(person.ask(Ping(ts=1, ref=1), 20)).code == "rate"
    room.now += 1
    assert person.ask(Pong(ts=1), 20) == []


def test_a_namespaces_rate_is_each_sessions_own():
    room = Room(config(public(rate=1, burst=2), public("free")))
    one, two = room.person(), room.person()
    for person in (one, two):
        answers = [person.ask(Publish(channel=f"public:{n}", data="x", ref=n))[0] for n in range(3)]
        assert [type(each) for each in answers] == [Ok, Ok, Error]
        assert "takes 1 messages a second of a session (hub.namespace.0.rate)" in answers[2].message
    assert one.ask(Publish(channel="free:a", data="x", ref=1)) == [Ok(ref=1, delivered=0)]
    room.hub.publish(b"public:a", "x", sender=one.session)  # the server side has no rate
    assert room.hub.info().namespaces[0].refused == 2


def test_what_was_refused_costs_no_rate():
    room = Room(config(Namespace(name="public", publish="token", rate=1)))
    person = room.person()
    for _ in range(5):
        assert error(person.ask(Publish(channel="public:a", data="x"))).code == "denied"


channels = st.sampled_from(["public:a", "team:a", "", "x" * 300, "nowhere:x", "ü"])
data = st.one_of(
    st.text(max_size=20), st.integers(), st.none(), st.lists(st.integers(), max_size=3), st.just("x" * 100)
)
refs = st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3))
positions = st.one_of(st.none(), st.builds(Position, st.text(max_size=5), st.integers(0, 2**53 - 1)))
requests = st.one_of(
    st.builds(
        Hello,
        version=st.sampled_from([1, "1", 2, ""]),
        name=st.one_of(st.none(), st.text(max_size=5)),
        token=st.one_of(st.none(), st.just(SECRET), st.text(max_size=3)),
        tags=st.one_of(st.none(), st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2)),
        resume=st.one_of(st.none(), st.text(max_size=40)),
        ref=refs,
    ),
    st.builds(Subscribe, channel=channels, recover=positions, ref=refs),
    st.builds(Unsubscribe, channel=channels, ref=refs),
    st.builds(Publish, channel=channels, data=data, ref=refs, priority=st.integers(0, 255), ephemeral=st.booleans()),
    st.builds(SendDirect, to=st.sampled_from(["", "name:", "tag:", "tag:=", "x", "name:a"]), data=data, ref=refs),
    st.builds(SendBroadcast, data=data, ref=refs),
    st.builds(Text, text=st.text(max_size=5), ref=refs),
    st.builds(ListClients, channel=st.one_of(channels, st.just(messages.UNSET)), ref=refs),
    st.builds(AskPresence, channel=channels, ref=refs),
    st.builds(AskHistory, channel=channels, since=positions, limit=st.one_of(st.none(), st.integers(0, 2**31 - 1))),
    st.builds(Ping, ts=st.integers(0, 9), ref=refs),
    st.builds(Pong, ts=st.integers(0, 9)),
)


@given(st.lists(requests, max_size=20))
@settings(max_examples=150, deadline=None)
def test_whatever_a_client_asks_it_is_answered_and_stays(asked):
    room = Room(
        config(
            public(history_size=3, max_message=50),
            Namespace(name="team"),
            tokens=[Token(name="t", secret=SECRET, subscribe=["*"], publish=["team:*"])],
            max_subscriptions=2,
        )
    )
    person = room.person()
    for request in asked:
        events = person.ask(request)
        answers = [event for event in events if getattr(event, "ref", None) is not None]
        if getattr(request, "ref", None) is not None:
            assert answers
            assert all(answer.ref == request.ref for answer in answers)
    assert person.closed == []
    assert person.session.messages_in == len(asked)
