"""The handshake: what JavaScript signs, what it makes of ours, and everything that must be refused."""

from __future__ import annotations

import json
import random
from base64 import b64decode, b64encode

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.wire import canonical, handshake
from netd.wire.handshake import (
    Handshake,
    Nonces,
    is_handshake,
    load_keys,
    load_private_key,
    parse,
    signed,
    spki,
    verify,
)
from tests.wire.node import ask, needs_node

NOW = 1732190000.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = spki(KEY)
OTHER = spki(Ed25519PrivateKey.from_private_bytes(bytes(32)))
PKCS8 = KEY.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
TAGS = {"device": "alpha", "10": "ten", "9": "nine", "Ort": "Zürich"}

# made by handshake_peer.js with KEY; the same content, signed over the keys as received and over the keys sorted
_CONTENT = (
    '{"type":"handshake","version":"1.0.0","ts":1732190000123,"nonce":"bm9uY2U=",'
    '"publicKey":"MCowBQYDK2VwAyEAA6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=",'
    '"negHash":"f7f6c847d4808c4139b2f8e1b9181af5e6aca9bf9a30d337d0d43db9ac9955b0","nIndex":0.002147547870378218,'
    '"tags":{"9":0,"10":1e+21,"b":"Zürich","a":0.1},"signature":"'
)
_SIGNATURES = {
    "received": "nPYjYdVZaG4pO6hC+xkNfgeZcUfJdIALMqixMLsRbCatACQkCVCvzhnYQB2fJhEjf6CSA6npD/P3pNcWBtOvBQ==",
    "sorted": "eh/sgJ1ujw/A4bhTu3vWO6iSXHoDckKSxcmKHRI/pWUwuTXpLp6t/m6CcakZZ2wFGtpUhpHKFNG42Zlu6b6PCQ==",
}


def vector(form: str) -> bytes:
    return f'{_CONTENT}{_SIGNATURES[form]}"}}'.encode()


def ours(*, now: float = NOW, nonce: str = "n", version: str | None = "1.0.0", tags: dict | None = None) -> bytes:
    return signed(KEY, version, TAGS if tags is None else tags, now=now, nonce=nonce)


def check(payload: bytes, *, keys=frozenset({PUBLIC}), now=NOW, window=30.0, nonces=None, versions=None) -> Handshake:
    nonces = Nonces() if nonces is None else nonces
    return verify(payload, keys=keys, now=now, window=window, nonces=nonces, versions=versions)


def refused(payload: bytes, why: str, **terms) -> None:
    nonces = terms.setdefault("nonces", Nonces())
    before = len(nonces)
    with pytest.raises(ProtocolError, match=why) as caught:
        check(payload, **terms)
    assert caught.value.close in (1007, 1008, 1009, 1013)
    assert caught.value.origin == "remote"
    assert len(nonces) <= before


def changed(payload: bytes, **fields) -> bytes:
    """With fields replaced (None: without them), and the signature as it was."""
    value = json.loads(payload) | fields
    return json.dumps({name: field for name, field in value.items() if field is not None}).encode()


# --- plain -----------------------------------------------------------------------------------------------------------


def test_a_plain_handshake():
    payload = handshake.plain("1.0.0", {"device": "alpha"})
    assert payload == b'{"type":"handshake","version":"1.0.0","tags":{"device":"alpha"}}'
    assert is_handshake(payload)
    assert parse(payload) == Handshake("1.0.0", {"device": "alpha"})
    assert parse(handshake.plain(None)) == Handshake(None, {})


def test_tags_become_text():
    payload = b' {"type":"handshake","tags":{"n":42,"f":1.50,"big":1e21,"t":true,"s":"x","minus":-0}}'
    assert parse(payload).tags == {"n": "42", "f": "1.5", "big": "1e+21", "t": "true", "s": "x", "minus": "0"}


