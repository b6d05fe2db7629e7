"""Connections that leave by a certain interface, or from a certain address and port.

    SO_BINDTODEVICE   the socket sends and receives by that interface only (Linux 5.7 and later: without privilege)
    bind(2)           the fallback: an address of the interface's; routing may still choose another way out

Rules: nothing is bound that does not exist (no IP_FREEBIND), and errors name what there is instead.

Source: socket(7), rtnetlink(7), linux/if_addr.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBi")
_ATTRIBUTE = struct.Struct("=HH")


def addresses_of(name: str) -> list[str]:
    """The IP addresses of an interface, in the kernel's order; link-local IPv6 with its scope ("fe80::1%eth0").

    Raises OSError if there is no such interface.
    """
    index = _index(name, f"find the addresses of interface {name!r}")
    found = []
    for family, at, packed in _dump():
        if at == index:
            text = str(ipaddress.ip_address(packed))
            link_local = family == socket.AF_INET6 and ipaddress.IPv6Address(packed).is_link_local
            found.append(f"{text}%{name}" if link_local else text)
    return found


def bind_to_interface(sock: socket.socket, name: str, *, port: int = 0) -> None:
    """Have a TCP or UDP socket that is not connected yet use this interface, and this local port (0: any).

    Raises OSError if there is no such interface, or without privilege, no address on it that the socket could have.
    """
    doing = f"bind to interface {name!r}"
    _index(name, doing)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")
    except PermissionError:
        own = [one for one in addresses_of(name) if (":" in one) == (sock.family == socket.AF_INET6)]
        if not own:
            kind = "IPv6" if sock.family == socket.AF_INET6 else "IPv4"
            raise OSError(
                f"cannot {doing}: it has no {kind} address, and the device itself needs CAP_NET_RAW"
            ) from None
        bind_to_address(sock, own[0], port=port)
        return
    except OSError as error:
        raise OSError(f"cannot {doing}: {_why(error)}") from error
    if port:
        bind_to_address(sock, "::" if sock.family == socket.AF_INET6 else "0.0.0.0", port=port)


def bind_to_address(sock: socket.socket, address: str, *, port: int = 0) -> None:
    """Have a socket that is not connected yet use this local address ("fe80::1%eth0" too) and port (0: any).

    Raises OSError.
    """
    place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    try:
        [(*_, target)] = socket.getaddrinfo(
            address, port, sock.family, sock.type, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )[:1]
    except (socket.gaierror, UnicodeError):
        kind = "IPv6" if sock.family == socket.AF_INET6 else "IPv4"
        raise OSError(f"cannot bind to {place}: {address!r} is no {kind} address") from None
    # a port that connections of earlier are still in TIME_WAIT on may be used again at once
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(target)
    except OSError as error:
        raise OSError(f"cannot bind to {place}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface has this address"
    if error.errno == errno.EADDRINUSE:
        return "it is in use already"
    return os.strerror(error.errno or 0).lower()


def _index(name: str, doing: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        there = ", ".join(sorted(one for _, one in socket.if_nameindex()))
        raise OSError(f"cannot {doing}: no such interface (there are: {there})") from None


def _dump() -> list[tuple[int, int, bytes]]:
    """Every address of the host: (family, interface index, packed address)."""
    found: list[tuple[int, int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        netlink.send(
            _HEADER.pack(_HEADER.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + request
        )
        while True:
            data = netlink.recv(1 << 16)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                body = data[at + _HEADER.size : at + length]
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    raise OSError(-code, f"cannot list addresses: {os.strerror(-code).lower()}")
                if kind == _RTM_NEWADDR and (one := _parse(body)) is not None:
                    found.append(one)
                at += max(_HEADER.size, length + 3 & ~3)


def _parse(body: bytes) -> tuple[int, int, bytes] | None:
    """One RTM_NEWADDR: IFA_LOCAL where there is one (the other end of a point-to-point link is IFA_ADDRESS)."""
    family, _, _, _, index = _IFADDRMSG.unpack_from(body)
    size = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family)
    values: dict[int, bytes] = {}
    at = _IFADDRMSG.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        values[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    packed = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS))
    return (family, index, packed) if packed is not None and len(packed) == size else None
