"""One trace of one client: its rounds, from the first probe to clientDone, and everybody who is told.

    Session --> ClientTrace.run --> Tracer.trace (a round) --> hops --> the client, the bus
                                \\-> Rounds (statistics)    --> the end: the client, the bus, the history, the metrics

Rules:
- whatever happens, a trace that began ends with exactly one clientDone, one history row and one count;
- everything told is told without waiting (outbox, bus, store); the tracer calls back synchronously;
- who hears of hops is `report`; who sees a private hop's address is `reveal_private` (protocol.py withholds it).

Left out: when a client may be traced (session.py, limits.py) and how (netd.net.paths.tracer).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio

from netd.errors import NetdError
from netd.net.paths.path import TraceOptions
from netd.net.paths.tracer import Tracer
from netd.runtime.bus import Bus
from netd.runtime.health import ServiceHealth
from netd.services.trace import protocol
from netd.services.trace.config import TraceConfig
from netd.services.trace.counters import Counters
from netd.services.trace.history import History, Record
from netd.services.trace.ids import Ids
from netd.services.trace.limits import Turns
from netd.services.trace.names import Names, Systems
from netd.services.trace.notices import ClientDone, HopNamed, HopSeen, TraceError
from netd.services.trace.rounds import HopRow, Rounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.net.paths.path import Hop, Path
    from netd.services.trace.carrier import PingCarrier
    from netd.services.trace.session import Session

PONG_GRACE = 1.0
"""Seconds a round waits for its pong once the path is known; the client's kernel has answered by then."""

FINAL = frozenset({"closed", "no-carrier", "unprivileged", "limited"})
"""Reasons after which another round would end the same way."""


@dataclass(slots=True)
class Shared:
    """What all sessions of a generation share. `config` is replaced by a live change."""

    config: TraceConfig
    tracer: Tracer
    bus: Bus
    health: ServiceHealth
    history: History
    counters: Counters
    names: Names
    systems: Systems | None
    turns: Turns
    ids: Ids
    rounds_at_once: trio.CapacityLimiter
    log: structlog.typing.FilteringBoundLogger
    probes: int = 0
    traces: int = 0
    running: int = 0


