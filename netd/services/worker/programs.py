"""The workers that the daemon starts itself: each place has a program, which is started again when it ends.

    Programs --one task a place--> launch --> runs --ends--> a pause that doubles --> launch ...
                                               \\--kill (it hangs)-------^
                                               \\--stop--> SIGTERM --drain--> SIGKILL

Rules:
- what it may do is what runtime/programs.py leaves it; stdout and stderr go to the log, line by line, `log_rate` of
  them a second;
- one that ends unasked, or says no hello within `hello_timeout` of its start, is a warning of the service's health
  until one of its place has said hello;
- nobody waits for long for its end, and a cancelled one is killed and reaped: what the kernel cannot kill yet is left
  alone.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio

from netd.budget import Bucket
from netd.runtime.programs import DEATH, how, launch, own_directories, reap, signal_group

if TYPE_CHECKING:
    from netd.runtime.programs import Account
    from netd.runtime.service import Context
    from netd.services.worker.config import WorkerConfig

_FIRST, _LONGEST = 0.5, 30.0
"""Seconds before one that has ended is started again: at first, and at most."""
_HEALTHY = 10.0
"""Seconds after which one that ends has done so for reasons of its own."""
_LINE = 2000
"""Characters of a line in the log."""
_READ = 65536
_WARNING = "program"

log = structlog.get_logger("netd.worker")


class Program:
    """One place, and the process that has it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: int | None = None
        self.starts = 0
        self.ended = ""
        """How the last one ended."""
        self.asked = False
        """Its end is our wish."""
        self.killed: trio.Event | None = None
        self.greeted: trio.Event | None = None
        """A worker of it has said hello, or will not."""
        self.silent = False
        """That takes long."""
        self.said = b""
        """The last of what it wrote."""


