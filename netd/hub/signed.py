"""Signed tokens: JSON Web Tokens (RFC 7519) that somebody else issues and netd verifies. Pure: `now` is an argument.

    header {"alg": "EdDSA", "kid": "2026"}
    claims {"sub": "alice", "exp": 1732190000, "aud": "netd", "netd": {"subscribe": ["chat:*"], "direct": true}}

`sub` says for whom it is, and is required; exp, nbf, iat, aud, iss and jti are those of RFC 7519, section 4.1. `netd`
has what the token permits, in the words of `[[hub.token]]`: subscribe, publish, presence, history (lists of names, or
of beginnings of names, "chat:*"), direct, broadcast, clients (true or false), tags. Other claims are passed over, but
not other words in `netd`.

Rules:
- a key has one algorithm, whatever a token says: a token can only pick among the keys of the algorithm it names. "none"
  is none of them, a public key is never the secret of an HMAC, and no private key is taken where a public one will do;
- of a token's header `alg` and `kid` count, and a `kid` is only ever compared. Keys that a token brings or points to
  (jwk, jku, x5c, x5u) are not looked at; `crit` and `b64` refuse it;
- nothing of the claims is read before the signature is good; what is above MAX_TOKEN bytes, or has another form, costs
  no cryptography at all, and anything else at most one verification for each key;
- a refusal says which check failed, and never what was in the token;
- a token is not kept. What stays is its claims and a digest of the key: a reload holds those against the new keys.

Left out: JWK sets fetched from elsewhere (netd asks nobody), encrypted tokens, who was revoked (revocations.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct

from netd.errors import ConfigError, ConfigProblem, Denied
from netd.hub.config import Key as Rules
from netd.hub.config import check_pattern, check_tag_key
from netd.hub.grants import CHANNEL_OPERATIONS, NEVER, Claims, Grant, grant
from netd.wire.messages import MAX_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from netd.hub.config import HubConfig

MIN_HMAC = 32
"""Bytes of an HS256 secret: those of its hash (RFC 7518, section 3.2)."""
MIN_RSA = 2048
"""Bits (RFC 7518, section 3.3)."""
MAX_HEADER = 1024
"""Characters of a token's header, as it comes."""


class _Header(Struct, frozen=True):
    alg: Annotated[str, Meta(max_length=32)]
    kid: Annotated[str, Meta(max_length=256)] | None = None
    crit: Any = UNSET
    b64: bool = True


_header = msgspec.json.Decoder(_Header).decode
_claims = msgspec.json.Decoder(Claims).decode


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """A key at work. `material` is what PyJWT takes: bytes, or a public key of cryptography's."""

    rules: Rules
    path: str
    """Its configuration key, "hub.key.0"."""
    material: Any
    digest: bytes

    def may_have_signed(self, header: _Header) -> bool:
        """Whether a token with this header is one that it is tried with."""
        rules = self.rules
        return rules.algorithm == header.alg and (None in (header.kid, rules.kid) or rules.kid == header.kid)

    def grant(self, claims: Claims, now: float) -> Grant:
        """What a token with these claims permits. Denied where a check fails."""
        rules = self.rules
        if rules.issuer is not None and claims.iss != rules.issuer:
            raise _denied(f"its issuer (iss) is not the one of its key ({self.path}.issuer)")
        heard = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
        if rules.audience is not None and rules.audience not in heard:
            raise _denied(f"it is for another audience (aud) than its key's ({self.path}.audience)")
        if rules.audience is None and heard:
            raise _denied(f"it is for an audience (aud), and its key has none ({self.path}.audience)")
        expires = NEVER
        if claims.exp is not None:
            expires = claims.exp
        elif rules.require_exp:
            raise _denied(f"it does not say when it expires (exp; {self.path}.require_exp)")
        if rules.max_age:
            if claims.iat is None:
                raise _denied(f"it does not say when it was issued (iat; {self.path}.max_age)")
            expires = min(expires, claims.iat + rules.max_age)
        expires += rules.leeway
        if now >= expires:
            old = claims.exp is None or expires < claims.exp + rules.leeway
            raise _denied(f"it is too old ({self.path}.max_age)" if old else "it has expired (exp)")
        for moment, name in ((claims.nbf, "nbf"), (claims.iat, "iat")):
            if moment is not None and now < moment - rules.leeway:
                raise _denied(f"it is not valid yet ({name}; is one of the clocks wrong? {self.path}.leeway)")
        return grant(
            (claims.netd, rules) if rules.claims else (rules,),
            token=f"{rules.name}:{claims.sub}",
            path=f"its claim netd or {self.path}" if rules.claims else self.path,
            digest=self.digest,
            expires=expires,
            claims=claims,
        )


