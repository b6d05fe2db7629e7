"""The JSON of the control API as types: what `ControlClient`'s methods return. No code.

A daemon may add keys within one API version, so a reader ignores what it does not know; `NotRequired` marks what it may
leave out. Times are seconds since the epoch; `*_ms` are milliseconds, `*_s` seconds.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Warning_(TypedDict):  # noqa: N801 - `Warning` is a builtin
    """A health condition with a stable code ("trace.unprivileged") and advice on what to do."""

    code: str
    severity: Literal["warning", "error"]
    message: str
    advice: str | None
    service: str | None
    since: float


class Unit(TypedDict):
    """One service as the supervisor sees it. `state` is one of the unit's states (runtime/unit.py draws them)."""

    name: str
    state: str
    since: float
    generation: int
    restarts: int
    error: str | None
    retry_at: float | None
    addresses: list[str]
    enabled: bool


class ConfigSources(TypedDict):
    sources: list[str]
    etag: str


class Status(TypedDict):
    version: str
    state: str
    ready: bool
    pid: int
    started: float
    uptime_s: float
    services: list[Unit]
    warnings: list[Warning_]
    config: ConfigSources


class HealthReport(TypedDict):
    status: Literal["ok", "degraded", "failing"]
    warnings: list[Warning_]


class Readiness(TypedDict):
    """`waiting` names the services that are not serving yet."""

    ready: bool
    waiting: NotRequired[list[str]]


class ErrorBody(TypedDict):
    kind: str
    message: str
    path: NotRequired[str | None]


class Change(TypedDict):
    """A long operation: it goes on in the daemon whether or not anybody waits for it."""

    id: str
    kind: str
    target: str | None
    status: Literal["doing", "done", "failed"]
    since: float
    ended: float | None
    error: ErrorBody | None
    result: dict[str, Any] | None


class ConfigChange(TypedDict):
    """One field that differs; `effect` is live, replace or fixed."""

    path: str
    running: Any
    configured: Any
    effect: str


class ConfigView(TypedDict):
    """`values` nested, secrets redacted; `origins` dotted key -> where it was set, defaults absent."""

    values: dict[str, Any]
    origins: dict[str, str]
    sources: list[str]
    etag: str


class ConfigProblem(TypedDict):
    path: str
    message: str
    source: str


class ConfigCheck(TypedDict):
    ok: bool
    problems: list[ConfigProblem]
    changes: list[ConfigChange]


class LogLevels(TypedDict):
    """`level` is the root's; `loggers` those with a level of their own."""

    level: str
    loggers: dict[str, str]


TraceRecord = dict[str, Any]
"""A trace as the history keeps it, hops and all: the trace service adds fields as it learns to see more."""


class SessionRow(TypedDict):
    """One session of a list. `channels`, `dropped` and `refused` are counts; `outbox` and `bytes_*` are bytes."""

    id: str
    name: str | None
    transport: str
    listener: str
    address: str
    tls: bool
    tags: dict[str, str]
    token: str | None
    opened: float
    channels: int
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    outbox: int
    pressed: bool
    dropped: int
    refused: int


class SessionList(TypedDict):
    """`next` is what `after` takes to go on, None for the last page."""

    sessions: list[SessionRow]
    next: str | None
    total: int


class RevokedToken(TypedDict):
    """`kind` is the claim ("sub" or "jti"); `since` and `until` are seconds since the epoch."""

    kind: str
    value: str
    since: float
    until: float


class RevokedTokens(TypedDict):
    revoked: list[RevokedToken]
    total: int


class Revoked(RevokedToken):
    """`ended`: sessions that had such a token."""

    ended: int


class Node(TypedDict):
    """`queue`: messages that wait for Redis; `seen`: seconds since the epoch, by its own clock; `here`: this one."""

    node: str
    name: str
    address: str | None
    version: str
    sessions: int
    channels: int
    queue: int
    lag_ms: float | None
    seen: float
    here: bool


class RedisStatus(TypedDict):
    """How the backplane stands; counts are since the daemon began."""

    url: str
    online: bool
    why: str | None
    node: str
    nodes: int
    queue: int
    queue_bytes: int
    given_up: int
    lives: int
    published: int
    received: int
    fetched: int
    missed: int
    dropped: int
    loose: int
    unreadable: int


class NodeList(TypedDict):
    """`backplane` is "memory" or "redis"; `redis` is null while the service does not run."""

    backplane: str
    nodes: list[Node]
    redis: RedisStatus | None


