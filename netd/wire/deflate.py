"""permessage-deflate (RFC 7692): what is agreed on in the handshake, and messages compressed and back, sans-IO.

    agreed = negotiate(parse_extensions(header), settings)      server: None, or what to answer and to use
    agreed.answer                                               value of our Sec-WebSocket-Extensions
    pack, unpack = agreed.compressor(), agreed.decompressor()
    frame(TEXT, pack.message(payload), compressed=True); Decoder(limits, masked=True, inflate=unpack)

    accept(header, offered)                                     client: what `offer(offered)` was answered with

Rules:
- an offer with a parameter that is unknown, repeated or has a wrong value is declined, and the next one looked at
  (section 7); a header that is no list of extensions fails the handshake (RFC 6455 section 9.1);
- without context takeover of ours, a compressor keeps nothing between messages (a full flush) and may serve any number
  of connections; a decompressor is made for each message. An idle connection then costs nothing;
- what is decompressed is bounded while it is decompressed: past the bound it is 1009, and nothing was allocated for it.
  A message may have `MAX_FINAL` final blocks: each begins anew, at the price of some kilobytes looked at;
- what is not deflate is 1007: the data does not have the form that its type promises. RFC 7692 names no code.

Left out: a compressed message that ends within a block decompresses to what there is: zlib does not tell.
To look back across a final block into messages before: whoever sends one has ended its state, and so does zlib.
A window of 256 bytes to compress with: zlib has none (an offer that demands it is declined). To decompress it has.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from netd.errors import ProtocolError
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAME: Final = "permessage-deflate"
MAX_BITS: Final = 15
MAX_FINAL = 64
"""Blocks of one message that say to be the last (section 7.2.3.4)."""
MAX_EXTENSIONS = 64
"""Offers and parameters in one header."""

_TAIL = b"\0\0\xff\xff"
"""What ends a flush and is not sent, section 7.2.1."""
_EMPTY = b"\0"
"""A message of no bytes, section 7.2.3.6: what a flush of nothing comes to, without asking zlib."""
_WINDOW = 32768

Extension: TypeAlias = tuple[str, list[tuple[str, str | None]]]
"""A name, lower case, and its parameters in order; the value of one without is None."""

_CHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = _CHAR + "+"
_QUOTED = rf'"(?:\\?{_CHAR})++"'
"""A token again, once its quoted-pairs are read (section 9.1 of RFC 6455)."""
# possessive: what does not match is given up at once, however long it is
_VALUE = rf"(?:[ \t]*+=[ \t]*+(?:{_TOKEN}|{_QUOTED}))?+"
_ELEMENT = re.compile(rf"[ \t]*+(?:({_TOKEN})((?:[ \t]*+;[ \t]*+{_TOKEN}{_VALUE})*+))?+[ \t]*+(?:,|\Z)")
_PARAMETER = re.compile(rf";[ \t]*+({_TOKEN})(?:[ \t]*+=[ \t]*+({_TOKEN}|{_QUOTED}))?+")
_EMPTIES = re.compile(r",[ \t,]*+")
"""A comma, with the empty elements behind it: a header may be nothing but these."""
_BITS = re.compile(r"[89]|1[0-5]")


@dataclass(frozen=True, slots=True)
class DeflateSettings:
    """What we want. As a server, `server_...` is about what we send, as a client what we receive; bits are 9 to 15.

    `client_max_window_bits` holds where the client lets us choose (it offers the parameter). A connection with takeover
    of 15 bits holds some 300 KiB to compress and 40 KiB to decompress; `level` and `memory` are zlib's.
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = MAX_BITS
    client_max_window_bits: int = MAX_BITS
    level: int = 6
    memory: int = 8


@dataclass(frozen=True, slots=True)
class Agreed:
    """What holds for a connection; `answer` is the server's header value."""

    server_no_context_takeover: bool
    client_no_context_takeover: bool
    server_max_window_bits: int
    client_max_window_bits: int
    answer: str
    level: int = 6
    memory: int = 8

    @property
    def takeover(self) -> bool:
        """Whether the connection keeps a context of its own, either way."""
        return not (self.server_no_context_takeover and self.client_no_context_takeover)

    def compressor(self, *, client: bool = False) -> Compressor:
        """For what we send: as a server, or as a `client`."""
        bits = self.client_max_window_bits if client else self.server_max_window_bits
        fresh = self.client_no_context_takeover if client else self.server_no_context_takeover
        return Compressor(bits, takeover=not fresh, level=self.level, memory=self.memory)

    def decompressor(self, *, client: bool = False) -> Decompressor:
        """For what we receive: as a server, or as a `client`."""
        bits = self.server_max_window_bits if client else self.client_max_window_bits
        return Decompressor(
            bits, takeover=not (self.server_no_context_takeover if client else self.client_no_context_takeover)
        )


