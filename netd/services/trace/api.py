"""/v1/trace: clients and their traces, the history, and traces that an operator asks for.

Thin: what is shown comes from the running generation (looked up for every request), the history and the tracer; the
last two work with the trace service stopped. Addresses of private hops are never withheld here.
"""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
import ipaddress
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from time import time
from typing import Annotated, Any, Literal

import trio
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from netd.errors import Conflict, ControlError, NetdError, NotFound, ServiceError
from netd.net.asgi import Receive, Scope, Send
from netd.net.path import Hop, TraceOptions
from netd.net.rest import EventStream, Read, RequestBody, ServerEvent, Write
from netd.net.tracer import Tracer
from netd.runtime.store import Store
from netd.services.trace import protocol
from netd.services.trace.history import MAX_LIST, History, Record
from netd.services.trace.ids import IDS, PATTERN
from netd.services.trace.rounds import Rounds
from netd.services.trace.service import TraceService
from netd.services.trace.session import ClientView
from netd.services.trace.tracing import FINAL

_WAITING_EVENTS = 128
"""For a reader that is slow; a round has at most 33."""
_TARGET = re.compile(r"(?:\[(?P<v6>[^\]\s]+)\]|(?P<host>[^\s:/\[\]]+))(?::(?P<port>\d{1,5}))?\Z")
_DEFAULT_PORT = 443

_Events = trio.MemorySendChannel[ServerEvent | NetdError]

Id = Annotated[str, Path(pattern=PATTERN, description="An id as lists and events show it.")]


class TraceStatus(BaseModel):
    """The service and the tracer at a moment; a stopped service has no clients and no limits of its own."""

    running: bool
    listeners: list[str] = []
    clients: int = 0
    connections: int = 0
    traces_running: int = 0
    method: str
    methods: list[str]
    unprivileged_reason: str | None
    limits: dict[str, float] = {}
    traces: int = 0
    probes: int = 0
    tracer: dict[str, Any]


class ClientList(BaseModel):
    clients: list[ClientView]


class TraceRecord(BaseModel):
    """A finished trace. `time` is of its end, in seconds since the epoch."""

    model_config = ConfigDict(extra="allow")

    id: str
    time: float
    client_id: str | None
    address: str
    reason: str
    method: str | None
    dest_ttl: int | None
    path_rtt_ms: float | None


class WholeRecord(TraceRecord):
    """A trace with all that was found; more fields than these may come."""

    rounds: int
    probes: int
    elapsed_ms: float
    hops: list[dict[str, Any]]


class TraceList(BaseModel):
    traces: list[TraceRecord]


class RunRequest(RequestBody):
    """Connect to `target` ("host", "host:port", "[2001:db8::1]:443") and trace inside that connection."""

    target: Annotated[str, Field(min_length=1, max_length=300)]
    rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    interval: Annotated[float, Field(ge=0.2, le=60, allow_inf_nan=False)] = 1.0
    """Seconds from the start of one round to the start of the next."""
    max_hops: Annotated[int, Field(ge=1, le=32)] = 30
    send: Literal["auto", "http", "tls"] = "auto"
    """What is written into the connection: a plain request, or one inside TLS."""


def router(service: Callable[[], TraceService | None], tracer: Tracer, store: Store) -> APIRouter:
    """`service` gives the running generation, or None."""
    routes = APIRouter(tags=["trace"])
    history = History(store)

    def running() -> TraceService:
        found = service()
        if found is None:
            raise Conflict("cannot trace clients: the trace service is not running")
        return found

    @routes.get("")
    async def get_trace(caller: Read) -> TraceStatus:
        """The service: clients, limits, totals."""
        generation = service()
        inside = asdict(tracer.snapshot())
        if generation is None:
            return TraceStatus(
                running=False,
                method=next(iter(tracer.methods), "none"),
                methods=list(tracer.methods),
                unprivileged_reason=tracer.unprivileged_reason,
                tracer=inside,
            )
        return TraceStatus(running=True, tracer=inside, **asdict(generation.snapshot()))

    @routes.get("/clients")
    async def list_clients(caller: Read) -> ClientList:
        """Everybody connected, in the order of their coming."""
        generation = service()
        return ClientList(clients=generation.clients() if generation else [])

    @routes.get("/clients/{id}")
    async def get_client(id: Id, caller: Read) -> ClientView:
        """One client and its latest trace."""
        return running().client(id)

    @routes.post("/clients/{id}/trace", status_code=202)
    async def trace_client(id: Id, caller: Write) -> ClientView:
        """Trace a client once more, now; its own pauses do not count."""
        return running().trace_client(id)

    @routes.get("/traces")
    async def list_traces(
        caller: Read,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50,
        before: Annotated[str | None, Query(pattern=PATTERN, description="Only traces older than this one.")] = None,
        client: Annotated[str | None, Query(pattern=PATTERN, description="Only traces of this client.")] = None,
    ) -> TraceList:
        """Finished traces, newest first, without their hops."""
        found = await history.list(limit=limit, before=before, client_id=client)
        return TraceList(traces=[TraceRecord(**record) for record in found])

    @routes.get("/traces/{id}")
    async def get_trace_record(id: Id, caller: Read) -> WholeRecord:
        """One finished trace with its hops."""
        record = await history.show(id)
        if record is None:
            raise NotFound(f"cannot find trace {id}: it is not in the history, or no longer")
        return WholeRecord(**record)

    @routes.post("/run", response_class=EventStream, responses={200: {"content": {"text/event-stream": {}}}})
    async def run_trace(request: RunRequest, caller: Write) -> EventStream:
        """Trace to a target; events hop, round and done as they come. Ends with its client."""
        host, port = parse_target(request.target)
        return TraceStream(partial(_run, request, host, port, tracer, history))

    return routes


