"""Heads of requests: routes, parameters, tokens, bodies. Pure."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import suppress
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ControlError, NotFound
from netd.services.broker import protocol
from netd.services.broker.protocol import (
    App,
    Application,
    Asset,
    Direct,
    Events,
    Health,
    History,
    Operations,
    Plain,
    Presence,
    Publish,
    Unsupported,
    data_of,
    place,
    token_of,
)
from netd.wire.messages import Position


def route(target: str, headers=()) -> object:
    path, _, query = target.partition("?")
    return place(path.encode()).route(query.encode(), headers)[0]


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/ws", Operations()),
        ("/ws/public:a", Plain(b"public:a")),
        ("/ws/public%3aa?role=sub", Plain(b"public:a", "sub")),
        ("/ws/a?role=pub&echo=1", Plain(b"a", "pub", True)),
        ("/ws/%FF%00?echo=0", Plain(b"\xff\x00")),
        ("/ws/a%2Fb", Plain(b"a/b")),
        ("/ws/a+b", Plain(b"a+b")),
        ("/ws/..", Plain(b"..")),
        ("/app", App()),
        ("/channels/a", Publish(b"a")),
        ("/channels/a?priority=0&ephemeral=1", Publish(b"a", 0, True)),
        ("/channels/a/events", Events((b"a",))),
        ("/channels/a/events?channel=b&channel=a&channel=c", Events((b"a", b"b", b"c"))),
        ("/channels/a/events?last_event_id=x7:12", Events((b"a",), Position("x7", 12))),
        ("/channels/a/history", History(b"a")),
        ("/channels/a/history?since_epoch=x7&since=3&limit=5", History(b"a", Position("x7", 3), 5)),
        ("/channels/a/presence", Presence(b"a")),
        ("/channels/events/events", Events((b"events",))),
        ("/sessions/3f0c", Direct("3f0c")),
        ("/sessions/name:J%C3%BCrgen?priority=255", Direct("name:Jürgen", 255)),
        ("/sessions/tag:a=b", Direct("tag:a=b")),
        ("/healthz", Health()),
        ("/netd.js", Asset("netd.js")),
        ("/netd.d.ts", Asset("netd.d.ts")),
    ],
)
def test_what_a_target_asks_for(target, found):
    assert route(target) == found


@pytest.mark.parametrize(
    "target",
    ["/", "/index.html", "/WS", "/channels", "/sessions", "/netd.jsx", "//ws", "/./ws", "/x/../ws", "/%77s", "/wsx",
     "/ws%2Fa", "/healthz/", "*", "/app/", "/anything?token=a&token=b&%zz"],
)  # fmt: skip
def test_everything_else_is_the_applications_and_nobody_reads_its_query(target):
    assert route(target) == Application()


@pytest.mark.parametrize(
    "target",
    ["/ws/a/b", "/ws/a/", "/channels/a/b", "/channels/a/", "/channels/a/history/", "/channels/../ws", "/sessions/a/b"],
)
def test_what_is_below_our_own_paths_and_is_not_there(target):
    with pytest.raises(NotFound, match=r"/events, /history and /presence.*is written %2F"):
        route(target)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/ws/", "without a name"),
        ("/channels/", "without a name"),
        ("/channels//events", "without a name"),
        ("/sessions/", "without a target"),
        ("/ws/%", "two hexadecimal"),
        ("/ws/%4", "two hexadecimal"),
        ("/ws/%zz", "two hexadecimal"),
        ("/ws/" + "a" * 256, "256 bytes"),
        ("/ws/a?role=admin", "there are pub, sub and both"),
        ("/ws/a?role=pub&role=sub", "2 times"),
        ("/ws/a?echo=yes", "write 1 or 0"),
        ("/ws/a?x=1", "there are token, role, echo"),
        ("/ws?role=sub", "there are token"),
        ("/ws/a?role=%FF", "no UTF-8"),
        ("/ws/a?role=%zz", "two hexadecimal"),
        ("/channels/a?priority=256", "from 0 to 255"),
        ("/channels/a?priority=-1", "from 0 to 255"),
        ("/channels/a?priority=1e2", "from 0 to 255"),
        ("/channels/a?priority=٣", "from 0 to 255"),
        ("/channels/a?priority=" + "9" * 5000, "from 0 to 255"),
        ("/channels/a/history?since=3", "give both"),
        ("/channels/a/history?since_epoch=x", "give both"),
        ("/channels/a/history?since_epoch=&since=1", "give both"),
        ("/channels/a/history?limit=x", "limit"),
        ("/channels/a/events?last_event_id=x7", "EPOCH:OFFSET"),
        ("/channels/a/events?last_event_id=x7:-1", "EPOCH:OFFSET"),
        ("/channels/a/events?last_event_id=x7:9999999999999999", "EPOCH:OFFSET"),
        ("/channels/a/events?channel=", "0 bytes"),
        ("/channels/a/events?" + "&".join(f"channel=c{n}" for n in range(64)), "65 channels"),
        ("/channels/a?" + "&".join("a" * 70), "70 parameters"),
        ("/sessions/%FF", "no UTF-8"),
        ("/sessions/" + "a" * 262, "without a target"),
    ],
)
def test_what_cannot_be_read_is_said_so(target, why):
    with pytest.raises(ControlError, match=why) as caught:
        route(target)
    assert str(caught.value).startswith("cannot ")
    assert len(str(caught.value)) < 400, "what was sent is shown in part"


@pytest.mark.parametrize("value", ["%zz", "%FF", "%"])
def test_what_was_written_for_a_token_is_not_repeated(value):
    with pytest.raises(ControlError, match="the parameter 'token'") as caught:
        route(f"/ws?token=secret{value}")
    assert "secret" not in str(caught.value)


def test_the_id_that_a_browser_remembers_wins_over_that_of_the_page():
    headers = [(b"last-event-id", b"new:9")]
    assert route("/channels/a/events?last_event_id=old:1", headers) == Events((b"a",), Position("new", 9))
    assert route("/channels/a/events", [(b"last-event-id", b"")]) == Events((b"a",))


def test_the_path_of_the_application_can_be_another():
    assert place(b"/app", "/live").route(b"")[0] == Application()
    assert place(b"/live", "/live").route(b"")[0] == App()


@given(st.binary(min_size=1, max_size=255))
def test_a_channel_may_have_any_name(name):
    written = quote_from_bytes(name, safe="")
    assert route(f"/ws/{written}") == Plain(name)
    assert route(f"/channels/{written}/history") == History(name)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=100))
def test_a_parameter_may_have_any_text(text):
    assert place(b"/ws").route(b"token=" + quote(text, safe="").encode())[1] == text


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_is_asked_for_is_a_route_or_a_refusal(path, query):
    for prefix in (b"/", b"/channels/", b"/ws/", b"/sessions/"):
        with suppress(ControlError):
            place(prefix + path).route(query)


# --- tokens -----------------------------------------------------------------------------------------------------------


def base64(token: str) -> bytes:
    return urlsafe_b64encode(token.encode()).rstrip(b"=")


@pytest.mark.parametrize(
    ("query", "headers", "token"),
    [
        (None, [], None),
        ("abc", [], "abc"),
        (None, [(b"authorization", b"Bearer abc")], "abc"),
        (None, [(b"authorization", b"bearer  abc ")], "abc"),
        (None, [(b"authorization", b"Basic YTpi")], None),
        (None, [(b"sec-websocket-protocol", b"netd.json, netd.token.abc")], "abc"),
        (None, [(b"sec-websocket-protocol", b"netd.json"), (b"sec-websocket-protocol", b"netd.token.abc")], "abc"),
        (None, [(b"sec-websocket-protocol", b"netd.token64." + base64("a/b=c d"))], "a/b=c d"),
        (None, [(b"sec-websocket-protocol", b"netd.json, chat")], None),
        ("abc", [(b"authorization", b"Bearer abc"), (b"sec-websocket-protocol", b"netd.token.abc")], "abc"),
    ],
)
def test_where_a_token_may_stand(query, headers, token):
    assert token_of(query, headers) == token


@pytest.mark.parametrize(
    ("query", "headers", "why"),
    [
        ("abc", [(b"authorization", b"Bearer other")], "different ones"),
        (None, [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "different ones"),
        (None, [(b"sec-websocket-protocol", b"netd.token.a, netd.token.b")], "different ones"),
        ("", [], "empty"),
        (None, [(b"authorization", b"Bearer")], "empty"),
        ("a" * 8193, [], "8193 characters"),
        (None, [(b"sec-websocket-protocol", b"netd.token64.!!!!!")], "base64url"),
        (None, [(b"sec-websocket-protocol", b"netd.token64.a")], "base64url"),
        (None, [(b"sec-websocket-protocol", b"netd.token64.__8")], "base64url"),
    ],
)
def test_a_token_that_is_none_or_several(query, headers, why):
    with pytest.raises(ControlError, match=why):
        token_of(query, headers)


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "data"),
    [
        (b"", b"\xff\x00", b"\xff\x00"),
        (b"application/octet-stream", b"abc", b"abc"),
        (b"text/plain", "grüß".encode(), "grüß"),
        (b"Text/HTML; charset=UTF-8", b"<p>", "<p>"),
        (b'text/plain; charset="utf-8"; x=y', b"", ""),
        (b"application/json", b'{"a": [1, null]}', {"a": [1, None]}),
        (b"application/json; charset=utf-8", b'"text"', "text"),
        (b"application/json", b"null", None),
        (b"application/jsonx", b"{}", b"{}"),
    ],
)
def test_what_a_body_says(kind, body, data):
    assert data_of(kind, body) == data


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (b"text/plain", b"\xff", "no UTF-8 at byte 0"),
        (b"application/json", b"{", "as JSON"),
        (b"application/json", b"", "as JSON"),
        (b"application/json", b"\xff", "as JSON"),
        (b"application/json", b"[" * 100_000, "as JSON"),
        (b"application/json", b"[" * 70 + b"]" * 70, "nests deeper"),
        (b"application/json", b"[" + b"0," * 20_000 + b"0]", "values"),
        (b"application/json", b"1" * 40, "as JSON"),
        (b"application/json", b"NaN", "as JSON"),
    ],
)
def test_a_body_that_is_not_what_it_says(kind, body, why):
    with pytest.raises(ControlError, match=why):
        data_of(kind, body)


def test_text_in_another_charset():
    with pytest.raises(Unsupported) as caught:
        data_of(b"text/plain; charset=latin-1", b"x")
    assert caught.value.status == 415


@given(st.binary(max_size=60), st.sampled_from([b"", b"text/plain", b"application/json", b"text/x; charset=utf-8"]))
def test_any_body_is_data_or_a_refusal(body, kind):
    with suppress(ControlError):
        data_of(kind, body)


def test_every_route_says_its_methods():
    for kind in (Operations, Plain, App, Events, Publish, History, Presence, Direct, Asset):
        assert "OPTIONS" in kind.methods
        assert ("HEAD" in kind.methods) <= ("GET" in kind.methods)
    assert Health.methods == ("GET", "HEAD"), "no page asks for it"
    assert protocol.Application.methods == ()
