"""The handshake of framed TCP: the first frame, UTF-8 JSON, no answer. Plain or signed (Ed25519). Sans-IO.

    {"type":"handshake","version":"1.0.0","tags":{"device":"alpha"}}

A signed one has as well: `ts` (ms since the epoch), `nonce`, `publicKey` (SPKI DER, RFC 8410, in base64), `nIndex`,
`negHash`, and `signature` (base64), which is over the JSON text of everything else.

    nIndex  = clamp((key[0] / sum(key)) / max(Shannon entropy of key in bits a byte, 1e-6), 0, 1)     key: the SPKI DER
    negHash = hex(sha256(key || key XOR floor(nIndex * 255) || nIndex with 6 decimals))

`nIndex` and `negHash` follow from the key and prove nothing; they are checked because the original peers check them.

Rules:
- the text that was signed is rebuilt from what was received, as JavaScript writes it (canonical.py), in either of two
  forms: keys in the order received, or the keys of every object sorted. Ours go out with their keys sorted, so that
  both forms are the same text, whichever the other side rebuilds;
- a signature alone can be replayed: `ts` has to be within the window of our clock, and the same key, nonce and ts count
  once. The nonce alone will not do: the original clients derive it from their key, so that it never changes;
- no field is trusted before the signature is right, and no nonce is remembered before. What is cheap to look at is
  looked at first: size, count of values, key, ts, nonce; the text is rebuilt only of what would then be accepted;
- what is wrong is a ProtocolError, close 1007 where it is no handshake at all, 1008 where a handshake is refused.

Left out: whether a handshake is demanded, and what tags mean (services/framed).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from netd.errors import ProtocolError
from netd.wire import canonical
from netd.wire.messages import MAX_NAME, MAX_TAGS, CloseCode

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    # imported where it is used: 5 MiB that a daemon without signed handshakes need not hold
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_HANDSHAKE = 64 * 1024
"""Bytes. A longer payload is no handshake."""
MAX_SIGNED = 16 * 1024
"""Bytes. A longer one is refused where a signature is to be checked: its text would have to be rebuilt, perhaps twice,
for somebody whom nobody knows yet."""
MAX_VALUES = 256
"""How many values there may be in a handshake, all together. Its own fields and a full set of tags are 41."""
_SPKI = bytes.fromhex("302a300506032b6570032100")
"""What an Ed25519 key in SPKI DER begins with (RFC 8410 section 10.1); 32 bytes follow."""
_BEFORE_VALUES = (b",", b"[", b"{")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also one that never ends: each byte is looked at once, whatever they are."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """`key` is SPKI DER, `ts` seconds since the epoch; both and `nonce` are None in a plain handshake."""

    version: str | None
    tags: dict[str, str]
    signed: bool = False
    key: bytes | None = None
    ts: float | None = None
    nonce: str | None = None


class Nonces:
    """Handshakes already seen, for as long as they would pass as fresh. Past `capacity` of them, new ones are refused.

    Share one between all listeners that accept the same keys. `window` is in seconds, at least what `verify` is given.
    `since` is the wall clock when it was made, in seconds: a handshake signed before is refused, as an earlier life of
    the daemon may have seen it; None takes them. Where any key is accepted, whoever likes can fill the table.
    """

    __slots__ = ("_kept", "_seen", "capacity", "since", "window")

    def __init__(self, capacity: int = 65536, window: float = 60.0, since: float | None = None) -> None:
        self.capacity = capacity
        self.window = window
        self.since = since
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._kept: float | None = None
        """The window for which those seen are kept. `window` may be changed at any time."""

    def __len__(self) -> int:
        return len(self._seen)

    def take(self, key: bytes, nonce: str, ts: float, now: float) -> None:
        """Remember it. Raises ProtocolError when it was seen before, or when there is no room for it."""
        mark = self.check(key, nonce, ts, now)
        self._seen[mark] = now + 2 * self.window

    def check(self, key: bytes, nonce: str, ts: float, now: float) -> bytes:
        """What `take` would remember. Raises what it would raise, and remembers nothing."""
        if self._kept is not None and self.window > self._kept:
            # what was forgotten already would be fresh again, and what is kept has to be kept longer
            self.since = max(now - self._kept, self.since or 0.0)
            longer = 2 * (self.window - self._kept)
            self._seen = OrderedDict((mark, until + longer) for mark, until in self._seen.items())
        self._kept = self.window
        if self.since is not None and ts < self.since:
            raise _refused("it was signed before what is remembered here begins; make a new one for each connection")
        # ts may be a window ahead of our clock, and stays fresh for a window after that
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        mark = hashlib.sha256(key + canonical.number(ts).encode() + b"|" + nonce.encode()).digest()
        if mark in self._seen:
            raise _refused("it was used before (same key, nonce and ts); make a new one for each connection")
        if len(self._seen) >= self.capacity:
            raise _refused(f"{self.capacity} handshakes are remembered already; try again later", CloseCode.TRY_LATER)
        return mark


def is_handshake(payload: bytes) -> bool:
    """A JSON object whose type is "handshake", whatever else is in it: also one that `parse` then refuses."""
    if len(payload) > MAX_HANDSHAKE or not payload.lstrip(b" \t\r\n").startswith(b"{"):
        return False
    try:
        value = json.loads(payload.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("type") == "handshake"


def parse(payload: bytes, *, versions: Collection[str] | None = None) -> Handshake:
    """The handshake as it claims to be: its shape is checked, a signature is not.

    `versions` are those accepted; None: any, and none at all. Raises ProtocolError.
    """
    return _shape(_object(payload), versions)


def verify(
    payload: bytes,
    *,
    keys: Collection[bytes] | None,
    now: float,
    window: float,
    nonces: Nonces,
    versions: Collection[str] | None = None,
) -> Handshake:
    """A signed handshake that is what it claims to be. Raises ProtocolError saying why it is not.

    `keys` are those accepted (SPKI DER), None: any. `now` is our wall clock and `window` how far `ts` may be from it,
    both in seconds. `versions` as in `parse`. A handshake that passes is remembered in `nonces`.
    """
    value = _object(payload, MAX_SIGNED)
    shape = _shape(value, versions)
    if not shape.signed or shape.key is None or shape.ts is None or shape.nonce is None:
        raise _refused("it is not signed, and a signed one is demanded")
    if keys is not None and shape.key not in keys:
        raise _refused(f"its key {b64encode(shape.key).decode()} is not listed in handshake.keys")
    window = min(window, nonces.window)
    if not abs(now - shape.ts) <= window:
        raise _refused(
            f"its ts is {shape.ts - now:+.1f} s from our clock, and {window:g} s are allowed; set the clocks"
        )
    nonces.check(shape.key, shape.nonce, shape.ts, now)
    _check_hash(shape.key, value)
    _check_signature(shape.key, value)
    nonces.take(shape.key, shape.nonce, shape.ts, now)
    return shape


def plain(version: str | None, tags: Mapping[str, str] | None = None) -> bytes:
    """A handshake without a signature."""
    value: dict[str, Any] = {"type": "handshake"}
    if version is not None:
        value["version"] = version
    if tags:
        value["tags"] = dict(tags)
    return canonical.text(value).encode()


def signed(
    private_key: Ed25519PrivateKey, version: str | None, tags: Mapping[str, str] | None, *, now: float, nonce: str
) -> bytes:
    """A signed handshake. `now` is the wall clock in seconds; `nonce` at most 128 characters, new for each."""
    key = spki(private_key)
    index = negentropy(key)
    value: dict[str, Any] = {
        "type": "handshake",
        "ts": float(round(now * 1000)),
        "nonce": nonce,
        "publicKey": b64encode(key).decode(),
        "nIndex": index,
        "negHash": negentropic_hash(key, index),
    }
    if version is not None:
        value["version"] = version
    if tags:
        value["tags"] = dict(tags)
    unsigned = canonical.text(value, order=canonical.by_utf16)
    signature = b64encode(private_key.sign(unsigned.encode())).decode()
    # behind the sorted keys, so that taking it away leaves the text that was signed
    return f'{unsigned[:-1]},"signature":"{signature}"}}'.encode()


# --- keys ------------------------------------------------------------------------------------------------------------


def spki(private_key: Ed25519PrivateKey) -> bytes:
    """Its public key as SPKI DER, as `handshake.keys` lists it (in base64)."""
    return _SPKI + private_key.public_key().public_bytes_raw()


def load_keys(content: str | bytes) -> frozenset[bytes]:
    """Public keys as SPKI DER, from DER, from PEM, or from text with one base64 key a line (`#` begins a comment).

    Raises ProtocolError (origin "local") for what is not an Ed25519 key.
    """
    if isinstance(content, bytes):
        if content.startswith(_SPKI[:2]):
            return frozenset({_ed25519(content, "local")})
        content = _text(content)
    if "-----BEGIN" in content:
        blocks = content.split("-----BEGIN PUBLIC KEY-----")[1:]
        found = ["".join(block.partition("-----END")[0].split()) for block in blocks]
        if not found:
            raise ProtocolError('cannot load keys: PEM without a "PUBLIC KEY" block', origin="local")
    else:
        found = [line for raw in content.splitlines() if (line := raw.partition("#")[0].strip())]
    return frozenset(_ed25519(_base64(each, "a key", "local"), "local") for each in found)


def load_private_key(content: str | bytes, password: bytes | None = None) -> Ed25519PrivateKey:
    """An Ed25519 private key in PKCS8: DER, DER in base64, or PEM. Raises ProtocolError (origin "local")."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = content.encode() if isinstance(content, str) else content
    try:
        if b"-----BEGIN" in data:
            key = serialization.load_pem_private_key(data, password)
        else:
            if not data.startswith(b"\x30"):
                data = _base64("".join(_text(data).split()), "a private key", "local")
            key = serialization.load_der_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ProtocolError(f"cannot load a private key: {str(error)[:200]}", origin="local") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ProtocolError("cannot load a private key: it is not an Ed25519 key", origin="local")
    return key


