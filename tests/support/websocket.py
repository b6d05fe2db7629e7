"""A WebSocket client for tests that leaves nothing open, whoever closes first."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio
from trio_websocket import wrap_client_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_websocket import WebSocketConnection


@asynccontextmanager
async def websocket(url: str, *, stream: trio.SocketStream | None = None) -> AsyncIterator[WebSocketConnection]:
    """Connect to ws://HOST:PORT/PATH (over `stream`, if one is given).

    The stream is closed here: trio-websocket leaves it open when the server is the first to close.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    stream = stream or await trio.open_tcp_stream(parts.hostname, parts.port)
    async with stream, trio.open_nursery() as reading:
        ws = await wrap_client_stream(reading, stream, parts.netloc, parts.path or "/")
        yield ws
        await ws.aclose()
