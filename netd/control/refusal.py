"""The last word to whoever waits at the control socket of a daemon that cannot start.

systemd holds that socket, and starts the daemon for whoever connects. A configuration that cannot be used is not cured
by starting again, but a client that goes on waiting would have it tried at once, until systemd gives up both units. So
those who wait are told why, in the API's own words, and nobody waits any more.

Blocks, for SECONDS at most: nothing else runs by then. Nobody is waited for longer than SHARE, and once the time is up
only those are answered whose request is there.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from netd.errors import NetdError

SECONDS = 1.0
"""For all who wait together: their requests have long been sent."""
SHARE = 0.05
"""Seconds for one of them to be read, and to be answered: one that is silent is not to use up all the time."""
MOST = 1024
"""Clients that are answered; a backlog has fewer."""

log = structlog.get_logger("netd.control")


def refuse_waiting(listening: Iterable[socket.socket], error: NetdError) -> int:
    """Answer everybody in the queues of these sockets with 503 and `error`. Returns how many that were."""
    answer = _answer(error)
    deadline = time.monotonic() + SECONDS

    def patience() -> float:
        return max(0.0, min(SHARE, deadline - time.monotonic()))  # 0: what cannot be done at once is not done

    count = 0
    for sock in listening:
        sock.setblocking(False)
        while count < MOST:
            try:
                client, _ = sock.accept()
            except OSError:
                break  # nobody waits any more; or it cannot be known, and the error that ends us is the one to be told
            with client:
                count += 1
                try:
                    client.settimeout(patience())
                    client.recv(65536)  # what is closed with bytes unread would be reset instead of answered
                    client.settimeout(patience())
                    client.sendall(answer)
                except OSError as gone:
                    log.debug("cannot answer a client", error=str(gone))
    return count


def _answer(error: NetdError) -> bytes:
    body = json.dumps({"error": {"kind": error.kind, "message": f"cannot start netd: {error}"}}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*head, "")).encode() + body
