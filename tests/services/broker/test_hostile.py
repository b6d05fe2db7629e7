"""Clients that mean no good, and crowds that mean no harm: the broker serves the others, and everything stays bounded.

No test here measures time. What a crowd costs, and what others notice of it, is measured in `make bench-broker`.
"""

from __future__ import annotations

import base64
import hmac
import json
import resource
import select
import socket
import ssl
import threading
import time
import zlib
from typing import TYPE_CHECKING

import jwt
import pytest
import trio

from tests.services.broker.raw import PATIENCE, Site, broker, message
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY, SECOND_CERTIFICATE, SECOND_KEY
from tests.support import signed
from tests.support.process import NetdProcess
from tests.support.websocketpeer import raw

if TYPE_CHECKING:
    from pathlib import Path

MANY = {"connections_per_address": 5000}
SECRET = "a secret of thirty-two bytes, or more"


def eventually(condition) -> None:
    """Until it holds: for what the broker does a moment after it has answered."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- those who never finish -------------------------------------------------------------------------------------------


def test_handshakes_that_never_end_are_ended_and_disturb_nobody_who_is_there():
    limits = {"max_connections": 20, "head_timeout": 0.4}
    with broker(MANY | {"http": limits}) as house:
        there = house.wire("/ws/public:a?echo=1")
        slow = []
        for number in range(20):
            sock = house.connect()
            sock.sendall(house.upgrade("/ws").encode()[: 20 + number])
            slow.append(sock)
        dripping, over = threading.Event(), threading.Event()

        def drip() -> None:  # a byte now and then does not keep one alive
            while not over.wait(0.05):
                for sock in slow:
                    try:
                        sock.sendall(b"x")
                    except OSError:
                        dripping.set()

        thread = threading.Thread(target=drip)
        thread.start()
        there.send(raw(0x81, b"still here"))
        assert there.frame() == (0x81, b"still here")
        for sock in slow:
            try:
                while sock.recv(65536):
                    pass
            except ConnectionResetError:
                pass
            sock.close()
        over.set()
        thread.join()
        house.wire("/ws").close()
        there.close()


def test_fragments_without_end():
    with broker({"max_fragments": 500, "max_message": 4096}) as house:
        for part, code in ((b"", 1009), (b"x", 1009), (b"x" * 100, 1009)):
            wire = house.wire("/app")
            stream = message(0x02, b"") + message(0x00, part) * 5000
            answer = wire.talk(stream)
            assert (answer.before, answer.close) == ([], code), part


def told(wires) -> list:
    """Those to whom something was said."""
    ready = select.select([wire.socket for wire in wires], [], [], 0)[0]
    return [wire for wire in wires if wire.socket in ready]


def test_unfinished_messages_of_many_together_are_bounded():
    with broker(MANY | {"max_unfinished": 1024 * 1024}) as house:
        small = house.wire("/app")
        small.send(message(0x02, b"x" * 1000))
        large = [house.wire("/app") for _ in range(8)]
        for wire in large:
            wire.send(message(0x02, b"x" * 512 * 1024))
        eventually(lambda: len(told(large)) >= 6)
        assert {wire.ended()[0] for wire in told(large)} == {1013}
        small.send(message(0x80, b"y"))
        assert small.frame() == (0x82, b"x" * 1000 + b"y")
        for wire in [small, *large]:
            wire.close()


@pytest.mark.parametrize("pieces", [1, 50])
def test_a_deflate_bomb_is_refused_before_it_is_unpacked(pieces):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1024 * 1024)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]
    step = len(bomb) // pieces + 1
    parts = [bomb[at : at + step] for at in range(0, len(bomb), step)]
    last = len(parts) - 1
    stream = b"".join(
        message((0x42 if not index else 0) | (0x80 if index == last else 0), part) for index, part in enumerate(parts)
    )
    with broker({"deflate": True, "client_takeover": True, "max_message": 1024 * 1024}) as house:
        house.wire("/app").close()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = house.wire("/app", "Sec-WebSocket-Extensions: permessage-deflate").talk(stream)
        assert (answer.before, answer.close) == ([], 1009)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 32 * 1024  # KiB, of the 64 MiB that it holds


# --- crowds -----------------------------------------------------------------------------------------------------------


def crowd_reads(wires, size: int) -> list[int]:
    """Read so many bytes from each, whoever has some; how many each has got, until all have them."""
    got = dict.fromkeys((wire.socket for wire in wires), 0)
    waiting = select.epoll()
    known = {}
    for wire in wires:
        wire.socket.setblocking(False)
        waiting.register(wire.socket, select.EPOLLIN)
        known[wire.socket.fileno()] = wire.socket
    deadline = time.monotonic() + PATIENCE
    while known and time.monotonic() < deadline:
        for number, _ in waiting.poll(1):
            sock = known[number]
            data = sock.recv(1 << 20)
            got[sock] += len(data)
            if got[sock] >= size or not data:
                waiting.unregister(number)
                del known[number]
    waiting.close()
    return list(got.values())


def test_one_that_stops_reading_among_200_that_read():
    """It is closed for it (4008), and each of the others has every message."""
    limits = {"max_message": 65536, "backpressure": 262144, "send_buffer": 4096}
    with broker(MANY | limits) as house:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((house.host, house.port))
        stuck = house.upgraded(slow, "/ws/public:a?role=sub")
        readers = [house.wire("/ws/public:a?role=sub") for _ in range(200)]
        hub = house.daemon.hub
        payload = b"\x00" * 8000
        for _ in range(20):  # not all at once: those who read are not to be slow either
            for _ in range(10):
                house.do(hub.publish, b"public:a", payload)
            assert set(crowd_reads(readers, 10 * (4 + len(payload)))) == {10 * (4 + len(payload))}
        eventually(lambda: hub.visible == 200)
        code, reason = stuck.ended()
        assert code in (4008, None), reason  # None where even that had no room any more
        for wire in readers:
            wire.close()


def test_300_that_come_back_at_once_have_everything(tmp_path):
    """After a stop of the broker, each as the same session, with what was said meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with broker(MANY | {"listen": [{"address": address}]}) as house:
        crowd = []
        for number in range(300):
            wire = house.wire("/ws")
            wire.say(type="hello", version=1, name=f"n{number}")
            wire.say(type="subscribe", channel="public:a", ref=1)
            crowd.append(wire)
        welcomes = [wire.hear("welcome") for wire in crowd]
        places = [wire.hear("ok") for wire in crowd]
        assert len({welcome["session"] for welcome in welcomes}) == 300
        house.do(house.daemon.service_stop, "broker")
        delays = [wire.hear("close").get("retry_after", 0.0) for wire in crowd]
        assert all(0 <= delay <= 10 for delay in delays)
        assert len(set(delays)) > 100  # not all at the same moment
        for wire in crowd:
            wire.close()
        house.do(house.daemon.hub.publish, b"public:a", "meanwhile")
        house.do(house.daemon.service_start, "broker")
        sockets = [house.connect() for _ in range(300)]
        again = [house.upgraded(sock, "/ws") for sock in sockets]
        for wire, welcome, place in zip(again, welcomes, places, strict=True):
            wire.say(type="hello", version=1, resume=welcome["resume"])
            wire.say(
                type="subscribe", channel="public:a", recover={key: place[key] for key in ("epoch", "offset")}, ref=1
            )
        for number, (wire, welcome) in enumerate(zip(again, welcomes, strict=True)):
            assert wire.hear("welcome")["session"] == welcome["session"], number
            assert wire.hear("ok")["recovered"] is True
            assert wire.hear("message")["data"] == "meanwhile"
            wire.close()


