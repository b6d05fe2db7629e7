"""Short ids that sort by time: nine characters of Crockford's base 32, the milliseconds since the epoch.

Rules: two ids of one source are never equal and always rise, also when the clock stands still or is set back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 9
"""45 bits: good for a thousand years."""
PATTERN = f"^[{DIGITS}]{{{LENGTH}}}$"


def encode(value: int) -> str:
    """0 <= value < 32**9, else ValueError."""
    if not 0 <= value < 32**LENGTH:
        raise ValueError(f"cannot write {value} with {LENGTH} digits")
    return "".join(DIGITS[value >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def decode(text: str) -> int:
    """The opposite of `encode`; ValueError for anything it would not write."""
    if len(text) != LENGTH:
        raise ValueError(f"cannot read the id {text!r}: it must have {LENGTH} characters")
    value = 0
    for character in text:
        digit = DIGITS.find(character)
        if digit < 0:
            raise ValueError(f"cannot read the id {text!r}: {character!r} is not one of {DIGITS}")
        value = value << 5 | digit
    return value


class Ids:
    """A source of ids. `clock` is in seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last = -1

    def new(self) -> str:
        self._last = max(self._last + 1, int(self._clock() * 1000))
        return encode(self._last)

    def after(self, other: str) -> None:
        """Give out only ids above `other`, one that was given out before (by an earlier run, say)."""
        self._last = max(self._last, decode(other))


IDS = Ids()
"""The whole process's source: clients, their traces and operators' traces never share an id."""
