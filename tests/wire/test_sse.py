"""The event-stream parser: the standard's own examples, every way to cut the bytes, and streams that mean harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire.sse import SseEvent, SseParser


def said(data: str, name: str = "message", id: str = "") -> SseEvent:
    return SseEvent(name, data, id)


STREAMS = [
    (b"data: one\n\n", [said("one")]),
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [said("YHOO\n+2\n10")]),
    (b"event: hop\nid: b-7\ndata: {}\n\n", [said("{}", "hop", "b-7")]),
    (b"data:no space\r\rdata:  two spaces\r\n\r\n", [said("no space"), said(" two spaces")]),
    (b"\xef\xbb\xbfdata: after a BOM\n\n", [said("after a BOM")]),
    (b": heartbeat\n\n:\n\ndata\n\n", [said("")]),
    (b"event: dropped\n\ndata: x\n\n", [said("x")]),
    (b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", [said("a", id="1"), said("b", id="1"), said("c")]),
    (b"id: has\0nul\ndata: a\n\n", [said("a")]),
    (b"unknown: field\ndata: a\n\n", [said("a")]),
    (b"data: unfinished\n", []),
    ("data: Zürich ☃\n\n".encode(), [said("Zürich ☃")]),
    (b"data: \xff\xfe\n\n", [said("\ufffd\ufffd")]),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS)
def test_streams_mean_the_same_however_they_are_cut(stream, events):
    for size in range(1, len(stream) + 1):
        parser = SseParser()
        got = [event for at in range(0, len(stream), size) for event in parser.feed(stream[at : at + size])]
        assert got == events, f"in chunks of {size}"


def test_retry_is_milliseconds_and_digits_only():
    parser = SseParser()
    parser.feed(b"retry: 1500\nretry: soon\nretry: -1\nretry: 99999999999999\n\n")
    assert parser.retry == 1.5


def test_an_id_counts_only_once_its_event_is_complete():
    parser = SseParser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert parser.last_id == "1"  # a reconnect now must ask for event 2 again


def test_reset_forgets_the_half_read_event_and_keeps_the_id():
    parser = SseParser()
    parser.feed(b"id: 1\ndata: a\n\nid: 2\nevent: x\ndata: half")
    parser.reset()
    assert parser.feed(b"data: whole\n\n") == [SseEvent("message", "whole", "1")]


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 200, b"x" * 200, b"data: xxxxxxxxxx\n" * 40], ids=["data", "garbage", "many lines"]
)
def test_a_stream_beyond_its_bounds_is_refused(stream):
    parser = SseParser(max_line=100, max_event=300)
    chunks = [stream[at : at + 7] for at in range(0, len(stream), 7)]
    with pytest.raises(ProtocolError, match="cannot read the event stream"):
        [parser.feed(chunk) for chunk in chunks]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_leave_the_parser_alive_and_agreeing_with_itself(chunks):
    piecewise, whole = SseParser(), SseParser()
    got = [event for chunk in chunks for event in piecewise.feed(chunk)]
    assert got == whole.feed(b"".join(chunks))
    assert piecewise.last_id == whole.last_id
