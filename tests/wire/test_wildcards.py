"""Names that stand for many channels: which they are, and what they match."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.hub.config import Namespace
from netd.hub.patterns import Pattern, Patterns
from netd.hub.permissions import Realm
from netd.wire.wildcards import is_wild, literal, matches

TOKENS = st.lists(st.sampled_from([b"", b"a", b"b", b"\xff", b"*", b">", b"a*", b">a"]), min_size=1, max_size=5)
NAMES = TOKENS.map(b".".join)


@pytest.mark.parametrize(
    ("tokens", "wild", "beginning"),
    [
        (b"a.*.c", True, b"a."),
        (b"*", True, b""),
        (b">", True, b""),
        (b"a.>", True, b"a."),
        (b"a.>.*", True, b"a.>."),
        (b".>", True, b"."),
        (b"a", False, b"a."),
        (b"a*", False, b"a*."),
        (b"a>", False, b"a>."),
        (b">.a", False, b">.a."),
        (b"", False, b"."),
    ],
)
def test_what_is_a_pattern_and_what_it_begins_with(tokens: bytes, wild: bool, beginning: bytes):
    assert (is_wild(tokens), literal(tokens)) == (wild, beginning)


@pytest.mark.parametrize(
    ("pattern", "channels", "others"),
    [
        (b"n:a.*.c", [b"n:a.b.c", b"n:a..c", b"n:a.*.c"], [b"n:a.c", b"n:a.b.b.c", b"m:a.b.c", b"a.b.c", b"n:a.b.C"]),
        (b"n:a.>", [b"n:a.b", b"n:a.b.c", b"n:a."], [b"n:a", b"n:ab", b"m:a.b"]),
        (b"n:>", [b"n:a", b"n:a.b", b"n:", b"n:a:b"], [b"a", b":a", b"o:n:a"]),
        (b">", [b"a", b"a.b", b":a"], [b"n:a"]),
        (b"n:*:b.>", [b"n:*:b.c"], [b"n:a:b.c"]),
        (b"n:\xff.*", [b"n:\xff.\x00\n"], [b"n:\xfe.x"]),
    ],
)
def test_what_a_pattern_matches(pattern: bytes, channels: list[bytes], others: list[bytes]):
    assert [name for name in channels + others if matches(pattern, name)] == channels


def as_expression(tokens: bytes) -> re.Pattern[bytes]:
    *some, last = tokens.split(b".")
    found = [rb"[^.]*" if token == b"*" else re.escape(token) for token in some]
    found.append(rb".*" if last == b">" else rb"[^.]*" if last == b"*" else re.escape(last))
    return re.compile(rb"\.".join(found), re.DOTALL)


@given(st.sets(NAMES.filter(is_wild), max_size=12), st.lists(NAMES, max_size=12), st.data())
def test_the_tree_and_the_comparison_agree_with_regular_expressions(patterns, channels, data):
    realm = Realm(Namespace(name="n", wildcards=True), "")
    tree = Patterns(2)
    dropped = data.draw(st.sets(st.sampled_from(sorted(patterns)))) if patterns else set()
    for tokens in patterns:
        tree.put(Pattern(b"n:" + tokens, realm))
    for tokens in dropped:
        tree.drop(b"n:" + tokens)
    for channel in channels:
        expected = {b"n:" + each for each in patterns - dropped if as_expression(each).fullmatch(channel)}
        found = [pattern.name for pattern in tree.matching(b"n:" + channel)]
        assert len(found) == len(set(found))
        if is_wild(channel):  # no channel has such a name
            continue
        assert set(found) == expected
        assert {b"n:" + each for each in patterns - dropped if matches(b"n:" + each, b"n:" + channel)} == expected
        for each in expected:
            assert channel.startswith(literal(each[2:]))
    for tokens in patterns - dropped:
        tree.drop(b"n:" + tokens)
    assert tree._root.empty
