"""Connections that netd opens in order to trace inside them (`netctl trace run HOST:PORT`).

The harmless message is an HTTP HEAD request, plain or inside TLS. What the server answers is read and thrown away; a
server that speaks another protocol will close sooner or later, and the trace ends with what was found until then.

Rules: nothing secret is sent, so the certificate is not verified; replies are read only as far as they are there.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Literal

import trio

from netd.net.paths.looped import read_queue

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_TLS_PORTS = frozenset({443, 465, 563, 636, 853, 989, 990, 993, 994, 995, 5061, 5349, 6697, 8443, 8883, 9443})
"""Where "auto" takes TLS for granted (IANA service names ending in "s", and the customary alternatives of 443)."""
_LEAST = 127
"""Bytes of a request: three attempts at 32 TTLs and room to spare."""
_PATIENCE = 10.0
"""Seconds for connecting and shaking hands."""
_MOST_READ = 1 << 20
"""Bytes of replies read before one message."""


class OutgoingCarrier:
    """A connection of our own. A `Carrier`; `async with` closes it."""

    saved_syn = b""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], host: str) -> None:
        self._stream = stream
        self._transport = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream
        inner = self._transport.socket
        # a second descriptor of the same kernel socket: options and error queue are shared
        self._socket = socket.fromfd(inner.fileno(), inner.family, inner.type, inner.proto)
        self._request = _head_request(host)

    @property
    def socket(self) -> socket.socket:
        return self._socket

    @property
    def address(self) -> tuple[str, int]:
        """The peer that answered: (address, port)."""
        name = self._transport.socket.getpeername()
        return name[0], name[1]

    async def carry(self) -> bool:
        self._discard()
        await self._stream.send_all(self._request)
        return True

    def read_errors(self) -> bytes | None:
        return read_queue(self._socket)

    def _discard(self) -> None:
        """Drop what has arrived, or the peer's window would close on a long series of rounds.

        Under TLS it is dropped undecrypted: nothing after the handshake is ever read through the TLS layer.
        """
        left = _MOST_READ
        self._socket.setblocking(False)
        while left > 0:
            try:
                data = self._socket.recv(min(left, 1 << 16))
            except BlockingIOError:
                return
            if not data:
                raise trio.BrokenResourceError("cannot go on: the peer closed the connection")
            left -= len(data)

    async def aclose(self) -> None:
        """Close without ceremony; may be called twice."""
        self._socket.close()
        await trio.aclose_forcefully(self._stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def open_carrier(host: str, port: int, *, send: Literal["auto", "http", "tls"] = "auto") -> OutgoingCarrier:
    """Connect (RFC 8305, happy eyeballs) and, for TLS, shake hands. OSError when that fails or takes too long."""
    where = f"{host} port {port}"
    tls = send == "tls" or (send == "auto" and port in _TLS_PORTS)
    try:
        with trio.fail_after(_PATIENCE):
            transport = await _connect(host, port, where)
            try:
                if not tls:
                    return OutgoingCarrier(transport, host)
                stream = trio.SSLStream(transport, _anonymous(), server_hostname=host, https_compatible=True)
                await stream.do_handshake()
                return OutgoingCarrier(stream, host)
            except BaseException:
                await trio.aclose_forcefully(transport)
                raise
    except trio.TooSlowError:
        raise OSError(f"cannot connect to {where}: no answer in {_PATIENCE:g} s") from None
    except trio.BrokenResourceError as error:
        raise OSError(f"cannot shake hands with {where}: {error.__cause__ or error}") from error


async def _connect(host: str, port: int, where: str) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(host, port)
    except socket.gaierror as error:
        raise OSError(f"cannot look up {host!r}: {error.strerror}") from error
    except UnicodeError as error:
        raise OSError(f"cannot look up {host!r}: it is no host name") from error
    except OSError as error:
        # trio says only that all attempts failed; what each one met is in the group behind it
        group = error.__cause__
        alone = [error]
        met = (
            [one for one in group.exceptions if isinstance(one, OSError)]
            if isinstance(group, ExceptionGroup)
            else alone
        )
        # (trio puts the address before the reason: "Error connecting to (...): Connection refused")
        whys = dict.fromkeys(os.strerror(one.errno).lower() if one.errno else str(one) for one in met)
        raise OSError(f"cannot connect to {where}: {', '.join(whys)}") from error


def _anonymous() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _head_request(host: str) -> bytes:
    name = f"[{host}]" if ":" in host else host
    lines = [
        "HEAD / HTTP/1.1",
        f"Host: {name}",
        "User-Agent: netd (network path trace; sends HEAD requests only)",
        "Accept: */*",
        "Connection: keep-alive",
    ]
    request = "\r\n".join(lines) + "\r\n\r\n"
    missing = _LEAST - len(request)
    if missing > 0:
        lines.append("X-Padding: " + "0" * missing)
        request = "\r\n".join(lines) + "\r\n\r\n"
    return request.encode("ascii", errors="replace")
