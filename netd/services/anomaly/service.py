"""The anomaly service's Trio shell: looks at every session of the hub at intervals, and says who is odd.

    hub.sessions --Reading--> Windows --scores--> view (REST), metrics, health
                                 \\--question--> adapter task --answer--> overrules until the next answer or failure

Rules:
- only the hub is asked: every transport is scored alike, and nothing is added to a message's way;
- the loop is never held for long: after 2 ms of scoring others have their turn;
- sampling does not wait for an adapter. One that is still busy when the next sample is there is asked about the one
  after; while it fails, `fallback` counts, and the warning anomaly.adapter says which;
- a new generation learns anew.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from netd.runtime.service import ServiceType
from netd.services.anomaly import adapters, protocol
from netd.services.anomaly.adapters import Adapter, AdapterFailed
from netd.services.anomaly.config import AnomalyConfig
from netd.services.anomaly.windows import Reading, Rules, Windows

if TYPE_CHECKING:
    from netd.hub.hub import Hub
    from netd.hub.session import Session
    from netd.runtime.metrics import Metrics
    from netd.runtime.service import Context
    from netd.services.anomaly.scores import Scores
    from netd.services.anomaly.windows import Watched

_SLICE = 0.002
"""Seconds of work before others have their turn."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class SessionScores:
    """One session. Scores are in 0..1; `figure` is the one that deviates most, "" if none does or an adapter said so.

    `source` is who scored its anomaly: "builtin" or the adapter's kind.
    """

    session: str
    name: str | None
    transport: str
    anomaly: float
    coherence: float
    entropy: float
    z: float
    figure: str
    samples: int
    source: str


@dataclass(frozen=True, slots=True)
class AnomalySnapshot:
    """The service at a moment."""

    use: str
    """The adapter that is configured: builtin, command, http or python."""
    scoring: str
    """Who scores now: that one, "builtin" while it has not answered or fails, or "none"."""
    adapter_error: str | None
    interval: float
    threshold: float
    window: int
    tracked: int
    untracked: int
    learning: int
    """Tracked sessions that have no scores yet."""
    over: int
    """Sessions at or past the threshold."""
    samples: int
    sample_ms: float
    """CPU time of the last sample."""


class Counters:
    """The service's metrics; without labels of sessions. All of them outlive the generation that counts."""

    def __init__(self, metrics: Metrics) -> None:
        self.sessions = metrics.gauge("netd_anomaly_sessions", "Sessions that are watched for anomalies.")
        self.untracked = metrics.gauge("netd_anomaly_untracked", "Sessions not watched: there are too many.")
        self.over = metrics.gauge("netd_anomaly_over_threshold", "Sessions whose anomaly score is past the threshold.")
        self.worst = metrics.gauge("netd_anomaly_worst_score", "The largest anomaly score of all sessions.")
        self.samples = metrics.counter("netd_anomaly_samples_total", "Samples taken of all sessions.")
        self.failures = metrics.counter("netd_anomaly_adapter_failures_total", "Questions an adapter did not answer.")
        self.seconds = metrics.histogram(
            "netd_anomaly_sample_seconds", "CPU time of one sample of all sessions.", buckets=_SECONDS
        )

    def nobody(self) -> None:
        """The service has ended: nobody is watched."""
        for gauge in (self.sessions, self.untracked, self.over, self.worst):
            gauge.set(0)


class PreparedAnomaly:
    """What `prepare` found: the adapter, if there is one. It holds nothing before it runs."""

    def __init__(self, adapter: Adapter | None) -> None:
        self.adapter = adapter

    def close(self) -> None:
        pass


async def prepare(config: AnomalyConfig, context: Context) -> PreparedAnomaly:
    """Find the adapter. Raises PrepareFailed."""
    return PreparedAnomaly(await trio.to_thread.run_sync(adapters.prepare, config.adapter, context.state_directory))


