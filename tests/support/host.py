"""A daemon for the control API's tests: keeps what it was asked, fails when told to, has a real bus, health and hub."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import trio

from netd.control.config import ControlConfig
from netd.control.host import ConfigChange, ConfigCheck, ConfigView, DaemonState, Host, ReloadResult
from netd.errors import ControlError, NotFound
from netd.hub.config import HubConfig, Namespace
from netd.hub.hub import Hub
from netd.hub.outbox import Outbox, OutboxRules
from netd.hub.session import Session
from netd.net.paths.tracer import Tracer
from netd.net.reactor import Reactor
from netd.runtime.bus import Bus, Notice
from netd.runtime.health import Health
from netd.runtime.metrics import Metrics
from netd.runtime.unit import UnitSnapshot
from netd.wire.messages import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import APIRouter


class FakeHost:
    """Implements netd.control.host.Host over two pretended services, "trace" and "broker"."""

    def __init__(self) -> None:
        self.version = "1.2.3"
        self.started = time.time() - 60
        self.bus = Bus(history=8)
        self.health = Health(self.bus)
        self.metrics = Metrics()
        self.hub = Hub(HUB, clock=time.time, version=self.version)
        self.reactor = Reactor()
        self.tracer = Tracer()
        """Not running: tests that trace put a scripted one here."""
        self.control_config = ControlConfig()
        self.state: DaemonState = "running"
        self.units = {name: unit(name) for name in ("trace", "broker")}
        self.levels = {"": "info"}
        self.asked: list[tuple[Any, ...]] = []
        self.fail: BaseException | None = None
        """What the next slow operation raises."""
        self.gate: trio.Event | None = None
        """What slow operations wait for."""
        self.problems: list[Any] = []
        self.extra: list[tuple[str, APIRouter]] = []

    @property
    def ready(self) -> bool:
        return not self.waiting() and self.state == "running"

    def waiting(self) -> list[str]:
        return [one.name for one in self.units.values() if one.enabled and one.state != "running"]

    def services(self) -> Sequence[UnitSnapshot]:
        return list(self.units.values())

    def service(self, name: str) -> Any:
        if name not in self.units:
            raise NotFound(f"cannot find service {name!r}")
        return None

    async def service_start(self, name: str) -> UnitSnapshot:
        return await self._set("start", name, "running")

    async def service_stop(self, name: str) -> UnitSnapshot:
        return await self._set("stop", name, "stopped")

    async def service_restart(self, name: str) -> UnitSnapshot:
        return await self._set("restart", name, "running")

    async def keep_revoked(self) -> None:
        self.asked.append(("keep_revoked", len(self.hub.revocations)))

    async def reload(self) -> ReloadResult:
        await self._slowly("reload")
        return ReloadResult([CHANGE], list(self.units.values()))

    def config_view(self) -> ConfigView:
        values = {"trace": {"max_hops": 30, "token": "**********"}}
        return ConfigView(values, {"trace.max_hops": "netd.toml:3"}, ["netd.toml"], "abc123")

    async def config_check(self) -> ConfigCheck:
        return ConfigCheck(list(self.problems), [] if self.problems else [CHANGE])

    async def config_patch(self, values: dict[str, Any], etag: str | None) -> ReloadResult:
        await self._slowly("patch", values, etag)
        return ReloadResult([CHANGE], list(self.units.values()))

    def config_schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"trace": {"type": "object"}}}

    def log_levels(self) -> dict[str, str]:
        return dict(self.levels)

    def set_log_level(self, level: str | None, logger: str = "") -> None:
        if level not in (None, "debug", "info", "warning", "error", "critical"):
            raise ControlError(f"cannot set log level {level!r}", path="level")
        self.levels[logger] = level or "info"

    def routers(self) -> Sequence[tuple[str, APIRouter]]:
        return self.extra

    async def _set(self, verb: str, name: str, state: str) -> UnitSnapshot:
        await self._slowly(verb, name)
        self.units[name] = replace(self.units[name], state=state)
        return self.units[name]

    async def _slowly(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.fail is not None:
            raise self.fail


HUB = HubConfig(
    namespace=[
        Namespace(name="chat", history_size=100, join_leave=True),
        Namespace(name="news", max_message=10_000_000),
    ],
    resume_seconds=0,
)
"""chat:* has a history, news:* has none."""


class Unread:
    """Sends nothing of what outboxes hold."""

    def mark(self, outbox: Outbox) -> None: ...
    def mark_crowd(self, outboxes: list[Outbox], alone: list[bytes]) -> None: ...

    def settle(self) -> None:
        """Nothing is ever owed."""

    def send_at_once(self, outboxes: Any, data: bytes, messages: int) -> Any:
        return outboxes


class FakeSession:
    """A client of the hub without a connection: its link and the owner of its outbox. `said` is what it was sent."""

    def __init__(self, hub: Hub, *, bound: int = 1 << 20, **fields: Any) -> None:
        self.carrier: Any = None
        self.socket: Any = None
        self.bytes_in, self.bytes_out, self.tls = 100, 200, False
        self.closed: tuple[int, str] | None = None
        self.outbox = Outbox(OutboxRules(bound, "drop-oldest"), Unread(), self)
        given = {"transport": "framed", "listener": "127.0.0.1:9000", "address": "192.0.2.7:5000"} | fields
        self.session = Session(encoder=JSON, outbox=self.outbox, link=self, **given)
        hub.open(self.session)

    @property
    def said(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.outbox.take(1 << 30, 0.0)]

    def close(self, code: int, reason: str, retry_after: float | None = None) -> None:
        self.closed = (code, reason)

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def pressure(self, over: bool) -> None: ...
    def overflow(self) -> None: ...


class JsonEncoder:
    def encode(self, event: Any) -> bytes:
        return encode(event, "json")


JSON = JsonEncoder()

CHANGE = ConfigChange("trace.max_hops", 30, 20, "live")


def unit(name: str, state: str = "running", *, enabled: bool = True) -> UnitSnapshot:
    return UnitSnapshot(
        name=name,
        state=state,
        since=1.7e9,
        generation=1,
        restarts=0,
        error=None,
        retry_at=None,
        addresses=["127.0.0.1:8080"],
        enabled=enabled,
    )


class Tick(Notice):
    """A notice to publish."""

    kind: ClassVar[str] = "tick"
    service: ClassVar[str] = "trace"


class Tock(Notice):
    kind: ClassVar[str] = "tock"
    service: ClassVar[str] = "broker"


def _is_a_host(host: FakeHost) -> Host:
    return host
