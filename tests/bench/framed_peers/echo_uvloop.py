"""uvloop: an asyncio Protocol that walks the lengths and writes all complete frames of a chunk back with one write."""

from __future__ import annotations

import asyncio
from struct import unpack_from

import uvloop


class Echo(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        self.transport = transport
        self.held = bytearray()
        self.needed = 4

    def data_received(self, data: bytes) -> None:
        if self.held:
            self.held += data
            if len(self.held) < self.needed:
                return
            data = bytes(self.held)
        whole, end, self.needed = 0, len(data), 4
        while end - whole >= 4:
            length = 4 + unpack_from(">I", data, whole)[0]
            if length > end - whole:
                self.needed = length
                break
            whole += length
        if whole:
            self.transport.write(data if whole == end else data[:whole])
        self.held = bytearray(data[whole:]) if whole < end else bytearray()

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


uvloop.run(main())