def test_text_full_of_commas_and_brackets_counts_as_one_value():
    tags = {f'"{i}\\': ",[{" * 40 for i in range(32)}
    assert parse(handshake.plain("1", tags)).tags == tags


def test_null_is_as_good_as_nothing():
    assert parse(b'{"type":"handshake","version":null,"tags":null}') == Handshake(None, {})


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "has to be a JSON object"),
        (b'"handshake"', "has to be a JSON object"),
        (b'{"type":"ping","ts":1}', '"type": "handshake"'),
        (b'{"type":["handshake"]}', '"type": "handshake"'),
        (b'{"type":"handshake","type":"handshake"}', "stands there twice"),
        (b'{"type":"handshake","version":1}', "`version`"),
        (b'{"type":"handshake","version":""}', "`version`"),
        (b'{"type":"handshake","version":"%b"}' % (b"1" * 129), "`version`"),
        (b'{"type":"handshake","version":"\\ud800"}', "`version`"),
        (b'{"type":"handshake","tags":[]}', "`tags`"),
        (b'{"type":"handshake","tags":{"a":null}}', "a tag has to be"),
        (b'{"type":"handshake","tags":{"a":["x"]}}', "a tag has to be"),
        (b'{"type":"handshake","tags":{"a":"%b"}}' % (b"x" * 129), "at most 128"),
        (b'{"type":"handshake","tags":{"%b":"a"}}' % (b"x" * 129), "at most 128"),
        (b'{"type":"handshake","tags":{"a":"\\udc00"}}', "are text"),
        (b'{"type":"handshake","tags":{"a":"b=c","a=b":"c"}}', '"=" in its key'),
        (json.dumps({"type": "handshake", "tags": {str(i): i for i in range(33)}}).encode(), "at most 32"),
        (b'{"type":"handshake","x":"\xff"}', "utf-8"),
        (b'{"type":"handshake","x":%b' % (b"[" * 50_000), "more than 256 values"),
        (b'{"type":"handshake","x":[%b1]}' % (b"1," * 256), "more than 256 values"),
        (b'{"type":"handshake","x":"%b' % (b'\\"' * 20_000), "Unterminated"),
        (b'{"type":"handshake","x":"%b"}' % (b"x" * 65536), "above 65536"),
    ],
)
def test_what_is_no_handshake(payload, why):
    with pytest.raises(ProtocolError, match=rf"^cannot read the handshake: .*{why}") as caught:
        parse(payload)
    assert caught.value.close in (1007, 1009)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"handshake",
        b'["type","handshake"]',
        b'{"type":"ping","ts":1}',
        b'{"TYPE":"handshake"}',
        b"\x81\xa4type",
        b'{"type":"handshake"',
        b'{"type":"handshake","x":' + b"[" * 60000,
        b'{"type":"handshake"}'.ljust(65537),
    ],
)
def test_a_first_message_that_is_no_handshake_is_told_apart(payload):
    assert not is_handshake(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"handshake"}',
        b'\n\t {"tags":5,"type":"handshake"}',
        b'{"type":"handshake","a":1,"a":2}',
        b'{"type":"handshake","signature":"no"}',
    ],
)
def test_one_that_will_be_refused_is_a_handshake_too(payload):
    assert is_handshake(payload)


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [handshake.plain(None, TAGS), b'{"type":"handshake","version":null}'])
def test_a_missing_version_does_not_pass_where_one_is_demanded(payload):
    assert parse(payload).version is None
    with pytest.raises(ProtocolError, match=r"it names no version; accepted: 1\.0\.0, 1\.1\.0") as caught:
        parse(payload, versions={"1.1.0", "1.0.0"})
    assert caught.value.close == 1008


def test_versions_are_demanded_of_signed_ones_too():
    assert check(ours(), versions={"1.0.0"}).version == "1.0.0"
    refused(ours(), "version '1.0.0' is not spoken here; accepted: 2", versions={"2"})
    refused(ours(version=None), "it names no version", versions={"1.0.0"})
    assert check(ours(version=None)).version is None


