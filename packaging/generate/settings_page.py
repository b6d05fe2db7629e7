"""netd.toml(5) from the settings' models: every section and key, with type, default, unit, bounds and how a reload
treats it. What describes a key is the docstring below its field; what describes a section is its class's docstring.

Rules:
- no section and no key is named here: a new one appears by itself. A service is a section that the root model marks;
- a model that stands in several places (a listener, its certificate, the bounds of an HTTP door) is described once;
- units are told by names and first words, as the house writes them (`_unit`); a docstring that says otherwise wins.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
import typing

from document import Block, Code, Entries, Entry, Heading, Page, Paragraph, Section, Span, Synopsis, anchor, bold
from pydantic import BaseModel, SecretStr, ValidationError

import netd
from netd.section import OVERRIDE_FILE, Effect, Listen, effect_of
from netd.settings import CREDENTIALS, DEFAULT_FILE, DEFAULT_STATE_DIRECTORY, LOADED_CREDENTIALS, Settings
from netd.settings.problems import DIRECTORY_PREFIX, section_of, variable_of
from netd.settings.sources import MAX_BYTES, MAX_FILES

_BIG = 10_000  # numbers from here on are written with underscores, as TOML allows
_SAYS_WHAT = re.compile(r"^(?:The |One )?`?\[\[?[\w.]+\]\]?`?(?: section| entry)?(?:[.:]\s*|$)")
_TIMES = re.compile(r"\btimes (?:are )?in seconds", re.IGNORECASE)
_TIME_NAME = re.compile(r"(?:^|_)(?:timeout|interval|window|drain|keepalive|after|delay|age)$")


class Key(typing.NamedTuple):
    """A key of a table: its model's field."""

    name: str
    model: type[BaseModel]
    default: typing.Any
    """As a value; inspect.Parameter.empty for a required one."""
    schema: dict[str, typing.Any]

    @property
    def description(self) -> str:
        return inspect.cleandoc(self.model.model_fields[self.name].description or "")

    @property
    def effect(self) -> Effect:
        return effect_of(self.model, self.name)


class Table(typing.NamedTuple):
    """A table of the configuration. `path` is its dotted name; `listed` tells [[path]] from [path]."""

    path: str
    listed: bool
    model: type[BaseModel]
    default: BaseModel | None
    """Its values where nobody says otherwise, None where there is no such table then."""
    key: Key | None
    """The key that it is the value of; None for the root."""

    @property
    def heading(self) -> str:
        return f"[[{self.path}]]" if self.listed else f"[{self.path}]"


def keys(model: type[BaseModel], default: BaseModel | None = None) -> list[Key]:
    """The keys of a table, tables among them, in the model's order. `default` overrules the model's own defaults."""
    schema = _schemas(model)
    found = []
    for name, declared in model.model_fields.items():
        if default is not None:
            value = getattr(default, name)
        elif declared.is_required():
            value = inspect.Parameter.empty
        else:
            value = declared.get_default(call_default_factory=True)
        found.append(Key(name, model, value, schema[name]))
    return found


@functools.cache  # a thousand times for a dozen pages, and nearly all of their time
def _schemas(model: type[BaseModel]) -> dict[str, dict[str, typing.Any]]:
    """The JSON schema of each key."""
    properties: dict[str, dict[str, typing.Any]] = model.model_json_schema()["properties"]
    return properties


def tables(model: type[BaseModel] = Settings, path: str = "", default: BaseModel | None = None) -> list[Table]:
    """Every table below `model`, outer before inner."""
    found: list[Table] = []
    for key in keys(model, default):
        annotation = model.model_fields[key.name].annotation
        inner = section_of(annotation)
        if inner is None:
            continue
        name = f"{path}.{key.name}" if path else key.name
        listed = _is_list(annotation)
        values = key.default if isinstance(key.default, BaseModel) else None
        found.append(Table(name, listed, inner, values, key))
        found += tables(inner, name, values)
    return found


def _is_list(annotation: typing.Any) -> bool:
    if typing.get_origin(annotation) in (typing.Annotated, types.UnionType, typing.Union):
        return any(map(_is_list, typing.get_args(annotation)))
    return typing.get_origin(annotation) is list


def is_service(table: Table) -> bool:
    """Whether it is the section of a service."""
    extra = table.key.model.model_fields[table.key.name].json_schema_extra if table.key is not None else None
    return isinstance(extra, dict) and bool(extra.get("x-service"))


# --- words ------------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """As TOML may have it, and people read it."""
    whole = int(value)
    if whole != value:
        return repr(value)
    return f"{whole:_}" if abs(whole) >= _BIG else str(whole)