# --- tokens -----------------------------------------------------------------------------------------------------------

TOKENS = {
    "namespace": [{"name": "room", "subscribe": "token", "publish": "token", "history_size": 10}],
    "key": [
        {"name": "hs", "algorithm": "HS256", "secret": SECRET},
        {"name": "ed", "algorithm": "EdDSA", "secret": signed.public(signed.ED)},
        {"name": "rsa", "algorithm": "RS256", "secret": signed.public(signed.RSA)},
    ],
}


def claims(**more) -> dict:
    return {"sub": "alice", "exp": time.time() + 60, "netd": {"subscribe": ["room:*"], "publish": ["room:*"]}} | more


def unsigned(header: dict, payload: dict, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def forgeries() -> dict[str, str]:
    good = jwt.encode(claims(), SECRET, "HS256")
    head, payload, signature = good.split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(sub="root")).encode()).rstrip(b"=").decode()
    return {
        "none": unsigned({"alg": "none", "typ": "JWT"}, claims()),
        "None": unsigned({"alg": "None"}, claims()),
        "none with a signature": unsigned({"alg": "none"}, claims(), b"x" * 32),
        "no alg": unsigned({"typ": "JWT"}, claims()),
        "expired": jwt.encode(claims(exp=time.time() - 1), SECRET, "HS256"),
        "not yet": jwt.encode(claims(nbf=time.time() + 60), SECRET, "HS256"),
        "no expiry": jwt.encode({"sub": "alice"}, SECRET, "HS256"),
        "another secret": jwt.encode(claims(), SECRET[::-1], "HS256"),
        "another key": jwt.encode(claims(), signed.OTHER_ED, "EdDSA"),
        "another algorithm": with_mac("HS512", SECRET),
        "the public key as a secret": with_mac("HS256", signed.public(signed.RSA)),  # everybody has that
        "other claims": f"{head}.{other}.{signature}",
        "no signature": f"{head}.{payload}.",
        "two parts": f"{head}.{payload}",
        "a key of its own": jwt.encode(claims(), SECRET[::-1], "HS256", headers={"jwk": {"kty": "oct", "k": "eA"}}),
        "a key by address": jwt.encode(claims(), SECRET[::-1], "HS256", headers={"jku": "http://127.0.0.1/key"}),
        "a kid like a path": unsigned(
            {"alg": "HS256", "kid": "../../../../dev/null"}, claims(), hmac.digest(b"", b"", "sha256")
        ),
        "rubbish": "a.b.c",
    }


