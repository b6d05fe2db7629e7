"""The composition root: settings -> runtime -> services -> control -> systemd. Knows everyone; nobody knows it.

    run(paths)         the process: signals, systemd, exit codes
    check(loaded)      whether a start or a reload would refuse a configuration; nothing is started
    open(settings)     the same daemon inside someone's Trio program (as netd.open)

           .---- outer nursery: tracer, reactor, control API, changes; ends last -------------------------.
           |   .---- supervisor: one unit per service, stopped in reverse order ----.                     |
    start: store, bus, health, metrics, listeners -> hub, reactor, tracer -> control -> services -> started() / READY=1
    stop:  STOPPING=1 -> services drain (supervisor.drain) -> the hub's history is kept -> control drains
           (control.limits.drain) -> store flushes

Rules:
- what a configuration asks for and cannot have is told by `check`, key by key: to who asks, and by a reload to refuse
  it. A start asks only whether an address is wanted twice; the rest of it `prepare` finds;
- by phase: an error while starting is fatal, while reloading it is reported, while draining it is logged. A service
  that cannot be prepared at start (its port is taken) is fatal; one that crashes is its unit's business;
- the control API is up before the services and after them: it answers "starting" and "draining" too;
- `reload` puts the whole configuration in force or nothing of it;
- systemd's status line is kept true: what runs and where, what is wrong, and why a start failed. A loop that hangs is
  aborted by systemd's watchdog, and leaves the stacks of all threads on standard error.

Over 600 lines: it is the one place that knows everyone, and the order of a start and of a stop has to be read whole.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import resource
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

import structlog
import trio

from netd import __version__, checks, logs, systemd
from netd.backplane.service import service_type as backplane_service
from netd.control.host import ConfigCheck, ConfigView, ReloadResult
from netd.control.refusal import refuse_waiting
from netd.control.scrape import service_type as metrics_service
from netd.errors import ConfigError, Conflict, NetdError, PrepareFailed, sole
from netd.hub.config import HubConfig
from netd.hub.hub import Hub
from netd.messaging import Messaging, read_tokens
from netd.net import http
from netd.net.paths.tracer import Tracer
from netd.net.reactor import Reactor
from netd.runtime.bus import Bus, Notice
from netd.runtime.diff import changes
from netd.runtime.generation import Shared
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.reload import Reload, plan
from netd.runtime.status import StatusLine, keep_status, summary
from netd.runtime.store import CLOSE_SECONDS, open_store
from netd.runtime.supervisor import Supervisor
from netd.section import Listen
from netd.services.anomaly.checks import check as check_anomaly
from netd.services.anomaly.service import service_type as anomaly_service
from netd.services.broker.service import service_type as broker_service
from netd.services.framed.preparation import check as check_framed
from netd.services.framed.service import service_type as framed_service
from netd.services.trace.checks import check as check_trace
from netd.services.trace.service import service_type as trace_service
from netd.services.worker.service import service_type as worker_service
from netd.settings import Loaded, Settings, load, schema, stage_override
from netd.settings.hidden import plain, redacted
from netd.settings.hidden import shown as _shown

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from fastapi import APIRouter

    from netd.control.config import ControlConfig
    from netd.control.host import DaemonState
    from netd.errors import ConfigProblem
    from netd.hub.tokens import Tokens
    from netd.runtime.bus import Subscription
    from netd.runtime.reload import Plan
    from netd.runtime.service import ServiceType
    from netd.runtime.store import Store
    from netd.runtime.unit import UnitSnapshot
    from netd.settings.overrides import StagedOverride

_MARGIN = 5.0
"""Seconds that systemd is asked for on top of what the configuration allows a start or a stop."""

log = structlog.get_logger("netd.daemon")


@dataclass(frozen=True, kw_only=True)
class Reloaded(Notice):
    """Another configuration is in force; `changed` are the dotted keys that differ from before."""

    kind: ClassVar[str] = "reloaded"
    changed: list[str]


def _rooms(metrics: Metrics, tracer: Tracer, hub: Hub, reactor: Reactor) -> list[ServiceType]:
    """Every service there is, in the order they start."""
    return [
        metrics_service(metrics),
        backplane_service(hub),  # before whatever says something through the hub
        replace(trace_service(tracer), check=check_trace),
        worker_service(hub),  # before the services of sessions: it starts earlier and stops later
        replace(framed_service(hub, reactor), check=check_framed),
        broker_service(hub, reactor),
        replace(anomaly_service(hub), check=check_anomaly),
    ]


def check(loaded: Loaded, running: Settings | None = None) -> list[ConfigProblem]:
    """All that a start, or a reload of a daemon with the settings `running`, would refuse of a configuration that
    validates, as far as can be told without binding anything (checks.py). Blocks; what runs is not touched.
    """
    # services are described with what they would use; none of it does anything before it is run
    hub = Hub(HubConfig(), clock=time.time, server="netd", version=__version__)
    return checks.check(loaded, _rooms(Metrics(), Tracer(), hub, Reactor()), running)


def _tokens(loaded: Loaded) -> Tokens:
    """Blocks. Raises ConfigError."""
    try:
        return read_tokens(loaded.settings.hub)
    except ConfigError as error:
        raise ConfigError(checks.located(error.problems, loaded)) from None


class Daemon:
    """One daemon, for one `run`. All of it is for the Trio thread that runs it, while it runs; from another thread call
    `trio.from_thread.run_sync(daemon.stop, trio_token=...)`.
    """

    version = __version__

    def __init__(
        self,
        loaded: Loaded,
        *,
        source: Callable[..., Loaded] | None = None,
        notifier: systemd.Notifier | None = None,
        passed: Mapping[str, Sequence[socket.socket]] | None = None,
    ) -> None:
        """`source(override=...)` loads the configuration afresh; without it there is nothing to reload from.

        `notifier`: the service manager that this daemon is a service of; `passed`: the sockets it was handed.
        """
        self.started = time.time()
        self.bus = Bus()
        self.health = Health(self.bus)
        self.metrics = Metrics()
        self._loaded = loaded
        self._source = source
        self._state: DaemonState = "starting"
        self._stop = trio.Event()
        self._hasten = trio.CancelScope()
        self._checking = trio.Lock()  # whoever may read may ask for a check: one thread and one set of files at a time
        self._notifier = notifier or systemd.Notifier(None)
        self._status_line = StatusLine(self._notifier)
        self._passed = passed or {}

    # --- its life ---

    async def run(self, *, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, then drain. `started()` once every enabled service serves or is its unit's business.

        Raises NetdError for what makes a start impossible.
        """
        try:
            if problems := await trio.to_thread.run_sync(checks.twice, self._loaded):
                raise ConfigError(problems)
            self._make_state_directory()
            with self._hasten:
                async with open_store(self._store_path(), health=self.health, metrics=self.metrics) as store:
                    await self._run(store, task_status)
        except BaseExceptionGroup as group:
            raise sole(group) from None
        finally:
            self._stop.set()
            self.bus.close()

    def stop(self) -> None:
        """Drain and end. A second call, once draining, no longer waits for anybody."""
        if self._stop.is_set():
            self._hasten.cancel()
        self._stop.set()

    async def _run(self, store: Store, task_status: trio.TaskStatus[Self]) -> None:
        async with AsyncExitStack() as stack:
            listeners = Listeners(health=self.health, notifier=self._notifier, inherited=self._passed)
            stack.callback(listeners.close)
            shared = Shared(self.bus, self.health, self.metrics, store, listeners, self.settings.state_directory)
            self._store = store
            self._messaging = Messaging(
                self.settings.hub,
                await trio.to_thread.run_sync(_tokens, self._loaded),
                version=self.version,
                metrics=self.metrics,
                directory=self.settings.state_directory,
                backplane=self.settings.backplane,
                listening=lambda: [each for name in ("broker", "framed", "trace") for each in self.addresses(name)],
            )
            await self._messaging.restore()
            self.tracer = Tracer()
            self._supervisor = Supervisor(shared, self.settings.supervisor)
            self._reload = Reload(self._supervisor)
            for service_type in _rooms(self.metrics, self.tracer, self.hub, self.reactor):
                self._supervisor.add(service_type, self.settings.services()[service_type.name])

            outer = await stack.enter_async_context(trio.open_nursery())
            await outer.start(self.tracer.run)
            await outer.start(self._messaging.run)
            control_draining = trio.Event()
            try:
                control = await self._open_control(listeners, outer, control_draining)
                await outer.start(self._supervisor.run)
                await self._start_services()
            except BaseException:
                # for the start that succeeds
                listeners.leave_behind()
                self._messaging.save()
                raise
            if self._stop.is_set():
                listeners.leave_behind()  # not every service had its chance: it is for the next start to tell
            else:
                listeners.drop_unclaimed()
            # in this order: an embedded daemon leaves its program's environment alone
            if self._notifier.active and (interval := systemd.watchdog_interval()) is not None:
                await outer.start(systemd.watchdog, self._notifier, interval, self._supervisor.pulse)
            if not self._stop.is_set():
                self._state = "running"
                self._status_line.ready(self._summary())
                if self._notifier.active:
                    await outer.start(keep_status, self.bus, self._status, self._status_line.say)
                log.info("netd is running", version=self.version, sources=self._loaded.sources or "defaults", **control)
            task_status.started(self)
            await self._stop.wait()

            self._state = "draining"
            self._notifier.stopping("draining")
            self._notifier.extend_timeout(self._longest_stop())
            log.info("netd is draining", seconds=self.settings.supervisor.drain)
            listeners.leave_behind()
            try:
                await self._supervisor.stop_all()
            finally:
                self._messaging.save()  # hastened or not, this is an orderly end
            control_draining.set()
            await self._control_ended.wait()
            outer.cancel_scope.cancel()
        log.info("netd has stopped")

    async def _start_services(self) -> None:
        """Start what is enabled, unless a stop comes first. What cannot be prepared ends the start of the daemon."""
        async with trio.open_nursery() as nursery:

            async def until_stopped() -> None:
                await self._stop.wait()
                nursery.cancel_scope.cancel()

            enabled = sum(getattr(section, "enabled", True) for section in self.settings.services().values())
            self._notifier.extend_timeout(enabled * self.settings.supervisor.start_timeout + _MARGIN)
            nursery.start_soon(until_stopped)
            # no further than that: clients in a queue are for a daemon that stays
            outcomes = await self._supervisor.start_all(fatal=PrepareFailed)
            nursery.cancel_scope.cancel()
            for settled in outcomes.values():
                if isinstance(settled.error, PrepareFailed):
                    raise settled.error

    async def _open_control(self, listeners: Listeners, outer: trio.Nursery, draining: trio.Event) -> dict[str, str]:
        """Serve the control API, if there is to be one. Returns what the log should say of it."""
        self._control_ended = trio.Event()
        config = self.settings.control
        if config.socket is None:
            self._control_ended.set()
            return {}
        leases = listeners.lease("control", reserve=0)
        listener = await leases.open(Listen(address=f"unix:{config.socket}"), mode=config.mode, group=config.group)
        # late: FastAPI costs 0.3 s and 17 MiB, which a daemon without a control socket need not pay
        from netd.control.access import AccessPolicy, own_account
        from netd.control.app import create_app

        def code_uid() -> int | None:
            return os.geteuid() if self.settings.worker.command and self.settings.worker.user is None else None

        policy = AccessPolicy(lambda: self.control_config, own_uid=own_account(), code_uid=code_uid)
        outer.start_soon(policy.watch, self.health, self.bus.subscribe(Reloaded, buffer=1))
        app = create_app(self, outer, policy=policy)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                await http.serve(listener, app, lambda: self.control_config.limits, draining, task_status=task_status)
            finally:
                self._control_ended.set()

        await outer.start(serve)
        return {"control": str(config.socket)}

    def routers(self) -> Sequence[tuple[str, APIRouter]]:
        from netd.backplane import api as nodes_api
        from netd.services.anomaly import api as anomaly_api
        from netd.services.broker import api as broker_api
        from netd.services.framed import api as framed_api
        from netd.services.trace import api as trace_api
        from netd.services.worker import api as worker_api

        return [
            (
                "/trace",
                trace_api.router(lambda: self.service("trace"), self.tracer, self._store, lambda: self.settings.trace),
            ),
            ("/nodes", nodes_api.router(lambda: self.service("backplane"), lambda: self.settings.hub.backplane)),
            ("/worker", worker_api.router(lambda: self.service("worker"))),
            ("/framed", framed_api.router(lambda: self.service("framed"))),
            ("/broker", broker_api.router(lambda: self.service("broker"))),
            ("/anomaly", anomaly_api.router(lambda: self.service("anomaly"))),
        ]

    def _longest_stop(self) -> float:
        """Seconds that an orderly end may take, for systemd not to cut it short."""
        return self.settings.supervisor.drain + self.control_config.limits.drain + CLOSE_SECONDS + _MARGIN

    def _make_state_directory(self) -> None:
        """systemd makes it for the packaged service; whoever runs netd by hand should not have to."""
        directory = self.settings.state_directory
        try:
            if directory is not None:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise PrepareFailed("netd", f"cannot make the state directory {directory}: {why}") from error

    def _store_path(self) -> Path | None:
        directory = self.settings.state_directory
        return None if directory is None else directory / "netd.sqlite"

    # --- what it is ---

    @property
    def settings(self) -> Settings:
        """The configuration in force."""
        return self._loaded.settings

    @property
    def control_config(self) -> ControlConfig:
        return self.settings.control

    @property
    def hub(self) -> Hub:
        return self._messaging.hub

    @property
    def reactor(self) -> Reactor:
        return self._messaging.reactor

    async def keep_revoked(self) -> None:
        await self._messaging.keep_revoked()

    @property
    def state(self) -> DaemonState:
        return "reloading" if self._state == "running" and self._reload.under_way else self._state

    @property
    def ready(self) -> bool:
        return self._state == "running" and not self.waiting()

    def waiting(self) -> list[str]:
        return self._supervisor.waiting()

    def services(self) -> list[UnitSnapshot]:
        return self._supervisor.snapshot()

    def service(self, name: str) -> Any:
        return self._supervisor.unit(name).service

    def addresses(self, name: str) -> list[str]:
        """Where a service listens ("127.0.0.1:8080"); empty while it does not run. NotFound for an unknown name."""
        return self._supervisor.unit(name).snapshot().addresses

    def notices(self, *kinds: type[Notice]) -> Notices:
        """What happens, from now until the daemon has drained; of these classes, or everything."""
        return Notices(self.bus.subscribe(*kinds))

    # --- what the control API asks for ---

    async def service_start(self, name: str) -> UnitSnapshot:
        return await self._supervisor.start(name)

    async def service_stop(self, name: str) -> UnitSnapshot:
        return await self._supervisor.stop(name)

    async def service_restart(self, name: str) -> UnitSnapshot:
        return await self._supervisor.restart(name)

    async def reload(self) -> ReloadResult:
        """Put what the files say now in force. ConfigError, ReloadRefused, Conflict: nothing has changed."""
        return await self._reload_to({})

    async def config_patch(self, values: dict[str, Any], etag: str | None) -> ReloadResult:
        if self.settings.state_directory is None:
            raise Conflict("cannot keep settings: the daemon runs without a state directory")
        return await self._reload_to(values, etag)

    async def config_check(self) -> ConfigCheck:
        try:
            async with self._checking:
                loaded = await self._load()
                problems = await trio.to_thread.run_sync(check, loaded, self.settings)
        except ConfigError as error:
            problems = list(error.problems)
        if problems:
            return ConfigCheck(problems, [])
        found = changes(self.settings, loaded.settings)
        return ConfigCheck([], _shown(found, self._loaded.hidden, loaded.hidden))

    def config_view(self) -> ConfigView:
        values = redacted(plain(self.settings), (), self._loaded.hidden)
        etag = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        return ConfigView(values, self._loaded.origins, self._loaded.sources, etag)

    def config_schema(self) -> dict[str, Any]:
        return schema()

    def log_levels(self) -> dict[str, str]:
        return logs.levels()

    def set_log_level(self, level: str | None, logger: str = "") -> None:
        logs.set_level(level, logger)

    # --- reload ---

    async def _load(self, override: Mapping[str, Any] | None = None) -> Loaded:
        if self._source is None:
            raise Conflict("cannot load the configuration: the daemon was not started from files")
        return await trio.to_thread.run_sync(partial(self._source, override=override))

    async def _reload_to(self, override: Mapping[str, Any], etag: str | None = None) -> ReloadResult:
        """The one way to another configuration: SIGHUP, `netctl reload`, `netctl config set` and REST end here."""
        if self._state == "starting":
            raise Conflict("cannot reload: the daemon is still starting; try again once it is ready")
        before: list[Loaded] = []
        loaded: list[Loaded] = []
        tokens: list[Tokens] = []
        staged: list[StagedOverride] = []

        async def make_plan() -> Plan:
            if etag is not None and etag != self.config_view().etag:
                raise Conflict("cannot change the configuration: it is another by now; look at it again")
            self._notifier.reloading()
            loaded.append(await self._load(override or None))
            if problems := await trio.to_thread.run_sync(check, loaded[0], self.settings):
                raise ConfigError(problems)
            tokens.append(await trio.to_thread.run_sync(_tokens, loaded[0]))
            if override and (directory := self.settings.state_directory) is not None:
                staged.append(await trio.to_thread.run_sync(stage_override, directory, override))
            before.append(self._loaded)
            old, new = self.settings.services(), loaded[0].settings.services()
            return plan(self.settings, loaded[0].settings, {name: (old[name], new[name]) for name in old})

        def commit() -> None:
            for file in staged:
                file.commit()  # first: the one step that may fail
            self._loaded = loaded[0]
            self._supervisor.policy = self.settings.supervisor
            self._messaging.reconfigure(self.settings.hub, tokens[0])
            logs.reconfigure(self.settings.log)

        try:
            made = await self._reload.carry_out(make_plan, commit=commit)
        except NetdError as error:
            log.warning("reload refused", kind=error.kind, why=str(error))
            raise
        finally:
            for file in staged:
                file.discard()
            if self._state == "running":
                self._status_line.ready(self._summary())
        for file in staged:
            await trio.to_thread.run_sync(file.sync)
        self.bus.publish(Reloaded(changed=[change.path for change in made.changes]))
        return ReloadResult(_shown(made.changes, before[0].hidden, loaded[0].hidden), self.services())

    def _status(self) -> str | None:
        return self._summary() if self.state == "running" else None  # what else it is doing has been said

    def _summary(self) -> str:
        """One line for `systemctl status`."""
        return summary(self.services(), len(self.health.warnings()))


