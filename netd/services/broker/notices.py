"""What the broker tells the host: the notices of a service with sessions, in its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from netd.sessions import notices


@dataclass(frozen=True, kw_only=True)
class Opened(notices.Opened):
    service: ClassVar[str] = "broker"


@dataclass(frozen=True, kw_only=True)
class Closed(notices.Closed):
    service: ClassVar[str] = "broker"


@dataclass(frozen=True, kw_only=True)
class Rejected(notices.Rejected):
    service: ClassVar[str] = "broker"


@dataclass(frozen=True, kw_only=True)
class Backpressure(notices.Backpressure):
    service: ClassVar[str] = "broker"


@dataclass(frozen=True, kw_only=True)
class Drain(notices.Drain):
    service: ClassVar[str] = "broker"


WORDS = notices.Vocabulary(Opened, Closed, Rejected, Backpressure, Drain)
