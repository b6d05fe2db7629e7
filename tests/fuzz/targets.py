"""What is fuzzed: for each parser a function of bytes that fails when the parser breaks its promise.

The promise is always the same: whatever the bytes, a value or a ProtocolError, and a value that can be used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.errors import ProtocolError
from netd.wire import codecs, deflate, framing, handshake, messages, plain, websocket
from tests.support.websocketpeer import raw, said, simple

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS: tuple[messages.Format, ...] = ("json", "messagepack")
NOW = 1732190000.0


def fuzz_framing(data: bytes) -> None:
    """The first byte says how the rest is cut. Receiving, relaying and a decoder too simple to be wrong agree."""
    step = data[0] % 64 + 1 if data else 1
    stream = data[1:]
    limits = framing.FrameLimits(200)
    receiving, relaying = framing.FrameDecoder(limits), framing.FrameDecoder(limits)
    payloads: list[bytes] = []
    relayed: list[bytes] = []
    count = 0
    for at in range(0, len(stream), step):
        payloads += receiving.receive(stream[at : at + step])
        more, counted = relaying.relay(stream[at : at + step])
        relayed += more
        count += counted
        assert receiving.buffered == relaying.buffered <= 204
    expected, at, too_large = [], 0, False
    while at + 4 <= len(stream):
        size = int.from_bytes(stream[at : at + 4], "big")
        too_large = size > 200
        if too_large or at + 4 + size > len(stream):
            break
        expected.append(stream[at + 4 : at + 4 + size])
        at += 4 + size
    assert payloads == expected
    assert b"".join(relayed) == framing.frames(payloads) == stream[:at]
    assert count == len(payloads)
    assert (receiving.error is not None) == (relaying.error is not None) == too_large
    assert receiving.rest() == relaying.rest() == (b"" if too_large else stream[at:])


def fuzz_messages(data: bytes) -> None:
    """What one format let in can be said in the other, and is the same message then."""
    for decode in (messages.decode_request, messages.decode_event):
        for format in FORMATS:
            try:
                message: Any = decode(data, format)
            except ProtocolError as error:
                _check_error(error)
                continue
            packed = messages.encode(message, "messagepack")
            assert messages.encode(decode(packed, "messagepack"), "messagepack") == packed
            written = messages.encode(message, "json")
            assert messages.encode(decode(written, "json"), "json") == written


def fuzz_codecs(data: bytes) -> None:
    """What one codec lets in is plain, and every other can say it."""
    for codec in (codecs.RAW, codecs.TEXT, codecs.JSON, codecs.CBOR, codecs.MESSAGEPACK):
        try:
            value = codec.decode(data)
        except ProtocolError as error:
            _check_error(error)
            continue
        plain.check(value)
        for other in (codecs.JSON, codecs.CBOR, codecs.MESSAGEPACK):
            other.encode(value)


def _check_error(error: ProtocolError) -> None:
    assert str(error).startswith("cannot ")
    assert len(str(error)) < 300
    assert (error.origin, error.close is None) == ("remote", False)


def fuzz_plain(data: bytes) -> None:
    """The scan of large MessagePack refuses nothing that the decoder takes as plain."""
    try:
        value = codecs.MESSAGEPACK.decode(data)
    except ProtocolError:
        value = None
        refused = True
    else:
        refused = False
    large = b"\x92\xc5\x20\x00" + bytes(0x2000) + data
    try:
        again = codecs.MESSAGEPACK.decode(large)
    except ProtocolError:
        # one level deeper than alone
        assert refused or _depth(value) >= plain.MAX_DEPTH
    else:
        assert not refused
        assert codecs.MESSAGEPACK.encode(again[1]) == codecs.MESSAGEPACK.encode(value)


def _depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def fuzz_handshake(data: bytes) -> None:
    """Nothing that the fuzzer makes up is signed by our key; what it changes says the same or is refused."""
    assert handshake.is_handshake(data) in (True, False)
    try:
        handshake.parse(data)
    except ProtocolError as error:
        _check_error(error)
    else:
        assert handshake.is_handshake(data)
    try:
        accepted = handshake.verify(data, keys={PUBLIC}, now=NOW, window=60, nonces=handshake.Nonces())
    except ProtocolError:
        return
    assert accepted == SIGNED


def fuzz_websocket(data: bytes) -> None:
    """The first byte says which side receives and how the rest is cut. A decoder too simple to be wrong agrees."""
    step = data[0] % 64 + 1 if data else 1
    masked = not data or data[0] < 128
    stream = data[1:]
    limits = websocket.Limits(500)
    whole, cut = (websocket.Decoder(limits, masked=masked) for _ in range(2))
    at_once = said(whole.receive(stream))
    events: list[websocket.Event] = []
    for at in range(0, len(stream), step):
        events += cut.receive(stream[at : at + step])
        assert cut.buffered <= 500 + 130
    assert said(events) == at_once
    assert (cut.closed, cut.error and cut.error.close) == (whole.closed, whole.error and whole.error.close)
    if whole.error is not None:
        _check_error(whole.error)
    if whole.error is None or whole.error.close != 1009:
        assert simple(stream, masked=masked) == (at_once, whole.error and whole.error.close)


def fuzz_deflate(data: bytes) -> None:
    """What is unpacked is bounded and can be packed again; a list of extensions is one, or is refused."""
    try:
        payload = deflate.Decompressor().message(data, 5000)
    except ProtocolError as error:
        _check_error(error)
    else:
        assert len(payload) <= 5000
        assert deflate.Decompressor(takeover=False).message(deflate.Compressor().message(payload), 5000) == payload
    try:
        offers = deflate.parse_extensions(data.decode("latin-1"))
    except ProtocolError as error:
        _check_error(error)
        return
    agreed = deflate.negotiate(offers, deflate.DeflateSettings())
    assert agreed is None or deflate.negotiate(deflate.parse_extensions(agreed.answer), deflate.DeflateSettings())


_KEY = handshake.load_private_key(bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32)))
PUBLIC = handshake.spki(_KEY)
_SIGNED = handshake.signed(_KEY, "1.0.0", {"device": "alpha", "7": "x"}, now=NOW, nonce="n")
SIGNED = handshake.parse(_SIGNED)

_EXAMPLES = [line[6:].encode() for line in (messages.__doc__ or "").splitlines() if line[:6] in ("    > ", "    < ")]
_PACKED = [
    messages.encode((messages.decode_request if line[4] == ">" else messages.decode_event)(text, "json"), "messagepack")
    for line, text in (
        (line, line[6:].encode()) for line in (messages.__doc__ or "").splitlines() if line[:6] in ("    > ", "    < ")
    )
]
_VALUES: list[Any] = [{"a": [1, -2.5, None, True, "Zürich"], "b": {"c": {}}}, [[]] * 20, 2**63, "text", {"k": b"\xff"}]

TARGETS: dict[str, Callable[[bytes], None]] = {
    "framing": fuzz_framing,
    "messages": fuzz_messages,
    "codecs": fuzz_codecs,
    "plain": fuzz_plain,
    "handshake": fuzz_handshake,
    "websocket": fuzz_websocket,
    "deflate": fuzz_deflate,
}
SEEDS: dict[str, list[bytes]] = {
    "framing": [
        bytes([step]) + framing.frames(payloads)
        for step in (0, 6, 63)
        for payloads in ([b"x" * 9] * 20, [b""] * 12, [b"a", b"bc", b"", b"d" * 199], [b"a" * 3, b"b" * 3, b"x" * 201])
    ],
    "messages": [*_EXAMPLES, *_PACKED],
    "codecs": [codec.encode(value) for value in _VALUES for codec in (codecs.JSON, codecs.CBOR, codecs.MESSAGEPACK)],
    "plain": [codecs.MESSAGEPACK.encode(value) for value in _VALUES] + _PACKED,
    "handshake": [handshake.plain("1.0.0", {"device": "alpha"}), _SIGNED],
    "websocket": [
        bytes([side + step]) + b"".join(raw(first, payload, key) for first, payload in frames)
        for side, key in ((0, b""), (0, bytes(4)), (128, None))
        for step in (0, 6, 63)
        for frames in (
            [(0x81, b"x" * 9)] * 20,
            [(0x82, b"")] * 12 + [(0x82, b"y" * 130)] * 6,
            [(0x01, "Zür".encode()[:2]), (0x89, b"p"), (0x80, "Zür".encode()[2:]), (0x88, b"\x03\xe8bye")],
            [(0x02, b"a" * 300), (0x00, b""), (0x8A, b""), (0x80, b"b" * 300)],
            [(0x81, "ü😀€".encode())] * 5 + [(0x81, b"\xff")],
        )
    ],
    "deflate": [
        *(deflate.Compressor(level=level).message(b"Hello, hello, hello" * 9) for level in (0, 1, 9)),
        bytes.fromhex("f348cdc9c9070000"),
        b"permessage-deflate; client_max_window_bits; server_max_window_bits=10",
        b'foo; a="b", permessage-deflate;server_no_context_takeover, permessage-deflate',
    ],
}
"""What a fuzzer begins with."""
