"""One run of a program that scores: a process of its own, without our privileges, that is asked line by line.

Rules:
- it is started as runtime/programs.py has it, and is killed with all that is in its process group;
- what it writes to stderr is read, so that it never blocks on it, and the end of it is kept;
- nobody waits for long for its end: one that the kernel cannot kill yet (it hangs in a system call, on a disk that does
  not answer) is left alone, and is reaped by init after us if not by Python before.
"""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import structlog
import trio

from netd.errors import ProtocolError
from netd.runtime.programs import DEATH, how, launch, signal_group

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger("netd.anomaly")

_COMPLAINT = 500  # bytes of stderr that are kept
_READ = 65536


class Ended(ProtocolError):
    """The program is gone, or has closed a pipe: how it ended says more."""


class Program:
    """One process."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._stderr = b""
        self._reaped = False
        self.pid = process.pid
        self.answered = False
        """It is up: from now on it has the plain timeout."""

    @classmethod
    async def start(cls, command: list[str], nursery: trio.Nursery, *, hidden: Sequence[str] = ()) -> Program:
        """`hidden`: as `launch` has it."""
        process = await launch(command, stdin=subprocess.PIPE, hidden=hidden)
        program = cls(process)
        nursery.start_soon(program._listen)
        return program

    @property
    def complaint(self) -> str:
        """The last line of its stderr."""
        lines = self._stderr.decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""

    async def ask(self, line: bytes, most: int) -> bytes:
        """Write a line, read one of at most `most` bytes. Raises ProtocolError."""
        found: bytes | ProtocolError = b""

        async def read() -> None:
            nonlocal found
            try:
                found = await self._read_line(most)
            except ProtocolError as error:
                found = error
                nursery.cancel_scope.cancel()

        # both at once: a program that answers before it has read all must not stand against us
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await self._write(line + b"\n")
        if isinstance(found, ProtocolError):
            raise found
        return found

    async def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(line)
        except trio.BrokenResourceError:
            return  # it has ended or wants no more: its stdout tells

    async def _read_line(self, most: int) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        buffer = bytearray()
        while True:
            data = await stdout.receive_some(_READ)
            if not data:
                raise Ended("cannot ask it: it has ended, or closed its stdout")
            begin = len(buffer)
            buffer += data
            end = buffer.find(b"\n", begin)
            if end > most or (end < 0 and len(buffer) > most):
                raise ProtocolError(f"cannot take its answer: it is longer than {most} bytes")
            if end >= 0:
                if end + 1 != len(buffer):
                    raise ProtocolError("cannot use its answer: it said more than one line")
                return bytes(buffer[:end])

    async def _listen(self) -> None:
        """Read its stderr: a pipe that nobody reads would block it."""
        stderr = self._process.stderr
        assert stderr is not None
        try:
            while data := await stderr.receive_some(_READ):
                self._stderr = (self._stderr + data)[-_COMPLAINT:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def kill(self) -> None:
        """All of its process group. Before anybody has waited for it: until then its number is nobody else's."""
        if not self._reaped:
            signal_group(self.pid, signal.SIGKILL)

    async def end(self, patience: float) -> int | None:
        """Close its stdin, let it end within `patience` seconds, kill what is left of its group.

        Returns how it ended, None for one that is not gone DEATH seconds after it was killed.
        """
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.move_on_after(patience):
            assert self._process.stdout is not None
            try:
                while await self._process.stdout.receive_some(_READ):  # until it closes its end
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        self.kill()
        self._reaped = True
        status = None
        with trio.move_on_after(DEATH):
            status = await self._process.wait()
        if status is None:
            log.warning("adapter is left alone: it was killed and is not gone", pid=self.pid, seconds=DEATH)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                await stream.aclose()
        return status


__all__ = ["DEATH", "Ended", "Program", "how"]
