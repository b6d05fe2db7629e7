"""The vocabulary: its specification's own examples, every message in both formats, and payloads that mean harm."""

from __future__ import annotations

import base64
import json
import re
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from netd.errors import ProtocolError
from netd.wire import framing, messages
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
    Joined,
    Left,
    ListClients,
    Message,
    Ok,
    Ping,
    Pong,
    Position,
    Presence,
    Publish,
    Refresh,
    SendBroadcast,
    SendDirect,
    Subscribe,
    Text,
    TextEvent,
    Unsubscribe,
    Welcome,
    channel_fields,
    channel_of,
    data_fields,
    data_of,
    decode_event,
    decode_request,
    encode,
    sniff,
)

FORMATS = ("json", "messagepack")
DECODE = {">": decode_request, "<": decode_event}


# --- the specification -----------------------------------------------------------------------------------------------


def examples() -> list[tuple[str, bytes, str, str]]:
    """(direction, JSON, hex of MessagePack or "", hex of the frame or "") of each example in the specification."""
    found: list[list] = []
    for line in messages.__doc__.splitlines():
        if line.startswith(("    > ", "    < ")):
            found.append([line[4], line[6:].encode(), "", ""])
        elif line.startswith("      = "):
            found[-1][3] = line[8:]
        elif found and re.fullmatch(r"      [0-9a-f ]+", line):
            found[-1][2] += line
    return [tuple(example) for example in found]


EXAMPLES = examples()


@pytest.mark.parametrize(("way", "text", "packed", "framed"), EXAMPLES)
def test_the_specification_says_what_the_code_does(way, text, packed, framed):
    message = DECODE[way](text, "json")
    assert encode(message, "json") == text
    payload = encode(message, "messagepack")
    if packed:
        assert payload == bytes.fromhex(packed)
    assert DECODE[way](payload, "messagepack") == message
    assert (sniff(text), sniff(payload)) == FORMATS
    if framed:
        assert framing.frame(text) == bytes.fromhex(framed)


def test_the_specification_has_an_example_of_every_message():
    shown = {(way, json.loads(text)["type"]) for way, text, _, _ in EXAMPLES}
    for way, union in ((">", messages.Request), ("<", messages.Event)):
        for struct_type in union.__args__:
            tag = struct_type.__struct_config__.tag
            # the two that are the same both ways are shown one way each
            assert (way, tag) in shown or (tag in ("ping", "pong") and ({(">", tag), ("<", tag)} & shown)), (way, tag)
    assert any(packed for _, _, packed, _ in EXAMPLES)
    assert any(framed for _, _, _, framed in EXAMPLES)
    assert len(messages.__doc__.splitlines()) < 150


def test_the_specification_names_every_error_code():
    assert ", ".join(messages.ERROR_CODES) in messages.__doc__


# --- every message, both formats -------------------------------------------------------------------------------------

CHARS = st.characters(exclude_categories=("Cs",))
TEXTS = st.text(CHARS, max_size=30)
SHORT = st.text(CHARS, max_size=128)
EXACT = st.integers(-(2**53) + 1, 2**53 - 1)
COUNTS = st.integers(0, 2**53 - 1)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
NAMES = st.binary(min_size=1, max_size=255) | st.text(CHARS, min_size=1, max_size=60).map(str.encode)
TAGS = st.dictionaries(SHORT, SHORT, max_size=4)
POSITIONS = st.builds(Position, epoch=SHORT, offset=COUNTS)
REF = st.none() | EXACT | SHORT
TS = EXACT | st.floats(-(2.0**53), 2.0**53)
CHANNEL = NAMES.map(channel_fields)
DATA = (VALUES | st.binary(max_size=40)).map(data_fields)
SENT = st.fixed_dictionaries({"priority": st.integers(0, 255), "ephemeral": st.booleans(), "ref": REF})
ANSWER = st.fixed_dictionaries({"ref": REF})
CLIENTS = st.lists(st.builds(Client, session=TEXTS, name=st.none() | TEXTS, transport=TEXTS, tags=st.none() | TAGS))


def made(cls, *parts, **fields):
    """A strategy for `cls` from dictionaries of keywords and from single fields."""
    return st.builds(
        lambda given, *more: cls(**given, **{name: value for part in more for name, value in part.items()}),
        st.fixed_dictionaries(fields),
        *parts,
    )


