"""Static tokens: resolving, files, and what a new configuration makes of old ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from netd.errors import ConfigError, Denied
from netd.hub.config import HubConfig, Token
from netd.hub.tokens import ANONYMOUS, Tokens, secret_files

ONE, TWO = "one secret of many", "two secrets of many"


def tokens(*entries: Token, **secrets: str) -> Tokens:
    return Tokens(HubConfig(token=list(entries)), secrets)


def test_a_known_text_is_resolved_and_any_other_denied():
    table = tokens(
        Token(name="a", secret=ONE, subscribe=["x:*", "y"], tags={"role": "admin"}), Token(name="b", secret=TWO)
    )
    grant = table.resolve(ONE)
    assert (grant.token, grant.path, dict(grant.tags)) == ("a", "hub.token.0", {"role": "admin"})
    assert grant.permits("subscribe", b"x:1")
    assert grant.permits("subscribe", b"y")
    assert not grant.permits("subscribe", b"y1")
    assert not grant.permits("publish", b"x:1")
    assert not grant.permits("direct", None)
    for text in ("", ONE + " ", ONE[:-1], "a", "\ud800"):
        with pytest.raises(Denied, match="cannot accept the token") as caught:
            table.resolve(text)
        assert len(text) < 9 or text not in str(caught.value)


def test_the_anonymous_may_do_nothing():
    assert not ANONYMOUS.permits("subscribe", b"x")
    assert not ANONYMOUS.permits("application", None)


def test_files_are_named_and_their_text_is_given():
    config = HubConfig(token=[Token(name="a", file=Path("/run/a")), Token(name="b", secret=TWO)])
    assert secret_files(config) == {"a": Path("/run/a")}
    table = Tokens(config, {"a": f"\n{ONE}\n"})
    assert table.resolve(ONE).token == "a"
    for unread in ({}, {"a": ""}, {"a": "short"}, {"b": ONE}):
        with pytest.raises(ConfigError, match=r"hub\.token\.0: cannot use the token 'a'"):
            Tokens(config, unread)


def test_two_tokens_cannot_share_a_secret():
    with pytest.raises(ConfigError, match="'b': it has the secret of 'a'") as caught:
        tokens(Token(name="a", secret=ONE), Token(name="b", file=Path("/x")), b=ONE)
    assert ONE not in str(caught.value)


def test_a_grant_is_renewed_by_its_secret():
    old = tokens(Token(name="a", secret=ONE, subscribe=["x"])).resolve(ONE)
    renamed = tokens(Token(name="z", secret=ONE, publish=["x"])).renew(old)
    assert (renamed.token, renamed.permits("publish", b"x"), renamed.permits("subscribe", b"x")) == ("z", True, False)
    assert tokens(Token(name="a", secret=TWO, subscribe=["x"])).renew(old) is ANONYMOUS
