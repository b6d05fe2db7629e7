"""Heads that recur: that h11 would have understood each as it was answered, and who is asked again all the same."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from netd.hub.config import Token
from netd.services.broker import doorstep
from netd.services.broker.recurring import MAX_HEAD, MAX_HEADS, Recurring, head_of
from netd.wire.upgrade import accept_key
from tests.services.broker.lab import KEY, OPEN, PATIENCE, PUBLIC, House, eventually, listening, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = (
    b"GET /ws/public:room HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SECRET = "s3cret-of-32-characters-0123456789"
OTHER = b64encode(bytes(range(16)))
ANOTHER = b"x3JJHMbDL1EzLkh9GBhXDw=="


# --- h11 -----------------------------------------------------------------------------------------------------------


def taken(data: bytes) -> Any:
    """The request that h11 makes of this, but for the key's value; None if it refuses it, or sees more than a head."""
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        http.receive_data(data)
        request = http.next_event()
        if not isinstance(request, h11.Request) or not isinstance(http.next_event(), h11.EndOfMessage):
            return None
        if http.trailing_data != (b"", False):
            return None
    except h11.RemoteProtocolError:
        return None
    headers = [(name, name.lower() != b"sec-websocket-key" and value) for name, value in request.headers.raw_items()]
    return request.method, request.target, request.http_version, headers


def keys_of(data: bytes) -> list[bytes]:
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    http.receive_data(data)
    request = http.next_event()
    assert isinstance(request, h11.Request)
    return [value for name, value in request.headers if name == b"sec-websocket-key"]


KEYS = st.binary(min_size=16, max_size=16).map(b64encode)
PIECES = st.sampled_from(
    [
        b"GET /ws HTTP/1.1",
        b"POST /app HTTP/1.1",
        b"GET /ws?token=a%20b HTTP/1.0",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\x00",
        b"\xff",
        b"Host: a",
        b"Host: b",
        b"Upgrade: websocket",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Sec-WebSocket-Key: ",
        b"\r\nSec-WebSocket-Key: %s\r\n",
        b"\r\nSec-WebSocket-Key: %s\r\n",
        b"\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"hello",
        b"\r\n\r\n",
    ]
)
WILD = st.lists(st.one_of(PIECES, st.binary(max_size=6)), max_size=14).map(lambda found: b"".join(found) + b"\r\n\r\n")
GOOD = b"GET /ws HTTP/1.1\r\nHost: a\r\n%bSec-WebSocket-Key: %%s\r\n%b\r\n"
NAMES = st.text("abcXYZ-_!#$%&'*+.^`|~019", min_size=1, max_size=12).map(str.encode)
VALUES = st.binary(max_size=30)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(
    lambda headers: b"".join(b"%b: %b\r\n" % header for header in headers)
)


SHORT = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: %s\r\n\r\n"
SHAPES = st.one_of(WILD, st.tuples(LINES, LINES).map(lambda lines: GOOD % lines))


