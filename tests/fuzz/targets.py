"""What is fuzzed: for each parser a function of bytes that fails when the parser breaks its promise.

The promise is always the same: whatever the bytes, a value or a ProtocolError, and a value that can be used.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from netd.errors import ControlError, ProtocolError
from netd.hub.outbox import Outbox, OutboxRules
from netd.hub.session import Session
from netd.services.broker import forwarded, modes, origins, protocol
from netd.wire import codecs, deflate, framing, handshake, messages, plain, upgrade, websocket
from tests.fuzz import outside
from tests.hub.room import Room
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
    filler = b"\x92\xc5\x20\x00" + bytes(0x2000)
    try:
        again = codecs.MESSAGEPACK.decode(filler + data)
    except ProtocolError:
        if refused or _depth(value) >= plain.MAX_DEPTH:  # one level deeper than alone
            return
        # a key that comes twice hides its first value from the decoder and not from the scan: what the decoder gave is
        # refused by neither
        said = codecs.MESSAGEPACK.encode(value)
        assert len(said) < len(data)
        assert codecs.MESSAGEPACK.encode(codecs.MESSAGEPACK.decode(filler + said)[1]) == said
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


def fuzz_upgrade(data: bytes) -> None:
    """A request's head, a line each: whatever is read of it is there or is refused, and nothing of it can be written
    into our answer as a line of its own."""
    first, *lines = data.split(b"\n")
    method, target, version = (first.split(b" ") + [b""] * 3)[:3]
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    path, _, query = target.partition(b"?")
    answer = upgrade.upgrade(
        method, version[-3:], headers, subprotocols=("netd.json",), deflate=deflate.DeflateSettings()
    )
    assert (answer.status == 101) == isinstance(answer, upgrade.Upgrade)
    assert answer.status in (101, 400, 405, 426)
    assert not any(byte in name + value for name, value in answer.headers for byte in b"\r\n\0")
    for read in (
        lambda: protocol.place(path).route(query, headers),
        lambda: protocol.token_of(None, headers),
        lambda: forwarded.client_of("127.0.0.1", headers, [ipaddress.ip_network("127.0.0.0/8")]),
        lambda: [protocol.data_of(value, data) for name, value in headers if name == b"content-type"],
    ):
        try:
            read()
        except ControlError as error:
            _check_refusal(error, range(400, 500), error.status)
    for _, value in headers:
        text = value.decode("latin-1")
        host, site = origins.parse_host(text), origins.parse_origin(text)
        assert host is None or not origins.Hosts(["friend.example"]).allows(*host, None) or _ours(host[0])
        assert not origins.Origins([]).allows(text, None) or site is None


def _check_refusal(error: Exception, codes: range, code: int) -> None:
    assert str(error).startswith("cannot ")
    assert code in codes


def _ours(host: str) -> bool:
    return host.endswith(("localhost", "friend.example")) or ipaddress.ip_address(host).is_loopback


class _Link:
    """A connection of the gateway, as far as its mode looks at it."""

    def __init__(self, room: Room, mode: modes.Mode) -> None:
        self.mode = mode
        self.decoder = mode.decoder(websocket.Limits(5000))
        self.door = self.exchange = self
        self.hub = room.hub
        self.channel: bytes | None = None
        self.closing = False
        self.ponged = 0
        self.session: Any = Session(encoder=mode.encoder, outbox=Outbox(OutboxRules(), room, self), link=self)

    def speak(self, connection: Any, encoder: Any) -> None:
        self.session.encoder = encoder

    def pong(self, payloads: list[bytes]) -> None:
        self.ponged += len(payloads)

    def closed(self, event: websocket.Close) -> None:
        self.closing = True

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        self.closing = True

    def pressure(self, over: bool) -> None: ...
    def overflow(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


def fuzz_gateway(data: bytes) -> None:
    """The first byte says which mode and how the rest is cut, which are frames as (first byte, length, payload): what a
    client says is done, answered or refused, or ends its connection with a code that may be sent."""
    kind, stream = (data[0] if data else 0), data[1:]
    room = Room()
    made = [modes.Operations(), modes.OPERATIONS["json"], modes.OPERATIONS["messagepack"], modes.App()]
    made += [modes.Plain(b"public:a"), modes.Plain(b"shut:a"), modes.Plain(b"public:a", "sub", echo=True)]
    made += [modes.Events((b"public:a", b"public:b"))]
    link = _Link(room, made[kind % 8])
    room.hub.open(link.session)
    wire, at = b"", 0
    while at + 3 <= len(stream):
        size = int.from_bytes(stream[at + 1 : at + 3])
        wire += raw(stream[at], stream[at + 3 : at + 3 + size])
        at += 3 + size
    step = kind // 8 * 7 + 1
    try:
        link.mode.opened(link)  # type: ignore[arg-type]
        for begin in range(0, len(wire), step):
            link.mode.received(link, wire[begin : begin + step])  # type: ignore[arg-type]
            if link.closing:
                break
    except ProtocolError as error:
        _check_refusal(error, range(1000, 5000), error.close or 0)
        link.mode.farewell(error.close or 0, str(error)[: messages.MAX_REASON], None)
    room.hub.close(link.session)
    assert not room.hub.sessions
    assert not room.hub.heard


def _frames(*frames: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([first]) + len(payload).to_bytes(2) + payload for first, payload in frames)


_KEY = handshake.load_private_key(bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32)))
PUBLIC = handshake.spki(_KEY)
_SIGNED = handshake.signed(_KEY, "1.0.0", {"device": "alpha", "7": "x"}, now=NOW, nonce="n")
SIGNED = handshake.parse(_SIGNED)

_EXAMPLES = [line[6:].encode() for line in (messages.__doc__ or "").splitlines() if line[:6] in ("    > ", "    < ")]
_TWICE = bytes.fromhex("82a1639581016369a1627268a16380")
"""A map whose key comes twice, first with what is no plain value."""
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
    "upgrade": fuzz_upgrade,
    "gateway": fuzz_gateway,
    **outside.TARGETS,
}
SEEDS: dict[str, list[bytes]] = {
    "framing": [
        bytes([step]) + framing.frames(payloads)
        for step in (0, 6, 63)
        for payloads in ([b"x" * 9] * 20, [b""] * 12, [b"a", b"bc", b"", b"d" * 199], [b"a" * 3, b"b" * 3, b"x" * 201])
    ],
    "messages": [*_EXAMPLES, *_PACKED],
    "codecs": [codec.encode(value) for value in _VALUES for codec in (codecs.JSON, codecs.CBOR, codecs.MESSAGEPACK)],
    "plain": [codecs.MESSAGEPACK.encode(value) for value in _VALUES] + _PACKED + [_TWICE],
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
    "upgrade": [
        b"GET %b HTTP/1.1\nHost: localhost:3000\nUpgrade: websocket\nConnection: Upgrade\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n%b" % (path, more)
        for path, more in (
            (b"/ws?token=abc", b"Origin: http://localhost:3000"),
            (b"/ws/public%3Aa?role=sub&echo=1", b"Sec-WebSocket-Protocol: netd.token64.YWJj, netd.json"),
            (b"/app", b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
            (b"/channels/public:a/events?channel=b&last_event_id=e:4", b"X-Forwarded-For: 192.0.2.1, [::1]:80"),
            (b"/channels/a/history?since=4&since_epoch=e&limit=2", b'Forwarded: for="[2001:db8::1]";proto=https'),
            (b"/sessions/tag:a%3Db?priority=3", b"Authorization: Bearer a.b.c\nContent-Type: application/json"),
        )
    ],
    "gateway": [
        bytes([mode + 8 * cut]) + body
        for mode in range(8)
        for cut in (0, 31)
        for body in (
            _frames(*((0x81, example) for example in _EXAMPLES if len(example) < 300)),
            _frames(*((0x82, example) for example in _PACKED if len(example) < 300)),
            _frames((0x01, b"a"), (0x89, b"ping"), (0x80, b"b"), (0x82, b"\0\xff"), (0x88, b"\x03\xe8bye")),
        )
    ],
    **outside.SEEDS,
}
"""What a fuzzer begins with."""
