"""/v1/trace: clients and their traces, the history, and traces that an operator asks for.

Thin: what is shown comes from the running generation (looked up for every request), the history and the tracer; the
last two work with the trace service stopped. Addresses of private hops are never withheld here.

A trace to a target:
- goes by [trace] (method, attempts, per_ttl_timeout_ms; max_hops is the most that may be asked for), but shares no hops
  with other traces: an operator asks what this very path is like now;
- connects anew for the next round when the server has closed the connection after its reply. `connections` in the
  events says how many there were; what ends a trace before `rounds_wanted` is the `reason` of `done`;
- always ends with `done` or `error`, unless its reader or the daemon goes away.
"""

# no `from __future__ import annotations`: FastAPI evaluates the routes' annotations, which name things of this function
import ipaddress
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from functools import partial
from time import time
from typing import Annotated, Any, Literal

import trio
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from netd.errors import Conflict, ControlError, NetdError, NotFound, ServiceError
from netd.net.asgi import Receive, Scope, Send
from netd.net.paths import path as trace_path
from netd.net.paths.path import Carrier, Hop, TraceOptions
from netd.net.paths.tracer import Tracer
from netd.net.rest import EventStream, Read, RequestBody, ServerEvent, Write
from netd.runtime.store import Store
from netd.services.trace import protocol
from netd.services.trace.config import TraceConfig
from netd.services.trace.history import MAX_LIST, History, Record
from netd.services.trace.ids import IDS, PATTERN
from netd.services.trace.rounds import Rounds
from netd.services.trace.service import TraceService
from netd.services.trace.session import ClientView
from netd.services.trace.tracing import FINAL

_WAITING_EVENTS = 128
"""For a reader that is slow; a round has at most 33."""
_TARGET = re.compile(r"(?:\[(?P<v6>[^\]\s]+)\]|(?P<host>[^\s:/\[\]]+))(?::(?P<port>\d{1,5}))?\Z")
_HOST = re.compile(r"(?=.{1,254}\Z)[a-z0-9_][a-z0-9_-]{0,62}(\.[a-z0-9_][a-z0-9_-]{0,62})*\.?\Z", re.IGNORECASE)
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
    max_hops: Annotated[int | None, Field(ge=1, le=32)] = None
    """At most trace.max_hops, which holds where this is left out too."""
    send: Literal["auto", "http", "tls"] = "auto"
    """What is written into the connection: a plain request, or one inside TLS."""


def router(
    service: Callable[[], TraceService | None],
    tracer: Tracer,
    store: Store,
    configured: Callable[[], TraceConfig] = TraceConfig,
) -> APIRouter:
    """`service` gives the running generation, or None; then `configured` gives the section that would hold."""
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
        generation = service()
        config = configured() if generation is None else generation.config
        return TraceStream(Run(request, host, port, config, tracer, history))

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
    if match["host"] and not _is_host(match["host"]):
        raise ControlError(f"cannot trace to {target!r}: {match['host']!r} is not a host name", "target")
    return match["v6"] or match["host"], port


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    # what follows a % may be anything to the library
    return text.isascii() and text.isprintable() and " " not in text


def _is_host(text: str) -> bool:
    """A host name (RFC 1123 section 2.1, underscores as they are used; other scripts by IDNA), or an IPv4 address."""
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:  # an empty label, or one above 63 characters
        return False
    return _HOST.match(name) is not None


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
            except (OSError, ValueError) as error:  # UnicodeError is a ValueError
                # the reader waits for a last event; without one it could not tell this from a cut connection
                await into.send(ServiceError("trace", f"cannot finish the trace: {_why(error)}"))


async def _relay(events: trio.MemoryReceiveChannel[ServerEvent | NetdError]) -> AsyncGenerator[ServerEvent, None]:
    async for event in events:
        if isinstance(event, NetdError):
            raise event
        yield event


class Run:
    """A trace for an operator: its rounds, as events. Called once."""

    def __init__(
        self, request: RunRequest, host: str, port: int, config: TraceConfig, tracer: Tracer, history: History
    ) -> None:
        self._request = request
        self._host, self._port = host, port
        self._config = config
        self._tracer = tracer
        self._history = history
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._id = IDS.new()
        self._rounds = Rounds()
        self._connections = 0

    async def __call__(self, into: _Events) -> None:
        """Raises NetdError when the target cannot be reached at all."""
        await self._history.open()
        reason = "closed"
        try:
            async with AsyncExitStack() as stack:
                reason = await self._run(stack, into)
        except (OSError, ValueError) as error:
            reason = "error"
            raise ServiceError("trace", f"cannot trace to {self._address}: {_why(error)}") from None
        finally:
            if len(self._rounds):
                summary, rows = self._rounds.summary(), self._rounds.rows()
                self._history.add(Record(self._id, time(), None, self._address, reason, summary, rows, {}))
        await into.send(self._findings("done", reason=reason, rounds_wanted=self._request.rounds))

    async def _run(self, stack: AsyncExitStack, into: _Events) -> str:
        """All rounds; returns why they ended."""
        rounds, wanted = self._rounds, self._request.rounds
        carrier = await self._connect(stack)
        while True:
            begun = trio.current_time()
            path = await self._round(carrier, into)
            if _found_closed(path) and len(rounds):
                # the server had closed the connection between two rounds
                try:
                    carrier = await self._connect(stack)
                except OSError:
                    return "closed"
                path = await self._round(carrier, into)
                if _found_closed(path):
                    return "closed"
            rounds.add(path)
            await into.send(self._findings("round"))
            if len(rounds) >= wanted:
                return rounds.summary().reason or path.reason
            if path.reason in FINAL and (path.reason != "closed" or _found_closed(path)):
                return path.reason
            await trio.sleep_until(begun + self._request.interval)

    async def _connect(self, stack: AsyncExitStack) -> Carrier:
        """A new connection instead of the one there was. Raises OSError."""
        await stack.aclose()
        carrier = await self._tracer.open_carrier(self._host, self._port, send=self._request.send)
        self._connections += 1
        return await stack.enter_async_context(carrier)

    async def _round(self, carrier: Carrier, into: _Events) -> trace_path.Path:
        config = self._config
        options = TraceOptions(
            max_hops=min(self._request.max_hops or config.max_hops, config.max_hops),
            timeout=config.per_ttl_timeout_ms / 1000,
            attempts=config.attempts,
            share=False,
            method=config.method,
            mute=self._rounds.mute(),
        )
        return await self._tracer.trace(carrier, options, partial(_tell_hop, into, self._id, len(self._rounds) + 1))

    def _findings(self, event: str, **more: Any) -> ServerEvent:
        data = {"trace_id": self._id, "address": self._address, **protocol.summary_json(self._rounds.summary())}
        hops = [protocol.row_json(row) for row in self._rounds.rows()]
        return ServerEvent(event, {**data, "connections": self._connections, **more, "hops": hops})


def _found_closed(path: trace_path.Path) -> bool:
    """The connection had ended before the round began: it says nothing about the path."""
    return path.reason == "closed" and not path.probes


def _why(error: Exception) -> str:
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()


def _tell_hop(into: _Events, trace_id: str, number: int, hop: Hop) -> None:
    message = protocol.hop(trace_id, number, hop, reveal_private=True)
    del message["type"]
    # a reader too slow for single hops still gets every round as a whole
    with suppress(trio.WouldBlock):
        into.send_nowait(ServerEvent("hop", message))
