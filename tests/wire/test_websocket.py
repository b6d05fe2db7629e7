"""The WebSocket codec: cases as the Autobahn test suite groups them, however they are cut, and a peer of others."""

from __future__ import annotations

import itertools
import os
import random
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsPing
from wsproto.events import Pong as WsPong

from netd.errors import ProtocolError
from netd.wire import websocket
from netd.wire.websocket import BINARY, CLOSE, PING, PONG, TEXT, Close, Decoder, Limits, Messages, Ping, frame
from tests.support.websocketpeer import raw, said, simple

SERVER, CLIENT = True, False
KOSME = "κόσμε".encode()
FIN = 0x80


def decoder(masked=SERVER, **limits):
    return Decoder(Limits(**limits), masked=masked)


def fed(decoding, stream, size=None):
    """What the stream says when it comes in chunks of so many bytes, and how it ended."""
    events = []
    for at in range(0, len(stream), size or len(stream) or 1):
        events += decoding.receive(stream[at : at + (size or len(stream))])
    return said(events), decoding.error.close if decoding.error else None


def text(payload):
    return ("text", payload)


def binary(payload):
    return ("binary", payload)


def closing(payload):
    return [(FIN | CLOSE, payload)]


_INVALID = """
    80 bf fe ff c080 e08080 f0808080 c1bf e09fbf f08fbfbf eda080 edbfbf edadbfedb080 f4908080 f8888080 80bf80
    c3 e282 f09f98 c328 e228a1 f0288cbc f8a1a1a1a1 fca1a1a1a1a1
"""
INVALID = _INVALID.split()
"""Never a character, whatever follows: alone, overlong, surrogates, above U+10FFFF, cut off."""
CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
NO_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)

