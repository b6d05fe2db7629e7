"""override.toml in the state directory: the settings changed through the control API, which win over all others.

Rules:
- the file is replaced as a whole (temporary file, fsync, rename): after a crash it is the old one or the new one;
- it belongs to the daemon: it is written afresh from its values, and comments that a person put in are not kept;
- it may hold secrets: nobody but its owner reads it.

Left out: whether the values make sense. Whoever writes loads first (`netd.settings.load(override=...)`).
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from netd.errors import ConfigError, ConfigProblem
from netd.section import OVERRIDE_FILE
from netd.wire.tomlkeys import join_key, split_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = structlog.get_logger("netd.settings")

_HEADER = """\
# Written by the daemon (netctl config set); what stands here wins over every other source. Comments are not kept.
# To take a setting back: netctl config set --unset KEY; or remove its line here, and netctl reload.
"""


def text_with(directory: Path, changes: Mapping[str, Any]) -> str:
    """What override.toml would say after `changes`: dotted key -> value, None removing the key.

    Raises ConfigError for what TOML cannot say and for a file that cannot be read as it is.
    """
    values = _read(directory / OVERRIDE_FILE)
    problems: list[ConfigProblem] = []
    for dotted, value in changes.items():
        try:
            path = split_key(dotted)
        except ValueError as error:
            problems.append(ConfigProblem(dotted, str(error)))
            continue
        unsayable = list(_unsayable(path, value)) if value is not None else []
        problems.extend(unsayable)
        if not unsayable:
            _change(values, path, value)
    if problems:
        raise ConfigError(problems)
    import tomlkit  # only who writes pays for it

    return _HEADER + "\n" + tomlkit.dumps(values)


class StagedOverride:
    """A new override.toml, written and durable next to the old one, which still stands."""

    def __init__(self, file: Path, temporary: Path) -> None:
        self.file = file
        self._temporary = temporary

    def commit(self) -> Path:
        """Put it in the place of the old one; returns the file. Raises ConfigError, the old one then still standing."""
        try:
            self._temporary.replace(self.file)
        except OSError as error:
            raise _unwritable(self.file, error) from error
        return self.file

    def sync(self) -> None:
        """Have the directory on disk too, after `commit`: else a power cut may bring the old file back. Blocks."""
        try:
            directory = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            log.warning("cannot sync the state directory", path=str(self.file.parent), why=error.strerror)

    def discard(self) -> None:
        """Remove it, unless it was committed."""
        self._temporary.unlink(missing_ok=True)


def stage_override(directory: Path, changes: Mapping[str, Any]) -> StagedOverride:
    """Write what override.toml will be with `changes` (dotted key -> value, None removing the key); then `commit` it.

    Raises ConfigError as `text_with` does, and when the file cannot be written.
    """
    text = text_with(directory, changes)
    file = directory / OVERRIDE_FILE
    try:
        return StagedOverride(file, _written(file, text.encode()))
    except OSError as error:
        raise _unwritable(file, error) from error


def _unwritable(file: Path, error: OSError) -> ConfigError:
    reason = f"cannot write it: {(error.strerror or str(error)).lower()}"
    return ConfigError([ConfigProblem("", reason, str(file))])


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = f"cannot change a file that cannot be read: {error}"
        raise ConfigError([ConfigProblem("", reason, str(file))]) from error


def _change(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    table = values
    above: list[tuple[dict[str, Any], str]] = []
    for part in path[:-1]:
        inner = table.get(part)
        if not isinstance(inner, dict):
            if value is None:
                return
            inner = table[part] = {}
        above.append((table, part))
        table = inner
    if value is not None:
        table[path[-1]] = value
        return
    table.pop(path[-1], None)
    for outer, part in reversed(above):
        if not outer[part]:
            del outer[part]


def _unsayable(path: tuple[str | int, ...], value: Any) -> Iterator[ConfigProblem]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _unsayable((*path, str(key)), inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _unsayable((*path, index), inner)
    elif not isinstance(value, str | int | float):
        yield ConfigProblem(
            join_key(path), f"cannot write {value!r} in TOML: use text, a number, true, false or a list"
        )
    elif isinstance(value, str) and not value.isascii() and any(0xD800 <= ord(char) < 0xE000 for char in value):
        yield ConfigProblem(join_key(path), f"cannot write {value!r} in TOML: it holds half of a surrogate pair")


def _written(file: Path, content: bytes) -> Path:
    """A temporary file beside `file` with `content`, durably."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # created 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