class Notices:
    """The notices of a running daemon: `async for notice in daemon.notices()`. Also a context manager."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notice:
        return (await self._subscription.__anext__()).notice

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._subscription.close()


@asynccontextmanager
async def open(settings: Settings | Mapping[str, Any] | None = None) -> AsyncIterator[Daemon]:
    """A daemon inside your own Trio program: `async with netd.open({...}) as daemon`.

    `settings` is nested as in netd.toml; without more, nothing of the host is taken or read: no files, no environment,
    no control socket, no state on disk, no signals. Inside the block every enabled service serves; leaving it
    drains and stops them. It logs as a library does (logs.embed).

    Raises ConfigError, or ServiceError when a service cannot be prepared.
    """
    if not isinstance(settings, Settings):
        settings = Settings.embedded(settings)
    logs.embed()
    daemon = Daemon(Loaded(settings, {}, []))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            yield daemon
            daemon._stop.set()  # not stop(): after one of the program's own it would be the second
    except BaseExceptionGroup as group:
        raise sole(group) from None


def _raise_file_limit() -> None:
    """Every client is a descriptor: take what the hard limit allows (the soft one is low for the sake of select)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(*, paths: Sequence[Path], log_level: str | None = None) -> int:
    """The process: load, serve until SIGTERM or SIGINT, return the exit code. NetdError for what prevents a start."""
    faulthandler.enable()  # for the watchdog's SIGABRT; Python's own switches are environment, which -I ignores
    os.umask(0o077)  # history and overrides hold addresses of clients, and perhaps secrets
    notifier = systemd.Notifier.from_environ()
    passed = systemd.listen_fds()
    waiting = [sock.dup() for sock in passed.get("control", ())]
    try:
        loaded = load(paths)
        logs.configure(loaded.settings.log, level=log_level)
        _raise_file_limit()
        daemon = Daemon(loaded, source=partial(load, paths), notifier=notifier, passed=passed)
        trio.run(_with_signals, daemon)
        notifier.status("stopped")
    except BaseExceptionGroup as group:
        error = sole(group)
        _say_why(error, notifier, waiting)
        raise error from None
    except NetdError as error:
        _say_why(error, notifier, waiting)
        raise
    finally:
        notifier.close()
        for sock in (*waiting, *chain.from_iterable(passed.values())):
            sock.close()
    return 0


