"""The hub and the reactor as the daemon has them: secrets read for it, counted, and remembered over a clean stop.

    start:  read_tokens -> Messaging -> restore -> run
    reload: read_tokens (may refuse) -> reconfigure (cannot fail)
    stop:   services drain -> save

Rules:
- what the hub remembers (history, epochs, offsets) is written when the daemon ends in an orderly way, and the file is
  gone from the disk before anybody is served: after a crash there is none, so that channels begin new epochs and
  clients that come back are told that they may have missed something;
- the file is written whole or not at all, and only its owner may read it: it holds messages;
- a file that cannot be read or used costs the history, never the start; one that cannot be used is kept aside;
- revoked tokens are written before whoever revokes is answered, and outlive a crash.

Left out: what the hub does (netd/hub), and who is connected to it (the services).
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import structlog
import trio

from netd.backplane.plane import RedisBackplane
from netd.errors import ConfigError, ConfigProblem, NetdError
from netd.hub.hub import Hub
from netd.hub.signed import key_files
from netd.hub.tokens import Tokens, secret_files
from netd.net.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from prometheus_client import Metric

    from netd.backplane.config import BackplaneConfig
    from netd.hub.config import HubConfig
    from netd.runtime.metrics import Metrics

HUB_FILE = "hub.msgpack"
"""In the state directory: what the hub remembers over a clean stop."""

REVOKED_FILE = "revoked.json"
"""In the state directory: the signed tokens that were revoked."""

MAX_SECRET = 4096
"""Bytes of a token's file."""

_SWEEP = 5.0
"""Seconds between two looks for what has become too old."""
_CLOCK = 60.0
"""Seconds after which the wall clock is asked again how long a token has still to live: it may have been set."""
_MAX_REVOKED = 2**30
"""Bytes that the file of revocations may have."""

log = structlog.get_logger("netd.hub")


def read_tokens(config: HubConfig) -> Tokens:
    """The tokens, with the secrets and keys that stand in files. Blocks. ConfigError with all problems of a kind."""
    problems: list[ConfigProblem] = []
    paths = {token.name: f"hub.token.{number}.file" for number, token in enumerate(config.token)}
    secrets = _read_secrets(secret_files(config), paths, "the secret of token", problems)
    paths = {key.name: f"hub.key.{number}.file" for number, key in enumerate(config.key)}
    keys = _read_secrets(key_files(config), paths, "the key", problems)
    if problems:
        raise ConfigError(problems)
    return Tokens(config, secrets, keys)


def _read_secrets(
    files: Mapping[str, Path], paths: Mapping[str, str], what: str, problems: list[ConfigProblem]
) -> dict[str, str]:
    """The text of each file, by the name it is asked for; what is in the way goes to the problems."""
    secrets: dict[str, str] = {}
    for name, file in files.items():
        try:
            with file.open("rb") as stream:
                text = stream.read(MAX_SECRET + 1).decode().strip()
            if not text or len(text) > MAX_SECRET:
                raise ValueError("it is empty" if not text else f"it is longer than {MAX_SECRET} bytes")
        except (OSError, ValueError) as error:
            why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
            message = f"cannot read {what} {name!r} from {str(file)!r}: {why}"
            problems.append(ConfigProblem(paths[name], message))
        else:
            secrets[name] = text
    return secrets


