"""Codecs: values there and back, bytes that mean harm, and codecs of a user's own."""

from __future__ import annotations

import datetime
import decimal
import importlib.metadata
import json
import math
import struct
from importlib.metadata import EntryPoint, EntryPoints

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire import codecs
from netd.wire.codecs import CBOR, JSON, MESSAGEPACK, RAW, TEXT, codec

ALL = (RAW, TEXT, JSON, CBOR, MESSAGEPACK)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_codecs_go_by_their_names(each):
    assert codec(each.name) is each


@given(VALUES)
def test_values_come_back_and_pass_from_codec_to_codec(value):
    for first in (JSON, CBOR, MESSAGEPACK):
        assert first.decode(first.encode(value)) == value
        for second in (JSON, CBOR, MESSAGEPACK):
            assert second.decode(second.encode(first.decode(first.encode(value)))) == value


@given(st.binary(max_size=40), TEXTS)
def test_raw_and_text(data, text):
    assert RAW.decode(RAW.encode(data)) == data
    assert RAW.encode(bytearray(data)) == RAW.encode(memoryview(data)) == data
    assert RAW.encode(text) == TEXT.encode(text) == TEXT.encode(text.encode()) == text.encode()
    assert TEXT.decode(text.encode()) == text


def test_bytes_are_bytes_where_a_codec_has_them_and_base64_in_json():
    for each in (CBOR, MESSAGEPACK):
        assert each.decode(each.encode({"a": b"\xff"})) == {"a": b"\xff"}
    assert JSON.encode({"a": b"\xff"}) == b'{"a":"/w=="}'


REFUSED = [
    (TEXT, b"\xff", "utf-8"),
    (TEXT, b"\xed\xa0\x80", "utf-8"),  # half a character
    (JSON, b"", "truncated"),
    (JSON, b"{} {}", "trailing"),
    (JSON, b"\xef\xbb\xbf{}", "malformed"),
    (JSON, b"NaN", "malformed"),
    (JSON, b"[1e999]", "out of range"),
    (JSON, b"1" * 5000, "out of range"),
    (JSON, b"18446744073709551616", "64 bits"),
    (JSON, b'"\xff"', "utf-8"),
    (JSON, b'"\\ud800"', "truncated"),
    (JSON, b"[" * 65 + b"]" * 65, "nests deeper than 64"),
    (JSON, b"[" * 100_000, "nests too deep"),
    (CBOR, b"", "premature end"),
    (CBOR, b"\x01\x01", "1 bytes behind the value"),
    (CBOR, b"\x81" * 65 + b"\x01", "depth"),
    (CBOR, b"\x81" * 100_000, "depth"),
    (CBOR, b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "premature end"),
    (CBOR, b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff", "premature end"),
    (CBOR, b"\xf7", "UndefinedType"),
    (CBOR, b"\xf8\x20", "CBORSimpleValue"),
    (CBOR, b"\xf9\x7e\x00", "NaN and infinity"),
    (CBOR, b"\x3b" + b"\xff" * 8, "64 bits"),
    (CBOR, b"\xa1\x01\x02", "key"),
    (CBOR, b"\xa1\x41a\x02", "key that is not text"),
    (CBOR, b"\xa1\x82\x01\x02\x02", "key"),
    (CBOR, b"\x61\xff", "utf-8|UTF-8|decoding text"),
    (CBOR, b"\x1c", "."),
    (CBOR, b"\xff", "."),
    (CBOR, cbor2.dumps(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)), "tag 0 is not taken"),
    (CBOR, cbor2.dumps(decimal.Decimal("1.5")), "tag 4 is not taken"),
    (CBOR, cbor2.dumps(2**70), "tag 2 is not taken"),
    (CBOR, cbor2.dumps({1, 2}), "tag 258 is not taken"),
    (CBOR, b"\xd8\x23\x61(", "tag 35 is not taken"),  # a regular expression
    (CBOR, b"\xd8\x1c\x81\xd8\x1d\x00", "tag 28 is not taken"),  # a list in itself
    (CBOR, b"\xda\xff\xff\xff\xff\x01", "tag 4294967295 is not taken"),
    (MESSAGEPACK, b"", "truncated"),
    (MESSAGEPACK, b"\x01\x01", "trailing"),
    (MESSAGEPACK, b"\xc1", "malformed"),
    (MESSAGEPACK, b"\xd4\x05x", "of type Ext"),
    (MESSAGEPACK, b"\xd6\xff\0\0\0\1", "of type datetime"),
    (MESSAGEPACK, b"\xcb\x7f\xf0\0\0\0\0\0\0", "NaN and infinity"),
    (MESSAGEPACK, b"\x81\x01\x01", "key that is not text"),
    (MESSAGEPACK, b"\x91" * 100_000, "nests deeper than 64"),
    (
        MESSAGEPACK,
        b"\x91" * 4000 + b"\xc0",
        "nests too deep|nests deeper than 64",
    ),
    (MESSAGEPACK, b"\xdd\xff\xff\xff\xff", "truncated"),
    (MESSAGEPACK, b"\xa1\xff", "utf-8"),
]


@pytest.mark.parametrize(("each", "payload", "why"), REFUSED)
def test_what_is_refused_and_why(each, payload, why):
    with pytest.raises(ProtocolError, match=rf"^cannot read {each.name}: .*({why})") as caught:
        each.decode(payload)
    assert (caught.value.close, caught.value.origin) == (1007, "remote")
    assert len(str(caught.value)) < 300


