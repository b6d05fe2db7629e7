"""What `netctl framed listen` and `connect` do with a FramedClient; the conversation itself is in talk.py."""

from __future__ import annotations

from typing import Any

from netd.cli import talk
from netd.cli.data import plain_value
from netd.cli.framed_dial import client_of


async def listen(address: str, **how: Any) -> int:
    """Print what comes."""
    listening = talk.taken_from(how)
    return await talk.listen(client_of(address, how), **listening)


async def connect(address: str, *, plain: bool, linger: float, as_json: bool, **how: Any) -> int:
    """Lines from standard input out, what comes to standard output."""
    codec = how["codec"] = how["codec"] or ("text" if plain else "messagepack")
    client = client_of(address, how)

    async def send(line: bytes) -> None:
        await client.send(plain_value(line, codec, None))

    return await talk.connect(client, linger=linger, as_json=as_json, plain=send if plain else None)
