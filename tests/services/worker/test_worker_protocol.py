"""A worker's connection without a connection: however its bytes are cut, and whatever they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import encode as msgpack

from netd.services.worker.config import WorkerConfig
from netd.services.worker.protocol import Conversation
from netd.wire.framing import frame
from netd.wire.workers import Done, Hello, Leave, Message, Ping, Pong, Publish, Send, encode

HELLO = Hello(1, "test", 1, ["message"])
CONFIG = WorkerConfig(ping=5.0, hang=10.0, hello_timeout=10.0, max_frame=64 * 1024)


def begun(now: float = 0.0) -> Conversation:
    conversation = Conversation(CONFIG, now)
    assert conversation.receive(encode(HELLO)) == [HELLO]
    return conversation


def test_messages_come_as_they_were_sent_and_pongs_stay():
    conversation = begun()
    said = [Send(session="a", data="x"), Done([1, 2]), Leave()]
    data = b"".join(map(encode, [said[0], Pong(0), *said[1:]]))
    assert conversation.receive(data) == said
    assert conversation.fault is None


@given(st.lists(st.integers(1, 40), max_size=30))
def test_bytes_may_be_cut_anywhere(cuts):
    said: list[Any] = [HELLO, Send(session="a", data=b"\xff"), Publish(channel=b"c", data={"k": [1, None]}), Done([3])]
    data = b"".join(map(encode, said))
    conversation = Conversation(CONFIG, 0.0)
    found: list[Any] = []
    for cut in cuts:
        found += conversation.receive(data[:cut])
        data = data[cut:]
    found += conversation.receive(data)
    assert found == said
    assert conversation.fault is None


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_fault_or_in_nothing(data):
    conversation = begun()
    conversation.receive(data)
    if conversation.fault is not None:
        assert conversation.fault.code in ("invalid", "too-large")
        assert not conversation.receive(encode(Leave()))


@given(st.binary(max_size=300))
def test_strangers_too(data):
    conversation = Conversation(CONFIG, 0.0)
    assert conversation.receive(data) == []


def test_what_came_before_a_fault_counts():
    conversation = begun()
    send = Send(session="a", data="x")
    assert conversation.receive(encode(send) + frame(b"\xc1") + encode(send)) == [send]
    assert conversation.fault.code == "invalid"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (encode(Leave()), "invalid"),
        (encode(Pong(1)), "invalid"),
        (encode(Hello(9, "x", 1, [])), "version"),
        (frame(msgpack({"type": "hello", "version": 9})), "version"),  # of a shape that only version 9 knows
        (frame(msgpack({"type": "hello", "version": 9, "name": 7, "handlers": {"future": True}})), "version"),
        (frame(msgpack({"type": "hello", "version": 1})), "invalid"),
        (frame(msgpack({"type": "hello", "version": "nine"})), "invalid"),
        (frame(msgpack({"type": "send", "version": 9})), "invalid"),
        (frame(b"x" * 17_000), "too-large"),
    ],
)
def test_the_hello_comes_first_and_is_small(first, code):
    conversation = Conversation(CONFIG, 0.0)
    assert conversation.receive(first) == []
    assert conversation.fault.code == code


def test_a_frame_of_a_worker_may_be_larger_than_a_strangers():
    conversation = begun()
    assert conversation.receive(encode(Send(session="a", data="x" * 60_000)))
    conversation.receive(b"\x00\x01\x00\x01")
    assert conversation.fault.code == "too-large"


def test_what_is_too_long_is_not_written():
    conversation = begun()
    assert conversation.write(Message(1, "a", "x" * 65_536)) is None
    assert conversation.write(Message(1, "a", "x" * 60_000)) is not None


def test_pings_are_sent_and_one_without_an_answer_is_the_end():
    conversation = begun(0.0)
    assert conversation.look(1.0) is None
    assert conversation.look(5.0) == Ping(1)
    assert conversation.look(6.0) is None
    assert conversation.look(10.0) == Ping(2)
    conversation.receive(encode(Pong(1)))
    assert conversation.look(19.0) == Ping(3)
    assert conversation.look(20.5) is None
    assert (conversation.fault.code, conversation.fault.retry) == ("hung", True)


def test_an_answer_stands_for_those_before_it():
    conversation = begun(0.0)
    assert conversation.look(5.0) == Ping(1)
    assert conversation.look(10.0) == Ping(2)
    conversation.receive(encode(Pong(2)))
    conversation.look(19.9)
    assert conversation.fault is None


def test_who_says_nothing_is_not_waited_for():
    conversation = Conversation(CONFIG, 0.0)
    assert conversation.look(10.0) is None
    assert conversation.fault is None
    conversation.look(10.1)
    assert "hello" in conversation.fault.reason
