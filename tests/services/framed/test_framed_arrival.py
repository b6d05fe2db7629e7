"""The way in: handshakes in every manner, verifiers, TLS, PROXY headers, Unix sockets."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from netd.errors import PrepareFailed
from netd.services.framed.config import FramedConfig
from netd.services.framed.notices import Closed, Opened, Rejected
from netd.wire.framing import frame
from netd.wire.handshake import plain, signed
from tests.services.framed.lab import PATIENCE, SIGNATURE, echoes, eventually, listening, proxied, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE, SECOND_CERTIFICATE, SECOND_KEY

if TYPE_CHECKING:
    from pathlib import Path

    from netd.section import Tls
    from netd.wire.handshake import Handshake

KEY = Ed25519PrivateKey.generate()
OTHER = Ed25519PrivateKey.generate()


def pem(key: Ed25519PrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


# --- handshakes ---


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_a_required_handshake_and_what_comes_behind_it_in_any_pieces(piece: int) -> None:
    async with serving(mode="echo", handshake="required", version="1.0") as house:
        client = await house.client(settled=False)
        data = frame(plain("1.0", {"device": "alpha"})) + frame(b"one") + frame(b"two")
        for at in range(0, len(data), piece):
            await client.raw(data[at : at + piece])
        assert [await client.next(), await client.next()] == [b"one", b"two"]
        view = house.service.connections()[0]
        assert (view.tags, view.version, view.signed) == ({"device": "alpha"}, "1.0", False)


async def test_an_optional_handshake_and_its_absence() -> None:
    async with serving(mode="echo") as house:
        introduced, silent = await house.client(), await house.client()
        await introduced.send(plain("1.0", {"name": "anna"}), b"hello")
        assert await introduced.next() == b"hello"
        assert await echoes(silent, b'{"type": "handshaking"}')
        assert [view.name for view in house.service.connections()] == ["anna", None]


async def test_without_handshakes_one_is_a_payload() -> None:
    async with serving(mode="echo", handshake="none") as house:
        client = await house.client()
        assert await echoes(client, plain("1.0"))


async def test_a_client_refused_in_operations_is_told() -> None:
    async with serving(handshake="required", version="2") as house:
        client = await house.client(settled=False)
        await client.send(plain("1"), b'{"type": "publish", "channel": "public:a", "data": 1}')
        last = json.loads((await client.rest())[-1])
        assert (last["type"], last["code"]) == ("close", 1008)
        assert "version" in last["reason"]
        await eventually(lambda: house.exchange.places.total == 0)
        assert house.exchange.rejections["handshake"] == 1
        assert house.hub.info().opened == 0
        assert house.notices(Rejected)[0].why == "handshake"


async def test_an_optional_handshake_that_is_wrong_ends_the_client() -> None:
    async with serving(version="2") as house:
        client = await house.client()
        await client.send(plain("1"), b'{"type": "publish", "channel": "public:a", "data": 1}')
        last = json.loads((await client.rest())[-1])
        assert (last["type"], last["code"]) == ("close", 1008)
        assert house.exchange.rejections["handshake"] == 1
        assert house.hub.info().published == 0


async def test_a_handshake_that_takes_too_long() -> None:
    async with serving(mode="echo", handshake="required", limits={"handshake_timeout": 0.2}) as house:
        client = await house.client(settled=False)
        await client.raw(b"\x00\x00\x00\x20{")
        assert await client.over() == b""
        await eventually(lambda: house.exchange.rejections["timeout"] == 1)
        await eventually(lambda: house.exchange.places.total == 0)


async def test_signed_handshakes_fresh_and_once_by_listed_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(pem(KEY))
    async with serving(mode="echo", handshake="required", keys=[file]) as house:

        async def comes(payload: bytes) -> bool:
            client = await house.client(settled=False)
            await client.send(payload, b"in")
            return await client.rest_or(b"in")

        now = time.time()
        good = signed(KEY, "1", {"device": "a"}, now=now, nonce="one")
        assert await comes(good)
        assert house.service.connections()[-1].signed
        assert not await comes(good)
        assert not await comes(signed(OTHER, "1", {}, now=now, nonce="two"))
        assert not await comes(signed(KEY, "1", {}, now=now - 1000, nonce="three"))
        assert not await comes(plain("1"))
        # a key that is taken away counts no more, and a new one does, without a reload
        file.write_text(pem(OTHER) + "\n")
        assert not await comes(signed(KEY, "1", {}, now=time.time(), nonce="four"))
        assert await comes(signed(OTHER, "1", {}, now=time.time(), nonce="five"))
        # and what is no key leaves the last good ones in place
        file.write_text("nonsense")
        assert await comes(signed(OTHER, "1", {}, now=time.time(), nonce="six"))
        (warning,) = house.health.warnings()
        assert warning.code == "framed.keys.0"
        assert house.exchange.rejections["handshake"] == 5


async def test_a_handshake_of_an_earlier_life_of_the_server_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(pem(KEY))
    captured = signed(KEY, "1", {}, now=time.time(), nonce="one")
    # it counts milliseconds, and may have been rounded up
    while time.time() * 1000 < json.loads(captured)["ts"] + 2:
        await trio.lowlevel.checkpoint()
    for listen in (
        listening(mode="echo", handshake="required", keys=[file]),
        listening(mode="echo", handshake="required", verifier=f"{HERE}:takes_anybody"),
    ):
        async with serving(listen) as house:
            client = await house.client(settled=False)
            await client.send(captured, b"in")
            assert not await client.rest_or(b"in")
            assert house.exchange.rejections["handshake"] == 1
            client = await house.client(settled=False)
            await client.send(signed(KEY, "1", {}, now=time.time(), nonce="two"), b"in")
            assert await client.rest_or(b"in")


async def test_strangers_with_keys_of_their_own_do_not_lock_out_listed_ones(tmp_path: Path) -> None:
    file = tmp_path / "keys.pem"
    file.write_text(pem(KEY))
    keyed = listening(mode="echo", handshake="required", keys=[file])
    for_all = listening(mode="echo", handshake="required", verifier=f"{HERE}:takes_anybody")
    async with serving(for_all, keyed) as house:

        async def comes(number: int, payload: bytes) -> bool:
            client = await house.client(number, settled=False)
            await client.send(payload, b"in")
            return await client.rest_or(b"in")

        for door in house.exchange.doors.values():
            door.nonces.capacity = 4
        both = signed(OTHER, "1", {}, now=time.time(), nonce="both")
        assert await comes(0, both)
        assert not await comes(0, both)
        for number in range(3):
            assert await comes(0, signed(OTHER, "1", {}, now=time.time(), nonce=f"{number}"))
        assert not await comes(0, signed(OTHER, "1", {}, now=time.time(), nonce="too many"))
        good = signed(KEY, "1", {}, now=time.time(), nonce="one")
        assert await comes(1, good)
        # what a listed key signed is good once at all doors together
        assert not await comes(0, good)
        good = signed(KEY, "1", {}, now=time.time(), nonce="two")
        assert await comes(0, good)
        assert not await comes(1, good)
        # the listener that took any key has a list now: what strangers used before is good nowhere
        file.write_text(pem(KEY) + pem(OTHER))
        assert await house.settle(FramedConfig(listen=[keyed, keyed])) == "running"
        assert not await comes(0, both)
        assert not await comes(1, both)
        assert await comes(1, signed(OTHER, "1", {}, now=time.time(), nonce="fresh"))


@pytest.mark.parametrize("content", ["", "nonsense", None])
async def test_keys_that_cannot_be_used_fail_in_prepare(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys.pem"
    if content is not None:
        file.write_text(content)
    async with serving(mode="echo") as house:
        with pytest.raises(PrepareFailed, match=r"keys\.pem"):
            await house.unit.prepare(FramedConfig(listen=[listening(handshake="required", keys=[file])]))
        assert await echoes(await house.client())


# --- verifiers ---

SEEN: list[Handshake] = []
STUCK = threading.Event()


def accepts(handshake: Handshake) -> bool:
    SEEN.append(handshake)
    assert threading.current_thread() is not threading.main_thread()
    return handshake.tags.get("door") == "open"


async def accepts_later(handshake: Handshake) -> bool:
    await trio.lowlevel.checkpoint()
    return handshake.version == "7"


def takes_anybody(handshake: Handshake) -> bool:
    return True


def says_nothing(handshake: Handshake) -> None:
    """As one that forgot to."""


def breaks(handshake: Handshake) -> bool:
    raise RuntimeError("the verifier's own")


def hangs(handshake: Handshake) -> bool:
    STUCK.wait(PATIENCE)
    return True


HERE = __name__


@pytest.mark.parametrize(
    ("verifier", "handshake", "good"),
    [
        ("accepts", plain("1", {"door": "open"}), True),
        ("accepts", plain("1", {"door": "shut"}), False),
        # and without a version, where upstream never asks
        ("accepts", plain(None, {}), False),
        ("accepts_later", plain("7"), True),
        ("accepts_later", plain("8"), False),
        ("says_nothing", plain("1"), False),
    ],
)
async def test_the_users_verifier_decides(verifier: str, handshake: bytes, good: bool) -> None:
    async with serving(mode="echo", handshake="required", verifier=f"{HERE}:{verifier}") as house:
        client = await house.client(settled=False)
        await client.send(handshake, b"in")
        assert await client.rest_or(b"in") is good
        if not good:
            assert house.exchange.rejections["verifier"] == 1


async def test_a_verifier_that_breaks_lets_nobody_in() -> None:
    async with serving(mode="echo", handshake="required", verifier=f"{HERE}:breaks") as house:
        client = await house.client(settled=False)
        await client.send(plain("1"), b"in")
        assert not await client.rest_or(b"in")
        assert house.exchange.rejections["broken"] == 1


async def test_verifiers_that_hang_hold_up_nobody_else() -> None:
    limits = {"handshake_timeout": 0.3}
    listeners = listening(mode="echo", handshake="required", verifier=f"{HERE}:hangs"), listening(mode="echo")
    STUCK.clear()
    try:
        async with serving(*listeners, limits=limits) as house:
            clients = [await house.client(0, settled=False) for _ in range(12)]
            for client in clients:
                await client.send(plain("1"))
            assert await echoes(await house.client(1))
            for client in clients:
                assert await client.over() == b""
            await eventually(lambda: house.exchange.rejections["timeout"] == 12)
    finally:
        STUCK.set()


@pytest.mark.parametrize("reference", ["no.such.module:f", f"{__name__}:nothing", f"{__name__}:KEY"])
async def test_a_verifier_that_is_not_there_fails_in_prepare(reference: str) -> None:
    async with serving(mode="echo") as house:
        with pytest.raises(PrepareFailed, match="cannot use verifier"):
            await house.unit.prepare(FramedConfig(listen=[listening(handshake="required", verifier=reference)]))


async def test_a_codec_that_is_not_there_fails_in_prepare() -> None:
    async with serving(mode="echo") as house:
        with pytest.raises(PrepareFailed, match="no-such-codec"):
            await house.unit.prepare(FramedConfig(listen=[listening(mode="echo", codec="no-such-codec")]))


class Shouting:
    """A codec of a user's."""

    name = "shouting"

    def encode(self, value: Any) -> bytes:
        return str(value).upper().encode()

    def decode(self, payload: bytes) -> Any:
        return payload.decode().lower()


