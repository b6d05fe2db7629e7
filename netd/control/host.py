"""What the control API asks of the daemon behind it. The daemon implements it; the app knows nothing else.

Slow verbs (`service_*`, `reload`, `config_patch`) return when settled or raise a NetdError; the app runs them as
changes in the daemon's nursery, so that a caller that goes away does not cancel them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from netd.errors import ConfigProblem
from netd.runtime.unit import UnitSnapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import APIRouter

    from netd.control.config import ControlConfig
    from netd.hub.hub import Hub
    from netd.net.paths.tracer import Tracer
    from netd.net.reactor import Reactor
    from netd.runtime.bus import Bus
    from netd.runtime.health import Health
    from netd.runtime.metrics import Metrics

DaemonState = Literal["starting", "running", "reloading", "draining"]


@dataclass(frozen=True)
class ConfigChange:
    """One field that differs: `path` is its dotted key, `effect` how a reload treats it (live, replace, fixed)."""

    path: str
    running: Any
    configured: Any
    effect: str


@dataclass(frozen=True)
class ConfigView:
    """The running configuration: nested plain values with secrets redacted, where each set key came from, an ETag."""

    values: dict[str, Any]
    origins: dict[str, str]
    """dotted key -> "FILE:LINE", "NETD_VARIABLE", "credential NAME"; defaults are absent."""
    sources: list[str]
    """The files read, in order."""
    etag: str


@dataclass(frozen=True)
class ConfigCheck:
    """What a reload would find: all problems, and if there are none, all changes."""

    problems: list[ConfigProblem]
    changes: list[ConfigChange]


@dataclass(frozen=True)
class ReloadResult:
    """A reload that was carried out."""

    changes: list[ConfigChange]
    services: list[UnitSnapshot]


class Host(Protocol):
    """The daemon as the control API sees it."""

    version: str
    started: float
    """Seconds since the epoch."""
    bus: Bus
    health: Health
    metrics: Metrics

    @property
    def hub(self) -> Hub: ...

    @property
    def tracer(self) -> Tracer: ...

    @property
    def reactor(self) -> Reactor: ...

    @property
    def control_config(self) -> ControlConfig:
        """The running [control] section; its live fields may differ from call to call."""

    @property
    def state(self) -> DaemonState: ...

    @property
    def ready(self) -> bool:
        """The daemon has started, is not draining, and every service that is to run (`waiting`) is serving."""

    def waiting(self) -> Sequence[str]:
        """The services that are to run and are not serving; one that was stopped by hand is not to run."""

    def services(self) -> Sequence[UnitSnapshot]: ...

    def service(self, name: str) -> Any:
        """The running generation's Service object, None while it is not running. NotFound for an unknown name."""

    async def service_start(self, name: str) -> UnitSnapshot: ...

    async def service_stop(self, name: str) -> UnitSnapshot: ...

    async def service_restart(self, name: str) -> UnitSnapshot: ...

    async def keep_revoked(self) -> None:
        """Have on disk which tokens are revoked. NetdError: that cannot be; it holds until the daemon ends."""

    async def reload(self) -> ReloadResult: ...

    def config_view(self) -> ConfigView: ...

    async def config_check(self) -> ConfigCheck:
        """Load and validate what is on disk now, and compare it with what runs; changes nothing."""

    async def config_patch(self, values: dict[str, Any], etag: str | None) -> ReloadResult:
        """Set dotted keys (None: back to what the files say) in override.toml and reload; nothing stays if refused."""

    def config_schema(self) -> dict[str, Any]: ...

    def log_levels(self) -> dict[str, str]:
        """ "" (the root) and every logger with a level of its own -> level name."""

    def set_log_level(self, level: str | None, logger: str = "") -> None:
        """None: back to the inherited level. Raises ControlError for an unknown level."""

    def routers(self) -> Sequence[tuple[str, APIRouter]]:
        """Each service's own router with the prefix it is mounted at ("/trace")."""
