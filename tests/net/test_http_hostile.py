"""The front door with peers that do not behave: each costs its own connection, for a bounded time, and nothing else."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from netd.net.http import HttpLimits
from tests.support.http import conversation, echo, endless, front_door, request, say

CHUNKED = request("POST", "/c", headers=["Transfer-Encoding: chunked"]) + b"3\r\nabc\r\n0\r\n\r\n"
SIZED = request("POST", "/s", b"abc")


def run(test, *args):
    """Run an async test on a clock of its own, where waiting takes no time."""
    return trio.run(test, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def error_of(response):
    error = json.loads(response.body)["error"]
    assert set(error) == {"kind", "message"}
    assert error["message"].startswith("cannot ")
    return error


# --- bytes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.lists(st.sampled_from(
    [b"GET ", b"POST ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b":", b"Host: x", b"Content-Length: ", b"3",
     b"Transfer-Encoding: chunked", b"-1", b"\x00", b"\xff", b" ", b"\t", b"abc", b"0", b"ffffffffffffffffffff"]
), max_size=40).map(b"".join)))  # fmt: skip
@example(b"\r\n" * 200)
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"\x00")
def test_garbage_ends_its_own_connection_and_no_other(garbage):
    async def test():
        async with front_door(echo) as (listener, _, _):
            hostile, honest = listener.connect(), listener.connect()
            await hostile.send(garbage)
            await hostile.half_close()
            answer = await hostile.rest()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            await honest.send(request())
            assert (await honest.response()).body == b"GET / |"

    with capture_logs() as logs:
        run(test)
    assert [line for line in logs if line["log_level"] in ("error", "warning")] == []


@pytest.mark.parametrize("whole", [SIZED, CHUNKED, request("GET", "/g", headers=["X: y"])])
def test_a_request_torn_anywhere_is_understood_the_same(whole):
    async def test(at):
        async with conversation(echo) as peer:
            await peer.send(whole[:at])
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(whole[at:])
            return (await peer.response("POST")).body

    bodies = {run(test, at) for at in range(1, len(whole))}
    assert len(bodies) == 1


@pytest.mark.parametrize(
    "end",
    [
        b"0\r\n\n",
        b"0\r\nX: y\n\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX: y\r\n z\r\n\r\n",
        b"3;a=\rb\r\nxyz\r\n0\r\n\r\n",
        b"0;\r\r\n\r\n",
    ],
)
def test_lines_of_a_body_that_two_readers_could_divide_differently_are_refused_wherever_they_are_torn(end):
    whole = CHUNKED.removesuffix(b"0\r\n\r\n") + end
    assert whole != CHUNKED

    async def test(at):
        async with conversation(echo) as peer:
            await peer.send(whole[:at])
            await trio.testing.wait_all_tasks_blocked()
            await peer.send(whole[at:] + request())
            return error_of(await peer.response("POST"))["message"]

    told = {run(test, at) for at in range(1, len(whole))}
    assert all(why.startswith("cannot read the request: ") for why in told)
    assert len(told) == 1


@pytest.mark.parametrize("whole", [SIZED, CHUNKED])
def test_a_request_that_ends_anywhere_is_refused_or_forgotten(whole):
    reached = []

    async def app(scope, receive, send):
        await echo(scope, receive, send)
        reached.append(scope["path"])

    async def test(at):
        async with conversation(app) as peer:
            await peer.send(whole[:at])
            await peer.half_close()
            answer = await peer.rest()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer

    for at in range(len(whole)):
        run(test, at)
    assert reached == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([SIZED, CHUNKED, request("GET", "/g")]), min_size=1, max_size=5), st.data())
def test_a_pipeline_cut_into_any_pieces_is_answered_in_order(requests, data):
    stream = b"".join(requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    async def test():
        async with conversation(echo) as peer, trio.open_nursery() as nursery:

            async def dribble():
                for piece in pieces:
                    await peer.send(piece)
                    await trio.testing.wait_all_tasks_blocked()

            nursery.start_soon(dribble)
            return [(await peer.response("POST")).body for _ in requests]

    expected = {SIZED: b"POST /s |abc", CHUNKED: b"POST /c |abc"}
    assert run(test) == [expected.get(one, b"GET /g |") for one in requests]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /?token=secret\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : secret\r\n\r\n",
    ],
)
async def test_a_line_that_cannot_be_read_is_not_repeated(head, capfd, autojump_clock):
    """What is told to the peer is logged, and there may be a token in it."""
    async with conversation(echo) as peer:
        await peer.send(head)
        response = await peer.response()
        assert response.status == 400
        assert b"illegal" in response.body
        assert b"secret" not in response.body
    assert "secret" not in "".join(capfd.readouterr())


# --- shapes that two readers could understand differently -------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 4\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)  # fmt: skip
async def test_refuses_what_is_ambiguous(head, status, autojump_clock):
    async def unreachable(scope, receive, send):
        raise AssertionError(scope)

    async with conversation(unreachable) as peer:
        await peer.send(head + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
        response = await peer.response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert error_of(response)["kind"] == "invalid"
        await peer.half_close()
        assert await peer.rest() == b""


async def test_a_path_that_is_no_text_is_told_as_bytes(autojump_clock):
    async def app(scope, receive, send):
        await say(send, scope["raw_path"] + b" " + scope["path"].encode())

    async with conversation(app) as peer:
        await peer.send(request("GET", "/a%ff%2Fb"))
        assert (await peer.response()).body == b"/a%ff%2Fb /a\xef\xbf\xbd/b"


@pytest.mark.parametrize(
    "body", [b"3\r\nabcd\r\n0\r\n\r\n", b"-3\r\nabc\r\n", b"zz\r\n", b"3 \x00\r\nabc\r\n", b"f" * 40 + b"\r\n", b"3abc"]
)
async def test_refuses_a_broken_chunk(body, autojump_clock):
    async with conversation(echo) as peer:
        await peer.send(request("POST", headers=["Transfer-Encoding: chunked"]) + body)
        await peer.half_close()
        assert error_of(await peer.response("POST"))["kind"] == "invalid"


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1 << 20, 1000, 1])
async def test_refuses_a_head_above_its_bound_however_it_arrives(piece, autojump_clock):
    head = request(headers=["x: " + "y" * 1500])
    async with conversation(echo, HttpLimits(max_head=1024)) as peer:
        for start in range(0, len(head), piece):
            await peer.send(head[start : start + piece])
        assert (await peer.response()).status == 431


async def test_an_endless_head_is_refused_and_soon_nobody_reads_it(autojump_clock):
    sent = 0

    async def flood(peer):
        nonlocal sent
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nx: ")
        while True:
            try:
                await peer.send(b"y" * 1000)
            except trio.BrokenResourceError:
                return
            sent += 1000

    async with conversation(echo, HttpLimits(max_head=1024), lockstep=True) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(flood, peer)
        assert (await peer.response()).status == 431
    # what it discards after the refusal is bounded too
    assert sent < 1024 + 16384 + (1 << 20) + 1000


async def test_refuses_too_many_headers():
    async with conversation(echo, HttpLimits(max_headers=10)) as peer:
        await peer.send(request(headers=[f"x-{n}: 1" for n in range(10)]))
        assert (await peer.response()).status == 431


async def test_refuses_a_body_that_says_it_is_too_long_before_the_application_runs(autojump_clock):
    async def unreachable(scope, receive, send):
        raise AssertionError(scope)

    async with conversation(unreachable, HttpLimits(max_body=100)) as peer:
        await peer.send(request("POST", headers=["Content-Length: 101", "Expect: 100-continue"]))
        assert (await peer.response("POST")).status == 413


async def test_refuses_a_chunked_body_once_it_is_too_long_and_ends_the_application(autojump_clock):
    async with conversation(echo, HttpLimits(max_body=100)) as peer:
        await peer.send(request("POST", headers=["Transfer-Encoding: chunked"]))
        for _ in range(11):
            await peer.send(b"a\r\n0123456789\r\n")
        assert (await peer.response("POST")).status == 413
        assert await peer.rest() == b""


async def test_a_body_of_the_smallest_chunks_arrives_in_few_messages():
    messages = []

    async def app(scope, receive, send):
        while (message := await receive())["more_body"]:
            messages.append(message)
        await say(send, b"")

    async with conversation(app) as peer:
        await peer.send(request("POST", headers=["Transfer-Encoding: chunked"]) + b"1\r\nx\r\n" * 10000 + b"0\r\n\r\n")
        assert (await peer.response("POST")).status == 200
    assert len(messages) < 10


# --- times ----------------------------------------------------------------------------------------------------------

LIMITS = HttpLimits(head_timeout=10, body_timeout=30, idle_timeout=60, write_timeout=10)


async def test_a_peer_that_says_nothing_is_closed_without_a_word(autojump_clock):
    async with conversation(echo, LIMITS) as peer:
        began = trio.current_time()
        assert await peer.rest() == b""
        assert trio.current_time() - began == 10


async def test_half_a_head_is_refused_in_time_even_if_it_dribbles(autojump_clock):
    async with conversation(echo, LIMITS) as peer:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def dribble():
                for byte in b"GET / HTTP/1.1\r\n" + b"x" * 1000:
                    await peer.send(bytes([byte]))
                    await trio.sleep(0.9)

            nursery.start_soon(dribble)
            assert (await peer.response()).status == 408
            assert trio.current_time() - began == 10
            nursery.cancel_scope.cancel()


async def test_half_a_body_is_refused_in_time_even_if_it_dribbles(autojump_clock):
    async with conversation(echo, LIMITS) as peer:
        began = trio.current_time()
        await peer.send(request("POST", headers=["Content-Length: 1000"]))
        async with trio.open_nursery() as nursery:

            async def dribble():
                while True:
                    await trio.sleep(7)
                    await peer.send(b"x")

            nursery.start_soon(dribble)
            assert (await peer.response("POST")).status == 408
            assert trio.current_time() - began == 30
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_later_than_a_silent_one(autojump_clock):
    async with conversation(echo, LIMITS) as peer:
        await peer.send(request())
        await peer.response()
        began = trio.current_time()
        assert await peer.rest() == b""
        assert trio.current_time() - began == 60


async def test_half_a_second_request_has_its_own_head_timeout(autojump_clock):
    async with conversation(echo, LIMITS) as peer:
        await peer.send(request())
        await peer.response()
        await trio.sleep(50)
        began = trio.current_time()
        await peer.send(b"GET ")
        assert (await peer.response()).status == 408
        assert trio.current_time() - began == 10


async def test_a_peer_that_never_reads_is_given_up_and_its_application_ends(autojump_clock):
    ended = trio.Event()

    async def app(scope, receive, send):
        try:
            await endless(scope, receive, send)
        finally:
            ended.set()

    async with conversation(app, LIMITS, lockstep=True) as peer:
        began = trio.current_time()
        await peer.send(request())
        await ended.wait()
        assert trio.current_time() - began == 10


async def test_a_slow_but_steady_reader_of_a_long_response_gets_all_of_it(autojump_clock):
    async def app(scope, receive, send):
        await say(send, b"x" * 1_000_000)

    async with conversation(app, LIMITS, lockstep=True) as peer:
        await peer.send(request())
        received = 0
        while received < 1_000_000:
            await trio.sleep(4)
            received += len(await peer.stream.receive_some(40_000))


async def test_one_write_may_not_take_for_ever_in_small_sips(autojump_clock):
    async def app(scope, receive, send):
        await say(send, b"x" * 1_000_000)

    async with conversation(app, LIMITS, lockstep=True) as peer:
        await peer.send(request())
        with pytest.raises((EOFError, trio.BrokenResourceError)):  # noqa: PT012
            while True:
                await trio.sleep(4)
                if not await peer.stream.receive_some(100):
                    raise EOFError


# --- applications that fail -----------------------------------------------------------------------------------------


async def test_an_application_that_fails_costs_its_connection_and_is_logged(autojump_clock):
    async def app(scope, receive, send):
        if scope["path"] == "/bad":
            raise ValueError("the application's own fault")
        await say(send, b"fine")

    with capture_logs() as logs:
        async with front_door(app) as (listener, _, _):
            bad, good = listener.connect(), listener.connect()
            await bad.send(request("GET", "/bad"))
            response = await bad.response()
            assert (response.status, error_of(response)["kind"]) == (500, "internal")
            assert b"own fault" not in response.body
            await good.send(request("GET", "/good"))
            assert (await good.response()).body == b"fine"
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert (line["event"], line["request"], line["exc_info"]) == ("connection failed", "GET /bad", True)


async def test_an_application_that_fails_in_a_group_is_guarded_too(autojump_clock):
    async def app(scope, receive, send):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("inside")

    with capture_logs() as logs:
        async with conversation(app) as peer:
            await peer.send(request())
            assert (await peer.response()).status == 500
    assert [line["event"] for line in logs] == ["connection failed"]


@pytest.mark.parametrize(
    "sent", [[], ["start"], ["start", "part"], ["part"], ["start", "start"], ["odd"], ["whole", "part"]]
)
async def test_an_application_that_breaks_asgi_never_makes_a_false_response(sent, autojump_clock):
    messages = {
        "start": [{"type": "http.response.start", "status": 200, "headers": []}],
        "part": [{"type": "http.response.body", "body": b"part", "more_body": True}],
        "odd": [{"type": "http.response.trailers"}],
        "whole": [
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"whole"},
        ],
    }

    async def app(scope, receive, send):
        for name in sent:
            for message in messages[name]:
                await send(message)

    with capture_logs() as logs:
        async with conversation(app) as peer:
            await peer.send(request(headers=["Connection: close"]))
            await peer.half_close()
            try:
                data = await peer.rest()
            except trio.BrokenResourceError:
                data = b""
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["connection failed"]
    if sent == ["start", "part"]:
        assert not data.endswith(b"0\r\n\r\n"), "the client must see that the response is not whole"
    elif sent == ["whole", "part"]:
        assert data.endswith(b"whole")
    else:
        assert data.startswith(b"HTTP/1.1 500 ")


async def test_an_application_that_cuts_its_own_send_short_sends_no_more(autojump_clock):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(1):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        await send({"type": "http.response.body", "body": b"unreachable"})

    async with conversation(app, lockstep=True) as peer:
        await peer.send(request())
        await peer.stream.receive_some(10)
        await trio.sleep(2)
        with pytest.raises((EOFError, trio.BrokenResourceError)):  # noqa: PT012
            while data := await peer.stream.receive_some(1000):
                assert b"unreachable" not in data
            raise EOFError


@pytest.mark.parametrize("body", [b"short", b"much too long"])
async def test_a_response_that_belies_its_length_is_cut(body, autojump_clock):
    async def app(scope, receive, send):
        await say(send, body, headers=[(b"content-length", b"7")])

    with capture_logs():
        async with conversation(app) as peer:
            await peer.send(request())
            data = await peer.rest()
    assert len(data.partition(b"\r\n\r\n")[2]) <= 7
    assert not data.endswith(body) or len(body) == 7


async def test_a_header_with_a_line_break_never_leaves(autojump_clock):
    async def app(scope, receive, send):
        await say(send, b"", headers=[(b"x", b"1\r\nset-cookie: evil")])

    with capture_logs():
        async with conversation(app) as peer:
            await peer.send(request())
            response = await peer.response()
    assert response.status == 500
    assert "set-cookie" not in response.headers
