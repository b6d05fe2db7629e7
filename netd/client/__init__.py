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
    from netd.client.control import ControlClient, default_socket
    from netd.client.framed import FramedClient
    from netd.client.framed_options import ClientTls, Reconnect
    from netd.client.framed_session import Gap, Subscription
    from netd.client.framed_state import State, Telemetry
    from netd.client.framed_sync import SyncFramedClient
    from netd.client.stream import EventStream, ServerEvent

__all__ = [
    "ClientTls",
    "ControlClient",
    "EventStream",
    "FramedClient",
    "Gap",
    "Reconnect",
    "ServerEvent",
    "State",
    "Subscription",
    "SyncFramedClient",
    "Telemetry",
    "default_socket",
]

_HOMES = {
    "ClientTls": "netd.client.framed_options",
    "ControlClient": "netd.client.control",
    "FramedClient": "netd.client.framed",
    "Gap": "netd.client.framed_session",
    "Reconnect": "netd.client.framed_options",
    "State": "netd.client.framed_state",
    "Subscription": "netd.client.framed_session",
    "SyncFramedClient": "netd.client.framed_sync",
    "Telemetry": "netd.client.framed_state",
    "default_socket": "netd.client.control",
    "EventStream": "netd.client.stream",
    "ServerEvent": "netd.client.stream",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
