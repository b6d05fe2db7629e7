"""The scanner agrees with tomllib on which keys there are, and its lines are the lines a person would look at."""

from __future__ import annotations

import tomllib
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.wire.tomlkeys import join_key, scan, split_key


def paths_in(value, path=()):
    """Every path of a parsed document."""
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    else:
        return
    for key, inner in members:
        yield (*path, key)
        yield from paths_in(inner, (*path, key))


def test_lines_of_every_shape_a_key_can_have():
    places = scan(
        dedent("""\
            # a comment with [brackets] and "quotes
            plain = 1
            dotted.inner = "x # no comment"

            [table]   # says [not.this]
            text = \"\"\"
            several = lines
            [not.a.table]
            \"\"\"
            after = 'literal \\'
            [[list]]
            a = 1
            [list.below]
            b = 2
            [[list]]
            inline = { x = 1, y.z = [1, 2] }
            array = [
              { deep = true }, # ] }
              "]",
            ]
            """)
    )

    assert places[("plain",)] == 2
    assert places[("dotted",)] == places[("dotted", "inner")] == 3
    assert places[("table",)] == 5
    assert places[("table", "text")] == 6
    assert places[("table", "after")] == 10
    assert places[("list",)] == places[("list", 0)] == 11
    assert places[("list", 0, "a")] == 12
    assert places[("list", 0, "below")] == 13
    assert places[("list", 0, "below", "b")] == 14
    assert places[("list", 1)] == 15
    assert places[("list", 1, "inline", "y", "z", 1)] == 16
    assert places[("list", 1, "array")] == 17
    assert places[("list", 1, "array", 0, "deep")] == 18
    assert places[("list", 1, "array", 1)] == 19


def test_carriage_returns_are_no_lines_of_their_own():
    assert scan("a = 1\r\n\r\nb = '''\r\n'''\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("c",): 5}


keys = st.sampled_from(
    ["a", "b-1", "1", "_", '"q.1"', "'l#'", r'"\""', '"["', "'}'", '""', r'"\u00e9"', "a . b", '"x" .y', "b.'c'.\"d\""]
)
scalars = st.sampled_from(
    [
        *["1", "-0x1f", "1_000", "3.5e-7", "inf", "true", "1979-05-27", "1979-05-27 07:32:00Z", "07:32:00.5"],
        *[
            '"a]b}c#d"',
            r'"\"]\\"',
            "'\\'",
            "''",
            '""',
            '"""a"b""c"""',
            '"""\n]\n"""""',
            "'''x''''",
            "''''''''",
            '""""""',
        ],
        *['"""\\\n   x = 1\n"""', "'''\n[t]\n'''", r'"""\""""'],
    ]
)
voids = st.sampled_from(["", " ", "\n", " # ]}\"' \n", "\n\n\t"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(
            lambda items, void: "[" + void + f",{void}".join(items) + void + "]", st.lists(inner, max_size=3), voids
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: f"[\n{','.join(items)} ,\n]"),
        st.lists(st.tuples(keys, inner), max_size=3).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
        ),
    ),
    max_leaves=5,
)
statements = st.one_of(
    st.builds("{} = {}".format, keys, values),
    st.builds("[{}]".format, keys),
    st.builds("[[ {} ]] # [x]".format, keys),
    st.sampled_from(["", "# key = 1", "   "]),
)


@settings(deadline=None)
@given(st.lists(statements, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_finds_exactly_the_keys_that_tomllib_finds(lines, newline):
    kept: list[str] = []
    for line in lines:  # what does not go with the lines before it is left out
        try:
            tomllib.loads("\n".join([*kept, line]))
        except tomllib.TOMLDecodeError:
            continue
        kept.append(line)
    text = newline.join(kept)

    places = scan(text)

    assert set(places) == set(paths_in(tomllib.loads(text)))
    rows = text.split("\n")
    for path, line in places.items():
        if path[-1] in ("a", "b-1", "_", "l#"):
            assert str(path[-1]) in rows[line - 1]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_joined_key_splits_into_its_parts(parts):
    assert split_key(join_key(tuple(parts))) == tuple(parts)


def test_join_key_is_plain_where_it_can_be():
    assert join_key(("trace", "listen", 0, "address")) == "trace.listen.0.address"
    assert join_key(("log", "loggers", "netd.trace")) == 'log.loggers."netd.trace"'


@pytest.mark.parametrize("dotted", ["", ".", "a.", ".a", "a b", "a=1", '"open', "a..b", "é", "a\n", "[a]"])
def test_what_is_no_key_is_refused(dotted):
    with pytest.raises(ValueError, match=r"cannot read .* as a key"):
        split_key(dotted)
