"""What an application is written with: a process of its own, to which netd hands what clients want of it.

    from netd.worker import Worker, run

    worker = Worker()

    @worker.message
    def message(session, data, token):
        worker.send(session, f"you said {data}")

    @worker.http_request
    def request(request):
        return {"you asked for": request.path}

    if __name__ == "__main__":
        run(worker)

Start it by hand, with `python -m netd.worker module:worker`, as `netd-worker@NAME.service`, or by netd's own [worker]
section. Any number may run. worker.py says what handlers and verbs there are; examples/ has two applications.

Names are imported when first used; the package knows netd.wire and netd.errors, and nothing of the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netd.wire.workers import HistoryPage, Position
    from netd.worker.http import Headers, Request, Response
    from netd.worker.program import run
    from netd.worker.running import serve
    from netd.worker.session import Session
    from netd.worker.worker import Worker

__all__ = ["Headers", "HistoryPage", "Position", "Request", "Response", "Session", "Worker", "run", "serve"]

_HOMES = {
    "Headers": "netd.worker.http",
    "HistoryPage": "netd.wire.workers",
    "Position": "netd.wire.workers",
    "Request": "netd.worker.http",
    "Response": "netd.worker.http",
    "Session": "netd.worker.session",
    "Worker": "netd.worker.worker",
    "run": "netd.worker.program",
    "serve": "netd.worker.running",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
