"""The async SDK: what other programs, netctl among them, use to talk to a netd daemon.

    async with ControlClient() as control:
        print((await control.status())["state"])

Names are imported when first used, so that importing the package costs nothing (netctl's start-up depends on it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netd.client.control import ControlClient, default_socket
    from netd.client.stream import EventStream, ServerEvent

__all__ = ["ControlClient", "EventStream", "ServerEvent", "default_socket"]

_HOMES = {
    "ControlClient": "netd.client.control",
    "default_socket": "netd.client.control",
    "EventStream": "netd.client.stream",
    "ServerEvent": "netd.client.stream",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