# name: (frames as (first byte, payload), what they say, the close code of the error they end with)
CASES = {
    # 1: framing
    "1 empty text": ([(0x81, b"")], [text(b"")], None),
    "1 empty binary": ([(0x82, b"")], [binary(b"")], None),
    **{f"1 text of {n}": ([(0x81, b"*" * n)], [text(b"*" * n)], None) for n in (1, 125, 126, 127, 128)},
    **{f"1 binary of {n}": ([(0x82, b"\xfe" * n)], [binary(b"\xfe" * n)], None) for n in (1, 125, 126, 127, 128)},
    # 2: pings and pongs
    "2.1 ping without payload": ([(0x89, b"")], [("ping", b"")], None),
    "2.3 ping with binary payload": (
        [(0x89, b"\0\xff\xfe\xfd\xfc\xfb\0\xff")],
        [("ping", b"\0\xff\xfe\xfd\xfc\xfb\0\xff")],
        None,
    ),
    "2.4 ping of 125": ([(0x89, b"\xfe" * 125)], [("ping", b"\xfe" * 125)], None),
    "2.5 ping of 126": ([(0x89, b"\xfe" * 126)], [], 1002),
    "2.7 unsolicited pongs": (
        [(0x8A, b""), (0x8A, b"x"), (0x89, b"y")],
        [("pong", b""), ("pong", b"x"), ("ping", b"y")],
        None,
    ),
    "2.10 ten pings": ([(0x89, b"%d" % i) for i in range(10)], [("ping", b"%d" % i) for i in range(10)], None),
    # 3: reserved bits
    **{
        f"3 reserved bits {bits}": ([(0x81, b"before"), (0x81 | bits << 4, b"x"), (0x89, b"")], [text(b"before")], 1002)
        for bits in range(1, 8)
    },
    **{
        f"3 reserved bits in {name}": ([(0xC0 | opcode, b"")], [], 1002)
        for name, opcode in (("close", 8), ("ping", 9), ("pong", 10))
    },
    # 4: opcodes
    **{
        f"4 reserved opcode {opcode:#x}": (
            [(0x81, b"before"), (0x80 | opcode, b""), (0x89, b"")],
            [text(b"before")],
            1002,
        )
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    },
    # 5: fragmentation
    "5.1 fragmented ping": ([(0x09, b"a"), (0x80, b"b")], [], 1002),
    "5.2 fragmented pong": ([(0x0A, b"a"), (0x80, b"b")], [], 1002),
    "5.3 text in two": ([(0x01, b"fragment1"), (0x80, b"fragment2")], [text(b"fragment1fragment2")], None),
    "5.6 ping between fragments": (
        [(0x01, b"f1"), (0x89, b"ping"), (0x80, b"f2")],
        [("ping", b"ping"), text(b"f1f2")],
        None,
    ),
    "5.9 continuation of nothing": ([(0x80, b"x"), (0x81, b"Hello")], [], 1002),
    "5.12 continuation of nothing, not final": ([(0x00, b"x"), (0x81, b"Hello")], [], 1002),
    "5.15 continuation after the end": (
        [(0x01, b"f1"), (0x80, b"f2"), (0x00, b"f3"), (0x81, b"f4")],
        [text(b"f1f2")],
        1002,
    ),
    "5.18 text within text": ([(0x01, b"f1"), (0x81, b"f2")], [], 1002),
    "5.19 pings between five": (
        [
            (0x01, b"f1"),
            (0x00, b"f2"),
            (0x89, b"p1"),
            (0x00, b"f3"),
            (0x00, b"f4"),
            (0x89, b"p2"),
            (0x80, b"f5"),
            (0x81, b""),
        ],
        [("ping", b"p1"), ("ping", b"p2"), text(b"f1f2f3f4f5"), text(b"")],
        None,
    ),
    "5 empty fragments": ([(0x02, b""), (0x00, b""), (0x80, b"")], [binary(b"")], None),
    "5 close between fragments": ([(0x01, b"f1"), (0x88, b"\x03\xe8"), (0x80, b"f2")], [("close", (1000, ""))], None),
    # 6: UTF-8
    "6.1 empty fragments around": ([(0x01, b""), (0x00, b"middle"), (0x80, b"")], [text(b"middle")], None),
    "6.2 a character a byte": ([(0x01, b""), *((0x00, bytes([b])) for b in KOSME), (0x80, b"")], [text(KOSME)], None),
    "6.3 invalid in the middle": ([(0x81, KOSME + b"\xed\xa0\x80edited")], [], 1007),
    "6.4 invalid in the second of three": ([(0x01, KOSME), (0x00, b"\xf4\x90\x80\x80"), (0x80, b"edited")], [], 1007),
    "6.4 ends within a character": ([(0x81, KOSME[:-1])], [], 1007),
    "6.4 fragments end within a character": ([(0x01, KOSME), (0x80, b"\xce")], [], 1007),
    "6.4 an empty last fragment within a character": ([(0x01, b"\xce"), (0x80, b"")], [], 1007),
    **{
        f"6 valid {sample.hex()}": ([(0x81, sample), (0x81, b"after")], [text(sample), text(b"after")], None)
        for sample in map(str.encode, "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\ufffe\uffff\U00010000\U0010ffff")
    },
    **{
        f"6 invalid {sample}": (
            [(0x82, b"\xff"), (0x81, b"a" + bytes.fromhex(sample) + b"b"), (0x81, b"after")],
            [binary(b"\xff")],
            1007,
        )
        for sample in INVALID
    },
    # 7: closing
    "7.1 all after a close is ignored": (
        [(0x81, b"a"), (0x88, b"\x03\xe8"), (0x81, b"b"), (0x83, b"")],
        [text(b"a"), ("close", (1000, ""))],
        None,
    ),
    "7.3 empty close": (closing(b""), [("close", (1005, ""))], None),
    "7.3 close of one byte": (closing(b"a"), [], 1002),
    "7.3 close with a reason": (closing(b"\x03\xe8Hello"), [("close", (1000, "Hello"))], None),
    "7.3 longest close": (closing(b"\x03\xe8" + b"*" * 123), [("close", (1000, "*" * 123))], None),
    "7.3 close of 126": (closing(b"\x03\xe8" + b"*" * 124), [], 1002),
    "7.5 reason is not UTF-8": (closing(b"\x03\xe8" + KOSME + b"\xed\xa0\x80edited"), [], 1007),
    **{f"7.7 code {c}": (closing(c.to_bytes(2)), [("close", (c, ""))], None) for c in CODES},
    **{f"7.9 code {c}": (closing(c.to_bytes(2)), [], 1002) for c in NO_CODES},
}