def size(count: float) -> str:
    """A number of bytes; in larger units only where it is a whole number of them."""
    for unit, each in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count % each == 0 and 1 <= count // each < _BIG:
            return f"{int(count // each)} {unit}"
    return number(count)


def toml(value: typing.Any) -> str:
    """A value as it would stand in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:_}" if isinstance(value, int) and value >= _BIG else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_unset=True)
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in given.items()) + " }"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, SecretStr):
        return '"********"'
    return json.dumps(str(value), ensure_ascii=False)


def or_list(words: typing.Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _unit(key: Key) -> str:
    """What a number counts, or ""."""
    name, text = key.name, key.description
    for begins, unit in (("Bytes a second", "bytes a second"), ("Bytes", "bytes"), ("Seconds", "seconds")):
        if re.match(rf"{begins}\b", text):
            return unit
    for ends, unit in (
        ("bytes_per_second", "bytes a second"),
        ("_per_second", "a second"),
        ("_ms", "milliseconds"),
        ("_seconds", "seconds"),
        ("_days", "days"),
        ("_bytes", "bytes"),
    ):
        if name.endswith(ends):
            return unit
    timed = _TIMES.search(inspect.getdoc(key.model) or "") and key.schema.get("type") == "number"
    return "seconds" if "in seconds" in text or (timed and _TIME_NAME.search(name)) else ""


def _bounds(schema: dict[str, typing.Any], shown: typing.Callable[[float], str]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum")
    if above is not None:
        most = f", at most {shown(high)}" if high is not None else ""
        return f"more than {shown(above)}{most}"
    if low is not None and high is not None:
        return f"{shown(low)} to {shown(high)}"
    if low is not None:
        return f"at least {shown(low)}"
    return f"at most {shown(high)}" if high is not None else ""


def _count(schema: dict[str, typing.Any], low: str, high: str, what: str) -> str:
    least, most = schema.get(low, 0), schema.get(high)
    if most is None:
        return f"at least {least} {what}" if least else ""
    return f"{least} to {number(most)} {what}" if least else f"at most {number(most)} {what}"


def type_of(key: Key, schema: dict[str, typing.Any] | None = None) -> str:
    """What a value may be, in words."""
    schema = key.schema if schema is None else schema
    options = schema.get("anyOf")
    if options:
        kinds = list(dict.fromkeys(type_of(key, option) for option in options if option.get("type") != "null"))
        nothing = any(option.get("type") == "null" for option in options)
        return or_list(kinds) + (' (`""`: none)' if nothing else "")
    if "enum" in schema:
        return or_list([f"`{toml(choice)}`" for choice in schema["enum"] if _offered(key, choice)])
    match schema.get("type"):
        case "boolean":
            return "`true` or `false`"
        case "integer" if (schema.get("minimum"), schema.get("maximum")) == (0, 0o777):
            return "permissions, `0o000` to `0o777`"
        case "integer" | "number" as kind:
            unit = _unit(key)
            bounds = _bounds(schema, size if unit.startswith("bytes") else number)
            word = unit if unit and unit != "a second" else "whole number" if kind == "integer" else "number"
            return ", ".join(filter(None, (word, bounds)))
        case "string":
            if schema.get("format") == "password":
                return "text, never shown"
            if schema.get("format") in ("path", "ipv4network", "ipv6network"):
                return str({"path": "path"}.get(schema["format"], "network"))
            if schema is not key.schema:  # an element of something
                return "text"
            return ", ".join(filter(None, ("text", _count(schema, "minLength", "maxLength", "characters"))))
        case "array":
            bounds = _count(schema, "minItems", "maxItems", "entries")
            return ", ".join(filter(None, (f"list of {_plural(type_of(key, schema['items']))}", bounds)))
        case "object":
            value = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties", {}))
            bounds = _count(schema, "minProperties", "maxProperties", "entries")
            return ", ".join(filter(None, (f"table of names, each with {type_of(key, value)}", bounds)))
    return "value"


def _plural(kind: str) -> str:
    return {"text": "texts", "path": "paths", "network": "networks"}.get(kind, kind)


def usable(key: Key, choice: typing.Any) -> bool:
    """Whether the model takes this choice: a word may be reserved for later."""
    try:
        key.model.model_validate({key.name: choice})
    except ValidationError as error:
        return all(problem["loc"][:1] != (key.name,) for problem in error.errors(include_url=False))
    return True


def _offered(key: Key, choice: typing.Any) -> bool:
    return choice not in _choices(key.schema) or usable(key, choice)  # within a list or table, all are


_EFFECTS = {
    Effect.LIVE: "live",
    Effect.REPLACE: "replaces the service",
    Effect.FIXED: "fixed",
}


def facts(key: Key) -> str:
    """Type, unit, bounds, whether it has to be given, and what a reload does."""
    missing = key.default is inspect.Parameter.empty
    kind = type_of(key)
    kind = kind[:1].upper() + kind[1:]
    return "; ".join(filter(None, (kind, "required" if missing else "", _EFFECTS[key.effect]))) + "."


# --- blocks -----------------------------------------------------------------------------------------------------------


def described(text: str, choices: typing.Sequence[str] = ()) -> tuple[Block, ...]:
    """A docstring as blocks. Where it says of several choices what each means ("auto: the best there is"), they become
    a list."""
    blocks: list[Block] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        flat = " ".join(paragraph.split())
        if not flat:
            continue
        one = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
        marks = list(re.finditer(rf"(?:(?<=^)|(?<=[.;:,] ))((?:{one})(?:, (?:{one}))*): ", flat)) if choices else []
        if len(marks) < 2:
            blocks.append(Paragraph(_typed(flat)))
            continue
        if lead := flat[: marks[0].start()].strip():
            blocks.append(Paragraph(_typed(lead)))
        ends = [mark.start() for mark in marks[1:]] + [len(flat)]
        entries = []
        for mark, end in zip(marks, ends, strict=True):
            meaning = flat[mark.end() : end].strip().rstrip(";")
            meaning = meaning[:1].upper() + meaning[1:]
            meaning += "" if meaning.endswith((".", "?", "!")) else "."
            tag = [span for word in mark[1].split(", ") for span in (Span(", "), bold(word))][1:]
            entries.append(Entry(tuple(tag), (Paragraph(_typed(meaning)),)))
        blocks.append(Entries(tuple(entries), dense=True))
    return tuple(blocks)


def _typed(text: str) -> str:
    """TOML of the docstrings is bold in a page, backticks around it or not: [[hub.token]] and "word" as a value."""
    return re.sub(r"(?<!`)(\[\[[\w.]+\]\])(?!`)", r"`\1`", text)


def entry(table: str, key: Key) -> Entry:
    """A key as an entry."""
    tag = [bold(key.name)]
    if isinstance(key.default, int) and not isinstance(key.default, bool) and key.schema.get("maximum") == 0o777:
        tag.append(Span(f" = 0o{key.default:03o}"))
    elif key.default is not None and key.default is not inspect.Parameter.empty:
        value = toml(key.default)
        human = size(key.default) if _unit(key).startswith("bytes") and key.default else ""
        tag.append(Span(f" = {value}" + (f"  ({human})" if human.endswith("iB") else "")))
    choices = [choice for choice in _choices(key.schema) if usable(key, choice)]
    blocks = described(key.description, [str(choice) for choice in choices])
    return Entry(tuple(tag), blocks, facts(key), anchor(f"{table}.{key.name}"))


def _choices(schema: dict[str, typing.Any]) -> list[typing.Any]:
    found = list(schema.get("enum", ()))
    for option in schema.get("anyOf", ()):
        found += _choices(option)
    return found


def about(model: type[BaseModel]) -> str:
    """What a section's docstring says beyond its name."""
    text = inspect.cleandoc(model.__doc__ or "")
    rest = _SAYS_WHAT.sub("", text, count=1)
    return rest[:1].upper() + rest[1:]


