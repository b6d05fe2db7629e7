"""rediss:// and password_file: a real redis-server that wants a password, behind a listener of TLS."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from netd.backplane.config import BackplaneConfig
from netd.backplane.service import check
from netd.wire.messages import Message
from tests.backplane.lab import Redis, needs_redis, node
from tests.support.authority import Authority, serving

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = needs_redis


async def relay(redis: Redis, stream: trio.abc.Stream) -> None:
    """Bytes both ways until either ends."""
    async with stream, await trio.open_unix_socket(str(redis.socket)) as other, trio.open_nursery() as nursery:

        async def copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
            try:
                async for data in source:
                    await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(copy, stream, other)
        nursery.start_soon(copy, other, stream)


async def guarded(redis: Redis, context: ssl.SSLContext | None, stream: trio.abc.Stream) -> None:
    if context is not None:
        secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError:  # what the client thinks of it is what the test looks at
            return
        stream = secured
    await relay(redis, stream)


@asynccontextmanager
async def listening(directory: Path, *, tls: bool = True) -> AsyncIterator[tuple[int, Authority]]:
    """The port of one with the password "sesame", and who signed its certificate for "localhost"."""
    authority = Authority(directory)
    redis = Redis(directory, "--requirepass", "sesame")
    redis.start()
    try:
        await redis.ready()
        context = serving(authority.issue("localhost")) if tls else None
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, partial(guarded, redis, context), 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            yield listener.socket.getsockname()[1], authority
            nursery.cancel_scope.cancel()
    finally:
        redis.kill()


async def test_two_daemons_meet_over_tls_with_the_password_of_a_file(tmp_path):
    secret = tmp_path / "password"
    secret.write_text("sesame\n")
    async with listening(tmp_path) as (port, authority):
        url, more = f"rediss://localhost:{port}", {"password_file": secret, "ca": authority.file}
        async with node(url, "a", **more) as a, node(url, "b", **more) as b:
            await a.online(1)
            await b.online(1)
            one = b.person()
            await one.hear("kept:room")
            a.hub.publish(b"kept:room", "over TLS")
            assert (await one.until(Message)).data == "over TLS"


@pytest.mark.parametrize(
    ("scheme", "host", "given", "words", "advice"),
    [
        ("rediss", "localhost", {"password": "sesame"}, "certificate cannot be verified", "backplane.ca"),
        ("rediss", "127.0.0.1", {"password": "sesame", "ca": True}, "address mismatch", "certificate"),
        ("rediss", "localhost", {"password": "open", "ca": True}, "invalid username-password", ".password_file"),
        ("rediss", "localhost", {"ca": True}, "it wants authentication, and was shown no password", ".password_file"),
        ("redis", "localhost", {"password": "sesame"}, "", "rediss:// where it wants TLS"),
    ],
)
async def test_what_is_in_the_way_is_told_with_what_to_do(tmp_path, scheme, host, given, words, advice):
    async with listening(tmp_path) as (port, authority):
        more = given | ({"ca": authority.file} if given.get("ca") else {})
        async with node(f"{scheme}://{host}:{port}", "a", **more) as a:
            await a.becomes(lambda: words in a.warnings.get("backplane.redis", ""))
            [told] = [each for each in a.daemon.health.warnings() if each.code == "backplane.redis"]
            assert ".; " not in a.warnings["backplane.redis"]
            assert advice in (told.advice or "")


async def test_tls_to_one_without_it_is_advised_to_leave_it_out(tmp_path):
    async with (
        listening(tmp_path, tls=False) as (port, authority),
        node(f"rediss://localhost:{port}", "a", password="sesame", ca=authority.file, timeout=0.1) as a,
    ):
        await a.becomes(lambda: "no answer within 0.1 s" in a.warnings.get("backplane.redis", ""))
        [told] = [each for each in a.daemon.health.warnings() if each.code == "backplane.redis"]
        assert "without TLS (redis://)" in (told.advice or "")


def test_a_file_without_a_certificate_is_found_before_a_reload(tmp_path):
    nothing = tmp_path / "ca.pem"
    [absent] = check(BackplaneConfig(url="rediss://localhost", ca=nothing))
    nothing.write_text("sesame")
    [empty] = check(BackplaneConfig(url="rediss://localhost", ca=nothing))
    assert (absent.path, empty.path) == ("ca", "ca")
    assert "no such file" in str(absent)
    assert "it holds no certificate" in str(empty)