def with_mac(algorithm: str, key: str) -> str:
    whole = unsigned({"alg": algorithm, "typ": "JWT"}, claims()).rpartition(".")[0]
    mac = hmac.digest(key.encode(), whole.encode(), f"sha{algorithm[2:]}")
    return f"{whole}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def test_no_token_that_is_forged_or_expired_opens_anything():
    with broker(hub=TOKENS) as house:

        def ways(token: str):
            """A status for each way to show a token, 101 where a WebSocket came of it."""
            plain = "/ws/room:a"
            quoted = token.replace(" ", "%20")
            heads = {
                "query": house.upgrade(f"{plain}?token={quoted}"),
                "header": house.upgrade(plain, f"Authorization: Bearer {token}"),
                "subprotocol": house.upgrade(plain, f"Sec-WebSocket-Protocol: netd.plain, netd.token.{token}"),
                "events": f"GET /channels/room:a/events?token={quoted} HTTP/1.1\r\nHost: {house.address}\r\n\r\n",
                "publish": f"POST /channels/room:a HTTP/1.1\r\nHost: {house.address}\r\n"
                f"Authorization: Bearer {token}\r\nContent-Length: 1\r\n\r\nx",
            }
            return {way: house.get(head)[0] for way, head in heads.items()}

        good = ways(jwt.encode(claims(), SECRET, "HS256"))
        assert good == {"query": 101, "header": 101, "subprotocol": 101, "events": 200, "publish": 201}
        for name, token in forgeries().items():
            assert set(ways(token).values()) == {401}, name
            wire = house.wire("/ws")
            wire.say(type="hello", version=1, token=token, ref=1)
            wire.say(type="subscribe", channel="room:a", ref=2)
            answers = [wire.hear("ok", "error") for _ in range(2)]
            assert [(answer["ref"], answer.get("code")) for answer in answers] == [(1, "denied"), (2, "denied")], name
            assert SECRET not in str(answers)
            wire.close()
        assert set(ways("%00" * 3).values()) <= {400, 401}


# --- who asks, and whom -----------------------------------------------------------------------------------------------

EVIL = "evil.example"