SHOUTING = Shouting()


async def test_a_codec_of_the_users() -> None:
    room = {"channel": "public:room", "handshake": "none"}
    async with serving(listening(mode="channel", codec=f"{HERE}:SHOUTING", **room), listening()) as house:
        shouting, full = await house.client(0), await (await house.client(1)).hello()
        await full.ask("subscribe", channel="public:room")
        await shouting.send(b"HELLO")
        assert (await full.hear("message"))["data"] == "hello"
        await full.say("publish", channel="public:room", data="hi")
        assert await shouting.next() == b"HI"


# --- TLS ---


@pytest.mark.parametrize("handshake", ["none", "optional", "required"])
async def test_tls_with_every_kind_of_handshake(tls: Tls, handshake: str) -> None:
    async with serving(mode="echo", handshake=handshake, tls=tls) as house:
        client = await house.client(tls=trusting(FIRST_CERTIFICATE), settled=False)
        if handshake != "none":
            await client.send(plain("1", {"a": "b"}))
        big = os.urandom(300_000)
        await client.send(b"hello", big)
        assert [await client.next(), await client.next()] == [b"hello", big]
        view = house.service.connections()[0]
        assert view.tls
        assert view.tags == ({} if handshake == "none" else {"a": "b"})


async def test_a_client_refused_behind_tls_is_told_inside_it(tls: Tls) -> None:
    async with serving(handshake="required", tls=tls) as house:
        client = await house.client(tls=trusting(FIRST_CERTIFICATE), settled=False)
        await client.send(b"hello")
        assert json.loads(await client.next())["code"] == 1008


