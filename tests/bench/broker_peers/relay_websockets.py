"""`websockets`, by its own broadcast(): /sub subscribes, what comes from anybody else goes to all who did."""

import asyncio
from contextlib import suppress

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosedError

SUBSCRIBERS: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    if connection.request.path == "/sub":
        SUBSCRIBERS.add(connection)
        try:
            await connection.wait_closed()
        finally:
            SUBSCRIBERS.discard(connection)
        return
    with suppress(ConnectionClosedError):  # the load leaves without a word
        async for message in connection:
            broadcast(SUBSCRIBERS, message)


async def main() -> None:
    async with serve(handle, "127.0.0.1", 0, backlog=4096, compression=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


asyncio.run(main())
