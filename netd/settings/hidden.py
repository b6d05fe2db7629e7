"""The configuration, and what changes of it, as plain values to be shown: without what came from credentials
(`Loaded.hidden`) and what pydantic keeps secret. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from netd.control.host import ConfigChange

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from netd.runtime.diff import FieldChange

_ASTERISKS = str(SecretStr("secret"))  # as pydantic shows its own secrets


def redacted(value: Any, at: tuple[str, ...], hidden: Iterable[tuple[str, ...]]) -> Any:
    """A plain value that stands at `at`, with asterisks in place of the keys `hidden`, however little is left."""
    for path in hidden:
        if at[: len(path)] == path:
            return _ASTERISKS
        if path[: len(at)] == at and value is not None:
            value = _without(value, path[len(at) :])
    return value


def _without(value: Any, path: tuple[str, ...]) -> Any:
    if not path or not isinstance(value, dict):
        return _ASTERISKS
    key, *inner = path
    return {**value, key: _without(value[key], tuple(inner))} if key in value else value


def shown(
    found: Iterable[FieldChange], before: Collection[tuple[str, ...]] = (), after: Collection[tuple[str, ...]] = ()
) -> list[ConfigChange]:
    """`before` and `after`: the keys whose values were, and are, hidden."""
    shown = []
    for change in found:
        at = tuple(change.path.split("."))
        old, new = redacted(plain(change.old), at, before), redacted(plain(change.new), at, after)
        shown.append(ConfigChange(change.path, old, new, change.effect.value))
    return shown


def plain(value: Any) -> Any:
    """As JSON would have it; secrets come out as asterisks."""
    return to_jsonable_python(value, fallback=str)
