"""Where settings come from: TOML files, the environment, systemd credentials; each value with the place it stands at.

    FILE, FILE.d/*.toml, ...  <  NETD_SECTION__KEY  <  credentials SECTION.KEY  <  override.toml

Each is a pydantic-settings source, merged by pydantic-settings: tables merge key by key, everything else (lists too)
replaces what came before. Beside it `Owners` records which source had the last word on each key.

Rules:
- reading never raises: what is wrong is appended to a list of problems and the reading goes on, so that all of it is
  reported at once;
- a file, a directory and a credential have a bound (`MAX_BYTES`, `MAX_FILES`);
- whether a value suits its key is not judged here but by the sections.

Names of credentials (systemd.exec(5), LoadCredential=) that are settings: "netd." and the dotted key,
`netd.trace.max_hops`; or "netd_" and the dotted key, which is what systemd calls the file trace.max_hops of a directory
(LoadCredential=netd:DIRECTORY). In such a directory a file is a setting if its name begins with a section's and a dot;
of both names for one key, netd_ wins. Keys are in lower case: one with capitals is an error. All other credentials
(`netd_tls.key`) are files that settings may point at, and are left alone.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from netd.errors import ConfigProblem
from netd.settings.problems import DIRECTORY_PREFIX, ENV_PREFIX, did_you_mean, is_it_a_file, keys_of, variable_of
from netd.wire.tomlkeys import Path as KeyPath
from netd.wire.tomlkeys import scan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic.fields import FieldInfo

CREDENTIAL_PREFIX = "netd."
MAX_BYTES = 1 << 20  # of one file or credential
MAX_FILES = 256  # of one directory

_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class Source(PydanticBaseSettingsSource):
    """Values from one place. `label` names it; `secret` says that its values must not be shown."""

    def __init__(
        self,
        settings_cls: type[BaseSettings],
        label: str,
        values: dict[str, Any],
        places: Mapping[KeyPath, str] | None = None,
        *,
        secret: bool = False,
    ) -> None:
        super().__init__(settings_cls)
        self.secret = secret
        self.label = label
        self.values = values
        self.places = places or {}

    def __call__(self) -> dict[str, Any]:
        return self.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def where(self, path: KeyPath) -> str:
        """The most precise place known for a key: its own, that of the nearest table or list around it, or (for a
        table that exists only through what is in it) of something in it."""
        for length in range(len(path), 0, -1):
            if place := self.places.get(path[:length]):
                return place
        return next((place for inner, place in self.places.items() if inner[: len(path)] == path), self.label)

    def at(self, path: KeyPath) -> Any:
        """The value at `path`, which is one of its keys outside lists."""
        node: Any = self.values
        for part in path:
            node = node[part]
        return node

    def mentions(self, path: KeyPath) -> bool:
        """Whether this source says anything at `path` or below."""
        node: Any = self.values
        for part in path:
            inside = part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))
            if not inside:
                return False
            node = node[part]
        return True


# --- files -----------------------------------------------------------------------------------------------------------


def files_of(path: Path, problems: list[ConfigProblem]) -> list[Path]:
    """What a --config argument stands for: the *.toml of a directory, or a file and then the *.toml of FILE.d."""
    try:
        if path.is_dir():
            return _toml_in(path, problems)
        drop_ins = path.with_name(path.name + ".d")
        return [path, *(_toml_in(drop_ins, problems) if drop_ins.is_dir() else ())]
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        problems.append(_unreadable(str(path), error))
        return []


def _toml_in(directory: Path, problems: list[ConfigProblem]) -> list[Path]:
    try:
        files = sorted(file for file in directory.iterdir() if file.suffix == ".toml")
    except OSError as error:
        problems.append(_unreadable(str(directory), error))
        return []
    if len(files) > MAX_FILES:
        problems.append(ConfigProblem("", f"cannot read more than {MAX_FILES} files: merge some", str(directory)))
    return files[:MAX_FILES]


def file_source(settings_cls: type[BaseSettings], file: Path, problems: list[ConfigProblem]) -> Source | None:
    """A TOML file, or None after saying why not."""
    text = _read_text(file, str(file), problems)
    return None if text is None else toml_source(settings_cls, text, str(file), problems)


def toml_source(
    settings_cls: type[BaseSettings], text: str, label: str, problems: list[ConfigProblem]
) -> Source | None:
    """TOML text; `label` is the file name that its places begin with."""
    try:
        values = tomllib.loads(text)
        places = {path: f"{label}:{line}" for path, line in scan(text).items()}
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        at = _AT_LINE.search(message)
        line = int(at[1]) if at else text.count("\n") + (not text.endswith("\n"))
        reason = _AT_LINE.sub("", message).removesuffix(" (at end of document)")
        problems.append(ConfigProblem("", f"cannot read this as TOML: {_lower(reason)}", f"{label}:{max(line, 1)}"))
        return None
    except RecursionError:
        problems.append(ConfigProblem("", "cannot read this as TOML: values are nested too deeply", label))
        return None
    return Source(settings_cls, label, values, places)


def exists(path: Path, problems: list[ConfigProblem]) -> bool:
    """Whether there is anything at `path`; that it cannot be told (no permission) is a problem."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        problems.append(_unreadable(str(path), error))
        return False
    return True