# --- signed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["received", "sorted"])
def test_what_javascript_signed(form):
    assert check(vector(form)) == Handshake(
        version="1.0.0",
        tags={"9": "0", "10": "1e+21", "b": "Zürich", "a": "0.1"},
        signed=True,
        key=PUBLIC,
        ts=1732190000.123,
        nonce="bm9uY2U=",
    )


def test_ours_is_accepted_and_says_what_it_was_given():
    assert check(ours(nonce="once")) == Handshake("1.0.0", TAGS, signed=True, key=PUBLIC, ts=NOW, nonce="once")
    assert check(ours(), keys=None).key == PUBLIC
    assert parse(ours()).signed


@needs_node
def test_javascript_accepts_ours_in_both_forms():
    """One text serves both: a peer that keeps the order received, and one that sorts."""
    payloads = [ours(), ours(version=None, tags={}), ours(tags={"é\n": "\x7f\x00", "😀": "\uff61", "3": "x"})]
    good = {"received": True, "sorted": True, "index": True, "hash": True}
    assert ask([{"ask": "check", "text": payload.decode()} for payload in payloads]) == [good] * 3


@needs_node
def test_we_accept_javascripts_with_any_key_and_content():
    chance = random.Random(3)
    questions = []
    for at in range(40):
        private = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
        pkcs8 = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        tags = {
            chance.choice(("b", "a", "2", "10", "é", "😀", "\uff61")): chance.choice((1e21, 1e-7, 0.1, -0.0, "x", 7))
        }
        questions.append(
            {
                "ask": "make",
                "pkcs8": b64encode(pkcs8).decode(),
                "version": "1",
                "ts": int(NOW * 1000) + at,
                "nonce": str(at),
                "tags": tags | {"z": "last", "0": "first"},
                "form": ("received", "sorted")[at % 2],
                "more": {"caps": {"z": [1, 2.5, {"b": None, "a": True}]}, "1": "index"},
            }
        )
    nonces = Nonces()
    for text in ask(questions):
        assert check(text.encode(), keys=None, nonces=nonces).version == "1"
    assert len(nonces) == 40


@needs_node
def test_javascript_has_the_same_index_and_hash():
    chance = random.Random(5)
    ders = [
        PUBLIC,
        b"\0",
        b"\x30",
        b"\0" * 44,
        b"\xff" * 44,
        bytes(range(256)),
        *(chance.randbytes(44) for _ in range(50)),
    ]
    indices = ask([{"ask": "index", "der": b64encode(der).decode()} for der in ders])
    assert [handshake.negentropy(der) for der in ders] == pytest.approx(indices, rel=1e-12)
    # among them exact halves of the sixth decimal, which toFixed rounds up and Python to even
    given = [0, 1, 0.5, 1 / 128, 3 / 128, 5 / 128, 0.0000005, 1e-7, 0.999999499, 0.9999995, *indices]
    hashes = ask([{"ask": "hash", "der": b64encode(PUBLIC).decode(), "index": index} for index in given])
    assert [handshake.negentropic_hash(PUBLIC, index) for index in given] == hashes


def test_one_byte_repeated_has_no_entropy_to_divide_by():
    assert handshake.negentropy(b"\x30") == 1.0
    assert handshake.negentropy(b"\x01" * 2_000_000) == 0.5  # a two-millionth by a millionth
    assert handshake.negentropy(b"\0" * 44) == 0.0
    assert handshake.negentropy(b"") == 0.0


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead", "good"), [(30, True), (-30, True), (30.5, False), (-30.5, False), (1e6, False)])
def test_ts_has_to_be_near_our_clock(ahead, good):
    payload = ours(now=NOW + ahead)
    if good:
        assert check(payload).ts == NOW + ahead
    else:
        refused(payload, "s from our clock, and 30 s are allowed")


