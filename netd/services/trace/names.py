"""What is known of a router besides its address: its reverse DNS name and its autonomous system.

Rules:
- a trace never waits for a name: `Names.ask` answers from the cache or remembers who wants to know, and returns;
- look-ups run in threads, `WORKERS` at once, each abandoned after `TIMEOUT`; at most `QUEUE` addresses wait, more are
  not looked up this time; the cache is bounded, names expire after an hour, failures after ten minutes. A thread that
  was abandoned is still busy: an address for which none became free is no failure, a later trace asks for it again;
- a name is what somebody else wrote: what is no host name is dropped, so that no terminal or page has to fear it;
- the AS table is a local file read into memory: no look-up leaves the machine, and a file that is cut short in place
  cannot end the daemon (a mapped one would, by SIGBUS).
"""

from __future__ import annotations

import re
import socket
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import structlog
import trio

from netd.errors import PrepareFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORKERS = 4
TIMEOUT = 5.0
QUEUE = 512
CACHE = 8192
KEEP_NAME = 3600.0
KEEP_FAILURE = 600.0
MAX_WANTING = 64
"""Callbacks kept for one address; a later trace asks again."""

_HOST_NAME = re.compile(r"^(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})?(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")

log = structlog.get_logger("netd.trace")


def reverse(addr: str) -> str | None:
    """The PTR name of `addr`, None where there is none. Blocks."""
    try:
        return socket.gethostbyaddr(addr)[0]
    except (OSError, UnicodeError):
        return None


class Names:
    """The cache of names and the queue of look-ups. All methods are for the Trio thread; `run` does the looking up."""

    def __init__(
        self, resolve: Callable[[str], str | None] = reverse, *, cache: int = CACHE, queue: int = QUEUE
    ) -> None:
        self._resolve = resolve
        self._cache_size = cache
        self._cache: OrderedDict[str, tuple[float, str | None]] = OrderedDict()
        self._wanting: dict[str, list[Callable[[str, str], None]]] = {}
        self._into, self._queue = trio.open_memory_channel[str](queue)
        # of our own: a slow name server must not starve whoever else needs threads
        self._threads = trio.CapacityLimiter(WORKERS)

    def known(self, addr: str, now: float) -> str | None:
        """The name as the cache has it; None for unknown and nameless alike. `now` is trio time."""
        entry = self._cache.get(addr)
        return entry[1] if entry is not None and entry[0] > now else None

    def ask(self, addr: str, now: float, tell: Callable[[str, str], None]) -> str | None:
        """The name if it is known now. Otherwise `tell(addr, name)` is called once it is, unless it has none."""
        entry = self._cache.get(addr)
        if entry is not None and entry[0] > now:
            self._cache.move_to_end(addr)
            return entry[1]
        wanting = self._wanting.get(addr)
        if wanting is not None:
            if len(wanting) < MAX_WANTING:
                wanting.append(tell)
            return None
        try:
            self._into.send_nowait(addr)
        except trio.WouldBlock:
            return None
        self._wanting[addr] = [tell]
        return None

    async def run(self) -> None:
        """Look names up until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._worker)

    async def _worker(self) -> None:
        async for addr in self._queue:
            name: str | None = None
            begun = threading.Event()
            with trio.move_on_after(TIMEOUT):
                name = await trio.to_thread.run_sync(
                    self._look_up, addr, begun, abandon_on_cancel=True, limiter=self._threads
                )
            if begun.is_set():
                self._learn(addr, name)
            else:
                self._wanting.pop(addr, None)

    def _look_up(self, addr: str, begun: threading.Event) -> str | None:
        """In a thread."""
        begun.set()
        return self._resolve(addr)

    def _learn(self, addr: str, name: str | None) -> None:
        # many resolvers answer with the address itself for want of a name
        if name is not None and (name == addr or not _HOST_NAME.match(name)):
            name = None
        keep = KEEP_NAME if name is not None else KEEP_FAILURE
        self._cache[addr] = (trio.current_time() + keep, name)
        self._cache.move_to_end(addr)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        for tell in self._wanting.pop(addr, []):
            if name is not None:
                tell(addr, name)


class Systems:
    """Autonomous systems by address, from an MMDB file (layouts of GeoLite2-ASN, DB-IP and IPinfo)."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def find(self, addr: str) -> tuple[int, str | None] | None:
        """(number, name) of the system that announces `addr`; None where the file does not say."""
        try:
            entry = self._reader.get(addr)
        except ValueError:  # an IPv6 address asked of an IPv4 file; InvalidDatabaseError is not one
            return None
        except self.damaged as error:
            log.warning("asn file damaged", address=addr, error=str(error))
            return None
        return _system(entry)

    @property
    def damaged(self) -> type[Exception]:
        """What the reader raises for a damaged file."""
        import maxminddb

        return maxminddb.InvalidDatabaseError

    def close(self) -> None:
        self._reader.close()


def _system(entry: object) -> tuple[int, str | None] | None:
    if not isinstance(entry, dict):
        return None
    number = entry.get("autonomous_system_number", entry.get("asn"))
    if isinstance(number, str):
        number = number.upper().removeprefix("AS")
        number = int(number) if number.isascii() and number.isdigit() else None
    if not isinstance(number, int) or not 0 < number < 2**32:
        return None
    name = entry.get("autonomous_system_organization", entry.get("as_name", entry.get("name")))
    return number, name if isinstance(name, str) else None


def open_systems(path: Path | None) -> Systems | None:
    """Open the MMDB file; None for None. Blocks. Raises PrepareFailed."""
    if path is None:
        return None
    try:
        import maxminddb
    except ImportError:
        raise PrepareFailed(
            "trace",
            f'cannot use trace.asn {str(path)!r}: maxminddb is not installed; install netd with its "asn" extra',
        ) from None
    try:
        return Systems(maxminddb.open_database(path, maxminddb.MODE_MEMORY))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise PrepareFailed("trace", f"cannot open the AS database {path}: {why}") from None
    except (ValueError, maxminddb.InvalidDatabaseError) as error:
        raise PrepareFailed("trace", f"cannot use trace.asn {str(path)!r}: {error}") from None
