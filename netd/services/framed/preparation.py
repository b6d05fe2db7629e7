"""What the framed service acquires before it serves: listeners and certificates, keys, codecs, verifiers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from netd.errors import NetdError, PrepareFailed
from netd.runtime.service import refusals
from netd.services.framed import keys
from netd.services.framed.arrival import load_verifier
from netd.services.framed.keys import KeyFiles
from netd.sessions.preparation import Prepared, certificate_of, check_tls, listener_of, prepare_each
from netd.wire.codecs import codec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netd.errors import ConfigProblem
    from netd.net.certificates import Certificate
    from netd.runtime.listeners import Listener
    from netd.runtime.service import Context
    from netd.services.framed.arrival import Verifier
    from netd.services.framed.config import FramedConfig, FramedListen
    from netd.wire.codecs import Codec


class PreparedListener(NamedTuple):
    """One listener, with what its clients need."""

    listener: Listener
    listen: FramedListen
    certificate: Certificate | None
    keys: KeyFiles
    verifier: Verifier | None
    codec: Codec | None


PreparedFramed = Prepared[PreparedListener]


async def prepare(config: FramedConfig, context: Context) -> PreparedFramed:
    """Acquire everything that can fail. Raises PrepareFailed."""
    return await prepare_each(config.listen, context, _prepare_one)


async def _prepare_one(listen: FramedListen, number: int, context: Context) -> PreparedListener:
    certificate = await certificate_of(listen, number, "framed")
    key_files = await trio.to_thread.run_sync(KeyFiles, listen.keys, number)
    verifier = await trio.to_thread.run_sync(verifier_of, listen)
    spoken = await trio.to_thread.run_sync(codec_of, listen)
    return PreparedListener(await listener_of(listen, context), listen, certificate, key_files, verifier, spoken)


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
        yield from check_tls(listen, number, "framed")
        for index, file in enumerate(listen.keys):
            yield from refusals(f"{here}.keys.{index}", partial(keys.load, [file]))
        yield from refusals(f"{here}.verifier", partial(verifier_of, listen))
        yield from refusals(f"{here}.codec", partial(codec_of, listen))