MESSAGES = made(
    Message,
    CHANNEL,
    DATA,
    from_=st.none() | TEXTS,
    offset=st.none() | COUNTS,
    epoch=st.none() | TEXTS,
    tags=st.none() | TAGS,
)
BOTH_WAYS = {
    Ping: made(Ping, ANSWER, ts=TS, pad=st.none() | TEXTS),
    Pong: made(Pong, ANSWER, ts=TS),
    Close: made(
        Close,
        ANSWER,
        code=st.integers(1000, 4999),
        reason=st.text(CHARS, max_size=123),
        retry_after=st.none() | st.floats(0, 1e9),
    ),
}
REQUESTS = BOTH_WAYS | {
    Hello: made(
        Hello,
        ANSWER,
        version=st.integers(0, 65535) | SHORT,
        name=st.none() | SHORT,
        token=st.none() | TEXTS,
        tags=st.none() | TAGS,
        resume=st.none() | SHORT,
    ),
    Subscribe: made(Subscribe, CHANNEL, ANSWER, recover=st.none() | POSITIONS),
    Refresh: made(Refresh, ANSWER, token=TEXTS),
    Unsubscribe: made(Unsubscribe, CHANNEL, ANSWER),
    Publish: made(Publish, CHANNEL, DATA, SENT),
    SendDirect: made(SendDirect, DATA, SENT, to=st.text(CHARS, min_size=1, max_size=261)),
    SendBroadcast: made(SendBroadcast, DATA, SENT),
    Text: made(Text, SENT, text=TEXTS),
    Binary: made(Binary, SENT, data64=st.binary(max_size=40)),
    ListClients: made(ListClients, CHANNEL | st.just({}), ANSWER),
    AskPresence: made(AskPresence, CHANNEL, ANSWER),
    AskHistory: made(AskHistory, CHANNEL, ANSWER, since=st.none() | POSITIONS, limit=st.none() | COUNTS),
}
EVENTS = BOTH_WAYS | {
    Welcome: made(
        Welcome, session=TEXTS, server=TEXTS, version=TEXTS, heartbeat=st.floats(0, 1e9), resume=st.none() | TEXTS
    ),
    Message: MESSAGES,
    Direct: made(Direct, DATA, from_=st.none() | TEXTS),
    Broadcast: made(Broadcast, DATA, from_=st.none() | TEXTS),
    Joined: made(Joined, CHANNEL, session=TEXTS, name=st.none() | TEXTS),
    Left: made(Left, CHANNEL, session=TEXTS, name=st.none() | TEXTS),
    Clients: made(Clients, ANSWER, clients=CLIENTS),
    Presence: made(Presence, CHANNEL, ANSWER, clients=CLIENTS),
    History: made(History, CHANNEL, ANSWER, epoch=TEXTS, offset=COUNTS, messages=st.lists(MESSAGES, max_size=3)),
    TextEvent: made(TextEvent, text=TEXTS),
    BinaryEvent: made(BinaryEvent, data64=st.binary(max_size=40)),
    Ok: made(
        Ok,
        CHANNEL | st.just({}),
        ANSWER,
        epoch=st.none() | TEXTS,
        offset=st.none() | COUNTS,
        recovered=st.none() | st.booleans(),
        delivered=st.none() | COUNTS,
        expires=st.none() | st.floats(0, 1e9),
    ),
    Error: made(Error, ANSWER, code=TEXTS, message=TEXTS),
}


def test_no_message_was_forgotten_here():
    assert set(REQUESTS) == set(messages.Request.__args__)
    assert set(EVENTS) == set(messages.Event.__args__)


@given(st.one_of(*REQUESTS.values()))
def test_requests_come_back_as_they_were(request):
    for format in FORMATS:
        assert decode_request(encode(request, format), format) == request


@given(st.one_of(*EVENTS.values()))
def test_events_come_back_as_they_were(event):
    for format in FORMATS:
        assert decode_event(encode(event, format), format) == event