def test_a_host_that_is_not_ours_is_answered_nothing():
    with broker({"hosts": ["broker.example"]}) as house:
        for host in (EVIL, f"{EVIL}:{house.port}", "127.0.0.1.evil.example", "localhost.evil.example", "10.9.8.7"):
            assert house.get(house.upgrade("/ws", host=host))[0] == 421, host
            assert house.get(f"GET /channels/public:a/history HTTP/1.1\r\nHost: {host}\r\n\r\n")[0] == 421, host
            absolute = f"GET http://{host}/channels/public:a/history HTTP/1.1\r\nHost: {house.address}\r\n\r\n"
            assert house.get(absolute)[0] == 421, host
        for host in (house.address, f"localhost:{house.port}", "[::1]", "broker.example", "BROKER.example.:3000"):
            assert house.get(f"GET /channels/public:a/history HTTP/1.1\r\nHost: {host}\r\n\r\n")[0] == 200, host
        for wrong in ("a b", "a@localhost", "localhost/x", "localhost,evil", "[::1", "localhost:99999", ""):
            status, _ = house.get(f"GET /channels/public:a/history HTTP/1.1\r\nHost: {wrong}\r\n\r\n")
            assert status in (400, 421), wrong
        two = f"GET /channels/public:a/history HTTP/1.1\r\nHost: {house.address}\r\nHost: {EVIL}\r\n\r\n"
        assert house.get(two)[0] == 400
        assert house.get("GET /channels/public:a/history HTTP/1.1\r\n\r\n")[0] == 400


