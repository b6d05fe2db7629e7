"""What differs between two configurations, for people: fields in a table, lists of sections member by member.

    KEY             WAS  IS  RELOAD
    trace.max_hops  30   20  at once
    framed.listen.8: added (127.0.0.1:9708), new generation
    framed.listen.3: changed: mode "echo" -> "channel", new generation

Rules:
- a member of a list is the same one in the other list if it has the same address and interface, or the same name;
  where members have neither, its place in the list counts;
- values are cut to what tells them apart. Whole they are in --json.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netd.cli.config import brief_toml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

    from netd.client import shapes

_LONGEST = 60
"""Columns of one value."""
_LONGEST_LINE = 160
"""Columns of what changed within one member."""
_CONTEXT = 12
"""Characters that are shown of what two long values have in common before they differ."""
_EFFECTS = {"live": "at once", "replace": "new generation", "fixed": "needs a restart"}
_STYLES = {"live": "green", "replace": "yellow", "fixed": "red"}

Member = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One line: a field with its two values, or (`said`) what became of a member of a list."""

    key: str
    effect: str
    before: str = ""
    after: str = ""
    said: str = ""


def differences(changes: Iterable[shapes.ConfigChange]) -> list[Difference]:
    """What to print of these changes."""
    found: list[Difference] = []
    for change in changes:
        path, effect, before, after = change["path"], change["effect"], change["running"], change["configured"]
        members = list(_members(path, effect, before, after)) if _are_sections(before, after) else []
        found += members or [Difference(path, effect, *_cut(_value(before, path), _value(after, path)))]
    return found


def print_differences(
    out: Console, found: Sequence[Difference], *, before: str = "RUNNING", after: str = "ON DISK"
) -> None:
    """The fields first, then the members of lists."""
    from netd.cli.output import Column, table, text

    fields = [one for one in found if not one.said]
    if fields:
        columns = [
            Column("KEY", style="bold"),
            Column(before, narrow="wrap"),
            Column(after, narrow="wrap"),
            Column("RELOAD"),
        ]
        rows = [(one.key, one.before, one.after, text(_effect(one.effect))) for one in fields]
        out.print(table(columns, rows))
    for one in found:
        if one.said:
            out.print(text((one.key, "bold"), f": {one.said}, ", _effect(one.effect)))


def _effect(effect: str) -> tuple[str, str]:
    return _EFFECTS.get(effect, effect), _STYLES.get(effect, "")


# --- lists of sections ----------------------------------------------------------------------------------------------


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, list) and all(isinstance(one, dict) for one in value) for value in values)


def _members(path: str, effect: str, before: list[Member], after: list[Member]) -> Iterator[Difference]:
    """What was removed (by its place before), changed or added (by its place after)."""
    old, new = _identified(before), _identified(after)
    for identity, (index, member) in old.items():
        if identity not in new:
            yield Difference(f"{path}.{index}", effect, said=f"removed{_named(member)}")
    for identity, (index, member) in new.items():
        if identity not in old:
            yield Difference(f"{path}.{index}", effect, said=f"added{_named(member)}")
        elif changed := ", ".join(_changed(old[identity][1], member)):
            yield Difference(f"{path}.{index}", effect, said=_shortened(f"changed: {changed}", _LONGEST_LINE))


def _identified(members: list[Member]) -> dict[object, tuple[int, Member]]:
    """By what makes each the same one in another list; of equal ones, the first is the first there too."""
    seen: Counter[object] = Counter()
    found: dict[object, tuple[int, Member]] = {}
    for index, member in enumerate(members):
        if isinstance(address := member.get("address"), str):
            identity: object = "address", address, str(member.get("interface"))
        elif isinstance(name := member.get("name"), str):
            identity = "name", name
        else:
            identity = "index", index
        seen[identity] += 1
        found[identity, seen[identity]] = index, member
    return found


def _named(member: Member) -> str:
    name = member.get("address") or member.get("name")
    if not isinstance(name, str):
        return ""
    on = f" on {member['interface']}" if member.get("interface") else ""
    return f" ({_shortened(name, _LONGEST)}{on})"


def _changed(before: Member, after: Member, prefix: str = "") -> Iterator[str]:
    for key in {**before, **after}:
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _changed(one, other, f"{prefix}{key}.")
        elif one != other:
            was, now = _cut(_value(one, key), _value(other, key))
            yield f"{prefix}{key} {was} -> {now}"


# --- values ---------------------------------------------------------------------------------------------------------


def _value(value: Any, key: str) -> str:
    return "(not set)" if value is None else brief_toml(value, key)


def _cut(before: str, after: str) -> tuple[str, str]:
    """Both short, and different where they were."""
    pairs = enumerate(zip(before, after, strict=False))
    common = next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))
    skipped = common - _CONTEXT if common > _LONGEST - _CONTEXT else 0
    return _shortened(before, _LONGEST, skipped), _shortened(after, _LONGEST, skipped)


def _shortened(text: str, most: int, skipped: int = 0) -> str:
    if len(text) <= most:
        return text
    rest = f"…{text[skipped + 1 :]}" if skipped else text
    return rest if len(rest) <= most else f"{rest[: most - 1]}…"
