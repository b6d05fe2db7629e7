"""permessage-deflate: what is agreed on, the examples of RFC 7692, a peer of others, and bombs (Autobahn 12 and 13)."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.extensions import PerMessageDeflate

from netd.errors import ProtocolError
from netd.wire import deflate
from netd.wire.deflate import Compressor, Decompressor, DeflateSettings, accept, negotiate, offer, parse_extensions
from netd.wire.websocket import BINARY, TEXT, Decoder, Limits, frame
from tests.support.websocketpeer import raw, said

NAME = "permessage-deflate"
MOST = 1 << 20


def answered(header, **settings):
    agreed = negotiate(parse_extensions(header), DeflateSettings(**settings))
    return agreed and agreed.answer.removeprefix(NAME).removeprefix("; ")


# --- the handshake ---------------------------------------------------------------------------------------------------

OFFERS = [
    ("permessage-deflate", {}, ""),
    ("Permessage-Deflate", {}, ""),
    ("permessage-deflate; client_max_window_bits", {}, ""),
    ("permessage-deflate; client_max_window_bits", {"client_max_window_bits": 10}, "client_max_window_bits=10"),
    ("permessage-deflate; client_max_window_bits=12", {}, "client_max_window_bits=12"),
    ("permessage-deflate; client_max_window_bits=8", {}, "client_max_window_bits=8"),
    ("permessage-deflate; client_max_window_bits=9", {"client_max_window_bits": 11}, "client_max_window_bits=9"),
    ("permessage-deflate", {"client_max_window_bits": 10}, ""),
    ("permessage-deflate; server_max_window_bits=10", {}, "server_max_window_bits=10"),
    ('permessage-deflate; server_max_window_bits="10"', {}, "server_max_window_bits=10"),
    ('permessage-deflate; server_max_window_bits="1\\0", foo; a="\\b"', {}, "server_max_window_bits=10"),
    ("permessage-deflate; server_max_window_bits=12", {"server_max_window_bits": 9}, "server_max_window_bits=9"),
    ("permessage-deflate", {"server_max_window_bits": 9}, ""),
    ("permessage-deflate; server_no_context_takeover", {}, "server_no_context_takeover"),
    ("permessage-deflate; client_no_context_takeover", {}, "client_no_context_takeover"),
    ("permessage-deflate", {"server_no_context_takeover": True}, "server_no_context_takeover"),
    ("permessage-deflate", {"client_no_context_takeover": True}, "client_no_context_takeover"),
    # a window of 8 bits is none that zlib could compress with
    ("permessage-deflate; server_max_window_bits=8", {}, None),
    # the first that can be met
    ("permessage-deflate; server_max_window_bits=8, permessage-deflate", {}, ""),
    ("permessage-deflate; mode=fast, permessage-deflate; client_no_context_takeover", {}, "client_no_context_takeover"),
    ("x-webkit-deflate-frame, , foo; a=b; c,permessage-deflate", {}, ""),
    ("x-webkit-deflate-frame", {}, None),
    ("", {}, None),
    # unknown, repeated, wrong
    ("permessage-deflate; unknown", {}, None),
    ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", {}, None),
    ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", {}, None),
    ("permessage-deflate; server_no_context_takeover=1", {}, None),
    ("permessage-deflate; client_no_context_takeover=true", {}, None),
    ("permessage-deflate; server_max_window_bits", {}, None),
    *(
        (f"permessage-deflate; {side}_max_window_bits={bits}", {}, None)
        for side in ("server", "client")
        for bits in ("7", "16", "08", "0", "1", "150", "x")
    ),
]


@pytest.mark.parametrize(("header", "settings", "answer"), OFFERS, ids=[f"{h} {s}" for h, s, _ in OFFERS])
def test_an_offer_is_answered_or_declined(header, settings, answer):
    assert answered(header, **settings) == answer


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate;",
        "a b",
        "permessage-deflate; =1",
        'a; b="c',
        'a; b="c d"',
        'a; b=""',
        'a; b="\\"',
        'a; b="c\\ d"',
        "a; b=c\\d",
        "a; b=",
        "ä",
        "a;;b",
        "a/b",
        "\0",
    ],
)
def test_what_is_no_list_of_extensions_fails(header):
    with pytest.raises(ProtocolError, match="cannot read the extensions"):
        parse_extensions(header)


def test_extensions_are_few_and_long_ones_are_given_up_at_once():
    """In quadratic time this would be minutes, and the test's own limit."""
    for header in ("a" * 100_000 + "/", "a; b=" + " " * 100_000, "a" + "; b" * 50_000 + "/", " ," * 100_000 + "/"):
        with pytest.raises(ProtocolError):
            parse_extensions(header)
    with pytest.raises(ProtocolError, match="more than 64"):
        parse_extensions(", ".join(["a"] * 65))
    assert len(parse_extensions(", ".join(["a"] * 64))) == 64
    with pytest.raises(ProtocolError, match="more than 64"):
        parse_extensions("a" + "; b" * 64)
    assert parse_extensions("a" + "; b" * 63) == [("a", [("b", None)] * 63)]


