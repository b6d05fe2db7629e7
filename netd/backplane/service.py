"""The unit that keeps the backplane connected: tries, says how it stands, tries again.

    run -> redis.serve (one life) -> Away -> warning, wait (doubling, with jitter) -> redis.serve -> ...

Rules:
- it serves as soon as the first attempt has ended, however: a daemon starts without Redis too, and its clients are
  served; health says what is wrong (backplane.redis, backplane.overflow) and what may help;
- the log is told when Redis goes away and when it is back, and not of each attempt: of a Redis that lets everybody in
  and then refuses what is asked of it neither the log nor health hears again until a life has held;
- it starts before the services whose sessions use the hub, and stops after them, so that what they say last is heard;
- while it is stopped, it is as if Redis were away;
- of two generations one is at the plane. After a reload of what replaces it the new one waits until the old one has
  left it, which says no goodbye then: in between, which is short, it is as if Redis were away.
"""

from __future__ import annotations

import importlib
import random
import ssl
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from netd.backplane.config import BackplaneConfig
from netd.backplane.plane import RedisBackplane
from netd.errors import ConfigProblem, PrepareFailed
from netd.runtime.service import ServiceType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from netd.backplane.desk import NodeInfo
    from netd.hub.hub import Hub
    from netd.runtime.metrics import Metrics
    from netd.runtime.service import Context

MAX_PASSWORD = 4096
SHORT = 3
"""Lives in a row that end soon after they began, after which one counts for nothing until it has held."""
_LOOK = 1.0
"""Seconds between two looks at what waits."""


@dataclass(frozen=True, slots=True)
class BackplaneSnapshot:
    """The backplane at a moment."""

    url: str
    online: bool
    why: str | None
    """Why not."""
    node: str
    nodes: int
    """That live, this one included."""
    queue: int
    """Messages that wait for Redis, or to come back from it."""
    queue_bytes: int
    given_up: int
    lives: int
    """Times that it was connected."""
    published: int
    received: int
    fetched: int
    missed: int
    dropped: int
    loose: int
    unreadable: int


