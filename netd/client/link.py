"""One connection of a client: how it is made, and its bytes. TCP or a Unix socket, with TLS or without.

    link = await dial(address, options)          DaemonUnreachable when it cannot be made within connect_timeout
    await link.send(data)                        one task
    await link.receive()                         one task; b"" at the end

Rules:
- TLS is a layer without I/O of its own, so that a half-closed connection, and a goodbye that nobody waits for, are the
  same with and without it. Only the sending task asks it for ciphertext, or records could leave in the wrong order;
- one sends at a time: `send_nowait` is for when no `send` is under way, and what the kernel does not take of it goes
  first with the next `send`;
- a name is looked up for every connection anew, and its addresses are tried as RFC 8305 says; bound to an interface or
  a port, one after the other.

Left out: messages (framed_wire.py, broker_wire.py), and the life of a client across connections (connection.py).
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from netd.client.options import ClientTls, Tcp, Unix
from netd.errors import DaemonUnreachable, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.options import ClientOptions
    from netd.net.tls import TlsLayer

CHUNK = 65536
"""Bytes of one read."""
_OTHER_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH (openssl/x509_vfy.h)."""
MAX_ANSWERS = 256 * 1024
"""Bytes that TLS wants to say on its own account before they are sent; more is a peer that plays games."""


class Link:
    """A connection that can be used."""

    def __init__(self, stream: trio.SocketStream, layer: TlsLayer | None = None, received: bytes = b"") -> None:
        self._stream = stream
        self._layer = layer
        self._received = received
        self._parted = False
        self._rest = b""
        """What `send_nowait` left over, as it goes over the wire."""
        self._broken: OSError | None = None
        """What `send_nowait` met. The kernel tells it once."""
        self.opened = self.heard = trio.current_time()
        """When it was made, and when something last arrived."""
        self.wake: Callable[[], None] = _nothing
        """Called when TLS itself has something to send: the sending task should call `send`, if only with no data."""

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.socket

    @property
    def tls(self) -> bool:
        return self._layer is not None

    @property
    def torn(self) -> bool:
        """Whether an end may be somebody else's doing: TLS has a goodbye of its own (RFC 8446 section 6.1)."""
        return self._layer is not None and not self._layer.closed

    @property
    def unsent(self) -> bool:
        """Whether `send` has something to do without being given anything: what `send_nowait` left to it, or what the
        TLS layer has to say on its own account.
        """
        return bool(self._rest or self._broken) or (self._layer is not None and self._layer.pending > 0)

    @property
    def untaken(self) -> int | None:
        """Bytes that the kernel has and the peer has not (SIOCOUTQ, tcp(7)); None where nobody can tell."""
        try:
            import fcntl
            import termios

            answer = fcntl.ioctl(self._stream.socket.fileno(), termios.TIOCOUTQ, bytes(4))
        except (ImportError, OSError, ValueError):  # it is Linux' word for it; the last: the socket is closed
            return None
        return int.from_bytes(answer, sys.byteorder)

    async def send(self, data: bytes) -> None:
        """All of it, or trio.BrokenResourceError. Cancelled, the connection cannot be used any more."""
        if isinstance(self._broken, ssl.SSLError):
            raise self._broken
        if self._broken is not None:
            raise trio.BrokenResourceError("cannot send: the connection broke") from self._broken
        data = self._outgoing(data)
        if data:
            await self._stream.send_all(data)

    def send_nowait(self, data: bytes) -> None:
        """What of it the kernel takes now; the rest, and what went wrong, are left to the next `send`."""
        try:
            self._rest = self._outgoing(data)
            if self._rest:
                self._rest = self._rest[os.write(self._stream.socket.fileno(), self._rest) :]
        except BlockingIOError:
            return
        except OSError as error:  # ssl.SSLError is one
            self._broken = error

    def _outgoing(self, data: bytes) -> bytes:
        """What goes over the wire now."""
        rest, self._rest = self._rest, b""
        if self._layer is not None:
            if data:
                self._layer.encrypt([data])
            data = self._layer.outgoing()
        return rest + data if rest else data

    async def receive(self) -> bytes:
        """What has arrived, at least a byte; b"" when the peer said that no more comes.

        After our own goodbye it is ciphertext that nobody can use: only that it ends is of interest then.
        """
        if self._received:
            data, self._received = self._received, b""
            return data
        while True:
            data = bytes(await self._stream.receive_some(CHUNK))
            self.heard = trio.current_time()
            if self._layer is None or self._parted or not data:
                return data
            plain = self._layer.receive(data)
            if self._layer.pending > MAX_ANSWERS:
                raise ProtocolError(f"cannot go on: the peer has TLS answer it with more than {MAX_ANSWERS} bytes")
            if self._layer.pending:
                self.wake()
            if plain or self._layer.closed:
                return plain

    async def say_goodbye(self) -> None:
        """Nothing more comes from us. The peer can still send."""
        if self._layer is not None:
            self._layer.goodbye()
            await self.send(b"")
        self._parted = True
        await self._stream.send_eof()

    def close(self) -> None:
        """At once."""
        self._stream.socket.close()


def _nothing() -> None:
    pass


# --- making one -------------------------------------------------------------------------------------------------------


