"""Who may connect: path and Origin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.services.trace.admission import refusal

LISTED = ["https://app.example"]


def status(
    target: str, host: str = "netd.example:8080", *origins: bytes, allowed: list[str] = LISTED, secured: bool = True
) -> int:
    headers = [(b"user-agent", b"x"), *((b"origin", origin) for origin in origins)]
    refused = refusal(target, host, headers, path="/", origins=allowed, secured=secured)
    return refused.status if refused else 101


@pytest.mark.parametrize(("target", "expected"), [("/", 101), ("/?a=b", 101), ("/x", 404), ("//", 404), ("", 404)])
def test_there_is_one_path(target: str, expected: int) -> None:
    assert status(target) == expected


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        (b"https://app.example", "netd.example", 101),
        (b"HTTPS://App.Example", "netd.example", 101),
        (b"http://app.example", "netd.example", 403),
        (b"https://app.example.evil", "netd.example", 403),
        (b"https://app.example:8443", "netd.example", 403),
        (b"http://netd.example:8080", "netd.example:8080", 101),
        (b"http://netd.example:8081", "netd.example:8080", 403),
        (b"https://netd.example", "netd.example", 101),
        (b"https://netd.example:443", "netd.example", 101),
        (b"https://netd.example", "NETD.example:443", 101),
        (b"http://[::1]:8080", "[::1]:8080", 101),
        (b"https://xn--bcher-kva.example", "b\u00fccher.example", 101),
        (b"null", "netd.example", 403),
        (b"", "netd.example", 403),
        (b"https://", "", 403),
        (b"\xff\xfe", "netd.example", 403),
    ],
)
def test_pages_of_this_host_and_of_the_list_may_connect(origin: bytes, host: str, expected: int) -> None:
    assert status("/", host, origin) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:8080", 101),
        ("[::1]:8080", 101),
        ("localhost:8080", 101),
        ("app.localhost:8080", 101),
        ("attacker.example:8080", 403),
        ("127.0.0.1.attacker.example:8080", 403),
        ("localhost.attacker.example:8080", 403),
    ],
)
def test_without_tls_a_name_that_dns_could_point_here_proves_nothing(host: str, expected: int) -> None:
    assert status("/", host, f"http://{host}".encode(), secured=False) == expected
    assert status("/", host, f"http://{host}".encode(), secured=True) == 101


def test_no_origin_is_no_browser() -> None:
    assert status("/", "netd.example", allowed=[]) == 101


def test_a_star_lets_everybody_in_and_null_can_be_listed() -> None:
    assert status("/", "netd.example", b"https://anywhere.example", allowed=["*"]) == 101
    assert status("/", "netd.example", b"null", allowed=["null"]) == 101


def test_two_origins_are_one_too_many() -> None:
    assert status("/", "netd.example", b"https://app.example", b"https://app.example") == 403


@given(st.text(max_size=30), st.binary(max_size=30), st.text(max_size=30))
def test_whatever_comes_it_answers(target: str, origin: bytes, host: str) -> None:
    assert status(target, host, origin, allowed=[]) in (101, 403, 404)


def test_a_refusal_says_why_without_repeating_what_it_was_sent() -> None:
    refused = refusal("/\x1b[2J" + "x" * 500, "h", [], path="/", origins=[], secured=False)
    assert refused is not None
    assert "\x1b" not in refused.message
    assert len(refused.message) < 150
