"""How a framed client connects: TLS and what can be wrong with it, Unix sockets, interfaces and local addresses."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

import pytest
import trio

from netd.client import ClientTls, FramedClient, Reconnect
from netd.errors import DaemonUnreachable, ProtocolError
from netd.net import tls
from netd.wire.framing import frame
from tests.support.authority import Authority, serving
from tests.support.framedpeer import PATIENCE, FramedPeer


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


async def exchange(peer: FramedPeer, **options) -> str:
    """One payload there and back; the client's address as the peer sees it."""
    seen = []

    async def echo() -> None:
        link = await peer.accept()
        await link.send(await link.receive())
        stream = link.stream
        seen.append((stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket.getpeername())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        async with FramedClient(peer.address, linger=0.01, reconnect=False, **options) as client:
            await client.send(b"x" * 100_000)
            with trio.fail_after(PATIENCE):
                assert await client.receive() == b"x" * 100_000
    return seen[0]


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_a_certificate_of_an_authority_that_is_trusted(authority):
    async with FramedPeer(tls=serving(authority.issue("127.0.0.1"))) as peer:
        await exchange(peer, tls=authority.file)
        await exchange(peer, tls=str(authority.file))
        await exchange(peer, tls=ssl.create_default_context(cafile=authority.file))


async def test_the_name_may_be_another_than_the_hosts(authority):
    async with FramedPeer(tls=serving(authority.issue("hub.example"))) as peer:
        await exchange(peer, tls=authority.file, server_name="hub.example")
        await exchange(peer, tls=ClientTls(ca=authority.file, server_name="hub.example"))


async def refused(peer: FramedPeer, **options) -> str:
    """Why the client cannot connect, while the peer tries to let it in."""

    async def accept() -> None:
        with suppress(trio.BrokenResourceError, ssl.SSLError):
            await peer.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        with pytest.raises(DaemonUnreachable) as why:
            async with FramedClient(peer.address, reconnect=False, **options):
                pass
    return str(why.value)


async def test_other_certificates_are_refused_and_it_is_said_why(authority):
    async with FramedPeer(tls=serving(authority.issue("hub.example"))) as peer:
        assert "certificate cannot be verified" in await refused(peer, tls=True)
        assert "certificate cannot be verified" in await refused(peer, tls=authority.file)
        await exchange(peer, tls=ClientTls(verify=False))


async def test_a_server_without_tls_is_recognised_as_one():
    async with FramedPeer() as peer, trio.open_nursery() as nursery:

        async def say_something_else() -> None:
            link = await peer.accept()
            await link.send(b"hello")

        nursery.start_soon(say_something_else)
        with pytest.raises(DaemonUnreachable, match=r"cannot use TLS with .*does not speak TLS"):
            async with FramedClient(peer.address, tls=True):
                pass


async def test_a_certificate_of_our_own_for_a_server_that_asks_for_one(authority):
    certificate, key = authority.issue("client.example")
    async with FramedPeer(tls=serving(authority.issue("127.0.0.1"), client_ca=authority.file)) as peer:
        await exchange(peer, tls=ClientTls(ca=authority.file, certificate=certificate, key=key))


async def test_without_one_the_server_hangs_up_and_it_is_said_why(authority):
    """In TLS 1.3 the client's handshake is over before the server has looked at its certificate (RFC 8446 4.4.2.4)."""
    context = serving(authority.issue("127.0.0.1"), client_ca=authority.file)
    async with FramedPeer() as peer, trio.open_nursery() as nursery:

        async def let_in() -> None:
            link = await peer.accept()
            with suppress(ProtocolError):  # it says why in an alert
                await tls.handshake(tls.TlsLayer(context), link.stream)
            await link.close()

        nursery.start_soon(let_in)
        with pytest.raises(DaemonUnreachable, match="asks for a client certificate"):
            async with FramedClient(peer.address, tls=authority.file, reconnect=False) as client:
                await client.receive()


async def test_an_end_without_tls_saying_so_is_no_clean_one(authority):
    """Somebody on the way may have cut the connection (RFC 8446 section 6.1)."""
    async with FramedPeer(tls=serving(authority.issue("127.0.0.1"))) as peer, trio.open_nursery() as nursery:

        async def cut() -> None:
            link = await peer.accept()
            await link.send(b"x")
            await link.stream.transport_stream.send_eof()

        nursery.start_soon(cut)
        async with FramedClient(peer.address, tls=authority.file, reconnect=False) as client:
            assert await client.receive() == b"x"
            with pytest.raises(DaemonUnreachable, match="without TLS saying so"):
                await client.receive()


async def test_files_that_cannot_be_used_are_named(authority, tmp_path):
    (tmp_path / "empty.pem").write_text("")
    for files in (
        ClientTls(ca=tmp_path / "missing.pem"),
        ClientTls(ca=tmp_path / "empty.pem"),
        ClientTls(certificate=tmp_path / "empty.pem"),
    ):
        async with FramedPeer() as peer:
            with pytest.raises(ProtocolError, match=r"cannot use the TLS files .*(missing|empty)\.pem"):
                async with FramedClient(peer.address, tls=files):
                    pass


async def test_leaving_over_tls_loses_nothing_although_much_was_not_read(authority):
    received = []

    async def serve() -> None:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while True:
                        await link.stream.send_all(frame(b"x" * 10_000))

            nursery.start_soon(write)
            with pytest.raises(trio.EndOfChannel):
                await _all(link, received)
            nursery.cancel_scope.cancel()
        await link.abort()

    async with FramedPeer(tls=serving(authority.issue("127.0.0.1"))) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with FramedClient(peer.address, tls=authority.file, inbox_messages=3) as client:
            for _ in range(100):
                await client.send(b"y" * 10_000)
    assert received == [b"y" * 10_000] * 100


@pytest.mark.parametrize("tls", [False, True])
async def test_what_the_kernel_does_not_take_at_once_goes_first_and_is_not_torn(authority, tls):
    received = []

    async def serve() -> None:
        link = await peer.accept()
        await begin.wait()
        received.extend([await link.receive() for _ in range(2)])
        await link.ended()
        await link.abort()

    begin, context = trio.Event(), serving(authority.issue("127.0.0.1")) if tls else None
    async with FramedPeer(tls=context) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with FramedClient(peer.address, tls=authority.file if tls else None, linger=PATIENCE) as client:
            for letter, priority in ((b"a", 128), (b"b", 0)):
                await client.send(letter * 3_000_000, priority=priority)
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await client.receive()  # begins to wait, so that what is queued goes out; and is cancelled
            assert client.telemetry().counters.bytes_out == 3_000_004, "what could not be sent whole was begun"
            begin.set()
            await client.flush()
    assert received == [b"a" * 3_000_000, b"b" * 3_000_000]


async def _all(link, received) -> None:
    while True:
        received.append(await link.receive())


# --- from where -------------------------------------------------------------------------------------------------------


async def test_a_unix_socket(tmp_path):
    async with FramedPeer(path=tmp_path / "f.sock") as peer:
        await exchange(peer)
        with pytest.raises(ProtocolError, match="with interface: that is for TCP"):
            async with FramedClient(peer.address, interface="lo"):
                pass
    with pytest.raises(DaemonUnreachable, match="no such file"):
        async with FramedClient(f"unix:{tmp_path}/missing.sock"):
            pass


async def test_from_a_local_address_and_port():
    async with FramedPeer() as peer:
        assert (await exchange(peer, local_address="127.0.0.9"))[0] == "127.0.0.9"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        assert (await exchange(peer, local_port=port))[1] == port


async def test_by_an_interface():
    async with FramedPeer() as peer:
        assert (await exchange(peer, interface="lo"))[0] == "127.0.0.1"
        assert (await exchange(peer, interface="lo", local_address="127.0.0.9"))[0] == "127.0.0.9"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"interface": "wg-none"}, r"cannot bind to interface 'wg-none': no such interface \(there are: .*lo"),
        ({"local_address": "203.0.113.9"}, r"cannot bind to 203\.0\.113\.9:0: no interface has this address"),
        ({"local_address": "nonsense"}, "'nonsense' is no IPv4 address"),
    ],
)
async def test_what_cannot_be_bound_is_said(options, why):
    async with FramedPeer() as peer:
        with pytest.raises(DaemonUnreachable, match=why):
            async with FramedClient(peer.address, **options):
                pass


async def test_keepalive_is_asked_of_the_kernel():
    async with FramedPeer() as peer, FramedClient(peer.address, keepalive=7.0, linger=0.01) as client:
        sock = client._connection.wire.link.socket
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7


async def test_a_name_that_nobody_knows_and_a_server_that_never_answers():
    with pytest.raises(DaemonUnreachable, match=r"cannot connect to nobody\.invalid:9: the name is not known"):
        async with FramedClient("nobody.invalid:9"):
            pass
    with socket.socket() as full:  # its backlog of one is taken: the kernel answers no more SYNs
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        blockers = [socket.socket() for _ in range(4)]
        for blocker in blockers:
            blocker.setblocking(False)
            blocker.connect_ex(full.getsockname())
        with pytest.raises(DaemonUnreachable, match=r"no answer within 0\.05 s"):
            async with FramedClient(full.getsockname(), connect_timeout=0.05, reconnect=Reconnect(enabled=False)):
                pass
        for blocker in blockers:
            blocker.close()
