"""What is wrong with a configuration, in words for whoever wrote it: place, key, why, and what was probably meant.

pydantic says what is wrong with a value; where the value came from, sources.py knows; this puts the two together.

Rules:
- every problem points at the place that has to be edited (an unknown key that two files set is two problems);
- a value is quoted shortened, and not at all if it came from a credential or its key holds a secret; what is wrong with
  a table is not quoted if anything in it did, as the sentence may name any of its values;
- suggestions are made only where they are close: a wrong guess costs more than none.
"""

from __future__ import annotations

import difflib
import typing
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretBytes, SecretStr

from netd.errors import ConfigProblem
from netd.wire.tomlkeys import join_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from netd.settings.sources import Owners, Source
    from netd.wire.tomlkeys import Path as KeyPath

ENV_PREFIX = "NETD_"
DIRECTORY_PREFIX = "netd_"
"""What systemd puts before the names of the files of LoadCredential=netd:DIRECTORY."""
_SHOWN = 60  # characters of a value that are quoted
_NAMED = 3  # credentials that are named for one table
_CONTAINERS = {"list_type", "dict_type", "model_type", "model_attributes_type"}


# --- what a model's keys are -----------------------------------------------------------------------------------------


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section behind an annotation: itself, optional, or the elements of a list; None for anything else."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := section_of(part))), None)


def section_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The section that the key at `path` belongs to (its last part is not looked at), None inside plain values."""
    section: type[BaseModel] | None = model
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = section_of(field.annotation) if field else None
    return section


def keys_of(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Every key outside lists, sections before what is in them."""
    for name, field in model.model_fields.items():
        yield (name,)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((name, *rest) for rest in keys_of(field.annotation))


def variable_of(key: Iterable[str]) -> str:
    """("log", "level") -> "NETD_LOG__LEVEL"."""
    return ENV_PREFIX + "__".join(key).upper()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?)" for the closest known name, "" if none is close. What all variables begin with makes no
    two of them alike.
    """
    of_tail = {other.removeprefix(ENV_PREFIX): other for other in known}
    close = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), list(of_tail), n=1, cutoff=0.75)
    return f" (did you mean {of_tail[close[0]]}?)" if close else ""


def is_it_a_file(credential: str, section: object) -> str:
    """The question to ask of a credential that is named like a key of a section and is none, "" where it is in vain."""
    if not credential.startswith(DIRECTORY_PREFIX):
        return ""
    return f' (is it a file that a setting points at? Then its name must not begin with "{section}.")'


# --- pydantic's findings ---------------------------------------------------------------------------------------------


def explain(
    error: ValidationError, model: type[BaseModel], sources: Sequence[Source], owners: Owners
) -> list[ConfigProblem]:
    """pydantic's findings as problems with places; `sources` from the weakest to the strongest."""
    return [
        problem
        for finding in error.errors(include_url=False, include_context=False)
        for problem in _explain(finding, model, sources, owners)
    ]


def _explain(
    finding: ErrorDetails, model: type[BaseModel], sources: Sequence[Source], owners: Owners
) -> Iterator[ConfigProblem]:
    path: KeyPath = finding["loc"]
    if finding["type"] == "extra_forbidden":
        places = [source.where(path) for source in sources if source.mentions(path)] or [""]
        for place in places:
            yield ConfigProblem(join_key(path), f"unknown key{_meant(model, path, place)}", place)
        return
    if finding["type"] != "missing":
        path = _without_tags(path, sources)
    owner = owners.owner(path)
    secret = list(dict.fromkeys(source.where(inner) for source, inner in owners.secret(path)))
    place = owner.where(path) if owner else ""
    reason = _reason(finding, bool(secret) or _is_secret(model, path))
    if others := [other for other in secret if other != place]:
        reason += f" (see also {', '.join(others[:_NAMED])}{', ...' if len(others) > _NAMED else ''})"
    if finding["type"] in _CONTAINERS and place.startswith((ENV_PREFIX, "credential ")):
        reason += " (as JSON)"
    yield ConfigProblem(join_key(path), reason, place)


def _meant(model: type[BaseModel], path: KeyPath, place: str) -> str:
    section = section_at(model, path)
    if section is None:
        return ""
    name = str(path[-1])
    if place.startswith(ENV_PREFIX):
        return did_you_mean(place, [variable_of(key) for key in keys_of(model)])
    if sibling := did_you_mean(name, section.model_fields):
        return sibling
    elsewhere = [key for key in keys_of(model) if key[-1] == name]
    if elsewhere:
        return f" (did you mean {join_key(elsewhere[0])}?)"
    if place.startswith(f"credential {DIRECTORY_PREFIX}"):
        return is_it_a_file(place.removeprefix("credential "), path[0])
    return ""


def _without_tags(path: KeyPath, sources: Sequence[Source]) -> KeyPath:
    """pydantic appends the member of a union that it tried: cut where the values end."""
    for length in range(len(path), 0, -1):
        if any(source.mentions(path[:length]) for source in sources):
            return path[:length]
    return path


def _is_secret(model: type[BaseModel], path: KeyPath) -> bool:
    section = section_at(model, path)
    field = section.model_fields.get(str(path[-1])) if section and path else None
    return field is not None and _mentions_secret(field.annotation)


def _mentions_secret(annotation: Any) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_mentions_secret, typing.get_args(annotation)))


def _reason(finding: ErrorDetails, hidden: bool) -> str:
    if finding["type"] == "missing":
        return "required, but not set"
    if finding["type"] in {"value_error", "assertion_error"}:
        # the section's own sentence, which names the value by itself
        sentence = finding["msg"].split(", ", 1)[-1]
        return "cannot use this value (not shown: it is secret)" if hidden else sentence
    reason = finding["msg"][:1].lower() + finding["msg"][1:]
    if hidden:
        return f"cannot use this value (not shown: it is secret): {reason}"
    return f"cannot be {shown(finding['input'])}: {reason}"


def by_place(problem: ConfigProblem) -> tuple[str, int]:
    """Sorts problems by file and line."""
    file, _, line = problem.source.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.source, 0)


def shown(value: Any) -> str:
    """A value as TOML would have it, nearly, and short."""
    if isinstance(value, dict):
        text = "a table"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
