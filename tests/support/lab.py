"""A laboratory of network namespaces: client - r1 - r2 - ... - rN - server, IPv4 and IPv6.

    with Lab(routers=5, silent={3}) as lab:
        listener = lab.server.socket()
        ...
        assert path == lab.hops(4)          # as seen from the server: rN first, r1 last

Link i joins node i (right side: 10.77.i.1, fd77:i::1) to node i+1 (left side: 10.77.i.2, fd77:i::2); node 0 is the
client, node N+1 the server. Every router knows two ways: the server's address to the right, all else to the left. So
the client namespace may speak for whole networks: 10.80.0.0/16 and fd80::/32 end there too (`crowd_address`).

What can be wrong with a path, by router number (r1 is next to the client):

    silent         never sends an ICMP error
    nat            masquerades what it forwards towards the server, the client included
    firewall       stateful: nothing new from the server's side, `ct state invalid drop`
    stock_limits   keeps the kernel's ICMP rate limits (the others have none); "all" for every router
    delay          seconds one way on every link (a TUN forwarder, see tests/support/forwarder.py)
    loss           {link: share of packets lost each way}, needs `delay`
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address
from pathlib import Path
from typing import Self

from pyroute2 import IPRoute

from tests.support import netns
from tests.support.netns import Namespace, why_no_rules

__all__ = ["Lab", "why_no_rules", "why_no_tun", "why_not"]

TUN = "/dev/net/tun"

_TUNSETIFF, _TUNSETPERSIST, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x400454CB, 0x0001, 0x1000
_IFA_F_NODAD = 0x02
_RTN_LOCAL, _HOST = 2, 254
_ROOT = Path(__file__).parents[2]

_NO_LIMITS = {
    "net.ipv4.icmp_ratelimit": 0,
    "net.ipv4.icmp_ratemask": 0,
    "net.ipv4.icmp_msgs_per_sec": 1_000_000,
    "net.ipv4.icmp_msgs_burst": 100_000,
    "net.ipv6.icmp.ratelimit": 0,
}
_FORWARDING = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv6.conf.all.forwarding": 1,
    "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.all.accept_dad": 0,
    "net.ipv6.conf.default.dad_transmits": 0,
    "net.ipv6.conf.all.disable_ipv6": 0,
    "net.ipv6.conf.default.disable_ipv6": 0,
}

_SILENT = """
table inet silent {
  chain output {
    type filter hook output priority 0;
    icmp type { time-exceeded, destination-unreachable } drop
    icmpv6 type { time-exceeded, destination-unreachable } drop
  }
}
"""
_NAT = """
table inet nat {
  chain post {
    type nat hook postrouting priority 100;
    oifname "right" masquerade
  }
}
"""
_FIREWALL = """
table inet firewall {
  counter invalid { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid counter name invalid drop
    ct state established,related accept
    iifname "left" accept
  }
}
"""


def why_no_tun() -> str | None:
    """Why links can have no delay here; None if they can."""
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"needs {TUN}, for links with delay: {error.strerror}"
    return None


def why_not() -> str | None:
    """Why not every lab can be built here, as a sentence for a skipped test; None if it can."""
    return netns.why_not() or why_no_tun()


class Lab:
    def __init__(
        self,
        routers: int = 5,
        *,
        silent: set[int] = frozenset(),
        nat: set[int] = frozenset(),
        firewall: set[int] = frozenset(),
        stock_limits: set[int] | str = frozenset(),
        delay: float = 0.0,
        loss: dict[int, float] | None = None,
    ) -> None:
        if not 1 <= routers <= 250:
            raise ValueError(f"cannot build a lab of {routers} routers: 1 to 250")
        if loss and not delay:
            raise ValueError("cannot lose packets without a delay: only the TUN forwarder does")
        if (silent or nat or firewall) and (reason := why_no_rules()):
            raise FileNotFoundError(reason)
        self.routers = routers
        self.nodes: list[Namespace] = []
        self._delay, self._loss = delay, loss or {}
        self._forwarders: list[subprocess.Popen] = []
        self._tuns: list[tuple[int, int, int]] = []
        self._limited = set(range(routers + 2)) if stock_limits == "all" else set(stock_limits)
        try:
            self._build()
            for rules, where in ((_SILENT, silent), (_NAT, nat), (_FIREWALL, firewall)):
                for number in where:
                    self.nodes[number].run(["nft", "-f", "-"], input=rules)
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Namespace:
        return self.nodes[0]

    @property
    def server(self) -> Namespace:
        return self.nodes[-1]

    @property
    def distance(self) -> int:
        """TTL at which a packet of the server reaches the client."""
        return self.routers + 1

    def address(self, node: int, side: str, version: int = 4) -> str:
        """The address of a node's interface "left" or "right"."""
        link, host = (node, 1) if side == "right" else (node - 1, 2)
        return f"10.77.{link}.{host}" if version == 4 else str(IPv6Address(f"fd77:{link:x}::{host}"))

    def client_address(self, version: int = 4) -> str:
        return self.address(0, "right", version)

    def server_address(self, version: int = 4) -> str:
        return self.address(self.routers + 1, "left", version)

    def hops(self, version: int = 4) -> list[str]:
        """The routers as the server sees them: each answers from its side that faces the server, nearest first."""
        return [self.address(number, "right", version) for number in range(self.routers, 0, -1)]

    def crowd_address(self, number: int, *, version: int = 4, one_prefix: bool) -> str:
        """An address of the client's for one of many (0..199): all in one /24 (/48), or each in its own.

        Bind to it (IPv6: with the sysctl ip_nonlocal_bind, which the client has).
        """
        if version == 4:
            return f"10.80.250.{number + 1}" if one_prefix else f"10.80.{number}.1"
        return str(IPv6Address(f"fd80:0:fff0::{number + 1:x}" if one_prefix else f"fd80:0:{number:x}::1"))

    def invalid_drops(self, router: int) -> int:
        """Packets that the firewall on this router dropped as invalid."""
        words = self.nodes[router].run(["nft", "list", "counter", "inet", "firewall", "invalid"]).stdout.split()
        return int(words[words.index("packets") + 1])

    def connect(
        self, version: int = 4, *, bind: str | None = None, server_options=(), client_options=(), port: int = 0
    ):
        """(server's socket, client's socket, the SYN as the server saw it): a TCP connection from client to server.

        Options are (level, option, value), set before the connection is made.
        """
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.server.socket(family) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, 27, 1)  # TCP_SAVE_SYN
            for option in server_options:
                listener.setsockopt(*option)
            listener.bind((self.server_address(version), port))
            listener.listen(1)
            client = self.client.socket(family)
            try:
                for option in client_options:
                    client.setsockopt(*option)
                if bind is not None:
                    client.bind((bind, 0))
                client.settimeout(10)
                client.connect(listener.getsockname()[:2])
                listener.settimeout(10)
                server, _ = listener.accept()
            except BaseException:
                client.close()
                raise
        for sock in (server, client):
            sock.setblocking(False)
        return server, client, server.getsockopt(socket.IPPROTO_TCP, 28, 128)

    @contextmanager
    def crowd(self, count: int, version: int = 4, *, one_prefix: bool):
        """Like `connect` for many clients at once: [(server's socket, client's socket, SYN), ...], by client number.

        Closed at the end of the context.
        """
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        clients: dict[str, socket.socket] = {}
        servers: dict[str, socket.socket] = {}
        with ExitStack() as stack:
            listener = stack.enter_context(self.server.socket(family))
            listener.setsockopt(socket.IPPROTO_TCP, 27, 1)  # TCP_SAVE_SYN
            listener.bind((self.server_address(version), 0))
            listener.listen(count)
            listener.settimeout(10)

            def connect() -> None:
                for number in range(count):
                    client = stack.enter_context(socket.socket(family))
                    client.setblocking(False)
                    address = self.crowd_address(number, version=version, one_prefix=one_prefix)
                    client.bind((address, 0))
                    client.connect_ex(listener.getsockname()[:2])
                    clients[address] = client

            self.client.call(connect)
            for _ in range(count):
                server, peer = listener.accept()
                stack.enter_context(server).setblocking(False)
                servers[peer[0]] = server
            listener.close()
            yield [
                (servers[address], client, servers[address].getsockopt(socket.IPPROTO_TCP, 28, 128))
                for address, client in clients.items()
            ]

    # --- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        last = self.routers + 1
        for number in range(last + 1):
            name = "client" if number == 0 else "server" if number == last else f"r{number}"
            node = Namespace(name)
            self.nodes.append(node)
            node.sysctl(_FORWARDING)
            if number not in self._limited:
                node.sysctl(_NO_LIMITS, optional=True)
        self.client.sysctl({"net.ipv6.ip_nonlocal_bind": 1})
        if self._delay:
            for link in range(last):
                left = self.nodes[link].call(_open_tun, "right")
                self._tuns.append((left, -1, link))
                self._tuns[-1] = (left, self.nodes[link + 1].call(_open_tun, "left"), link)
            self._start_forwarders()
        for number, node in enumerate(self.nodes):
            node.call(self._configure, number, last)

    def _configure(self, number: int, last: int) -> None:
        with IPRoute() as route:
            if number < last and not self._delay:
                # with different indices at both ends the kernel heeds a link coming up at once, else within a second
                peer = {"ifname": "left", "index": 10, "net_ns_fd": self.nodes[number + 1].fd}
                route.link("add", ifname="right", index=20, kind="veth", peer=peer)
            interfaces = {"lo": route.link_lookup(ifname="lo")[0]}
            for side, present in (("left", number > 0), ("right", number < last)):
                if not present:
                    continue
                index = interfaces[side] = route.link_lookup(ifname=side)[0]
                route.addr("add", index=index, address=self.address(number, side), prefixlen=24)
                route.addr("add", index=index, address=self.address(number, side, 6), prefixlen=64, flags=_IFA_F_NODAD)
            for index in interfaces.values():
                route.link("set", index=index, state="up")
        # a route needs its interface up at both ends; the left neighbour is configured before, the right one after
        if number > 0:
            self.nodes[number - 1].call(self._route, number - 1, last)
        if number == last:
            self._route(number, last)

    def _route(self, number: int, last: int) -> None:
        with IPRoute() as route:
            for version, everything, host in ((4, "0.0.0.0/0", 32), (6, "::/0", 128)):
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                right = self.address(number + 1, "left", version)
                if number == 0:
                    route.route("add", family=family, dst=everything, gateway=right)
                    crowd = "10.80.0.0/16" if version == 4 else "fd80::/32"
                    lo = route.link_lookup(ifname="lo")[0]
                    route.route("add", family=family, dst=crowd, oif=lo, type=_RTN_LOCAL, scope=_HOST, table=255)
                    continue
                left = self.address(number - 1, "right", version)
                route.route("add", family=family, dst=everything, gateway=left)
                if number < last - 1:
                    server = f"{self.server_address(version)}/{host}"
                    route.route("add", family=family, dst=server, gateway=right)

    def _start_forwarders(self) -> None:
        # two processes: every second link each, for one alone would be the bottleneck of a long chain
        for part in (self._tuns[::2], self._tuns[1::2]):
            if not part:
                continue
            links = [f"{left}:{right}:{self._loss.get(link, 0.0)}" for left, right, link in part]
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forwarder", str(self._delay), *links],
                pass_fds=[fd for left, right, _ in part for fd in (left, right)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_ROOT,
            )
            self._forwarders.append(process)
        for process in self._forwarders:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("cannot start the TUN forwarder")

    def close(self) -> None:
        """Take everything down. May be called twice, and when building failed."""
        for process in self._forwarders:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()
        self._forwarders.clear()
        for left, right, _ in self._tuns:
            for fd in (left, right):
                if fd >= 0:
                    os.close(fd)
        self._tuns.clear()
        for node in self.nodes:
            node.close()
        self.nodes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open_tun(name: str) -> int:
    fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
        # closing a device takes tens of milliseconds; this way it goes with its namespace, which nobody waits for
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(fd)
        raise
    return fd