async def dial(address: Tcp | Unix, options: ClientOptions, *, plain: str = "leave it out") -> Link:
    """Connect and, for TLS, shake hands. `plain`: how a person asks for a connection without it."""
    connected = False
    try:
        with trio.fail_after(options.connect_timeout):
            stream = await _connect(address, options)
            connected = True
            try:
                return await _secured(stream, address, options, plain)
            except BaseException:
                stream.socket.close()
                raise
    except trio.TooSlowError:
        what, advice = ("use TLS with", f"; if it has none, {plain}") if connected else ("connect to", "")
        raise DaemonUnreachable(
            f"cannot {what} {address}: no answer within {options.connect_timeout:g} s{advice}"
        ) from None
    except OSError as error:
        raise DaemonUnreachable(f"cannot connect to {address}: {_reasons(error)}") from error


async def _connect(address: Tcp | Unix, options: ClientOptions) -> trio.SocketStream:
    if isinstance(address, Unix):
        _no_binding(address, options)
        return await _connect_unix(address)
    if options.interface is None and options.local_address is None and not options.local_port:
        stream = await trio.open_tcp_stream(address.host, address.port)
    else:
        stream = await _connect_bound(address, options)
    if options.keepalive is not None:
        _keep_alive(stream.socket, options.keepalive)
    return stream


async def _connect_unix(address: Unix) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(address.path))
        return trio.SocketStream(sock)
    except BaseException:
        sock.close()
        raise


async def _connect_bound(address: Tcp, options: ClientOptions) -> trio.SocketStream:
    """One address of the peer after the other: each attempt needs the very port and interface for itself."""
    failures: list[OSError] = []
    found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, where in found:
        plain = socket.socket(family, kind, protocol)
        try:
            plain.setblocking(False)
            _bind(plain, options)
            sock = trio.socket.from_stdlib_socket(plain)
            await sock.connect(where)
            return trio.SocketStream(sock)
        except OSError as error:
            plain.close()
            failures.append(error)
        except BaseException:
            plain.close()
            raise
    raise OSError("no address could be reached") from ExceptionGroup("every attempt", failures)


def _bind(sock: socket.socket, options: ClientOptions) -> None:
    from netd.net.interfaces import bind_to_address, bind_to_interface

    address, port = options.local_address, options.local_port
    if options.interface is not None:
        bind_to_interface(sock, options.interface, port=0 if address is not None else port)
    if address is not None:
        bind_to_address(sock, address, port=port)
    elif options.interface is None:
        bind_to_address(sock, "::" if sock.family == socket.AF_INET6 else "0.0.0.0", port=port)


def _no_binding(address: Unix, options: ClientOptions) -> None:
    for name in ("interface", "local_address", "local_port"):
        if getattr(options, name):
            raise ProtocolError(f"cannot connect to {address} with {name}: that is for TCP", origin="local")


def _keep_alive(sock: trio.socket.SocketType, after: float) -> None:
    """Ask the kernel to probe a silent connection: after so many seconds, then three times as often."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(after)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(after / 3)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _reasons(error: OSError) -> str:
    """Why, in the kernel's words: trio says only that every attempt failed, and what each met stands behind that."""
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    group = error.__cause__
    met = [one for one in group.exceptions if isinstance(one, OSError)] if isinstance(group, ExceptionGroup) else []
    return ", ".join(dict.fromkeys(os.strerror(one.errno).lower() if one.errno else str(one) for one in met or [error]))


# --- TLS --------------------------------------------------------------------------------------------------------------


async def _secured(stream: trio.SocketStream, address: Tcp | Unix, options: ClientOptions, plain: str) -> Link:
    if options.tls is None or options.tls is False:
        return Link(stream)
    from netd.net.tls import TlsLayer, handshake

    context, name = tls_context(options)
    if name is None and isinstance(address, Tcp):
        name = address.host
    if name is None and context.check_hostname:
        raise ProtocolError(f"cannot verify the certificate of {address}: give server_name", origin="local")
    layer = TlsLayer(context, server_side=False, server_hostname=name)
    try:
        received = await handshake(layer, stream)
    except ProtocolError as error:
        why = str(error).rstrip(".")
        raise DaemonUnreachable(f"cannot use TLS with {address}: {why}{_advice(error, plain)}") from error
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        why = _reasons(cause) if isinstance(cause, OSError) else str(error)
        raise DaemonUnreachable(f"cannot use TLS with {address}: {why}{_advice(None, plain)}") from error
    return Link(stream, layer, received)


def _advice(error: ProtocolError | None, plain: str) -> str:
    """What a person may try after a handshake that failed."""
    reason = error.__context__ if error is not None else None
    if isinstance(reason, ssl.SSLCertVerificationError):
        if reason.verify_code in _OTHER_NAME:
            return "; give the name that it has (server_name, --server-name)"
        return "; name who signed it (ClientTls(ca=...), --ca)"
    if isinstance(reason, ssl.SSLError):
        return f"; {plain}" if reason.reason == "WRONG_VERSION_NUMBER" else ""
    return f"; if it has none, {plain}"


def tls_context(options: ClientOptions) -> tuple[ssl.SSLContext, str | None]:
    """The context of this client, and the name to expect if it is not the host's."""
    tls = options.tls
    if isinstance(tls, ssl.SSLContext):
        return tls, options.server_name
    chosen = (
        tls if isinstance(tls, ClientTls) else ClientTls(ca=Path(tls)) if isinstance(tls, str | Path) else ClientTls()
    )
    try:
        context = ssl.create_default_context(cafile=chosen.ca)
        if chosen.certificate is not None:
            context.load_cert_chain(chosen.certificate, chosen.key)
    except OSError as error:  # a missing file, and ssl.SSLError for one that holds something else
        names = ", ".join(str(path) for path in (chosen.ca, chosen.certificate, chosen.key) if path is not None)
        raise ProtocolError(f"cannot use the TLS files {names}: {error.strerror or error}", origin="local") from error
    if not chosen.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context, options.server_name or chosen.server_name
