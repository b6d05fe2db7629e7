"""A plain WebSocket with a life of its own: what `netctl broker connect --plain` talks over.

Each message is a value: text is str, binary is bytes. A lost connection is made again; what was said meanwhile is lost.
Not a part of the library: any WebSocket client speaks to /ws/{channel}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.client.broker_options import Options, agreed
from netd.client.broker_wire import BrokerTransport
from netd.client.connection import Connection
from netd.client.operations import OperationsClient
from netd.client.plain import PlainFace

if TYPE_CHECKING:
    from typing import Unpack

    from netd.client.broker_options import BrokerOptions, Url
    from netd.client.inbox import Inbox


class PlainSocket(OperationsClient):
    """Iterating yields what comes; `send` says something."""

    def __init__(self, url: str | Url, **options: Unpack[BrokerOptions]) -> None:
        where, self.options = agreed(url, Options(**options))
        super().__init__(where, self.options)
        self._face = _Values(self._account)
        self._transport = BrokerTransport(where, self.options, plain=True)
        token = self.options.token
        self._transport.token = token if callable(token) else lambda: token  # type: ignore[assignment]

    async def send(self, payload: bytes) -> None:
        """As text where it is UTF-8."""
        await self._open.send(payload)

    def _made(self) -> Connection:
        return Connection(self._transport, self.options, self._account, self._face)

    def _inbox(self) -> Inbox[Any]:
        return self._face.inbox


class _Values(PlainFace):
    """What comes is kept as it is."""

    def received(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            try:
                self.inbox.put(payload.decode(), len(payload))
            except UnicodeDecodeError:
                self.inbox.put(payload, len(payload))
