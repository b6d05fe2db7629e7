"""A daemon that says what a test wants: the real front door (net/http.py) on a Unix socket, with canned answers.

    with FakeApi(tmp_path).answer("GET", "/v1/status", {...}).serving() as api:
        ... netctl --socket api.socket ...
        assert api.requests[-1].body == {...}

It runs in a thread with a Trio loop of its own, so that tests may call netctl as a function or as a process.
"""

from __future__ import annotations

import json
import socket
import threading
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import trio
from structlog.testing import capture_logs

from netd.net.http import HttpLimits, serve

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: Any


class Answer:
    """A status, headers, and a body: JSON for an object, else bytes as they are. `hold` keeps the connection open."""

    def __init__(self, body: Any = None, status: int = 200, *, headers: dict[str, str] | None = None, hold=False):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.headers = headers or {}
        self.hold = hold


def sse(*events: tuple[str, dict[str, Any]], boot: str = "b0", first: int = 1, status: int = 200, hold: bool = False):
    """An answer of server-sent events with ids BOOT-SERIAL counting from `first`."""
    lines = [
        f"id: {boot}-{serial}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        for serial, (kind, data) in enumerate(events, first)
    ]
    body = ": \n\n" + "".join(lines)
    return Answer(body.encode(), status, headers={"content-type": "text/event-stream"}, hold=hold)


class FakeApi:
    """Several answers for one route are given one after another, the last one for ever."""

    def __init__(self, directory: Path, *, version: str = "0.1.0", api: str | None = "1") -> None:
        self.socket = directory / "control.sock"
        self.requests: list[Request] = []
        self.held = threading.Event()
        """A connection is being held open, all of its answer sent."""
        self.headers = {"netd-version": version} | ({"netd-api": api} if api else {})
        self._answers: dict[tuple[str, str], deque[Answer]] = defaultdict(deque)

    def answer(self, method: str, path: str, *answers: Any, status: int = 200) -> FakeApi:
        for body in answers:
            self._answers[method, path].append(body if isinstance(body, Answer) else Answer(body, status))
        return self

    def refuse(self, method: str, path: str, status: int, kind: str, message: str, field: str | None = None) -> FakeApi:
        where = {"path": field} if field else {}
        return self.answer(method, path, {"error": {"kind": kind, "message": message, **where}}, status=status)

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    @contextmanager
    def serving(self):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(self.socket))
        listening.listen(32)
        ready, token, draining = threading.Event(), [], []

        async def run() -> None:
            token.append(trio.lowlevel.current_trio_token())
            draining.append(trio.Event())
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            ready.set()
            await serve(listener, self._app, HttpLimits(drain=0.0), draining[0])

        # what the front door logs must not end up in the output of the netctl under test: they share a process
        with capture_logs():
            thread = threading.Thread(target=trio.run, args=(run,))
            thread.start()
            ready.wait(10)
            try:
                yield self
            finally:
                token[0].run_sync_soon(draining[0].set)
                thread.join(10)
                listening.close()
                self.socket.unlink(missing_ok=True)

    async def _app(self, scope, receive, send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["raw_path"].decode()
        self.requests.append(
            Request(
                scope["method"],
                path,
                parse_qsl(scope["query_string"].decode(), keep_blank_values=True),
                {name.decode(): value.decode() for name, value in scope["headers"]},
                json.loads(body) if body else None,
            )
        )
        waiting = self._answers.get((scope["method"], path))
        if not waiting:
            answer = Answer({"error": {"kind": "not-found", "message": f"cannot find {path}"}}, 404)
        else:
            answer = waiting.popleft() if len(waiting) > 1 else waiting[0]
        headers = {"content-type": "application/json"} | answer.headers | self.headers
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.body, "more_body": answer.hold})
        if answer.hold:
            self.held.set()
            while (await receive())["type"] != "http.disconnect":
                pass