def _read_text(file: Path, label: str, problems: list[ConfigProblem]) -> str | None:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            problems.append(ConfigProblem("", f"cannot read more than {MAX_BYTES} bytes", label))
            return None
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(ConfigProblem("", "cannot read this as UTF-8 text", f"{label}:{line}"))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        problems.append(_unreadable(label, error))
    return None


def _unreadable(label: str, error: OSError | ValueError) -> ConfigProblem:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ConfigProblem("", f"cannot read it: {_lower(reason)}", label)


# --- names: environment and credentials ------------------------------------------------------------------------------


class _Names(EnvSettingsSource):
    """pydantic-settings' own reading of NETD_SECTION__KEY, over names that were given instead of os.environ."""

    def __init__(self, settings_cls: type[BaseSettings], names: Mapping[str, str], prefix: str, delimiter: str) -> None:
        super().__init__(settings_cls, case_sensitive=False, env_prefix=prefix, env_nested_delimiter=delimiter)
        self.env_vars = {name.lower(): text for name, text in names.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # the section will say that this text is no list or table, with all the other problems


def environment_source(
    settings_cls: type[BaseSettings],
    environ: Mapping[str, str],
    foreign: Collection[str],
    problems: list[ConfigProblem],
) -> Source:
    """NETD_SECTION__KEY; lists and tables are JSON. Any other NETD_ variable is a problem, but for `foreign` ones."""
    names: dict[str, str] = {}
    places: dict[KeyPath, str] = {}
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX) or name in foreign:
            continue
        path = tuple(name[len(ENV_PREFIX) :].lower().split("__"))
        if name != name.upper() or path[0] not in settings_cls.model_fields:
            known = [*foreign, *(variable_of(key) for key in keys_of(settings_cls))]
            problems.append(ConfigProblem("", f"unknown variable{did_you_mean(name.upper(), known)}", name))
        else:
            names[name] = environ[name]
            places[path] = name
    values = _Names(settings_cls, names, ENV_PREFIX, "__")()
    return Source(settings_cls, "environment", values, places)


def credentials_source(
    settings_cls: type[BaseSettings], directory: Path | None, problems: list[ConfigProblem]
) -> Source:
    """The files of $CREDENTIALS_DIRECTORY that are settings. White space around a value is dropped."""
    try:
        entries = sorted(directory.iterdir()) if directory is not None else []
    except OSError as error:
        problems.append(_unreadable(f"credentials in {directory}", error))
        entries = []
    keys = list(keys_of(settings_cls))
    settings = [(file, key) for file in entries if (key := _key_of_credential(file.name, keys)) is not None]
    if len(settings) > MAX_FILES:
        problems.append(ConfigProblem("", f"cannot read more than {MAX_FILES} credentials", str(directory)))
    names: dict[str, str] = {}
    places: dict[KeyPath, str] = {}
    for file, key in settings[:MAX_FILES]:
        place = f"credential {file.name}"
        path = tuple(key.split("."))
        if key != key.lower() or path[0] not in settings_cls.model_fields:
            prefix = file.name.removesuffix(key)
            meant = _meant(prefix, key, keys) or is_it_a_file(file.name, path[0])
            problems.append(ConfigProblem("", f"unknown key{meant}", place))
        elif (text := _read_text(file, place, problems)) is not None:
            names[CREDENTIAL_PREFIX + key] = text.strip()
            places[path] = place
    values = _Names(settings_cls, names, CREDENTIAL_PREFIX, ".")()
    return Source(settings_cls, "credentials", values, places, secret=True)