def test_a_message_of_one_format_is_the_same_in_the_other():
    """Bin as `data`, which JSON has no word for, is `data64` there."""
    packed = msgspec.msgpack.encode({"type": "publish", "channel": "a", "data": b"\xff"})
    request = decode_request(packed, "messagepack")
    assert data_of(request) == b"\xff"
    event = Message(**channel_fields(channel_of(request)), **data_fields(data_of(request)))
    assert encode(event, "json") == b'{"type":"message","channel":"a","data64":"/w=="}'


def test_bytes_deep_inside_become_base64_text_in_json():
    packed = msgspec.msgpack.encode({"type": "broadcast", "data": {"raw": b"\xff"}})
    assert encode(decode_request(packed, "messagepack"), "json") == b'{"type":"broadcast","data":{"raw":"/w=="}}'


# --- channels and data -----------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=255))
def test_a_channel_is_bytes_and_text_where_it_can_be(name):
    fields = channel_fields(name)
    assert channel_of(Subscribe(**fields)) == name
    assert ("channel" in fields) == (name.decode(errors="replace").encode() == name)


def test_a_text_name_equals_its_utf8_bytes():
    request = decode_request('{"type":"subscribe","channel":"Zürich"}'.encode(), "json")
    assert channel_of(request) == "Zürich".encode()
    raw = base64.b64encode("Zürich".encode()).decode()
    request = decode_request(f'{{"type":"subscribe","channel64":"{raw}"}}'.encode(), "json")
    assert channel_of(request) == "Zürich".encode()


@pytest.mark.parametrize("data", ["text", b"bytes", bytearray(b"x"), memoryview(b"y"), None, 0, [], {"a": [1]}, False])
def test_data_keeps_its_kind(data):
    message = SendBroadcast(**data_fields(data))
    assert data_of(message) == data
    for format in FORMATS:
        assert data_of(decode_request(encode(message, format), format)) == data


def test_null_is_data_and_nothing_is_none():
    request = decode_request(b'{"type":"broadcast","data":null}', "json")
    assert request.data is None
    assert request.data64 is UNSET
    assert data_of(Text("a")) == data_of(TextEvent("a")) == "a"


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "nothing": (b"", "truncated"),
    "no JSON": (b"hello", "malformed"),
    "no map": (b"[]", "Expected `object`, got `array`"),
    "two values": (b'{"type":"ping","ts":1}{}', "trailing"),
    "no type": (b"{}", "missing required field `type`"),
    "another type": (b'{"type":"nope"}', r"Invalid value 'nope' - at `\$.type`"),
    "an event": (b'{"type":"welcome","session":"a","server":"b","version":"c"}', "Invalid value 'welcome'"),
    "a number for a type": (b'{"type":1}', r"Expected `str` - at `\$.type`"),
    "a missing field": (b'{"type":"direct","data":1}', "missing required field `to`"),
    "a number for a channel": (b'{"type":"subscribe","channel":5}', r"got `int` - at `\$.channel`"),
    "null for a channel": (b'{"type":"subscribe","channel":null}', r"got `null` - at `\$.channel`"),
    "no channel": (b'{"type":"subscribe"}', "neither `channel` nor `channel64`"),
    "two channels": (b'{"type":"subscribe","channel":"a","channel64":"YQ=="}', "`channel` and `channel64` are both"),
    "an empty channel": (b'{"type":"subscribe","channel":""}', r"length >= 1 - at `\$.channel`"),
    "a long channel": (b'{"type":"subscribe","channel":"%b"}' % (b"a" * 256), r"length <= 255 - at `\$.channel`"),
    "a channel long in bytes": ('{"type":"subscribe","channel":"%s"}' % ("ü" * 128)).encode(),
    "no base64": (b'{"type":"subscribe","channel64":"a?=="}', r"base64 .* at `\$.channel64`"),
    "no data": (b'{"type":"broadcast"}', "neither `data` nor `data64`"),
    "two data": (b'{"type":"broadcast","data":1,"data64":"YQ=="}', "`data` and `data64` are both"),
    "text for binary": (b'{"type":"binary","data":"YQ=="}', "`data` is not bytes; use `data64`"),
    "a huge integer": (b'{"type":"broadcast","data":[18446744073709551616]}', "64 bits - in `data`"),
    "a longer one": (b'{"type":"broadcast","data":%b}' % (b"1" * 10000), "out of range"),
    "a huge float": (b'{"type":"broadcast","data":1e999}', "out of range"),
    "NaN": (b'{"type":"broadcast","data":NaN}', "malformed"),
    "no UTF-8": (b'{"type":"text","text":"\xff"}', "utf-8"),
    "half a character": (b'{"type":"text","text":"\\ud800"}', "truncated"),
    "too deep": (b'{"type":"broadcast","data":%b%b}' % (b"[" * 65, b"]" * 65), "nests deeper than 64 - in `data`"),
    "endlessly deep": (b'{"type":"broadcast","data":' + b"[" * 100_000, "nests too deep"),
    "endlessly deep elsewhere": (b'{"type":"broadcast","no":' + b'{"a":' * 100_000, "nests too deep"),
    "a priority": (b'{"type":"broadcast","data":1,"priority":256}', r"<= 255 - at `\$.priority`"),
    "a list for a ref": (b'{"type":"list","ref":[]}', r"at `\$.ref`"),
    "a long ref": (b'{"type":"list","ref":"%b"}' % (b"a" * 129), r"length <= 128 - at `\$.ref`"),
    "a ref that JavaScript rounds": (b'{"type":"list","ref":9007199254740993}', r"at `\$.ref`"),
    "many tags": (
        json.dumps({"type": "hello", "version": 1, "tags": {str(i): "" for i in range(33)}}).encode(),
        r"length <= 32 - at `\$.tags`",
    ),
    "a long tag": (
        json.dumps({"type": "hello", "version": 1, "tags": {"a": "x" * 129}}).encode(),
        r"length <= 128 - at `\$.tags",
    ),
    "a long reason": (b'{"type":"close","reason":"%b"}' % (b"x" * 124), r"length <= 123 - at `\$.reason`"),
    "a code": (b'{"type":"close","code":999}', r">= 1000 - at `\$.code`"),
    "a position before the first": (
        b'{"type":"history","channel":"a","since":{"epoch":"e","offset":-1}}',
        r">= 0 - at `\$.since.offset`",
    ),
}
REFUSED["a channel long in bytes"] = (REFUSED["a channel long in bytes"], "`channel` has more than 255 bytes")


