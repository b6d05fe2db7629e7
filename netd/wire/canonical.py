"""JSON as JavaScript writes it: what a signature over `JSON.stringify(...)` was made of. Sans-IO, ECMA-262.

    value = parse(payload)                 JSON text as JSON.parse reads it, and stricter
    text(value)                            JSON.stringify(value): keys in the order received
    text(value, order=by_utf16)            the same with the keys of every object sorted

Rules:
- every number is a double, as in JavaScript, and is written by Number::toString (section 6.1.6.1.20): 1e21 but
  100000000000000000000, 1e-7 but 0.000001, 0 for minus zero;
- keys that are array indices ("0", "12") come first and in numeric order, as in any JavaScript object (section
  10.1.11);
- strings are escaped as section 25.5.2.3 says (QuoteJSONString), lone surrogates included;
- a key given twice is refused: two readers could differ on which one counts.

Left out: whose signature it is (handshake.py). The codecs use msgspec, which is faster and writes numbers its own way.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = 32
"""How deep objects and arrays may nest."""
_INVALID = 1007  # close code, RFC 6455 section 7.4.1
_MAX_INDEX = 2**32 - 2
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(payload: bytes) -> Any:
    """What JSON.parse gives for these bytes, all numbers as float. Raises ProtocolError."""
    try:
        return _DECODER.decode(payload.decode())
    except (ValueError, RecursionError) as error:
        reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ProtocolError(f"cannot read JSON: {reason}", close=_INVALID) from None


def text(value: Any, *, order: Callable[[str], Any] | None = None) -> str:
    """What JSON.stringify gives. `order` sorts the keys of every object first. Raises ProtocolError when too deep."""
    parts: list[str] = []
    _write(value, order, parts, 0)
    return "".join(parts)


def by_utf16(key: str) -> bytes:
    """How Array.prototype.sort compares strings: by UTF-16 code units, which is not Python's order above U+FFFF."""
    return key.encode("utf-16-be", "surrogatepass")


def number(value: float) -> str:
    """Number::toString(value). Python's repr has the same shortest digits and other rules for where the point goes."""
    if not math.isfinite(value):
        return "null"  # what JSON.stringify makes of it
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    digits = (whole + fraction).lstrip("0")
    # value = 0.DIGITS * 10**point
    point = int(exponent or 0) - len(fraction) + len(digits)
    digits = digits.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    dot = "." if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{dot}{digits[1:]}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def string(value: str) -> str:
    """QuoteJSONString(value)."""
    quoted = _QUOTE(value)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _write(value: Any, order: Callable[[str], Any] | None, parts: list[str], depth: int) -> None:
    if depth >= MAX_DEPTH and isinstance(value, (dict, list)):
        raise ProtocolError(f"cannot read JSON: it nests deeper than {MAX_DEPTH}", close=_INVALID)
    match value:
        case str():
            parts.append(string(value))
        case bool():
            parts.append("true" if value else "false")
        case None:
            parts.append("null")
        case dict():
            separator = "{"
            for key in _keys(value, order):
                parts.append(f"{separator}{string(key)}:")
                _write(value[key], order, parts, depth + 1)
                separator = ","
            parts.append("}" if value else "{}")
        case list():
            separator = "["
            for item in value:
                parts.append(separator)
                _write(item, order, parts, depth + 1)
                separator = ","
            parts.append("]" if value else "[]")
        case _:
            parts.append(number(float(value)))


def _keys(value: dict[str, Any], order: Callable[[str], Any] | None) -> list[str]:
    indices: list[str] = []
    names: list[str] = []
    for key in value:
        (indices if _INDEX.fullmatch(key) and int(key) <= _MAX_INDEX else names).append(key)
    indices.sort(key=int)
    if order is not None:
        names.sort(key=order)
    return indices + names


def _number(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"number out of range: {literal[:40]}")
    return value


def _constant(literal: str) -> float:
    raise ValueError(f"{literal} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:40]!r} stands there twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_int=_number, parse_constant=_constant)
_QUOTE = json.JSONEncoder(ensure_ascii=False).encode
