"""The bounds of an HTTP front door, as a table of the configuration.

Pure data, apart from `net/http.py` which enforces them, so that reading a configuration imports no event loop.
All of it is `live`: a changed bound holds from the next connection on.
"""

from __future__ import annotations

from netd.section import Section, live


class HttpLimits(Section):
    """Bounds of an HTTP front door. Times are in seconds, sizes in bytes."""

    max_connections: int = live(64, ge=1, le=65536)
    """Connections at once. One more closes the longest idle one; when none is idle it is answered 503."""
    max_requests: int = live(1000, ge=1)
    """Requests on one connection before it is closed."""
    max_head: int = live(16384, ge=512, le=1048576)
    """Bytes of a request's line and headers together."""
    max_headers: int = live(64, ge=4, le=1024)
    """Headers of one request."""
    max_body: int = live(1048576, ge=0, le=1073741824)
    """Bytes of one request's body."""
    head_timeout: float = live(10.0, gt=0, le=600)
    """For a request's head, from its first byte (on a new connection: from its accept) to its last."""
    body_timeout: float = live(30.0, gt=0, le=600)
    """For all waiting for one request's body."""
    idle_timeout: float = live(60.0, gt=0, le=3600)
    """Between two requests of one connection."""
    write_timeout: float = live(10.0, gt=0, le=600)
    """For a peer to take the next 64 KiB of a response."""
    drain: float = live(5.0, ge=0, le=600)
    """For requests in progress once the front door closes."""
