"""A worker as a program: signals, what systemd wants of it, logging to standard error, and how it ends.

    if __name__ == "__main__":
        run(worker)

Rules:
- SIGTERM and Ctrl-C stop it in order (running.py); a second one does not wait;
- what ends it is a sentence on standard error and an exit status of sysexits.h, never a traceback: 69 the daemon does
  not want it, 76 another version or a broken protocol, 70 a defect;
- under systemd it is ready when the daemon has welcomed it for the first time, the watchdog is fed while the event
  loop works, and what it logs has a level. Nothing of that is imported otherwise.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from netd.errors import NetdError, sole
from netd.worker.running import DRAIN, default_socket, serve

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

    from netd.systemd import Notifier
    from netd.worker.worker import Worker

_SHAPE = "%(levelname)s %(name)s: %(message)s"

log = logging.getLogger("netd.worker")


def run(worker: Worker, socket: str | Path | None = None, *, drain: float = DRAIN) -> None:
    """Work until SIGTERM or Ctrl-C, then end the program; with a sentence and a status where it cannot go on.

    `socket`: unless given, --socket of the command line, NETD_WORKER_SOCKET, or /run/netd/worker.sock. `drain`: seconds
    that handlers have to end. What is logged goes to standard error, unless the program has set logging up.
    """
    log_to_stderr()
    if worker.name is None:
        worker.name = Path(sys.argv[0]).stem[:128] or None
    sys.exit(work(worker, socket if socket is not None else _from_argv(sys.argv[1:]), drain=drain))


def work(worker: Worker, socket: str | Path | None, *, drain: float = DRAIN) -> int:
    """Work until a signal; the status with which the program is to end."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what is printed shows at once also where nobody looks: in a log
        sys.stdout.reconfigure(line_buffering=True)
    try:
        trio.run(_work, worker, Path(socket) if socket is not None else default_socket(), drain)
    except NetdError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


async def _work(worker: Worker, path: Path, drain: float) -> None:
    notifier, interval = _systemd()
    ready = False

    def status(text: str, connected: bool) -> None:
        nonlocal ready
        if notifier is None:
            return
        if connected and not ready:
            ready = True
            notifier.ready(text)
        else:
            notifier.status(text)

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_at_signals, worker, nursery.cancel_scope, notifier)
            if notifier is not None and interval is not None:
                from netd.systemd import watchdog

                await nursery.start(watchdog, notifier, interval, trio.lowlevel.checkpoint)
            await serve(worker, path, drain=drain, status=status)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None


async def _stop_at_signals(
    worker: Worker,
    everything: trio.CancelScope,
    notifier: Notifier | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        stopping = False
        async for number in signals:
            if stopping:
                log.warning("%s again: not waiting for what still runs", signal.Signals(number).name)
                everything.cancel()
                return
            stopping = True
            log.info("%s: finishing what runs", signal.Signals(number).name)
            if notifier is not None:
                notifier.stopping("finishing what runs")
            worker.stop()


def _systemd() -> tuple[Notifier | None, float | None]:
    """Whom to tell how it goes, and how often its watchdog wants to hear of us (seconds)."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None, None
    import structlog

    from netd.systemd import Notifier, watchdog_interval

    if not structlog.is_configured():  # which is how netd.systemd logs; an application may have other plans for it
        structlog.configure(
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=[_in_words],
        )
    return Notifier.from_environ(), watchdog_interval()


def _from_argv(argv: Sequence[str]) -> Path | None:
    for at, word in enumerate(argv):
        if word == "--socket" and at + 1 < len(argv):
            return Path(argv[at + 1])
        if word.startswith("--socket="):
            return Path(word.removeprefix("--socket="))
    return None


# --- logging ---------------------------------------------------------------------------------------------------------


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show what is logged, unless the program has set logging up; for the journal with levels that it understands."""
    root = logging.getLogger()
    if root.handlers:
        return
    output = logging.StreamHandler()
    output.setFormatter(_ForTheJournal(_SHAPE) if "JOURNAL_STREAM" in os.environ else logging.Formatter(_SHAPE))
    root.addHandler(output)
    root.setLevel(level)


def _in_words(logger: object, name: str, event: MutableMapping[str, Any]) -> str:
    return " ".join([str(event.pop("event")), *(f"{key}={value!r}" for key, value in event.items())])


class _ForTheJournal(logging.Formatter):
    """Each line begins with its level as the kernel writes it, "<3>" (sd-daemon(3)), a traceback's lines too."""

    def format(self, record: logging.LogRecord) -> str:
        level = next((number for least, number in ((50, 2), (40, 3), (30, 4), (20, 6)) if record.levelno >= least), 7)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines() or [""])
