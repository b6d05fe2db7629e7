"""GET /v1/events through the front door: what happens, as it happens, and again after a lost connection."""

from __future__ import annotations

import json
from collections import deque
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from netd.net.http import HttpLimits
from tests.control.conftest import USER
from tests.support.host import Tick, Tock
from tests.support.http import Peer as Client
from tests.support.http import front_door, request


class Stream:
    """A reader of server-sent events."""

    def __init__(self, peer: Client) -> None:
        self.peer = peer
        self.head = b""
        self._text = b""

    async def open(self, target="/v1/events", headers=()):
        await self.peer.send(request("GET", target, headers=headers))
        await self.read_head()
        return self

    async def read_head(self):
        while b"\r\n\r\n" not in self.head:
            self.head += await self.peer.stream.receive_some(65536)
        self.head, _, self._raw = self.head.partition(b"\r\n\r\n")
        self._unchunk()

    async def next(self) -> dict[str, str]:
        """The next event's fields; comments are skipped."""
        while True:
            while b"\n\n" in self._text:
                block, _, self._text = self._text.partition(b"\n\n")
                lines = [line for line in block.decode().split("\n") if not line.startswith(":")]
                if lines:
                    return dict(line.split(": ", 1) for line in lines)
            data = await self.peer.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._raw += data
            self._unchunk()

    def _unchunk(self) -> None:
        while b"\r\n" in self._raw:
            size, _, rest = self._raw.partition(b"\r\n")
            if len(rest) < int(size, 16) + 2:
                return
            self._text += rest[: int(size, 16)]
            self._raw = rest[int(size, 16) + 2 :]


@asynccontextmanager
async def events(control, limits=None):
    async with front_door(control.seen_by(USER), limits=limits) as (listener, draining, returned):

        def connect(**options):
            return Stream(listener.connect(**options))

        yield connect, draining, returned


