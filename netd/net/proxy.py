"""The PROXY protocol, version 2: who the client of a proxied connection is.

    signature (12), version and command, family, length (16 bits), addresses, TLVs

Rules:
- only connections from trusted networks are looked at, and those must begin with a header: a client that may say where
  it comes from could be anybody (HAProxy's proxy-protocol.txt, section 5);
- exactly the header is read: what follows it belongs to TLS or to the protocol;
- LOCAL, and families that are not known here, are the proxy's own connections: the peer is who it seems to be;
- version 1 is text, and refused by name.

Left out: TLVs (skipped), so their checksum too. Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netd.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio

    from netd.section import IPNetwork

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_TLVS: Final = 4096
"""Bytes after the addresses; a header with more is refused."""
_FIXED: Final = 16
_LONGEST_ADDRESSES: Final = 216
_INET, _INET6, _UNIX = 1, 2, 3
_LENGTHS = {_INET: 12, _INET6: 36, _UNIX: _LONGEST_ADDRESSES}


@dataclass(frozen=True, slots=True)
class Proxied:
    """What a header says. None: the connection is the proxy's own, or of a family without addresses."""

    source: tuple[str, int] | None
    """The client. A Unix socket is (path, 0)."""
    destination: tuple[str, int] | None
    """Where the client connected to."""


class ProxyHeader:
    """Collects the first bytes of a connection until the header is whole."""

    def __init__(self) -> None:
        self._data = b""

    @property
    def missing(self) -> int:
        """Bytes that are surely part of the header and have not arrived; 0 when it is whole."""
        if len(self._data) < _FIXED:
            return _FIXED - len(self._data)
        return max(0, _FIXED + self._length() - len(self._data))

    def receive(self, data: bytes) -> tuple[Proxied | None, bytes]:
        """(What the header says, the bytes after it), or (None, b"") while it is not whole. Raises ProtocolError.

        Bytes that cannot become a header are refused at once.
        """
        self._data += data
        start = self._data[: len(SIGNATURE)]
        if not SIGNATURE.startswith(start):
            raise ProtocolError(self._no_header())
        if len(self._data) < _FIXED:
            return None, b""
        if self._data[12] >> 4 != 2:
            raise ProtocolError(f"cannot read the PROXY header: version {self._data[12] >> 4} is not 2")
        command, length = self._data[12] & 15, self._length()
        if command > 1:
            raise ProtocolError(f"cannot read the PROXY header: command {command} is neither LOCAL nor PROXY")
        if length > _LONGEST_ADDRESSES + MAX_TLVS:
            raise ProtocolError(
                f"cannot read the PROXY header: {length} bytes are more than {_LONGEST_ADDRESSES + MAX_TLVS}"
            )
        if len(self._data) < _FIXED + length:
            return None, b""
        body, rest = self._data[_FIXED : _FIXED + length], self._data[_FIXED + length :]
        return (_addresses(self._data[13] >> 4, body) if command else Proxied(None, None)), rest

    def _length(self) -> int:
        (length,) = struct.unpack_from("!H", self._data, 14)
        return int(length)

    def _no_header(self) -> str:
        if self._data.startswith(b"PROXY"):
            return "cannot read the PROXY header: it is of version 1, and version 2 is needed"
        return f"cannot find a PROXY header: the connection begins with {self._data[:12]!r}"


def _addresses(family: int, body: bytes) -> Proxied:
    if family not in _LENGTHS:
        return Proxied(None, None)
    if len(body) < _LENGTHS[family]:
        raise ProtocolError(
            f"cannot read the PROXY header: {len(body)} bytes are too few for its addresses ({_LENGTHS[family]})"
        )
    if family == _UNIX:
        source, destination = (part.split(b"\0")[0].decode("utf-8", "replace") for part in (body[:108], body[108:216]))
        return Proxied((source, 0), (destination, 0))
    size = 4 if family == _INET else 16
    source, destination = (_text(body[at : at + size]) for at in (0, size))
    ports = struct.unpack_from("!HH", body, 2 * size)
    return Proxied((source, ports[0]), (destination, ports[1]))


def _text(packed: bytes) -> str:
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def trusted(networks: Iterable[IPNetwork], address: str) -> bool:
    """Whether a peer at this address may say who its client is.

    Whatever is no IP address is the peer of a Unix socket, whose permissions let it in: trusted if anybody is.
    """
    networks = list(networks)
    if not networks:
        return False
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks)


async def read_header(stream: trio.abc.ReceiveStream) -> Proxied:
    """Read exactly the header from a connection that begins with one; the deadline is the caller's.

    Raises ProtocolError for anything else, the end of the connection included, and what the stream raises.
    """
    header = ProxyHeader()
    while True:
        data = bytes(await stream.receive_some(header.missing or 1))
        if not data:
            raise ProtocolError("cannot read the PROXY header: the connection ended within it")
        proxied, _ = header.receive(data)
        if proxied is not None:
            return proxied
