"""Whose word a session's tags are: a handshake that was checked is not overruled by a hello."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from netd.wire.handshake import plain, signed
from tests.services.framed.lab import serving

if TYPE_CHECKING:
    from pathlib import Path

    from netd.wire.handshake import Handshake

KEY = Ed25519PrivateKey.generate()
TAGS = {"device": "alpha"}


def takes_anybody(handshake: Handshake) -> bool:
    return True


def signature() -> bytes:
    return signed(KEY, "1", TAGS, now=time.time(), nonce="n")


@pytest.mark.parametrize(
    ("rules", "handshake", "vouched"),
    [
        ({"handshake": "required", "keys": True}, signature, True),
        ({"handshake": "required", "verifier": f"{__name__}:takes_anybody"}, lambda: plain("1", TAGS), True),
        ({"handshake": "required"}, lambda: plain("1", TAGS), False),
        ({"handshake": "required"}, signature, False),  # nobody has looked at the signature
        ({"handshake": "optional"}, lambda: plain("1", TAGS), False),
    ],
)
async def test_a_hello_overrules_only_what_nobody_vouched_for(tmp_path: Path, rules, handshake, vouched) -> None:
    if rules.get("keys"):
        file = tmp_path / "keys.pem"
        public = KEY.public_key()
        file.write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        rules = {**rules, "keys": [file]}
    async with serving(mode="operations", codec="json", **rules) as house:
        client = await house.client(settled=False)
        await client.send(handshake())
        await client.say("hello", version=1, tags={"device": "beta", "own": "1"})
        await client.hear("welcome")
        (session,) = house.hub.sessions.values()
        assert dict(session.tags) == {"device": "alpha" if vouched else "beta", "own": "1"}
        assert len(house.hub.find("tag:device=beta")) == (not vouched)
