"""The workers' protocol: the examples of its specification, what is refused, and that no bytes do harm."""

from __future__ import annotations

import ast
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire import workers
from netd.wire.workers import (
    Answer,
    Client,
    Done,
    Hello,
    HistoryPage,
    Publish,
    Said,
    Send,
    SessionState,
    decode_from_worker,
    decode_to_worker,
    encode,
)


def examples() -> list[tuple[str, dict]]:
    found, sign = [], ""
    lines: list[str] = []
    for line in (workers.__doc__ or "").partition("EXAMPLES")[2].splitlines()[2:]:
        text = line.strip()
        if text[:2] in ("> ", "< "):
            if lines:
                found.append((sign, ast.literal_eval("".join(lines))))
            sign, lines = text[0], [text[2:]]
        elif text and lines and not line.startswith("Left"):
            lines.append(text)
        elif lines:
            found.append((sign, ast.literal_eval("".join(lines))))
            lines = []
    return found


EXAMPLES = examples()


@pytest.mark.parametrize(("sign", "example"), EXAMPLES, ids=[example["type"] for _, example in EXAMPLES])
def test_the_examples_of_the_specification_read_and_write(sign, example):
    decode = decode_from_worker if sign == ">" else decode_to_worker
    message = decode(msgspec.msgpack.encode(example))
    written = encode(message)
    assert len(written) == 4 + int.from_bytes(written[:4], "big")
    assert decode(written[4:]) == message
    assert msgspec.msgpack.decode(written[4:]) == example


def test_every_message_has_an_example():
    said = {example["type"] for _, example in EXAMPLES}
    kinds = set()
    for union in (workers.FromWorker, workers.ToWorker):
        kinds |= {kind.__struct_config__.tag for kind in union.__args__}
    assert kinds == said


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"type": "send", "session": "a", "data": {"no": 1}}, "neither text nor bytes"),
        ({"type": "send", "session": "a", "data": None}, "neither text nor bytes"),
        ({"type": "publish", "channel": "text", "data": 1}, "channel"),
        ({"type": "publish", "channel": b"", "data": 1}, "channel"),
        ({"type": "publish", "channel": b"a" * 256, "data": 1}, "channel"),
        ({"type": "publish", "channel": b"a", "data": {1: 2}}, "not text"),
        ({"type": "publish", "channel": b"a", "data": float("inf")}, "infinity"),
        ({"type": "publish", "channel": b"a", "data": 1, "priority": 256}, "priority"),
        ({"type": "publish", "channel": b"a", "data": 1, "ref": -1}, "ref"),
        ({"type": "set_token", "session": "a", "token": b"x" * 8193}, "token"),
        ({"type": "close", "session": "a", "code": 12}, "code"),
        ({"type": "done", "n": [0]}, "n"),
        ({"type": "done", "n": [1] * 5000}, "n"),
        ({"type": "response", "n": 1, "response": {"status": 101}}, "status"),
        ({"type": "hello", "version": 1, "name": "", "pid": 1, "handlers": []}, "name"),
        ({"type": "hello", "version": 1, "name": "a", "pid": 1, "handlers": ["other"]}, "handlers"),
        ({"type": "hello", "version": 1, "name": "a", "pid": 1, "handlers": [], "sessions": 0}, "sessions"),
        ({"type": "welcome"}, "welcome"),
        ({}, "type"),
        ([], "array"),
    ],
)
def test_what_a_worker_may_not_say_is_refused(message, why):
    with pytest.raises(ProtocolError, match=why) as refused:
        decode_from_worker(msgspec.msgpack.encode(message))
    assert str(refused.value).startswith("cannot read the message: ")
    assert refused.value.origin == "remote"


def test_what_nests_too_deep_is_refused():
    deep = b"\x91" * 100 + b"\xc0"
    with pytest.raises(ProtocolError):
        decode_from_worker(msgspec.msgpack.encode({"type": "broadcast", "data": msgspec.Raw(deep)}))
    with pytest.raises(ProtocolError):
        decode_from_worker(b"\x91" * 100_000)


def test_unknown_fields_are_passed_over():
    message = {"type": "pong", "n": 3, "later": {"more": [1]}}
    assert decode_from_worker(msgspec.msgpack.encode(message)) == workers.Pong(3)


def test_answers_take_the_values_of_verbs():
    for value in (
        None,
        True,
        7,
        [Client("a", "b", "framed", {"k": "v"})],
        HistoryPage("x7", 3, [Said({"a": 1}, "3f0c", 3, 1.0), Said(b"\xff")]),
        SessionState("3f0c", token=b"t"),
    ):
        answer = decode_to_worker(encode(Answer(1, value))[4:])
        assert answer.value == msgspec.to_builtins(value, builtin_types=(bytes,))


def test_what_has_no_form_is_our_own_fault():
    with pytest.raises(ProtocolError) as refused:
        encode(Publish(channel=b"a", data=object()))
    assert refused.value.origin == "local"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    for decode in (decode_from_worker, decode_to_worker):
        with suppress(ProtocolError):
            assert decode(data) is not None


@given(st.text() | st.binary(), st.integers(0, 255), st.booleans())
def test_what_is_sent_arrives(data, priority, ephemeral):
    message = Send(session="a", data=data, priority=priority, ephemeral=ephemeral)
    assert decode_from_worker(encode(message)[4:]) == message


def test_defaults_are_left_out():
    assert msgspec.msgpack.decode(encode(Hello(1, "a", 2, []))[4:]) == {
        "type": "hello",
        "version": 1,
        "name": "a",
        "pid": 2,
        "handlers": [],
    }
    assert len(encode(Done([1]))) < 20
