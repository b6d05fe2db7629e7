"""The worker's end of the protocol, sans-IO: whatever comes, however it is cut."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import DaemonUnreachable, NetdError, ProtocolError
from netd.wire import workers as wire
from netd.wire.framing import FrameDecoder, FrameLimits, frame
from netd.worker.conversation import Conversation
from tests.support.workerdaemon import WELCOME

HELLO = wire.Hello(version=1, name="x", pid=1, handlers=["message"], sessions=4, requests=4)
STATE = wire.SessionState(id="a")


def greeted() -> Conversation:
    conversation = Conversation(HELLO)
    assert conversation.receive(wire.encode(WELCOME)) == [WELCOME]
    said(conversation)
    return conversation


def said(conversation: Conversation) -> list[wire.FromWorker]:
    payloads = FrameDecoder(FrameLimits(2**30)).receive(conversation.take())
    return [wire.decode_from_worker(payload) for payload in payloads]


def test_it_begins_with_a_hello():
    conversation = Conversation(HELLO)
    assert said(conversation) == [HELLO]
    assert conversation.take() == b""


def test_what_is_over_is_said_once_behind_what_was_said_before():
    conversation = greeted()
    conversation.receive(b"".join(wire.encode(wire.Message(n, "a", "x")) for n in (1, 2, 3)))
    conversation.finish(1)
    conversation.say(wire.Send(session="a", data="y"))
    conversation.finish(3)
    assert conversation.open == {2}
    assert said(conversation) == [wire.Send(session="a", data="y"), wire.Done([1, 3])]


def test_many_that_are_over_are_as_many_messages_as_it_takes():
    conversation = greeted()
    for n in range(1, 10_001):
        conversation.finish(n)
    assert [len(one.n) for one in said(conversation)] == [4096, 4096, 1808]


def test_what_waits_is_counted_until_it_is_taken():
    conversation = greeted()
    conversation.say(wire.Send(session="a", data="x" * 1000))
    assert conversation.waiting > 1000
    conversation.finish(1)
    before = conversation.waiting
    conversation.respond(2, wire.HttpResponse(body=bytes(1000)))
    assert conversation.waiting == before
    conversation.take()
    assert conversation.waiting == 0


def test_each_is_answered_by_its_number():
    conversation, answers = greeted(), []
    for channel in (b"one", b"two"):
        conversation.say(
            wire.Subscribe(session="a", channel=channel),
            lambda value, error, channel=channel: answers.append((channel, value, error)),
        )
    one, two = said(conversation)
    conversation.receive(wire.encode(wire.Answer(two.ref, True)) + wire.encode(wire.Answer(one.ref, False)))
    assert answers == [(b"two", True, None), (b"one", False, None)]
    with pytest.raises(ProtocolError, match="nobody asked"):
        conversation.receive(wire.encode(wire.Answer(two.ref, True)))


def test_the_end_answers_everybody():
    conversation, answers = greeted(), []
    conversation.say(wire.AskInfo(session="a"), lambda value, error: answers.append(error))
    gone = DaemonUnreachable("cannot")
    conversation.end(gone)
    conversation.end(gone)
    assert answers == [gone]


@given(st.binary(max_size=200), st.booleans())
def test_bytes_of_any_kind_are_messages_or_an_error(data, framed):
    conversation = greeted()
    with suppress(ProtocolError):
        conversation.receive(frame(data) if framed else data)


SCRIPT = [
    WELCOME,
    wire.SessionOpened(1, STATE),
    wire.SessionKnown(wire.SessionState(id="b", token=b"t")),
    wire.Message(2, "a", "x" * 300),
    wire.Request(3, wire.HttpRequest("GET", "/", [(b"a", b"b")])),
    wire.Cancel(3),
    wire.SessionClosed(4, "a", b"t"),
    wire.Drain(1.0),
    wire.Goodbye("drained", "so"),
]


@given(st.lists(st.integers(1, 40), max_size=60))
def test_bytes_may_be_cut_anywhere(cuts):
    data, conversation, found = b"".join(map(wire.encode, SCRIPT)), Conversation(HELLO), []
    for cut in [*cuts, len(data)]:
        piece, data = data[:cut], data[cut:]
        found += conversation.receive(piece)
    assert found == SCRIPT
    assert conversation.goodbye == SCRIPT[-1]


_plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
)


@given(
    st.one_of(
        st.builds(wire.Publish, channel=st.binary(max_size=300), data=_plain, priority=st.integers(-5, 300)),
        st.builds(wire.Send, session=st.text(max_size=200), data=_plain),
        st.builds(wire.CloseSession, session=st.just("a"), code=st.integers(), reason=st.text(max_size=150)),
        st.builds(wire.AskHistory, channel=st.binary(max_size=3), limit=st.integers(-1, 2**70)),
    ),
    st.booleans(),
)
def test_whatever_is_asked_is_understood_or_refused_here(verb, answered):
    conversation = greeted()
    try:
        conversation.say(verb, (lambda value, error: None) if answered else None)
    except NetdError:
        assert conversation.take() == b""
    else:
        (found,) = said(conversation)
        assert type(found) is type(verb)
        assert msgspec.structs.asdict(found).keys() == msgspec.structs.asdict(verb).keys()