@given(SHAPES, KEYS, KEYS)
@example(b"GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: %s\r\n\r\n", KEY, OTHER)
@example(b"GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: %s\r\n folded\r\n\r\n", KEY, OTHER)
@example(b"GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: %s\r\nContent-Length: 4\r\n\r\nab\r\n\r\n", KEY, OTHER)
@example(b"GET /ws HTTP/1.1\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Key: %s\r\nHost: a\r\n\r\n", KEY, OTHER)
@example(b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\nSec-WebSocket-Key: %s\r\n\r\n", KEY, OTHER)
@example(b"GET /ws HTTP/1.1\r\nHost: a\n\nX:\r\nSec-WebSocket-Key: %s\r\n\r\n", KEY, OTHER)
def test_another_key_changes_nothing_of_what_h11_understands(shape: bytes, key: bytes, other: bytes) -> None:
    if b"%s" not in shape:
        shape = shape.replace(b"\r\n", b"\r\nSec-WebSocket-Key: %s\r\n", 1)
    data = shape.replace(b"%s", key, 1)
    head = head_of(data)
    assume(head is not None)
    assert head is not None
    # whoever comes with the same constant part has sent these bytes, with a key of its own
    again = data.replace(b"\r\nSec-WebSocket-Key: " + head.key, b"\r\nSec-WebSocket-Key: " + other, 1)
    assert head_of(again) == (head.constant, other)
    assert taken(again) == taken(data)


@given(KEYS, KEYS)
def test_h11_finds_the_key_that_is_answered(key: bytes, other: bytes) -> None:
    for each in (key, other):
        head = head_of(HEAD % each)
        assert head is not None
        assert keys_of(HEAD % each) == [head.key] == [each]


@pytest.mark.parametrize(
    "data",
    [
        HEAD % b"dGhlIHNhbXBsZSBub25jZQ",
        HEAD % b"dGhlIHNhbXBsZSBub25j!Q==",
        HEAD % b"dGhlIHNhbXBsZSBub25jZQ\r\n",
        HEAD % b" dGhlIHNhbXBsZSBub25jZQ=",
        HEAD % KEY + b"\x81",
        (HEAD % KEY)[:-2],
        (HEAD % KEY) * 2,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + (HEAD % KEY).partition(b"\r\n")[1] + HEAD % KEY,
        (HEAD % KEY).replace(b"Key: ", b"Key:"),
        (HEAD % KEY).replace(b"Host", b"X: %b\r\nHost" % (b"x" * MAX_HEAD)),
        b"",
    ],
    ids=["short", "alphabet", "lines", "blank", "more", "less", "two", "behind", "spelled", "long", "nothing"],
)
def test_what_is_no_head_with_a_key_is_left_to_h11(data: bytes) -> None:
    assert head_of(data) is None


def test_heads_are_bounded_and_the_first_has_to_go() -> None:
    table, config = Recurring(), object()
    heads = [(HEAD % KEY).replace(b"room", b"%d" % number) for number in range(MAX_HEADS + 1)]
    for data in heads:
        assert table.find(data, config) is None
        remember(table, data)
    assert len(table) == MAX_HEADS
    assert table.find(heads[0], config) is None
    found = table.find(heads[-1].replace(KEY, OTHER), config)
    assert found is not None
    known, key = found
    assert key == OTHER
    assert known.answer(key) == b"said " + accept_key(OTHER) + b" so"
    assert table.find(heads[-1], object()) is None, "under another configuration"
    assert len(table) == 0


def remember(table: Recurring, data: bytes) -> None:
    head = head_of(data)
    assert head is not None
    table.put(head, [], b"said " + accept_key(head.key) + b" so", None, deflate=None, own=None)


@given(st.lists(st.tuples(SHAPES, KEYS), max_size=8), SHAPES, KEYS)
@example([(HEAD.replace(b"%b", b"%s"), KEY)], HEAD.replace(b"%b", b"%s"), KEY[:-2] + b"!=")
@example([(HEAD.replace(b"%b", b"%s"), KEY)], HEAD.replace(b"%b", b"%s"), KEY + b"\r\n")
@example([(SHORT, KEY)], b"GET / HTTP/1.1\r\nSec-%sWebSocket-Key: \r\n\r\n", KEY)
def test_only_a_head_that_is_whole_and_was_there_is_found(
    earlier: list[tuple[bytes, bytes]], shape: bytes, key: bytes
) -> None:
    """What is found without looking at all of it again is what looking at all of it would have found."""
    table, config, there = Recurring(), object(), set()
    table.find(b"", config)
    for one, its in earlier:
        head = head_of(one.replace(b"%s", its, 1))
        if head is not None:
            there.add(head.constant)
            remember(table, one.replace(b"%s", its, 1))
    data = shape.replace(b"%s", key, 1)
    head, found = head_of(data), table.find(data, config)
    if head is None or head.constant not in there:
        assert found is None
    else:
        assert found is not None
        assert found[1] == head.key


# --- the broker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The heads that h11 was asked about at the doorstep."""
    asked: list[bytes] = []
    genuine = doorstep.Doorstep._upgrade

    def upgrade(self: doorstep.Doorstep) -> bool:
        asked.append(self._data)
        return genuine(self)

    monkeypatch.setattr(doorstep.Doorstep, "_upgrade", upgrade)
    return asked


async def answer(house: House, data: bytes, number: int = 0) -> bytes:
    """What is said to who sends this, up to the end of a head."""
    stream, _ = await house.connect(number)
    await stream.send_all(data)
    heard = b""
    with trio.fail_after(PATIENCE):
        while b"\r\n\r\n" not in heard:
            more = bytes(await stream.receive_some(65536))
            assert more, heard
            heard += more
    return heard


async def test_the_second_of_a_kind_needs_no_parser(parsed: list[bytes]) -> None:
    async with serving() as house:
        first = await answer(house, HEAD % KEY)
        for key in (OTHER, ANOTHER, KEY):
            said = await answer(house, HEAD % key)
            assert said == first.replace(accept_key(KEY), accept_key(key))
        assert parsed == [HEAD % KEY]
        await eventually(lambda: house.service.count == 4)
        here = house.service.connections()
        assert {one.channel for one in here} == {"public:room"}
        assert {one.bytes_in for one in here} in ({len(HEAD % KEY)}, {0, len(HEAD % KEY)})
        client = await house.client("/ws/public:room")
        await client.text("hello")
        assert house.exchange.places.total == 5
        assert house.counted("netd_broker_requests_total", route="channel", status="101") == 5


async def test_one_that_comes_in_pieces_recurs_as_well(parsed: list[bytes]) -> None:
    async with serving() as house:
        await answer(house, HEAD % KEY)
        stream, _ = await house.connect()
        for part in ((HEAD % OTHER)[:30], (HEAD % OTHER)[30:]):
            await stream.send_all(part)
            await trio.testing.wait_all_tasks_blocked(0.005)
        with trio.fail_after(PATIENCE):
            assert accept_key(OTHER) in await stream.receive_some(4096)


async def test_frames_behind_the_head_are_served(parsed: list[bytes]) -> None:
    head = (HEAD % KEY).replace(b"/ws/public:room", b"/app")
    async with serving() as house:
        for _ in range(2):
            assert b" 101 " in await answer(house, head)
        stream, _ = await house.connect()
        await stream.send_all(head + b"\x81\x82" + bytes(4) + b"hi")
        heard = b""
        with trio.fail_after(PATIENCE):
            while not heard.endswith(b"\x81\x02hi"):
                heard += bytes(await stream.receive_some(4096))
        assert len(parsed) == 2, "the first, and the one with more behind it"


OWN = [
    b"Cookie: session=1",
    b"Authorization: Basic eDp5",
    b"Proxy-Authorization: Basic eDp5",
]


@pytest.mark.parametrize("line", OWN)
async def test_what_is_somebodys_own_is_not_kept(parsed: list[bytes], line: bytes) -> None:
    head = (HEAD % KEY).replace(b"Host", line + b"\r\nHost")
    async with serving() as house:
        for number in (1, 2):
            assert b" 101 " in await answer(house, head)
            assert len(parsed) == number
        assert len(house.exchange.recurring) == 0


async def test_a_token_is_looked_at_every_time(parsed: list[bytes]) -> None:
    head = (HEAD % KEY).replace(b"/ws/public:room", b"/ws?token=" + SECRET.encode())
    hub = OPEN.model_copy(update={"token": [Token(name="a", secret=SecretStr(SECRET))]})
    async with serving(hub=hub) as house:
        for number in (1, 2):
            assert b" 101 " in await answer(house, head)
            assert len(parsed) == number
        assert len(house.exchange.recurring) == 0
        house.hub.reconfigure(OPEN)
        assert b" 401 " in await answer(house, head)


async def test_what_else_decides_on_a_client_keeps_the_long_way(parsed: list[bytes]) -> None:
    async with serving(listening(forwarded=["127.0.0.0/8"])) as house:
        await answer(house, HEAD % KEY)
        await answer(house, HEAD % KEY)
        assert len(house.exchange.recurring) == 0
    async with serving(http_rate=0.001, http_burst=2) as house:
        assert [(await answer(house, HEAD % KEY))[9:12] for _ in range(3)] == [b"101", b"101", b"429"]
        assert len(house.exchange.recurring) == 0
    assert len(parsed) == 5


async def test_a_permission_that_is_taken_away_is_missed_at_once() -> None:
    closed = PUBLIC.model_copy(update={"subscribe": "nobody", "publish": "nobody"})
    async with serving() as house:
        for _ in range(2):
            assert b" 101 " in await answer(house, HEAD % KEY)
        house.hub.reconfigure(OPEN.model_copy(update={"namespace": [closed]}))
        assert b" 403 " in await answer(house, HEAD % KEY)


async def test_a_channel_that_is_a_pattern_by_now_is_published_to_by_nobody() -> None:
    head = (HEAD % KEY).replace(b"public:room", b"public:*?role=pub")
    async with serving() as house:
        for _ in range(2):
            assert b" 101 " in await answer(house, head)
        wild = PUBLIC.model_copy(update={"wildcards": True})
        house.hub.reconfigure(OPEN.model_copy(update={"namespace": [wild]}))
        assert b" 409 " in await answer(house, head)


async def test_another_configuration_knows_nobody() -> None:
    head = (HEAD % KEY).replace(b"Host", b"Origin: https://page.example\r\nHost")
    async with serving(origins=["https://page.example"]) as house:
        for _ in range(2):
            assert b" 101 " in await answer(house, head)
        await house.live(origins=[])
        assert b" 403 " in await answer(house, head)


async def test_a_host_that_is_welcome_for_this_ends_address_is_so_at_that_address_only(parsed: list[bytes]) -> None:
    async with serving() as house:
        await answer(house, HEAD % KEY)
        [(constant, known)] = house.exchange.recurring._known.items()
        assert known.own is None, "127.0.0.1 is welcome wherever it was asked"
        for own, times in (("127.0.0.1", 1), ("192.0.2.1", 2)):
            house.exchange.recurring._known[constant] = known._replace(own=own)
            assert b" 101 " in await answer(house, HEAD % OTHER)
            assert len(parsed) == times


async def test_the_application_is_asked_for_every_time() -> None:
    head = (HEAD % KEY).replace(b"/ws/public:room", b"/app")
    async with serving() as house:
        for _ in range(2):
            assert b" 101 " in await answer(house, head)
        house.hub.reconfigure(OPEN.model_copy(update={"application": "nobody"}))
        assert b" 403 " in await answer(house, head)
