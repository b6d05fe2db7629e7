"""The beginning of a framed connection, sans-IO: its first frame, and whether that is a handshake that will do.

    first = FirstFrame()
    first.receive(chunk)          until it answers: a payload that may be a handshake, or NO_HANDSHAKE
    judge(payload, terms, ...)    the Handshake, or None for a payload like any other; ProtocolError to refuse
    first.rest()                  what the connection's decoder is to be fed: nothing is lost, nothing comes twice

Rules:
- what is no handshake is told as soon as a byte shows it: a handshake is a JSON object (its payload begins with "{" or
  white space) of at most MAX_HANDSHAKE bytes. So a first frame of 4 MiB is not gathered here;
- a handshake that is refused delivers nothing, not even what came behind it in the same chunk;
- a signature counts only where somebody asks for one (keys, a verifier): elsewhere nobody checks it, and the handshake
  is handed on as a plain one;
- a version that is asked for has to be there and has to be this one; a signature that is asked for too. A first message
  that is no handshake satisfies nothing.

Left out: the handshake's own form and its signature (wire/handshake.py), deadlines (arrival.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from netd.errors import ProtocolError
from netd.wire import handshake
from netd.wire.handshake import MAX_HANDSHAKE
from netd.wire.messages import CloseCode

if TYPE_CHECKING:
    from netd.wire.handshake import Handshake, Nonces

_PREFIX = 4
_JSON_BEGINS = b"{ \t\r\n"


class _Absent(Enum):
    NO_HANDSHAKE = "no handshake"


NO_HANDSHAKE: Final = _Absent.NO_HANDSHAKE
"""What the first frame holds is certainly no handshake."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a listener asks of a handshake."""

    required: bool = False
    version: str = ""
    """"": any, or none."""
    signed: bool = False
    """By one of `keys`."""
    verified: bool = False
    """A verifier of the user's decides after us: it is shown no signature that does not hold."""
    window: float = 30.0
    """Seconds by which a signed handshake's time may be off."""
    keys: frozenset[bytes] = field(default_factory=frozenset)
    """Public keys (DER, SPKI) that may sign."""


class FirstFrame:
    """The first frame of a connection, gathered until it can be told what it is. Holds MAX_HANDSHAKE and one chunk."""

    __slots__ = ("_answer", "_data")

    def __init__(self) -> None:
        self._data = bytearray()
        self._answer: bytes | Literal[_Absent.NO_HANDSHAKE] | None = None

    @property
    def buffered(self) -> int:
        """Bytes held."""
        return len(self._data)

    def receive(self, data: bytes) -> bytes | Literal[_Absent.NO_HANDSHAKE] | None:
        """The frame's payload once it is whole, NO_HANDSHAKE once it is sure to be none, None while it is open."""
        self._data += data
        if self._answer is not None:
            return self._answer
        if len(self._data) < _PREFIX:
            return None
        size = int.from_bytes(self._data[:_PREFIX], "big")
        begin = self._data[_PREFIX : _PREFIX + 1]
        if not 0 < size <= MAX_HANDSHAKE or (begin and begin not in _JSON_BEGINS):
            self._answer = NO_HANDSHAKE
        elif len(self._data) >= _PREFIX + size:
            self._answer = bytes(self._data[_PREFIX : _PREFIX + size])
        return self._answer

    def rest(self, *, taken: bool = True) -> bytes:
        """What is to be decoded: what came behind the frame, or (not `taken`) the frame too. May be asked once."""
        skip = _PREFIX + len(self._answer) if taken and isinstance(self._answer, bytes) else 0
        rest = bytes(memoryview(self._data)[skip:])
        self._data = bytearray()
        return rest


def judge(
    payload: bytes | Literal[_Absent.NO_HANDSHAKE], terms: Terms, *, now: float, nonces: Nonces
) -> Handshake | None:
    """The handshake in the first payload, or None when that is a payload like any other and none is required.

    `now` in seconds since the epoch. Raises ProtocolError, with the code to close with, for one that will not do.
    """
    if payload is NO_HANDSHAKE or not handshake.is_handshake(payload):
        if terms.required:
            raise ProtocolError(
                "cannot serve this client: its first message is no handshake, and one is required",
                close=CloseCode.POLICY,
            )
        return None
    versions = {terms.version} if terms.version else None
    if terms.signed or (terms.verified and handshake.parse(payload).signed):
        keys = terms.keys if terms.signed else None
        return handshake.verify(payload, keys=keys, now=now, window=terms.window, nonces=nonces, versions=versions)
    return replace(handshake.parse(payload, versions=versions), signed=False, key=None)
