"""The trace service behind TLS: certificates that are used, renewed, broken."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from netd.errors import PrepareFailed
from netd.net.certificates import load
from netd.section import Tls
from netd.services.trace.config import TraceListen
from tests.services.trace.lab import ScriptedTracer, eventually, frame, handshake, read_all, serving
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY, SECOND_CERTIFICATE, SECOND_KEY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    files = Tls(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    write(files, FIRST_CERTIFICATE, FIRST_KEY)
    return files


def write(tls: Tls, certificate: str, key: str) -> None:
    tls.certificate.write_text(certificate)
    tls.key.write_text(key)


def trusting(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificate)


def listening(tls: Tls) -> TraceListen:
    return TraceListen(address="127.0.0.1:0", tls=tls)


async def test_a_trace_inside_tls(tls: Tls) -> None:
    tracer = ScriptedTracer()
    trust = trusting(FIRST_CERTIFICATE)
    async with serving(tracer, listen=listening(tls)) as house, house.client(tls=trust) as client:
        done = (await client.until("clientDone"))[-1]
        assert done["reason"] == "destination"
        assert done["pong_rtt_ms"] > 0
        assert house.service.clients()[0].tls is True
        assert tracer.peers[0][0] == "127.0.0.1"


async def test_a_close_code_inside_tls(tls: Tls) -> None:
    tracer = ScriptedTracer("hang")
    async with serving(tracer, listen=listening(tls)) as house:
        context = trusting(FIRST_CERTIFICATE)
        stream = trio.SSLStream(await house.raw(), context, server_hostname="127.0.0.1", https_compatible=True)
        await stream.send_all(handshake())
        await tracer.begun.wait()
        await stream.send_all(frame(1, b"\xff"))
        assert b"\x03\xef" in await read_all(stream)  # 1007


async def test_a_renewed_certificate_is_taken_and_old_connections_stay(tls: Tls) -> None:
    async with serving(listen=listening(tls)) as house, house.client(tls=trusting(FIRST_CERTIFICATE)) as old:
        await old.until("clientDone")
        write(tls, SECOND_CERTIFICATE, SECOND_KEY)
        async with house.client(tls=trusting(SECOND_CERTIFICATE)) as new:
            await new.until("clientDone")
        await old.say({"type": "ping", "id": 1})
        assert (await old.next())["id"] == 1


@pytest.mark.parametrize("key", [SECOND_KEY, "not a key", None])
async def test_a_broken_renewal_keeps_the_old_certificate_and_warns(tls: Tls, key: str | None) -> None:
    async with serving(listen=listening(tls)) as house:
        tls.certificate.write_text(FIRST_CERTIFICATE + "\n")
        tls.key.unlink() if key is None else tls.key.write_text(key)
        async with house.client(tls=trusting(FIRST_CERTIFICATE)) as client:
            await client.until("clientDone")
        (warning,) = house.health.warnings()
        assert warning.code == "trace.certificate.0"
        assert str(tls.certificate) in warning.message
        write(tls, SECOND_CERTIFICATE, SECOND_KEY)
        async with house.client(tls=trusting(SECOND_CERTIFICATE)) as client:
            await client.until("clientDone")
        assert house.health.warnings() == ()


@pytest.mark.parametrize("key", ["", SECOND_KEY, None])
async def test_what_cannot_be_used_fails_in_prepare_and_is_named(tls: Tls, key: str | None) -> None:
    tls.key.unlink() if key is None else tls.key.write_text(key)
    with pytest.raises(PrepareFailed, match="cannot use certificate") as caught:
        load(tls, service="trace")
    assert str(tls.key) in str(caught.value)


async def test_plain_text_and_broken_handshakes_end_alone(tls: Tls) -> None:
    async with serving(listen=listening(tls), handshake_timeout=0.3) as house:
        plain = await house.raw()
        await plain.send_all(handshake())
        assert b"HTTP" not in await read_all(plain)
        torn = await house.raw()
        await torn.send_all(b"\x16\x03\x01\x02\x00\x01\x00")  # a ClientHello that never comes whole
        assert await read_all(torn) == b""
        async with house.client(tls=trusting(FIRST_CERTIFICATE)) as client:
            await client.until("clientDone")


async def test_drain_does_not_wait_for_a_tls_client_that_is_deaf(tls: Tls) -> None:
    async with serving(ScriptedTracer("hang"), listen=listening(tls)) as house:
        stream = trio.SSLStream(await house.raw(), trusting(FIRST_CERTIFICATE), server_hostname="127.0.0.1")
        await stream.send_all(handshake())
        await eventually(lambda: len(house.service.clients()) == 1)
        house.drain(within=2.0)
        await house.ended.wait()
        assert trio.current_time() < house.deadline