class Counters:
    """The unit's metrics; all of them outlive the generation that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self.online = metrics.gauge("netd_backplane_online", "Whether Redis can be used.")
        self.nodes = metrics.gauge("netd_backplane_nodes", "Nodes that live, this one included.")
        self.queue = metrics.gauge("netd_backplane_queue", "Messages that wait for Redis, or to come back from it.")
        self.lag = metrics.gauge("netd_backplane_lag_seconds", "How long Redis took for the last heartbeat.")
        self.losses = metrics.counter("netd_backplane_losses_total", "Times that Redis went away.")
        self.published = metrics.counter("netd_backplane_published_total", "Messages said to the other nodes.")
        self.received = metrics.counter("netd_backplane_received_total", "Messages that came from Redis.")
        self.dropped = metrics.counter("netd_backplane_dropped_total", "Messages from Redis past the inbound bounds.")
        self.given_up = metrics.counter("netd_backplane_given_up_total", "Messages past the bounds of the queue.")
        self.missed = metrics.counter("netd_backplane_missed_total", "Messages that no history had any more.")
        self.refused = metrics.counter(
            "netd_backplane_refused_total", "Questions and letters to others that were not asked: too many waited."
        )
        self.unreadable = metrics.counter("netd_backplane_unreadable_total", "What came and made no sense.")


class PreparedBackplane:
    """What `prepare` read. It holds nothing."""

    def __init__(self, password: str | None, context: ssl.SSLContext | None) -> None:
        self.password = password
        self.context = context

    def close(self) -> None:
        pass


def _password(config: BackplaneConfig) -> str | None:
    """Blocks. Raises PrepareFailed."""
    if config.password is not None:
        return config.password.get_secret_value()
    file = config.password_file
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_PASSWORD + 1).decode().strip()
        if not text or len(text) > MAX_PASSWORD:
            raise ValueError("it is empty" if not text else f"it is longer than {MAX_PASSWORD} bytes")
    except (OSError, ValueError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise PrepareFailed("backplane", f"cannot read the password of Redis from {str(file)!r}: {why}") from error
    return text


def _acquire(config: BackplaneConfig) -> PreparedBackplane:
    """Blocks. Raises PrepareFailed."""
    password = _password(config)
    redis = importlib.import_module("netd.backplane.redis")
    try:
        return PreparedBackplane(password, redis.tls_context(config))
    except OSError as error:  # ssl's errors are
        raise PrepareFailed("backplane", _no_trust(config.ca, error)) from error


def _no_trust(ca: Path | None, error: OSError) -> str:
    why = "it holds no certificate" if isinstance(error, ssl.SSLError) else (error.strerror or str(error)).lower()
    return f"cannot trust what is in {str(ca)!r}: {why}"


async def prepare(config: BackplaneConfig, context: Context) -> PreparedBackplane:
    """Read the password and the authorities. Raises PrepareFailed."""
    return await trio.to_thread.run_sync(_acquire, config)


def check(config: BackplaneConfig) -> Iterable[ConfigProblem]:
    """What `prepare` would refuse."""
    try:
        _password(config)
    except PrepareFailed as error:
        yield ConfigProblem("password_file", str(error))
    if config.ca is not None:
        try:
            ssl.create_default_context(cafile=config.ca)
        except OSError as error:  # ssl's errors are
            yield ConfigProblem("ca", _no_trust(config.ca, error))


class Seat:
    """At the plane, which outlives generations: one of them at a time."""

    def __init__(self) -> None:
        self.lock = trio.Lock()

    @property
    def wanted(self) -> bool:
        """Another generation waits for it."""
        return self.lock.statistics().tasks_waiting > 0


class BackplaneService:
    """One generation."""

    def __init__(
        self,
        config: BackplaneConfig,
        prepared: PreparedBackplane,
        context: Context,
        *,
        plane: RedisBackplane | None,
        seat: Seat,
    ) -> None:
        self._seat = seat
        self._config = config
        self._prepared = prepared
        self._context = context
        self._plane = plane
        self._counters = Counters(context.metrics)
        self._why: str | None = "it has not been tried yet"
        self._lives = 0
        self._failures = 0
        self._joined: float | None = None
        """When this life began; None: there is none."""
        self._short = 0
        """Lives that ended soon, in a row."""
        self._unread: str | None = None
        """Why a file could not be read anew."""
        self._tried = trio.Event()
        self._counted = {
            "published": 0,
            "received": 0,
            "dropped": 0,
            "missed": 0,
            "refused": 0,
            "unreadable": 0,
            "given_up": 0,
        }

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        plane = self._plane
        if plane is None:  # the hub is of one machine
            task_status.started()
            await self._context.draining.wait()
            return
        from netd.backplane import redis

        if self._seat.lock.locked():
            task_status.started()  # the one before leaves when this one serves
            await self._sit(plane, redis, trio.TASK_STATUS_IGNORED)
        else:
            await self._sit(plane, redis, task_status)

    async def _sit(self, plane: RedisBackplane, redis: Any, task_status: trio.TaskStatus[None]) -> None:
        async with self._seat.lock:
            plane.configure(self._config)
            self._counted = self._figures(plane)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._look, plane)
                    nursery.start_soon(self._keep, plane, redis, nursery.cancel_scope)
                    await self._tried.wait()
                    task_status.started()
            finally:
                self._counters.online.set(0)
                self._counters.nodes.set(0)
                if (waiting := len(plane.outgoing)) and not self._seat.wanted:
                    why = "the other machines have them only if the backplane is started again before netd ends"
                    self._context.log.warning("messages wait for Redis", messages=waiting, why=why)

    async def _keep(self, plane: RedisBackplane, redis: Any, everything: trio.CancelScope) -> None:
        draining = self._context.draining
        while not draining.is_set():
            try:
                await redis.serve(
                    plane,
                    self._config,
                    self._prepared.password,
                    self._prepared.context,
                    online=partial(self._online, plane),
                    leaving=draining,
                    stays=lambda: self._seat.wanted,
                )
            except redis.Away as error:
                self._away(error)
                delay = min(self._config.max_retry, self._config.retry * 2 ** min(self._failures, 16))
                self._failures += 1
                await self._read_again()
                with trio.move_on_after(delay * random.uniform(0.5, 1.0)):
                    await draining.wait()
        everything.cancel()

    async def _read_again(self) -> None:
        """A password or an authority in a file may be another one now."""
        if self._config.password_file is None and self._config.ca is None:
            return
        try:
            self._prepared = await trio.to_thread.run_sync(_acquire, self._config)
            self._unread = None
        except PrepareFailed as error:
            if str(error) != self._unread:
                self._context.log.warning("cannot read anew what Redis is to be shown", why=str(error))
            self._unread = str(error)

    def _online(self, plane: RedisBackplane) -> None:
        self._lives += 1
        self._joined = trio.current_time()
        self._tried.set()
        self._counters.online.set(1)
        if self._short < SHORT:
            self._settle(plane)

    def _settle(self, plane: RedisBackplane) -> None:
        """Redis can be used, as far as anybody is told."""
        self._why = None
        self._context.health.clear("redis")
        self._context.log.info("joined the other nodes through Redis", node=plane.node, nodes=len(plane.nodes) + 1)

    def _held(self) -> bool:
        """Whether this life has lasted long enough to believe in it."""
        return self._joined is not None and trio.current_time() - self._joined > 2 * self._config.max_retry

    def _away(self, error: Any) -> None:
        if self._held():
            self._failures = self._short = 0
        elif self._joined is not None:
            self._short += 1
        self._joined = None
        if self._why is None:
            self._counters.losses.inc()
            self._context.log.warning("Redis is away", why=str(error))
        self._why = str(error)
        self._counters.online.set(0)
        self._context.health.warn(
            "redis",
            f"{error}; until then messages reach this machine's clients at once, and the other machines' later",
            advice=error.advice,
        )
        self._tried.set()

    async def _look(self, plane: RedisBackplane) -> None:
        """Count, and warn of what is being lost."""
        while True:
            self._count(plane)
            if self._why is not None and self._held():
                self._short = 0
                self._settle(plane)
            await trio.sleep(_LOOK)

    @staticmethod
    def _figures(plane: RedisBackplane) -> dict[str, int]:
        found = {key: getattr(plane.figures, key) for key in ("published", "received", "dropped", "missed", "refused")}
        return {**found, "unreadable": plane.figures.unreadable, "given_up": plane.outgoing.given_up}

    def _count(self, plane: RedisBackplane) -> None:
        counters, before = self._counters, self._counted
        now = self._counted = self._figures(plane)
        for key, value in now.items():
            getattr(counters, key).inc(value - before[key])
        counters.nodes.set(len(plane.nodes) + 1)
        counters.queue.set(len(plane.outgoing))
        if plane.lag is not None:
            counters.lag.set(plane.lag)
        if now["given_up"] > before["given_up"]:
            self._context.health.warn(
                "overflow",
                f"more than {self._config.queue_messages} messages or {self._config.queue_bytes} bytes wait for Redis: "
                f"{now['given_up']} are lost to the other machines so far",
                advice="see backplane.redis, or raise backplane.queue_messages and .queue_bytes",
            )
        elif plane.online and not plane.outgoing.unsent:
            self._context.health.clear("overflow")

    def reconfigure(self, config: BackplaneConfig) -> None:
        self._config = config
        if self._plane is not None:
            self._plane.configure(config)

    def nodes(self) -> list[NodeInfo]:
        """This node, and then the others that live."""
        plane = self._plane
        if plane is None:
            return []
        return [plane.words(), *sorted(plane.nodes.values(), key=lambda one: one.node)]

    def snapshot(self) -> BackplaneSnapshot | None:
        plane = self._plane
        if plane is None:
            return None
        figures = plane.figures
        return BackplaneSnapshot(
            url=self._config.url,
            online=plane.online,
            why=self._why,
            node=plane.node,
            nodes=len(plane.nodes) + 1,
            queue=len(plane.outgoing),
            queue_bytes=plane.outgoing.size,
            given_up=plane.outgoing.given_up,
            lives=self._lives,
            published=figures.published,
            received=figures.received,
            fetched=figures.fetched,
            missed=figures.missed,
            dropped=figures.dropped,
            loose=figures.loose,
            unreadable=figures.unreadable,
        )


def service_type(hub: Hub) -> ServiceType:
    """The unit of the hub's backplane; where the hub is of one machine, it has nothing to do."""
    plane = hub.backplane if isinstance(hub.backplane, RedisBackplane) else None
    return ServiceType(
        name="backplane",
        config=BackplaneConfig,
        prepare=prepare,
        build=partial(BackplaneService, plane=plane, seat=Seat()),
        check=check,
    )
