"""The cases of the Autobahn test suite's fuzzing client, written anew from its descriptions, with its numbers.

A case is what a client sends and what has to come back from a server that echoes. Its suite counts some answers as
"non-strict"; here there is one right answer: everything before a violation is echoed, and the violation's own code is
said in a Close. A case that violates nothing ends with the client's Close, which is answered with its code.

Left out: timing. Where the suite waits a second between frames, they are sent in pieces of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.services.broker.raw import GOODBYE, message
from tests.support.websocketpeer import raw

if TYPE_CHECKING:
    from collections.abc import Iterator

FIN = 0x80
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KOSME = bytes.fromhex("cebae1bdb9cf83cebcceb5")
Frame = tuple[int, bytes]


@dataclass(frozen=True)
class Case:
    number: str
    frames: list[Frame] = field(repr=False)
    expected: list[tuple[str, Any]] = field(repr=False)
    """Messages and pongs, in order."""
    close: int = 1000
    """The code of the server's Close. 1005: it has none, as the client's had none."""
    chop: int = 0
    """Bytes to be sent at a time; 0: all at once."""

    @property
    def stream(self) -> bytes:
        made = b"".join(
            message(first, payload) if len(payload) > 1000 else raw(first, payload) for first, payload in self.frames
        )
        ends = self.close == 1000 and not any(first & 15 == CLOSE for first, _ in self.frames)
        return made + (GOODBYE if ends else b"")


def text(payload: bytes) -> tuple[str, bytes]:
    return ("text", payload)


def fragments(opcode: int, payload: bytes, size: int) -> list[Frame]:
    """A message in frames of so many bytes."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    last = len(parts) - 1
    return [((opcode if not index else 0) | (FIN if index == last else 0), part) for index, part in enumerate(parts)]


def cut(case: Case, chops: tuple[int, ...]) -> Iterator[Case]:
    """The case whole, and in pieces of so many bytes."""
    for chop in chops:
        yield Case(f"{case.number}/{chop or 'whole'}", case.frames, case.expected, case.close, chop)


# --- 1 to 5: framing, pings, reserved bits, opcodes, fragmentation ---------------------------------------------------


def framing() -> Iterator[Case]:
    for kind, opcode, byte in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536, 65536), start=1):
            said = [("text" if opcode == TEXT else "binary", byte * size)]
            yield Case(f"1.{kind}.{number}", [(FIN | opcode, byte * size)], said, chop=997 if number == 8 else 0)


def pings() -> Iterator[Case]:
    every = [b"", b"Hello, world!", b"\0\xff\xfe\xfd\xfc\xfb\0\xff", b"\xfe" * 125]
    for number, payload in enumerate(every, start=1):
        yield Case(f"2.{number}", [(0x89, payload)], [("pong", payload)])
    yield Case("2.5", [(0x89, b"\xfe" * 126)], [], 1002)
    yield Case("2.6", [(0x89, b"\xfe" * 125)], [("pong", b"\xfe" * 125)], chop=1)
    yield Case("2.7", [(0x8A, b"")], [])
    yield Case("2.8", [(0x8A, b"unsolicited")], [])
    yield Case("2.9", [(0x8A, b"unsolicited"), (0x89, b"ping")], [("pong", b"ping")])
    ten = [b"payload-%d" % index for index in range(10)]
    for number, chop in ((10, 0), (11, 1)):
        yield Case(f"2.{number}", [(0x89, each) for each in ten], [("pong", each) for each in ten], chop=chop)


def reserved_bits() -> Iterator[Case]:
    hello, ping = b"Hello, world!", (0x89, b"")
    yield Case("3.1", [(0x81 | 1 << 4, hello)], [], 1002)
    for number, bits, chop in ((2, 2, 0), (3, 3, 19), (4, 4, 1)):
        yield Case(f"3.{number}", [(0x81, hello), (0x81 | bits << 4, hello), ping], [text(hello)], 1002, chop)
    yield Case("3.5", [(0x82 | 5 << 4, b"\0\xff\xfe\xfd\xfc\xfb\0\xff")], [], 1002)
    yield Case("3.6", [(0x89 | 6 << 4, hello)], [], 1002)
    yield Case("3.7", [(0x88 | 7 << 4, b"")], [], 1002)


def opcodes() -> Iterator[Case]:
    hello, ping = b"Hello, world!", (0x89, b"")
    for kind, first in ((1, 3), (2, 11)):
        for number in range(1, 6):
            opcode = FIN | (first + number - 1)
            payload = hello if number in (2, 4, 5) else b""
            frames = [(opcode, payload)] if number < 3 else [(0x81, hello), (opcode, payload), ping]
            said = [] if number < 3 else [text(hello)]
            yield Case(f"4.{kind}.{number}", frames, said, 1002, 1 if number == 5 else 0)


