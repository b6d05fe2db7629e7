"""What may be spent in a time: the token bucket, and the tracer's bounds for the whole host. Pure.

Rules:
- `now` (seconds) and the limits are arguments of every call, so that limits may change at any time: what is there is
  cut to a smaller burst at the next call, a larger one has to be earned;
- from any call on, no stretch of time has more than the burst and what the rate of then gives;
- a clock that stands still or goes back earns nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_AT_ONCE = 0.25
"""Seconds' worth of probes that may go out at once."""
_NEARLY = 1e-9
"""A refill that should have come to exactly one token may fall short of it by rounding."""


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
    """Seconds a trace waits for its turn before it ends with reason "limited"."""

    @property
    def at_once(self) -> int:
        """`burst` as a number: no second has more than this and `probes_per_second` together."""
        return max(1, int(self.probes_per_second * _AT_ONCE) if self.burst is None else self.burst)


@dataclass(slots=True)
class Bucket:
    """Tokens that come back at a rate, up to a burst. `tokens` are as of `stamp`; new, it is full."""

    tokens: float = math.inf
    stamp: float = 0.0

    def refill(self, now: float, rate: float, burst: float) -> None:
        """Earn `rate` tokens a second up to `burst`."""
        if now > self.stamp:
            self.tokens += (now - self.stamp) * rate
            self.stamp = now
        self.tokens = min(self.tokens, burst)

    def spend(self, amount: float, rate: float) -> float:
        """Take `amount`, into debt if need be; returns the seconds until the bucket has made up for it."""
        self.tokens -= amount
        return max(0.0, -self.tokens / rate)

    def draw(self, rate: float) -> float:
        """Take a token and return 0.0, or take none and return the seconds until there is one."""
        missing = 1.0 - self.tokens
        if missing > _NEARLY:
            return missing / rate
        self.tokens = max(0.0, self.tokens - 1.0)
        return 0.0

    def take(self, limits: TracerLimits, now: float) -> float:
        """`refill` and `draw` for one probe."""
        rate = max(limits.probes_per_second, 0.001)
        self.refill(now, rate, float(limits.at_once))
        return self.draw(rate)
