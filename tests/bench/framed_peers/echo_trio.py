"""Naive Trio streams: a task a connection that reads a frame and writes a frame, as a tutorial would."""

from __future__ import annotations

from functools import partial

import trio


async def echo(stream: trio.SocketStream) -> None:
    data = bytearray()
    try:
        async for chunk in stream:
            data += chunk
            while len(data) >= 4:
                end = 4 + int.from_bytes(data[:4], "big")
                if len(data) < end:
                    break
                await stream.send_all(data[:end])
                del data[:end]
    except trio.BrokenResourceError:
        pass  # the client is gone


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1", backlog=4096))
        print(listeners[0].socket.getsockname()[1], flush=True)


trio.run(main)