class AnomalyService:
    """One generation."""

    def __init__(self, config: AnomalyConfig, prepared: PreparedAnomaly, context: Context, *, hub: Hub) -> None:
        self._config = config
        self._adapter = prepared.adapter
        self._context = context
        self._hub = hub
        self._counters = Counters(context.metrics)
        self._windows = Windows(config.window)
        self._given: protocol.Given = {}
        self._answered = False
        self._failure: str | None = None
        self._question: dict[str, Any] | None = None
        self._asked = trio.Event()
        self._busy = False
        self._samples = 0
        self._sample_seconds = 0.0
        self._over = 0
        self._changed = trio.Event()

    # --- the Service protocol ---

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                if self._adapter is not None:
                    await nursery.start(self._run_adapter, self._adapter)
                    nursery.start_soon(self._ask, self._adapter)
                nursery.start_soon(self._sample_always)
                task_status.started()
                await self._context.draining.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._counters.nobody()

    def reconfigure(self, config: AnomalyConfig) -> None:
        self._config = config
        if self._adapter is not None:
            self._adapter.config = config.adapter
        self._changed.set()

    def snapshot(self) -> AnomalySnapshot:
        config = self._config
        return AnomalySnapshot(
            use=config.adapter.use,
            scoring=self._scoring,
            adapter_error=self._failure,
            interval=config.interval,
            threshold=config.threshold,
            window=config.window,
            tracked=len(self._windows),
            untracked=self._windows.untracked,
            learning=sum(watched.scores is None for _, watched in self._windows.items()),
            over=self._over,
            samples=self._samples,
            sample_ms=round(self._sample_seconds * 1000, 3),
        )

    # --- for REST ---

    def worst(self, limit: int) -> list[SessionScores]:
        """Sessions with scores, the largest anomaly first."""
        if self._scoring == "none":
            return []
        found = [
            (scores, session_id)
            for session_id, watched in self._windows.items()
            if (scores := self._effective(session_id, watched)) is not None and session_id in self._hub.sessions
        ]
        largest = heapq.nlargest(limit, found, key=lambda one: (one[0].anomaly, one[0].z))
        return [self._view(session_id, scores) for scores, session_id in largest]

    def of(self, session_id: str) -> SessionScores | None:
        """One session's scores; None if it has none."""
        watched = self._windows.get(session_id)
        if watched is None or session_id not in self._hub.sessions or self._scoring == "none":
            return None
        scores = self._effective(session_id, watched)
        return None if scores is None else self._view(session_id, scores)

    # --- inside ---

    @property
    def _scoring(self) -> str:
        config = self._config.adapter
        if self._failure is not None:
            return config.fallback
        return config.use if self._answered else "builtin"

    def _effective(self, session_id: str, watched: Watched) -> Scores | None:
        """A session's scores as they count now; None if it has none."""
        given = self._given.get(session_id)
        if given is None:
            return watched.scores
        return protocol.overruled(watched.scores, given)

    def _view(self, session_id: str, scores: Scores) -> SessionScores:
        session = self._hub.sessions[session_id]
        overruled = "anomaly" in self._given.get(session_id, ())
        return SessionScores(
            session=session_id,
            name=session.name,
            transport=session.transport,
            anomaly=round(scores.anomaly, 4),
            coherence=round(scores.coherence, 4),
            entropy=round(scores.entropy, 4),
            z=round(scores.z, 2),
            figure=scores.figure,
            samples=self._windows[session_id].samples,
            source=self._config.adapter.use if overruled else "builtin",
        )

    async def _sample_always(self) -> None:
        while True:
            begun = trio.current_time()
            await self._sample()
            # from the beginning of one to that of the next; one that took longer delays the next
            while (left := begun + self._config.interval - trio.current_time()) > 0:
                self._changed = trio.Event()
                with trio.move_on_after(left):
                    await self._changed.wait()  # the interval may be another
            await trio.lowlevel.checkpoint()

    async def _sample(self) -> None:
        """All sessions once."""
        config = self._config
        rules = Rules(config.warmup, config.lags, config.bins)
        sessions, windows = self._hub.sessions, self._windows
        spent = 0.0
        begun = time.thread_time()
        present = [session_id for session_id, session in sessions.items() if not session.internal]
        chosen = windows.admit(present, config.max_sessions)
        for session_id in chosen:
            session = sessions.get(session_id)
            if session is None:  # it left while others had their turn
                continue
            windows.sample(session_id, reading(session), trio.current_time(), rules)
            if (used := time.thread_time() - begun) > _SLICE:
                spent += used
                await trio.lowlevel.checkpoint()
                begun = time.thread_time()
        spent += time.thread_time() - begun
        self._samples += 1
        self._sample_seconds = spent
        self._counters.samples.inc()
        self._counters.seconds.observe(spent)
        await self._judge()
        if self._adapter is not None and not self._busy:
            await self._put_question()

    async def _judge(self) -> None:
        """Say who is past the threshold."""
        threshold = self._config.threshold
        over, worst, whose = 0, 0.0, ""
        begun = time.thread_time()
        for session_id, watched in list(self._windows.items()) if self._scoring != "none" else ():
            scores = self._effective(session_id, watched)
            if scores is None:
                continue
            if scores.anomaly >= threshold:
                over += 1
            if scores.anomaly > worst:
                worst, whose = scores.anomaly, session_id
            begun = await _in_turn(begun)
        self._over = over
        counters = self._counters
        counters.sessions.set(len(self._windows))
        counters.untracked.set(self._windows.untracked)
        counters.over.set(over)
        counters.worst.set(worst)
        if not over:
            self._context.health.clear("score")
            return
        session = self._hub.sessions.get(whose)
        name = f" ({session.name})" if session is not None and session.name else ""
        are = "1 session is" if over == 1 else f"{over} sessions are"
        self._context.health.warn(
            "score",
            f"{are} past the anomaly threshold {threshold:g}; the worst is {whose}{name} with {worst:.2f}",
            advice=f"see netctl anomaly, and netctl sessions show {whose}",
        )

    # --- the adapter ---

    async def _run_adapter(self, adapter: Adapter, *, task_status: trio.TaskStatus[None]) -> None:
        await adapter.run(task_status=task_status)

    async def _put_question(self) -> None:
        """Describe the sessions for the adapter, and have it asked."""
        described: dict[str, dict[str, float]] = {}
        begun = time.thread_time()
        for session_id, watched in list(self._windows.items()):
            if not watched.still:
                described[session_id] = protocol.described(watched)
                begun = await _in_turn(begun)
        self._question = protocol.question(self._samples, time.time(), self._config.interval, described)
        self._asked.set()

    async def _ask(self, adapter: Adapter) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            asked, self._question = self._question, None
            assert asked is not None
            self._busy = True
            try:
                given = await adapter.score(asked)
            except AdapterFailed as failed:
                self._fail(failed)
            else:
                self._given, self._answered, self._failure = given, True, None
                self._context.health.clear("adapter")
            finally:
                self._busy = False
            await self._judge()

    def _fail(self, failed: AdapterFailed) -> None:
        config = self._config.adapter
        self._given, self._answered = {}, False
        self._failure = str(failed)
        self._counters.failures.inc()
        meanwhile = "the built-in scores count" if config.fallback == "builtin" else "no scores count"
        self._context.health.warn(
            "adapter",
            f"cannot get anomaly scores by {config.use} ({self._failure}); until then {meanwhile}",
            advice=failed.advice,
        )


async def _in_turn(begun: float) -> float:
    """Let others have their turn if this one, which has `begun` then, is over. Returns when it began."""
    if time.thread_time() - begun <= _SLICE:
        return begun
    await trio.lowlevel.checkpoint()
    return time.thread_time()


def reading(session: Session) -> Reading:
    """A session's counters as they stand."""
    link, outbox = session.link, session.outbox
    return Reading(
        link.bytes_in, link.bytes_out, session.messages_in, session.messages_out, outbox.size, outbox.pressed
    )


def service_type(hub: Hub) -> ServiceType:
    """The anomaly service, looking at the sessions of `hub`."""
    return ServiceType(name="anomaly", config=AnomalyConfig, prepare=prepare, build=partial(AnomalyService, hub=hub))
