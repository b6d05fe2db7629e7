"""The public keys that may sign a listener's handshakes: read in `prepare`, and anew when their files change.

Rules:
- whether the files changed is looked at for every handshake (a stat call each), so that a key that is taken away is
  refused from then on, without a reload; sessions that are there keep theirs;
- files that cannot be read leave the old keys in place and raise a health warning until they can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netd.errors import PrepareFailed, ProtocolError
from netd.wire.handshake import load_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from netd.runtime.health import ServiceHealth

_MAX_FILE = 1 << 20
"""Bytes of a file with keys."""

_Stamp = tuple[tuple[int, int, int], ...]


def load(paths: Sequence[Path]) -> frozenset[bytes]:
    """All keys of these files (SPKI DER). Blocks. Raises PrepareFailed."""
    found: set[bytes] = set()
    for path in paths:
        try:
            with path.open("rb") as file:
                keys = load_keys(file.read(_MAX_FILE))
        except (OSError, ProtocolError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise PrepareFailed("framed", f"cannot use the keys in {str(path)!r}: {why.lower()}") from None
        if not keys:
            raise PrepareFailed("framed", f"cannot use the keys in {str(path)!r}: there are none")
        found |= keys
    return frozenset(found)


class KeyFiles:
    """The keys of one listener as they are now."""

    def __init__(self, paths: Sequence[Path], number: int) -> None:
        """`number` tells the listeners' warnings apart. Blocks. Raises PrepareFailed."""
        self._paths = tuple(paths)
        self._code = f"keys.{number}"
        self._stamp = self._look()
        self.keys = load(self._paths)
        self._loading = trio.Lock()

    async def current(self, health: ServiceHealth) -> frozenset[bytes]:
        """The keys for a new handshake."""
        if not self._paths:
            return self.keys
        async with self._loading:
            stamp = self._look()
            if stamp != self._stamp:
                try:
                    self.keys = await trio.to_thread.run_sync(load, self._paths)
                    health.clear(self._code)
                except PrepareFailed as error:
                    health.warn(self._code, str(error), advice="mend the files; until then the old keys are used")
                self._stamp = stamp
        return self.keys

    def _look(self) -> _Stamp:
        try:
            files = [path.stat() for path in self._paths]
        except OSError:
            return ()  # loading says what is wrong
        return tuple((file.st_mtime_ns, file.st_size, file.st_ino) for file in files)