@pytest.mark.parametrize(("payload", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused_by_name(payload, why):
    with pytest.raises(ProtocolError, match=f"^cannot read the request: .*{why}") as caught:
        decode_request(payload, "json")
    assert caught.value.close == CloseCode.INVALID
    assert caught.value.origin == "remote"
    assert len(str(caught.value)) < 300


PACKED = {
    "nothing": (b"", "truncated"),
    "an integer": (b"\x01", "Expected `object`, got `int`"),
    "ext": (b"\x82\xa4type\xa9broadcast\xa4data\xd4\x05x", "of type Ext"),
    "a timestamp": (b"\x82\xa4type\xa9broadcast\xa4data\xd6\xff\0\0\0\1", "of type datetime"),
    "NaN": (b"\x82\xa4type\xa9broadcast\xa4data\xcb\x7f\xf8\0\0\0\0\0\0", "NaN and infinity"),
    "NaN for ts": (b"\x82\xa4type\xa4ping\xa2ts\xcb\x7f\xf8\0\0\0\0\0\0", r"at `\$.ts`"),
    "a NaN deep inside": (b"\x82\xa4type\xa9broadcast\xa4data\x91\xca\x7f\x80\0\0", "NaN and infinity"),
    "an integer key": (b"\x82\xa4type\xa9broadcast\xa4data\x81\x01\x01", "a key that is not text - in `data`"),
    "an array for a key": (b"\x82\xa4type\xa9broadcast\xa4data\x81\x91\x01\x01", "a key that is not text"),
    "a map for a key": (b"\x82\xa4type\xa9broadcast\xa4data\x81\x80\x01", "hashable"),
    "bytes for the type": (b"\x81\xa4type\xc4\x04ping", r"got `bytes` - at `\$.type`|Expected `str`"),
    "text for bytes": (b"\x82\xa4type\xa6binary\xa6data64\xa1a", r"got `str` - at `\$.data64`"),
    "no UTF-8": (b"\x82\xa4type\xa4text\xa4text\xa1\xff", "utf-8"),
    "a long promise": (b"\x82\xa4type\xa9broadcast\xa4data\xdd\xff\xff\xff\xff", "truncated"),
    "a longer one": (b"\xdf\xff\xff\xff\xff", "truncated"),
    "endlessly deep": (b"\x82\xa4type\xa9broadcast\xa4data" + b"\x91" * 100_000, "nests deeper than 64"),
    "deeper than we take": (b"\x82\xa4type\xa9broadcast\xa4data" + b"\x91" * 65 + b"\x01", "nests deeper than 64"),
    "a byte that means nothing": (b"\xc1", "malformed"),
    "bytes left over": (b"\x82\xa4type\xa4ping\xa2ts\x01\x01", "trailing"),
}


@pytest.mark.parametrize(("payload", "why"), PACKED.values(), ids=PACKED)
def test_what_is_no_request_in_messagepack(payload, why):
    with pytest.raises(ProtocolError, match=f"^cannot read the request: .*({why})"):
        decode_request(payload, "messagepack")


def test_keys_made_to_collide_are_refused_before_they_are_hashed():
    keys = b"".join(b"\x92\xcf" + struct.pack(">Q", i) + b"\x01\x00" for i in range(1000))
    with pytest.raises(ProtocolError, match="a key that is not text"):
        decode_request(b"\x82\xa4type\xa9broadcast\xa4data\xde\x03\xe8" + keys, "messagepack")


def test_of_a_field_given_twice_the_last_one_counts():
    assert decode_request(b'{"type":"ping","ts":1,"ts":2}', "json") == Ping(2)
    assert decode_request(b"\x83\xa4type\xa4ping\xa2ts\x01\xa2ts\x02", "messagepack") == Ping(2)


def test_unknown_fields_are_passed_over_and_fields_may_stand_anywhere():
    assert decode_request(b'{"new":{"a":[]},"ts":1,"type":"ping"}', "json") == Ping(1)


def test_an_error_quotes_little_and_nothing_that_moves_the_cursor():
    with pytest.raises(ProtocolError) as caught:
        decode_request(json.dumps({"type": "\x1b[2J\n" + "x" * 5000}).encode(), "json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"data": 1}, "channel"), ({"channel": "a"}, "data"), ({"channel": "a", "data": 2**70}, "64 bits")],
)
def test_messages_of_a_history_are_checked_too(fields, why):
    message = {"type": "message"} | fields
    history = {"type": "history", "epoch": "e", "offset": 1, "channel": "a", "messages": [message]}
    with pytest.raises(ProtocolError, match=f"cannot read the event: .*{why}"):
        decode_event(json.dumps(history).encode(), "json")


@pytest.mark.parametrize(
    ("data", "format"),
    [(object(), "json"), (object(), "messagepack"), ({(1,): 2}, "json"), ("\ud800", "json"), (2**70, "messagepack")],
)
def test_what_our_own_code_cannot_say_is_a_local_error(data, format):
    with pytest.raises(ProtocolError, match=rf"^cannot write a message as {format}: ") as caught:
        encode(SendBroadcast(data=data), format)
    assert caught.value.origin == "local"


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x82\xa4type\xa9broadcast\xa4data" + tail))
def test_any_bytes_are_a_message_or_a_protocol_error(payload):
    for decode in (decode_request, decode_event):
        for format in FORMATS:
            try:
                message = decode(payload, format)
            except ProtocolError:
                continue
            for other in FORMATS:
                encode(message, other)


@given(st.sampled_from([text for _, text, _, _ in EXAMPLES]), st.integers(0, 200), st.binary(max_size=3))
def test_examples_with_bytes_changed(text, at, change):
    at %= len(text)
    changed = text[:at] + change + text[at + len(change) :]
    for decode in (decode_request, decode_event):
        for payload, format in ((changed, "json"), (changed[:at], "json")):
            try:
                message = decode(payload, format)
            except ProtocolError:
                continue
            assert decode(encode(message, "messagepack"), "messagepack") == message


@pytest.mark.parametrize(
    ("first", "format"),
    [
        *((first, "json") for first in (b"{}", b' {"', b"\n{", b"\t", b"\r")),
        *((first, "messagepack") for first in (b"\x81", b"\xde\0\1", b"", b"[")),
    ],
)
def test_the_format_is_known_by_the_first_byte(first, format):
    assert sniff(first) == format