def test_of_a_key_given_twice_the_last_one_counts():
    assert JSON.decode(b'{"a":1,"a":2}') == {"a": 2}
    assert CBOR.decode(b"\xa2\x61a\x01\x61a\x02") == {"a": 2}
    assert MESSAGEPACK.decode(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


def test_keys_made_to_collide_are_refused_before_they_are_hashed():
    keys = b"".join(b"\x92\xcf" + struct.pack(">Q", i) + b"\x01\x00" for i in range(1000))
    with pytest.raises(ProtocolError, match="key that is not text"):
        MESSAGEPACK.decode(b"\xde\x03\xe8" + keys)
    keys = b"".join(b"\x82\x1b" + struct.pack(">Q", i) + b"\x01\x00" for i in range(1000))
    with pytest.raises(ProtocolError, match="map key must be a text string"):
        CBOR.decode(b"\xb9\x03\xe8" + keys)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_value_or_a_protocol_error(payload):
    for each in ALL:
        try:
            value = each.decode(payload)
        except ProtocolError:
            continue
        for other in (JSON, CBOR, MESSAGEPACK):
            other.encode(value)


UNWRITABLE = [
    (RAW, {}, "a dict is neither bytes nor text"),
    (TEXT, 5, "a int is not text"),
    (TEXT, b"\xff", "utf-8"),
    (TEXT, "\ud800", "utf-8"),
    (JSON, object(), "object"),
    (JSON, "\ud800", "utf-8"),
    (JSON, {(1,): 2}, "keys"),
    (CBOR, object(), "object"),
    (MESSAGEPACK, 2**70, "ints"),
    (MESSAGEPACK, object(), "object"),
]


@pytest.mark.parametrize(("each", "value", "why"), UNWRITABLE)
def test_what_a_codec_has_no_form_for_is_our_own_mistake(each, value, why):
    with pytest.raises(ProtocolError, match=rf"^cannot write {each.name}: .*{why}") as caught:
        each.encode(value)
    assert caught.value.origin == "local"


def test_what_never_ends_is_our_own_mistake():
    endless: list = []
    endless.append(endless)
    for each in (JSON, CBOR, MESSAGEPACK):
        with pytest.raises(ProtocolError, match=r"^cannot write "):
            each.encode(endless)


# --- a user's own ----------------------------------------------------------------------------------------------------


class Shouting:
    """Text in capitals."""

    def encode(self, value):
        return value.upper().encode()

    def decode(self, payload):
        return payload.decode().lower()


class Broken:
    def __init__(self):
        self.answer = 1 / 3

    def encode(self, value):
        if value == "nothing":
            return
        raise KeyError(value)

    def decode(self, payload):
        if payload == b"nan":
            return [math.nan]
        if payload == b"ours":
            raise ProtocolError("cannot read ours", close=1003)
        raise ZeroDivisionError("oh")


shouting = Shouting()
HERE = __name__


@pytest.mark.parametrize("attribute", ["Shouting", "shouting"])
def test_a_codec_of_a_module(attribute):
    found = codec(f"{HERE}:{attribute}")
    assert found.name == f"{HERE}:{attribute}"
    assert found.encode("hi") == b"HI"
    assert found.decode(b"HI") == "hi"


def test_a_codec_of_an_entry_point(monkeypatch):
    entries = EntryPoints([EntryPoint("shout", f"{HERE}:Shouting", codecs.GROUP)])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: entries.select(group=group))
    assert codec("shout").encode("hi") == b"HI"
    with pytest.raises(ProtocolError, match=r"^cannot find codec 'whisper': there are raw, .*, shout$"):
        codec("whisper")


def test_what_is_no_codec_is_refused():
    with pytest.raises(ProtocolError, match=r"^cannot use 'math:sin' as a codec: it has no encode\(\) and decode\(\)$"):
        codec("math:sin")
    with pytest.raises(ProtocolError, match=r"^cannot use 'json:JSONDecoder' as a codec"):
        codec("json:JSONDecoder")
    with pytest.raises(AttributeError):
        codec("math:nothing")
    with pytest.raises(ImportError):
        codec("no_such_module_anywhere:codec")


def test_what_a_users_codec_raises_or_returns_goes_no_further():
    broken = codec(f"{HERE}:Broken")
    with pytest.raises(ProtocolError, match=r"cannot read .*:Broken: oh") as caught:
        broken.decode(b"x")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ProtocolError, match="NaN and infinity"):
        broken.decode(b"nan")
    with pytest.raises(ProtocolError, match=r"^cannot read ours$"):
        broken.decode(b"ours")
    with pytest.raises(ProtocolError, match=r"cannot write .*:Broken: KeyError: 'x'"):
        broken.encode("x")
    with pytest.raises(ProtocolError, match=r"encode\(\) gave a NoneType, not bytes"):
        broken.encode("nothing")


def test_the_standard_libraries_read_what_we_write():
    value = {"a": [1, -2.5, None, True, "Zürich"]}
    assert json.loads(JSON.encode(value)) == value
    assert cbor2.loads(CBOR.encode(value)) == value
    assert msgspec.msgpack.decode(MESSAGEPACK.encode(value)) == value
