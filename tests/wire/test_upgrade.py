"""The WebSocket handshake: what is answered, what is refused and how, and an independent client."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.extensions import PerMessageDeflate

from netd.wire.deflate import DeflateSettings
from netd.wire.upgrade import Refusal, Upgrade, accept_key, upgrade, wants_upgrade

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    b"host": b"server.example.com",
    b"upgrade": b"websocket",
    b"connection": b"Upgrade",
    b"sec-websocket-key": KEY,
    b"sec-websocket-version": b"13",
}


def asked(*more, method=b"GET", version=b"1.1", without=(), subprotocols=(), deflate=None, **other):
    headers = [(name, value) for name, value in GOOD.items() if name not in without] + list(more)
    return upgrade(method, version, headers, subprotocols=subprotocols, deflate=deflate, **other)


def test_the_example_of_the_rfc():
    """Section 1.3."""
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    answer = asked(
        (b"origin", b"http://example.com"), (b"sec-websocket-protocol", b"chat, superchat"), subprotocols=("chat",)
    )
    assert isinstance(answer, Upgrade)
    assert (answer.status, answer.host, answer.origin) == (101, "server.example.com", "http://example.com")
    assert (answer.subprotocol, answer.deflate) == ("chat", None)
    assert answer.headers == [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        (b"Sec-WebSocket-Protocol", b"chat"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"upgrade", b"WebSocket"),
        (b"upgrade", b"h2c, websocket"),
        (b"connection", b"keep-alive, Upgrade"),
        (b"connection", b"keep-alive ,\tUPGRADE"),
    ],
)
def test_tokens_stand_in_lists_and_in_any_case(name, value):
    assert isinstance(asked((name, value), without=(name,)), Upgrade)
    assert isinstance(asked((name, b"other"), (name, value), without=(name,)), Upgrade)


REFUSALS = {
    "another method": ({"method": b"POST"}, (), 405),
    "lower case method": ({"method": b"get"}, (), 405),
    "HTTP/1.0": ({"version": b"1.0"}, (), 400),
    "HTTP/0.9": ({"version": b"0.9"}, (), 400),
    "HTTP/1.1000": ({"version": b"1.1000"}, (), 400),
    "HTTP/x": ({"version": b"x"}, (), 400),
    "no Host": ({"without": (b"host",)}, (), 400),
    "empty Host": ({"without": (b"host",)}, ((b"host", b" "),), 400),
    "two Hosts": ({}, ((b"host", b"other"),), 400),
    "no Upgrade": ({"without": (b"upgrade",)}, (), 426),
    "another Upgrade": ({"without": (b"upgrade",)}, ((b"upgrade", b"websockets, h2c"),), 426),
    "no Connection": ({"without": (b"connection",)}, (), 400),
    "another Connection": ({"without": (b"connection",)}, ((b"connection", b"keep-alive"),), 400),
    "no version": ({"without": (b"sec-websocket-version",)}, (), 426),
    "version 8": ({"without": (b"sec-websocket-version",)}, ((b"sec-websocket-version", b"8"),), 426),
    "versions in a list": ({"without": (b"sec-websocket-version",)}, ((b"sec-websocket-version", b"13, 8"),), 426),
    "two versions": ({}, ((b"sec-websocket-version", b"8"),), 426),
    "no key": ({"without": (b"sec-websocket-key",)}, (), 400),
    "two keys": ({}, ((b"sec-websocket-key", KEY),), 400),
    **{
        f"key {key!r}": ({"without": (b"sec-websocket-key",)}, ((b"sec-websocket-key", key),), 400)
        for key in (b"", b"x", KEY[:-2], b"A" * 24, b"!" * 22 + b"==", KEY[:10] + b" " + KEY[11:], b"\xff" * 24)
    },
    "a body": ({}, ((b"content-length", b"5"),), 400),
    "a chunked body": ({}, ((b"transfer-encoding", b"chunked"),), 400),
    "two Origins": ({}, ((b"origin", b"http://a"), (b"origin", b"http://b")), 400),
    "a subprotocol twice": ({}, ((b"sec-websocket-protocol", b"a, a"),), 400),
    "a subprotocol that is no token": ({}, ((b"sec-websocket-protocol", b"a b"),), 400),
    "no subprotocol in the header": ({}, ((b"sec-websocket-protocol", b""),), 400),
    "subprotocols without end": ({}, ((b"sec-websocket-protocol", b",".join(b"%d" % i for i in range(65))),), 400),
    "extensions that are no list": ({}, ((b"sec-websocket-extensions", b"a; =b"),), 400),
}


@pytest.mark.parametrize(("changed", "more", "status"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_handshake_is_refused_and_told_why(changed, more, status):
    answer = asked(*more, **changed)
    assert isinstance(answer, Refusal)
    assert answer.status == status
    assert answer.reason.startswith("cannot ")
    assert len(answer.reason) < 200


def test_a_refusal_says_what_would_do():
    assert asked(method=b"POST").headers == [(b"Allow", b"GET")]
    other = asked((b"sec-websocket-version", b"7"), without=(b"sec-websocket-version",))
    assert (b"Sec-WebSocket-Version", b"13") in other.headers
    assert (b"Upgrade", b"websocket") in asked(without=(b"upgrade",)).headers


def test_a_body_of_no_bytes_is_none():
    assert isinstance(asked((b"content-length", b"0")), Upgrade)


@pytest.mark.parametrize(
    ("headers", "ours", "chosen"),
    [
        ([b"a, b"], (), None),
        ([b"a, b"], ("b", "a"), "b"),
        ([b"a", b"b"], ("b", "a"), "b"),
        ([b"A"], ("a",), None),
        ([b"c"], ("a", "b"), None),
        ([], ("a",), None),
    ],
)
def test_our_first_subprotocol_that_is_asked_for_is_chosen(headers, ours, chosen):
    answer = asked(*((b"sec-websocket-protocol", value) for value in headers), subprotocols=ours)
    assert isinstance(answer, Upgrade)
    assert answer.subprotocol == chosen
    named = [value for name, value in answer.headers if name == b"Sec-WebSocket-Protocol"]
    assert named == ([chosen.encode()] if chosen else [])


def test_compression_is_used_when_both_want_it():
    offered = (
        (b"sec-websocket-extensions", b"foo, permessage-deflate; unknown"),
        (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits"),
    )
    assert asked(*offered).deflate is None
    answer = asked(*offered, deflate=DeflateSettings(server_no_context_takeover=True))
    assert isinstance(answer, Upgrade)
    assert answer.deflate is not None
    assert (b"Sec-WebSocket-Extensions", b"permessage-deflate; server_no_context_takeover") in answer.headers
    assert asked(deflate=DeflateSettings()).deflate is None


def test_a_request_that_asks_for_no_websocket_is_http():
    assert wants_upgrade(list(GOOD.items()))
    assert wants_upgrade([(b"upgrade", b"h2c"), (b"upgrade", b"foo, WebSocket")])
    assert not wants_upgrade([(b"upgrade", b"h2c"), (b"connection", b"upgrade")])


@given(st.lists(st.sampled_from(["a", "b", "c"]), unique=True), st.booleans())
def test_wsproto_takes_what_its_request_is_answered_with(subprotocols, compressed):
    client = WSConnection(ConnectionType.CLIENT)
    sent = client.send(
        Request(
            host="localhost",
            target="/ws?x=1",
            subprotocols=subprotocols,
            extensions=[PerMessageDeflate()] if compressed else [],
        )
    )
    server = h11.Connection(h11.SERVER)
    server.receive_data(sent)
    request = server.next_event()
    answer = upgrade(
        request.method, request.http_version, request.headers, subprotocols=("b", "c"), deflate=DeflateSettings()
    )
    assert isinstance(answer, Upgrade)
    client.receive_data(
        server.send(h11.InformationalResponse(status_code=answer.status, headers=answer.headers)) or b""
    )
    (accepted,) = client.events()
    assert isinstance(accepted, AcceptConnection)
    expected = next((name for name in ("b", "c") if name in subprotocols), None)
    assert accepted.subprotocol == answer.subprotocol == expected
    assert bool(accepted.extensions) == (answer.deflate is not None) == compressed


@given(
    st.lists(st.tuples(st.sampled_from([*GOOD, b"sec-websocket-extensions", b"origin"]), st.binary(max_size=30))),
    st.lists(st.sampled_from(list(GOOD))),
)
def test_any_headers_are_answered(more, without):
    answer = asked(*more, without=without, deflate=DeflateSettings())
    assert answer.status in (101, 400, 426)
