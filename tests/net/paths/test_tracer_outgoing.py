"""Tracing inside connections of our own: `netctl trace run HOST:PORT`."""

from __future__ import annotations

import socket
import ssl
import subprocess

import pytest
import trio

from netd.net.paths.outgoing import OutgoingCarrier, open_carrier
from netd.net.paths.path import TraceOptions
from tests.support.lab import Lab, why_not
from tests.support.tracing import addresses, tracer_in

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def lab():
    with Lab(4) as lab:
        yield lab


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    kind = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=lab"]
    files = ["-keyout", path / "key.pem", "-out", path / "cert.pem"]
    subprocess.run(["openssl", "req", *kind, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "cert.pem", path / "key.pem")
    return context


class _Sockets(trio.abc.SocketFactory):
    def __init__(self, namespace) -> None:
        self.namespace = namespace

    def socket(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0):
        return trio.socket.from_stdlib_socket(self.namespace.socket(family, type, proto))


@pytest.fixture
async def far_server(lab, nursery):
    """An HTTP server, more or less, at the client's end; gives (version, tls context, seen) -> port."""
    seen = []

    async def start(version=4, context=None, *, port: int = 0, hang_up_after: int | None = None):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        listener = lab.client.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((lab.client_address(version), port))
        listener.listen(8)
        listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

        async def serve(stream) -> None:
            if context is not None:
                stream = trio.SSLStream(stream, context, server_side=True)
            count = 0
            try:
                async with stream:
                    async for data in stream:
                        seen.append(data)
                        count += 1
                        if hang_up_after is not None and count >= hang_up_after:
                            return
                        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            except trio.BrokenResourceError:
                return  # the tracer hangs up without ceremony

        nursery.start_soon(trio.serve_listeners, serve, [listening])
        return listener.getsockname()[1], seen

    trio.socket.set_custom_socket_factory(_Sockets(lab.server))
    yield start
    trio.socket.set_custom_socket_factory(None)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("send", ["http", "tls"])
async def test_several_rounds_inside_one_connection(lab, far_server, certificate, version, send):
    port, seen = await far_server(version, certificate if send == "tls" else None)
    async with tracer_in(lab) as tracer:
        carrier = await tracer.open_carrier(lab.client_address(version), port, send=send)
        async with carrier:
            assert carrier.address == (lab.client_address(version), port)
            for _ in range(3):
                path = await tracer.trace(carrier, TraceOptions(share=False))
                assert (path.method, path.reason, path.dest_ttl) == ("tcp", "destination", 5)
                assert addresses(path) == lab.hops(version)
                assert path.est_ttl == 5
    requests = b"".join(seen)
    assert requests.count(b"HEAD / HTTP/1.1\r\nHost: ") == 3
    assert len(requests) >= 3 * 127


async def test_a_server_that_hangs_up_ends_the_rounds(lab, far_server):
    port, _ = await far_server(hang_up_after=2)
    async with tracer_in(lab) as tracer, await tracer.open_carrier(lab.client_address(), port) as carrier:
        reasons = []
        with trio.fail_after(10):
            while "closed" not in reasons:
                reasons.append((await tracer.trace(carrier, TraceOptions(share=False))).reason)
    assert reasons[0] == "destination"


@pytest.mark.parametrize("port", [80, 443])
async def test_the_port_decides_about_tls(lab, far_server, certificate, port):
    await far_server(4, certificate if port == 443 else None, port=port)
    async with tracer_in(lab) as tracer, await tracer.open_carrier(lab.client_address(), port) as carrier:
        path = await tracer.trace(carrier)
    assert (path.reason, addresses(path)) == ("destination", lab.hops())


async def test_nobody_listens(lab, far_server):
    async with tracer_in(lab) as tracer:
        with pytest.raises(OSError, match="connect"):
            await tracer.open_carrier(lab.client_address(), 9)


async def test_tls_asked_of_a_server_without(lab, far_server):
    port, _ = await far_server(hang_up_after=1)
    async with tracer_in(lab) as tracer:
        with pytest.raises(OSError, match="cannot shake hands"):
            await tracer.open_carrier(lab.client_address(), port, send="tls")


async def test_closing_twice_is_fine(lab, far_server):
    port, _ = await far_server()
    async with tracer_in(lab) as tracer:
        carrier = await tracer.open_carrier(lab.client_address(), port)
        assert isinstance(carrier, OutgoingCarrier)
        await carrier.aclose()
        await carrier.aclose()
        path = await tracer.trace(carrier)
    assert path.reason == "closed"


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("a..b", r"cannot look up 'a\.\.b': it is no host name"),
        (".example.org", r"cannot look up '\.example\.org'"),
        ("x" * 70 + ".example", "cannot look up 'xxx"),
        # in a fresh network namespace even loopback is down
        ("127.0.0.1", r"cannot connect to 127\.0\.0\.1 port 1: (connection refused|network is unreachable)"),
    ],
)
async def test_what_is_wrong_with_a_target_is_said(host, why):
    with pytest.raises(OSError, match=why):
        await open_carrier(host, 1)
