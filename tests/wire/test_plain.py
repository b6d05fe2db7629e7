"""Plain values: which pass, which do not, and that nothing which passes fails to be encoded in either format."""

from __future__ import annotations

import datetime
import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire import messages, plain

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.binary(max_size=20)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(TEXT, inner, max_size=5))


def nested(depth: int) -> object:
    value: object = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


@given(VALUES)
def test_what_passes_can_be_written_in_both_formats(value):
    plain.check(value)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    msgspec.json.decode(msgspec.json.encode(value))


REFUSED = {
    "NaN": (math.nan, "NaN and infinity have no JSON"),
    "infinity": (-math.inf, "NaN and infinity have no JSON"),
    "2**64": (2**64, "an integer does not fit 64 bits"),
    "-2**63-1": (-(2**63) - 1, "an integer does not fit 64 bits"),
    "a date": (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "of type datetime"),
    "ext": (msgspec.msgpack.Ext(5, b"x"), "of type Ext"),
    "a tuple": ((1, 2), "of type tuple"),
    "a set": ({1}, "of type set"),
    "an integer key": ({1: 2}, "a map has a key that is not text"),
    "a key of bytes": ({b"a": 2}, "a map has a key that is not text"),
    "a tuple for a key": ({(1, 2): 2}, "a map has a key that is not text"),
    "65 levels": (nested(65), "nests deeper than 64"),
    "1000 levels": (nested(1000), "nests deeper than 64"),
}


@pytest.mark.parametrize("around", ["alone", "in a list", "in a map", "among many", "deep among many"])
@pytest.mark.parametrize(("value", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_and_why(value, why, around):
    place = {
        "alone": value,
        "in a list": [1, value],
        "in a map": {"a": 1, "b": value},
        "among many": [1, 2.5, "x", None] * 10 + [value],
        "deep among many": {str(i): i for i in range(30)} | {"x": [0.5] * 30 + [{"y": value}]},
    }[around]
    with pytest.raises(ValueError, match=why):
        plain.check(place)


def test_the_bounds_are_inclusive():
    plain.check(nested(64))
    plain.check([2**64 - 1, -(2**63)] * 20)
    plain.check([None] * plain.MAX_VALUES)
    plain.check([[]] * (plain.MAX_VALUES - 1))
    plain.check([nested(63)] + [None] * 30)
    for value in (nested(65), [nested(64)] + [None] * 30):
        with pytest.raises(ValueError, match="nests deeper than 64"):
            plain.check(value)
    for value in ([None] * (plain.MAX_VALUES + 1), [[None, None]] * (plain.MAX_VALUES // 2)):
        with pytest.raises(ValueError, match="more than 16384 values"):
            plain.check(value)


# --- MessagePack, before it is decoded -------------------------------------------------------------------------------

LARGE = b"\xc5\x20\x00" + bytes(0x2000)
"""8 KiB of bin: more than what is too small to look at."""


@given(VALUES)
def test_plain_messagepack_passes(value):
    plain.check_messagepack(b"\x92" + LARGE + msgspec.msgpack.encode(value))


EVERY_KIND = [
    *(b"\x00 \x7f \xe0 \xff \xc0 \xc2 \xc3".split()),
    *(b"\xcc\1", b"\xcd\1\1", b"\xce\1\1\1\1", b"\xcf" + b"\1" * 8),
    *(b"\xd0\1", b"\xd1\1\1", b"\xd2\1\1\1\1", b"\xd3" + b"\1" * 8),
    *(b"\xca\1\1\1\1", b"\xcb" + b"\1" * 8),
    *(b"\xa0", b"\xbf" + b"x" * 31, b"\xd9\2xx", b"\xda\0\2xx", b"\xdb\0\0\0\2xx"),
    *(b"\xc4\2xx", b"\xc5\0\2xx", b"\xc6\0\0\0\2xx"),
    *(bytes([0xD4 + power]) + b"\5" + b"x" * 2**power for power in range(5)),
    *(b"\xc7\2\5xx", b"\xc8\0\2\5xx", b"\xc9\0\0\0\2\5xx"),
    *(b"\x90", b"\x92\x01\x02", b"\xdc\0\1\x01", b"\xdd\0\0\0\1\x01"),
    *(b"\x80", b"\x81\xa1a\x01", b"\xde\0\1\xa1a\x01", b"\xdf\0\0\0\1\xa1a\x01"),
]


@pytest.mark.parametrize("kind", EVERY_KIND, ids=bytes.hex)
def test_every_kind_of_value_is_passed_over_exactly(kind):
    """Whatever stands in front of it, the key behind it is found."""
    plain.check_messagepack(b"\x93" + LARGE + kind + b"\x81\xa1a\x01")
    with pytest.raises(ValueError, match="a map has a key that is not text"):
        plain.check_messagepack(b"\x93" + LARGE + kind + b"\x81\x92\x01\x02\x01")


def test_keys_whose_hashes_collide_never_reach_a_map():
    keys = b"".join(b"\x92\xcf" + struct.pack(">Q", i) + b"\x01" + b"\0" for i in range(1000))
    payload = b"\x81\xa4data\xde" + struct.pack(">H", 1000) + keys
    with pytest.raises(ValueError, match="a map has a key that is not text"):
        plain.check_messagepack(payload)


def test_a_frame_of_many_values_is_refused_before_it_is_decoded():
    """Lists cost the most to look at: so many of them would hold up everybody for long."""
    for many in ([[]] * 30_000, [{}] * 30_000, [[1]] * 15_000, {str(i): 0 for i in range(30_000)}):
        with pytest.raises(ValueError, match="more than 16384 values"):
            plain.check_messagepack(msgspec.msgpack.encode(many))
    plain.check_messagepack(msgspec.msgpack.encode({"type": "publish", "data": [[]] * plain.MAX_VALUES}))


def test_what_the_daemon_gathers_of_many_messages_is_not_bounded_as_one_is():
    pages = [{"data": [[]] * 1000}] * 100
    plain.check_messagepack(msgspec.msgpack.encode(pages), bounded=False)
    with pytest.raises(ValueError, match="a map has a key that is not text"):
        plain.check_messagepack(msgspec.msgpack.encode([*pages, {(1, 2): 3}]), bounded=False)
    said = [messages.Message(channel="a", data=[[]] * 1000)] * 100
    history = messages.History(channel="a", epoch="e", offset=100, messages=said)
    for format in ("json", "messagepack"):
        assert messages.decode_event(messages.encode(history, format), format) == history


def test_counts_and_depths_that_are_only_claimed():
    for lie in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match="more than 16384 values"):
            plain.check_messagepack(b"\x92" + LARGE + lie)
    with pytest.raises(ValueError, match="nests deeper than 64"):
        plain.check_messagepack(b"\x92" + LARGE + b"\x91" * 5000)


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_a_value_error(tail):
    try:
        plain.check_messagepack(b"\x93" + LARGE + tail)
    except ValueError as error:
        assert str(error) in (  # noqa: PT017
            "a map has a key that is not text",
            "more than 16384 values",
            "nests deeper than 64",
        )
