"""BrokerClient: netd's broker over a WebSocket, for Trio programs.

    async with BrokerClient("ws://127.0.0.1:3000", token="...") as client:
        async with await client.subscribe("public:a") as messages:
            await client.publish("public:a", "hi")
            async for message in messages:
                print(message.from_, message.data)

The operations and their rules are those of every client (operations.py): a lost connection is made again with a fresh
token if `token` is a function, subscriptions go on without a gap or a duplicate, or say that there is a Gap.

Besides: entering it greets the daemon, so that a refusal (of the upgrade or of the hello) raises there.

Left out: the WebSocket (broker_wire.py); permessage-deflate, which is never offered here, so that messages travel as
they are whatever the broker is configured to; /ws/{channel}, which is for whoever has no client; scripts without Trio
(broker_sync.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.client.broker_options import DEFAULT_URL, BrokerOptions, Options, agreed
from netd.client.broker_wire import BrokerTransport
from netd.client.connection import Connection
from netd.client.operations import OperationsClient
from netd.client.session import Session
from netd.client.state import State, Telemetry
from netd.client.subscription import Gap, Subscription

if TYPE_CHECKING:
    from typing import Unpack

    from netd.wire import messages

__all__ = ["BrokerClient", "Gap", "State", "Subscription", "Telemetry"]


class BrokerClient(OperationsClient):
    """One broker. `url` is "ws://HOST:PORT", "wss://HOST:PORT/path", "HOST:PORT" or "unix:/run/x.sock"; the keywords
    are those of Options. Methods may run concurrently.
    """

    def __init__(self, url: str = DEFAULT_URL, **options: Unpack[BrokerOptions]) -> None:
        where, self.options = agreed(url, Options(**options))
        self._transport = BrokerTransport(where, self.options)
        super().__init__(where, self.options)

    def _made(self) -> Connection:
        made = Connection(self._transport, self.options, self._account)
        in_hello = self.options.token_in == "hello"
        session = Session(made, self._account, self.options, self.options.format, shows_token=in_hello)
        self._session = made.face = session
        if not in_hello:
            self._transport.token = lambda: session.token
        return made

    async def _connected(self) -> None:
        await self.hello()

    async def hello(self) -> messages.Welcome:
        """The daemon's latest welcome."""
        session = self._session
        self._open.check_open()
        assert session is not None
        return session.welcome if session.welcome is not None else await session.greeted()

    async def _greeted(self) -> Session:
        await self.hello()
        assert self._session is not None
        return self._session
