"""A broker's URL, a client's options, and what a refused upgrade means: no I/O."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.client import BrokerClient, SyncBrokerClient
from netd.client.broker_options import BrokerOptions, Options, agreed, bearer, parse_url
from netd.client.options import Tcp, Unix
from netd.client.refusals import refused_upgrade
from netd.client.session import loss_of
from netd.client.state import MOST_AWAY
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire.messages import Close, CloseCode


@pytest.mark.parametrize(
    ("text", "secure", "peer", "target"),
    [
        ("ws://127.0.0.1:3000", False, Tcp("127.0.0.1", 3000), "/ws"),
        ("ws://127.0.0.1:3000/", False, Tcp("127.0.0.1", 3000), "/ws"),
        ("ws://h:1/other?a=b", False, Tcp("h", 1), "/other?a=b"),
        ("ws://h:1?a=b", False, Tcp("h", 1), "/ws?a=b"),
        ("h:3000", False, Tcp("h", 3000), "/ws"),
        ("wss://example.org", True, Tcp("example.org", 443), "/ws"),
        ("ws://example.org", False, Tcp("example.org", 80), "/ws"),
        ("https://example.org:8/x", True, Tcp("example.org", 8), "/x"),
        ("ws://[::1]:3000", False, Tcp("::1", 3000), "/ws"),
        ("unix:/run/netd/a b:c.sock", False, Unix(Path("/run/netd/a b:c.sock")), "/ws"),
    ],
)
def test_urls(text, secure, peer, target):
    url = parse_url(text)
    assert (url.secure, url.peer, url.target) == (secure, peer, target)
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    "text",
    [
        *(
            "unix:",
            "unix:/a\0b",
            "",
            "ws://",
            "ws://:3000",
            "ws://h:0",
            "ws://h:99999",
            "ws://h:x",
            "ftp://h:1",
            "ws://u:p@h:1",
        ),
        *("ws://h:1/#x", "ws://h:1/\r\nX: y", "ws://h:1/a b", "ws://h:1/ü", "ws://ü:1", "ws://[::1", "ws://h\r\n:1"),
    ],
)
def test_what_is_no_url_is_refused_with_a_sentence(text):
    with pytest.raises(ProtocolError, match="cannot connect to") as caught:
        parse_url(text)
    assert caught.value.origin == "local"


@pytest.mark.parametrize(("asked", "least"), [(None, None), (0.5, 0.5), (1e300, MOST_AWAY)])
def test_a_daemon_cannot_send_a_client_away_for_ever(asked, least):
    assert loss_of(Close(CloseCode.GOING_AWAY, "", asked)).least == least


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ws://h:1/ws/a?token=s3cret", "ws://h:1/ws/a?token=..."),
        ("ws://h:1?echo=1&tok%65n=s3cret&format=raw", "ws://h:1/ws?echo=1&tok%65n=...&format=raw"),
    ],
)
def test_a_token_in_a_url_is_sent_and_not_shown(text, shown):
    url = parse_url(text)
    assert "s3cret" in url.target
    assert str(url) == shown
    with pytest.raises(ProtocolError) as caught:
        agreed(text, Options(tls=True))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("ws://h:1/?token=s3cret#x", "ws://h:0/?token=s3cret", "ws://h:x?token=s3cret", "h:1/a b?token=s3cret\nx"),
        *("ws://u:s3cret@h:1", "ws://u:s3cret@h:0", "u:s3cret@h:0", "ftp://u:s3cret@h"),
    ],
)
def test_what_is_secret_in_a_url_that_cannot_be_used_is_not_shown(text):
    with pytest.raises(ProtocolError, match="cannot connect to") as caught:
        parse_url(text)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=60))
def test_whatever_is_taken_for_a_url_fits_in_a_request_line(text):
    try:
        url = parse_url(text)
    except ProtocolError:
        return
    assert url.target.startswith("/")
    assert all("\x20" < char < "\x7f" for char in url.target)
    assert isinstance(url.peer, Unix) or 0 < url.peer.port < 65536


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"token_in": "query"},
        {"write_timeout": 0},
        {"max_message": 0},
        {"queue_bytes": 0},
        {"connect_timeout": -1},
        {"headers": {"a b": "c"}},
        {"headers": {"a": "b\r\nc: d"}},
        {"headers": {"a": "ü"}},
        {"headers": {"Host": "x"}},
        {"headers": {"Authorization": "Bearer x"}},
        {"headers": {"Sec-WebSocket-Key": "x"}},
        {"tls": True},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ProtocolError, match="cannot use") as caught:
        BrokerClient("ws://127.0.0.1:3000", **options)
    assert caught.value.origin == "local"


def test_the_keywords_are_the_options():
    assert set(BrokerOptions.__annotations__) == set(Options.__dataclass_fields__)


def test_a_token_is_in_no_repr():
    assert "secret" not in repr(BrokerClient("h:1", token="secret").options)


def test_wss_asks_for_tls():
    assert agreed("wss://h", Options())[1].tls is True
    assert agreed(parse_url("unix:/x"), Options())[0].host == "localhost"
    assert agreed("wss://h", Options(tls="/ca.pem"))[1].tls == "/ca.pem"
    assert agreed("ws://h", Options())[1].tls is None


def test_a_token_that_cannot_stand_in_a_header():
    assert bearer("a.b-c") == "Bearer a.b-c"
    for token in ("", "a\r\nb", "ü"):
        with pytest.raises(ProtocolError, match="cannot show this token"):
            bearer(token)


def test_every_method_of_the_client_has_its_twin():
    public = {name for name in dir(BrokerClient) if not name.startswith("_")}
    twins = {name for name in dir(SyncBrokerClient) if not name.startswith("_")}
    assert public - twins == {"receive_nowait", "receive_all", "aclose", "states", "failure"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def body(kind: str, message: str) -> bytes:
    return json.dumps({"error": {"kind": kind, "message": message}}).encode()


def test_a_refusal_says_the_rule_in_one_sentence():
    said = body("denied", "namespace 'staff' allows subscribe to tokens only (hub.namespace.1.subscribe)")
    error = refused_upgrade("ws://h:1/ws", 403, [(b"content-type", b"application/json")], said)
    assert isinstance(error, RequestFailed)
    assert (error.kind, error.status, error.exit_code) == ("denied", 403, 77)
    assert str(error) == (
        "cannot connect to ws://h:1/ws: it answers 403: "
        "namespace 'staff' allows subscribe to tokens only (hub.namespace.1.subscribe)"
    )


@pytest.mark.parametrize(
    ("status", "headers", "said", "expected"),
    [
        (401, [], b"", "it answers 401"),
        (404, [], b"", "is this the path of operations"),
        (200, [], b"<html>", "it does not speak WebSocket there"),
        (301, [(b"Location", b"https://other/")], b"", "it redirects to https://other/"),
        (302, [(b"location", b"https://h/ws?token=s3cret")], b"", "it redirects to https://h/ws?...: connect there"),
        (400, [], b"no \x1b[2J way", "no  [2J way"),
        (400, [], b'{"error": {}}', "it answers 400"),
        (400, [], b"[" * 5000, "it answers 400"),
    ],
)
def test_refusals_that_no_time_mends(status, headers, said, expected):
    error = refused_upgrade("ws://h:1/ws", status, headers, said)
    assert isinstance(error, RequestFailed)
    assert expected in str(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    ("status", "retry", "expected"),
    [(503, b"2", 2.0), (429, b"7", 7.0), (502, None, None), (503, b"soon", None), (503, b"99999999999", 3600.0)],
)
def test_refusals_that_time_may_mend(status, retry, expected):
    error = refused_upgrade("ws://h:1/ws", status, [(b"retry-after", retry)] if retry else [], None)
    assert isinstance(error, DaemonUnreachable)
    assert error.retry_after == expected


@given(st.integers(100, 999), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))), st.binary())
def test_any_answer_is_an_error_with_a_sentence(status, headers, said):
    error = refused_upgrade("ws://h:1/ws", status, headers, said)
    assert str(error).startswith("cannot connect to ws://h:1/ws: it answers")
    assert str(error).isprintable()