@pytest.mark.parametrize("masked", [SERVER, CLIENT], ids=["server", "client"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_conformance_however_the_bytes_are_cut(case, masked):
    pieces, expected, code = case
    stream = b"".join(raw(first, payload, b"" if masked else None) for first, payload in pieces)
    assert simple(stream, masked=masked) == (expected, code)
    for size in (None, 1, 2, 3, 5):
        decoding = decoder(masked)
        assert fed(decoding, stream, size) == (expected, code), f"in chunks of {size}"
        assert decoding.receive(stream) == [] or (code is None and not decoding.closed)
    for cut in range(1, len(stream)):
        decoding = decoder(masked)
        events = decoding.receive(stream[:cut]) + decoding.receive(stream[cut:])
        assert (said(events), decoding.error and decoding.error.close) == (expected, code), f"cut at {cut}"
    if code is None and not decoding.closed:
        assert decoding.buffered == 0
        assert decoding._message is None


@pytest.mark.parametrize("masked", [SERVER, CLIENT], ids=["server", "client"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
@pytest.mark.parametrize("size", [65535, 65536, 65537, 1 << 20, 4 << 20])
def test_large_messages_whole_and_in_fragments(size, opcode, masked):
    """Autobahn 1.1.6 to 1.1.8 and 9."""
    payload = (
        ("aé€😀" * (size // 10 + 1)).encode()[:size] if opcode == BINARY else b"x%" * (size // 2) + b"x" * (size % 2)
    )
    key = b"\x12\x00\xff\x80" if masked else None
    expected = [("text" if opcode == TEXT else "binary", payload)]
    assert fed(decoder(masked), frame(opcode, payload, key=key), 131008) == (expected, None)
    step = max(64, size // 4000)
    fragments = bytearray()
    for at in range(0, size, step):
        first = (opcode if at == 0 else 0) | (FIN if at + step >= size else 0)
        fragments += bytes([first]) + frame(BINARY, payload[at : at + step], key=key)[1:]
    decoding = decoder(masked)
    assert fed(decoding, bytes(fragments), 70001) == (expected, None)
    assert decoding.buffered == 0


def test_the_longest_message_in_the_smallest_fragments_that_autobahn_sends():
    payload = bytes(range(64)) * 65536
    one = frame(BINARY, payload[:64], key=b"abcd")
    stream = b"\x02" + one[1:] + (b"\x00" + one[1:]) * 65534 + b"\x80" + one[1:]
    assert fed(decoder(), stream, 131008) == ([binary(payload)], None)


@pytest.mark.parametrize("invalid", ["ff", "eda080", "f490", "c0", "f8", "6180"])
def test_text_fails_at_the_first_byte_that_cannot_be_utf8(invalid):
    """Autobahn 6.4.3: the frame is not complete, and need not be."""
    bad = bytes.fromhex(invalid)
    whole = frame(TEXT, KOSME + bad + b"never sent", key=b"\x01\x02\x03\x04")
    decoding = decoder()
    upto = 6 + len(KOSME) + len(bad)
    assert (
        fed(decoding, whole[: upto - 1], 1)[1] is None or invalid == "eda080"
    )  # which cannot be from its second byte on
    decoding.receive(whole[upto - 1 : upto])
    assert decoding.error is not None
    assert decoding.error.close == 1007


def test_consecutive_messages_of_a_kind_are_one_event():
    stream = websocket.frames(TEXT, [b"a", b"bc"]) + websocket.frames(BINARY, [b"d"] * 9) + frame(PING, b"p")
    stream += frame(BINARY, b"e")
    assert decoder(CLIENT).receive(stream) == [
        Messages(True, [b"a", b"bc"]),
        Messages(False, [b"d"] * 9),
        Ping(b"p"),
        Messages(False, [b"e"]),
    ]


RUNS = {
    "equal": [b"x" * 128] * 200,
    "equal and odd": [bytes([97 + i % 26]) * 33 for i in range(70)],
    "empty": [b""] * 70,
    "runs": [b"a" * (1 + i // 5) for i in range(60)],
    "pairs": [b"a" * (i // 2 % 2) for i in range(40)],
    "lengths of two bytes": [b"a" * n for n in (300, 300, 300, 300, 301, 301, 556, 556, 300, 300, 300, 300, 300)],
    "around where unmasking changes": [bytes([97 + i % 26]) * n for n in (1023, 1024, 1025, 1026) for i in range(6)],
    "umlauts": ["ü".encode() * 20] * 30,
}


@pytest.mark.parametrize("masked", [SERVER, CLIENT], ids=["server", "client"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
@pytest.mark.parametrize("payloads", RUNS.values(), ids=RUNS)
def test_runs_are_what_the_frames_say_one_by_one(payloads, opcode, masked):
    chance = random.Random(1)
    stream = b"".join(frame(opcode, payload, key=chance.randbytes(4) if masked else None) for payload in payloads)
    assert masked or stream == websocket.frames(opcode, payloads)
    for size in (None, 1, 7, 100, 1000):
        decoding = decoder(masked)
        assert fed(decoding, stream, size) == ([("text" if opcode == TEXT else "binary", p) for p in payloads], None)


def test_a_run_keeps_what_was_valid_before_the_text_that_is_not():
    good, bad = frame(TEXT, b"good!", key=b"abcd"), frame(TEXT, b"b\xffd!!", key=b"abcd")
    for before in (0, 1, 3, 10, 64, 70):
        assert fed(decoder(), good * before + bad + good * 10) == ([text(b"good!")] * before, 1007)
        assert decoder().receive(bad + good) == []


def test_a_length_that_is_not_minimal_is_refused():
    for masked in (SERVER, CLIENT):
        for length, size in ((0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65535, 8)):
            stream = raw(0x82, b"x" * length, b"" if masked else None, size=size)
            for step in (None, 1):
                assert fed(decoder(masked), stream, step) == ([], 1002), (length, size)


def test_a_length_of_64_bits_has_none_first():
    for step in (None, 1):
        assert fed(decoder(), raw(0x82, b"", length=1 << 63, size=8), step) == ([], 1002)
        assert fed(decoder(), raw(0x82, b"", length=(1 << 63) - 1, size=8), step) == ([], 1009)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE])
@pytest.mark.parametrize("masked", [SERVER, CLIENT])
def test_a_read_that_may_be_one_whole_frame_is_what_it_is_in_two_reads(opcode, masked):
    """Whatever its second byte says, and as long as that may be taken to mean."""
    for second in range(256):
        for length in {second & 127, second ^ 128, 126}:
            for more in (-1, 0, 2):
                for middle in (b"", length.to_bytes(2), length.to_bytes(8)):
                    body = bytes(4) * masked + b"a" * (length + more)
                    data = bytes([FIN | opcode, second]) + middle + body
                    assert fed(decoder(masked), data) == fed(decoder(masked), data, 1), (second, length, more, middle)


FIRSTS = st.sampled_from([0x81, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x02, 0x00, 0x80]) | st.integers(0, 255)
PAYLOADS = st.sampled_from(
    [b"", b"\x03\xe8", b"\x03\xe8\xc3\xbc", b"\x03\xe8\xc3", b"\x03\xee", KOSME, KOSME[:-1], b"\xff"]
)
SIZES = st.sampled_from([1, 2, 124, 125, 126, 127, 1015, 1016, 1017, 1018, 1024, 1025, 65535, 65536]).map(b"x".__mul__)
FRAMES = st.builds(raw, FIRSTS, PAYLOADS | SIZES, st.sampled_from([b"", b"\0" * 4, b"\xff\0\x80\x01", b"", b"", None]))


@given(
    st.lists(FRAMES, min_size=1, max_size=5), st.lists(st.integers(0, 3000), max_size=4), st.sampled_from([4096, 126])
)
def test_frames_say_the_same_in_one_read_each_in_its_own_and_in_any_pieces(frames, cuts, most):
    stream = b"".join(frames)
    ends = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[at:end] for at, end in itertools.pairwise(ends)]
    told = []
    for reads in ([stream], frames, pieces):
        decoding = decoder(max_message=most)
        events = [event for read in reads for event in decoding.receive(read)]
        told.append((said(events), decoding.error and decoding.error.close))
    assert told[0] == told[1] == told[2]
    if told[0][1] != 1009:
        assert told[0] == simple(stream, masked=True)


def test_masks_have_to_be_where_they_have_to_be():
    """Section 5.1."""
    good = frame(TEXT, b"x")
    assert fed(decoder(SERVER), good) == ([], 1002)
    assert fed(decoder(CLIENT), frame(TEXT, b"x", key=b"abcd")) == ([], 1002)
    assert fed(decoder(CLIENT), good * 10 + frame(TEXT, b"x", key=b"abcd") + good) == ([text(b"x")] * 10, 1002)
    assert "not masked" in str(fed_error(decoder(SERVER), good))


def fed_error(decoding, stream):
    decoding.receive(stream)
    return decoding.error


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 1])
def test_a_message_above_the_limit_is_refused_before_it_arrives(step):
    at_most = frame(BINARY, b"x" * 200, key=b"abcd")
    above = raw(0x82, b"", length=201)[:4]
    assert fed(decoder(max_message=200), at_most * 6 + above, step) == ([binary(b"x" * 200)] * 6, 1009)
    first = raw(0x02, b"x" * 150)
    assert fed(decoder(max_message=200), first + raw(0x80, b"x" * 50), step) == ([binary(b"x" * 200)], None)
    decoding = decoder(max_message=200)
    assert fed(decoding, first + raw(0x80, b"", length=51)[:2] + b"keyy", step) == ([], 1009)
    assert decoding.buffered == 0
    assert decoding.receive(at_most) == []


def test_a_frame_may_be_limited_as_well():
    limited = decoder(max_message=1000, max_frame=100)
    assert fed(limited, raw(0x02, b"x" * 100) + raw(0x00, b"y" * 100) + raw(0x80, b"")) == (
        [binary(b"x" * 100 + b"y" * 100)],
        None,
    )
    assert fed(limited, raw(0x82, b"x" * 101)) == ([], 1009)
    assert str(limited.error) == "cannot take a frame of 101 bytes: 100 are allowed"


@pytest.mark.parametrize("step", [None, 1])
def test_fragments_without_end_are_refused(step):
    three = raw(0x01, b"") + raw(0x00, b"") * 2
    assert fed(decoder(max_fragments=4), three + raw(0x80, b""), step) == ([text(b"")], None)
    assert fed(decoder(max_fragments=3), three + raw(0x89, b"!") + raw(0x80, b""), step) == ([("ping", b"!")], 1009)


def test_a_changed_limit_counts_from_the_next_header():
    limits = Limits(100)
    live = Decoder(limits, masked=True)
    stream = frame(BINARY, b"x" * 100, key=b"abcd")
    assert live.receive(stream[:50]) == []
    limits.max_message = 50
    assert live.receive(stream[50:]) == [Messages(False, [b"x" * 100])]
    assert fed_error(live, stream).close == 1009


def test_memory_grows_with_what_arrives_and_not_with_what_a_length_says():
    tracemalloc.start()
    try:
        lying = decoder()
        lying.receive(raw(0x82, b"x" * 100, length=4 << 20))
        lying.receive(bytes(1000))
        assert tracemalloc.get_traced_memory()[1] < 40_000
        assert lying.buffered == 1100
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 7, 1000, 1400])
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
def test_a_dribble_is_held_in_little_more_than_its_bytes(size, opcode):
    payload = bytes(range(128)) * 1000
    stream = frame(opcode, payload, key=b"\xf0\x0f\xaa\x55")
    dribbled = decoder()
    tracemalloc.start()
    try:
        for at in range(0, len(stream) - 1, size):
            assert dribbled.receive(stream[at : min(at + size, len(stream) - 1)]) == []
        assert tracemalloc.get_traced_memory()[0] < 1.4 * len(payload)
    finally:
        tracemalloc.stop()
    assert said(dribbled.receive(stream[-1:])) == [("text" if opcode == TEXT else "binary", payload)]


def test_an_idle_decoder_is_small():
    limits = Limits()
    tracemalloc.start()
    try:
        idle = [Decoder(limits, masked=True) for _ in range(1000)]
        assert tracemalloc.get_traced_memory()[0] / len(idle) < 130
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60), st.lists(st.integers(1, 9), max_size=8), st.booleans())
@example(b"\x01\x81aaaa\xff", [1], True)
def test_any_bytes_are_events_or_an_error_and_never_more(data, cuts, masked):
    decoding = decoder(masked, max_message=50)
    events, at = [], 0
    for cut in [*cuts, len(data)]:
        events += decoding.receive(data[at : at + cut])
        at += cut
    assert decoding.buffered <= 50 + 130
    whole = decoder(masked, max_message=50)
    assert said(whole.receive(data)) == said(events)
    assert (whole.error and whole.error.close) == (decoding.error and decoding.error.close)
    if decoding.error is not None:
        assert str(decoding.error).startswith("cannot take ")
        assert decoding.error.origin == "remote"
    if decoding.error is None or decoding.error.close != 1009:
        assert simple(data, masked=masked) == (said(events), decoding.error and decoding.error.close)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_examples_of_the_rfc():
    """Section 5.7."""
    assert frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(TEXT, b"Hello", key=bytes.fromhex("37fa213d")) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
    assert frame(PONG, b"Hello", key=bytes.fromhex("37fa213d")) == bytes.fromhex("8a8537fa213d7f9f4d5158")
    assert frame(BINARY, bytes(256))[:4] == bytes.fromhex("827e0100")
    assert frame(BINARY, bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")
    assert frame(BINARY, b"x", compressed=True)[0] == 0xC2


@given(st.binary(max_size=300) | st.builds(os.urandom, st.integers(1000, 1100)), st.binary(min_size=4, max_size=4))
def test_masking_is_what_the_rfc_says_and_undoes_itself(payload, key):
    masked = websocket.mask(payload, key)
    assert masked == bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    assert websocket.mask(masked, key) == payload


@given(
    st.lists(st.binary(max_size=3) | st.builds(bytes, st.integers(120, 130) | st.integers(65534, 65537)), max_size=6)
)
def test_frames_are_frame_after_frame(payloads):
    assert websocket.frames(BINARY, payloads) == b"".join(frame(BINARY, payload) for payload in payloads)


def test_a_close_says_what_it_may():
    assert websocket.close() == websocket.close(1005) == b"\x88\x00"
    assert decoder(CLIENT).receive(websocket.close(4008, "slow")) == [Close(4008, "slow")]
    assert decoder(SERVER).receive(websocket.close(1000, "ü" * 70, key=b"abcd")) == [Close(1000, "ü" * 61)]
    for code in (0, 999, 1004, 1006, 1015, 2999, 5000):
        with pytest.raises(ProtocolError, match=f"cannot close with code {code}") as caught:
            websocket.close(code)
        assert caught.value.origin == "local"


def test_a_control_frame_that_is_too_long_is_our_own_mistake():
    for key in (None, b"abcd"):
        with pytest.raises(ProtocolError, match="cannot send a control frame of 126 bytes") as caught:
            frame(PING, bytes(126), key=key)
        assert caught.value.origin == "local"


# --- an independent peer ---------------------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.tuples(st.just("text"), st.lists(st.text(max_size=80), min_size=1, max_size=4))
    | st.tuples(st.just("binary"), st.lists(st.binary(max_size=200), min_size=1, max_size=4))
    | st.tuples(st.just("text"), st.just(["x" * 128]))
    | st.tuples(st.sampled_from(["ping", "pong"]), st.tuples(st.binary(max_size=125))),
    max_size=40,
)


@given(MESSAGES, st.sampled_from([ConnectionType.CLIENT, ConnectionType.SERVER]), st.integers(1, 3000))
def test_what_wsproto_sends_is_read(messages, kind, step):
    peer = Connection(kind)
    stream, expected = b"", []
    for name, parts in messages:
        if name in ("ping", "pong"):
            stream += peer.send((WsPing if name == "ping" else WsPong)(payload=parts[0]))
            expected.append((name, parts[0]))
            continue
        event = TextMessage if name == "text" else BytesMessage
        for i, part in enumerate(parts):
            stream += peer.send(event(data=part, message_finished=i == len(parts) - 1))
        expected.append((name, "".join(parts).encode() if name == "text" else b"".join(parts)))
    stream += peer.send(CloseConnection(code=1001, reason="över"))
    expected.append(("close", (1001, "över")))
    assert fed(decoder(kind is ConnectionType.CLIENT), stream, step) == (expected, None)


@given(MESSAGES, st.sampled_from([ConnectionType.CLIENT, ConnectionType.SERVER]))
def test_what_is_sent_is_read_by_wsproto(messages, kind):
    peer = Connection(kind)
    opcodes = {"text": TEXT, "binary": BINARY, "ping": PING, "pong": PONG}
    expected, stream = [], b""
    for name, parts in messages:
        payload = "".join(parts).encode() if name == "text" else b"".join(parts)
        stream += frame(opcodes[name], payload, key=os.urandom(4) if kind is ConnectionType.SERVER else None)
        expected.append((name, payload))
    stream += websocket.close(3000, "done", key=b"abcd" if kind is ConnectionType.SERVER else None)
    peer.receive_data(stream)
    got, held = [], []
    for event in peer.events():
        match event:
            case TextMessage(data=data) | BytesMessage(data=data):
                held.append(data.encode() if isinstance(data, str) else bytes(data))
                if event.message_finished:
                    got.append(("text" if isinstance(event, TextMessage) else "binary", b"".join(held)))
                    held = []
            case WsPing(payload=payload):
                got.append(("ping", bytes(payload)))
            case WsPong(payload=payload):
                got.append(("pong", bytes(payload)))
            case CloseConnection(code=code, reason=reason):
                got.append(("close", (code, reason)))
    assert got == [*expected, ("close", (3000, "done"))]