def is_table(key: Key) -> bool:
    return section_of(key.model.model_fields[key.name].annotation) is not None


def _of_every_listener(key: Key) -> bool:
    """Whether a listener's key is the one that all listeners have."""
    common = Listen.model_fields.get(key.name)
    return common is not None and issubclass(key.model, Listen) and common.description == key.description


def _blocks_of(table: Table, seen: dict[type[BaseModel], Table], listeners: str) -> list[Block]:
    blocks: list[Block] = [Heading((bold(table.heading),), anchor(table.path))]
    said = _SAYS_WHAT.sub("", table.key.description if table.key else "", count=1)
    more = about(table.model) if table.model is not Listen else ""
    if said and not more.startswith(said.rstrip(".")):
        blocks += described(said[:1].upper() + said[1:])
    if text := _facts_of(table):
        blocks.append(Paragraph(text))
    earlier = seen.get(table.model)
    if earlier is not None:
        theirs = {key.name: key.default for key in keys(earlier.model, earlier.default)}
        changed = [key for key in keys(table.model, table.default) if key.default != theirs[key.name]]
        blocks.append(Paragraph(f"The keys of `{earlier.heading}`" + ("; other defaults:" if changed else ".")))
        if changed:
            blocks.append(Code(tuple(f"{key.name} = {toml(key.default)}" for key in changed)))
        return blocks
    seen[table.model] = table
    blocks += described(more)
    own = [key for key in keys(table.model, table.default) if not is_table(key)]
    if issubclass(table.model, Listen):
        common = [f"`{key.name}`" for key in keys(Listen)]
        own = [key for key in own if not _of_every_listener(key)]
        end = ", and" if own else "."
        blocks.append(Paragraph(f"The keys of every listener ({', '.join(common)}; see {listeners}){end}"))
    if own:
        blocks.append(Entries(tuple(entry(table.path, key) for key in own)))
    return blocks