async def test_mutual_tls_lets_in_whom_the_authority_knows(tls: Tls, tmp_path: Path) -> None:
    ca = tmp_path / "clients.pem"
    ca.write_text(SECOND_CERTIFICATE)
    files = tls.model_copy(update={"client_ca": ca})
    async with serving(mode="echo", handshake="none", tls=files) as house:
        known = trusting(FIRST_CERTIFICATE)
        (tmp_path / "own.pem").write_text(SECOND_CERTIFICATE + SECOND_KEY)
        known.load_cert_chain(tmp_path / "own.pem")
        assert await echoes(await house.client(tls=known))
        # with TLS 1.3 the client learns of it with its first read
        stranger = await house.client(tls=trusting(FIRST_CERTIFICATE), settled=False)
        assert await stranger.over() == b""
        await eventually(lambda: house.exchange.rejections["tls"] == 1)


async def test_a_renewed_certificate_is_taken_and_sessions_stay(tls: Tls) -> None:
    async with serving(mode="echo", tls=tls) as house:
        old = await house.client(tls=trusting(FIRST_CERTIFICATE))
        tls.certificate.write_text(SECOND_CERTIFICATE)
        tls.key.write_text(SECOND_KEY)
        assert await echoes(await house.client(tls=trusting(SECOND_CERTIFICATE)))
        assert await echoes(old)


