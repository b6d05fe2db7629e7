"""What a FramedClient can be told besides what every client can (options.py): its peer, its codec and its frames. Pure
data, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from netd.client.options import ClientOptions, SharedOptions, Tcp, Unix, local_error
from netd.wire.codecs import Codec

DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_PORT = 9000
MAX_FRAME = 4 * 1024 * 1024
"""Bytes of one payload, inclusive: the wire's default."""

_ADDRESS = re.compile(r"^(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]\s]*)):(?P<port>\d{1,5})$")


def parse_address(address: str | tuple[str, int] | Path) -> Tcp | Unix:
    """Where to connect: "host:9000", "[::1]:9000", ":9000" (this machine), "unix:/run/x.sock", (host, port), a Path.

    ProtocolError with a sentence for the person who wrote it.
    """
    if isinstance(address, Path):
        return Unix(address)
    if isinstance(address, tuple):
        return Tcp(*address)
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path:
            raise local_error("cannot connect to 'unix:': a path has to follow")
        return Unix(Path(path))
    match = _ADDRESS.match(address)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise local_error(f'cannot connect to {address!r}: write "host:9000", "[::1]:9000" or "unix:/run/x.sock"')
    return Tcp(match["v6"] or match["host"] or "127.0.0.1", int(match["port"]))


class FramedOptions(SharedOptions, total=False):
    """The keywords of FramedClient; Options says what each means and its default."""

    codec: str | Codec
    framing: Literal["length", "none"]
    max_frame: int
    version: str | None
    signer: Any
    discard: bool


@dataclass(frozen=True, kw_only=True)
class Options(ClientOptions):
    """Every option of a FramedClient."""

    codec: str | Codec = "raw"
    """How values become payloads: raw, text, json, cbor, messagepack, an entry point's name, "module:attribute" or a
    Codec. In operations, "json" means JSON messages, anything else MessagePack."""
    framing: Literal["length", "none"] = "length"
    """"none": the raw stream; every chunk that arrives is a payload. Operations need frames."""
    max_frame: int = MAX_FRAME
    """Largest payload either way. A longer one is refused before it is sent; one announced by the peer ends the
    connection."""

    version: str | None = None
    """With `tags` or `signer`: send a handshake first, with this version."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the handshake, and of the session in operations."""
    signer: Any = None
    """Sign the handshake: an Ed25519 private key, or the path of its file (PKCS8, PEM or DER)."""
    discard: bool = False
    """Throw received plain payloads away: for whoever only sends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("max_frame")
        if self.max_frame > 0xFFFFFFFF:
            raise local_error(f"cannot use max_frame={self.max_frame}: a length field has 32 bits")
        if self.framing not in ("length", "none"):
            raise local_error(f"cannot use framing={self.framing!r}: it is length or none")

    @property
    def greets(self) -> bool:
        """Whether a handshake is the first frame."""
        return self.version is not None or bool(self.tags) or self.signer is not None