def _say_why(error: BaseException, notifier: systemd.Notifier, waiting: Iterable[socket.socket]) -> None:
    """In systemd's status line, which stays when the process is gone, and to those whose command started us in vain;
    standard error has it all.
    """
    first, *others = str(error).splitlines() or [type(error).__name__]
    notifier.status(f"{first} (and {len(others)} more)" if others else first)
    if isinstance(error, ConfigError):  # others may be cured by the next start: clients had better go on waiting
        refuse_waiting(waiting, error)


async def _with_signals(daemon: Daemon) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey, daemon)
        await daemon.run()
        nursery.cancel_scope.cancel()


async def _obey(daemon: Daemon, *, task_status: trio.TaskStatus[None]) -> None:
    """SIGHUP reloads; SIGTERM and SIGINT drain, and a second one no longer waits."""
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.info("signal received", signal=signal.Signals(number).name)
                if number == signal.SIGHUP:
                    nursery.start_soon(_reload_by_signal, daemon)
                else:
                    daemon.stop()


async def _reload_by_signal(daemon: Daemon) -> None:
    try:
        await daemon.reload()
    except NetdError:
        return  # refused, and logged as such: a signal has nobody else to tell
    except Exception:  # what the guard of a change does for a reload by REST
        log.exception("reload failed inside")