def test_empty_elements_are_none_however_many():
    for header in (", ,\t," * 20_000 + "a", "a" + ",," * 20_000, ",,a,,", " , a , "):
        assert parse_extensions(header) == [("a", [])]
    for header in (",," * 20_000, ",", ""):
        assert parse_extensions(header) == []


SETTINGS = st.builds(
    DeflateSettings, st.booleans(), st.booleans(), st.integers(9, 15), st.integers(9, 15), st.integers(0, 9)
)


@given(SETTINGS, SETTINGS, st.lists(st.binary(max_size=200) | st.builds(bytes, st.integers(0, 70_000)), max_size=6))
def test_what_one_side_offers_and_the_other_agrees_to_works(ours, theirs, payloads):
    server = negotiate(parse_extensions(offer(theirs)), ours)
    assert server is not None
    client = accept(server.answer, theirs)
    assert client is not None
    directions = (
        (server.compressor(), client.decompressor(client=True)),
        (client.compressor(client=True), server.decompressor()),
    )
    for pack, unpack in directions:
        for payload in payloads + payloads:
            assert unpack.message(pack.message(payload), MOST) == payload


@pytest.mark.parametrize(
    ("header", "settings"),
    [
        ("foo", {}),
        ("permessage-deflate, permessage-deflate", {}),
        ("permessage-deflate; unknown", {}),
        ("permessage-deflate; client_max_window_bits", {}),
        ("permessage-deflate; client_max_window_bits=8", {}),
        ("permessage-deflate; server_max_window_bits=7", {}),
        ("permessage-deflate", {"server_no_context_takeover": True}),
        ("permessage-deflate", {"server_max_window_bits": 12}),
        ("permessage-deflate; server_max_window_bits=13", {"server_max_window_bits": 12}),
    ],
)
def test_a_client_refuses_an_answer_that_breaks_its_offer(header, settings):
    with pytest.raises(ProtocolError, match="cannot use the"):
        accept(header, DeflateSettings(**settings))


def test_no_answer_is_no_compression():
    assert accept("", DeflateSettings()) is None
    agreed = accept("permessage-deflate", DeflateSettings(client_no_context_takeover=True, client_max_window_bits=10))
    assert agreed is not None
    assert (agreed.client_no_context_takeover, agreed.client_max_window_bits) == (True, 10)


# --- messages --------------------------------------------------------------------------------------------------------


def hexed(text):
    return bytes.fromhex(text)


def test_examples_of_the_rfc():
    """Section 7.2.3."""
    assert Compressor().message(b"Hello") == hexed("f248cdc9c90700")
    unpack = Decompressor()
    assert unpack.message(hexed("f248cdc9c90700"), MOST) == b"Hello"
    assert unpack.message(hexed("f200110000"), MOST) == b"Hello"  # 7.2.3.2: shares the window
    assert Decompressor().message(hexed("000500faff48656c6c6f00"), MOST) == b"Hello"  # 7.2.3.3: not compressed
    final = Decompressor()
    for _ in range(3):
        assert final.message(hexed("f348cdc9c9070000"), MOST) == b"Hello"  # 7.2.3.4: BFINAL
        assert final.message(hexed("f348cdc9c90700"), MOST) == b"Hello"
    assert Decompressor().message(hexed("f248050000 00ffffcac9c90700"), MOST) == b"Hello"  # 7.2.3.5: two blocks
    assert Decompressor().message(b"\0", MOST) == b""  # 7.2.3.6
    assert Compressor().message(b"") == b"\0"


