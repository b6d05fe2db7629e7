"""The shared raw sockets, in a namespace of their own."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from structlog.testing import capture_logs

from netd.net.paths import receivers
from netd.net.paths.receivers import Receivers
from tests.support import packets
from tests.support.netns import Namespace, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

BOTH = pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])


@pytest.fixture
def namespace():
    with_lo = Namespace("receivers")

    def up() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.link("set", index=1, state="up")

    with_lo.call(up)
    yield with_lo
    with_lo.close()


def send_error(namespace, v6: bool, port: int, seq: int) -> None:
    """An error about a segment from our `port`, as if a router had sent it."""
    segment = packets.tcp(port, 50000, seq=seq)
    if v6:
        message = packets.icmp6(packets.ip("::1", "2001:db8::7", segment))
        with namespace.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.sendto(message, ("::1", 0))
    else:
        packet = packets.icmp4("127.0.0.1", "127.0.0.1", packets.ip("127.0.0.1", "198.51.100.7", segment))
        message = packet[20:22] + packets.checksum(packet[20:]).to_bytes(2, "big") + packet[24:]
        with namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.sendto(message, ("127.0.0.1", 0))


@BOTH
async def test_only_what_concerns_a_port_in_use_arrives(namespace, v6):
    shared = Receivers(v6=v6, open_socket=namespace.socket)
    send, receive = trio.open_memory_channel[int](100)
    shared.hold(8080)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run, lambda error, at: send.send_nowait(error.seq), lambda duplicate, at: None)
        send_error(namespace, v6, 9999, 1)
        send_error(namespace, v6, 8080, 2)
        assert await receive.receive() == 2
        shared.hold(9999)
        send_error(namespace, v6, 9999, 3)
        assert await receive.receive() == 3
        nursery.cancel_scope.cancel()
    shared.close()
    shared.close()


async def test_a_port_is_forgotten_some_time_after_its_last_trace(namespace, autojump_clock, monkeypatch):
    shared = Receivers(v6=False, open_socket=namespace.socket)

    async def never(*_args) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(receivers, "_receive", never)  # real sockets and a jumping clock do not mix
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run, None, None)
        shared.hold(8080)
        shared.hold(8080)
        shared.release(8080)
        await trio.sleep(100)
        assert shared.ports == {8080}
        shared.release(8080)
        assert shared.ports == {8080}
        await trio.sleep(25)
        assert shared.ports == set()
        nursery.cancel_scope.cancel()
    shared.close()


async def test_the_ports_remembered_are_bounded(namespace):
    shared = Receivers(v6=False, open_socket=namespace.socket)
    for port in range(1, 201):
        shared.hold(port)
    for port in range(1, 201):
        shared.release(port)
    assert len(shared.ports) == 64
    shared.close()


def test_without_permission_everything_opened_is_closed_again(namespace):
    opened = []

    def open_socket(family: int, kind: int, protocol: int) -> socket.socket:
        if family == socket.AF_PACKET:
            raise PermissionError(1, "Operation not permitted")
        opened.append(namespace.socket(family, kind, protocol))
        return opened[-1]

    with pytest.raises(PermissionError):
        Receivers(v6=False, open_socket=open_socket)
    assert len(opened) == 2
    assert [sock.fileno() for sock in opened] == [-1, -1]


async def test_a_packet_that_cannot_be_taken_in_ends_nothing(nursery):
    """And an error of the network is a pause."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    taken = []

    class Flaky:
        def __init__(self):
            self.errors = [OSError(errno.ENETDOWN, "Network is down")]

        def fileno(self):
            return ours.fileno()

        def recvmsg(self, *sizes):
            if self.errors:
                raise self.errors.pop()
            return ours.recvmsg(*sizes)

    def take(packet, ancillary, sender):
        if packet == b"odd":
            raise IndexError("a bug")
        taken.append(packet)
        arrived.set()

    with ours, theirs:
        ours.setblocking(False)
        arrived = trio.Event()
        theirs.send(b"odd")
        theirs.send(b"good")
        with capture_logs() as logs:
            nursery.start_soon(receivers._receive, Flaky(), take)
            with trio.fail_after(20):
                await arrived.wait()
        nursery.cancel_scope.cancel()
    assert taken == [b"good"]
    assert [line["event"] for line in logs] == [
        "cannot receive answers to probes for a moment",
        "cannot take in a packet",
    ]


def test_a_filter_that_the_kernel_refuses_holds_no_port(namespace, monkeypatch):
    shared = Receivers(v6=False, open_socket=namespace.socket)

    def refuse(sock, program):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(receivers, "attach_filter", refuse)
            with pytest.raises(OSError, match="allocate"):
                shared.hold(8080)
        assert shared.ports == set()
        shared.hold(8080)
        assert shared.ports == {8080}
    finally:
        shared.close()
