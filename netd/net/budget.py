"""What the tracer may spend, host-wide: bounds and the bucket that keeps to them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracerLimits:
    """Bounds for the whole host, whoever asks for traces."""

    traces: int = 64
    """Traces running at once."""
    probes_per_second: float = 2000.0
    """Probes sent a second over all traces."""
    burst: int = 500
    """Probes that may go out at once after a pause."""
    waiting: int = 1024
    """Traces that may wait for their turn; one more ends with reason "limited"."""
    patience: float = 10.0
    """Seconds a trace waits for its turn before it ends with reason "limited"."""


class Bucket:
    """Tokens that come back at a rate, up to a burst. Time (seconds) and limits are arguments."""

    def __init__(self) -> None:
        self._tokens: float | None = None
        self._at = 0.0

    def take(self, limits: TracerLimits, now: float) -> float:
        """Take a token and return 0.0, or take none and return the seconds until there is one."""
        burst = max(1.0, float(limits.burst))
        rate = max(limits.probes_per_second, 0.001)
        tokens = burst if self._tokens is None else min(burst, self._tokens + (now - self._at) * rate)
        self._at = now
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return 0.0
        self._tokens = tokens
        return (1.0 - tokens) / rate