def test_takeover_makes_the_second_smaller_and_its_absence_makes_it_stand_alone():
    payload = random.Random(1).randbytes(500)
    keeping, forgetting = Compressor(), Compressor(takeover=False)
    first, second = keeping.message(payload), keeping.message(payload)
    assert len(second) < len(first) / 5
    alone = [forgetting.message(payload) for _ in range(3)]
    assert len(set(map(len, alone))) == 1
    for packed in alone:
        assert Decompressor().message(packed, MOST) == payload
        assert Decompressor(takeover=False).message(packed, MOST) == payload
    with pytest.raises(ProtocolError):
        Decompressor(takeover=False).message(second, MOST)


@given(st.lists(st.binary(max_size=300), max_size=8), st.booleans(), st.integers(9, 15), st.integers(0, 9))
@example([b"", b"a", b"", b"", b"a"], True, 15, 6)
def test_messages_come_back(payloads, takeover, bits, level):
    pack, unpack = Compressor(bits, takeover=takeover, level=level), Decompressor(bits, takeover=takeover)
    for payload in payloads:
        assert unpack.message(pack.message(payload), 300) == payload


def test_an_empty_message_after_others_is_one_byte():
    pack, unpack = Compressor(), Decompressor()
    for payload in (b"abc", b"", b"", b"abc", b""):
        assert unpack.message(pack.message(payload), MOST) == payload


@pytest.mark.parametrize("step", [None, 1, 11])
@pytest.mark.parametrize("takeover", [True, False], ids=["takeover", "no takeover"])
def test_compressed_frames_and_others_between_them(takeover, step):
    pack = Compressor(takeover=takeover)
    stream, expected = b"", []
    for i in range(30):
        payload = f"Grüße {i % 3} ".encode() * (i % 5)
        packed = pack.message(payload)
        stream += frame(TEXT, packed, key=b"\x01\xfe\x80\x7f", compressed=True)
        expected.append(("text", payload))
        if i % 3 == 0:
            stream += frame(BINARY, b"plain", key=b"abcd")
            expected.append(("binary", b"plain"))
        if i % 4 == 0:
            packed = pack.message(payload)
            third = len(packed) // 3
            # RSV1 on the first frame of a message only, section 6.1
            stream += raw(0x42, packed[:third]) + raw(0x00, packed[third : 2 * third]) + raw(0x89, b"!")
            stream += raw(0x80, packed[2 * third :])
            expected += [("ping", b"!"), ("binary", payload)]
    decoding = Decoder(Limits(), masked=True, inflate=Decompressor(takeover=takeover))
    got = []
    for at in range(0, len(stream), step or len(stream)):
        got += said(decoding.receive(stream[at : at + (step or len(stream))]))
    assert (got, decoding.error) == (expected, None)


@pytest.mark.parametrize("step", [None, 1, 11, 400])
def test_what_a_read_blows_up_to_is_handed_over_in_parts(step):
    """Neither lost nor doubled nor out of order, and never much more at once than was agreed on."""
    pack = Compressor()
    stream, expected = b"", []
    for i in range(40):
        payload = bytes([i]) * (0, 10, 3000, 9000)[i % 4]
        packed = pack.message(payload)
        if i % 5:
            stream += frame(BINARY, packed, key=b"\x01\xfe\x80\x7f", compressed=True)
        else:
            stream += raw(0x42, packed[:1]) + raw(0x89, b"!") + raw(0x80, packed[1:])
            expected.append(("ping", b"!"))
        stream += frame(BINARY, b"plain", key=b"abcd")
        expected += [("binary", payload), ("binary", b"plain")]
    stream += raw(0x88, b"\x03\xe8") + frame(BINARY, b"behind", key=b"abcd")
    expected.append(("close", (1000, "")))
    decoding = Decoder(Limits(max_inflated=10_000), masked=True, inflate=Decompressor())
    got, turns = [], 0
    for at in range(0, len(stream), step or len(stream)):
        data = stream[at : at + (step or len(stream))]
        while data:
            found = said(decoding.receive(data))
            inflated = [said for kind, said in found if kind == "binary" and said != b"plain"]
            assert sum(map(len, inflated[:-1])) < 10_000
            got += found
            data, turns = decoding.left, turns + bool(decoding.left)
    assert (got, decoding.error, decoding.closed) == (expected, None, True)
    assert decoding.left == b""
    assert turns > 0 or step in (1, 11)