class Compressor:
    """One for a connection; one without `takeover` may be shared. `bits` is 9 to 15, at most what was agreed on."""

    __slots__ = ("_flush", "_zlib", "takeover")

    def __init__(self, bits: int = MAX_BITS, *, takeover: bool = True, level: int = 6, memory: int = 8) -> None:
        self.takeover = takeover
        self._flush = zlib.Z_SYNC_FLUSH if takeover else zlib.Z_FULL_FLUSH
        self._zlib = zlib.compressobj(level, zlib.DEFLATED, -bits, memory)

    def message(self, payload: bytes) -> bytes:
        """The payload of a frame with RSV1 (section 7.2.1). Messages go out in the order in which they were given."""
        if not payload:
            return _EMPTY
        packed = self._zlib.compress(payload) + self._zlib.flush(self._flush)
        return packed[:-4]


class Decompressor:
    """One for a connection. `bits` is at least what the peer compresses with."""

    __slots__ = ("_bits", "_takeover", "_zlib")

    def __init__(self, bits: int = MAX_BITS, *, takeover: bool = True) -> None:
        # some compress with 9 bits where 8 were agreed on: older zlibs did it by themselves
        self._bits = -max(bits, 9)
        self._takeover = takeover
        self._zlib = zlib.decompressobj(self._bits) if takeover else None

    def message(self, payload: bytes, most: int) -> bytes:
        """A message of at most `most` bytes. Raises ProtocolError: 1009 past that, 1007 for what is not deflate.

        After an error the decompressor is of no use: the connection is to be failed.
        """
        inflate = self._zlib or zlib.decompressobj(self._bits)
        data = payload + _TAIL
        parts: list[bytes] = []
        window = b""
        left = most
        final = 0
        try:
            while True:
                # one more than allowed, so that a message of just `most` bytes is known to have ended
                part = inflate.decompress(data, left + 1)
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise ProtocolError(
                        f"cannot take a message of more than {most} bytes, decompressed", close=CloseCode.TOO_LARGE
                    )
                if not inflate.eof:
                    break
                final += 1
                if final > MAX_FINAL:
                    raise ProtocolError(
                        f"cannot take a compressed message of more than {MAX_FINAL} final blocks",
                        close=CloseCode.INVALID,
                    )
                data = inflate.unused_data
                # the next block may look back at what came before, but not past what a window holds
                window = (window + part)[-_WINDOW:]
                inflate = self._anew(window)
                if not data or data == _TAIL:
                    break
        except zlib.error as error:
            raise ProtocolError(
                f"cannot decompress the message: it is not deflate ({error})", close=CloseCode.INVALID
            ) from None
        if self._takeover:
            self._zlib = inflate
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _anew(self, window: bytes) -> zlib._Decompress:
        return zlib.decompressobj(self._bits, zdict=window) if window else zlib.decompressobj(self._bits)


def parse_extensions(header: str) -> list[Extension]:
    """A value of Sec-WebSocket-Extensions, RFC 6455 section 9.1; several headers are joined with commas before.

    Raises ProtocolError for what is not of that form, or more than `MAX_EXTENSIONS` extensions and parameters.
    """
    found: list[Extension] = []
    at = count = 0
    header = _EMPTIES.sub(",", header)
    while at < len(header):
        match = _ELEMENT.match(header, at)
        if match is None:
            raise ProtocolError(
                f"cannot read the extensions: {header[at : at + 40]!r} is no list of them", close=CloseCode.PROTOCOL
            )
        at = match.end()
        name, rest = match.groups()
        if name is None:
            continue  # an empty element, RFC 7230 section 7
        count += 1 + rest.count(";")
        if count > MAX_EXTENSIONS:
            raise ProtocolError(
                f"cannot read the extensions: there are more than {MAX_EXTENSIONS}", close=CloseCode.PROTOCOL
            )
        found.append((name.lower(), [(key.lower(), _unquoted(value)) for key, value in _PARAMETER.findall(rest)]))
    return found


def _unquoted(value: str) -> str | None:
    return value.replace('"', "").replace("\\", "") or None


def negotiate(offers: Iterable[Extension], settings: DeflateSettings) -> Agreed | None:
    """A server's choice: the first offer that can be met (sections 5.1, 7.1), or None."""
    for name, parameters in offers:
        if name == NAME and (agreed := _meet(parameters, settings)) is not None:
            return agreed
    return None