def fragmentation() -> Iterator[Case]:
    one, two, both = (0x01, b"fragment1"), (0x80, b"fragment2"), text(b"fragment1fragment2")
    ping, pong, hello = (0x89, b"ping payload"), ("pong", b"ping payload"), b"Hello, world!"
    yield Case("5.1", [(0x09, b"fragment1"), two], [], 1002)
    yield Case("5.2", [(0x0A, b"fragment1"), two], [], 1002)
    for number, chop in ((3, 0), (4, 15), (5, 1)):
        yield Case(f"5.{number}", [one, two], [both], chop=chop)
    for number, chop in ((6, 0), (7, 15), (8, 1)):
        yield Case(f"5.{number}", [one, ping, two], [pong, both], chop=chop)
    for start, first in ((9, 0x80), (12, 0x00)):
        for number, chop in enumerate((0, 30, 1), start=start):
            yield Case(f"5.{number}", [(first, b"non-continuation payload"), (0x81, hello)], [], 1002, chop)
    yield Case("5.15", [one, two, (0x00, b"fragment3"), (0x01, b"fragment4")], [both], 1002)
    for number, first in ((16, 0x00), (17, 0x80)):
        yield Case(f"5.{number}", [(first, b"fragment1"), (0x01, b"fragment2"), (0x80, b"fragment3")] * 2, [], 1002)
    yield Case("5.18", [one, (0x81, b"fragment2")], [], 1002)
    parts = [b"fragment%d" % index for index in range(1, 6)]
    pings = [(0x89, b"pongme %d!" % index) for index in (1, 2)]
    frames = [(0x01, parts[0]), (0, parts[1]), pings[0], (0, parts[2]), (0, parts[3]), pings[1], (FIN, parts[4])]
    said = [("pong", pings[0][1]), ("pong", pings[1][1]), text(b"".join(parts))]
    for number, chop in ((19, 15), (20, 0)):
        yield Case(f"5.{number}", frames, said, chop=chop)


# --- 6: UTF-8 --------------------------------------------------------------------------------------------------------

_BEGINS = [KOSME[:size] for size in range(1, len(KOSME) + 1)]
_INVALID_MIDDLE = KOSME + b"\xed\xa0\x80" + b"edited"


def _hexes(words: str) -> list[bytes]:
    return [bytes.fromhex(word) for word in words.split()]


_SETS: dict[int, list[bytes]] = {
    5: [*(f"hello{char}world".encode() for char in "$\u00a2\u20ac\U00024b62"), KOSME],
    6: _BEGINS,
    7: _hexes("00 c280 e0a080 f0908080"),
    8: _hexes("f888808080 fc8480808080"),
    9: _hexes("7f dfbf efbfbf f48fbfbf"),
    10: _hexes("f7bfbfbf fbbfbfbfbf fdbfbfbfbfbf"),
    11: _hexes("ed9fbf ee8080 efbfbd f48fbfbf f4908080"),
    12: [
        b"\x80",
        b"\xbf",
        *((b"\x80\xbf" * count)[:count] for count in range(2, 7)),
        bytes(range(0x80, 0xC0)),
    ],
    13: [
        b"".join(bytes([each, 0x20]) for each in lonely)
        for lonely in (range(0xC0, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF8), range(0xF8, 0xFC), range(0xFC, 0xFE))
    ],
    14: _hexes("c0 e080 f08080 f8808080 fc80808080 df efbf f7bfbf fbbfbfbf fdbfbfbfbf"),
    15: _hexes("c0e080f08080f8808080fc80808080dfefbff7bfbffbbfbfbffdbfbfbfbf"),
    16: _hexes("fe ff fefeffff"),
    17: _hexes("c0af e080af f08080af f8808080af fc80808080af"),
    18: _hexes("c1bf e09fbf f08fbfbf f887bfbfbf fc83bfbfbfbf"),
    19: _hexes("c080 e08080 f0808080 f880808080 fc8080808080"),
    20: _hexes("eda080 edadbf edae80 edafbf edb080 edbe80 edbfbf"),
    21: _hexes(
        "eda080edb080 eda080edbfbf edadbfedb080 edadbfedbfbf edae80edb080 edae80edbfbf edafbfedb080 edafbfedbfbf"
    ),
    22: [chr(plane << 16 | low).encode() for plane in range(17) for low in (0xFFFE, 0xFFFF)],
    23: [chr(code).encode() for code in (0xFFF9, 0xFFFA, 0xFFFB, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF)],
}


