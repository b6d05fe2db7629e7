"""The tracer's bounds for the whole host, and the bucket that keeps them. Pure.

Rules: limits are arguments of every call and may change at any time (netd.budget has the rules of the bucket itself).
"""

from __future__ import annotations

from dataclasses import dataclass

from netd.budget import Bucket

_AT_ONCE = 0.25
"""Seconds' worth of probes that may go out at once."""


@dataclass(frozen=True, slots=True)
class TracerLimits:
    """Bounds for the whole host, whoever asks for traces."""

    traces: int = 64
    """Traces running at once."""
    probes_per_second: float = 2000.0
    """Probes sent a second over all traces."""
    burst: int | None = None
    """Probes that may go out at once after a pause; None: a quarter of a second's worth, at least one."""
    waiting: int = 1024
    """Traces that may wait for their turn; one more ends with reason "limited"."""
    patience: float = 10.0
    """Seconds a trace waits for its turn, and then for each of its probes, before it ends with reason "limited"."""

    @property
    def at_once(self) -> int:
        """`burst` as a number: no second has more than this and `probes_per_second` together."""
        return max(1, int(self.probes_per_second * _AT_ONCE) if self.burst is None else self.burst)


class ProbeBucket(Bucket):
    """What the host has left to spend on probes."""

    __slots__ = ()

    def take(self, limits: TracerLimits, now: float) -> float:
        """Take a probe and return 0.0, or take none and return the seconds until there is one."""
        rate = max(limits.probes_per_second, 0.001)
        self.refill(now, rate, float(limits.at_once))
        return self.draw(rate)
