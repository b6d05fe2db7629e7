"""netd: a network daemon that serves a host's real-time clients and shows what the network between is doing.

To have one inside your own Trio program:

    async with netd.open({"trace": {"listen": [{"address": "127.0.0.1:8080"}]}}) as daemon:
        async for notice in daemon.notices():
            ...

`open`, `Daemon` and `Settings` are imported when they are first asked for: netctl and `netd --check` need neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netd.daemon import Daemon, open
    from netd.settings import Settings

__version__ = "0.1.0"

__all__ = ["Daemon", "Settings", "__version__", "open"]

_HOMES = {"Daemon": "netd.daemon", "open": "netd.daemon", "Settings": "netd.settings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