def negentropy(key: bytes) -> float:
    """`nIndex` of a key in SPKI DER."""
    if not key:
        return 0.0
    entropy = 0.0
    for count in Counter(key).values():
        share = count / len(key)
        entropy -= share * math.log2(share)
    return min(max((key[0] / (sum(key) or 1)) / max(entropy, 1e-6), 0.0), 1.0)


def negentropic_hash(key: bytes, index: float) -> str:
    """`negHash` of a key in SPKI DER, for this `nIndex`."""
    salt = math.floor(min(max(index, 0.0), 1.0) * 255)
    # toFixed takes the larger of two equally near (ECMA-262 section 21.1.3.3); Python's formatting takes the even one
    decimals = Decimal(index).quantize(Decimal("0.000001"), rounding=ROUND_HALF_UP)
    return hashlib.sha256(key + bytes(byte ^ salt for byte in key) + f"{decimals:f}".encode()).hexdigest()


# --- what is checked -------------------------------------------------------------------------------------------------


def _object(payload: bytes, most: int = MAX_HANDSHAKE) -> dict[str, Any]:
    if len(payload) > most:
        raise ProtocolError(f"cannot read the handshake: {len(payload)} bytes, above {most}", close=CloseCode.TOO_LARGE)
    if _at_least(payload) > MAX_VALUES:
        raise ProtocolError(f"cannot read the handshake: more than {MAX_VALUES} values", close=CloseCode.TOO_LARGE)
    try:
        value = canonical.parse(payload)
    except ProtocolError as error:
        raise _unread(str(error)) from None
    if not isinstance(value, dict) or value.get("type") != "handshake":
        raise _unread('the first frame has to be a JSON object with "type": "handshake"')
    return value


