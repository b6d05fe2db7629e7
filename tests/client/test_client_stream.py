"""Event streams: in order, resumed after a loss without telling anything twice, and always closed cleanly."""

from __future__ import annotations

import pytest
import trio

from netd.client import ControlClient
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from tests.support.fakeapi import Answer, FakeApi, sse


def numbered(*numbers: int, **how):
    return sse(*(("hop", {"n": number, "service": "trace"}) for number in numbers), first=numbers[0], **how)


async def take(events, count: int) -> list[int]:
    return [(await anext(events)).data["n"] for _ in range(count)]


async def test_events_come_in_order_and_leaving_early_is_clean(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", numbered(1, 2, 3, hold=True))
    with api.serving():
        async with (
            ControlClient(api.socket) as control,
            control.events(kinds=("hop", "error"), service="trace") as events,
        ):
            assert await take(events, 2) == [1, 2]  # the third is never asked for
            assert events.last_id == "b0-3"
    assert api.requests[0].query == [("kind", "hop"), ("kind", "error"), ("service", "trace")]
    assert "last-event-id" not in api.requests[0].headers


async def test_a_lost_connection_is_made_again_after_the_last_event(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", numbered(1, 2), numbered(3, hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control, control.events(patience=20) as events:
            assert await take(events, 3) == [1, 2, 3]
    assert api.requests[1].headers["last-event-id"] == "b0-2"


async def test_cancelling_the_wait_for_an_event_loses_none(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", numbered(1, hold=True), numbered(2, hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control, control.events(patience=20) as events:
            assert await take(events, 1) == [1]
            with trio.move_on_after(0.05) as waited:
                await anext(events)
            assert waited.cancelled_caught
            assert await take(events, 1) == [2]
    assert api.requests[1].headers["last-event-id"] == "b0-1"


async def test_without_patience_a_lost_connection_is_an_error(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", numbered(1))
    with api.serving():
        async with ControlClient(api.socket) as control, control.events() as events:
            assert await take(events, 1) == [1]
            with pytest.raises(DaemonUnreachable, match="cannot get a whole answer"):
                await anext(events)
            with pytest.raises(StopAsyncIteration):
                await anext(events)


async def test_a_daemon_that_ends_the_stream_ends_it_for_the_reader(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", sse(("ended", {"reason": "draining"})))
    with api.serving():
        async with ControlClient(api.socket) as control, control.events() as events:
            assert [event.kind async for event in events] == ["ended"]


async def test_a_restart_is_waited_for(tmp_path):
    ended = sse(("ended", {"reason": "draining"}), boot="b0")
    refused = Answer({"error": {"kind": "too-busy", "message": "cannot yet"}}, 503)
    after = sse(("missed", {"count": 3}), ("hop", {"n": 1}), boot="b1", hold=True)
    api = FakeApi(tmp_path).answer("GET", "/v1/events", ended, ended, refused, after)
    with api.serving():
        async with ControlClient(api.socket) as control, control.events(patience=20) as events:
            kinds = [(await anext(events)).kind for _ in range(3)]
    assert kinds == ["ended", "missed", "hop"]  # `ended` once, although the draining daemon said it twice


async def test_a_daemon_that_stays_away_ends_a_stream_it_had_ended(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", sse(("ended", {})))
    async with ControlClient(api.socket) as control:
        with api.serving():
            stream = control.events(patience=0.6)
            await stream.__aenter__()
            assert (await anext(stream)).kind == "ended"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        await stream.__aexit__(None, None, None)


async def test_a_daemon_that_vanishes_is_reported_after_patience(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", numbered(1))
    async with ControlClient(api.socket) as control:
        with api.serving():
            stream = control.events(patience=0.6)
            await stream.__aenter__()
            assert await take(stream, 1) == [1]
        with pytest.raises(DaemonUnreachable, match="there is no socket"):
            await anext(stream)
        await stream.__aexit__(None, None, None)


async def test_a_refusal_when_opening_is_raised_at_once(tmp_path):
    api = FakeApi(tmp_path).refuse("POST", "/v1/trace/run", 403, "denied", "cannot trace: no write access")
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(RequestFailed, match="no write access"):
                async with control.trace_run("192.0.2.1"):
                    pass


async def test_a_refusal_inside_a_stream_is_raised_and_an_error_notice_is_not(tmp_path):
    notice = ("error", {"service": "trace", "message": "a client misbehaves"})
    refusal = ("error", {"error": {"kind": "service", "message": "cannot connect to 192.0.2.1:443"}})
    api = FakeApi(tmp_path).answer("POST", "/v1/trace/run", sse(notice, refusal, hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control, control.trace_run("192.0.2.1", rounds=2) as events:
            with pytest.raises(RequestFailed, match="cannot connect"):
                [event async for event in events]
    assert api.requests[0].body == {"target": "192.0.2.1", "rounds": 2, "interval": 1.0, "send": "auto"}


@pytest.mark.parametrize("data", [b"[1]", b"{", b"text"])
async def test_data_that_is_no_object_is_a_protocol_error(tmp_path, data):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", Answer(b"event: hop\ndata: " + data + b"\n\n", hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control, control.events() as events:
            with pytest.raises(ProtocolError, match="cannot read an event"):
                await anext(events)


async def test_the_past_is_asked_for_by_the_newest_id(tmp_path):
    newest = Answer(b'id: b7-3\nevent: missed\ndata: {"count": 3}\n\n', hold=True)
    api = FakeApi(tmp_path).answer("GET", "/v1/events", newest, numbered(2, 3, boot="b7", hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert [event.data["n"] for event in await control.recent_events(limit=2)] == [2, 3]
    assert [request.headers["last-event-id"] for request in api.requests] == ["0-0", "b7-1"]


async def test_a_daemon_without_a_past(tmp_path):
    newest = Answer(b'id: b7-0\nevent: missed\ndata: {"count": 0}\n\n', hold=True)
    api = FakeApi(tmp_path).answer("GET", "/v1/events", newest)
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert await control.recent_events() == []
    assert len(api.requests) == 1
