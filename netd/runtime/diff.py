"""What differs between two configurations, and what a reload has to do about it. Pure.

    changes(old, new) -> [FieldChange("trace.max_hops", 30, 20, Effect.LIVE), ...]

Rules:
- sections are walked; what is compared is their fields, each with the effect it was declared with (section.py);
- a list of sections of the same length is walked member by member ("trace.listen.0.address"); one that grew or shrank
  is one change with the effect of the list itself;
- anything else that differs (plain values, lists, dicts, a section that came or went) is one change of its field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netd.section import Effect, Section, effect_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_STRICTNESS = {Effect.LIVE: 0, Effect.REPLACE: 1, Effect.FIXED: 2}


@dataclass(frozen=True)
class FieldChange:
    """One field that differs. `path` is its dotted key below the section that was compared."""

    path: str
    old: Any
    new: Any
    effect: Effect


def changes(old: Section, new: Section, prefix: str = "") -> list[FieldChange]:
    """All fields of `new` that differ from `old`, in the order of their declaration; both are of one class."""
    return list(_walk(old, new, prefix))


def strictest(found: Iterable[FieldChange]) -> Effect | None:
    """The effect that decides for all of them; None when there are none."""
    return max((change.effect for change in found), key=_STRICTNESS.__getitem__, default=None)


def _walk(old: Section, new: Section, prefix: str) -> Iterator[FieldChange]:
    if type(old) is not type(new):
        raise TypeError(f"cannot compare a {type(old).__name__} with a {type(new).__name__}")
    for key in type(old).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if before == after and type(before) is type(after):
            continue
        path = f"{prefix}{key}"
        pairs = list(_members(path, before, after))
        if pairs:
            for member, one, other in pairs:
                yield from _walk(one, other, f"{member}.")
        else:
            yield FieldChange(path, before, after, effect_of(type(old), key))


def _members(path: str, before: Any, after: Any) -> Iterator[tuple[str, Section, Section]]:
    """The pairs of sections to compare in place of the whole field; none when it has to be taken as a whole."""
    if _alike(before, after):
        yield path, before, after
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after):
        if all(map(_alike, before, after)):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield f"{path}.{index}", one, other
    elif isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():  # noqa: SIM102
        if all(_alike(before[key], after[key]) for key in before):
            for key in before:
                yield f"{path}.{key}", before[key], after[key]


def _alike(one: Any, other: Any) -> bool:
    return isinstance(one, Section) and type(one) is type(other)
