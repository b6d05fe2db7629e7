"""A small mutation fuzzer, for Pythons that atheris does not have: seeds, cut, joined, repeated, with bytes changed.

It has no coverage to go by. `mutations(seeds, chance)` never ends and is the same for the same `chance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_LONGEST = 8192
_TELLING = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x5B, 0x7B, 0x22, 0x5C, 0xC1, 0xD4, 0xDD, 0xDF)
"""Bytes that mean something to one of the formats: zero, the ends of ranges, brackets, quotes, ext, huge counts."""


def mutations(seeds: list[bytes], chance: random.Random) -> Iterator[bytes]:
    pool = list(seeds)
    while True:
        data = bytearray(chance.choice(pool))
        for _ in range(chance.randint(1, 4)):
            _change(data, seeds, chance)
        made = bytes(data[:_LONGEST])
        yield made
        # some of what was made is changed further
        if chance.random() < 0.05:
            if len(pool) < 4 * len(seeds) + 64:
                pool.append(made)
            else:
                pool[chance.randrange(len(seeds), len(pool))] = made


def _change(data: bytearray, seeds: list[bytes], chance: random.Random) -> None:
    at = chance.randint(0, len(data))
    to = min(len(data), at + chance.choice((1, 1, 2, 4, 16)))
    match chance.randrange(7):
        case 0:
            data[at:to] = chance.randbytes(to - at)
        case 1:
            data[at:to] = bytes([chance.choice(_TELLING)]) * (to - at)
        case 2:
            del data[at:to]
        case 3:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 9)))
        case 4:
            data[at:at] = data[at:to] * chance.choice((1, 2, 70))
        case 5:
            other = chance.choice(seeds)
            data[at:] = other[chance.randint(0, len(other)) :]
        case _:
            del data[at:]
