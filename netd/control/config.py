"""The [control] and [metrics] sections.

Where the control API listens is fixed (whoever holds the socket open would lose it); who may do what, and what one
client may cost, is live.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from netd.net.http_limits import HttpLimits
from netd.section import Listen, Section, fixed, live, replace

_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?$")


def _account(name: str) -> str:
    """A login name or a number; whether it exists is asked of the machine that runs, not of the configuration."""
    if not _NAME.match(name):
        raise ValueError(f"cannot use {name!r} as an account: write a login name or a numeric id")
    return name


def _absolute(path: Path | None) -> Path | None:
    if path is not None and not path.is_absolute():
        raise ValueError(f"cannot use {str(path)!r} as the control socket: the path must be absolute")
    if path is not None and len(str(path).encode()) > 90:
        # sun_path holds 107 bytes, and the socket is bound under a longer temporary name first (unix(7))
        raise ValueError(f"cannot use {str(path)!r} as the control socket: the path is longer than 90 bytes")
    return path


Account = Annotated[str, AfterValidator(_account)]
SocketPath = Annotated[Path | None, AfterValidator(_absolute)]


class ControlConfig(Section):
    """[control]: the REST API on a Unix socket."""

    socket: SocketPath = fixed(Path("/run/netd/control.sock"))
    """The socket of the control API. None: no control API."""
    group: Account | None = fixed("netd")
    """Group of the socket file: its members may read. None: the daemon's own group."""
    mode: int = fixed(0o660, ge=0, le=0o777)
    """Permissions of the socket file."""
    users: list[Account] = live([], max_length=64)
    """Accounts with write access, besides root."""
    content_users: list[Account] = live([], max_length=64)
    """Accounts that may also see content (messages, packets), besides those with write access."""
    limits: HttpLimits = live(HttpLimits())
    """What one client may cost."""


def _plain(listen: Listen) -> Listen:
    if listen.tls is not None:
        raise ValueError("cannot serve metrics with TLS: put a proxy in front, or scrape through the host's own")
    if listen.proxy_protocol:
        raise ValueError("cannot read the PROXY protocol here: metrics do not ask who reads them; leave it out")
    return listen


PlainListen = Annotated[Listen, AfterValidator(_plain)]


class MetricsConfig(Section):
    """[metrics]: the Prometheus text on TCP, for a scraper that speaks no Unix sockets."""

    enabled: bool = live(True)
    """Run the service. Without an entry in `listen` it has nothing to do."""
    listen: Annotated[list[PlainListen], Field(max_length=16)] = replace([])
    """Where GET /metrics is served, besides the control socket's /v1/metrics."""
    limits: HttpLimits = live(HttpLimits(max_connections=16, max_body=0, idle_timeout=300.0))
    """What one scraper may cost."""
