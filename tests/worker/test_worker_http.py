"""Request, Response and Headers: what comes as it came, and nothing goes out that HTTP cannot say."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.worker import Headers, Request, Response


def test_a_request_has_what_the_client_said():
    request = Request(
        "POST", "/a%20b/c?x=1&y=%2F", [(b"Host", b"h")], b'{"n": 1}', client="192.0.2.7:5", scheme="https"
    )
    assert (request.method, request.url, request.client, request.scheme) == (
        "POST",
        "/a%20b/c?x=1&y=%2F",
        "192.0.2.7:5",
        "https",
    )
    assert request.path == request.pathname == "/a%20b/c"
    assert (request.search, request.query) == ("?x=1&y=%2F", "x=1&y=%2F")
    assert (request.body, request.text, request.json()) == (b'{"n": 1}', '{"n": 1}', {"n": 1})
    assert repr(request) == "<Request POST /a%20b/c?x=1&y=%2F from 192.0.2.7:5, 8 bytes>"


@pytest.mark.parametrize(
    ("url", "path", "search"),
    [
        ("/", "/", ""),
        ("/?", "/", ""),
        ("/a?b?c", "/a", "?b?c"),
        ("//host/a", "//host/a", ""),
        ("/a#b", "/a#b", ""),
        ("*", "*", ""),
        ("http://host/a?b", "/a", "?b"),
        ("http://host?b=/c", "/", "?b=/c"),
        ("http://host", "/", ""),
        ("/a?u=http://x/y", "/a", "?u=http://x/y"),
        ("", "", ""),
    ],
)
def test_the_parts_of_a_url(url, path, search):
    request = Request("GET", url)
    assert (request.url, request.path, request.search) == (url, path, search)


def test_headers_have_no_case_and_keep_what_is_repeated():
    headers = Headers(
        [(b"Accept", b"a"), (b"X-Name", b"\xe9"), (b"ACCEPT", b"b"), (b"cookie", b"1"), (b"Cookie", b"2")]
    )
    assert headers["accept"] == headers["Accept"] == "a, b"
    assert headers.all("aCCept") == ["a", "b"]
    assert headers["cookie"] == "1; 2"
    assert headers["x-name"] == "é"
    assert headers.get("none") is None
    assert headers.all("none") == []
    assert "ACCEPT" in headers
    assert 7 not in headers
    assert list(headers) == ["accept", "x-name", "cookie"]
    assert len(headers) == 3
    assert headers.pairs[2] == ("accept", "b")
    assert Headers({"A": "1"})["a"] == "1"
    with pytest.raises(KeyError):
        headers["none"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_a_value_error(body):
    with pytest.raises(ValueError, match="cannot read the body of POST /x as JSON"):
        Request("POST", "/x", (), body).json()


_X = (b"content-type", b"x")


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        (Response(), (200, [], b"")),
        (Response(201, {"a": "ü"}), (201, [(b"content-type", b"application/json")], b'{"a":"\xc3\xbc"}')),
        (Response(204, "nothing of it"), (204, [], b"")),
        (Response(304, b"", {"ETag": '"x"'}), (304, [(b"etag", b'"x"')], b"")),
        (Response(body="x", headers={"Content-Type": "text/html"}), (200, [(b"content-type", b"text/html")], b"x")),
        (Response(body=None), (200, [], b"")),
        (Response(body="a", headers=[("content-length", "1"), ("content-type", "x")]), (200, [_X], b"a")),
        (
            Response(body=b"", headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")]),
            (200, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")], b""),
        ),
    ],
)  # fmt: skip
def test_the_parts_of_a_response(response, parts):
    assert response.parts() == parts


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (Response(101), "status 101"),
        (Response(99), "status 99"),
        (Response(600), "status 600"),
        (Response(True), "status True"),
        (Response("200"), "status '200'"),
        (Response(headers={"x": "a\r\nb: c"}), "control characters"),
        (Response(headers={"x": "a\x00"}), "control characters"),
        (Response(headers={"x y": "a"}), "no name of a header"),
        (Response(headers={"": "a"}), "no name of a header"),
        (Response(headers={"x": "€"}), "beyond ISO-8859-1"),
        (Response(headers={"x": 7}), "not str"),
        (Response(headers={"Transfer-Encoding": "chunked"}), "framed"),
        (Response(headers={"connection": "close"}), "framed"),
        (Response(body="abc", headers={"content-length": "2"}), "the body has 3 bytes"),
        (Response(body=7), "cannot send int as a body"),
    ],
)
def test_what_http_cannot_say(response, why):
    with pytest.raises((ValueError, TypeError), match=why) as caught:
        response.parts()
    assert str(caught.value).startswith("cannot ")


@pytest.mark.parametrize("result", [7, object(), {1, 2}, (200, "x")])
def test_what_is_no_answer(result):
    with pytest.raises(TypeError, match="cannot answer with"):
        Response.of(result)


@given(
    st.integers(200, 599),
    st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4),
    st.one_of(st.none(), st.text(), st.binary(), st.dictionaries(st.text(), st.integers(-9, 9), max_size=3)),
)
def test_what_goes_out_is_http_or_an_error(status, headers, body):
    try:
        said, fields, content = Response(status, body, headers).parts()
    except ValueError:
        return
    assert said == status
    for name, value in fields:
        assert name
        assert name == name.lower()
        assert not set(name) & set(b"\r\n\0 :")
        assert not set(value) & set(b"\r\n\0")
    if isinstance(body, dict) and status not in (204, 205, 304):
        assert json.loads(content) == body


@given(st.text(max_size=60))
def test_any_url_has_its_parts(url):
    request = Request("GET", url)
    assert url.endswith(request.search) or request.query == ""
    assert "?" not in request.path
