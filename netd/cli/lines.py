"""Standard input, a line at a time, beside whatever else a Trio program does.

Rules:
- a terminal or a pipe is waited for, so that Ctrl-C and a lost connection end the wait; no thread is left behind in a
  read that nobody can end;
- what cannot be waited for (a file, /dev/null) never blocks for long and is read in a thread;
- a line is at most LONGEST bytes; a longer one is cut into several.
"""

from __future__ import annotations

import os
import select
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONGEST = 1 << 20
TYPED = 4095
"""Bytes of a line from a terminal, which throws away what is typed or pasted beyond them (N_TTY_BUF_SIZE of Linux, less
the line's end).
"""
_PIECE = 1 << 16


class Lines:
    """An async iterator of lines without their ends."""

    def __init__(self) -> None:
        self._rest = b""
        self._ready: list[bytes] = []
        self._over = False
        self._descriptor = _descriptor()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            self._take(await self._read())
        return self._ready.pop(0)

    @property
    def over(self) -> bool:
        """Whether the end has come. What is given after it is a last line that had no end."""
        return self._over

    @property
    def waiting(self) -> bool:
        """Whether the next is here, or may be."""
        return bool(self._ready) or (
            self._descriptor is not None and bool(select.select([self._descriptor], [], [], 0)[0])
        )

    def _take(self, data: bytes) -> None:
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        if not data:
            self._over = True
            if self._rest:
                lines.append(self._rest)
        elif len(self._rest) > LONGEST:
            lines.append(self._rest)
            self._rest = b""
        self._ready += [line.removesuffix(b"\r") for line in lines]

    async def _read(self) -> bytes:
        if self._descriptor is not None:
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
            except OSError:  # EPERM: epoll takes no files
                self._descriptor = None
            else:
                return os.read(self._descriptor, _PIECE)
        return await trio.to_thread.run_sync(_read_some)


def lines_of_stdin() -> Lines:
    """The lines of standard input, as bytes."""
    return Lines()


def _descriptor() -> int | None:
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):  # it is something of Python's, or closed
        return None


def _read_some() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    return stream.read(_PIECE) if stream is not None else b""
