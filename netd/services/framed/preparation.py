"""What the framed service acquires before it serves: listeners, certificates, keys, codecs, verifiers.

Rules:
- everything that can fail fails here, as PrepareFailed with a sentence, and what was acquired is given back;
- `check` asks the same functions, for who wants to know beforehand.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from netd.errors import NetdError, PrepareFailed
from netd.net import certificates
from netd.net.certificates import Certificate
from netd.net.linux import TCP_SAVE_SYN
from netd.runtime.service import refusals
from netd.services.framed import keys
from netd.services.framed.arrival import load_verifier
from netd.services.framed.keys import KeyFiles
from netd.wire.codecs import codec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.errors import ConfigProblem
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
    key_files = await trio.to_thread.run_sync(KeyFiles, listen.keys, number)
    verifier = await trio.to_thread.run_sync(verifier_of, listen)
    spoken = await trio.to_thread.run_sync(codec_of, listen)
    options = [] if listen.address.startswith("unix:") else [(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)]
    listener = await context.listeners.open(listen, options=options)
    return PreparedListener(listener, listen, certificate, key_files, verifier, spoken)


def codec_of(listen: FramedListen) -> Codec | None:
    """The codec that it names; None for "auto". Imports the user's module: blocks. Raises PrepareFailed."""
    if listen.codec == "auto":
        return None
    try:
        return codec(listen.codec)
    except (NetdError, ImportError, AttributeError) as error:
        raise PrepareFailed("framed", f"cannot use codec {listen.codec!r}: {error}") from error
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        why = f"it raised {type(error).__name__}: {error}"
        raise PrepareFailed("framed", f"cannot use codec {listen.codec!r}: {why}") from error


def verifier_of(listen: FramedListen) -> Verifier | None:
    """The function that it names, None if none. Imports the user's module: blocks. Raises PrepareFailed."""
    try:
        return load_verifier(listen.verifier)
    except PrepareFailed:
        raise
    except (Exception, SystemExit) as error:  # as above
        why = f"it raised {type(error).__name__}: {error}"
        raise PrepareFailed("framed", f"cannot use verifier {listen.verifier!r}: {why}") from error


def check(config: FramedConfig) -> Iterator[ConfigProblem]:
    """What `prepare` would refuse but for the listening itself. Blocks."""
    for number, listen in enumerate(config.listen):
        here = f"listen.{number}"
        if listen.tls is not None:
            yield from refusals(f"{here}.tls", partial(certificates.load, listen.tls, service="framed"))
        for index, file in enumerate(listen.keys):
            yield from refusals(f"{here}.keys.{index}", partial(keys.load, [file]))
        yield from refusals(f"{here}.verifier", partial(verifier_of, listen))
        yield from refusals(f"{here}.codec", partial(codec_of, listen))
