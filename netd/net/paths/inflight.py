"""One round's probes inside a connection: sent through the shared raw socket, matched with what comes back.

Rules:
- an answer is matched by the sequence number it quotes or reports, and only to a probe that was really sent;
- RTTs are between our clock just before the send and the kernel's stamp of the arrival, both of the same clock.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from typing import TYPE_CHECKING

import structlog
import trio

from netd.net.linux import TCP_TIMESTAMP
from netd.net.paths.path import Hop
from netd.wire.ip import distance, show_address
from netd.wire.probes import SLOTS, ProbeTemplate

if TYPE_CHECKING:
    from netd.net.paths.looped import Endpoints
    from netd.net.paths.receivers import Receivers
    from netd.net.paths.round import Probe, Round
    from netd.wire.dsack import Duplicate
    from netd.wire.icmp import IcmpError
    from netd.wire.probes import Segment

_log = structlog.get_logger("netd.net")

_REFRESH = 0.05
"""Age in seconds from which the TSval of a probe is renewed."""


class Flight:
    def __init__(self, sock: socket.socket, ends: Endpoints, segment: Segment, receivers: Receivers) -> None:
        self.ends = ends
        self.round: Round | None = None
        self.wakeup = trio.Event()
        self._socket = sock
        self._receivers = receivers
        self._template = ProbeTemplate(segment, random.randrange(1, 1 << 16))
        self._stamped = float("-inf")
        self._sent: dict[tuple[int, int], int] = {}
        """(ttl, attempt) -> when it was sent, nanoseconds since the epoch."""
        address = show_address(ends.peer)
        self._to: tuple[str, int] | tuple[str, int, int, int]
        self._to = (address, 0, 0, ends.scope) if ends.v6 else (address, 0)

    @property
    def attempts(self) -> int:
        """Attempts there are bytes for."""
        return self._template.attempts

    def wake(self) -> None:
        self.wakeup.set()

    def send(self, probe: Probe) -> None:
        """One probe; a refusal of the kernel leaves it unanswered."""
        try:
            now = trio.current_time()
            if self._template.timestamped and now - self._stamped > _REFRESH:
                (tsval,) = struct.unpack("@I", self._socket.getsockopt(socket.IPPROTO_TCP, TCP_TIMESTAMP, 4))
                self._template.refresh(tsval)
                self._stamped = now
            # a lone probe may use its slot twice: the answer is then to the later one
            self._sent[probe.ttl, probe.attempt] = time.time_ns()
            self._receivers.send(self._template.build(probe.ttl, probe.attempt), self._to)
        except OSError as error:
            _log.debug("probe not sent", peer=self._to[0], ttl=probe.ttl, error=str(error))

    def on_error(self, error: IcmpError, at: int) -> bool:
        """True if the error is about a probe of this round. `at`: nanoseconds since the epoch."""
        probe = self._template.probe_of(error.seq)
        sent = self._sent.get(probe) if probe is not None else None
        if probe is None or sent is None or self.round is None:
            return False
        ends = self.ends
        # the quote shows the packet as it was behind a NAT, unless the NAT translated it back: what it cannot hide then
        # is that a router speaks with the peer's own address
        nat = (
            error.source == ends.peer
            or error.quoted_destination != ends.peer
            or error.quoted_source != ends.local
            or error.destination_port != ends.peer_port
        )
        hop = Hop(
            ttl=probe[0],
            addr=show_address(error.source),
            rtt_ms=max(0.0, (at - sent) / 1e6),
            kind="ttl" if error.expired else "unreach",
            reply_ttl=error.reply_ttl,
            nat=nat,
            mpls=error.mpls,
            unreach_code=None if error.expired else error.code,
            quoted_tos=error.quoted_tos if error.quoted_tos != self._template.tos else None,
            next_mtu=error.next_mtu,
        )
        self.round.replied(probe[0], hop, trio.current_time())
        self.wake()
        return True

    def on_duplicate(self, duplicate: Duplicate, at: int) -> bool:
        """True if the peer reports a probe of this round."""
        if self.round is None or (duplicate.source, duplicate.source_port) != (self.ends.peer, self.ends.peer_port):
            return False
        matched = False
        for offset in range(min(duplicate.width, SLOTS)):  # a peer may report neighbouring bytes as one block
            probe = self._template.probe_of(duplicate.left + offset)
            sent = self._sent.get(probe) if probe is not None else None
            if probe is not None and sent is not None:
                matched = True
                rtt_ms = max(0.0, (at - sent) / 1e6)
                self.round.reached(probe[0], rtt_ms, distance(duplicate.reply_ttl), trio.current_time())
        if matched:
            self.wake()
        return matched
