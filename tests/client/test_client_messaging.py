"""ControlClient's calls about sessions, channels and scores: names in paths, data in bodies, pages."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.client import ControlClient
from netd.client.control_messaging import message, part
from netd.errors import ProtocolError, RequestFailed
from tests.support.fakeapi import FakeApi, sse


@given(st.binary(min_size=1, max_size=255))
def test_any_name_is_one_segment_and_comes_out_as_it_was(name):
    segment = part(name)
    assert segment.isascii()
    assert not {"/", "?", "#", " "} & set(segment)
    assert segment not in (".", "..")
    assert unquote_to_bytes(segment) == name


@pytest.mark.parametrize("name", ["", b""])
def test_nothing_has_no_name(name):
    with pytest.raises(RequestFailed, match="without a name") as failed:
        part(name)
    assert failed.value.kind == "not-found"


@pytest.mark.parametrize(
    ("data", "body"),
    [("text", {"data": "text"}), (b"\xff", {"data64": "/w=="}), (None, {"data": None}), ({"a": 1}, {"data": {"a": 1}})],
)
def test_bytes_travel_in_base64_and_the_rest_as_it_is(data, body):
    assert message(data, 128, False) == body
    assert message(data, 0, True) == body | {"priority": 0, "ephemeral": True}


async def test_pages_are_asked_for_until_the_last_or_enough(tmp_path):
    rows = [{"name": f"c{n}"} for n in range(1000)]
    last = {"channels": rows[:2], "next": None}
    api = FakeApi(tmp_path).answer("GET", "/v1/channels", {"channels": rows, "next": "aa"}, last)
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert len([row async for row in control.every_channel(most=5000, prefix="c")]) == 1002
            assert [dict(request.query) for request in api.requests] == [
                {"limit": "1000", "prefix": "c"},
                {"limit": "1000", "prefix": "c", "after": "aa"},
            ]
            assert len([row async for row in control.every_channel(most=2)]) == 2


async def test_a_count_that_is_none_is_no_answer(tmp_path):
    api = FakeApi(tmp_path).answer("DELETE", "/v1/sessions/x", {"kicked": "all"})
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(ProtocolError, match="'kicked'"):
                await control.session_kick("x")


async def test_a_stream_goes_on_after_a_position(tmp_path):
    events = sse(("subscribed", {}), ("message", {"data": 1}), ("ended", {}), boot="e-1", first=7)
    api = FakeApi(tmp_path).answer("GET", "/v1/channels/%FF/events", events)
    with api.serving():
        async with ControlClient(api.socket) as control, control.channel_events(b"\xff", since="e-1-6") as stream:
            assert [event.kind async for event in stream] == ["subscribed", "message", "ended"]
            assert stream.last_id == "e-1-9"
    assert api.requests[0].headers["last-event-id"] == "e-1-6"


async def test_a_trace_may_take_longer_than_other_calls(tmp_path):
    api = FakeApi(tmp_path).answer("POST", "/v1/sessions/x/trace", {"reason": "destination", "hops": []})
    with api.serving():
        async with ControlClient(api.socket, timeout=0.5) as control:
            assert (await control.session_trace("x", max_hops=3, hop_timeout=0.25))["reason"] == "destination"
    assert dict(api.requests[0].query) == {"max_hops": "3", "hop_timeout": "0.25"}
