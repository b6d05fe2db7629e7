"""Who else may score: a program, a URL, or a function of the user's. The Trio side of protocol.py.

    await adapter.score(question) -> {session id: {name: score}}, or AdapterFailed with a sentence and what to do

Rules:
- every answer has a time limit and a largest size, and is checked before anybody sees it;
- the program (program.py) is ended with the adapter, and whenever an answer is late or wrong: nobody knows what would
  come next. It is started again after 1 s, then 2, 4 ... 60 s, and after 1 s once it has answered;
- a function that blocks keeps one thread and no more: while it has not returned, the next question has to wait for it.

A program that runs as root keeps root's user id, and may open what root's files' modes let it: run netd as an
account of its own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import shutil
from typing import TYPE_CHECKING, Any, Protocol

import structlog
import trio

from netd.errors import PrepareFailed, ProtocolError
from netd.runtime.programs import obstacle, own_directories
from netd.services.anomaly.program import Ended, Program, how
from netd.services.anomaly.protocol import Given, answer, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from netd.services.anomaly.config import AdapterConfig

log = structlog.get_logger("netd.anomaly")

GROUP = "netd.anomaly"
"""The group of entry points."""

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0
START_GRACE = 10.0
"""Seconds that a program's first answer may take beyond the timeout: it has to start first."""
GOODBYE = 1.0
"""Seconds that a program may take to end once its stdin is closed."""


class AdapterFailed(Exception):  # a verdict on one answer; it never leaves this service
    """No scores this time. `advice` says what to do about it."""

    def __init__(self, message: str, advice: str) -> None:
        self.advice = advice
        super().__init__(message)


class Adapter(Protocol):
    """Somebody who scores."""

    config: AdapterConfig
    """Settable: its live fields count from the next question."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold what is needed; gives it back when cancelled."""

    async def score(self, asked: Mapping[str, Any]) -> Given:
        """The answer to a question (protocol.question). Raises AdapterFailed."""


def prepare(config: AdapterConfig, state: Path | None = None) -> Adapter | None:
    """The adapter that the configuration names, None for the built-in scores. Imports the user's module: may block.

    `state` is where the daemon keeps its own. Raises PrepareFailed for what cannot work at all.
    """
    match config.use:
        case "command":
            return CommandAdapter(config, state)
        case "http":
            return HttpAdapter(config)
        case "python":
            return PythonAdapter(config, _find(config.target or ""))
        case "builtin":
            return None


# --- a program -------------------------------------------------------------------------------------------------------