class Messaging:
    """One per daemon; all methods are for the Trio thread."""

    def __init__(
        self,
        config: HubConfig,
        tokens: Tokens,
        *,
        version: str,
        metrics: Metrics,
        directory: Path | None,
        backplane: BackplaneConfig | None = None,
        listening: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """`directory` is where what the hub remembers is kept; None: nowhere. `backplane` is needed for "redis";
        `listening`: the addresses that clients connect to."""
        self._revoked_elsewhere = trio.Event()
        plane = None
        if config.backplane == "redis":
            if backplane is None:
                raise ValueError("cannot make a hub over Redis without its configuration")
            host, clock = socket.gethostname(), trio.current_time
            plane = RedisBackplane(backplane, host=host, version=version, monotonic=clock, listening=listening)
            plane.on_revoked = lambda: self._revoked_elsewhere.set()
        self.hub = Hub(config, clock=time.time, server="netd", version=version, tokens=tokens, backplane=plane)
        self.reactor = Reactor()
        self._nothing = self.hub.dump()
        self._file = None if directory is None else directory / HUB_FILE
        self._revoked_file = None if directory is None else directory / REVOKED_FILE
        self._keeping = trio.Lock()
        self._sooner = trio.Event()
        self.hub.on_sooner = lambda: self._sooner.set()
        metrics.registry.register(_Collector(self.hub, self.reactor))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. `started()`: connections may be handed to the reactor."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.reactor.run)
            nursery.start_soon(self._expire)
            nursery.start_soon(self._keep_elsewhere)
            task_status.started()
            while True:
                await trio.sleep(_SWEEP)
                self.hub.sweep()

    async def _expire(self) -> None:
        while True:
            self._sooner = trio.Event()
            delay = self.hub.expire()
            with trio.move_on_after(_CLOCK if delay is None else min(delay, _CLOCK)):
                await self._sooner.wait()
            await trio.lowlevel.checkpoint()

    async def _keep_elsewhere(self) -> None:
        """What other machines revoke is remembered here too: Redis may have forgotten it by the next start."""
        while True:
            await self._revoked_elsewhere.wait()
            self._revoked_elsewhere = trio.Event()
            try:
                await self.keep_revoked()
            except NetdError as error:
                log.error("cannot keep what another machine revoked", why=str(error))
            await trio.sleep(1.0)  # many may come at once, and each writes the whole file

    async def keep_revoked(self) -> None:
        """Have on disk what is revoked. NetdError: that cannot be; it holds until the daemon ends."""
        file = self._revoked_file
        if file is None:
            return
        async with self._keeping:
            try:
                await trio.to_thread.run_sync(_write, file, self.hub.revocations.dump())
            except OSError as error:
                why = f"it holds until netd ends: {error.strerror}"
                raise NetdError(f"cannot keep what was revoked in {str(file)!r}, and {why}") from error

    def reconfigure(self, config: HubConfig, tokens: Tokens) -> None:
        """From the next message on; `tokens` are those of `config`. Cannot fail."""
        self.hub.reconfigure(config, tokens=tokens)

    async def restore(self) -> None:
        """Take over what the last run left, if it ended in an orderly way. Before anybody is served."""
        file = self._file
        if file is None:
            return
        await self._restore_revoked()
        try:
            data = await trio.to_thread.run_sync(_read, file, _largest(self.hub.config))
            if data is None:
                return
            self.hub.load(data)
            await trio.to_thread.run_sync(_remove, file)
        except (OSError, NetdError) as error:
            log.warning("cannot restore the history of channels", file=str(file), why=str(error))
            # whatever the hub took over of it, channels have to begin anew if the file would be there after a crash
            self.hub.load(self._nothing)
            await trio.to_thread.run_sync(_put_aside, file)

    async def _restore_revoked(self) -> None:
        file = self._revoked_file
        assert file is not None
        try:
            data = await trio.to_thread.run_sync(_read, file, _MAX_REVOKED)
            if data is not None:
                self.hub.revocations.load(data)
        except (OSError, NetdError) as error:
            log.error("cannot restore the revoked tokens, so they count again", file=str(file), why=str(error))
            await trio.to_thread.run_sync(_put_aside, file)

    def save(self) -> None:
        """Leave what the hub remembers to the next run. Blocks for one write; nothing is served any more by then."""
        if self._file is None:
            return
        try:
            _write(self._file, self.hub.dump())
        except OSError as error:
            log.error("cannot keep the history of channels", file=str(self._file), why=str(error))


def _largest(config: HubConfig) -> int:
    """Bytes that a file of ours may have; history is weighed as it is in memory, which is more."""
    return config.history_bytes + 64 * 2**20


def _read(file: Path, largest: int) -> bytes | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        raise NetdError(f"cannot use {str(file)!r}: it is larger than {largest} bytes")
    return data


def _remove(file: Path) -> None:
    file.unlink()
    _sync(file.parent)


def _put_aside(file: Path) -> None:
    try:
        file.rename(file.with_name(file.name + ".bad"))
        _sync(file.parent)
    except OSError as error:
        log.error("cannot put a broken file aside", file=str(file), why=str(error))


def _write(file: Path, data: bytes) -> None:
    half = file.with_name(file.name + ".new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)
    half.rename(file)
    _sync(file.parent)


def _sync(directory: Path) -> None:
    """Have names made or removed there outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
