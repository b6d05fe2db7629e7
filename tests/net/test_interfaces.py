"""Binding to interfaces and addresses: on loopback, and in a namespace with two ways out."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from pyroute2 import IPRoute

from netd.net import interfaces
from netd.net.interfaces import addresses_of, bind_to_address, bind_to_interface
from tests.support import netns
from tests.support.netns import Namespace

needs_namespaces = pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))


def test_the_addresses_of_loopback():
    assert "127.0.0.1" in addresses_of("lo")


def test_an_interface_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        OSError, match=r"^cannot find the addresses of interface 'wg9': no such interface \(there are: .*lo"
    ):
        addresses_of("wg9")
    with socket.socket() as sock, pytest.raises(OSError, match=r"^cannot bind to interface 'wg9': no such interface"):
        bind_to_interface(sock, "wg9")
    with socket.socket() as sock, pytest.raises(OSError, match="no such interface"):
        bind_to_interface(sock, "")


def test_a_local_address_and_port():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as free:
        free.bind(("127.0.0.9", 0))
        port = free.getsockname()[1]
        free.close()
        with socket.socket() as sock:
            bind_to_address(sock, "127.0.0.9", port=port)
            sock.connect(listener.getsockname())
            peer, address = listener.accept()
            with peer:
                assert address == ("127.0.0.9", port)


@pytest.mark.parametrize(
    ("family", "address", "why"),
    [
        (socket.AF_INET, "192.0.2.1", "cannot bind to 192.0.2.1:0: no interface has this address"),
        (socket.AF_INET, "::1", r"cannot bind to \[::1\]:0: '::1' is no IPv4 address"),
        (socket.AF_INET6, "127.0.0.1", "cannot bind to 127.0.0.1:0: '127.0.0.1' is no IPv6 address"),
        (socket.AF_INET, "localhost", "cannot bind to localhost:0: 'localhost' is no IPv4 address"),
        (socket.AF_INET, "x" * 300, "is no IPv4 address"),
    ],
)
def test_addresses_that_cannot_be_had(family, address, why):
    with socket.socket(family) as sock, pytest.raises(OSError, match=why):
        bind_to_address(sock, address)


def test_a_port_that_somebody_listens_on():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot bind to 127.0.0.1:{port}: it is in use already"):
            bind_to_address(sock, "127.0.0.1", port=port)


def test_loopback_as_an_interface():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
        bind_to_interface(sock, "lo")
        sock.connect(listener.getsockname())
        assert sock.getpeername() == listener.getsockname()


class Refusing(socket.socket):
    """A kernel that lets nobody bind to a device."""

    def setsockopt(self, *arguments):
        if arguments[1] == socket.SO_BINDTODEVICE:
            raise PermissionError(1, "Operation not permitted")
        return super().setsockopt(*arguments)


def test_without_privilege_an_address_of_the_interface_serves():
    with Refusing() as sock:
        bind_to_interface(sock, "lo")
        assert sock.getsockname()[0] == "127.0.0.1"


def test_without_privilege_and_without_an_address(monkeypatch):
    monkeypatch.setattr(interfaces, "addresses_of", lambda name: ["::1"])
    with Refusing() as sock, pytest.raises(OSError, match="cannot bind to interface 'lo': it has no IPv4 address"):
        bind_to_interface(sock, "lo")


@needs_namespaces
def test_the_interface_decides_where_a_connection_comes_from():
    with closing(Namespace("two ways")) as space:

        def build() -> None:
            with IPRoute() as route:
                for number, name in enumerate(("one", "two"), 1):
                    route.link("add", ifname=name, kind="veth", peer={"ifname": f"peer{number}"})
                    route.link("set", index=route.link_lookup(ifname=f"peer{number}")[0], state="up")
                    index = route.link_lookup(ifname=name)[0]
                    route.addr("add", index=index, address=f"10.1.{number}.1", prefixlen=24)
                    route.link("set", index=index, state="up")
                route.addr("add", index=route.link_lookup(ifname="two")[0], address="fd00::2", prefixlen=64, flags=2)

        def ask() -> tuple[list[str], str, str]:
            with socket.socket() as by_name, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
                bind_to_interface(by_name, "two", port=4000)
                device = by_name.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
                assert by_name.getsockname() == ("0.0.0.0", 4000)
                bind_to_interface(datagrams, "two")
                datagrams.connect(("10.1.2.9", 9))
                return addresses_of("two"), device, datagrams.getsockname()[0]

        space.call(build)
        addresses, device, source = space.call(ask)
    assert addresses[0] == "10.1.2.1"
    assert "fd00::2" in addresses
    assert any(one.startswith("fe80::") and one.endswith("%two") for one in addresses) or len(addresses) == 2
    assert (device, source) == ("two", "10.1.2.1")