def parse_target(target: str) -> tuple[str, int]:
    """ "example.org", "example.org:80", "[2001:db8::1]:443", "2001:db8::1" -> host and port (443 if none is given)."""
    if _is_ipv6(target):
        return target, _DEFAULT_PORT
    match = _TARGET.match(target)
    port = int(match["port"] or _DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65536 or not (match["host"] or _is_ipv6(match["v6"])):
        raise ControlError(
            f'cannot trace to {target!r}: write "example.org", "192.0.2.7:80" or "[2001:db8::1]:443"', "target"
        )
    return match["v6"] or match["host"], port


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class TraceStream(EventStream):
    """The events of a trace that runs as long as somebody reads them."""

    def __init__(self, work: Callable[[_Events], Awaitable[None]]) -> None:
        self._work = work
        self._into, events = trio.open_memory_channel[ServerEvent | NetdError](_WAITING_EVENTS)
        super().__init__(_relay(events))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the trace has a task of its own: a nursery inside the generator could not be left by closing it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trace)
            await super().__call__(scope, receive, send)
            nursery.cancel_scope.cancel()

    async def _trace(self) -> None:
        async with self._into as into:
            try:
                await self._work(into)
            except NetdError as error:
                await into.send(error)


async def _relay(events: trio.MemoryReceiveChannel[ServerEvent | NetdError]) -> AsyncGenerator[ServerEvent, None]:
    async for event in events:
        if isinstance(event, NetdError):
            raise event
        yield event


async def _run(request: RunRequest, host: str, port: int, tracer: Tracer, history: History, into: _Events) -> None:
    """The rounds of an operator's trace, as events. Raises NetdError when the target cannot be reached."""
    await history.open()
    trace_id, rounds, reason = IDS.new(), Rounds(), "closed"
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        async with await tracer.open_carrier(host, port, send=request.send) as carrier:
            while True:
                begun = trio.current_time()
                options = TraceOptions(max_hops=request.max_hops, mute=rounds.mute())
                path = await tracer.trace(carrier, options, partial(_tell_hop, into, trace_id, len(rounds) + 1))
                rounds.add(path)
                await into.send(_findings("round", trace_id, address, rounds))
                if len(rounds) >= request.rounds or path.reason in FINAL:
                    break
                await trio.sleep_until(begun + request.interval)
        reason = rounds.summary().reason or reason
    except OSError as error:
        raise ServiceError("trace", f"cannot trace to {address}: {(error.strerror or str(error)).lower()}") from None
    finally:
        if len(rounds):
            history.add(Record(trace_id, time(), None, address, reason, rounds.summary(), rounds.rows(), {}))
    await into.send(_findings("done", trace_id, address, rounds))


def _tell_hop(into: _Events, trace_id: str, number: int, hop: Hop) -> None:
    message = protocol.hop(trace_id, number, hop, reveal_private=True)
    del message["type"]
    # a reader too slow for single hops still gets every round as a whole
    with suppress(trio.WouldBlock):
        into.send_nowait(ServerEvent("hop", message))


def _findings(event: str, trace_id: str, address: str, rounds: Rounds) -> ServerEvent:
    hops = [protocol.row_json(row) for row in rounds.rows()]
    data = {"trace_id": trace_id, "address": address, **protocol.summary_json(rounds.summary()), "hops": hops}
    return ServerEvent(event, data)
