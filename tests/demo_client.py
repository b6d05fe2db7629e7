"""The demo's client: a WebSocket connection that prints what it is told, one message a line, until it is traced."""

from __future__ import annotations

import sys

import trio

from tests.support.websocket import websocket


async def main(url: str) -> None:
    async with websocket(url) as ws:
        with trio.fail_after(60):
            while '"clientDone"' not in (message := await ws.get_message()):
                print(message, flush=True)
        print(message, flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
