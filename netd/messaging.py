"""The hub and the reactor as the daemon has them: secrets read for it, counted, and remembered over a clean stop.

    start:  read_secrets -> Messaging -> restore -> reactor.run
    reload: read_secrets (may refuse) -> reconfigure (cannot fail)
    stop:   services drain -> save

Rules:
- what the hub remembers (history, epochs, offsets) is written when the daemon ends in an orderly way, and the file is
  removed as soon as it was read: after a crash there is none, so that channels begin new epochs and clients that come
  back are told that they may have missed something;
- the file is written whole or not at all, and only its owner may read it: it holds messages;
- a file that cannot be read or used costs the history, never the start.

Left out: what the hub does (netd/hub), and who is connected to it (the services).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import ConfigError, ConfigProblem, NetdError
from netd.hub.hub import Hub
from netd.net.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prometheus_client import Metric

    from netd.hub.config import HubConfig
    from netd.runtime.metrics import Metrics

HUB_FILE = "hub.msgpack"
"""In the state directory: what the hub remembers over a clean stop."""

MAX_SECRET = 4096
"""Bytes of a token's file."""

_SWEEP = 5.0
"""Seconds between two looks for what has become too old."""

log = structlog.get_logger("netd.hub")


def read_secrets(config: HubConfig) -> dict[str, str]:
    """The secret of every token that keeps it in a file, by the token's name. Blocks. ConfigError with all problems."""
    secrets: dict[str, str] = {}
    problems: list[ConfigProblem] = []
    for number, token in enumerate(config.token):
        if token.file is None:
            continue
        try:
            with token.file.open("rb") as file:
                text = file.read(MAX_SECRET + 1).decode().strip()
            if not text or len(text) > MAX_SECRET:
                raise ValueError("it is empty" if not text else f"it is longer than {MAX_SECRET} bytes")
        except (OSError, ValueError) as error:
            why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            message = f"cannot read the secret of token {token.name!r} from {str(token.file)!r}: {why}"
            problems.append(ConfigProblem(f"hub.token.{number}.file", message))
        else:
            secrets[token.name] = text
    if problems:
        raise ConfigError(problems)
    return secrets


class Messaging:
    """One per daemon; all methods are for the Trio thread."""

    def __init__(
        self, config: HubConfig, secrets: Mapping[str, str], *, version: str, metrics: Metrics, directory: Path | None
    ) -> None:
        """`directory` is where what the hub remembers is kept; None: nowhere."""
        self.hub = Hub(config, clock=time.time, server="netd", version=version, secrets=secrets)
        self.reactor = Reactor()
        self._file = None if directory is None else directory / HUB_FILE
        metrics.registry.register(_Collector(self.hub, self.reactor))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. `started()`: connections may be handed to the reactor."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.reactor.run)
            task_status.started()
            while True:
                await trio.sleep(_SWEEP)
                self.hub.sweep()

    def reconfigure(self, config: HubConfig, secrets: Mapping[str, str]) -> None:
        self.hub.reconfigure(config, secrets)

    async def restore(self) -> None:
        """Take over what the last run left, if it ended in an orderly way."""
        if self._file is None:
            return
        try:
            data = await trio.to_thread.run_sync(_take, self._file)
            if data is not None:
                self.hub.load(data)
        except (OSError, NetdError) as error:
            log.warning("cannot restore the history of channels", file=str(self._file), why=str(error))

    def save(self) -> None:
        """Leave what the hub remembers to the next run. Blocks for one write; nothing is served any more by then."""
        if self._file is None:
            return
        try:
            _write(self._file, self.hub.dump())
        except OSError as error:
            log.error("cannot keep the history of channels", file=str(self._file), why=str(error))


def _take(file: Path) -> bytes | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    file.unlink()
    return data


def _write(file: Path, data: bytes) -> None:
    half = file.with_name(file.name + ".new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
    half.rename(file)


class _Collector:
    """The hub's and the reactor's numbers, read when somebody scrapes them rather than counted twice."""

    def __init__(self, hub: Hub, reactor: Reactor) -> None:
        self._hub = hub
        self._reactor = reactor

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        hub, reactor = self._hub.info(), self._reactor.snapshot()
        for name, what, value in (
            ("netd_hub_sessions", "Sessions open, of every transport.", hub.sessions),
            ("netd_hub_channels", "Channels with subscribers.", hub.channels),
            ("netd_hub_subscriptions", "Subscriptions of all sessions.", hub.subscriptions),
            ("netd_hub_history_messages", "Messages kept for history.", hub.history_messages),
            ("netd_hub_history_bytes", "Bytes kept for history.", hub.history_bytes),
            ("netd_reactor_streams", "Connections that the reactor serves.", reactor.streams),
            ("netd_reactor_paused", "Connections whose input is paused.", reactor.paused),
        ):
            yield GaugeMetricFamily(name, what, value=value)
        for name, what, value in (
            ("netd_hub_opened", "Sessions ever opened.", hub.opened),
            ("netd_hub_requests", "Requests of clients.", hub.messages_in),
            ("netd_hub_refused", "Requests answered with an error.", hub.refused),
            ("netd_hub_messages_out", "Messages that outboxes took in.", hub.messages_out),
            ("netd_hub_dropped", "Messages that outboxes dropped.", hub.dropped),
            ("netd_hub_history_evicted", "Messages forgotten to stay within history_bytes.", hub.history_evicted),
            ("netd_reactor_batches", "Rounds that read or wrote something.", reactor.batches),
            ("netd_reactor_waits", "Times the reactor had nothing to do.", reactor.waits),
        ):
            yield CounterMetricFamily(name, what, value=value)
        for name, what, key in (
            ("netd_hub_published", "Messages published, by namespace.", "published"),
            ("netd_hub_delivered", "Messages delivered to subscribers, by namespace.", "delivered"),
            ("netd_hub_namespace_refused", "Requests that a namespace's rules refused.", "refused"),
        ):
            family = CounterMetricFamily(name, what, labels=("namespace",))
            for namespace in hub.namespaces:
                family.add_metric((namespace.name,), getattr(namespace, key))
            yield family
