"""More that is fuzzed: HTTP as a whole, rows, and what workers, nodes, proxies, routers and programs say.

The promise is that of targets.py. HTTP is held against a reader that knows nothing but RFC 9112, and takes nothing that
might be read in two ways: where the front door sees a request that this one does not, something was smuggled.
"""

from __future__ import annotations

import json
import re
import struct
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from netd.backplane import envelopes
from netd.errors import ProtocolError
from netd.net.http import HttpLimits
from netd.net.proxy import MAX_TLVS, SIGNATURE, ProxyHeader
from netd.services.anomaly import protocol as scoring
from netd.services.trace import protocol as tracing
from netd.services.worker.config import WorkerConfig
from netd.services.worker.protocol import Conversation
from netd.wire import dsack, errqueue, icmp, ip, messages, probes, rows, sse, workers
from tests.support import packets
from tests.support.http import conversation, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# --- HTTP ------------------------------------------------------------------------------------------------------------

LIMITS = HttpLimits(max_head=1024, max_headers=8, max_body=200, max_requests=20)
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = rb"%b:[^\r\n\0]*\r\n" % _TOKEN
_HEAD = re.compile(rb"(%b) ([!-~]+) HTTP/1\.([0-9])\r\n((?:%b)*)\r\n" % (_TOKEN, _LINE))
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;[^\r\n]*)?[ \t]*\r\n")
_TRAILERS = re.compile(rb"(?:%b)*\r\n" % _LINE)
Asked = tuple[bytes, bytes, bytes]


def asked(stream: bytes) -> Iterator[Asked]:
    """The requests in a stream: method, target, body. It ends where something is none, or not one beyond doubt."""
    at = 0
    while (head := _HEAD.match(stream, at)) is not None:
        at = head.end()
        fields: dict[bytes, list[bytes]] = {}
        for line in head[4].splitlines():
            name, _, value = line.partition(b":")
            fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
        codings = [coding.lower() for coding in fields.get(b"transfer-encoding", [])]
        lengths = {each.strip(b" \t") for value in fields.get(b"content-length", []) for each in value.split(b",")}
        body = b""
        if codings:
            if codings != [b"chunked"] or lengths or head[3] == b"0":
                return
            while (chunk := _CHUNK.match(stream, at)) is not None and (size := int(chunk[1], 16)):
                at = chunk.end() + size + 2
                body += stream[chunk.end() : at - 2]
                if stream[at - 2 : at] != b"\r\n":
                    return
            if chunk is None or (end := _TRAILERS.match(stream, chunk.end())) is None:
                return
            at = end.end()
        elif lengths:
            length = lengths.pop()
            if lengths or not re.fullmatch(rb"[0-9]{1,20}", length) or at + int(length) > len(stream):
                return
            body, at = stream[at : at + int(length)], at + int(length)
        yield head[1], head[2], body


