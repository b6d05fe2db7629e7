"""Keys and signed tokens, as an issuer has them."""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

NOW = 1_000_000.0
"""What the clock of tests/hub/room.py begins with."""
SECRET = "a secret of thirty-two bytes, or more"
ED = ed25519.Ed25519PrivateKey.generate()
OTHER_ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)


def public(key: Any) -> str:
    """The public key of a private one, in PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def private(key: Any) -> str:
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, none).decode()


def issue(key: Any = ED, algorithm: str = "EdDSA", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token for alice that lives for 60 s; a claim that is None is left out."""
    merged = {"sub": "alice", "exp": NOW + 60, **claims}
    given = {name: value for name, value in merged.items() if value is not None}
    return jwt.PyJWT().encode(given, key, algorithm=algorithm, headers=headers)
