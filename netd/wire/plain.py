"""Plain values: what JSON and MessagePack can both say, and so what a message may carry to any session. Sans-IO.

    null, true, false, integers from -2**63 to 2**64 - 1, finite floats, text, bytes (base64 text in JSON), lists,
    and maps whose keys are text; at most MAX_DEPTH deep and MAX_VALUES in all

Rules:
- whatever was decoded is checked before anything else sees it, so that a message published in one format can be encoded
  in the other for every subscriber;
- what is wrong is a ValueError with the reason; whoever decodes makes a ProtocolError of it (messages.py, codecs.py);
- MessagePack is also checked before it is decoded, when it is large: a map may have arrays as keys there, which become
  tuples, and a sender can make their hashes collide. 64 KiB of that take 0.2 s to decode, 4 MiB a quarter of an hour.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_DEPTH = 64
"""How deep lists and maps may nest."""
MAX_VALUES = 2**14
"""How many values there may be in lists and maps, all together. More belongs into bytes: looking at each takes up to
0.3 us, and whatever else the daemon has to do waits meanwhile."""
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_HARMLESS = frozenset({str, bytes, bool, type(None)})
_CONTAINERS = frozenset({list, dict})
_NO_KEY = "a map has a key that is not text"
_NOT_FINITE = "NaN and infinity have no JSON"
_TOO_LONG = "an integer does not fit 64 bits"
_FEW = 16
"""Up to so many values a loop is faster than what C code takes to begin."""
_AROUND = 64
"""Values of a message around its data, at most."""
_SMALL = 4096
"""Bytes of MessagePack that no choice of keys makes slow: half a millisecond at worst."""


def check(value: Any) -> None:
    """Raise ValueError unless this is a plain value."""
    if type(value) not in _HARMLESS:
        _check((value,), 0, MAX_VALUES + 1)


def _check(values: Collection[Any], depth: int, left: int) -> int:
    """Check the values of one list or map; how many more there may be. Of a large one C code looks at the scalars."""
    left -= len(values)
    if left < 0:
        raise ValueError(f"more than {MAX_VALUES} values")
    if depth > MAX_DEPTH:
        raise ValueError(f"nests deeper than {MAX_DEPTH}")
    if len(values) > _FEW:
        left = _check_many(values, depth, left)
    else:
        for value in values:
            kind = type(value)
            if kind in _HARMLESS:
                continue
            if kind is int:
                if not _MIN_INT <= value <= _MAX_INT:
                    raise ValueError(_TOO_LONG)
            elif kind in _CONTAINERS:
                left = _check_within(value, depth, left)
            elif kind is not float:
                raise ValueError(f"a value is of type {kind.__name__}, which JSON has not")
            elif not math.isfinite(value):
                raise ValueError(_NOT_FINITE)
    return left


def _check_within(value: list[Any] | dict[Any, Any], depth: int, left: int) -> int:
    """The same for a list or map that is one of the values at `depth`."""
    if not value and depth < MAX_DEPTH:
        return left
    if type(value) is list:
        return _check(value, depth + 1, left)
    assert isinstance(value, dict)
    for key in value:
        if type(key) is not str:
            raise ValueError(_NO_KEY)
    return _check(value.values(), depth + 1, left)


def _check_many(values: Collection[Any], depth: int, left: int) -> int:
    kinds = set(map(type, values)) - _HARMLESS
    if not kinds:
        return left
    if float in kinds and not all(map(math.isfinite, [value for value in values if type(value) is float])):
        raise ValueError(_NOT_FINITE)
    if int in kinds:
        integers = [value for value in values if type(value) is int]
        if min(integers) < _MIN_INT or max(integers) > _MAX_INT:
            raise ValueError(_TOO_LONG)
    if others := kinds - _CONTAINERS - {int, float}:
        raise ValueError(f"a value is of type {min(kind.__name__ for kind in others)}, which JSON has not")
    if kinds & _CONTAINERS:
        for value in values:
            if type(value) in _CONTAINERS and (value or depth >= MAX_DEPTH):
                left = _check_within(value, depth, left)
    return left


def check_messagepack(payload: bytes, *, bounded: bool = True) -> None:
    """Raise ValueError for MessagePack that would be slow to decode (see above). Says nothing about anything else.

    Not `bounded`: of any number of values, as in what the daemon makes of many messages that were bounded each.
    """
    if len(payload) > _SMALL:
        with suppress(IndexError):  # it ends too early, which the decoder says better
            _scan(payload, MAX_VALUES + _AROUND if bounded else sys.maxsize)


def _scan(payload: bytes, total: int) -> None:
    outer: list[tuple[int, bool]] = []
    at, left, is_map = 0, 1, False
    while True:
        while not left:
            if not outer:
                return
            left, is_map = outer.pop()
        first = payload[at]
        if is_map and not left & 1 and not (0xA0 <= first <= 0xBF or 0xD9 <= first <= 0xDB):
            raise ValueError(_NO_KEY)
        left -= 1
        if size := _SIZES[first]:
            at += size
        elif first in _SHORT:
            at += 2 + payload[at + 1]
        elif first in _LENGTHS:
            width, extra = _LENGTHS[first]
            at += 1 + width + extra + int.from_bytes(payload[at + 1 : at + 1 + width], "big")
        else:
            width = 0 if first < 0xC0 else 4 if first & 1 else 2
            count = first & 0x0F if not width else int.from_bytes(payload[at + 1 : at + 1 + width], "big")
            at += 1 + width
            outer.append((left, is_map))
            is_map = first < 0x90 or first >= 0xDE
            left = 2 * count if is_map else count
            total -= count
            if total < 0:
                raise ValueError(f"more than {MAX_VALUES} values")
            if len(outer) > MAX_DEPTH + 8:
                raise ValueError(f"nests deeper than {MAX_DEPTH}")


def _size(first: int) -> int:
    """Bytes of a MessagePack value that begins with this one; 0: that is not all there is to it."""
    if first <= 0x80 or first == 0x90 or first >= 0xE0:  # small integers, the empty map, the empty list
        return 1
    if 0xA0 <= first < 0xC0:
        return 1 + (first & 0x1F)
    if 0xC0 <= first < 0xC4:  # nil, never used, false, true
        return 1
    if first in (0xCA, 0xCB):  # floats
        return 5 if first == 0xCA else 9
    if 0xCC <= first < 0xD4:  # integers
        return 1 + (1 << (first & 3))
    if 0xD4 <= first < 0xD9:  # ext of fixed sizes
        return 2 + (1 << (first - 0xD4))
    return 0


_SIZES = tuple(map(_size, range(256)))
_SHORT = (0xC4, 0xD9)
"""bin and str with one byte of length."""
_LENGTHS = {
    # bin, ext (which has a byte of type as well), str
    **dict(zip((0xC5, 0xC6), ((2, 0), (4, 0)), strict=True)),
    **dict(zip((0xC7, 0xC8, 0xC9), ((1, 1), (2, 1), (4, 1)), strict=True)),
    **dict(zip((0xDA, 0xDB), ((2, 0), (4, 0)), strict=True)),
}
"""First byte -> bytes of the length behind it, and bytes between that and what is counted."""
