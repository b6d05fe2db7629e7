"""trio-websocket: /sub subscribes, what comes from anybody else goes to all who did, one after another."""

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

SUBSCRIBERS: set[WebSocketConnection] = set()


async def handle(request: WebSocketRequest) -> None:
    connection = await request.accept()
    try:
        if request.path == "/sub":
            SUBSCRIBERS.add(connection)
            await connection.get_message()
        while True:
            message = await connection.get_message()
            for subscriber in list(SUBSCRIBERS):
                try:
                    await subscriber.send_message(message)
                except ConnectionClosed:
                    SUBSCRIBERS.discard(subscriber)
    except ConnectionClosed:
        pass
    finally:
        SUBSCRIBERS.discard(connection)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, handle, "127.0.0.1", 0, None)
        print(server.port, flush=True)


trio.run(main)
