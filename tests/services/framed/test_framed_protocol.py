"""The first frame and its judgement, and the channel that a plain client is given."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.services.framed.protocol import NO_HANDSHAKE, FirstFrame, Terms, judge
from netd.services.framed.templates import Template
from netd.wire.framing import frame
from netd.wire.handshake import MAX_HANDSHAKE, Nonces, plain, signed, spki

NOW = 1_700_000_000.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def judged(payload: bytes, terms: Terms, *, now: float = NOW, nonces: Nonces | None = None):
    return judge(payload, terms, now=now, nonces=Nonces() if nonces is None else nonces)


# --- the first frame ---


@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost_however_the_bytes_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, payloads))
    first, at, answer = FirstFrame(), 0, None
    for number in range(1000):
        if answer is not None:
            break
        size = cuts[number % len(cuts)]
        answer = first.receive(data[at : at + size])
        at += size
    likely = payloads[0][:1] in (b"{", b" ", b"\t", b"\r", b"\n") and payloads[0] != b""
    assert answer == (payloads[0] if likely else NO_HANDSHAKE)
    taken = isinstance(answer, bytes)
    assert first.rest(taken=taken) + data[at:] == (data[4 + len(payloads[0]) :] if taken else data)


def test_what_is_no_handshake_is_told_by_its_first_byte() -> None:
    first = FirstFrame()
    assert first.receive(b"\x00\x00\x10\x00") is None
    assert first.receive(b"\x81") is NO_HANDSHAKE


@pytest.mark.parametrize("size", [0, MAX_HANDSHAKE + 1, 2**32 - 1])
def test_a_length_that_no_handshake_has_is_enough(size: int) -> None:
    first = FirstFrame()
    assert first.receive(size.to_bytes(4, "big")) is NO_HANDSHAKE
    assert first.rest(taken=False) == size.to_bytes(4, "big")


def test_no_more_is_held_than_a_handshake_may_have() -> None:
    first = FirstFrame()
    first.receive(MAX_HANDSHAKE.to_bytes(4, "big") + b"{")
    for _ in range(MAX_HANDSHAKE - 1):
        assert first.receive(b" ") is (None if first.buffered < MAX_HANDSHAKE + 4 else first.receive(b""))
    assert first.buffered == MAX_HANDSHAKE + 4


# --- the judgement ---


def test_a_plain_handshake_where_any_will_do() -> None:
    found = judged(plain("1.2", {"device": "alpha"}), Terms())
    assert found is not None
    assert (found.version, found.tags, found.signed) == ("1.2", {"device": "alpha"}, False)


@pytest.mark.parametrize("payload", [b"{}", b'{"type":"ping"}', b"[1]", b"{", NO_HANDSHAKE])
def test_a_first_message_that_is_no_handshake(payload: bytes) -> None:
    assert judged(payload, Terms()) is None
    with pytest.raises(ProtocolError, match="no handshake, and one is required") as caught:
        judged(payload, Terms(required=True))
    assert caught.value.close == 1008


@pytest.mark.parametrize("version", [None, "1", "2.0"])
@pytest.mark.parametrize("required", [True, False])
def test_a_version_that_is_missing_or_another_does_not_pass(version: str | None, required: bool) -> None:
    with pytest.raises(ProtocolError, match="version") as caught:
        judged(plain(version), Terms(required=required, version="1.0"))
    assert caught.value.close == 1008
    assert judged(plain("1.0"), Terms(required=required, version="1.0")) is not None


TERMS = Terms(required=True, signed=True, keys=frozenset({spki(KEY)}))


def test_a_signed_handshake_counts_once() -> None:
    payload, nonces = signed(KEY, "1", {"device": "a"}, now=NOW, nonce="n1"), Nonces()
    found = judged(payload, TERMS, nonces=nonces)
    assert found is not None
    assert (found.signed, found.key, found.tags) == (True, spki(KEY), {"device": "a"})
    with pytest.raises(ProtocolError, match="used before"):
        judged(payload, TERMS, nonces=nonces)
    assert judged(signed(KEY, "1", {}, now=NOW, nonce="n2"), TERMS, nonces=nonces) is not None


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (plain("1"), "not signed"),
        (signed(OTHER, "1", {}, now=NOW, nonce="n"), "not listed"),
        (signed(KEY, "1", {}, now=NOW - 31, nonce="n"), "clock"),
        (signed(KEY, "1", {}, now=NOW + 31, nonce="n"), "clock"),
        (signed(KEY, "1", {"a": "b"}, now=NOW, nonce="n").replace(b'"b"', b'"c"'), "signature"),
    ],
)
def test_a_signature_that_will_not_do(payload: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        judged(payload, TERMS)
    assert caught.value.close == 1008


def test_a_wrong_version_does_not_use_up_a_nonce() -> None:
    nonces = Nonces()
    with pytest.raises(ProtocolError, match="version"):
        judged(
            signed(KEY, "1", {}, now=NOW, nonce="n"),
            Terms(required=True, signed=True, version="2", keys=TERMS.keys),
            nonces=nonces,
        )
    assert len(nonces) == 0


def test_where_nobody_asks_for_a_signature_none_is_believed() -> None:
    value = json.loads(signed(KEY, "1", {"device": "a"}, now=NOW - 1e6, nonce="n"))
    found = judged(json.dumps(value).encode(), Terms())
    assert found is not None
    assert (found.signed, found.key, found.tags) == (False, None, {"device": "a"})


def test_a_verifier_is_shown_signatures_that_hold() -> None:
    terms = Terms(required=True, verified=True)
    found = judged(signed(OTHER, "1", {}, now=NOW, nonce="n"), terms)
    assert found is not None
    assert (found.signed, found.key) == (True, spki(OTHER))
    assert judged(plain("1"), terms) is not None
    with pytest.raises(ProtocolError, match="signature"):
        judged(signed(OTHER, "1", {"a": "b"}, now=NOW, nonce="n").replace(b'"b"', b'"c"'), terms)


# --- channels ---


def filled(text: str, **tags: str) -> bytes:
    return Template(text).fill(session="s1", name=tags.get("name"), listener="127.0.0.1:9000", tags=tags)


def test_templates_are_filled() -> None:
    assert filled("devices:{tags.device}", device="alpha") == b"devices:alpha"
    assert filled("at:{listener}/{session}/{name}", name="n") == b"at:127.0.0.1:9000/s1/n"
    assert filled("{{plain}}") == b"{plain}"
    assert filled("{{plain}}:{name}", name="a:b") == b"{plain}:a:b"
    assert filled("{tags.device.id}", **{"device.id": "7"}) == b"7"


@pytest.mark.parametrize("tags", [{}, {"device": ""}, {"other": "x"}])
def test_what_is_missing_refuses_the_client(tags: dict[str, str]) -> None:
    with pytest.raises(ProtocolError, match=r"tags\.device") as caught:
        filled("devices:{tags.device}", **tags)
    assert caught.value.close == 1008


def test_a_channel_that_gets_too_long_refuses_the_client() -> None:
    assert len(filled("{tags.a}{tags.b}", a="x" * 128, b="y" * 127)) == 255
    with pytest.raises(ProtocolError, match="256 bytes"):
        filled("{tags.a}{tags.b}", a="x" * 128, b="y" * 128)


@pytest.mark.parametrize("value", ["a:b", ":", "a\nb", "\0", "\x7f", "\x85"])
def test_a_client_does_not_choose_the_namespace(value: str) -> None:
    for text in ("{tags.x}", "room-{name}-{tags.x}"):
        with pytest.raises(ProtocolError, match=r"tags\.x has") as caught:
            filled(text, name="n", x=value)
        assert caught.value.close == 1008


def test_a_tag_cannot_bring_control_characters() -> None:
    assert filled("a:{tags.x}", x="b:c é") == "a:b:c é".encode()
    with pytest.raises(ProtocolError, match="control characters"):
        filled("a:{tags.x}", x="b\rc")


def test_a_tag_cannot_bring_fields_of_its_own() -> None:
    assert filled("a:{tags.x}", x="{session}") == b"a:{session}"