class Keys:
    """The keys of one configuration. `texts` has, by key name, the text of every file that `key_files` names.

    Raises ConfigError for keys that cannot be used, with all problems.
    """

    def __init__(self, config: HubConfig, texts: Mapping[str, str]) -> None:
        self._keys: list[Key] = []
        problems: list[ConfigProblem] = []
        for index, rules in enumerate(config.key):
            path = f"hub.key.{index}"
            text = texts.get(rules.name, "") if rules.secret is None else rules.secret.get_secret_value()
            try:
                key = _load(rules, path, text)
                if (other := self.known(key.digest)) is not None:
                    raise ValueError(f"it is the key of {other.rules.name!r} again")
            except ValueError as error:
                problems.append(ConfigProblem(path, f"cannot use the key {rules.name!r}: {error}"))
            else:
                self._keys.append(key)
        if problems:
            raise ConfigError(problems)
        if self._keys:  # whoever has none need not load it
            from jwt.api_jws import PyJWS

            self._jws = PyJWS(algorithms=sorted({key.rules.algorithm for key in self._keys}))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def known(self, digest: bytes) -> Key | None:
        """The key with this digest."""
        return next((key for key in self._keys if key.digest == digest), None)

    def verify(self, text: str, now: float) -> Grant:
        """What this token permits. Raises Denied, which says what is wrong with it, and nothing else."""
        header = _opened(text)
        candidates = [key for key in self._keys if key.may_have_signed(header)]
        if not candidates:
            raise _denied("there is no key for its algorithm (alg) and key (kid) here (hub.key)")
        from jwt.exceptions import PyJWTError

        for key in candidates:
            try:
                payload = self._jws.decode(text, key.material, algorithms=[key.rules.algorithm])
            except (PyJWTError, ValueError, TypeError, RecursionError):
                continue
            return key.grant(_read(payload), now)
        raise _denied("no key here has signed it (hub.key)")

    def renew(self, former: Grant, now: float) -> Grant | None:
        """What a grant of an earlier configuration is worth with these keys; None: nothing any more."""
        key = self.known(former.digest)
        if key is None or former.claims is None:
            return None
        try:
            return key.grant(former.claims, now)
        except Denied:
            return None


def key_files(config: HubConfig) -> dict[str, Path]:
    """Key name -> the file it has to be read from."""
    return {key.name: key.file for key in config.key if key.file is not None}


def looks_signed(text: str) -> bool:
    """Whether it has the form of a signed token (RFC 7515, section 7.1)."""
    return text.count(".") == 2 and text.isascii()


def _opened(text: str) -> _Header:
    """A token's header, not verified."""
    if len(text) > MAX_TOKEN or not looks_signed(text):
        raise _denied(f"it is no signed token of at most {MAX_TOKEN} bytes")
    head, _, tail = text.partition(".")
    if not 0 < len(head) <= MAX_HEADER or "" in tail.split("."):
        raise _denied("its header, its claims or its signature is missing or too long")
    from jwt.exceptions import PyJWTError
    from jwt.utils import base64url_decode

    try:
        header = _header(base64url_decode(head))
    except (ValueError, RecursionError, PyJWTError):
        raise _denied("its header cannot be read, or names no algorithm (alg)") from None
    if header.crit is not UNSET or not header.b64:
        raise _denied("its header asks for what netd does not do (crit, b64)")
    return header


def _read(payload: bytes) -> Claims:
    """The claims of a token whose signature is good."""
    try:
        claims = _claims(payload)
    except msgspec.ValidationError as error:
        # "Expected `str`, got `int` - at `$.sub`": kinds and places, and names of members, but no values
        why = "".join(char if char.isprintable() else "?" for char in str(error)[:120])
        raise _denied(f"its claims are not as they should be: {why}") from None
    except (ValueError, RecursionError):
        raise _denied("its claims cannot be read (they have to be JSON)") from None
    for operation in CHANNEL_OPERATIONS:
        _check(operation, check_pattern, getattr(claims.netd, operation))
    _check("tags", check_tag_key, claims.netd.tags)
    return claims


def _check(word: str, check: Callable[[str], str], values: Iterable[str]) -> None:
    for value in values:
        try:
            check(value)
        except ValueError:
            why = f"it has a value in netd.{word} that [[hub.token]] would not take either"
            raise _denied(f"its claims are not as they should be: {why}") from None


def _denied(why: str) -> Denied:
    return Denied(f"cannot accept the token: {why}")


# --- keys ------------------------------------------------------------------------------------------------------------


def _load(rules: Rules, path: str, text: str) -> Key:
    """The key that this text is. Raises ValueError, which never has any of it."""
    text = text.strip()
    pem = text.startswith("-----BEGIN")
    if rules.algorithm == "HS256":
        secret = text.encode()
        if pem or "ssh-rsa" in text[:16]:
            raise ValueError("it is the key of another algorithm; HS256 takes a secret that nobody else has")
        if len(secret) < MIN_HMAC:
            raise ValueError(f"its secret was not read or is shorter than {MIN_HMAC} bytes")
        return Key(rules, path, secret, hashlib.sha256(b"HS256:" + secret).digest())
    if not pem:
        raise ValueError(f"it was not read or is no public key in PEM, which {rules.algorithm} takes")
    if "PRIVATE KEY-----" in text:
        raise ValueError("it is a private key; give netd the public one, and keep this one with who issues tokens")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    try:
        material = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it cannot be read as a public key in PEM") from None
    if rules.algorithm == "EdDSA" and not isinstance(material, Ed25519PublicKey):
        raise ValueError("it is no Ed25519 key, which EdDSA takes here")
    if rules.algorithm == "RS256":
        if not isinstance(material, RSAPublicKey):
            raise ValueError("it is no RSA key, which RS256 takes")
        if material.key_size < MIN_RSA:
            raise ValueError(f"it has {material.key_size} bits, and {MIN_RSA} are the least")
    der = material.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Key(rules, path, material, hashlib.sha256(rules.algorithm.encode() + b":" + der).digest())