async def test_notices_arrive_as_they_are_published(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect().open()
        assert b"content-type: text/event-stream" in stream.head
        host.bus.publish(Tick())
        event = await stream.next()
        assert (event["id"], event["event"]) == ("b007-1", "tick")
        data = json.loads(event["data"])
        assert data["service"] == "trace"
        assert data["time"] > 1.7e9


async def test_head_tells_that_it_is_a_stream_and_follows_nothing(control, host, autojump_clock):
    async with front_door(control.seen_by(USER)) as (listener, _, _):
        peer = listener.connect()
        await peer.send(request("HEAD", "/v1/events") + request("GET", "/v1/ready"))
        head = await peer.response("HEAD")
        assert (head.status, head.headers["content-type"], head.body) == (200, "text/event-stream; charset=utf-8", b"")
        assert "content-length" not in head.headers
        assert (await peer.response()).status == 200, "the connection goes on"
        assert trio.current_time() < 1, "nothing waited for the stream"
        assert not host.bus._subscriptions


async def test_a_notice_carries_its_own_fields_in_camel_case(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect().open()
        host.health.warn("netd.line\nbreak", "cannot\ndo", advice=None)
        data = json.loads((await stream.next())["data"])
        assert (data["code"], data["message"], "advice" in data) == ("netd.line\nbreak", "cannot\ndo", False)


@pytest.mark.parametrize("target", ["/v1/events?kind=tock", "/v1/events?service=broker", "/v1/events?kind=x&kind=tock"])
async def test_only_what_was_asked_for(target, control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect().open(target)
        for notice in (Tick(), Tock(), Tick(), Tock()):
            host.bus.publish(notice)
        assert [(await stream.next())["id"] for _ in range(2)] == ["b007-2", "b007-4"]


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_reader_that_comes_back_goes_on_where_it_was(by_header, control, host, autojump_clock):
    for _ in range(5):
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        if by_header:
            stream = await connect().open(headers=["Last-Event-ID: b007-3"])
        else:
            stream = await connect().open("/v1/events?since=b007-3")
        host.bus.publish(Tock())
        assert [(await stream.next())["id"] for _ in range(3)] == ["b007-4", "b007-5", "b007-6"]


async def test_a_reader_that_comes_back_too_late_is_told_what_it_missed(control, host, autojump_clock):
    for _ in range(20):  # the bus of these tests keeps 8
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=b007-3")
        missed = await stream.next()
        assert (missed["event"], json.loads(missed["data"])["count"]) == ("missed", 9)
        following = await stream.next()
        assert following["id"] == "b007-13"
        again = await connect().open(f"/v1/events?since={missed['id']}")
        assert (await again.next())["id"] == "b007-13", "resuming from a `missed` loses nothing more"


async def test_an_id_of_another_run_goes_on_from_the_start_of_this_one(control, host, autojump_clock):
    for _ in range(2):
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=dead-77")
        host.bus.publish(Tock())
        assert [(await stream.next())["id"] for _ in range(3)] == ["b007-1", "b007-2", "b007-3"]


async def test_an_id_of_another_run_has_missed_only_what_is_no_longer_kept(control, host, autojump_clock):
    for _ in range(20):  # the bus of these tests keeps 8
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=dead-77")
        missed = await stream.next()
        assert (missed["event"], json.loads(missed["data"])["count"]) == ("missed", 12)
        assert (await stream.next())["id"] == "b007-13"


async def test_a_past_larger_than_what_waits_for_a_slow_reader_is_told_whole(control, host, autojump_clock):
    host.bus._history = deque(maxlen=4096)  # as many as the daemon keeps
    for _ in range(3000):
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=dead-77")
        assert [(await stream.next())["id"] for _ in range(3000)] == [f"b007-{n}" for n in range(1, 3001)]


@pytest.mark.parametrize("published", [0, 2, 20])
async def test_the_id_of_no_notice_asks_where_the_stream_stands(published, control, host, autojump_clock):
    for _ in range(published):
        host.bus.publish(Tick())
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=0-0")
        newest = await stream.next()
        assert (newest["event"], newest["id"]) == ("missed", f"b007-{published}")
        assert json.loads(newest["data"])["count"] == published
        host.bus.publish(Tock())
        assert (await stream.next())["event"] == "tock"


async def test_an_id_from_the_future_is_live(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect().open("/v1/events?since=b007-999")
        host.bus.publish(Tock())
        assert (await stream.next())["id"] == "b007-1"


@pytest.mark.parametrize("since", ["b007", "-1", "b007--1", "zz-1", "b007-1e9", "%00-1", "b007-" + "9" * 50])
async def test_an_id_that_is_none_is_refused(since, user):
    response = await user.get(f"/v1/events?since={since}")
    assert response.status_code == 400
    assert response.json()["error"]["path"] == "since"


async def test_drain_ends_the_stream_with_a_word(control, host, autojump_clock):
    async with events(control) as (connect, draining, returned):
        stream = await connect().open()
        began = trio.current_time()
        draining.set()
        assert (await stream.next())["event"] == "ended"
        await returned.wait()
        assert trio.current_time() == began
        with pytest.raises(EOFError):
            await stream.next()


async def test_a_silent_stream_shows_that_it_lives(control, autojump_clock):
    async with events(control, HttpLimits(idle_timeout=5)) as (connect, _, _):
        stream = await connect().open()
        began = trio.current_time()
        while b": \n\n" not in await stream.peer.stream.receive_some(1000):
            pass
        assert 0 < trio.current_time() - began <= 15


async def test_a_reader_that_hangs_up_is_forgotten(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect().open()
        assert len(host.bus._subscriptions) == 1
        await stream.peer.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert len(host.bus._subscriptions) == 0


async def test_a_reader_that_never_reads_costs_bounded_memory_and_time(control, host, autojump_clock):
    async with events(control, HttpLimits(write_timeout=10)) as (connect, _, _):
        stream = connect(lockstep=True)
        await stream.open()
        for _ in range(5000):
            host.bus.publish(Tick())
        await trio.sleep(1)
        [subscription] = host.bus._subscriptions
        assert len(subscription._waiting) <= 1024
        await trio.sleep(10)
        assert len(host.bus._subscriptions) == 0


async def test_a_slow_reader_is_told_how_much_it_missed(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = await connect(lockstep=True).open()
        for _ in range(3000):
            host.bus.publish(Tick())
        kinds = {}
        while sum(kinds.values()) < 3000:
            event = await stream.next()
            count = json.loads(event["data"]).get("count", 1)
            kinds[event["event"]] = kinds.get(event["event"], 0) + count
        assert kinds["missed"] > 0
        assert sum(kinds.values()) == 3000, "each is either delivered or counted"


async def test_what_happens_between_the_request_and_its_answer_is_not_lost(control, host, autojump_clock):
    async with events(control) as (connect, _, _):
        stream = connect()
        await stream.peer.send(request("GET", "/v1/events"))

        async def busy():
            for _ in range(8):
                host.bus.publish(Tick())
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            nursery.start_soon(stream.read_head)
        serials = [int((await stream.next())["id"].partition("-")[2])]
        while serials[-1] < 8:
            serials.append(int((await stream.next())["id"].partition("-")[2]))
        assert serials == list(range(serials[0], 9))