class Programs:
    """All of one generation."""

    def __init__(self, config: WorkerConfig, account: Account | None, context: Context) -> None:
        self.config = config
        """May be replaced."""
        self._account = account
        self._context = context
        self.places = [Program(number) for number in range(1, config.count + 1)] if config.command else []
        self._stopping = trio.Event()
        self._lines: Bucket | None = None
        self._unsaid = 0

    async def run(self) -> None:
        """Until `stop`, and all have ended."""
        async with trio.open_nursery() as nursery:
            for place in self.places:
                nursery.start_soon(self._keep, place)

    def stop(self) -> None:
        """No program is started any more, and those that are there are to end within `drain`."""
        self._stopping.set()

    def of(self, pid: int) -> Program | None:
        """Whose process this is: the program's own, or one that it has started."""
        if not self.places or pid <= 0:
            return None
        with suppress(OSError):
            session = os.getsid(pid)
            return next((place for place in self.places if place.pid == session), None)
        return None

    def greeted(self, place: Program) -> None:
        """It works: a worker of it has said hello."""
        place.ended, place.silent = "", False
        if place.greeted is not None:
            place.greeted.set()
        if not any(each.ended or each.silent for each in self.places):
            self._context.health.clear(_WARNING)

    def kill(self, place: Program, why: str) -> None:
        """End it, and have another in its place."""
        if place.pid is not None and place.killed is not None and not place.killed.is_set():
            log.warning("worker program is ended", place=place.number, pid=place.pid, why=why)
            place.asked = True
            place.killed.set()

    async def _keep(self, place: Program) -> None:
        delay = _FIRST
        while not self._stopping.is_set():
            began = trio.current_time()
            place.asked = False
            status = await self._run_one(place)
            if self._stopping.is_set():
                return
            if trio.current_time() - began >= _HEALTHY or place.asked:
                delay = _FIRST
            if not place.asked:
                self._complain(place, status)
            with trio.move_on_after(delay * random.uniform(0.8, 1.2)):
                await self._stopping.wait()
            delay = min(2 * delay, _LONGEST)

    def _complain(self, place: Program, status: str) -> None:
        last = place.said.decode(errors="replace").strip().splitlines()
        place.ended = f"{status}: {last[-1][:200]}" if last else status
        log.warning("worker program has ended", place=place.number, how=place.ended)
        self._context.health.warn(
            _WARNING,
            f"cannot keep worker program {place.number} running: it ended ({place.ended})",
            advice="the log has what it said; worker.command says what is started",
        )

    async def _run_one(self, place: Program) -> str:
        """One process, from start to end. Returns how it ended."""
        config = self.config
        place.said = b""
        try:
            process = await launch(
                config.command,
                stderr=subprocess.STDOUT,
                variables={**config.environment, "NETD_WORKER_SOCKET": str(config.socket)},
                directory=str(config.directory),
                account=self._account,
                hidden=own_directories(self._context.state_directory),
            )
        except OSError as error:
            return f"cannot be started: {(error.strerror or str(error)).lower()}"
        place.pid, place.killed, place.greeted = process.pid, trio.Event(), trio.Event()
        place.starts += 1
        log.info("worker program started", place=place.number, pid=process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, place, process)
                nursery.start_soon(self._end_when_told, place, process)
                nursery.start_soon(self._miss_its_hello, place, place.greeted)
                await process.wait()
                signal_group(process.pid, signal.SIGKILL)  # what it has left behind
                nursery.cancel_scope.deadline = trio.current_time() + DEATH  # for the rest of what it wrote
                place.killed.set()
                place.greeted.set()  # or nobody waits for it any more
        finally:
            place.pid, place.silent = None, False
            if not reap(process):
                log.warning("worker program is left alone: it was killed and is not gone yet", pid=process.pid)
            if process.stdout is not None:
                await trio.aclose_forcefully(process.stdout)
        return how(process.returncode)

    async def _miss_its_hello(self, place: Program, greeted: trio.Event) -> None:
        """It is not ended, for all that: what it imports may be large."""
        seconds = self.config.hello_timeout
        with trio.move_on_after(seconds):
            await greeted.wait()
            return
        place.silent = True
        self._context.health.warn(
            _WARNING,
            f"cannot use worker program {place.number}: it runs, but has said no hello within {seconds:g} s",
            advice="see whether it connects to NETD_WORKER_SOCKET, as run() of netd.worker does, and what it logs",
        )

    async def _end_when_told(self, place: Program, process: trio.Process) -> None:
        """First a polite word, then the end."""
        assert place.killed is not None
        async with trio.open_nursery() as nursery:

            async def until(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, self._stopping)
            nursery.start_soon(until, place.killed)
        if process.returncode is not None:
            return
        patience = self.config.drain if self._stopping.is_set() and not place.asked else DEATH
        place.asked = True
        signal_group(process.pid, signal.SIGTERM)
        with trio.move_on_after(patience):
            await process.wait()
        if process.returncode is None:
            log.warning("worker program is killed: it did not end", place=place.number, seconds=patience)
            signal_group(process.pid, signal.SIGKILL)

    async def _listen(self, place: Program, process: trio.Process) -> None:
        """What it writes goes to the log: a pipe that nobody reads would block it."""
        stdout = process.stdout
        assert stdout is not None
        rest = b""
        try:
            while data := await stdout.receive_some(_READ):
                place.said = (place.said + data)[-_LINE:]
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._say(place, line)
                if len(rest) > _LINE:
                    self._say(place, rest)
                    rest = b""
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("worker program's output is gone", place=place.number, why=str(error))
        if rest:
            self._say(place, rest)

    def _say(self, place: Program, line: bytes) -> None:
        now, rate = trio.current_time(), float(self.config.log_rate)
        if self._lines is None:
            self._lines = Bucket(rate, now)
        self._lines.refill(now, rate, rate)
        if self._lines.draw(rate) > 0:
            self._unsaid += 1
            return
        if self._unsaid:
            log.warning("lines of worker programs were left out", lines=self._unsaid)
            self._unsaid = 0
        text = line[:_LINE].decode(errors="replace").rstrip()
        if text:
            log.info("worker program says", line=text, place=place.number, pid=place.pid)
