"""A listener's certificate: loaded in `prepare`, and taken anew when its files change.

Rules:
- whether the files changed is looked at for every connection (two stat calls), so that a renewed certificate needs no
  reload; connections that are there keep theirs;
- files that cannot be used leave the old certificate in place and raise a health warning until they can.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trio

from netd.errors import PrepareFailed

if TYPE_CHECKING:
    from netd.runtime.health import ServiceHealth
    from netd.section import Tls

_Stamp = tuple[tuple[int, int, int], ...]


def load(tls: Tls) -> ssl.SSLContext:
    """A server context with the certificate. Blocks. Raises PrepareFailed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # a password callback of our own: without one OpenSSL asks for a key's passphrase on the terminal
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PrepareFailed(
            "trace", f"cannot use certificate {str(tls.certificate)!r} with key {str(tls.key)!r}: {why.lower()}"
        ) from None
    return context


class Certificate:
    """The certificate of one listener as it is now."""

    def __init__(self, tls: Tls, number: int) -> None:
        """`number` tells the listeners' warnings apart. Blocks. Raises PrepareFailed."""
        self._tls = tls
        self._code = f"certificate.{number}"
        self._stamp = self._look()
        self._context = load(tls)
        self._loading = trio.Lock()

    async def current(self, health: ServiceHealth) -> ssl.SSLContext:
        """The context for a new connection."""
        async with self._loading:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self._context = await trio.to_thread.run_sync(load, self._tls)
                    health.clear(self._code)
                except PrepareFailed as error:
                    health.warn(self._code, str(error), advice="replace the files; until then the old ones are used")
                self._stamp = stamp
        return self._context

    def _look(self) -> _Stamp:
        try:
            files = [path.stat() for path in (self._tls.certificate, self._tls.key)]
        except OSError:
            return ()  # loading says what is wrong
        return tuple((file.st_mtime_ns, file.st_size, file.st_ino) for file in files)