def frames_of(pieces) -> bytes:
    """Each piece is what a frame, or the two of a message, is made of; "bad" is none."""
    pack, stream = Compressor(), b""
    for kind, size in pieces:
        payload = b"ab" * size
        if kind == "packed":
            stream += frame(TEXT, pack.message(payload), key=b"\x01\xfe\x80\x7f", compressed=True)
        elif kind == "parts":
            packed = pack.message(payload)
            stream += raw(0x42, packed[:2]) + raw(0x8A, b"!") + raw(0x80, packed[2:])
        elif kind == "plain":
            stream += frame(TEXT, payload, key=b"abcd")
        else:
            stream += {"ping": raw(0x89, b"?"), "bad": raw(0xC1, b"\xff\xff"), "close": raw(0x88, b"")}[kind]
    return stream


KINDS = st.sampled_from(["packed"] * 4 + ["parts"] * 2 + ["plain", "plain", "ping", "bad", "close"])


@given(
    st.lists(st.tuples(KINDS, st.integers(0, 400)), max_size=20).map(frames_of),
    st.integers(0, 2000),
    st.integers(1, 300),
)
def test_the_bound_changes_nothing_but_when(stream, most, step):
    whole = Decoder(Limits(), masked=True, inflate=Decompressor())
    expected = said(whole.receive(stream))
    bounded = Decoder(Limits(max_inflated=most), masked=True, inflate=Decompressor())
    got = []
    for at in range(0, len(stream), step):
        data = stream[at : at + step]
        while data:
            got += said(bounded.receive(data))
            data = bounded.left
    assert (got, bounded.closed) == (expected, whole.closed)
    assert getattr(bounded.error, "close", None) == getattr(whole.error, "close", None)


def test_without_that_bound_a_call_takes_all():
    pack = Compressor()
    stream = b"".join(frame(BINARY, pack.message(bytes(9000)), key=b"abcd", compressed=True) for _ in range(40))
    decoding = Decoder(Limits(), masked=True, inflate=Decompressor())
    assert len(said(decoding.receive(stream))) == 40
    assert decoding.left == b""


@pytest.mark.parametrize(
    "stream",
    [
        raw(0x01, b"a") + raw(0xC0, b"b"),
        raw(0x41, b"\0") + raw(0xC0, b""),
        raw(0xC9, b""),
        raw(0xE1, b"\0"),
        raw(0xA1, b""),
    ],
    ids=["RSV1 on a continuation", "RSV1 again", "RSV1 on a ping", "RSV2", "RSV2 alone"],
)
def test_reserved_bits_with_compression(stream):
    decoding = Decoder(Limits(), masked=True, inflate=Decompressor())
    assert decoding.receive(stream) == []
    assert decoding.error is not None
    assert decoding.error.close == 1002


def ended(packed, opcode=TEXT, **limits):
    decoding = Decoder(Limits(**limits), masked=True, inflate=Decompressor())
    stream = frame(TEXT, b"before", key=b"abcd") + frame(opcode, packed, key=b"abcd", compressed=True)
    assert said(decoding.receive(stream)) == [("text", b"before")]
    assert decoding.error is not None
    assert str(decoding.error).startswith("cannot ")
    return decoding.error.close


def test_what_is_not_deflate_or_not_text_is_1007():
    assert ended(b"\xff\xff\xff") == 1007
    assert ended(b"\x06") == 1007  # a reserved block type
    assert ended(Compressor().message(b"\xff")) == 1007
    assert ended(Compressor().message("ü".encode()[:1])) == 1007