def offer(settings: DeflateSettings) -> str:
    """A client's header value. It lets the server choose our window, down to nine bits (`client_max_window_bits`)."""
    return _written(
        settings.server_no_context_takeover,
        settings.client_no_context_takeover,
        settings.server_max_window_bits if settings.server_max_window_bits < MAX_BITS else None,
        settings.client_max_window_bits if settings.client_max_window_bits < MAX_BITS else 0,
    )


def accept(header: str, settings: DeflateSettings) -> Agreed | None:
    """What a server's answer to `offer(settings)` means; None for an empty one: no compression.

    Raises ProtocolError for what was not offered or breaks what was (sections 5.1, 7.1): the connection has to fail.
    """
    extensions = parse_extensions(header)
    if not extensions:
        return None
    (name, parameters) = extensions[0]
    if name != NAME or len(extensions) > 1:
        raise ProtocolError(
            f"cannot use the extensions {header[:80]!r}: {NAME} was offered, once", close=CloseCode.PROTOCOL
        )
    given = _read(parameters, answer=True)
    if given is None:
        raise _refused(header, "a parameter is unknown, repeated or has a wrong value")
    server_bits = given.get("server_max_window_bits") or MAX_BITS
    client_bits = given.get("client_max_window_bits") or MAX_BITS
    if settings.server_no_context_takeover and "server_no_context_takeover" not in given:
        raise _refused(header, "server_no_context_takeover was asked for")
    if server_bits > settings.server_max_window_bits:
        raise _refused(header, f"server_max_window_bits={settings.server_max_window_bits} was asked for")
    if client_bits < 9:
        raise _refused(header, "zlib cannot compress with 8 bits")
    return Agreed(
        server_no_context_takeover="server_no_context_takeover" in given,
        # what we said we would do holds whether the server repeats it or not
        client_no_context_takeover=settings.client_no_context_takeover or "client_no_context_takeover" in given,
        server_max_window_bits=server_bits,
        client_max_window_bits=min(client_bits, settings.client_max_window_bits),
        answer=header,
        level=settings.level,
        memory=settings.memory,
    )


def _meet(parameters: Sequence[tuple[str, str | None]], settings: DeflateSettings) -> Agreed | None:
    asked = _read(parameters, answer=False)
    if asked is None:
        return None
    server_asked = asked.get("server_max_window_bits")
    server_bits = min(server_asked or MAX_BITS, settings.server_max_window_bits)
    if server_bits < 9:
        return None
    client_bits, client_said = MAX_BITS, None
    if "client_max_window_bits" in asked:
        client_bits = min(asked["client_max_window_bits"] or MAX_BITS, settings.client_max_window_bits)
        if asked["client_max_window_bits"] or client_bits < MAX_BITS:
            client_said = client_bits
    server_fresh = settings.server_no_context_takeover or "server_no_context_takeover" in asked
    client_fresh = settings.client_no_context_takeover or "client_no_context_takeover" in asked
    # a smaller window of our own need not be announced, unless it was asked for: any client can read it
    server_said = server_bits if server_asked else None
    return Agreed(
        server_no_context_takeover=server_fresh,
        client_no_context_takeover=client_fresh,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
        answer=_written(server_fresh, client_fresh, server_said, client_said),
        level=settings.level,
        memory=settings.memory,
    )


def _read(parameters: Sequence[tuple[str, str | None]], *, answer: bool) -> dict[str, int] | None:
    """Each parameter with its number, 0 for none; None if one is unknown, repeated or has a wrong value."""
    found: dict[str, int] = {}
    for name, value in parameters:
        if name in found:
            return None
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                return None
            found[name] = 0
        elif name in ("server_max_window_bits", "client_max_window_bits"):
            if value is None:
                if answer or name == "server_max_window_bits":
                    return None
                found[name] = 0
            elif _BITS.fullmatch(value):
                found[name] = int(value)
            else:
                return None
        else:
            return None
    return found


def _written(server_fresh: bool, client_fresh: bool, server_bits: int | None, client_bits: int | None) -> str:
    parts = [NAME]
    if server_fresh:
        parts.append("server_no_context_takeover")
    if client_fresh:
        parts.append("client_no_context_takeover")
    if server_bits:
        parts.append(f"server_max_window_bits={server_bits}")
    if client_bits is not None:
        parts.append(f"client_max_window_bits={client_bits}" if client_bits else "client_max_window_bits")
    return "; ".join(parts)


def _refused(header: str, why: str) -> ProtocolError:
    return ProtocolError(f"cannot use the answer {header[:120]!r}: {why}", close=CloseCode.PROTOCOL)
