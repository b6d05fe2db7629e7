"""Chunked bodies against another reader of RFC 9112: whatever this one takes, that one divides in the same way."""

from __future__ import annotations

import re

import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.http import conversation, echo, request

HEAD = request("POST", "/", headers=["Transfer-Encoding: chunked"])
NEXT = request("GET", "/next", headers=["Connection: close"])
PIECES = [b"\r\n", b"\r", b"\n", b"0", b"1", b"2", b"a", b";", b" ", b"\t", b"X: y", b"0\r\n", b"1\r\na\r\n"]
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;.*)?[ \t]*")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")


def _size(line: bytes) -> int:
    found = _SIZE.fullmatch(line)
    if found is None:
        raise ValueError
    return int(found[1], 16)


def read(stream: bytes) -> tuple[bytes, bytes] | None:
    """The body, and what follows it; None: it is no body, or does not end. Lines end with CR LF and have neither in
    them (section 2.2), and none goes on in the next (5.2)."""
    body, at = b"", 0

    def line() -> bytes:
        nonlocal at
        found, end, _ = stream[at:].partition(b"\r\n")
        if not end or b"\r" in found or b"\n" in found:
            raise ValueError
        at += len(found) + 2
        return found

    try:
        while size := _size(line()):
            body += stream[at : at + size]
            at += size
            if stream[at : at + 2] != b"\r\n":
                return None
            at += 2
        while field := line():
            if not _FIELD.match(field):
                return None
    except ValueError:
        return None
    return body, stream[at:]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.data())
@example(b"1\r\n\r\r\n0\r\n\r\n", None)
@example(b"2\r\n\r\n\r\n0\r\nX: y\r\n\r\n", None)
@example(b"1\r\na\r\n\n0\r\n\r\n", None)
@example(b"1;\r\r\na\r\n0\r\n\r\n", None)
@example(b"0\r\n\n", None)
def test_a_body_in_chunks_is_taken_as_another_reader_takes_it_wherever_it_is_torn(chunks, data):
    stream = chunks + b"0\r\n\r\n" + NEXT
    cuts = range(1, len(stream)) if data is None else sorted(data.draw(st.sets(st.integers(1, len(stream) - 1))))

    async def test(pieces: list[bytes]) -> bytes:
        async with conversation(echo) as peer:
            await peer.send(HEAD)
            for piece in pieces:
                await peer.send(piece)
                await trio.testing.wait_all_tasks_blocked()
            await peer.half_close()
            return await peer.rest()

    def run(pieces: list[bytes]) -> bytes:
        answer = trio.run(test, pieces, clock=trio.testing.MockClock(autojump_threshold=0))
        # what is wrong with what follows may be seen sooner or later
        return re.sub(rb"\r\ndate: [^\r]*|(?<=HTTP/1.1 400 ).*", b"", answer, flags=re.DOTALL)

    whole = run([stream])
    assert run([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]) == whole
    expected = read(stream)
    if expected is None:
        assert whole.startswith(b"HTTP/1.1 400 ")
    elif whole.startswith(b"HTTP/1.1 200 "):
        assert b"\r\n\r\nPOST / |" + expected[0] + b"HTTP/1.1 " in whole