def _at_least(payload: bytes) -> int:
    """How many values JSON text has: before each there is one of these bytes, outside of strings."""
    found = sum(map(payload.count, _BEFORE_VALUES))
    if found > MAX_VALUES:  # tags may be full of commas
        without = _STRING.sub(b"", payload)
        found = sum(map(without.count, _BEFORE_VALUES))
    return found


def _shape(value: dict[str, Any], versions: Collection[str] | None) -> Handshake:
    version = None if value.get("version") is None else _field(value, "version", MAX_NAME)
    if versions is not None and version not in versions:
        given = "it names no version" if version is None else f"version {version!r} is not spoken here"
        raise _refused(f"{given}; accepted: {', '.join(sorted(versions))}")
    tags = _tags(value.get("tags"))
    if "signature" not in value:
        return Handshake(version, tags)
    ts = value.get("ts")
    # 2**53 ms: what a double still counts exactly
    if not isinstance(ts, float) or not 0 <= ts <= 2**53 or not ts.is_integer():
        raise _unread("`ts` has to be a number of milliseconds since the epoch")
    nonce = _field(value, "nonce", MAX_NAME)
    key = _ed25519(_base64(_field(value, "publicKey", 256), "`publicKey`"))
    return Handshake(version, tags, signed=True, key=key, ts=ts / 1000, nonce=nonce)


