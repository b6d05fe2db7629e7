"""SyncBrokerClient: BrokerClient for scripts that have no event loop (sync.py says how).

with SyncBrokerClient("ws://127.0.0.1:3000") as client:
    client.publish("public:a", "hi")
    for message in client.subscribe("public:a"):
        print(message.data)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.client.broker import BrokerClient
from netd.client.broker_options import DEFAULT_URL, BrokerOptions
from netd.client.sync import SyncOperationsClient

if TYPE_CHECKING:
    from typing import Unpack

    from netd.wire import messages


class SyncBrokerClient(SyncOperationsClient):
    """One broker; see BrokerClient for URL and options. Iterating yields events that belong to no subscription."""

    _client: BrokerClient

    def __init__(self, url: str = DEFAULT_URL, **options: Unpack[BrokerOptions]) -> None:
        super().__init__(BrokerClient(url, **options))

    def hello(self) -> messages.Welcome:
        """The daemon's latest welcome."""
        return self._loop.call(self._client.hello)
