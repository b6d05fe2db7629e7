"""The front door gives a connection away: the head, what was read behind the request, and who closes it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from netd.errors import ProtocolError
from netd.net.http import Ends, FrontDoor, Handed, HttpLimits, serve_connection
from tests.support.http import MemoryListener, Peer, conversation, echo, front_door, request, say

UPGRADE = request("GET", "/ws", headers=["Connection: Upgrade", "Upgrade: websocket"])
SWITCH = [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", b"x")]
HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


class Taking:
    """An application that takes over what asks for /ws and echoes the rest."""

    def __init__(self, status=101, headers=SWITCH):
        self.status, self.headers = status, headers
        self.taken: list[Handed] = []

    async def __call__(self, scope, receive, send):
        if scope["path"] != "/ws":
            await echo(scope, receive, send)
            return
        self.taken.append(await scope["extensions"]["netd.handover"](self.status, self.headers))


async def read(stream, size):
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more
        data += more
    return data


async def test_the_head_is_the_applications_and_the_connection_too():
    app = Taking()
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve():
            assert await serve_connection(theirs, app, HttpLimits(), trio.Event()) is True

        nursery.start_soon(serve)
        await ours.send_all(UPGRADE)
        assert await read(ours, len(HEAD)) == HEAD
    [handed] = app.taken
    assert handed.stream is theirs
    assert handed.received == b""
    await theirs.send_all(b"mine")
    assert await ours.receive_some(10) == b"mine", "the front door has ended and left it open"
    await ours.send_all(b"yours")
    assert await theirs.receive_some(10) == b"yours"


@pytest.mark.parametrize("before", [b"", request("POST", "/first", b"abc"), request("GET", "/a") * 3])
async def test_what_came_right_behind_the_request_goes_with_it(before):
    app = Taking()
    async with conversation(app) as peer:
        await peer.send(before + UPGRADE + b"\x81\x00 frames")
        data = b""
        while not data.endswith(HEAD):
            more = await peer.stream.receive_some(65536)
            assert more, data
            data += more
        assert data.count(b"HTTP/1.1 200 ") == before.count(b"HTTP/1.1")
        await trio.testing.wait_all_tasks_blocked()
    [handed] = app.taken
    assert handed.received == b"\x81\x00 frames"


@pytest.mark.parametrize("cut", range(1, len(UPGRADE) + 6, 7))
async def test_nothing_is_lost_wherever_it_is_torn(cut):
    app = Taking()
    whole = UPGRADE + b"behind"
    async with conversation(app) as peer:
        await peer.send(whole[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(whole[cut:])
        await read(peer.stream, len(HEAD))
        await trio.testing.wait_all_tasks_blocked()
        [handed] = app.taken
        rest = handed.received
        if len(rest) < 6:
            rest += await handed.stream.receive_some(100)
    assert rest == b"behind"


async def test_bytes_that_were_read_before_are_read_first():
    ours, theirs = trio.testing.memory_stream_pair()
    app = Taking()
    async with trio.open_nursery() as nursery:

        async def serve():
            await serve_connection(theirs, app, HttpLimits(), trio.Event(), received=request("GET", "/1") + UPGRADE[:9])

        nursery.start_soon(serve)
        peer = Peer(ours)
        assert (await peer.response()).body == b"GET /1 |"
        await peer.send(UPGRADE[9:])
        assert await read(ours, len(HEAD)) == HEAD
    assert len(app.taken) == 1


async def test_a_stream_of_events_says_that_it_ends_with_the_connection():
    app = Taking(200, [(b"content-type", b"text/event-stream"), (b"Transfer-Encoding", b"chunked")])
    async with conversation(app) as peer:
        await peer.send(request("GET", "/ws"))
        await trio.testing.wait_all_tasks_blocked()
        [handed] = app.taken
        await handed.stream.send_all(b"data: 1\n\n")
        await handed.stream.aclose()
        response = await peer.response()
    assert response.body == b"data: 1\n\n"
    assert response.headers["connection"] == "close"
    assert "transfer-encoding" not in response.headers
    assert response.headers["date"].endswith("GMT")


async def test_http_1_0_is_given_streams_and_no_upgrades():
    app = Taking(200, [])
    async with conversation(app) as peer:
        await peer.send(b"GET /ws HTTP/1.0\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert len(app.taken) == 1
    with capture_logs() as logs:
        async with conversation(app := Taking()) as peer:
            await peer.send(b"GET /ws HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            assert (await peer.rest()).startswith(b"HTTP/1.1 500 ")
    assert app.taken == []
    assert [line["event"] for line in logs] == ["connection failed"]


# --- what cannot be handed over ---------------------------------------------------------------------------------------


async def test_an_unread_body_is_not_handed_on_as_something_else():
    with capture_logs():
        async with conversation(app := Taking()) as peer:
            await peer.send(request("GET", "/ws", b"GET /smuggled HTTP/1.1\r\n\r\n"))
            assert b"HTTP/1.1 500 " in await peer.rest()
    assert app.taken == []


async def test_a_body_that_was_read_is_out_of_the_way():
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        handed.append(await scope["extensions"]["netd.handover"](200, []))

    handed = []
    async with conversation(app) as peer:
        await peer.send(request("POST", "/", b"body") + b"more")
        await trio.testing.wait_all_tasks_blocked()
    assert handed[0].received == b"more"


async def refused(scope, why):
    with pytest.raises(ProtocolError, match=why) as caught:
        await scope["extensions"]["netd.handover"](101, SWITCH)
    assert caught.value.origin == "local"


async def test_once_a_response_has_begun_there_is_no_handover():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await refused(scope, "a response has begun")
        await send({"type": "http.response.body", "body": b"as it was", "more_body": True})
        await refused(scope, "a response has begun")
        await send({"type": "http.response.body"})
        await refused(scope, "a response has begun")

    async with conversation(app) as peer:
        await peer.send(UPGRADE)
        assert (await peer.response()).body == b"as it was"
        await peer.send(request())
        assert (await peer.response()).status == 200


async def test_there_is_no_handover_while_somebody_reads():
    async def app(scope, receive, send):
        await receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await refused(scope, "waits for what comes next")
            nursery.cancel_scope.cancel()
        await say(send, b"after all")

    async with conversation(app) as peer:
        await peer.send(UPGRADE)
        assert (await peer.response()).body == b"after all"


@pytest.mark.parametrize("status", [204, 301, 404, 100])
async def test_only_what_has_a_body_can_be_a_stream(status):
    async def app(scope, receive, send):
        with pytest.raises((ProtocolError, ValueError)):
            await scope["extensions"]["netd.handover"](status, [])
        await say(send, b"no")

    async with conversation(app) as peer:
        await peer.send(UPGRADE)
        assert (await peer.response()).body == b"no"


async def test_the_answer_to_head_is_no_stream():
    async def app(scope, receive, send):
        with pytest.raises(ProtocolError):
            await scope["extensions"]["netd.handover"](200, [])
        await say(send, b"")

    async with conversation(app) as peer:
        await peer.send(request("HEAD"))
        assert (await peer.response("HEAD")).status == 200


async def test_headers_that_would_split_the_head_are_refused_and_nothing_is_written():
    with capture_logs() as logs:
        async with conversation(Taking(headers=[(b"x", b"1\r\nset-cookie: a")])) as peer:
            await peer.send(UPGRADE)
            assert (await peer.response()).status == 500
    assert [line["event"] for line in logs] == ["connection failed"]


async def test_after_a_handover_nothing_more_can_be_said_in_http():
    async def app(scope, receive, send):
        await scope["extensions"]["netd.handover"](101, SWITCH)
        with pytest.raises(ProtocolError):
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await refused(scope, "a response has begun")
        assert await receive() == {"type": "http.disconnect"}
        done.set()

    done = trio.Event()
    async with conversation(app) as peer:
        await peer.send(UPGRADE)
        await done.wait()
        assert await read(peer.stream, len(HEAD)) == HEAD


# --- what fails -------------------------------------------------------------------------------------------------------


async def test_an_application_that_raises_afterwards_has_not_taken_it():
    async def app(scope, receive, send):
        await scope["extensions"]["netd.handover"](101, SWITCH)
        raise ValueError("cannot adopt")

    ours, theirs = trio.testing.memory_stream_pair()
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:

            async def serve():
                assert await serve_connection(theirs, app, HttpLimits(), trio.Event()) is False

            nursery.start_soon(serve)
            peer = Peer(ours)
            await peer.send(UPGRADE)
            assert await peer.rest() == HEAD, "and there is no 500 where frames are expected"
    assert [line["event"] for line in logs] == ["connection failed"]


async def test_an_application_that_is_cancelled_afterwards_has_not_taken_it():
    async def app(scope, receive, send):
        await scope["extensions"]["netd.handover"](101, SWITCH)
        await trio.sleep_forever()

    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, theirs, app, HttpLimits(), trio.Event())
        await ours.send_all(UPGRADE)
        assert await read(ours, len(HEAD)) == HEAD
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await ours.receive_some(1) == b""


async def test_a_peer_that_does_not_take_the_head_is_given_up(autojump_clock):
    app = Taking()
    async with conversation(app, HttpLimits(write_timeout=3), lockstep=True) as peer:
        began = trio.current_time()
        await peer.send(UPGRADE)
        await trio.sleep(4)
        assert trio.current_time() >= began + 3
    assert app.taken == []


async def test_a_peer_that_is_gone_is_given_up():
    app = Taking()
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(UPGRADE)
    await trio.aclose_forcefully(ours)
    assert await serve_connection(theirs, app, HttpLimits(), trio.Event()) is False
    assert app.taken == []


# --- the front door's own books ---------------------------------------------------------------------------------------


async def test_it_no_longer_counts_and_another_one_may_come_in():
    hold = trio.Event()

    async def app(scope, receive, send):
        if scope["path"] == "/ws":
            await scope["extensions"]["netd.handover"](101, SWITCH)
            await hold.wait()
        else:
            await say(send, b"in")

    door = FrontDoor(app, lambda: HttpLimits(max_connections=1), trio.Event())
    async with trio.open_nursery() as nursery:
        peers = []
        for _ in range(3):
            ours, theirs = trio.testing.memory_stream_pair()
            await door.admit(theirs, nursery)
            assert len(door) == 1
            await ours.send_all(UPGRADE)
            await read(ours, len(HEAD))
            await trio.testing.wait_all_tasks_blocked()
            assert len(door) == 0, "although its application has not returned"
            peers.append(ours)
        hold.set()


async def test_a_drain_lets_a_handover_in_progress_happen_and_leaves_it_alone(autojump_clock):
    reached, go_on = trio.Event(), trio.Event()
    handed = []

    async def app(scope, receive, send):
        reached.set()
        await go_on.wait()
        handed.append(await scope["extensions"]["netd.handover"](101, SWITCH))

    async with front_door(app) as (listener, draining, returned):
        peer = listener.connect()
        await peer.send(UPGRADE)
        await reached.wait()
        draining.set()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
        await returned.wait()
        assert await read(peer.stream, len(HEAD)) == HEAD
        await handed[0].stream.send_all(b"still here")
        assert await peer.stream.receive_some(100) == b"still here"


async def test_a_guest_of_the_front_door_is_told_when_there_is_no_room():
    door = FrontDoor(echo, lambda: HttpLimits(max_connections=1, drain=0), trio.Event())
    busy, go_on = trio.Event(), trio.Event()

    async def waiting(scope, receive, send):
        busy.set()
        await go_on.wait()
        await say(send, b"done")

    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()

        async def first():
            assert await door.host(theirs, app=waiting) is False

        nursery.start_soon(first)
        await ours.send_all(request())
        await busy.wait()
        late, their_late = trio.testing.memory_stream_pair()
        assert await door.host(their_late) is False
        assert (await Peer(late).response()).status == 503
        go_on.set()
        peer = Peer(ours)
        assert (await peer.response()).body == b"done"
        await peer.vanish()
    assert len(door) == 0


async def test_the_caller_may_know_better_who_is_at_the_ends():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await say(send, b"")

    ends = Ends(client=("192.0.2.7", 50312), server=("192.0.2.1", 443), scheme="https")
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve():
            await serve_connection(theirs, app, HttpLimits(), trio.Event(), ends=ends)

        nursery.start_soon(serve)
        peer = Peer(ours)
        await peer.send(request())
        await peer.response()
        await peer.vanish()
    [scope] = scopes
    assert (scope["client"], scope["server"], scope["scheme"]) == (ends.client, ends.server, "https")


async def test_an_absolute_target_says_whose_host_it_is():
    hosts = []

    async def app(scope, receive, send):
        hosts.append(dict(scope["headers"])[b"host"])
        await say(send, scope["path"].encode())

    async with conversation(app) as peer:
        for target in ("http://elsewhere/p", "HTTPS://elsewhere:8443", "/p"):
            await peer.send(request("GET", target))
            await peer.response()
    assert hosts == [b"elsewhere", b"elsewhere:8443", b"x"]


@pytest.mark.parametrize("target", ["http://user@host/", "http:///p", "http://@/"])
async def test_a_target_with_a_user_or_without_a_host_is_refused(target):
    async with conversation(echo) as peer:
        await peer.send(request("GET", target))
        assert (await peer.response()).status == 400


async def test_the_front_door_that_accepts_by_itself_hands_over_too():
    app = Taking()
    async with front_door(app, MemoryListener()) as (listener, _, _):
        peer = listener.connect()
        await peer.send(UPGRADE)
        assert await read(peer.stream, len(HEAD)) == HEAD
        await trio.testing.wait_all_tasks_blocked()
        assert app.taken[0].stream is not None