def valid(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError:
        return False
    return True


def utf8() -> Iterator[Case]:
    yield Case("6.1.1", [(0x81, b"")], [text(b"")])
    yield Case("6.1.2", [(0x01, b""), (0x00, b""), (0x80, b"")], [text(b"")])
    yield Case("6.1.3", [(0x01, b""), (0x00, b"middle frame payload"), (0x80, b"")], [text(b"middle frame payload")])
    hello = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    yield Case("6.2.1", [(0x81, hello)], [text(hello)])
    yield Case("6.2.2", [(0x01, hello[:12]), (0x80, hello[12:])], [text(hello)])
    yield Case("6.2.3", fragments(TEXT, hello, 1), [text(hello)])
    yield Case("6.2.4", fragments(TEXT, KOSME, 1), [text(KOSME)])
    yield Case("6.3.1", [(0x81, _INVALID_MIDDLE)], [], 1007)
    yield Case("6.3.2", fragments(TEXT, _INVALID_MIDDLE, 1), [], 1007)
    # fail fast: what would follow is never sent
    yield Case("6.4.1", [(0x01, KOSME), (0x00, b"\xf4\x90\x80\x80")], [], 1007)
    yield Case("6.4.2", [(0x01, KOSME + b"\xf4"), (0x00, b"\x90")], [], 1007)
    for group, samples in _SETS.items():
        for number, sample in enumerate(samples, start=1):
            fine = valid(sample)
            yield Case(f"6.{group}.{number}", [(0x81, sample)], [text(sample)] if fine else [], 1000 if fine else 1007)


def unfinished() -> Iterator[tuple[str, bytes]]:
    """6.4.3 and 6.4.4: within a frame that is not complete, the first byte that cannot be UTF-8 ends it."""
    whole = raw(0x81, KOSME + b"\xf4\x90\x80\x80" + b"edited")
    yield "6.4.3", whole[: 6 + len(KOSME) + 4]
    yield "6.4.4", whole[: 6 + len(KOSME) + 2]


# --- 7: closing ------------------------------------------------------------------------------------------------------

CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
NO_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)


def closing() -> Iterator[Case]:
    hello, end = (0x81, b"Hello World!"), (0x88, b"\x03\xe8")
    yield Case("7.1.1", [hello, end], [text(b"Hello World!")])
    yield Case("7.1.2", [end, end], [])
    yield Case("7.1.3", [end, (0x89, b"")], [])
    yield Case("7.1.4", [end, hello], [])
    yield Case("7.1.5", [(0x01, b"fragment1"), end, (0x80, b"fragment2")], [])
    long = b"BAsd7&jh23" * 26214 + b"BAsd"
    yield Case("7.1.6", [(0x81, long), hello, end, (0x89, b"")], [text(long), text(b"Hello World!")])
    yield Case("7.3.1", [(0x88, b"")], [], 1005)
    yield Case("7.3.2", [(0x88, b"a")], [], 1002)
    yield Case("7.3.3", [end], [])
    yield Case("7.3.4", [(0x88, b"\x03\xe8Hello World!")], [])
    yield Case("7.3.5", [(0x88, b"\x03\xe8" + b"*" * 123)], [])
    yield Case("7.3.6", [(0x88, b"\x03\xe8" + b"*" * 124)], [], 1002)
    yield Case("7.5.1", [(0x88, b"\x03\xe8" + _INVALID_MIDDLE)], [], 1007)
    for number, code in enumerate(CODES, start=1):
        yield Case(f"7.7.{number}", [(0x88, code.to_bytes(2))], [], code)
    for number, code in enumerate(NO_CODES, start=1):
        yield Case(f"7.9.{number}" if number < 10 else f"7.13.{number - 9}", [(0x88, code.to_bytes(2))], [], 1002)


# --- 9, 10: limits and large messages --------------------------------------------------------------------------------

KIB, MIB = 1024, 1024 * 1024
LARGE = (64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB)
PIECES = (64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB)
CHOPS = (64, 128, 256, 512, 1024, 2048)
SIZES = (0, 16, 64, 256, 1024, 4096)


def large(scale: int) -> Iterator[Case]:
    """`scale` 1 is the suite's own; 4 has a fourth of the bytes and messages where these are many."""
    for kind, opcode, name, byte in ((1, TEXT, "text", b"*"), (2, BINARY, "binary", b"\xfe")):
        for number, size in enumerate(LARGE, start=1):
            yield Case(f"9.{kind}.{number}", [(FIN | opcode, byte * size)], [(name, byte * size)])
        four = byte * (4 * MIB // scale)
        for number, size in enumerate(PIECES, start=1):
            yield Case(f"9.{kind + 2}.{number}", fragments(opcode, four, max(64, size // scale)), [(name, four)])
        one = byte * (MIB // scale)
        for number, chop in enumerate(CHOPS, start=1):
            yield Case(f"9.{kind + 4}.{number}", [(FIN | opcode, one)], [(name, one)], chop=chop)
        for number, size in enumerate(SIZES, start=1):
            count = 1000 // scale
            yield Case(f"9.{kind + 6}.{number}", [(FIN | opcode, byte * size)] * count, [(name, byte * size)] * count)
    whole = b"*" * 65536
    yield Case("10.1.1", fragments(TEXT, whole, 1300), [text(whole)])
