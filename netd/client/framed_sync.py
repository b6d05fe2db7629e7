"""SyncFramedClient: FramedClient for scripts that have no event loop (sync.py says how).

with SyncFramedClient("127.0.0.1:9000") as client:
    client.publish("public:a", "hi")
    for message in client.subscribe("public:a"):
        print(message.data)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.client.framed import FramedClient
from netd.client.framed_options import DEFAULT_ADDRESS, FramedOptions
from netd.client.queue import NORMAL
from netd.client.sync import SyncOperationsClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Unpack

    from netd.client.options import TokenSource
    from netd.wire import messages


class SyncFramedClient(SyncOperationsClient):
    """One peer; see FramedClient for address and options. Iterating yields plain values, or events in operations."""

    _client: FramedClient

    def __init__(
        self, address: str | tuple[str, int] | Path = DEFAULT_ADDRESS, **options: Unpack[FramedOptions]
    ) -> None:
        super().__init__(FramedClient(address, **options))

    def send(self, value: Any, *, priority: int = NORMAL) -> None:
        """Encode and queue one payload; waits while the queue is full."""
        self._loop.call(lambda: self._client.send(value, priority=priority))

    def hello(
        self,
        *,
        name: str | None = None,
        token: str | TokenSource | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> messages.Welcome:
        """Greet the daemon, which the first operation does by itself."""
        return self._loop.call(lambda: self._client.hello(name=name, token=token, tags=tags))