class ClientTrace:
    """A single trace. `cut` set before it is cancelled becomes its reason; otherwise that is "closed"."""

    def __init__(self, shared: Shared, session: Session) -> None:
        self._shared = shared
        self._session = session
        self._rounds = Rounds()
        self.id = shared.ids.new()
        self.cut: str | None = None

    @property
    def round(self) -> int:
        """The round that runs, from 1."""
        return len(self._rounds) + 1

    async def run(self) -> None:
        """Every round, until the last or the end of the client."""
        reason: str | None = None
        self._shared.running += 1
        try:
            reason = await self._run_rounds()
        finally:
            self._shared.running -= 1
            # cancelled: whoever cancels a trace ends its connection too
            self._finish(reason or self.cut or "closed")

    async def _run_rounds(self) -> str | None:
        while True:
            begun = trio.current_time()
            try:
                path = await self._round()
            except (OSError, NetdError) as error:
                self._failed(error)
                return "error"
            config = self._shared.config
            if config.rounds != 1 and config.report != "operator":
                self._session.say(
                    protocol.round_done(
                        self.id, self._rounds.summary(), self._rounds.rows(), reveal_private=config.reveal_private
                    )
                )
            if path.reason in FINAL or (config.rounds and len(self._rounds) >= config.rounds):
                reason = self._rounds.summary().reason
                # a WebSocket always has its ping; it could not be written, so that the connection is gone
                return "closed" if reason == "no-carrier" else reason
            await trio.sleep_until(begun + config.interval)

    async def _round(self) -> Path:
        config = self._shared.config
        options = TraceOptions(
            max_hops=config.max_hops,
            timeout=config.per_ttl_timeout_ms / 1000,
            attempts=config.attempts,
            share=config.share,
            method=config.method,
            mute=self._rounds.mute(),
        )
        number = self.round
        # the tracer has such a limit too, with a queue that has an end; here clients wait for as long as it takes
        async with self._shared.rounds_at_once:
            carrier = self._session.carrier()
            path = await self._shared.tracer.trace(carrier, options, partial(self._hop, number))
        self._rounds.add(path)
        self._shared.counters.round(path)
        self._shared.probes += path.probes
        self._check_loopback(path)
        if path.reason != "closed":
            await self._add_pong(carrier)
        return path

    async def _add_pong(self, carrier: PingCarrier) -> None:
        """A method with a flow of its own wrote no ping: then it is written now, for its time alone."""
        with trio.move_on_after(PONG_GRACE):
            rtt_ms = await carrier.pong()
            if rtt_ms is not None:
                self._rounds.add_pong(rtt_ms)

    def _check_loopback(self, path: Path) -> None:
        if path.reason == "no-loopback":
            self._shared.health.warn(
                "tstamp",
                "cannot trace inside TCP connections: the kernel does not hand sent packets back",
                advice="set the sysctl net.core.tstamp_allow_data to 1",
            )
        elif path.method == "tcp" and path.reason == "destination":
            self._shared.health.clear("tstamp")

    def _failed(self, error: OSError | NetdError) -> None:
        message = f"cannot trace {self._session.address}: {error}"
        self._shared.log.warning("trace failed", client=self._session.client_id, error=str(error))
        self._shared.bus.publish(TraceError(message=message, client_id=self._session.client_id))
        self._session.say(protocol.error("cannot trace this connection now"))

    # --- telling ---

    def _hop(self, number: int, hop: Hop) -> None:
        shared = self._shared
        config = shared.config
        shared.counters.hop(hop)
        name, system = self._known_of(hop.addr)
        if config.report != "operator":
            self._session.say(
                protocol.hop(self.id, number, hop, reveal_private=config.reveal_private, name=name, system=system)
            )
        if config.report != "client":
            asn, as_name = system or (None, None)
            shared.bus.publish(
                HopSeen(
                    client_id=self._session.client_id,
                    trace_id=self.id,
                    round=number,
                    ttl=hop.ttl,
                    router=hop.addr,
                    rtt_ms=protocol.to_ms(hop.rtt_ms),
                    hop_kind=hop.kind,
                    reply_ttl=hop.reply_ttl,
                    nat=hop.nat or None,
                    mpls=protocol.mpls_json(hop.mpls),
                    limited=hop.limited or None,
                    unreach_code=hop.unreach_code,
                    quoted_tos=hop.quoted_tos,
                    next_mtu=hop.next_mtu,
                    name=name,
                    asn=asn,
                    as_name=as_name,
                )
            )

    def _known_of(self, addr: str | None) -> tuple[str | None, tuple[int, str | None] | None]:
        """Name and autonomous system as far as they are known at once; a name that is not will follow."""
        if addr is None:
            return None, None
        name = None
        if self._shared.config.names:
            name = self._shared.names.ask(addr, trio.current_time(), self._named)
        return name, self._shared.systems.find(addr) if self._shared.systems else None

    def _named(self, addr: str, name: str) -> None:
        config = self._shared.config
        if config.report != "operator" and (config.reveal_private or not protocol.is_private(addr)):
            self._session.say(protocol.named(self.id, addr, name))
        if config.report != "client":
            self._shared.bus.publish(
                HopNamed(client_id=self._session.client_id, trace_id=self.id, router=addr, name=name)
            )

    def _finish(self, reason: str) -> None:
        shared, session, config = self._shared, self._session, self._shared.config
        summary, rows = self._rounds.summary(), self._rounds.rows()
        shared.counters.trace(reason)
        shared.traces += 1
        session.last = (self.id, reason, None if config.report == "client" else summary)
        session.say(
            protocol.client_done(
                session.client_id,
                self.id,
                reason,
                None if config.report == "operator" else summary,
                rows,
                reveal_private=config.reveal_private,
            )
        )
        if config.report == "client":
            return
        shared.bus.publish(
            ClientDone(
                client_id=session.client_id,
                trace_id=self.id,
                address=session.address,
                reason=reason,
                rounds=summary.rounds,
                probes=summary.probes,
                elapsed_ms=round(summary.elapsed_ms, 3),
                method=summary.method,
                dest_ttl=summary.dest_ttl,
                est_ttl=summary.est_ttl,
                path_rtt_ms=protocol.to_ms(summary.path_rtt.mean),
                tcp_rtt_ms=protocol.to_ms(summary.tcp_rtt_ms),
                pong_rtt_ms=protocol.to_ms(summary.pong_rtt_ms),
                proxy=summary.proxy,
            )
        )
        shared.history.add(
            Record(
                self.id, time.time(), session.client_id, session.address, reason, summary, rows, self._known_rows(rows)
            )
        )

    def _known_rows(self, rows: Sequence[HopRow]) -> dict[str, dict[str, Any]]:
        """Name and autonomous system of the rows' routers, as far as they are known by now."""
        known: dict[str, dict[str, Any]] = {}
        for router in {row.router for row in rows if row.router is not None}:
            name = self._shared.names.known(router, trio.current_time())
            asn, as_name = (self._shared.systems.find(router) if self._shared.systems else None) or (None, None)
            facts = {"name": name, "asn": asn, "as_name": as_name}
            known[router] = {key: value for key, value in facts.items() if value is not None}
        return known