def _meant(prefix: str, key: str, keys: Sequence[tuple[str, ...]]) -> str:
    lower = key.lower()
    *table, last = lower.split(".")
    if tuple(lower.split(".")) in keys:
        return f" (did you mean {prefix}{lower}?)"
    if siblings := [other[-1] for other in keys if table and other[:-1] == tuple(table)]:
        return did_you_mean(last, siblings)
    return did_you_mean(prefix + lower, [prefix + ".".join(other) for other in keys])


def _key_of_credential(name: str, keys: Sequence[tuple[str, ...]]) -> str | None:
    """The dotted key that a credential of this name sets or is meant to set; None: it is a file."""
    if name.startswith(CREDENTIAL_PREFIX):
        return name.removeprefix(CREDENTIAL_PREFIX)
    if not name.startswith(DIRECTORY_PREFIX):
        return None
    key = name.removeprefix(DIRECTORY_PREFIX)
    section, dot, rest = key.partition(".")
    inside = {first for first, *others in keys if others}
    # a key of ours behind a misspelt section: taken for a file, the setting would be missing without a word
    inner = rest.lower().split(".")
    misspelt = did_you_mean(section.lower(), [first for first in inside if (first, *inner) in keys])
    return key if dot and (section.lower() in inside or misspelt) else None


# --- who set what ----------------------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """The source that had the last word on a key, and the key."""

    source: Source
    path: KeyPath


class Owners:
    """For each key that is set, the source that set it last: a tree of the same shape as the merged values."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """`sources` from the weakest to the strongest."""
        self._tree: dict[str, Any] = {}
        for source in sources:
            self._overlay(self._tree, source.values, source)

    def _overlay(self, tree: dict[str, Any], values: Mapping[str, Any], source: Source) -> None:
        for key, value in values.items():
            below = tree.get(key)
            if isinstance(value, dict) and (value or isinstance(below, dict)):
                if not isinstance(below, dict):
                    below = tree[key] = {}
                self._overlay(below, value, source)
            else:
                tree[key] = source

    def owner(self, path: KeyPath) -> Source | None:
        """Who set the key, the list it stands in, or (for a table) something in it."""
        node: Any = self._tree
        for part in path:
            if not isinstance(node, dict) or part not in node:
                break  # inside a list, or not set: whoever set the list, or something beside it, has to be asked
            node = node[part]
        while isinstance(node, dict):
            node = next(iter(node.values()), None)
        return node if isinstance(node, Source) else None

    def secret(self, path: KeyPath = ()) -> list[Owner]:
        """What of the key, the list it stands in, or the table that it is has come from a source that is secret."""
        node: Any = self._tree
        for depth, part in enumerate(path):
            if not isinstance(node, dict):
                path = path[:depth]
                break  # inside a list
            if part not in node:
                return []
            node = node[part]
        found = self._leaves(node, path) if isinstance(node, dict) else [Owner(node, path)]
        return [owner for owner in found if owner.source.secret and owner.source.at(owner.path) != {}]

    def leaves(self) -> Iterator[Owner]:
        """Every key that is set and is no table, a list being one key."""
        return self._leaves(self._tree, ())

    def _leaves(self, tree: dict[str, Any], path: KeyPath) -> Iterator[Owner]:
        for key, node in tree.items():
            if isinstance(node, dict):
                yield from self._leaves(node, (*path, key))
            else:
                yield Owner(node, (*path, key))


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
