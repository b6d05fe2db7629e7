"""What the framed service acquires before it serves: listeners, certificates, keys, codecs, verifiers.

Rule: everything that can fail fails here, as PrepareFailed with a sentence, and what was acquired is given back.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from netd.errors import NetdError, PrepareFailed
from netd.net.certificates import Certificate
from netd.net.linux import TCP_SAVE_SYN
from netd.services.framed.arrival import load_verifier
from netd.services.framed.keys import KeyFiles
from netd.wire.codecs import codec

if TYPE_CHECKING:
    from netd.runtime.listeners import Listener
    from netd.runtime.service import Context
    from netd.services.framed.arrival import Verifier
    from netd.services.framed.config import FramedConfig, FramedListen
    from netd.wire.codecs import Codec


class PreparedFramed:
    """What `prepare` acquired: bound listeners, certificates, keys, codecs, verifiers."""

    def __init__(self, context: Context) -> None:
        self.ways: list[PreparedListener] = []
        self._context = context

    def close(self) -> None:
        self._context.listeners.release(abandon=True)


class PreparedListener(NamedTuple):
    """One listener, with what its clients need."""

    listener: Listener
    listen: FramedListen
    certificate: Certificate | None
    keys: KeyFiles
    verifier: Verifier | None
    codec: Codec | None


async def prepare(config: FramedConfig, context: Context) -> PreparedFramed:
    """Acquire everything that can fail. Raises PrepareFailed."""
    prepared = PreparedFramed(context)
    try:
        for number, listen in enumerate(config.listen):
            prepared.ways.append(await _prepare_one(listen, number, context))
    except BaseException:
        prepared.close()
        raise
    return prepared


async def _prepare_one(listen: FramedListen, number: int, context: Context) -> PreparedListener:
    certificate = None
    if listen.tls is not None:
        certificate = await trio.to_thread.run_sync(partial(Certificate, listen.tls, number, service="framed"))
    keys = await trio.to_thread.run_sync(KeyFiles, listen.keys, number)
    verifier = await trio.to_thread.run_sync(load_verifier, listen.verifier)
    spoken = None if listen.codec == "auto" else await trio.to_thread.run_sync(_codec, listen.codec)
    options = [] if listen.address.startswith("unix:") else [(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)]
    listener = await context.listeners.open(listen, options=options)
    return PreparedListener(listener, listen, certificate, keys, verifier, spoken)


def _codec(name: str) -> Codec:
    try:
        return codec(name)
    except (NetdError, ImportError, AttributeError) as error:
        raise PrepareFailed("framed", f"cannot use codec {name!r}: {error}") from error
