"""WebSocket input against the rules: it costs the connection it came on, and nothing else."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netd.services.trace.notices import ClientGone
from tests.services.trace.lab import House, ScriptedTracer, eventually, frame, handshake, read_all, serving

whole_frames = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=300),
    final=st.booleans(),
    masked=st.booleans(),
)
after_handshake = st.lists(st.binary(max_size=200) | whole_frames, max_size=12)


async def still_serves(house: House) -> None:
    """An ordinary client gets its trace, and nothing of the others is left."""
    async with house.client() as client:
        assert (await client.until("clientDone"))[-1]["reason"] == "destination"
    await eventually(lambda: house.service.snapshot().connections == 0)
    assert house.counted("netd_trace_clients") == 0


def broken(logs: list[dict[str, object]]) -> list[dict[str, object]]:
    """What was logged with a traceback: a failure that nobody foresaw."""
    return [entry for entry in logs if entry["log_level"] == "error"]


def run(test: object) -> None:
    trio.run(test)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(after_handshake, min_size=1, max_size=4))
def test_random_bytes_after_the_handshake(conversations: list[list[bytes]]) -> None:
    async def scenario() -> None:
        async with serving(address_burst=1000, input_rate=10_000_000) as house:
            for pieces in conversations:
                stream = await house.raw()
                await stream.send_all(handshake())
                assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101 ")
                for piece in pieces:
                    try:
                        await stream.send_all(piece)
                    except trio.BrokenResourceError:
                        break
                stream.socket.close()
            await still_serves(house)

    with structlog.testing.capture_logs() as logs:
        run(scenario)
    assert broken(logs) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=400) | st.integers(0, 200), min_size=1, max_size=4))
def test_random_bytes_instead_of_a_handshake_and_torn_handshakes(openings: list[bytes | int]) -> None:
    async def scenario() -> None:
        async with serving(address_burst=1000) as house:
            for opening in openings:
                stream = await house.raw()
                await stream.send_all(opening if isinstance(opening, bytes) else handshake()[:opening])
                await stream.send_eof()
                answer = await read_all(stream)
                assert not answer or answer.startswith(b"HTTP/1.1 ")
                stream.socket.close()
            await still_serves(house)

    with structlog.testing.capture_logs() as logs:
        run(scenario)
    assert broken(logs) == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\xc8" + bytes(200),
        handshake("Sec-WebSocket-Protocol: caf\xe9"),
        handshake("Sec-WebSocket-Version: 99"),
        handshake("Transfer-Encoding: chunked") + b"zz\r\n",
        handshake("Content-Length: 10") + b"0123456789",
        handshake(target="/\xe9"),
        handshake().replace(b"Host: 127.0.0.1", b"Host: \xff.example"),
        handshake().replace(b"Host: 127.0.0.1", b"Host: xn--\x7f"),
        handshake().replace(b"Host: 127.0.0.1\r\n", b""),
        handshake().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
        handshake().replace(b"HTTP/1.1", b"HTTP/1.0"),
        handshake() + b"garbage in the same packet",
        handshake() * 3,
    ],
    ids=lambda head: repr(head[:24]),
)
async def test_heads_against_the_rules(head: bytes) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(address_burst=1000, input_rate=10_000_000) as house:
            stream = await house.raw()
            with suppress(trio.BrokenResourceError):  # refused before it was all said
                await stream.send_all(head)
                await stream.send_eof()
            answer = await read_all(stream)
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            await still_serves(house)
    assert broken(logs) == []


@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"\xff\xfe not UTF-8"),
        frame(1, b"\xed\xa0\x80"),
        frame(1, b"ok", masked=False),
        frame(3, b"reserved opcode"),
        frame(0, b"continuation of nothing"),
        frame(9, b"x" * 126),
        frame(9, b"", final=False),
        b"\xf1\x80\x00\x00\x00\x00",
        b"\x81\xff" + struct.pack("!Q", 2**63) + bytes(4),
        b"\x81\xff" + struct.pack("!Q", 2**62) + bytes(4) + b"x" * 10_000,
        frame(1, b"x" * 100_000),
        frame(2, b"x" * 100_000),
        frame(8, b"\x03"),
        frame(8, struct.pack("!H", 1005)),
        frame(8, struct.pack("!H", 99)),
        frame(8, struct.pack("!H", 1000) + b"\xff"),
        frame(8, struct.pack("!H", 1000)) * 3,
        frame(8, b"") + frame(1, b'{"type":"trace"}'),
        frame(10, b"a pong nobody asked for") * 50,
        frame(1, b'{"type":"trace"}') * 200,
        frame(1, b"[" * 4000),
    ],
    ids=lambda data: repr(data[:24]),
)
async def test_frames_against_the_rules(data: bytes) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(address_burst=1000, input_rate=10_000_000) as house:
            stream = await house.raw()
            await stream.send_all(handshake())
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101 ")
            with suppress(trio.BrokenResourceError):  # refused before it was all said
                await stream.send_all(data)
            async with house.client() as other:  # served beside it
                assert (await other.until("clientDone"))[-1]["reason"] == "destination"
            stream.socket.close()
            await still_serves(house)
            await eventually(lambda: len(house.notices(ClientGone)) == 3)
    assert broken(logs) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"ok", masked=False), 1002),
        (frame(3, b"reserved opcode"), 1002),
        (b"\xf1\x80\x00\x00\x00\x00", 1002),  # RSV bits that nobody negotiated
        (frame(1, b"\xff\xfe not UTF-8"), 1007),
        (frame(8, struct.pack("!H", 1000) + b"\xff"), 1007),
    ],
    ids=["unmasked", "opcode", "rsv", "utf-8", "utf-8 in close"],
)
async def test_what_breaks_the_rules_is_told_which_before_the_end(data: bytes, code: int) -> None:
    tracer = ScriptedTracer("hang")
    async with serving(tracer) as house:
        stream = await house.raw()
        await stream.send_all(handshake())
        assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101 ")
        await tracer.begun.wait()  # all is written: nothing is in the way of a last frame
        await stream.send_all(data)
        answer = await read_all(stream)
        close = answer.rindex(b"\x88")
        assert len(answer) == close + 2 + answer[close + 1]
        assert struct.unpack_from("!H", answer, close + 2) == (code,)


async def test_a_peer_that_says_goodbye_hears_it_once() -> None:
    async with serving(ScriptedTracer("hang")) as house:
        stream = await house.raw()
        await stream.send_all(handshake())
        assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101 ")
        await stream.send_all(frame(8, struct.pack("!H", 1002)))
        answer = await read_all(stream)
        assert answer.endswith(b"\x88\x02" + struct.pack("!H", 1002))
        assert answer.count(b"\x88\x02") == 1


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("/", b"426 Upgrade Required", b"cannot trace a plain HTTP request: connect to / with a WebSocket client\n"),
        ("/?q", b"426 Upgrade Required", b"cannot trace a plain HTTP request"),
        ("/favicon.ico", b"404 Not Found", b"cannot find this page: traces are at /\n"),
    ],
)
async def test_a_plain_request_is_told_what_is_here(target: str, status: bytes, says: bytes) -> None:
    async with serving() as house:
        stream = await house.raw()
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert (b"\r\nUpgrade: websocket\r\n" in head) is status.startswith(b"426")
        assert b"\r\nContent-Length: %d" % len(body) in head
        assert body.startswith(says)


@pytest.mark.parametrize(
    "head",
    [
        handshake().replace(b"Sec-WebSocket-Key", b"X-Key"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
    ],
)
async def test_other_bad_handshakes_are_bad_requests(head: bytes) -> None:
    async with serving() as house:
        stream = await house.raw()
        await stream.send_all(head)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400 ")


async def test_a_reset_in_the_middle_of_everything() -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(address_burst=1000) as house:
            for opening in (b"", handshake()[:30], handshake(), handshake() + frame(1, b"x", final=False)):
                stream = await house.raw()
                stream.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close by RST
                await stream.send_all(opening)
                if opening.endswith(b"\r\n\r\n"):
                    await stream.receive_some(1)
                stream.socket.close()
            await still_serves(house)
    assert broken(logs) == []


async def test_a_handshake_that_never_ends_is_ended() -> None:
    async with serving(handshake_timeout=0.2) as house:
        slow = await house.raw()
        await slow.send_all(handshake()[:-2])
        silent = await house.raw()
        await read_all(slow)
        await read_all(silent)
        assert house.counted("netd_trace_refused_total", why="handshake-timeout") == 2
        await still_serves(house)