def _tags(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_TAGS:
        raise _unread(f"`tags` has to be an object of at most {MAX_TAGS}")
    tags = {key: _scalar(item) for key, item in value.items()}
    if any("=" in key for key in tags):  # "a=b" with "c" could not be told from "a" with "b=c" (tag:KEY=VALUE)
        raise _unread('a tag has "=" in its key')
    for part in (*tags, *tags.values()):
        if len(part) > MAX_NAME or not _encodable(part):
            raise _unread(f"a tag's name and value are text of at most {MAX_NAME} characters each")
    return tags


def _scalar(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float():
            return canonical.number(value)
        case _:
            raise _unread("a tag has to be text, a number, true or false")


def _field(value: dict[str, Any], name: str, most: int) -> str:
    field = value.get(name)
    if not isinstance(field, str) or not 0 < len(field) <= most or not _encodable(field):
        raise _unread(f"`{name}` has to be text of 1 to {most} characters")
    return field


def _encodable(text: str) -> bool:
    """Without surrogates on their own, which JSON can say and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_hash(key: bytes, value: dict[str, Any]) -> None:
    index = negentropy(key)
    given = value.get("nIndex")
    if not isinstance(given, float) or not math.isclose(given, index, rel_tol=1e-9):
        raise _refused(f"`nIndex` is not that of its key, {index!r}")
    # its own digits count too: two log2 may differ in the last bit, just where the sixth decimal turns
    if value.get("negHash") not in (negentropic_hash(key, index), negentropic_hash(key, given)):
        raise _refused("`negHash` is not that of its key")


def _check_signature(key: bytes, value: dict[str, Any]) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature = _base64(_field(value, "signature", 256), "`signature`")
    unsigned = {name: field for name, field in value.items() if name != "signature"}
    public = Ed25519PublicKey.from_public_bytes(key[len(_SPKI) :])
    for order in (None, canonical.by_utf16):
        try:
            public.verify(signature, canonical.text(unsigned, order=order).encode())
        except InvalidSignature:
            continue
        return
    raise _refused("its signature is not that of its key over its content")


def _ed25519(key: bytes, origin: Any = "remote") -> bytes:
    if len(key) != len(_SPKI) + 32 or not key.startswith(_SPKI):
        raise ProtocolError(
            "cannot take a key that is not Ed25519 in SPKI DER (44 bytes, RFC 8410)",
            origin=origin,
            close=None if origin == "local" else CloseCode.POLICY,
        )
    return key


def _base64(text: str, what: str, origin: Any = "remote") -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise ProtocolError(
            f"cannot read {what}: it is not base64 (RFC 4648 section 4, padded)",
            origin=origin,
            close=None if origin == "local" else CloseCode.INVALID,
        ) from None


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ProtocolError("cannot load keys: neither text nor DER", origin="local") from None


def _unread(why: str) -> ProtocolError:
    return ProtocolError(f"cannot read the handshake: {why}", close=CloseCode.INVALID)


def _refused(why: str, close: int = CloseCode.POLICY) -> ProtocolError:
    return ProtocolError(f"cannot accept the handshake: {why}", close=close)