class CommandAdapter:
    """A program that reads questions from stdin and writes answers to stdout, a line each."""

    def __init__(self, config: AdapterConfig, state: Path | None = None) -> None:
        self.config = config
        name, *arguments = config.command or [""]
        found = shutil.which(name) or name
        program = os.path.abspath(found) if "/" in found else found  # it is started in another directory than ours
        self._hidden = own_directories(state)
        if why_not := obstacle([program], hidden=self._hidden):
            why = f"{why_not}; change anomaly.adapter.command, or let the daemon use it"
            raise PrepareFailed("anomaly", f"cannot start {name!r} for scores: {why}")
        self._command = [program, *arguments]
        self._nursery: trio.Nursery | None = None
        self._program: Program | None = None
        self._delay = FIRST_DELAY
        self._next_start = -float("inf")
        self._why = ""
        self.starts = 0
        """Programs started so far."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            program, self._program = self._program, None
            if program is not None:
                # bounded, and it ends with SIGKILL: nobody is held up for long
                with trio.CancelScope(shield=True):
                    await program.end(GOODBYE)

    async def score(self, asked: Mapping[str, Any]) -> Given:
        advice = f"look at what {self._command[0]} says, and at anomaly.adapter.timeout"
        try:
            program = await self._running()
            timeout = self.config.timeout + (0.0 if program.answered else START_GRACE)
            with trio.move_on_after(timeout) as patience:
                line = await program.ask(encode(asked), self.config.max_answer)
                given = answer(decode(line), asked)
            if patience.cancelled_caught:
                raise ProtocolError(f"cannot wait longer than {timeout:g} s for its answer")
        except (ProtocolError, OSError) as error:
            raise AdapterFailed(await self._give_up(error), advice) from error
        except BaseException:
            # cancelled within a question: what comes next on the pipe would be its answer
            if self._program is not None:
                self._program.kill()
            raise
        program.answered = True
        self._delay = FIRST_DELAY
        return given

    async def _running(self) -> Program:
        if self._program is not None:
            return self._program
        now = trio.current_time()
        if now < self._next_start:
            raise ProtocolError(f"cannot ask it: {self._why}; it is started again in {self._next_start - now:.0f} s")
        assert self._nursery is not None
        self._next_start = now + self._delay
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        self.starts += 1
        self._program = await Program.start(self._command, self._nursery, hidden=self._hidden)
        log.info("adapter started", command=self._command[0], pid=self._program.pid)
        return self._program

    async def _give_up(self, error: Exception) -> str:
        """The sentence for a failed question. The program is ended: it will be started again."""
        why = str(error)
        if isinstance(error, OSError):
            why = f"cannot start it: {(error.strerror or why).lower()}"
        program, self._program = self._program, None
        if program is not None:
            with trio.CancelScope(shield=True):  # bounded: it is killed at once
                status = await program.end(0.0)
            if isinstance(error, Ended):
                why = f"{why} ({how(status)})"
            if program.complaint:
                why = f"{why}; it said: {program.complaint}"
        if program is not None or isinstance(error, OSError):
            self._why = why.removeprefix("cannot ask it: ")
        return why


# --- a URL -----------------------------------------------------------------------------------------------------------


class HttpAdapter:
    """A URL that takes a question as POST and answers with scores."""

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self._http: Any = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        import httpx  # 60 ms and 10 MiB, which only this adapter pays for

        headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "netd"}
        if self.config.token is not None:
            headers["authorization"] = f"Bearer {self.config.token.get_secret_value()}"
        async with httpx.AsyncClient(headers=headers, trust_env=False, follow_redirects=False, timeout=None) as http:
            self._http = http
            task_status.started()
            await trio.sleep_forever()

    async def score(self, asked: Mapping[str, Any]) -> Given:
        import httpx

        config = self.config
        advice = f"look at what serves {config.url}, and at anomaly.adapter.timeout"
        try:
            with trio.move_on_after(config.timeout) as patience:
                status, body = await self._post(encode(asked))
            if patience.cancelled_caught:
                raise AdapterFailed(f"cannot wait longer than {config.timeout:g} s for its answer", advice)
            if status != 200:
                raise AdapterFailed(f"cannot use its answer: status {status}, not 200", advice)
            return answer(decode(body), asked)
        except ProtocolError as error:
            raise AdapterFailed(str(error), advice) from error
        except (httpx.HTTPError, OSError) as error:
            raise AdapterFailed(f"cannot ask it: {str(error) or type(error).__name__}", advice) from error

    async def _post(self, content: bytes) -> tuple[int, bytes]:
        most = self.config.max_answer
        request = self._http.build_request("POST", self.config.url, content=content)
        response = await self._http.send(request, stream=True)
        taken = bytearray()
        body = response.aiter_raw()
        try:
            # a body that is left half read has to be cancelled: closing its outermost generator leaves the inner ones
            with trio.CancelScope() as scope:
                async for chunk in body:
                    taken += chunk
                    if len(taken) > most:
                        scope.cancel()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1.0):
                await response.aclose()
        if scope.cancelled_caught or len(taken) > most:
            raise ProtocolError(f"cannot take its answer: it is longer than {most} bytes")
        return response.status_code, bytes(taken)


# --- a function ------------------------------------------------------------------------------------------------------


class PythonAdapter:
    """A function of the user's: a question as a dict in, an answer as a dict out."""

    def __init__(self, config: AdapterConfig, function: Callable[[dict[str, Any]], Any]) -> None:
        self.config = config
        self._function = function
        self._thread = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def score(self, asked: Mapping[str, Any]) -> Given:
        timeout = self.config.timeout
        advice = f"look at the function {self.config.target}; the log has its traceback, if it raised"
        try:
            with trio.move_on_after(timeout) as patience:
                said = await self._call(_copy(asked))
        except (Exception, SystemExit) as error:
            # the user's code, as its own guard: whatever it raises is the end of this answer and of nothing else
            log.exception("adapter broke", target=self.config.target)
            raise AdapterFailed(f"cannot ask it: it raised {type(error).__name__}: {error}"[:300], advice) from error
        if patience.cancelled_caught:
            raise AdapterFailed(f"cannot wait longer than {timeout:g} s for its answer", advice)
        try:
            return answer(said, asked)
        except ProtocolError as error:
            raise AdapterFailed(str(error), advice) from error

    async def _call(self, asked: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._function) or inspect.iscoroutinefunction(type(self._function).__call__):
            return await self._function(asked)
        return await trio.to_thread.run_sync(self._function, asked, abandon_on_cancel=True, limiter=self._thread)


def _copy(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The function may do with it what it likes, in a thread that may outlive its question."""
    return {**asked, "sessions": {session_id: dict(one) for session_id, one in asked["sessions"].items()}}


def _find(target: str) -> Callable[[dict[str, Any]], Any]:
    """The function that "module:function", or an entry point's name, stands for. Raises PrepareFailed."""
    try:
        if ":" in target:
            module, _, path = target.partition(":")
            found: Any = importlib.import_module(module)
            for name in path.split("."):
                found = getattr(found, name)
        else:
            points = importlib.metadata.entry_points(group=GROUP, name=target)
            if not points:
                known = sorted(point.name for point in importlib.metadata.entry_points(group=GROUP))
                raise PrepareFailed(
                    "anomaly",
                    f"cannot find entry point {target!r} in group {GROUP}: there are {', '.join(known) or 'none'}",
                )
            found = next(iter(points)).load()
    except PrepareFailed:
        raise
    except (Exception, SystemExit) as error:  # importing runs the user's code, which may raise anything
        raise PrepareFailed("anomaly", f"cannot import {target!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise PrepareFailed("anomaly", f"cannot ask {target!r} for scores: it is a {type(found).__name__}, no function")
    function: Callable[[dict[str, Any]], Any] = found
    return function