def _facts_of(table: Table) -> str:
    """How often a table may stand there, and what is there without it."""
    if table.key is None:
        return ""
    key, said = table.key, []
    if table.listed:
        said.append(_count(key.schema, "minItems", "maxItems", "entries"))
        said.append(f"without any: {_inline(key.default)}" if key.default else "")
    said = [part for part in said if part]
    if said:
        said.append(_EFFECTS[key.effect])
    text = "; ".join(said)
    return text[:1].upper() + text[1:] + "." if text else ""


def _inline(entries: list[BaseModel]) -> str:
    return or_list([f"`{toml(item)}`" for item in entries])


# --- the page ---------------------------------------------------------------------------------------------------------

_LISTENERS = "LISTENERS"


def page(settings: type[BaseModel] = Settings) -> Page:
    """netd.toml(5)."""
    every = tables(settings)
    of_listeners = {Listen} | {table.model for table in tables(Listen)}
    seen: dict[type[BaseModel], Table] = {}
    groups: dict[bool, list[Block]] = {False: [], True: []}
    serving = False
    for table in every:
        if "." not in table.path:
            serving = is_service(table)
        if table.model in of_listeners and table.model is not Listen:
            continue  # a listener's certificate: once, with the listeners
        groups[serving] += _blocks_of(table, seen, _LISTENERS)
    state = [key for key in keys(settings) if not is_table(key)]
    example = next(table for table in every if is_service(table) and getattr(table.default, "listen", None))
    return Page(
        "netd.toml",
        5,
        "configuration of the netd daemon",
        (
            Section("SYNOPSIS", (Synopsis((str(DEFAULT_FILE), f"{DEFAULT_FILE}.d/*.toml")),)),
            Section("DESCRIPTION", _description(every)),
            Section("READ ORDER", _read_order()),
            Section("RELOAD", _reload()),
            Section("KEYS OUTSIDE OF SECTIONS", (Entries(tuple(entry("", key) for key in state)),)),
            Section("SECTIONS", tuple(groups[False])),
            Section("SERVICES", (Paragraph(_OF_SERVICES), *groups[True])),
            Section(_LISTENERS, _listeners()),
            Section("EXAMPLES", _examples(example)),
        ),
        netd.__version__,
        ("netd(8)", "netctl(1)", "systemd.exec(5)"),
    )


_OF_SERVICES = (
    "Services are started in this order. `netctl services` lists them; `enabled = false` keeps one from running."
)


def _description(every: list[Table]) -> tuple[Block, ...]:
    first: list[Entry] = []
    for table in every:
        if "." not in table.path:
            sentence = re.split(r"(?<=\.)\s", " ".join(about(table.model).split()), maxsplit=1)[0]
            first.append(Entry((bold(table.heading),), (Paragraph(_typed(sentence)),)))
    return (
        Paragraph(
            "Every key has a default, and every default is safe: an empty file, or none, is a valid configuration. "
            "A file holds tables of keys in TOML v1.0. A key that netd does not know is an error, not a remark."
        ),
        Paragraph(
            'Keys that may have no value take `""` for none. A relative path is relative to the directory that netd is '
            "started in. Underscores in numbers are for the eye."
        ),
        Paragraph(
            "`netd --check` and `netctl config check` report everything that is wrong, each with file, line and key. "
            "`netctl config show` prints the configuration in force, each key with the place where it was set. "
            "`netd --print-schema` prints the JSON schema for editors."
        ),
        Paragraph("The sections are:"),
        Entries(tuple(first), dense=True),
    )