# --- PROXY protocol ---

LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


async def test_behind_a_proxy_the_client_is_whom_the_header_names(tls: Tls) -> None:
    loopback = ["127.0.0.0/8"]
    listeners = (
        listening(mode="echo", proxy_protocol=loopback),
        listening(mode="echo", proxy_protocol=loopback, handshake="required"),
    )
    async with serving(*listeners) as house:
        plainly = await house.client(0, settled=False)
        await plainly.raw(proxied() + frame(b"hello"))
        assert await plainly.next() == b"hello"
        slowly = await house.client(1, settled=False)
        for byte in proxied("198.51.100.1", 5) + frame(plain("1")) + frame(b"there"):
            await slowly.raw(bytes([byte]))
        assert await slowly.next() == b"there"
        assert [view.address for view in house.service.connections()] == ["203.0.113.9:4711", "198.51.100.1:5"]
        checked = await house.client(0, settled=False)
        await checked.raw(LOCAL + frame(b"ping"))
        assert await checked.next() == b"ping"
        assert house.service.connections()[-1].address.startswith("127.0.0.1:")


async def test_a_proxy_header_comes_before_tls(tls: Tls) -> None:
    async with serving(mode="echo", proxy_protocol=["127.0.0.1"], tls=tls) as house:
        sock = await trio.open_tcp_stream("127.0.0.1", house.port())
        await sock.send_all(proxied())
        secured = trio.SSLStream(sock, trusting(FIRST_CERTIFICATE), server_hostname="127.0.0.1")
        await secured.send_all(frame(b"hello"))
        assert await secured.receive_some() == frame(b"hello")
        assert house.service.connections()[0].address == "203.0.113.9:4711"
        await trio.aclose_forcefully(sock)


