"""A listener's certificate: loaded in `prepare`, and taken anew when its files change.

Rules:
- whether the files changed is looked at for every connection (a stat call each), so that a renewed certificate needs no
  reload; connections that are there keep theirs;
- files that cannot be used leave the old certificate in place and raise a health warning until they can;
- with `client_ca`, clients have to show a certificate of these authorities (mutual TLS); without, none is asked for.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from netd.errors import PrepareFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.runtime.health import ServiceHealth
    from netd.section import Tls

_Stamp = tuple[tuple[int, int, int], ...]


def load(tls: Tls, *, service: str, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A server context with the certificate; `alpn` are the protocols it offers. Blocks. Raises PrepareFailed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        # a password callback of our own: without one OpenSSL asks for a key's passphrase on the terminal
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise PrepareFailed(
            service, f"cannot use certificate {str(tls.certificate)!r} with key {str(tls.key)!r}: {_why(error)}"
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ValueError) as error:
            raise PrepareFailed(
                service, f"cannot check clients against {str(tls.client_ca)!r}: {_why(error)}"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


class Certificate:
    """The certificate of one listener as it is now."""

    def __init__(self, tls: Tls, number: int, *, service: str, alpn: Sequence[str] = ()) -> None:
        """`number` tells the warnings of a service's listeners apart. Blocks. Raises PrepareFailed."""
        self._tls = tls
        self._service = service
        self._alpn = tuple(alpn)
        self._code = f"certificate.{number}"
        self._stamp = self._look()
        self._context = self._load()
        self._loading = trio.Lock()

    async def current(self, health: ServiceHealth) -> ssl.SSLContext:
        """The context for a new connection."""
        async with self._loading:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._context = await trio.to_thread.run_sync(self._load)
                    health.clear(self._code)
                except PrepareFailed as error:
                    health.warn(self._code, str(error), advice="replace the files; until then the old ones are used")
                self._stamp = stamp
        return self._context

    def _load(self) -> ssl.SSLContext:
        return load(self._tls, service=self._service, alpn=self._alpn)

    def _look(self) -> _Stamp:
        paths = [self._tls.certificate, self._tls.key]
        if self._tls.client_ca is not None:
            paths.append(self._tls.client_ca)
        try:
            files = [path.stat() for path in paths]
        except OSError:
            return ()  # loading says what is wrong
        return tuple((file.st_mtime_ns, file.st_size, file.st_ino) for file in files)
