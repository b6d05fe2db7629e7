"""The broker on real loopback sockets, asked in HTTP. `Client` sends bytes and reads with h11.

async with serving(origins=["https://page.example"]) as house:
    assert (await house.ask("GET", "/healthz")).status == 200
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from pydantic import SecretStr

from netd.hub.config import HubConfig, Namespace, Token
from netd.hub.seams import Echo, HttpRequest
from tests.services.broker import lab
from tests.services.broker.lab import eventually, listening
from tests.sessions.lab import House as AnyHouse
from tests.support.http import Peer, Response

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CLOSED",
    "KEY",
    "SECRET",
    "SWITCH",
    "House",
    "Worker",
    "error_of",
    "eventually",
    "head",
    "listening",
    "serving",
    "until",
]

SECRET = "a-secret-of-some-length"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SWITCH = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
)
"""What makes a request one for a WebSocket."""

CLOSED = HubConfig(
    namespace=[
        Namespace(
            name="open", subscribe="anyone", publish="anyone", history="anyone", presence="anyone", history_size=10
        ),
        Namespace(name="some", subscribe="token", publish="token", history="token", presence="token", history_size=10),
        Namespace(name="none"),
    ],
    token=[Token(name="alpha", secret=SecretStr(SECRET), subscribe=["some:*"], publish=["some:a"])],
    application="token",
)
"""A hub with a namespace for all, one for those with a token, and one for nobody."""


def head(
    method: str, target: str, headers: Sequence[str] = (), body: bytes | None = None, host: str = "localhost"
) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def error_of(response: Response) -> tuple[str, str]:
    """Kind and message of a refusal."""
    error = json.loads(response.body)["error"]
    assert set(error) == {"kind", "message"}
    assert error["message"].startswith("cannot ")
    return error["kind"], error["message"]


class House(AnyHouse):
    """A running broker and everything around it."""

    async def client(self, number: int = 0, **more: Any) -> Peer:
        stream, _ = await self.connect(number, **more)
        return Peer(stream)  # type: ignore[arg-type]

    async def ask(
        self,
        method: str,
        target: str,
        *headers: str,
        body: bytes | None = None,
        host: str = "localhost",
        number: int = 0,
    ) -> Response:
        """One request over a connection of its own."""
        peer = await self.client(number)
        await peer.send(head(method, target, headers, body, host))
        response = await peer.response(method)
        await peer.vanish()
        return response

    async def upgrade(self, target: str, *headers: str, host: str = "localhost", number: int = 0) -> Response:
        """The answer to the head of a WebSocket; the connection ends with it where it was refused."""
        response, peer = await self.socket(target, *headers, host=host, number=number)
        await peer.vanish()
        return response

    async def socket(
        self, target: str, *headers: str, host: str = "localhost", number: int = 0
    ) -> tuple[Response, Peer]:
        """The same, and the connection."""
        peer = await self.client(number)
        await peer.send(head("GET", target, [*SWITCH, *headers], host=host))
        data = b""
        while b"\r\n\r\n" not in data:
            more = await peer.stream.receive_some(65536)
            assert more, data
            data += more
        first, _, rest = data.partition(b"\r\n\r\n")
        lines = first.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        while len(rest) < int(fields.get("content-length", 0)):
            rest += await peer.stream.receive_some(65536)
        return Response(int(lines[0].split(" ")[1]), fields, rest), peer


class Worker(Echo):
    """An application that answers as it is told to."""

    def __init__(self, response=None, error=None):
        self.response, self.error = response, error
        self.requests: list[HttpRequest] = []
        self.waiting = trio.Event()
        self.waiting.set()
        self.cancelled = 0

    async def request(self, request):
        self.requests.append(request)
        try:
            await self.waiting.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.response


async def until(peer: Peer, mark: bytes) -> bytes:
    """All bytes up to those with `mark` in them."""
    data = b""
    with trio.fail_after(10):
        while mark not in data:
            more = await peer.stream.receive_some(65536)
            assert more, data
            data += more
    return data


serving = partial(lab.serving, house_type=House)
"""The broker in its unit, as there."""
