"""Signed tokens: real keys, what is forged, what is not as it should be, and what new keys make of old tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ConfigError, Denied
from netd.hub.config import HubConfig, Key, Token
from netd.hub.signed import key_files
from netd.hub.tokens import ANONYMOUS, Tokens
from netd.wire.messages import MAX_TOKEN
from tests.support.signed import ED, NOW, OTHER_ED, RSA, SECRET, issue, private, public

EDDSA = {"name": "ed", "algorithm": "EdDSA", "secret": public(ED)}
HS256 = {"name": "hs", "algorithm": "HS256", "secret": SECRET}
RS256 = {"name": "rs", "algorithm": "RS256", "secret": public(RSA)}


def table(*keys, token=(), **files):
    return Tokens(HubConfig(key=[Key(**key) for key in keys], token=list(token)), {}, files)


EVERY = table(EDDSA, HS256, RS256)


def b64(data):
    return (
        base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()
    )


def refused(keys, text, now=NOW):
    with pytest.raises(Denied, match="cannot accept the token: ") as caught:
        keys.resolve(text, now)
    said = str(caught.value)
    assert len(said) < 300
    assert all(part not in said for part in text.split(".") if len(part) > 8)
    assert SECRET not in said
    return said


# --- what is good -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "name"), [(ED, "EdDSA", "ed"), (SECRET, "HS256", "hs"), (RSA, "RS256", "rs")]
)
def test_a_token_permits_what_its_claim_says(key, algorithm, name):
    netd = {"subscribe": ["chat:*", "news"], "direct": True, "tags": {"team": "a"}}
    grant = EVERY.resolve(issue(key, algorithm, netd=netd, unknown=[1]), NOW)
    assert (grant.token, grant.subject, grant.expires, dict(grant.tags)) == (
        f"{name}:alice",
        "alice",
        NOW + 60,
        {"team": "a"},
    )
    assert grant.permits("subscribe", b"chat:x")
    assert grant.permits("subscribe", b"news")
    assert not grant.permits("publish", b"news")
    assert grant.permits("direct", None)
    assert not grant.permits("broadcast", None)
    assert grant.permits("application", None)


def test_a_key_permits_too_and_may_be_all_that_does():
    netd = {"publish": ["a"], "tags": {"k": "claimed"}}
    both = table({**EDDSA, "subscribe": ["b"], "clients": True, "tags": {"k": "key", "l": "key"}})
    grant = both.resolve(issue(netd=netd), NOW)
    assert grant.permits("publish", b"a")
    assert grant.permits("subscribe", b"b")
    assert grant.permits("clients", None)
    assert dict(grant.tags) == {"k": "claimed", "l": "key"}
    alone = table({**EDDSA, "subscribe": ["b"], "claims": False}).resolve(issue(netd=netd), NOW)
    assert not alone.permits("publish", b"a")
    assert alone.permits("subscribe", b"b")
    assert not alone.tags


def test_static_tokens_come_first_and_may_look_signed():
    dotted = "static.secret.with-two-dots"
    keys = table(EDDSA, token=[Token(name="s", secret=dotted)])
    assert keys.resolve(dotted, NOW).token == "s"
    assert keys.resolve(issue(), NOW).token == "ed:alice"
    assert "(hub.token)" in refused(table(), issue())


def test_without_a_clock_nothing_is_valid():
    with pytest.raises(Denied):
        EVERY.resolve(issue())


# --- keys and their choice --------------------------------------------------------------------------------------------


def test_a_kid_chooses_and_is_only_compared():
    new = {**EDDSA, "name": "new", "secret": public(OTHER_ED), "kid": "new"}
    keys = table({**EDDSA, "kid": "old"}, new)
    for headers in ({"kid": "new"}, None):
        assert keys.resolve(issue(OTHER_ED, headers=headers), NOW).token == "new:alice"
    for kid in ("old", "../../etc/passwd", "/dev/zero", "new\0", "' or 1=1", "http://127.0.0.1/key", "x" * 256):
        refused(keys, issue(OTHER_ED, headers={"kid": kid}))
    assert table(EDDSA).resolve(issue(headers={"kid": "../../etc/passwd"}), NOW).token == "ed:alice"


def test_keys_in_files_are_named_and_their_text_is_given():
    rules = {"name": "f", "algorithm": "EdDSA", "file": Path("/run/f.pem")}
    assert key_files(HubConfig(key=[Key(**rules)])) == {"f": Path("/run/f.pem")}
    assert table(rules, f=f"\n{public(ED)}\n").resolve(issue(), NOW).token == "f:alice"


@pytest.mark.parametrize(
    ("algorithm", "text", "why"),
    [
        ("HS256", "x" * 31, "shorter than 32 bytes"),
        ("HS256", "", "was not read"),
        ("HS256", public(RSA), "another algorithm"),
        ("RS256", SECRET, "no public key in PEM"),
        ("RS256", public(ED), "no RSA key"),
        ("RS256", private(RSA), "private key"),
        ("RS256", public(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        ("RS256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read"),
        ("EdDSA", public(RSA), "no Ed25519 key"),
        ("EdDSA", private(ED), "private key"),
        ("EdDSA", public(ec.generate_private_key(ec.SECP256R1())), "no Ed25519 key"),
    ],
)
def test_a_key_that_cannot_be_is_told_and_not_shown(algorithm, text, why):
    with pytest.raises(ConfigError, match=why) as caught:
        table({"name": "k", "algorithm": algorithm, "file": Path("/x")}, k=text)
    assert caught.value.problems[0].path == "hub.key.0"
    assert not text or text not in str(caught.value)


def test_one_key_twice_and_neither_secret_nor_file():
    with pytest.raises(ConfigError, match="the key of 'ed' again"):
        table(EDDSA, {**EDDSA, "name": "again"})
    for wrong in (
        {"secret": None},
        {"file": Path("/x")},
        {"algorithm": "none"},
        {"algorithm": "ES256"},
        {"name": "a:b"},
    ):
        with pytest.raises(ValueError, match=r"key|algorithm|name"):
            Key(**{**EDDSA, **wrong})


# --- claims -----------------------------------------------------------------------------------------------------------


def test_time():
    keys = table({**EDDSA, "leeway": 5})
    assert keys.resolve(issue(), NOW + 64.9).expires == NOW + 65
    assert "expired (exp)" in refused(keys, issue(), NOW + 65)
    assert "not valid yet (nbf" in refused(keys, issue(nbf=NOW + 6))
    assert keys.resolve(issue(nbf=NOW + 5), NOW)
    skewed = refused(keys, issue(iat=NOW + 6))  # which says what to do about it
    assert "not valid yet (iat" in skewed
    assert "hub.key.0.leeway" in skewed
    assert "does not say when it expires (exp; hub.key.0.require_exp)" in refused(keys, issue(exp=None))
    assert table({**EDDSA, "require_exp": False}).resolve(issue(exp=None), NOW).expires == float("inf")
    aged = table({**EDDSA, "max_age": 30, "require_exp": False})
    assert aged.resolve(issue(iat=NOW - 10), NOW).expires == NOW + 20
    assert aged.resolve(issue(iat=NOW - 10, exp=NOW + 5), NOW).expires == NOW + 5
    assert "max_age" in refused(aged, issue(iat=NOW - 30))
    assert "iat; hub.key.0.max_age" in refused(aged, issue())


def test_audience_and_issuer():
    keys = table({**EDDSA, "audience": "netd", "issuer": "https://issuer.example"})
    good = {"iss": "https://issuer.example"}
    assert keys.resolve(issue(aud="netd", **good), NOW)
    assert keys.resolve(issue(aud=["x", "netd"], **good), NOW)
    for aud in (None, "other", [], ["netd2"], "net"):
        assert "(aud)" in refused(keys, issue(aud=aud, **good))
    for iss in (None, "https://issuer.example/", "x"):
        assert "(iss)" in refused(keys, issue(aud="netd", iss=iss))
    assert "its key has none" in refused(table(EDDSA), issue(aud="netd"))


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 129},
        {"exp": -1},
        {"exp": 1e300},
        {"exp": [NOW]},
        {"exp": True},
        {"exp": "tomorrow"},
        {"nbf": {}},
        {"jti": ""},
        {"netd": []},
        {"netd": {"subscrib": ["x"]}},
        {"netd": {"subscribe": "x"}},
        {"netd": {"subscribe": ["a*b"]}},
        {"netd": {"subscribe": [""]}},
        {"netd": {"subscribe": ["x" * 257]}},
        {"netd": {"subscribe": ["é" * 200]}},
        {"netd": {"publish": ["x"] * 257}},
        {"netd": {"direct": 1}},
        {"netd": {"tags": {"a=b": "c"}}},
        {"netd": {"tags": {str(number): "x" for number in range(33)}}},
    ],
)
def test_claims_that_are_not_as_they_should_be(claims):
    assert "claims" in refused(EVERY, signed_by_hand(claims))


def test_the_claim_that_is_at_fault_is_named_but_not_what_it_says():
    for word, wrong in (
        ("subscribe", ["chat:*", "a*secret"]),
        ("history", [""]),
        ("publish", ["secret" * 42 + "é" * 8]),
        ("tags", {"a=secret": "c"}),
    ):
        why = refused(EVERY, signed_by_hand({"netd": {word: wrong}}))
        assert f"netd.{word}" in why
        assert "secret" not in why


def signed_by_hand(claims, header=None, key=SECRET):
    """HS256, whatever the header says and the claims are."""
    merged = {"sub": "alice", "exp": NOW + 60, **claims} if isinstance(claims, dict) else claims
    if isinstance(merged, dict):
        merged = {name: value for name, value in merged.items() if value is not None}
    body = f"{b64(header or {'alg': 'HS256'})}.{b64(merged)}"
    return f"{body}.{b64(hmac.new(key.encode(), body.encode(), hashlib.sha256).digest())}"


# --- hostile ----------------------------------------------------------------------------------------------------------


def test_no_algorithm_is_no_way_in():
    for alg in ("none", "None", "NONE", "nOnE", "", None, 0, [], "HS384", "HS512", "ES256", "RS256 ", "hs256"):
        head, claims = b64({"alg": alg}), b64({"sub": "alice", "exp": NOW + 60})
        for signature in ("", b64(b"x"), b64(b"\0" * 32)):
            refused(EVERY, f"{head}.{claims}.{signature}")


@pytest.mark.parametrize("key", [RSA, ED])
def test_a_public_key_is_no_secret(key):
    pem = public(key)
    for secret in (pem, pem.strip(), pem + "\n"):
        for keys in (EVERY, table(RS256), table(EDDSA), table(RS256, EDDSA)):
            refused(keys, signed_by_hand({}, key=secret))
            for alg in ("RS256", "EdDSA"):
                refused(keys, signed_by_hand({}, header={"alg": alg}, key=secret))


def test_a_token_brings_no_key():
    jwk = {"kty": "oct", "k": b64(b"x" * 32)}
    for header in (
        {"alg": "HS256", "jwk": jwk},
        {"alg": "HS256", "jku": "http://127.0.0.1:1/"},
        {"alg": "HS256", "x5u": "file:///etc/passwd"},
        {"alg": "HS256", "x5c": ["x"]},
    ):
        assert "no key here has signed it" in refused(EVERY, signed_by_hand({}, header=header, key="x" * 32))


def test_a_header_that_asks_for_more_is_refused():
    for extra in (
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"crit": None},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
    ):
        assert "crit" in refused(EVERY, signed_by_hand({}, header={"alg": "HS256", **extra}))


def test_what_was_changed_is_refused():
    head, claims, signature = issue().split(".")
    other = b64({"sub": "root", "exp": NOW + 1e6})
    assert "no key here has signed it" in refused(EVERY, f"{head}.{other}.{signature}")
    refused(EVERY, f"{head}.{claims}.{signature[:-4]}")
    refused(EVERY, f"{head}.{claims}.")
    refused(EVERY, f"{head}..{signature}")
    refused(EVERY, f".{claims}.{signature}")
    refused(EVERY, issue(OTHER_ED))
    refused(EVERY, f"{head}.{claims}.{signature}.{signature}")


def test_what_is_huge_or_nested_is_refused():
    deep = b"[" * 3000
    bombs = (
        f"{b64(deep)}.{b64(deep)}.x",
        f"{b64(b'{' * 700)}.x.x",
        f"{b64({'alg': 'HS256'})}.{b64(deep)}.{b64(b'x')}",
        signed_by_hand(deep),
        signed_by_hand(b"{" * 3000),
        signed_by_hand(b'{"sub":"a","x":' + b"[" * 2000 + b"]" * 2000 + b"}"),
        signed_by_hand(b'{"sub":"a","exp":NaN}'),
        signed_by_hand(b'{"sub":"a","exp":1e999}'),
        signed_by_hand(b"\xff\xfe"),
        signed_by_hand(b"null"),
    )
    for bomb in bombs:
        refused(EVERY, bomb)
    whole = issue(pad="x" * 5000)
    assert len(whole) < MAX_TOKEN
    assert EVERY.resolve(whole, NOW)
    assert "at most 8192 bytes" in refused(EVERY, issue(pad="x" * MAX_TOKEN))
    assert "too long" in refused(EVERY, issue(headers={"kid": "x" * 2000}))


@given(st.text(max_size=300) | st.tuples(*[st.binary(max_size=60).map(b64)] * 3).map(".".join))
def test_garbage_is_denied_and_nothing_else(text):
    with pytest.raises(Denied):
        EVERY.resolve(text, NOW)


# --- new keys ---------------------------------------------------------------------------------------------------------


def test_a_grant_is_renewed_by_its_key():
    grant = table(EDDSA).resolve(issue(netd={"subscribe": ["a"]}), NOW)
    renamed = table(HS256, {**EDDSA, "name": "z", "kid": "z", "publish": ["b"]}).renew(grant, NOW)
    assert (renamed.token, renamed.expires, renamed.subject) == ("z:alice", NOW + 60, "alice")
    assert renamed.permits("subscribe", b"a")
    assert renamed.permits("publish", b"b")
    assert table(HS256).renew(grant, NOW) is ANONYMOUS
    assert table({**EDDSA, "audience": "x"}).renew(grant, NOW) is ANONYMOUS
    assert table(EDDSA).renew(grant, NOW + 60) is ANONYMOUS
    assert table(EDDSA).renew(grant) is ANONYMOUS


def test_nothing_of_a_token_is_kept():
    text = issue()
    assert text not in repr(EVERY.resolve(text, NOW))
    assert text.rpartition(".")[2] not in repr(EVERY.resolve(text, NOW))
