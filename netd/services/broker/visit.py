"""A visit: one HTTP connection as the site sees it, until it ends or becomes a session. Pure.

It is the ASGI application of its connection: it tells the site where the request came in (`netd.visit` in the scope's
extensions) and has it answer. What the site has said to its first request already (doorstep.py) is only told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.budget import address_key

if TYPE_CHECKING:
    from netd.net.asgi import Message, Receive, Scope, Send
    from netd.services.broker.doors import Door
    from netd.services.broker.gateway import Gateway


class Visit:
    """Made by the service for each connection that has arrived. Its place in `gateway.places` is under `key`."""

    __slots__ = ("address", "came", "door", "gateway", "host", "key", "said")

    def __init__(self, gateway: Gateway, door: Door, address: str, host: str, key: str) -> None:
        self.gateway = gateway
        self.door = door
        self.address = address
        """As people write it: "192.0.2.7:50312"; where a trusted proxy says so, that of its client."""
        self.host = host
        """ "192.0.2.7", or "unix:"."""
        self.key = key
        """What counts as its address."""
        self.came = (address, host)
        """Who it was before anybody claimed to be another: the peer whose word counts, or does not."""
        self.said: list[Message] = []
        """The answer to its first request, where there is one already."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.said:
            said, self.said = self.said, []
            for message in said:
                await send(message)
            return
        scope["extensions"]["netd.visit"] = self
        await self.gateway.site(scope, receive, send)

    def claim(self, address: str, host: str) -> str | None:
        """A trusted proxy names its client: the connection counts as one from there. A word of Exchange.reasons where a
        limit is in the way, and then nothing has changed."""
        key = address_key(host)
        if key != self.key:
            config, places = self.gateway.config, self.gateway.places
            places.leave(self.key)
            why = places.enter(key, limit=config.max_connections, limit_per_key=config.connections_per_address)
            if why is not None:
                places.enter(self.key, limit=1 << 62, limit_per_key=1 << 62)
                return why
        self.address, self.host, self.key = address, host, key
        return None