def test_an_origin_that_is_not_ours_gets_neither_an_upgrade_nor_an_answer_it_may_read():
    with broker({"origins": ["https://friend.example", "https://*.wide.example"]}) as house:
        foreign = (
            f"http://{EVIL}",
            "null",
            "https://friend.example.evil.example",
            "https://notfriend.example",
            "http://friend.example",
            "https://friend.example:8443",
            "https://wide.example",
            f"http://127.0.0.1:{house.port + 1}",
            f"https://127.0.0.1:{house.port}",
            "file://",
            "rubbish",
        )
        publish = "POST /channels/public:a HTTP/1.1\r\nHost: {0}\r\nOrigin: {1}\r\nContent-Length: 1\r\n\r\nx"
        asked = (
            "OPTIONS /channels/public:a HTTP/1.1\r\nHost: {0}\r\nOrigin: {1}\r\n"
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
        for origin in foreign:
            for head in (
                house.upgrade("/ws", f"Origin: {origin}"),
                house.upgrade("/ws", f"Origin: {origin}", f"Sec-WebSocket-Origin: http://{house.address}"),
                publish.format(house.address, origin),
                asked.format(house.address, origin),
            ):
                status, text = house.get(head)
                assert status == 403, (origin, head)
                assert "access-control-allow-origin" not in text.lower()
        for origin in ("https://friend.example", "https://a.wide.example", f"http://{house.address}"):
            assert house.get(house.upgrade("/ws", f"Origin: {origin}"))[0] == 101
            status, text = house.get(publish.format(house.address, origin))
            assert status == 201
            assert f"access-control-allow-origin: {origin}\r\n" in text.lower()
            assert "access-control-allow-credentials" not in text.lower()
            assert house.get(asked.format(house.address, origin))[0] == 204
        two = house.upgrade("/ws", f"Origin: http://{house.address}", f"Origin: http://{EVIL}")
        assert house.get(two)[0] in (400, 403)


def test_nobody_is_believed_about_his_address_but_a_trusted_proxy():
    def addresses(house) -> list[str]:
        return sorted(session.address.partition(":")[0] for session in house.daemon.hub.present())

    with broker({"connections_per_address": 3}) as house:
        wires = [house.wire("/ws", f"X-Forwarded-For: 192.0.2.{number}") for number in range(3)]
        eventually(lambda: addresses(house) == ["127.0.0.1"] * 3)
        with house.connect() as fourth:
            try:
                fourth.sendall(house.upgrade("/ws", "X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.9").encode())
                assert b" 101 " not in fourth.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                pass
        for wire in wires:
            wire.close()
    listen = [{"address": "127.0.0.1:0", "forwarded": ["127.0.0.0/8", "10.0.0.0/8"]}]
    with broker({"listen": listen, "connections_per_address": 3}) as house:
        told = ["6.6.6.6, 192.0.2.1", "192.0.2.1, 10.1.1.1", "rubbish, 192.0.2.2", "192.0.2.1"]
        wires = [house.wire("/ws", f"X-Forwarded-For: {list}") for list in told]
        expected = ["192.0.2.1"] * 3 + ["192.0.2.2"]
        eventually(lambda: addresses(house) == expected)
        status, _ = house.get(house.upgrade("/ws", "X-Forwarded-For: 6.6.6.6, 192.0.2.1"))
        assert status in (429, 503)
        contradictory = house.upgrade("/ws", "X-Forwarded-For: 192.0.2.5", "Forwarded: for=192.0.2.6")
        assert house.get(contradictory)[0] == 400
        for wire in wires:
            wire.close()


# --- sessions through a reload ----------------------------------------------------------------------------------------

RELOADED = """
[[broker.listen]]
address = "127.0.0.1:0"

[[broker.listen]]
address = "127.0.0.1:0"
tls = {{ certificate = "{directory}/cert.pem", key = "{directory}/key.pem" }}

[broker]
connections_per_address = 5000

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
history_size = {size}

[[hub.namespace]]
name = "room"
subscribe = "token"

[[hub.key]]
name = "{key}"
algorithm = "HS256"
secret = "{secret}"
"""


async def test_a_reload_of_rules_keys_and_certificates_disconnects_nobody(tmp_path: Path):
    """A hundred, some of them over TLS: the key of their token goes, and certificate and rules become others."""
    new = "another secret of thirty-two bytes or so"
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text(FIRST_CERTIFICATE)
    key.write_text(FIRST_KEY)
    token = jwt.encode(claims(), SECRET, "HS256")
    toml = RELOADED.format(directory=tmp_path, size=5, key="old", secret=SECRET)
    async with NetdProcess(tmp_path, toml) as netd:
        async with netd.client() as client:
            services = {each["name"]: each for each in await client.services()}
        plain, secure = services["broker"]["addresses"]
        trusting = ssl.create_default_context(cadata=FIRST_CERTIFICATE)

        sites = [Site(plain), Site(secure, trusting)]

        def gather():
            wires = [site.wire("/ws") for site in [sites[0]] * 80 + [sites[1]] * 20]
            for wire in wires:
                wire.say(type="hello", version=1, token=token)
                wire.say(type="subscribe", channel="room:a", ref=1)
                wire.say(type="subscribe", channel="public:a", ref=2)
            assert all([wire.hear("ok")["ref"], wire.hear("ok")["ref"]] == [1, 2] for wire in wires)
            return wires

        wires = await trio.to_thread.run_sync(gather)
        certificate.write_text(SECOND_CERTIFICATE)
        key.write_text(SECOND_KEY)
        netd.config.write_text(RELOADED.format(directory=tmp_path, size=50, key="new", secret=new))
        async with netd.client() as client:
            change = await client.reload(wait=PATIENCE)
        assert change["status"] == "done", change

        def look() -> None:
            for wire in wires:
                # its token counts no more: it is told, and has lost what took one, but is there
                assert wire.hear("error")["refresh"] is True
                ended = wire.hear("error")
                assert (ended["code"], ended["channel"]) == ("denied", "room:a")
                wire.say(type="publish", channel="room:a", data=1, ref=3)
                assert wire.hear("error")["ref"] == 3
            wires[0].say(type="publish", channel="public:a", data="all are here", ref=4)
            for wire in wires:
                assert wire.hear("message")["data"] == "all are here"
                wire.close()
            renewed = ssl.create_default_context(cadata=SECOND_CERTIFICATE)
            last = Site(secure, renewed)
            again = last.wire("/ws")
            again.say(type="hello", version=1, token=jwt.encode(claims(), new, "HS256"))
            again.say(type="subscribe", channel="room:a", ref=1)
            assert again.hear("ok", "error")["type"] == "ok"
            for site in [*sites, last]:
                site.close()

        await trio.to_thread.run_sync(look)
