"""Codecs: a value <-> the payload of one frame, for clients that speak no operations but their own data. Sans-IO.

    raw           bytes as they are
    text          UTF-8
    json          RFC 8259
    cbor          RFC 8949, without tags
    messagepack   github.com/msgpack/msgpack/blob/master/spec.md, without ext
    others        a user's own: an entry point of the group "netd.codecs" by its name, or "module:attribute"

Rules:
- `decode` gives a plain value (plain.py), so that whatever arrives in one codec can leave in another. It raises
  ProtocolError with close 1007 for all else: broken bytes, bytes left over, too deep, integers above 64 bits, NaN,
  dates, ext and tags, map keys that are not text. Of a key given twice the last one counts;
- `encode` raises ProtocolError with origin "local" for what the codec has no form for. Bytes inside of a JSON value
  become base64 text;
- a user's codec is not trusted to keep these rules: what it raises and what it returns is checked here.

Left out: compression and encryption, which a codec of one's own can add.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import cbor2
import msgspec

from netd.errors import ProtocolError
from netd.wire import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GROUP = "netd.codecs"
"""The entry point group of codecs that packages bring along."""
_INVALID = 1007  # close code, RFC 6455 section 7.4.1
_FAULTS = (ValueError, TypeError, OverflowError, RecursionError, cbor2.CBORError)


class Codec(Protocol):
    """An object, module or class with these three is a codec; `name` may be missing in a user's own."""

    name: str

    def encode(self, value: Any) -> bytes:
        """Raises ProtocolError (origin "local") for a value that it has no form for."""
        ...

    def decode(self, payload: bytes) -> Any:
        """Raises ProtocolError."""
        ...


def codec(name: str) -> Codec:
    """The codec of this name: one of the five, an entry point, or "module:attribute".

    Raises ProtocolError (origin "local") when there is none, ImportError or AttributeError when its module is not as
    said.
    """
    if name in _BUILTIN:
        return _BUILTIN[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    else:
        from importlib.metadata import entry_points  # slow to import, and seldom asked

        entries = entry_points(group=GROUP)
        if name not in entries.names:
            known = ", ".join([*_BUILTIN, *sorted(entries.names)])
            raise ProtocolError(f"cannot find codec {name!r}: there are {known}", origin="local")
        found = entries[name].load()
    if isinstance(found, type):
        found = found()
    if not callable(getattr(found, "encode", None)) or not callable(getattr(found, "decode", None)):
        raise ProtocolError(f"cannot use {name!r} as a codec: it has no encode() and decode()", origin="local")
    return _Foreign(name, found)


class _Raw:
    name = "raw"

    def encode(self, value: Any) -> bytes:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, str):
            return TEXT.encode(value)
        raise _unwritten(self.name, f"a {type(value).__name__} is neither bytes nor text")

    def decode(self, payload: bytes) -> bytes:
        return payload


class _Text:
    name = "text"

    def encode(self, value: Any) -> bytes:
        try:
            if isinstance(value, str):
                return value.encode()
            if isinstance(value, bytes):
                return value.decode().encode()
        except UnicodeError as error:
            raise _unwritten(self.name, str(error)) from None
        raise _unwritten(self.name, f"a {type(value).__name__} is not text")

    def decode(self, payload: bytes) -> str:
        try:
            return payload.decode()
        except UnicodeDecodeError as error:
            raise _unread(self.name, error) from None


class _Structured:
    """JSON, CBOR, MessagePack: a library's two functions and what they leave to be checked."""

    def __init__(self, name: str, encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> None:
        self.name = name
        self._encode = encode
        self._decode = decode

    def encode(self, value: Any) -> bytes:
        try:
            return self._encode(value)
        except _FAULTS as error:
            raise _unwritten(self.name, str(error)) from None

    def decode(self, payload: bytes) -> Any:
        try:
            value = self._decode(payload)
            plain.check(value)
        except _FAULTS as error:
            raise _unread(self.name, error) from None
        return value


class _Foreign:
    """A user's own codec."""

    def __init__(self, name: str, codec: Any) -> None:
        self.name = name
        self._codec = codec

    def encode(self, value: Any) -> bytes:
        try:
            payload = self._codec.encode(value)
        except ProtocolError:
            raise
        except Exception as error:  # not our code: whatever it raises is about this value
            raise _unwritten(self.name, f"{type(error).__name__}: {error}") from error
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise _unwritten(self.name, f"encode() gave a {type(payload).__name__}, not bytes")
        return bytes(payload)

    def decode(self, payload: bytes) -> Any:
        try:
            value = self._codec.decode(payload)
            plain.check(value)
        except ProtocolError:
            raise
        except Exception as error:  # not our code: whatever it raises is about these bytes
            raise _unread(self.name, error) from error
        return value


class _NoTags(dict[int, Any]):
    """What cbor2 asks for the meaning of a tag. Its own answers include regular expressions and MIME messages."""

    def __missing__(self, tag: int) -> NoReturn:
        raise ValueError(f"tag {tag} is not taken")


def _cbor(payload: bytes) -> Any:
    # loads() would leave bytes behind the value unmentioned
    stream = io.BytesIO(payload)
    value = cbor2.CBORDecoder(
        stream, semantic_decoders=_NO_TAGS, max_depth=plain.MAX_DEPTH, strict_hashable_types=True
    ).decode()
    if over := len(payload) - stream.tell():
        raise ValueError(f"{over} bytes behind the value")
    return value


def _messagepack(payload: bytes) -> Any:
    plain.check_messagepack(payload)
    return _MESSAGEPACK_DECODER.decode(payload)


def _unread(name: str, error: BaseException) -> ProtocolError:
    if isinstance(error, cbor2.CBORError) and error.__cause__ is not None:
        error = error.__cause__
    reason = "nests too deep" if isinstance(error, RecursionError) else str(error)[:200]
    return ProtocolError(f"cannot read {name}: {reason}", close=_INVALID)


def _unwritten(name: str, why: str) -> ProtocolError:
    return ProtocolError(f"cannot write {name}: {why[:200]}", origin="local")


_NO_TAGS = cast("Mapping[int, Any]", _NoTags())
_MESSAGEPACK_DECODER = msgspec.msgpack.Decoder()
RAW: Codec = _Raw()
TEXT: Codec = _Text()
JSON: Codec = _Structured("json", msgspec.json.Encoder().encode, msgspec.json.Decoder().decode)
CBOR: Codec = _Structured("cbor", cbor2.dumps, _cbor)
MESSAGEPACK: Codec = _Structured("messagepack", msgspec.msgpack.Encoder().encode, _messagepack)
_BUILTIN: dict[str, Codec] = {each.name: each for each in (RAW, TEXT, JSON, CBOR, MESSAGEPACK)}
