"""The [supervisor] section. On its own, so that reading a configuration imports nothing that runs."""

from __future__ import annotations

from netd.section import Section, live


class RestartPolicy(Section):
    """[supervisor]: how services are started, stopped, and started again when they fail. Times are in seconds."""

    backoff_initial: float = live(0.5, gt=0, le=3600)
    """The delay after the first failure, in seconds."""
    backoff_max: float = live(30.0, gt=0, le=86400)
    """The longest delay in seconds, jitter aside."""
    backoff_factor: float = live(2.0, ge=1, le=10)
    """Each further failure multiplies the delay by this."""
    jitter: float = live(0.2, ge=0, le=1)
    """Every delay is changed at random by up to this share of it, either way."""
    healthy_after: float = live(10.0, ge=0, le=86400)
    """A service that served this long starts over with the first delay when it fails."""
    burst: int = live(5, ge=0, le=1000)
    """A service that fails so often within `burst_window` is given up until somebody starts it; 0: none is given up."""
    burst_window: float = live(60.0, gt=0, le=86400)
    """How far back failures count for `burst`."""
    start_timeout: float = live(30.0, gt=0, le=3600)
    """A service that is started has to be serving by then, or it has failed."""
    drain: float = live(10.0, ge=0, le=3600)
    """A service that is stopped may finish its sessions for this long; the rest is cancelled."""

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after `failures` (1 or more) in a row; `random` is in 0..1."""
        # 200 doublings are past any limit, and a float has no room for a thousand
        delay = min(self.backoff_max, self.backoff_initial * self.backoff_factor ** min(failures - 1, 200))
        return delay * (1 + self.jitter * (2 * random - 1))
