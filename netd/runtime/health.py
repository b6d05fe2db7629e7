"""Health: what is wrong right now, as coded warnings that somebody can act on.

Rules:
- a warning has a stable code; raising it again replaces it, clearing it removes it;
- `WarningRaised` and `WarningCleared` go out on the bus only when something really changed;
- the table is bounded: past the bound a warning is logged and dropped, and `health.overflow` says so;
- a service's view owns what it raised, so that an ending generation takes away its own warnings and not those that its
  successor has raised again meanwhile.

Left out: measurements (metrics.py) and things that merely happened (the bus).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import structlog

from netd.runtime.bus import Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.runtime.bus import Bus

Severity = Literal["warning", "error"]
Status = Literal["ok", "degraded", "failing"]

MAX_WARNINGS = 256
_OVERFLOW = "health.overflow"

log = structlog.get_logger("netd.runtime")


@dataclass(frozen=True)
class HealthWarning:
    """A condition that lasts. `since` is in seconds since the epoch; `advice` says what to do about it."""

    code: str
    severity: Severity
    message: str
    advice: str | None
    service: str | None
    since: float


@dataclass(frozen=True, kw_only=True)
class WarningRaised(Notice):
    """A warning is new, or says something else than before."""

    kind: ClassVar[str] = "warningRaised"
    service: str = "netd"  # type: ignore[misc]  # a field here: warnings are of many services
    code: str
    severity: Severity
    message: str
    advice: str | None = None


@dataclass(frozen=True, kw_only=True)
class WarningCleared(Notice):
    """A warning no longer holds."""

    kind: ClassVar[str] = "warningCleared"
    service: str = "netd"  # type: ignore[misc]  # as above
    code: str


class Health:
    """The daemon's warnings. All methods are for the Trio thread."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._clock = clock
        self._warnings: dict[str, HealthWarning] = {}
        self._owners: dict[str, ServiceHealth | None] = {}

    def warn(
        self,
        code: str,
        message: str,
        *,
        advice: str | None = None,
        severity: Severity = "warning",
        service: str | None = None,
    ) -> None:
        """Raise the warning `code`, or let it say something else. `since` stays that of its first raising."""
        self._warn(None, code, message, advice=advice, severity=severity, service=service)

    def clear(self, code: str) -> None:
        """The condition is over. Clearing what was not raised does nothing."""
        warning = self._warnings.pop(code, None)
        self._owners.pop(code, None)
        if warning is None:
            return
        log.info("warning cleared", code=code)
        self._bus.publish(WarningCleared(service=warning.service or "netd", code=code))
        if not self._full():
            self.clear(_OVERFLOW)

    def warnings(self) -> tuple[HealthWarning, ...]:
        """All that holds now, oldest first."""
        return tuple(self._warnings.values())

    @property
    def status(self) -> Status:
        if not self._warnings:
            return "ok"
        return "failing" if any(one.severity == "error" for one in self._warnings.values()) else "degraded"

    def for_service(self, name: str) -> ServiceHealth:
        """A view for one generation of a service: codes are prefixed with "NAME."."""
        return ServiceHealth(self, name)

    def _full(self) -> bool:
        return len(self._warnings) - (_OVERFLOW in self._warnings) >= MAX_WARNINGS

    def _warn(
        self,
        owner: ServiceHealth | None,
        code: str,
        message: str,
        *,
        advice: str | None,
        severity: Severity,
        service: str | None,
    ) -> None:
        before = self._warnings.get(code)
        if before is None and code != _OVERFLOW and self._full():
            log.warning("warning dropped, too many hold already", code=code, why=message)
            self.warn(_OVERFLOW, f"cannot show every warning: {MAX_WARNINGS} hold already, the log has the rest")
            return
        since = self._clock() if before is None else before.since
        warning = HealthWarning(code, severity, message, advice, service, since)
        self._owners[code] = owner
        if warning == before:
            return
        self._warnings[code] = warning
        log.log(40 if severity == "error" else 30, "warning raised", code=code, why=message, advice=advice)
        self._bus.publish(
            WarningRaised(service=service or "netd", code=code, severity=severity, message=message, advice=advice)
        )


class ServiceHealth:
    """What one generation of a service raises. A view that raised a warning last owns it."""

    def __init__(self, health: Health, service: str) -> None:
        self._health = health
        self._service = service

    def warn(self, code: str, message: str, *, advice: str | None = None, severity: Severity = "warning") -> None:
        """As `Health.warn`, for this service: `code` is without the prefix."""
        self._health._warn(
            self, f"{self._service}.{code}", message, advice=advice, severity=severity, service=self._service
        )

    def clear(self, code: str) -> None:
        self._health.clear(f"{self._service}.{code}")

    def clear_all(self) -> None:
        """Clear what this view raised and no other view raised after it."""
        for code in [code for code, owner in self._health._owners.items() if owner is self]:
            self._health.clear(code)