def _read_order() -> tuple[Block, ...]:
    files = f"`{DEFAULT_FILE}`, then the `*.toml` of `{DEFAULT_FILE}.d` in the order of their names"
    example = next(key for key in plain_keys())
    sources = (
        (
            "Files",
            f"{files}. With `netd --config`: the files and directories that it names, in that order, each file "
            f"followed by its own `.d` directory. At most {MAX_FILES} files of a directory, each "
            f"of at most {size(MAX_BYTES)}.",
        ),
        (
            "Environment",
            f"`{variable_of(['section', 'key'])}` sets a key: `{variable_of(example)}` sets `{'.'.join(example)}`. "
            "Lists and tables are JSON. A variable of this form that names no key is an error.",
        ),
        (
            "Credentials",
            f"A file `{CREDENTIALS}/SECTION.KEY` sets a key, and nobody but root and the daemon can read it. Other "
            "files in that directory are not settings; a key that takes a path can point at one as "
            f"`{LOADED_CREDENTIALS}/{DIRECTORY_PREFIX}FILENAME`. KEY is in lower case. White space around "
            "a value is dropped, and `netctl config show` has asterisks in its place. They are read when the service "
            "starts. More in netd(8) under CREDENTIALS.",
        ),
        (
            OVERRIDE_FILE,
            f"In the state directory (`{DEFAULT_STATE_DIRECTORY / OVERRIDE_FILE}`): what `netctl config set` wrote. "
            "`netctl config set --unset KEY` takes a key out of it.",
        ),
    )
    return (
        Paragraph("Later sources win over earlier ones. Tables are merged key by key; a list replaces the whole list."),
        Entries(tuple(Entry((bold(name),), (Paragraph(text),)) for name, text in sources)),
    )


def plain_keys() -> typing.Iterator[tuple[str, ...]]:
    """(section, key) of every key that is no table."""
    for table in tables():
        for key in keys(table.model, table.default):
            if "." not in table.path and not is_table(key):
                yield table.path, key.name


def _reload() -> tuple[Block, ...]:
    meanings = {
        Effect.LIVE: "Takes effect at once and disturbs nobody.",
        Effect.REPLACE: "A new generation of the service is prepared and started; the old one serves until then, and "
        "its clients have the drain deadline to finish. Listeners stay open all the while.",
        Effect.FIXED: "Needs a restart of the daemon. A reload that changes it is refused and changes nothing.",
    }
    assert set(meanings) == set(Effect)
    return (
        Paragraph(
            "`systemctl reload netd`, `netctl reload` and SIGHUP put the whole configuration in force, or none of it "
            "and say why. How a reload treats a change is said of each key:"
        ),
        Entries(
            tuple(Entry((bold(_EFFECTS[effect]),), (Paragraph(text),)) for effect, text in meanings.items()),
            dense=True,
        ),
    )


def _listeners() -> tuple[Block, ...]:
    blocks: list[Block] = [Paragraph("Every `[[SECTION.listen]]` entry has these keys, and those of its own section.")]
    blocks.append(Entries(tuple(entry("listen", key) for key in keys(Listen) if not is_table(key))))
    for table in tables(Listen, "SECTION.listen"):
        blocks.append(Heading((bold(table.heading),), anchor(table.path)))
        text = "\n\n".join(filter(None, (table.key.description if table.key else "", about(table.model))))
        blocks += described(text)
        blocks.append(Paragraph("A table of its own below the entry it belongs to."))
        inner = [key for key in keys(table.model) if not is_table(key)]
        blocks.append(Entries(tuple(entry(table.path, key) for key in inner)))
    return tuple(blocks)


def _examples(table: Table) -> tuple[Block, ...]:
    """A drop-in for the first service that listens by default."""
    listen = getattr(table.default, "listen")  # noqa: B009  # which model it is, the code that asks does not know
    port = str(listen[0].address).rpartition(":")[2]
    limit = next(
        key
        for key in keys(table.model, table.default)
        if key.schema.get("type") == "integer" and key.effect is Effect.LIVE
    )
    return (
        Paragraph(f"A drop-in, `{DEFAULT_FILE}.d/10-site.toml`:"),
        Code(
            (
                f"[{table.path}]",
                f"{limit.name} = {max(1, limit.default // 2)}",
                "",
                f"[[{table.path}.listen]]",
                f'address = "0.0.0.0:{port}"',
                "",
                f"[{table.path}.listen.tls]",
                f'certificate = "{LOADED_CREDENTIALS}/{DIRECTORY_PREFIX}tls.crt"',
                f'key = "{LOADED_CREDENTIALS}/{DIRECTORY_PREFIX}tls.key"',
            )
        ),
        Paragraph(f"Its certificate and key are the files `tls.crt` and `tls.key` in `{CREDENTIALS}`. Then:"),
        Code(("netctl config check && netctl reload",)),
    )