def test_a_window_is_no_longer_than_what_is_remembered():
    refused(ours(now=NOW - 100), "60 s are allowed", window=1000, nonces=Nonces(window=60))


def test_a_replayed_handshake_is_refused():
    nonces = Nonces()
    payload = ours()
    assert check(payload, nonces=nonces)
    refused(payload, "used before", nonces=nonces)
    # nor in another order, which is the same content
    shuffled = json.dumps(dict(reversed(json.loads(payload).items()))).encode()
    refused(shuffled, "used before", nonces=nonces)
    # nor later, for as long as it is fresh
    refused(payload, "used before", nonces=nonces, now=NOW + 30)
    refused(payload, "s from our clock", nonces=nonces, now=NOW + 30.1)


def test_the_same_nonce_at_another_time_is_another_handshake():
    """The original clients derive the nonce from their key; each of their reconnects would be refused."""
    nonces = Nonces()
    for second in range(3):
        assert check(ours(now=NOW + second), nonces=nonces)
    with pytest.raises(ProtocolError, match="used before"):
        check(ours(now=NOW + 2), nonces=nonces)


def test_what_is_cheap_to_see_is_seen_before_any_text_is_rebuilt_or_signature_checked(monkeypatch):
    nonces = Nonces()
    good = ours(nonce="seen")
    check(good, nonces=nonces)

    def too_early(*_, **__):
        raise AssertionError("it should have been refused by now")

    monkeypatch.setattr(handshake, "_check_signature", too_early)
    monkeypatch.setattr(canonical, "text", too_early)
    refused(good, "used before", nonces=nonces)
    refused(changed(good, tags={"a": "other"}), "used before", nonces=nonces)
    refused(vector("sorted"), "not listed", keys={OTHER})
    refused(vector("sorted"), "from our clock", now=NOW + 60)
    refused(vector("sorted"), "remembered already", nonces=Nonces(capacity=0))
    refused(vector("sorted"), "signed before what is remembered", nonces=Nonces(since=NOW + 10))
    refused(changed(vector("sorted"), padding="x" * 16384), "above 16384")
    refused(changed(vector("sorted"), padding=[1] * 256), "more than 256 values")


def test_a_forged_one_does_not_use_up_the_nonce():
    nonces = Nonces()
    refused(changed(ours(nonce="x"), tags={"a": "forged"}), "its signature", nonces=nonces)
    assert len(nonces) == 0
    check(ours(nonce="x"), nonces=nonces)


def test_a_signed_one_with_full_tags_passes():
    tags = {f"{i:0128}": "," * 128 for i in range(32)}
    assert check(ours(tags=tags)).tags == tags


def test_an_unlisted_key_is_refused():
    refused(ours(), "is not listed in handshake.keys", keys={OTHER})
    refused(ours(), "is not listed in handshake.keys", keys=frozenset())