def fuzz_http(data: bytes) -> None:
    """The first byte says how the rest is cut. Every request that the application gets was there."""
    step = (data[0] if data else 255) * 4 + 5
    stream = data[1:]
    seen: list[Asked] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                query = b"?" + scope["query_string"] if scope["query_string"] else b""
                seen.append((scope["method"].encode(), scope["raw_path"] + query, body))
                await say(send, b"")
                return

    async def talk() -> None:
        async with conversation(application, LIMITS) as peer:
            with suppress(trio.BrokenResourceError):  # closed after a refusal, which is there to be read
                for at in range(0, len(stream), step):
                    await peer.send(stream[at : at + step])
                    await trio.testing.wait_all_tasks_blocked()
                await peer.half_close()
            answers = await peer.rest()
            assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
            assert b"HTTP/1.1 500" not in answers

    trio.run(talk, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [_plainly(each) for each in islice(asked(stream), len(seen))] == seen


def _plainly(request: Asked) -> Asked:
    """With a target that names a host as the application sees it, which is without; and without an empty query."""
    method, target, body = request
    target = re.sub(rb"^(?i:https?)://[^/?]*", b"", target)
    return method, (target if target.startswith(b"/") else b"/" + target).removesuffix(b"?"), body


# --- rows, workers, nodes --------------------------------------------------------------------------------------------


def fuzz_rows(data: bytes) -> None:
    """Payloads as (length, bytes), read in a row, are what each is by itself, and a row is written as each is."""
    payloads: list[bytes] = []
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        payloads.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    for format in ("json", "messagepack"):
        seen: list[str] = []
        for found, _ in rows.read(payloads, format):
            if isinstance(found, rows.Row):
                each = [request for request, _ in found.requests()]
                seen += map(_told, each)
                alone = [
                    messages.encode(
                        messages.Message(
                            from_="3f0c",
                            **messages.channel_fields(messages.channel_of(request)),
                            **messages.data_fields(messages.data_of(request)),
                        ),
                        format,
                    )
                    for request in each
                ]
                assert rows.written(format, found, "3f0c").payloads() == alone
            else:
                seen.append(_told(found))
        assert seen == [_told(_by_itself(payload, format)) for payload in payloads]


def _by_itself(payload: bytes, format: messages.Format) -> Any:
    try:
        return messages.decode_request(payload, format)
    except ProtocolError as error:
        return error


def _told(found: Any) -> str:
    if isinstance(found, messages.Publish):
        return repr((messages.channel_of(found), messages.data_of(found), found.ref, found.ephemeral, found.priority))
    return repr(found)


def fuzz_workers(data: bytes) -> None:
    """The first byte says how the rest is cut: what a worker says is the same however it is, and can be said again."""
    step = data[0] % 64 + 1 if data else 1
    stream = data[1:]
    whole, cut = (Conversation(WorkerConfig(), 0.0) for _ in range(2))
    found = whole.receive(stream)
    pieces = [cut.receive(stream[at : at + step]) for at in range(0, len(stream), step)]
    if whole.fault is None or whole.fault.code != "too-large":  # a hello that comes alone is followed by longer ones
        assert repr([message for piece in pieces for message in piece]) == repr(found)
        assert cut.fault == whole.fault
    for message in found:
        assert repr(workers.decode_from_worker(workers.encode(message)[4:])) == repr(message)
    for payload in (stream, stream[4:]):
        try:
            told = workers.decode_to_worker(payload)
        except ProtocolError:
            continue
        workers.encode(told)


def fuzz_envelopes(data: bytes) -> None:
    """What a node, or anybody who can write to Redis, says to the others: an envelope, or a ValueError."""
    try:
        epoch, offset, body = envelopes.parse(data)
    except ValueError:
        body = data
    else:
        assert offset >= 0
        assert epoch is None or epoch.isascii()
    for each in (body, data):
        try:
            envelope = envelopes.decode(each)
        except ValueError:
            continue
        assert repr(envelopes.decode(envelopes.encode(envelope))) == repr(envelope)


# --- programs, servers, proxies, routers -----------------------------------------------------------------------------


def fuzz_tracing(data: bytes) -> None:
    """What a page says to trace: a request, or a sentence for it; every ping can be answered."""
    for message in (data, data.decode("latin-1"), data.decode(errors="replace")):
        try:
            asked = tracing.parse(message)
        except ProtocolError:
            continue
        if isinstance(asked, tracing.PingAsked):
            assert json.loads(tracing.encode(tracing.pong(asked))).get("id") == asked.id


def fuzz_scores(data: bytes) -> None:
    """What a user's program answers: scores from 0 to 1, of sessions that it was asked about."""
    try:
        given = scoring.answer(scoring.decode(data), {"serial": 7, "sessions": {"a": {}, "b": {}}})
    except ProtocolError:
        return
    assert set(given) <= {"a", "b"}
    assert all(0 <= score <= 1 for scores in given.values() for score in scores.values())


def fuzz_sse(data: bytes) -> None:
    """The first byte says how the rest is cut: events are the same however it is, or a bound is broken."""
    step = data[0] % 16 + 1 if data else 1
    stream = data[1:]
    found = []
    for size in (len(stream) + 1, step):
        parser = sse.SseParser(max_line=300, max_event=600)
        events: list[sse.SseEvent] = []
        try:
            for at in range(0, len(stream), size):
                events += parser.feed(stream[at : at + size])
        except ProtocolError:
            found.append(None)
        else:
            found.append((events, parser.last_id, parser.retry))
    assert found[0] == found[1]


def fuzz_proxy(data: bytes) -> None:
    """A PROXY header is the same however it comes, and no more of the connection is read than it has."""
    whole, cut = ProxyHeader(), ProxyHeader()
    try:
        said, rest = whole.receive(data)
    except ProtocolError:
        said, rest = None, b""
    if said is not None:
        assert len(data) - len(rest) <= 16 + 216 + MAX_TLVS
    again, at = None, 0
    while again is None and at < len(data):
        size = min(cut.missing or 1, len(data) - at)
        try:
            again, more = cut.receive(data[at : at + size])
        except ProtocolError:
            break
        assert more == b""
        at += size
    assert again == said


def fuzz_packets(data: bytes) -> None:
    """What routers and peers send to a raw socket, and what the kernel queues: nothing, or a value."""
    for error in (icmp.parse_error4(data), icmp.parse_error6(data, bytes(16), 64), icmp.parse_error6(data, b"", None)):
        assert error is None or (len(error.source) in (4, 16) and len(error.mpls) <= 16)
    header = ip.parse_ip(data)
    assert header is None or ip.show_address(header.source)
    duplicate = dsack.parse_duplicate(data)
    assert duplicate is None or 0 <= duplicate.width <= ip.MOD32
    queued = errqueue.parse_extended_error(data)
    assert queued is None or ip.show_address(queued.offender)
    hops = probes.syn_distance(data)
    assert hops is None or 1 <= hops <= 255
    if header is not None and len(data) >= header.length + 4:
        ports = struct.unpack_from("!HH", data, header.length)
        segment = probes.parse_looped(data, header.source, header.destination, *ports)
        if segment is not None and len(segment.payload) >= probes.SLOTS:
            template = probes.ProbeTemplate(segment)
            assert template.probe_of(template.first) == (1, 0)


# --- what a fuzzer begins with ---------------------------------------------------------------------------------------


def _lengths(*payloads: bytes) -> bytes:
    return b"".join(len(payload).to_bytes(2) + payload for payload in payloads)


def _proxied(family: int, body: bytes, command: int = 1) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family << 4 | 1, len(body)) + body