async def test_limits_by_address_count_whom_the_header_names() -> None:
    async with serving(mode="echo", proxy_protocol=["127.0.0.1"], limits={"connections_per_address": 1}) as house:
        first, second, third = [await house.client(settled=False) for _ in range(3)]
        await first.raw(proxied() + frame(b"a"))
        assert await first.next() == b"a"
        await second.raw(proxied() + frame(b"b"))
        assert await second.over() == b""
        await third.raw(proxied("203.0.113.10") + frame(b"c"))
        assert await third.next() == b"c"
        assert house.exchange.rejections["address"] == 1
        assert house.exchange.places.total == 2
        for client in (first, third):
            client.socket.close()
        await eventually(lambda: house.exchange.places.total == 0)


@pytest.mark.parametrize(
    "first", [frame(b"hello"), b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n", SIGNATURE + b"\x31\x11\x00\x0c"]
)
async def test_a_proxy_that_sends_no_header_is_refused(first: bytes) -> None:
    async with serving(mode="echo", proxy_protocol=["127.0.0.1"]) as house:
        client = await house.client(settled=False)
        await client.raw(first)
        assert await client.over() == b""
        await eventually(lambda: house.exchange.rejections["proxy"] == 1)


async def test_who_is_trusted_changes_with_a_reload() -> None:
    async with serving(mode="echo", proxy_protocol=["10.0.0.0/8"]) as house:
        # not from there: what looks like a header is data, here a length far above max_frame
        lying = await house.client()
        await lying.raw(proxied() + frame(b"hello"))
        assert await lying.over() == b""
        await eventually(lambda: house.exchange.closes[1009] == 1)
        (listen,) = house.service.config.listen
        await house.live(
            listen=[
                listen.model_copy(update={"proxy_protocol": listening(proxy_protocol=["127.0.0.1"]).proxy_protocol})
            ]
        )
        believed = await house.client(settled=False)
        await believed.raw(proxied() + frame(b"hello"))
        assert await believed.next() == b"hello"


# --- Unix sockets ---


async def test_a_unix_socket_tells_who_is_there(tmp_path: Path) -> None:
    async with serving(listening(address=f"unix:{tmp_path}/framed.sock", mode="echo")) as house:
        client = await house.client()
        assert await echoes(client)
        view = house.service.connections()[0]
        assert (view.address, view.pid, view.uid) == ("unix:", os.getpid(), os.getuid())
        assert next(iter(house.exchange.connections)).carrier is None


# --- what is told of it ---


async def test_comings_and_goings_are_told_and_counted() -> None:
    async with serving(mode="echo") as house:
        client = await house.client()
        assert await echoes(client, b"12345678")
        (opened,) = house.notices(Opened)
        assert opened.as_json() | {"session": "", "address": "", "listener": ""} == {
            "session": "",
            "address": "",
            "listener": "",
            "mode": "echo",
        }
        assert house.counted("netd_framed_connections", mode="echo") == 1
        client.socket.close()
        await eventually(lambda: house.notices(Closed))
        (closed,) = house.notices(Closed)
        assert (closed.session, closed.code) == (opened.session, 1000)
        for name, value in (("accepted", 1), ("received_bytes", 12), ("sent_bytes", 12), ("received_messages", 1)):
            assert house.counted(f"netd_framed_{name}_total") == value
        assert house.counted("netd_framed_closed_total", code="1000") == 1
        assert house.counted("netd_framed_connections", mode="echo") == 0
        snapshot = house.service.snapshot()
        assert (snapshot.sessions, snapshot.total, snapshot.bytes_in) == (0, 1, 12)
        assert snapshot.limits["max_frame"] == 4 << 20
        assert snapshot.listeners[0]["mode"] == "echo"