class ChannelName(TypedDict):
    """`name64` (base64) where the name is no text."""

    name: str | None
    name64: str | None


class SessionView(SessionRow):
    subscriptions: list[ChannelName]
    traceable: bool


class ChannelRow(ChannelName):
    """`epoch` and `offset` are of the newest message, None where none are kept; `history` counts those that are."""

    subscribers: int
    epoch: str | None
    offset: int | None
    history: int
    pattern: NotRequired[bool]
    """It stands for all channels that match."""


class ChannelList(TypedDict):
    """`silent`: machines that have not said in time which channels are heard there."""

    channels: list[ChannelRow]
    next: str | None
    silent: NotRequired[int]


class Member(TypedDict):
    session: str
    name: str | None
    transport: str
    tags: dict[str, str]


class ChannelView(ChannelRow):
    presence: list[Member]


class Published(TypedDict):
    """How many sessions it has reached so far, left out where it is still under way. `remark`: what the sender may
    not expect."""

    delivered: NotRequired[int | None]
    remark: NotRequired[str | None]


class ChannelHistory(TypedDict):
    """`messages` have from, data or data64 (base64), offset, epoch, time."""

    epoch: str
    offset: int
    complete: bool
    messages: list[dict[str, Any]]


class SessionScores(TypedDict):
    """Scores are in 0..1; `figure` is what deviates most, `source` who scored."""

    session: str
    name: str | None
    transport: str
    anomaly: float
    coherence: float
    entropy: float
    z: float
    figure: str
    samples: int
    source: str


class AnomalyStatus(TypedDict):
    """`scoring` says who scores now: builtin, command, http, python or none."""

    running: bool
    use: str | None
    scoring: str | None
    adapter_error: str | None
    interval: float | None
    threshold: float | None
    window: int | None
    tracked: int
    untracked: int
    learning: int
    over: int
    samples: int
    sample_ms: float | None
    sessions: list[SessionScores]


class BrokerListener(TypedDict):
    """`connections` are those that came by it."""

    address: str
    tls: bool
    connections: int


class BrokerStatus(TypedDict):
    """A stopped broker shows nothing but that. Sums are since the daemon started; `rejected` and `limits` by name."""

    running: bool
    listeners: NotRequired[list[BrokerListener]]
    connections: NotRequired[int]
    sessions: NotRequired[int]
    arriving: NotRequired[int]
    requests: NotRequired[int]
    total: NotRequired[int]
    bytes_in: NotRequired[int]
    bytes_out: NotRequired[int]
    messages_in: NotRequired[int]
    messages_out: NotRequired[int]
    dropped: NotRequired[int]
    backpressure: NotRequired[int]
    drains: NotRequired[int]
    rejected: NotRequired[dict[str, int]]
    limits: NotRequired[dict[str, float]]


class WorkerInfo(TypedDict):
    """A worker. Times are in seconds, `connected` since the epoch; `program` is its place among the daemon's own."""

    id: int
    name: str
    state: str
    pid: int
    uid: int
    library: str
    handlers: list[str]
    program: int | None
    connected: float
    age: float
    sessions: int
    in_flight: int
    requests: int
    waiting: int
    queued_bytes: int
    handled: int
    cancelled: int
    refused: int


class WorkerProgram(TypedDict):
    """A place of the daemon's own workers; `ended` is how the last one ended, "" while one works."""

    place: int
    pid: int | None
    starts: int
    ended: str


class WorkerStatus(TypedDict):
    """A stopped service shows nothing but that. Sums are since the daemon started; `requests` by what came of them."""

    running: bool
    socket: NotRequired[str | None]
    workers: NotRequired[list[WorkerInfo]]
    programs: NotRequired[list[WorkerProgram]]
    sessions: NotRequired[int]
    unassigned: NotRequired[int]
    waiting_events: NotRequired[int]
    waiting_bytes: NotRequired[int]
    waiting_requests: NotRequired[int]
    joined: NotRequired[int]
    crashed: NotRequired[int]
    hung: NotRequired[int]
    rejected: NotRequired[int]
    handled: NotRequired[int]
    cancelled: NotRequired[int]
    lost: NotRequired[int]
    dropped: NotRequired[int]
    moved: NotRequired[int]
    pauses: NotRequired[int]
    requests: NotRequired[dict[str, int]]