def test_an_unsigned_one_is_refused_where_a_signed_one_is_demanded():
    refused(handshake.plain("1.0.0", TAGS), "it is not signed")
    refused(changed(ours(), signature=None), "it is not signed")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tags": TAGS | {"device": "beta"}}, "its signature"),
        ({"tags": {}}, "its signature"),
        ({"tags": None}, "its signature"),
        ({"version": "1.0.1"}, "its signature"),
        ({"version": None}, "its signature"),
        ({"ts": NOW * 1000 + 1}, "its signature"),
        ({"nonce": "m"}, "its signature"),
        ({"added": 1}, "its signature"),
        ({"negHash": "0" * 64}, "`negHash`"),
        ({"negHash": None}, "`negHash`"),
        ({"negHash": 5}, "`negHash`"),
        ({"nIndex": 0.5}, "`nIndex`"),
        ({"nIndex": "0.002147547870378218"}, "`nIndex`"),
        ({"nIndex": None}, "`nIndex`"),
        ({"signature": b64encode(bytes(64)).decode()}, "its signature"),
        ({"signature": b64encode(bytes(63)).decode()}, "its signature"),
        ({"signature": ""}, "`signature`"),
        ({"signature": 7}, "`signature`"),
        ({"signature": "not base64!"}, "`signature`: it is not base64"),
        ({"signature": "A" * 1000}, "`signature` has to be"),
        ({"publicKey": "!!!!"}, "`publicKey`: it is not base64"),
        ({"publicKey": b64encode(PUBLIC).decode().rstrip("=")}, "`publicKey`: it is not base64"),
        ({"publicKey": b64encode(PUBLIC).decode() + "\n"}, "`publicKey`: it is not base64"),
        ({"publicKey": None}, "`publicKey` has to be"),
        ({"publicKey": b64encode(OTHER).decode()}, "is not listed"),
        ({"publicKey": b64encode(PUBLIC[:-1]).decode()}, "not Ed25519"),
        ({"publicKey": b64encode(PUBLIC + b"\0").decode()}, "not Ed25519"),
        ({"publicKey": b64encode(PUBLIC[12:]).decode()}, "not Ed25519"),
        ({"ts": "1732190000000"}, "`ts`"),
        ({"ts": -1}, "`ts`"),
        ({"ts": 1e300}, "`ts`"),
        ({"ts": NOW * 1000 + 0.5}, "`ts`"),
        ({"ts": None}, "`ts`"),
        ({"nonce": None}, "`nonce`"),
        ({"nonce": ""}, "`nonce`"),
        ({"nonce": "x" * 129}, "`nonce`"),
    ],
)
def test_whatever_was_altered_is_refused(fields, why):
    refused(changed(ours(), **fields), why)


@pytest.mark.parametrize("form", ["received", "sorted"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Z\xc3\xbcrich", b"Zurich"),
        (b'"a":0.1', b'"a":0.10000000000000002'),
        (b'"9":0', b'"9":"0"'),
        (b"1e+21", b"1e+22"),
    ],
)
def test_altered_tags_of_javascripts(form, old, new):
    assert old in vector(form)
    refused(vector(form).replace(old, new), "its signature")


def test_other_spellings_of_the_same_content_are_the_same_content():
    """What is signed is the content: 1e21 is 1e+21, \\u00fc is ü."""
    text = vector("sorted").replace(b"1e+21", b"1000000000000000000000.0").replace("ü".encode(), b"\\u00fc")
    assert check(text.replace(b",", b" ,\n")).tags["10"] == "1e+21"


def test_keys_of_other_kinds_are_refused():
    for key in (ec.generate_private_key(ec.SECP256R1()), x25519.X25519PrivateKey.generate()):
        der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        refused(changed(ours(), publicKey=b64encode(der).decode()), "not Ed25519", keys=None)


@given(st.integers(0, 600), st.binary(min_size=1, max_size=3))
def test_a_signed_handshake_with_bytes_changed_never_says_anything_else(at, change):
    payload = ours()
    at %= len(payload)
    altered = payload[:at] + change + payload[at + len(change) :]
    try:
        accepted = check(altered)
    except ProtocolError:
        return
    assert accepted == check(payload)


@given(st.binary(max_size=100) | st.binary(max_size=50).map(lambda tail: b'{"type":"handshake","signature":' + tail))
def test_any_bytes_are_a_handshake_or_a_protocol_error(payload):
    for read in (parse, check):
        try:
            assert read(payload).tags is not None
        except ProtocolError:
            continue
        assert is_handshake(payload)


# --- what was seen ---------------------------------------------------------------------------------------------------


def test_nonces_are_forgotten_when_they_would_not_pass_any_more():
    nonces = Nonces(capacity=100, window=30)
    for second in range(1000):
        check(ours(now=NOW + second), nonces=nonces, now=NOW + second)
        assert len(nonces) <= 62
    # one from the future is remembered until it is stale
    early = ours(now=NOW + 1030)
    check(early, nonces=nonces, now=NOW + 1000)
    refused(early, "used before", nonces=nonces, now=NOW + 1060)


