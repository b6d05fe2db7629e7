"""Publish operations read as rows, and written as rows: the same as each by itself, whatever a client sends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire import framing, messages, rows, websocket
from netd.wire.messages import Message, Ok, Publish, channel_fields, channel_of, data_fields, data_of
from netd.wire.rows import Row, read

if TYPE_CHECKING:
    from netd.wire.messages import Format

FORMATS: list[Format] = ["json", "messagepack"]
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(['"', "\\", "\n", "\x00", "é", "a" * 300]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, width=32), TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
).filter(lambda value: value not in (float("inf"), float("-inf")))
CHANNELS = st.sampled_from(["a", "public:b", "é", "é" * 200, "", "x" * 256])


def maps(format: Format) -> st.SearchStrategy[dict[str, Any]]:
    """Operations, most of them publishes that could stand in a row, as clients would send them, right or wrong."""
    binary: Any = st.binary(max_size=4) if format == "messagepack" else st.sampled_from(["", "aGk=", "/w==", "?"])
    publish: Any = st.fixed_dictionaries(
        {"type": st.just("publish"), "channel": CHANNELS, "data": VALUES},
        optional={"ref": st.one_of(st.integers(0, 9), st.text(max_size=2), st.none())},
    )
    odd: Any = st.fixed_dictionaries(
        {"type": st.sampled_from(["publish", "publish", "broadcast", "ping", "subscribe", "", "none"])},
        optional={
            "channel": CHANNELS,
            "channel64": binary,
            "data": VALUES,
            "data64": binary,
            "priority": st.sampled_from([128, 0, 300]),
            "ephemeral": st.sampled_from([True, False, 1]),
            "ref": st.sampled_from([1, 2.5, "r" * 129]),
            "ts": st.just(1),
            "new": st.just({"x": [1]}),
        },
    )
    return st.one_of(publish, publish, publish, odd)


def payloads(format: Format) -> st.SearchStrategy[list[bytes]]:
    def packed(value: dict[str, Any], how: int) -> bytes:
        if format == "messagepack":
            return msgspec.msgpack.encode(value)
        if how == 1:
            return json.dumps(value, indent=1).encode()
        if how == 2:
            return json.dumps(dict(reversed(value.items())), ensure_ascii=False).encode(errors="replace")
        return msgspec.json.encode(value)

    broken = st.sampled_from([b"", b"{", b"[]", b'"a"', b"\xff", b'{"type":"publish","channel":"a","data":1e999}'])
    # the same operation several times over, so that rows come about
    one = st.builds(packed, maps(format), st.sampled_from([0, 0, 1, 2])) | broken
    runs = st.tuples(one, st.integers(1, 4)).map(lambda run: [run[0]] * run[1])
    return st.lists(runs, min_size=1, max_size=8).map(lambda found: [each for run in found for each in run])


def told(found: Any) -> Any:
    """What is to be known of a request."""
    if isinstance(found, ProtocolError):
        return str(found), found.close
    if isinstance(found, Publish):
        data = data_of(found)
        return channel_of(found), type(data), data, found.ref, found.ephemeral, found.priority
    return found


def by_itself(payload: bytes, format: Format) -> Any:
    try:
        return messages.decode_request(payload, format)
    except ProtocolError as error:
        return error


@pytest.mark.parametrize("format", FORMATS)
@given(st.data())
def test_rows_are_what_each_is_by_itself(format: Format, data: st.DataObject):
    said = data.draw(payloads(format))
    seen: list[Any] = []
    wire: list[bytes] = []
    for found, payload in read(said, format):
        if isinstance(found, Row):
            requests = list(found.requests())
            assert [size for _, size in requests] == list(map(len, found.wire))
            assert len({type(data_of(request)) in (str, bytes) for request, _ in requests}) == 1
            assert found.payloads == [
                data
                if isinstance(data, bytes)
                else data.encode()
                if isinstance(data, str)
                else msgspec.json.encode(data)
                for data in found.data
            ]
            seen += [told(request) for request, _ in requests]
            wire += found.wire
        else:
            seen.append(told(found))
            wire.append(payload)
    assert repr(seen) == repr([told(by_itself(payload, format)) for payload in said])
    assert wire == said
    for payload in said:
        alone = rows.read_one(payload, format)
        only = told(next(alone.requests())[0] if isinstance(alone, Row) else alone)
        assert repr(only) == repr(told(by_itself(payload, format)))


# what no encoder writes, and clients may send: fields twice, escapes in keys, numbers at their ends, lone surrogates
KEYS = ["type", "channel", "data", "ref", "data64", "channel64", "ephemeral", "priority", "new", "Type", ""]
JSON_KEYS = [*(f'"{key}"' for key in KEYS), '"\\u0074ype"', '"d\\u0061ta"', '"\\ud800"']
JSON_VALUES = [
    *(
        '"publish"',
        '"ping"',
        '"a"',
        '"\\u0061"',
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\xc3\xa9"',
        '"\xff"',
        '"\x01"',
        '"aGk="',
    ),
    *("null", "true", "1", "1.0", "-0", "-0.0", "1e999", "NaN", "01", "tru", " 1 ", "1" * 400, "9007199254740992"),
    *("18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809"),
    *("[" * depth + "]" * depth for depth in (1, 64, 65, 66, 3000)),
    *('{"a":1,"a":2}', '{"":{"":[]}}', '{"a":NaN}', "[" + "0," * 16383 + "0]", "[" + "0," * 16384 + "0]"),
    *(f'"{"r" * length}"' for length in (0, 128, 129)),
]
JSON_ENDS = ["}", "}", "}", " }\n", "}x", ",}", ""]
PACKED_KEYS = [*map(msgspec.msgpack.encode, KEYS), b"\xd9\x04data", b"\xc4\x04data", b"\x01", b"\x91\x01"]
PACKED_VALUES = [
    *map(
        msgspec.msgpack.encode,
        ["publish", "a", "", None, True, 1, 1.5, float("nan"), 2**53, 2**64 - 1, b"a", b"", "r" * 129],
    ),
    *(
        b"\xd9\x01a",
        b"\xdb\0\0\0\x01a",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\xd4\x01a",
        b"\xd6\xff\0\0\0\x01",
        b"\xc1",
        b"\xc4\x05ab",
    ),
    *(b"\x91" * depth + b"\x90" for depth in (0, 63, 64, 65, 3000)),
    *(b"\x82\xa1a\x01\xa1a\x02", b"\x81\x01\x01", b"\x81\x91\x01\x01", b"\x81\xc4\x01a\x01", b"\xdd\0\0\0\x01\x01"),
    *(b"\xdc" + count.to_bytes(2, "big") + bytes(count) for count in (16384, 16385)),
]


def as_json(fields: list[tuple[str, str]], end: str) -> bytes:
    return ("{" + ",".join(f"{key}:{value}" for key, value in fields) + end).encode("latin-1")


def as_messagepack(fields: list[tuple[bytes, bytes]], end: str) -> bytes:
    head = bytes([0x80 | len(fields)]) if end == "}" else b"\xdf" + len(fields).to_bytes(4, "big")
    return head + b"".join(key + value for key, value in fields) + (b"x" if end == "}x" else b"")


@pytest.mark.parametrize(
    ("format", "written", "keys", "values", "encode"),
    [
        ("json", as_json, JSON_KEYS, JSON_VALUES, lambda value: msgspec.json.encode(value).decode()),
        ("messagepack", as_messagepack, PACKED_KEYS, PACKED_VALUES, msgspec.msgpack.encode),
    ],
)
@given(st.data())
def test_what_follows_in_a_row_is_read_no_other_way(
    format: Format, written: Any, keys: Any, values: Any, encode: Any, data: st.DataObject
):
    usual = {"type": "publish", "channel": "a", "data": data.draw(st.sampled_from(["x", 1])), "ref": 1}
    given_fields = [
        (encode(key), encode(usual[key])) for key in list(usual)[: data.draw(st.sampled_from([2, 3, 3, 4]))]
    ]
    odd = st.tuples(st.sampled_from(keys), st.sampled_from(values)) | st.sampled_from(given_fields)
    fields = data.draw(st.permutations(given_fields + data.draw(st.lists(odd, max_size=3))))
    payload = written(fields, data.draw(st.sampled_from(JSON_ENDS)))
    first = written([*given_fields, *([(encode("data"), encode("x"))] if len(given_fields) == 2 else [])], "}")
    said = [first, payload, first, payload, payload]
    seen: list[Any] = []
    for found, _ in read(said, format):
        seen += [told(request) for request, _ in found.requests()] if isinstance(found, Row) else [told(found)]
    assert repr(seen) == repr([told(by_itself(each, format)) for each in said])


def publish(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "publish", "channel": "a", "data": f"{number}", **more}


def lengths(*operations: dict[str, Any], format: Format = "json") -> list[int]:
    """How many stand in each row; 0: a request by itself."""
    encode = msgspec.json.encode if format == "json" else msgspec.msgpack.encode
    return [
        len(found) if isinstance(found, Row) else 0 for found, _ in read([encode(each) for each in operations], format)
    ]


@pytest.mark.parametrize("format", FORMATS)
def test_what_stands_in_one_row(format: Format):
    one, two, three = (publish(number) for number in range(3))
    assert lengths(one, two, three, format=format) == [3]
    assert lengths(one, {"type": "ping", "ts": 1}, two, three, one, format=format) == [1, 0, 3]
    assert lengths(one, two | {"channel": "b"}, three | {"channel": "b"}, one, format=format) == [1, 2, 1]
    assert lengths(one, two | {"ref": 1}, three | {"ref": "x"}, one, format=format) == [1, 2, 1]
    assert lengths(one, two | {"ephemeral": True}, three | {"ephemeral": True}, one, format=format) == [1, 2, 1]
    assert lengths(one | {"ephemeral": True}, two, three, format=format) == [1, 2]
    assert lengths(one, two | {"priority": 1}, three | {"priority": 128}, format=format) == [1, 0, 1]
    assert lengths(one, two | {"data": 1}, three | {"data": [None]}, one, format=format) == [1, 2, 1]
    assert lengths(one, two | {"new": 1}, three, format=format) == [3]
    assert lengths(one, {}, two, three, format=format) == [1, 0, 2]
    binary = publish(1) | {"data": b"\xff"}
    assert lengths(binary, binary, one, format="messagepack") == [2, 1]
    del one["data"]
    assert lengths(one | {"data64": b"\xff"}, one | {"data64": b""}, format=format) == [2]


def test_rows_are_bounded():
    one = msgspec.json.encode(publish(1))
    found = [len(row) for row, _ in read([one] * (2 * rows.MAX_ROW + 1), "json") if isinstance(row, Row)]
    assert found == [rows.MAX_ROW, rows.MAX_ROW, 1]
    large = msgspec.json.encode(publish(1, data="x" * (rows.MAX_BYTES // 2)))
    huge = msgspec.json.encode(publish(1, data="x" * rows.MAX_BYTES))
    said = [one, large, large, huge, huge, one, one]
    found = [len(row) for row, _ in read(said, "json") if isinstance(row, Row)]
    assert found == [2, 1, 1, 1, 2]
    assert [each for row, _ in read(said, "json") if isinstance(row, Row) for each in row.wire] == said


def test_a_type_has_to_be_there_in_a_row_too():
    first = b'{"type":"publish","channel":"a","data":1}'
    for other in (b'{"channel":"a","data":1}', b'{"type":"","channel":"a","data":1}', b'{"type":"","ref":1}'):
        assert [isinstance(found, ProtocolError) for found, _ in read([first, other, first], "json")] == [
            False,
            True,
            False,
        ]


def test_messagepack_that_would_be_slow_to_decode_is_refused_in_a_row_too():
    keys = b"".join(b"\x91" + msgspec.msgpack.encode(number) + b"\xc0" for number in range(2000))
    about = b"\x83\xa4type\xa7publish\xa7channel\xa1a\xa4data"
    one, slow = about + b"\xa1x", about + b"\xde" + (2000).to_bytes(2, "big") + keys
    (row, _), (error, _) = read([one, slow], "messagepack")
    assert isinstance(row, Row)
    assert isinstance(error, ProtocolError)
    assert "a key that is not text" in str(error)


KINDS: list[Any] = [
    (str, TEXTS),
    (bytes, st.binary(max_size=5)),
    (None, VALUES.filter(lambda value: not isinstance(value, str))),
]
NAMES = st.sampled_from([b"a", b"public:b", "é".encode(), b"\xff", b'"', b"0", b"data"])


@pytest.mark.parametrize(("kind", "data"), KINDS)
@pytest.mark.parametrize("format", FORMATS)
@given(st.data())
def test_messages_of_a_row_are_written_as_each_by_itself(format: Format, kind: Any, data: Any, draw: st.DataObject):
    carried = draw.draw(st.lists(data, min_size=1, max_size=5))
    channel, sender = draw.draw(NAMES), draw.draw(st.sampled_from([None, "0", "3f0c", '"']))
    epochs = st.sampled_from(["0", "x7", '"1'])
    each_place = st.tuples(epochs, st.integers(0, 2**53 - 1))
    places = draw.draw(st.none() | st.lists(each_place, min_size=len(carried), max_size=len(carried)))
    alone = [
        messages.encode(
            Message(from_=sender, offset=offset, epoch=epoch, **channel_fields(channel), **data_fields(each)), format
        )
        for each, (epoch, offset) in zip(carried, places or [(None, None)] * len(carried), strict=True)
    ]
    said = rows.written(format, Row(channel, kind, carried, [b""] * len(carried)), sender, places)
    assert said.payloads() == alone
    assert said.framed(framing.frame, framing.frames) == b"".join(map(framing.frame, alone))

    def text(payload: bytes) -> bytes:
        return websocket.frame(websocket.TEXT, payload)

    assert said.framed(text, lambda all: websocket.frames(websocket.TEXT, all)) == b"".join(map(text, alone))


@pytest.mark.parametrize("format", FORMATS)
def test_answers_are_written_as_each_by_itself(format: Format):
    refs: list[int | str] = [0, 1, -(2**53) + 1, 2**53 - 1, "", '"', "\n", "é"]
    delivered: list[int | None] = [0, 0, 1, 1, None, 300, 70_000, 0]
    for counts in (delivered, [7] * len(refs), [None] * len(refs)):
        assert rows.answers(format, refs, counts).payloads() == [
            messages.encode(Ok(ref=ref, delivered=count), format) for ref, count in zip(refs, counts, strict=True)
        ]