_WORKER = [
    workers.Hello(1, "chat", 4711, ["message", "http_request"]),
    workers.Publish(b"room", {"a": [1, "x", None]}, ref=1),
    workers.Send("3f0c", b"\0\xff"),
    workers.Response(4, workers.HttpResponse(201, [(b"content-type", b"text/plain")], b"OK")),
    workers.Done([1, 2]),
    workers.Pong(1),
    workers.SetToken("3f0c", b"secret", ref=2),
    workers.Leave(),
]
_SAID = envelopes.Said("a", 1, b"room", {"b": [1, "x", None]}, time=1.5)
_POST = b"POST /a?b HTTP/1.1\r\nHost: x\r\n"
_SEGMENT = packets.tcp(8080, 50000, seq=7, payload=bytes(200))
_ONE, _OTHER = "192.0.2.1", "198.51.100.7"
_ONE6, _OTHER6 = "2001:db8::1", "2001:db8:ffff::7"

TARGETS: dict[str, Callable[[bytes], None]] = {
    "http": fuzz_http,
    "rows": fuzz_rows,
    "workers": fuzz_workers,
    "envelopes": fuzz_envelopes,
    "tracing": fuzz_tracing,
    "scores": fuzz_scores,
    "sse": fuzz_sse,
    "proxy": fuzz_proxy,
    "packets": fuzz_packets,
}
SEEDS: dict[str, list[bytes]] = {
    "http": [
        bytes([step]) + first + b"GET http://x/next HTTP/1.1\r\nHost: x\r\n\r\n"
        for step in (0, 2, 255)
        for first in (
            b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n",
            _POST + b"Content-Length: 3\r\nContent-Length: 3, 3\r\n\r\nabc",
            _POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
            _POST + b"Transfer-Encoding: Chunked\r\n\r\n3 \r\n\r\n0\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n",
            _POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            b"HEAD /a?b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        )
    ],
    "rows": [
        _lengths(*[packed] * 3, other, packed)
        for packed, other in (
            (b'{"type":"publish","channel":"a","data":"x"}', b'{"type":"publish","channel":"a","data":1,"ref":2}'),
            (b'{"type":"publish","channel":"a","data":{"b":[1]},"ref":"r"}', b'{"type":"ping","ts":1}'),
            (
                messages.encode(messages.Publish(channel="a", data=b"\xff"), "messagepack"),
                messages.encode(messages.Publish(channel64=b"\xff", data64=b"", ephemeral=True), "messagepack"),
            ),
        )
    ],
    "workers": [
        bytes([step]) + b"".join(workers.encode(message) for message in _WORKER[:count])
        for step in (0, 63)
        for count in range(1, len(_WORKER) + 1)
    ],
    "envelopes": [
        head + envelopes.encode(envelope)
        for head in (b"", b"\n", b"x7\t12\n")
        for envelope in (_SAID, envelopes.Kick("a", 1, "3f0c", 4010, "enough"), envelopes.Gone("a", "b"))
    ],
    "tracing": [
        b'{"type":"trace"}',
        b'{"type":"ping","id":"a"}',
        b'{"type":"ping","id":9007199254740991}',
        b'{"id":null}',
    ],
    "scores": [
        b'{"serial":7,"scores":{"a":0.5,"b":{"coherence":1,"entropy":0.0,"anomaly":1e-9}}}',
        b'{"scores":{"c":2}}',
    ],
    "sse": [
        bytes([step])
        + b"\xef\xbb\xbf: hi\r\n\r\nretry: 15\nid: 1\nevent: a\ndata: b\ndata: c\n\nid\ndata\r\rdata:"
        + tail
        for step in (0, 6)
        for tail in (b"x\n\n", b"y" * 290 + b"\n\n", b"\xff\r\n\r\n")
    ],
    "proxy": [
        _proxied(1, bytes(12)) + b"GET /",
        _proxied(2, bytes(36) + b"\x05\x00\x04uniq"),
        _proxied(3, b"/run/client".ljust(108, b"\0") + b"/run/proxy".ljust(108, b"\0")),
        _proxied(0, b"", command=0),
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    ],
    "packets": [
        packets.icmp4(_OTHER, _ONE, packets.ip(_ONE, _OTHER, _SEGMENT, ttl=1)),
        packets.icmp6(packets.ip(_ONE6, _OTHER6, _SEGMENT, ttl=1)),
        packets.ip(_OTHER, _ONE, _SEGMENT, options=b"\x01" * 8),
        packets.ip(_OTHER6, _ONE6, _SEGMENT),
        struct.pack("@IBBBxII", 113, 2, 11, 0, 0, 0) + struct.pack("@H", 2) + bytes(14),
        struct.pack("@IBBBxII", 113, 3, 3, 0, 0, 0) + struct.pack("@H", 10) + bytes(26),
    ],
}
