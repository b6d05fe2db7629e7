"""JSON as JavaScript writes it: numbers, strings and the order of keys, by table and by JavaScript itself."""

from __future__ import annotations

import json
import math
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire import canonical
from netd.wire.canonical import by_utf16, number, parse, text
from tests.wire.node import ask, needs_node

NUMBERS = {
    "0": "0",
    "-0": "0",
    "-0.0": "0",
    "1.0": "1",
    "-1": "-1",
    "0.1": "0.1",
    "1e21": "1e+21",
    "1e20": "100000000000000000000",
    "123456789012345678901": "123456789012345680000",
    "1234567890123456789012": "1.2345678901234568e+21",
    "-1.5e300": "-1.5e+300",
    "1e-6": "0.000001",
    "1e-7": "1e-7",
    "1.5e-7": "1.5e-7",
    "0.00000123": "0.00000123",
    "123.456": "123.456",
    "1e2": "100",
    "5e-324": "5e-324",
    "1.7976931348623157e308": "1.7976931348623157e+308",
    "9007199254740993": "9007199254740992",
    "4.35": "4.35",
    "1732190000123": "1732190000123",
    "0.002147547870378218": "0.002147547870378218",
}
STRINGS = {
    '""': '""',
    '"\\u0000\\u001f\\u007f"': '"\\u0000\\u001f\x7f"',
    '"\\b\\t\\n\\f\\r\\"\\\\\\/"': '"\\b\\t\\n\\f\\r\\"\\\\/"',
    '"Z\\u00fcrich \\u2028"': '"Zürich \u2028"',
    '"\\ud83d\\ude00"': '"😀"',
    '"\\ud83d"': '"\\ud83d"',
    '"\\uDE00\\uD83D"': '"\\ude00\\ud83d"',
}
OBJECTS = {
    '{"b":1,"a":2}': ('{"b":1,"a":2}', '{"a":2,"b":1}'),
    '{"b":1,"10":2,"9":3,"a":4}': ('{"9":3,"10":2,"b":1,"a":4}', '{"9":3,"10":2,"a":4,"b":1}'),
    '{"01":1,"4294967295":2,"4294967294":3,"-1":4}': (
        '{"4294967294":3,"01":1,"4294967295":2,"-1":4}',
        '{"4294967294":3,"-1":4,"01":1,"4294967295":2}',
    ),
    '{"z":{"y":[{"x":1,"w":[]}]},"a":{}}': (
        '{"z":{"y":[{"x":1,"w":[]}]},"a":{}}',
        '{"a":{},"z":{"y":[{"w":[],"x":1}]}}',
    ),
    # U+FF61 is one unit above the surrogates that make up U+1F600
    '{"\\uff61":1,"\\ud83d\\ude00":2}': ('{"\uff61":1,"😀":2}', '{"😀":2,"\uff61":1}'),
    '{"nIndex":1,"negHash":2,"__proto__":3}': (
        '{"nIndex":1,"negHash":2,"__proto__":3}',
        '{"__proto__":3,"nIndex":1,"negHash":2}',
    ),
    "[null,true,false,[],{}]": ("[null,true,false,[],{}]", "[null,true,false,[],{}]"),
}


@pytest.mark.parametrize(("literal", "written"), NUMBERS.items())
def test_numbers(literal, written):
    assert text(parse(literal.encode())) == written


@pytest.mark.parametrize(("literal", "written"), STRINGS.items())
def test_strings(literal, written):
    assert text(parse(literal.encode())) == written


@pytest.mark.parametrize(("literal", "written"), OBJECTS.items())
def test_keys(literal, written):
    value = parse(literal.encode())
    assert (text(value), text(value, order=by_utf16)) == written


@needs_node
def test_javascript_agrees():
    chance = random.Random(7)
    literals = [*NUMBERS, *STRINGS, *OBJECTS]
    # doubles of every size, and the short ones that people write
    literals += [repr(value) for value in (_double(chance) for _ in range(3000)) if math.isfinite(value)]
    literals += [f"{chance.choice((-1, 1)) * chance.randrange(10**5)}e{chance.randrange(-30, 30)}" for _ in range(1000)]
    for _ in range(300):
        keys = {
            chance.choice(("7", "10", "a", "B", "é", "\uff61", "😀", "00", "x\n")): chance.random() for _ in range(5)
        }
        literals.append(json.dumps([keys, {"k": keys}]))
    answers = ask([{"ask": "stringify", "text": literal} for literal in literals])
    for literal, written in zip(literals, answers, strict=True):
        value = parse(literal.encode())
        assert [text(value), text(value, order=by_utf16)] == written, literal


def _double(chance: random.Random) -> float:
    return struct.unpack(">d", chance.randbytes(8))[0]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_the_same_number_when_it_is_read_again(value):
    assert float(number(value)) == value
    assert parse(number(value).encode()) == value


def test_what_json_has_no_number_for_is_null():
    assert number(math.nan) == number(math.inf) == "null"


REFUSED = [
    (b"", "Expecting value"),
    (b"\xff", "utf-8"),
    (b"\xef\xbb\xbf{}", "Expecting value"),
    ("{}".encode("utf-16"), "utf-8"),
    (b"NaN", "NaN is no JSON"),
    (b"[-Infinity]", "-Infinity is no JSON"),
    (b"1e999", "number out of range"),
    (b"1" * 1000, "number out of range"),
    (b'{"a":1,"b":2,"a":3}', "key 'a' stands there twice"),
    (b'{"x":{"a":1,"\\u0061":3}}', "key 'a' stands there twice"),
    (b"{} {}", "Extra data"),
    (b"[" * 100_000, "nests too deep"),
    (b'{"a":' * 100_000, "nests too deep"),
]


@pytest.mark.parametrize(("payload", "why"), REFUSED)
def test_what_is_refused(payload, why):
    with pytest.raises(ProtocolError, match=rf"^cannot read JSON: .*{why}") as caught:
        parse(payload)
    assert caught.value.close == 1007
    assert len(str(caught.value)) < 300


def test_nesting_is_bounded():
    deep = b"[" * canonical.MAX_DEPTH + b"]" * canonical.MAX_DEPTH
    assert text(parse(deep)) == deep.decode()
    with pytest.raises(ProtocolError, match="nests deeper than 32"):
        text(parse(b"[" + deep + b"]"))


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda drawn: json.dumps(drawn).encode()))
def test_any_bytes_are_json_or_a_protocol_error(payload):
    try:
        value = parse(payload)
    except ProtocolError:
        return
    assert parse(text(value, order=by_utf16).encode()) == value