def test_a_full_table_refuses_rather_than_forgets():
    nonces = Nonces(capacity=2, window=30)
    first = ours(nonce="0")
    for nonce in "01":
        check(ours(nonce=nonce), nonces=nonces)
    with pytest.raises(ProtocolError, match="2 handshakes are remembered already; try again later") as caught:
        check(ours(nonce="2"), nonces=nonces)
    assert caught.value.close == 1013
    refused(first, "used before", nonces=nonces)
    assert check(ours(nonce="2", now=NOW + 61), nonces=nonces, now=NOW + 61)


def test_what_an_earlier_life_may_have_seen_is_refused():
    nonces = Nonces(since=NOW)
    refused(ours(now=NOW - 1), "signed before what is remembered here begins", nonces=nonces)
    assert check(ours(), nonces=nonces)


def test_a_longer_window_does_not_freshen_what_was_forgotten():
    nonces = Nonces(window=30)
    old = ours()
    assert check(old, nonces=nonces)
    assert check(ours(now=NOW + 100), now=NOW + 100, nonces=nonces)
    nonces.window = 3600
    refused(old, "signed before what is remembered here begins", now=NOW + 110, window=3600, nonces=nonces)
    refused(ours(now=NOW + 100), "used before", now=NOW + 3000, window=3600, nonces=nonces)
    assert check(ours(now=NOW + 90), now=NOW + 3000, window=3600, nonces=nonces)


def test_what_is_taken_as_the_window_becomes_longer_is_remembered_too():
    nonces = Nonces(window=30)
    nonces.take(PUBLIC, "a", NOW, NOW)
    nonces.window = 3600
    nonces.take(PUBLIC, "b", NOW, NOW)
    for nonce in "ab":
        with pytest.raises(ProtocolError, match="used before"):
            nonces.take(PUBLIC, nonce, NOW, NOW)


# --- keys ------------------------------------------------------------------------------------------------------------

PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
LISTED = f"# devices\n{b64encode(PUBLIC).decode()}  # alpha\n\n  {b64encode(OTHER).decode()}\n"


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (PUBLIC, {PUBLIC}),
        (PEM, {PUBLIC}),
        (PEM.decode() * 2, {PUBLIC}),
        (LISTED, {PUBLIC, OTHER}),
        ("", set()),
        (LISTED.encode(), {PUBLIC, OTHER}),
    ],
)
def test_keys_from_files(content, keys):
    assert load_keys(content) == keys


@pytest.mark.parametrize(
    "content",
    [
        "nonsense!",
        b"\xff\xfe",
        PUBLIC[:-1],
        b64encode(PUBLIC[:-1]).decode(),
        "-----BEGIN CERTIFICATE-----\nAA==\n",
        "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----",
    ],
)
def test_what_is_no_key_is_our_own_mistake(content):
    with pytest.raises(ProtocolError, match=r"^cannot ") as caught:
        load_keys(content)
    assert caught.value.origin == "local"


def test_private_keys():
    pem = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for content, password in (
        (PKCS8, None),
        (b64encode(PKCS8), None),
        (b64encode(PKCS8).decode(), None),
        (pem, b"secret"),
    ):
        assert spki(load_private_key(content, password)) == PUBLIC
    ecdsa = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content, password in ((b"nonsense", None), (PKCS8[:-1], None), (pem, b"wrong"), (pem, None), (ecdsa, None)):
        with pytest.raises(ProtocolError, match=r"^cannot (load|read) a private key"):
            load_private_key(content, password)


def test_signing_puts_sorted_keys_on_the_wire():
    """So that the order received is the sorted one."""
    names = list(json.loads(ours()))
    assert names == [*sorted(names[:-1], key=canonical.by_utf16), "signature"]
    assert b64decode(json.loads(ours())["publicKey"]) == PUBLIC
