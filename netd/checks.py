"""Whether a configuration that validates could be put to work on this machine: told before anything is bound.

    each enabled service's own check (files, certificates, codecs, programs)
    every listener   one address twice, interfaces that are not there
    [hub]            the secrets of tokens
      -> [ConfigProblem("framed.listen.2.tls", "cannot use certificate ...", "/etc/netd/netd.toml:31"), ...]

Rules:
- all problems at once, each with its key and where that was set;
- everything here blocks (call it in a thread), binds nothing, and changes nothing of a daemon that runs;
- a service that is not enabled is not looked at;
- an interface that has gone is no reason to refuse what does not touch the listener that is bound to it.

Left out: what only binding can tell (a port that another program has, privileges), and what may yet come to be (the
directory of a Unix socket).
"""

from __future__ import annotations

import ipaddress
import socket
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from netd.errors import ConfigError, ConfigProblem
from netd.messaging import read_tokens
from netd.section import Listen, parse_address
from netd.settings.problems import by_place
from netd.settings.sources import MAX_BYTES
from netd.wire.tomlkeys import join_key, scan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netd.runtime.service import ServiceType
    from netd.settings import Loaded, Settings


def check(loaded: Loaded, types: Iterable[ServiceType], running: Settings | None = None) -> list[ConfigProblem]:
    """Everything that a start, or a reload of a daemon with the settings `running`, would refuse. Blocks."""
    settings = loaded.settings
    found = [*_twice(loaded), *_without_interface(settings, running), *_tokens(settings)]
    sections = settings.services()
    for service in types:
        section = sections[service.name]
        if getattr(section, "enabled", True):
            found += [
                replace(problem, path=f"{service.name}.{problem.path}".rstrip("."))
                for problem in service.check(section)
            ]
    return located(found, loaded)


def twice(loaded: Loaded) -> list[ConfigProblem]:
    """The listeners that want an address which another one of this configuration has. Blocks."""
    return located(_twice(loaded), loaded)


def located(problems: Iterable[ConfigProblem], loaded: Loaded) -> list[ConfigProblem]:
    """The problems, each with the place where its key, or the nearest table or list around it, was set. Blocks."""
    places = _Places(loaded)
    with_source = [
        problem if problem.source else replace(problem, source=places.find(problem.path)) for problem in problems
    ]
    return sorted(with_source, key=by_place)


# --- tokens ----------------------------------------------------------------------------------------------------------


def _tokens(settings: Settings) -> Iterable[ConfigProblem]:
    try:
        read_tokens(settings.hub)
    except ConfigError as error:
        return error.problems
    return ()


# --- listeners -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where one listener is to listen."""

    service: str
    key: str
    """Dotted, of the address."""
    address: str
    interface: str | None

    def is_that_of(self, other: _Place) -> bool:
        """Whether it is the same address on the same interface, however they are written."""
        target, taken = parse_address(self.address), parse_address(other.address)
        if isinstance(target, Path) or isinstance(taken, Path):
            return target == taken
        same = ipaddress.ip_address(target[0]) == ipaddress.ip_address(taken[0]) and target[1] == taken[1] != 0
        return same and self.interface == other.interface

    def overlaps(self, other: _Place) -> bool:
        """Whether the kernel refuses one if it has the other: one of them is of all addresses, or all interfaces.

        Not among the listeners of one service, which are bound side by side (runtime/listeners.py).
        """
        target, taken = parse_address(self.address), parse_address(other.address)
        if isinstance(target, Path) or isinstance(taken, Path) or self.service == other.service:
            return False
        one, another = ipaddress.ip_address(target[0]), ipaddress.ip_address(taken[0])
        if one.version != another.version or target[1] != taken[1] or target[1] == 0:
            return False
        hosts = one == another or one.is_unspecified or another.is_unspecified
        return hosts and (self.interface == other.interface or None in (self.interface, other.interface))


def _wanted(settings: Settings) -> Iterator[_Place]:
    """Of all that is enabled, in the order in which it is bound."""
    if settings.control.socket is not None:
        yield _Place("control", "control.socket", f"unix:{settings.control.socket}", None)
    for service, section in settings.services().items():
        if getattr(section, "enabled", True):
            for number, listen in enumerate(getattr(section, "listen", ())):
                if isinstance(listen, Listen):
                    yield _Place(service, f"{service}.listen.{number}.address", listen.address, listen.interface)


def _twice(loaded: Loaded) -> Iterator[ConfigProblem]:
    places, seen = _Places(loaded), list[_Place]()
    for place in _wanted(loaded.settings):
        for other in seen:
            if place.is_that_of(other):
                what = f"cannot listen on {place.address} twice: {other.key} has it already"
            elif place.overlaps(other):
                on = f" on {other.interface}" if other.interface else ""
                what = f"cannot listen on {place.address}: {other.key} has {other.address}{on} already"
            else:
                continue
            where = places.find(other.key)
            yield ConfigProblem(place.key, f"{what}{f' ({where})' if where else ''}; change or remove one of them")
            break
        seen.append(place)


def _without_interface(settings: Settings, running: Settings | None) -> Iterator[ConfigProblem]:
    bound = {(place.service, place.address, place.interface) for place in (_wanted(running) if running else ())}
    for place in _wanted(settings):
        if place.interface is None or (place.service, place.address, place.interface) in bound:
            continue
        try:
            socket.if_nametoindex(place.interface)
        except (OSError, ValueError):  # ValueError: a NUL in the name
            there = ", ".join(sorted(name for _, name in socket.if_nameindex()))
            yield ConfigProblem(
                f"{place.key.removesuffix('.address')}.interface",
                f"cannot listen on {place.address}: there is no interface {place.interface!r} (there are: {there})",
            )


# --- where keys were set ---------------------------------------------------------------------------------------------


class _Places:
    """Where the keys of a configuration were set. Files are read again, as lists are one key of `Loaded.origins`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._lines: dict[str, dict[str, int]] = {}

    def find(self, path: str) -> str:
        """ "FILE:LINE", "NETD_VARIABLE" or the like of `path` or what is around it; "" for a default."""
        for key in _upwards(path):
            origin = self._loaded.origins.get(key)
            if origin is not None:
                return origin if key == path else self._within(origin, path, key)
        return ""

    def _within(self, origin: str, path: str, list_key: str) -> str:
        """The nearest place to `path` in the file of the list that it is in."""
        file, _, line = origin.rpartition(":")
        if not line.isdecimal() or file not in self._loaded.sources:
            return origin
        if file not in self._lines:
            self._lines[file] = _lines_of(Path(file))
        for key in _upwards(path):
            if key == list_key:
                break
            if key in self._lines[file]:
                return f"{file}:{self._lines[file][key]}"
        return origin


def _upwards(path: str) -> Iterator[str]:
    """The dotted key, and then what it is in, the nearest first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _lines_of(file: Path) -> dict[str, int]:
    """The line of each key; nothing for a file that was replaced by one that cannot be read."""
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES).decode()
        tomllib.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return {join_key(path): line for path, line in scan(text).items()}
