"""The async SDK: what other programs, netctl among them, use to talk to a netd daemon.

    async with ControlClient() as control:
        print((await control.status())["state"])

    async with FramedClient("127.0.0.1:9000") as client:        # SyncFramedClient: the same without Trio
        await client.publish("public:a", "hi")

Names are imported when first used, so that importing the package costs nothing (netctl's start-up depends on it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netd.client.broker import BrokerClient
    from netd.client.broker_sync import SyncBrokerClient
    from netd.client.control import ControlClient, default_socket
    from netd.client.framed import FramedClient
    from netd.client.framed_sync import SyncFramedClient
    from netd.client.options import ClientTls, Reconnect
    from netd.client.state import State, Telemetry
    from netd.client.stream import EventStream, ServerEvent
    from netd.client.subscription import Gap, Subscription

__all__ = [
    "BrokerClient",
    "ClientTls",
    "ControlClient",
    "EventStream",
    "FramedClient",
    "Gap",
    "Reconnect",
    "ServerEvent",
    "State",
    "Subscription",
    "SyncBrokerClient",
    "SyncFramedClient",
    "Telemetry",
    "default_socket",
]

_HOMES = {
    "BrokerClient": "netd.client.broker",
    "ClientTls": "netd.client.options",
    "ControlClient": "netd.client.control",
    "FramedClient": "netd.client.framed",
    "Gap": "netd.client.subscription",
    "Reconnect": "netd.client.options",
    "State": "netd.client.state",
    "Subscription": "netd.client.subscription",
    "SyncBrokerClient": "netd.client.broker_sync",
    "SyncFramedClient": "netd.client.framed_sync",
    "Telemetry": "netd.client.state",
    "default_socket": "netd.client.control",
    "EventStream": "netd.client.stream",
    "ServerEvent": "netd.client.stream",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