@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_bomb_is_refused_without_being_unpacked(level):
    pack = zlib.compressobj(level, zlib.DEFLATED, -15)
    bomb = b"".join(pack.compress(bytes(1 << 20)) for _ in range(64)) + pack.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < 1 << 19
    tracemalloc.start()
    try:
        assert ended(bomb, BINARY) == 1009
        assert tracemalloc.get_traced_memory()[1] < 14 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_is_inclusive_and_counts_what_is_unpacked():
    pack = Compressor().message(bytes(1000))
    assert Decompressor().message(pack, 1000) == bytes(1000)
    for most in (999, 1, 0):
        with pytest.raises(ProtocolError, match="decompressed") as caught:
            Decompressor().message(pack, most)
        assert caught.value.close == 1009
    assert Decompressor().message(b"\0", 0) == b""


def test_what_does_not_compress_may_be_longer_on_the_wire_but_not_much():
    payload = random.Random(1).randbytes(1000)
    for level in (0, 1, 6, 9):
        for memory in (1, 8, 9):
            packed = Compressor(9, level=level, memory=memory).message(payload)
            assert len(packed) > 1000
            decoding = Decoder(Limits(1000), masked=False, inflate=Decompressor())
            assert said(decoding.receive(frame(BINARY, packed, compressed=True))) == [("binary", payload)]
    assert ended(bytes(1190), BINARY, max_message=1000) == 1009


def test_final_blocks_without_end_are_refused():
    block = zlib.compressobj(9, zlib.DEFLATED, -15).flush(zlib.Z_FINISH)
    assert Decompressor().message(block * 64, MOST) == b""
    with pytest.raises(ProtocolError, match="64 final blocks"):
        Decompressor().message(block * 65, MOST)


def test_a_block_after_a_final_one_may_look_back():
    history = b"something to look back at"
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    second = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=history)
    stream = first.compress(history) + first.flush(zlib.Z_FINISH)
    stream += second.compress(history) + second.flush(zlib.Z_SYNC_FLUSH)[:-4]
    assert Decompressor().message(stream, MOST) == history * 2


# --- an independent peer ---------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.lists(st.text(max_size=60) | st.just("a sentence that comes again"), min_size=1, max_size=4)
    | st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    max_size=12,
)


@given(SETTINGS, PARTS, st.sampled_from([ConnectionType.CLIENT, ConnectionType.SERVER]), st.integers(1, 2000))
def test_wsproto_and_we_understand_each_other(settings, messages, kind, step):
    extension = PerMessageDeflate()
    if kind is ConnectionType.CLIENT:
        header = extension.offer()
        agreed = negotiate(parse_extensions(NAME if header is True else f"{NAME}; {header}"), settings)
        assert agreed is not None
        extension.finalize(agreed.answer)
    else:
        answer = extension.accept(offer(settings))
        agreed = accept(NAME if answer is True else f"{NAME}; {answer}", settings)
        assert agreed is not None
    we_are_client = kind is ConnectionType.SERVER
    peer = Connection(kind, extensions=[extension])
    pack = agreed.compressor(client=we_are_client)
    decoding = Decoder(Limits(), masked=not we_are_client, inflate=agreed.decompressor(client=we_are_client))
    stream, ours, expected = b"", b"", []
    for parts in messages:
        text = isinstance(parts[0], str)
        event = TextMessage if text else BytesMessage
        for i, part in enumerate(parts):
            stream += peer.send(event(data=part, message_finished=i == len(parts) - 1))
        payload = "".join(parts).encode() if text else b"".join(parts)
        expected.append(("text" if text else "binary", payload))
        key = b"k\x80y\xff" if we_are_client else None
        ours += frame(TEXT if text else BINARY, pack.message(payload), key=key, compressed=True)
    got = []
    for at in range(0, len(stream), step):
        got += said(decoding.receive(stream[at : at + step]))
    assert (got, decoding.error) == (expected, None)
    peer.receive_data(ours)
    read, held = [], b""
    for event in peer.events():
        assert isinstance(event, TextMessage | BytesMessage)
        held += event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        if event.message_finished:
            read.append(("text" if isinstance(event, TextMessage) else "binary", held))
            held = b""
    assert read == expected


def test_an_idle_connection_without_takeover_holds_nothing():
    agreed = negotiate([(NAME, [])], DeflateSettings(client_no_context_takeover=True))
    assert agreed is not None
    unpack = agreed.decompressor()
    unpack.message(Compressor().message(bytes(1000)), MOST)
    assert unpack._zlib is None
    assert deflate.MAX_FINAL == 64
