"""Hosts, origins, CORS answers, and who the client behind proxies is. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from netd.errors import ControlError
from netd.services.broker import forwarded
from netd.services.broker.config import BrokerConfig
from netd.services.broker.forwarded import client_of
from netd.services.broker.origins import (
    Hosts,
    Origins,
    Site,
    check_host_pattern,
    check_origin_pattern,
    cors_headers,
    parse_host,
    parse_origin,
    preflight,
    site_of,
    written,
)

HERE = Site("http", "chat.example", 3000)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("example.org", ("example.org", None)),
        ("Example.ORG:8443", ("example.org", 8443)),
        ("example.org.", ("example.org", None)),
        ("127.0.0.1:3000", ("127.0.0.1", 3000)),
        ("[::1]", ("::1", None)),
        ("[2001:DB8:0:0::1]:443", ("2001:db8::1", 443)),
        ("host_name", ("host_name", None)),
        ("example.org:", ("example.org", None)),
        ("", None),
        (":80", None),
        ("::1", None),
        ("[::1", None),
        ("[::zz]", None),
        ("a b", None),
        ("a/b", None),
        ("user@host", None),
        ("host:70000", None),
        ("host:x", None),
        ("-a", None),
        ("exämple.org", None),
        ("a" * 300, None),
        ("host\x00", None),
        ("host\n", None),
    ],
)
def test_hosts_are_read_strictly(text, found):
    assert parse_host(text) == found


@pytest.mark.parametrize(
    ("patterns", "host", "own", "allowed"),
    [
        ([], "localhost", None, True),
        ([], "a.localhost:3000", None, True),
        ([], "127.0.0.1:3000", None, True),
        ([], "127.8.9.1", None, True),
        ([], "[::1]:3000", None, True),
        ([], "192.0.2.1:3000", "192.0.2.1", True),
        ([], "192.0.2.1:3000", "::ffff:192.0.2.1", True),
        ([], "[2001:db8::1]", "2001:db8::1%eth0", True),
        ([], "[::ffff:192.0.2.1]", "192.0.2.1", True),
        ([], "[::ffff:127.0.0.1]:3000", None, True),
        ([], "[::ffff:192.0.2.2]", "192.0.2.1", False),
        ([], "0.0.0.0", "127.0.0.1", False),
        ([], "[::]", "::1", False),
        ([], "192.0.2.2", "192.0.2.1", False),
        ([], "192.0.2.2", None, False),
        ([], "evil.example", "127.0.0.1", False),
        ([], "localhost.evil.example", "127.0.0.1", False),
        ([], "127.0.0.1.nip.example", "127.0.0.1", False),
        ([], "notlocalhost", "127.0.0.1", False),
        (["example.org"], "EXAMPLE.org.:81", None, True),
        (["example.org"], "www.example.org", None, False),
        (["example.org:81"], "example.org:81", None, True),
        (["example.org:81"], "example.org", None, False),
        (["*.example.org"], "a.b.example.org", None, True),
        (["*.example.org"], "example.org", None, False),
        (["*.example.org"], "evilexample.org", None, False),
        (["[2001:db8::7]"], "[2001:db8::7]:9", None, True),
        (["*"], "anything", None, True),
    ],
)
def test_which_hosts_are_ours(patterns, host, own, allowed):
    assert Hosts(patterns).allows(*parse_host(host), own) is allowed


@pytest.mark.parametrize(
    ("patterns", "origin", "site", "allowed"),
    [
        ([], "http://chat.example:3000", HERE, True),
        ([], "HTTP://Chat.Example:3000", HERE, True),
        ([], "http://chat.example", Site("http", "chat.example", 80), True),
        ([], "https://chat.example", Site("https", "chat.example", 443), True),
        ([], "https://chat.example", Site("http", "chat.example", 443), False),
        ([], "http://chat.example", HERE, False),
        ([], "http://evil.example:3000", HERE, False),
        ([], "http://chat.example:3000", None, False),
        ([], "null", HERE, False),
        ([], "", HERE, False),
        ([], "http://[::1]:3000", Site("http", "::1", 3000), True),
        (["https://page.example"], "https://page.example:443", HERE, True),
        (["https://page.example"], "https://page.example", None, True),
        (["https://page.example"], "http://page.example", HERE, False),
        (["https://page.example"], "https://page.example:444", HERE, False),
        (["https://page.example"], "https://page.example.evil.example", HERE, False),
        (["https://page.example"], "https://page.example@evil.example", HERE, False),
        (["https://page.example"], "https://page.example/", HERE, False),
        (["https://page.example"], "http://chat.example:3000", HERE, True),
        (["https://*.page.example"], "https://a.b.page.example", HERE, True),
        (["https://*.page.example"], "https://page.example", HERE, False),
        (["https://*.page.example"], "https://evilpage.example", HERE, False),
        (["https://*.page.example:8443"], "https://a.page.example:8443", HERE, True),
        (["https://*.page.example:8443"], "https://a.page.example", HERE, False),
        (["null"], "null", HERE, True),
        (["*"], "null", None, True),
        (["*"], "anything at all", None, True),
        (["chrome-extension://abcdef"], "chrome-extension://abcdef", HERE, True),
    ],
)
def test_which_pages_may_ask(patterns, origin, site, allowed):
    assert Origins(patterns).allows(origin, site) is allowed


PIECES = ["https", "http", "://", "page", "example", "evil", "chat", ".", ":", "443", "3000", "0443", "@", "/", "*"]
PIECES += ["[", "]", "::1", "null", "%", "#", "?", " ", "\\", "\n", "\0", "https://page.example"]
PIECES += ["http://chat.example:3000"]


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
@example("https://a.page.example:443")
@example("https://page.example.:0443")
def test_no_text_is_an_origin_by_accident(text):
    strict = Origins(["https://page.example", "https://*.page.example"])
    if strict.allows(text, HERE):
        # as the standard library reads it, which knows nothing of ours
        found = urlsplit(text)
        assert found.username is found.password is None
        assert (found.path, found.query, found.fragment) == ("", "", "")
        assert "\n" not in text
        host, port = found.hostname.rstrip("."), found.port or 443
        if (found.scheme, host, port) != ("http", "chat.example", 3000):
            assert (found.scheme, port) == ("https", 443)
            assert f".{host}".endswith(".page.example")


def test_patterns_that_say_nothing_are_refused_where_they_are_written():
    for good in ("*", "example.org", "*.example.org:81", "[::1]:3000"):
        assert check_host_pattern(good) == good
    for bad in ("", "https://example.org", "*example.org", "a.*.org", "*.", "host:0x1", "*.a:99999"):
        with pytest.raises(ValueError, match="cannot use"):
            check_host_pattern(bad)
    for good in ("*", "null", "https://example.org", "http://*.example.org:81", "https://[::1]:3000"):
        assert check_origin_pattern(good) == good
    # those of extensions and of apps, which are none of the web's
    for good in ("chrome-extension://abcdef", "moz-extension://0b7e-4c", "capacitor://localhost", "HTTPS://A.Example"):
        assert check_origin_pattern(good) == good
        assert Origins([good]).allows(good, None)
    for bad in ("", "example.org", "https://", "https://a/b", "https://*", "https://a b", "é://a", "-a://b", "://a"):
        with pytest.raises(ValueError, match="cannot use"):
            check_origin_pattern(bad)
    with pytest.raises(ValidationError, match=r"cannot use 'example\.org' as an origin"):
        BrokerConfig(origins=["example.org"])


def test_what_pages_are_told():
    listed, any_ = Origins(["https://a.example"]), Origins(["*"])
    told = dict(cors_headers(listed, b"https://a.example"))
    assert told[b"access-control-allow-origin"] == b"https://a.example"
    assert told[b"vary"] == b"Origin"
    assert b"access-control-allow-credentials" not in told
    assert dict(cors_headers(any_, b"https://a.example"))[b"access-control-allow-origin"] == b"*"
    assert cors_headers(listed, None) == [(b"vary", b"Origin")], "it might have been another answer"
    assert cors_headers(any_, None) == []


def test_a_preflight_is_granted_what_it_asks_for():
    asked = [
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", b"Content-Type, authorization,x\r\ny, content-type"),
    ]
    told = dict(preflight(asked, ("POST", "OPTIONS"), 600))
    assert told[b"access-control-allow-methods"] == b"POST, OPTIONS"
    assert told[b"access-control-allow-headers"] == b"content-type, authorization"
    assert told[b"access-control-max-age"] == b"600"
    assert preflight([], ("GET",), 600) is None
    assert dict(preflight([(b"access-control-request-method", b"PATCH")], (), 0))[b"access-control-allow-methods"] == (
        b"PATCH"
    )
    many = [(b"access-control-request-method", b"GET"), (b"access-control-request-headers", b",".join([b"a%d" % n for n in range(99)]))]  # fmt: skip  # noqa: E501
    assert dict(preflight(many, (), 0))[b"access-control-allow-headers"].count(b",") == 31


@pytest.mark.parametrize("text", ["http://a.example:3000", "https://[2001:db8::1]:443"])
def test_a_site_is_written_as_an_origin(text):
    assert written(parse_origin(text)) == text


def test_a_site_has_its_schemes_port():
    assert site_of("https", "a", None).port == 443
    assert site_of("http", "a", 81).port == 81


# --- behind proxies ---------------------------------------------------------------------------------------------------

NETWORKS = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:1::/48")]


def xff(*values):
    return [(b"x-forwarded-for", value.encode()) for value in values]


def rfc(*values):
    return [(b"forwarded", value.encode()) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", xff("203.0.113.9"), "203.0.113.9"),
        ("203.0.113.1", xff("127.0.0.1"), "203.0.113.1"),
        ("10.0.0.1", xff("1.1.1.1, 203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", xff("1.1.1.1", "203.0.113.9, 10.0.0.2"), "203.0.113.9"),
        ("10.0.0.1", xff("10.0.0.3, 10.0.0.2"), "10.0.0.3"),
        ("10.0.0.1", xff("203.0.113.9, unknown, 10.0.0.2"), "10.0.0.2"),
        ("10.0.0.1", xff("unknown"), "10.0.0.1"),
        ("10.0.0.1", xff("203.0.113.9:1234"), "203.0.113.9"),
        ("10.0.0.1", xff("2001:db8::7"), "2001:db8::7"),
        ("10.0.0.1", xff("[2001:DB8::7]:99"), "2001:db8::7"),
        ("2001:db8:1::5", xff("::ffff:203.0.113.9"), "203.0.113.9"),
        ("::ffff:10.0.0.1", xff("203.0.113.9"), "203.0.113.9"),
        ("unix:", xff("203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", xff(""), "10.0.0.1"),
        ("10.0.0.1", xff(",,,"), "10.0.0.1"),
        ("10.0.0.1", rfc("for=203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", rfc('For="[2001:db8::7]:4711";proto=https;by=10.0.0.1'), "2001:db8::7"),
        ("10.0.0.1", rfc("for=1.1.1.1, for=203.0.113.9;proto=http", "for=10.0.0.2"), "203.0.113.9"),
        ("10.0.0.1", rfc("for=_hidden"), "10.0.0.1"),
        ("10.0.0.1", rfc("proto=https"), "10.0.0.1"),
        ("10.0.0.1", rfc('for="evil, for=203.0.113.9'), "203.0.113.9"),
        ("10.0.0.1", rfc("for=1.1.1.1, rubbish rubbish"), "10.0.0.1"),
        ("10.0.0.1", rfc('for="1.1.1.1\\", for=203.0.113.9'), "203.0.113.9"),
        ("10.0.0.1", xff("203.0.113.9") + rfc("for=203.0.113.9"), "203.0.113.9"),
        # what a client leaves open does not swallow what its proxy says of it
        ("10.0.0.1", rfc('for="evil, for="[2001:db8::7]:4711"'), "2001:db8::7"),
        ("10.0.0.1", rfc('for=1.1.1.1;by="a, for="[2001:db8::7]";proto=https'), "2001:db8::7"),
        ("10.0.0.1", rfc('for="1.1.1.1\\", for="[2001:db8::7]"'), "2001:db8::7"),
        ("10.0.0.1", rfc("for=203.0.113.9;for=1.1.1.1"), "10.0.0.1"),
        ("10.0.0.1", rfc("for=203.0.113.9;;proto=http"), "10.0.0.1"),
        ("10.0.0.1", rfc("for=203.0.113.9;" + ";".join(f"a{n}=b" for n in range(20))), "10.0.0.1"),
        # as many as are looked at, and one more
        ("10.0.0.1", xff("203.0.113.9" + ", 10.0.0.2" * 31), "203.0.113.9"),
        ("10.0.0.1", xff("203.0.113.9" + ", 10.0.0.2" * 32), "10.0.0.2"),
        ("10.0.0.1", xff("203.0.113.9", *["10.0.0.2"] * 31), "203.0.113.9"),
        ("10.0.0.1", xff("203.0.113.9", *["10.0.0.2, 10.0.0.3"] * 16), "10.0.0.2"),
        ("10.0.0.1", rfc("for=203.0.113.9" + ", for=10.0.0.2" * 31), "203.0.113.9"),
        ("10.0.0.1", rfc("for=203.0.113.9" + ", for=10.0.0.2" * 32), "10.0.0.2"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_trusted(peer, headers, client):
    assert client_of(peer, headers, NETWORKS).host == client


def test_no_more_is_read_than_counts(monkeypatch):
    """A client may send its proxy as long a header as it likes, and each address that is looked at takes its time."""
    looked = []
    monkeypatch.setattr(forwarded, "_address", lambda text: looked.append(text) or "10.0.0.2")
    for headers in (xff("," * 16_000), xff(*[",,,"] * 60), rfc("," * 16_000), rfc(*["for=1.1.1.1," * 40] * 30)):
        client_of("10.0.0.1", headers, NETWORKS)
        assert len(looked) == 32
        looked.clear()


def test_nobody_is_trusted_unless_it_is_said():
    assert client_of("unix:", xff("203.0.113.9"), []) == ("unix:", None)
    assert client_of("10.0.0.1", xff("203.0.113.9"), []) == ("10.0.0.1", None)


def test_two_stories_are_refused():
    with pytest.raises(ControlError, match="name different ones"):
        client_of("10.0.0.1", xff("203.0.113.9") + rfc("for=203.0.113.10"), NETWORKS)


def test_the_scheme_is_what_the_last_proxy_says():
    proto = [(b"x-forwarded-proto", b"http, HTTPS")]
    assert client_of("10.0.0.1", proto, NETWORKS).scheme == "https"
    assert client_of("203.0.113.1", proto, NETWORKS).scheme is None
    assert client_of("10.0.0.1", [(b"x-forwarded-proto", b"gopher")], NETWORKS).scheme is None
    assert client_of("10.0.0.1", rfc("for=203.0.113.9;proto=https"), NETWORKS).scheme == "https"
    assert client_of("10.0.0.1", rfc("proto=http", 'for=_a;proto="https"'), NETWORKS).scheme == "https"


@given(st.text(st.characters(codec="latin-1"), max_size=120), st.sampled_from([b"forwarded", b"x-forwarded-for"]))
def test_whatever_is_forwarded_somebody_is_the_client(text, name):
    client = client_of("10.0.0.1", [(name, text.encode("latin-1"))], NETWORKS)
    ipaddress.ip_address(client.host)


@given(st.text(st.characters(codec="latin-1"), max_size=120))
def test_what_a_client_writes_before_its_proxy_does_counts_for_nothing(forged):
    separator = b", "
    for name, own in ((b"forwarded", b"for=203.0.113.9;proto=https"), (b"x-forwarded-for", b"203.0.113.9")):
        value = forged.encode("latin-1") + separator + own
        assert client_of("10.0.0.1", [(name, value)], NETWORKS).host == "203.0.113.9"
