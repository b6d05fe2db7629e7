"""`netctl config`: show, get, set, check, diff, schema.

`set` writes the daemon's override.toml, which is read after every file, and reloads; `--unset` takes a key out of it.
A value is read as TOML (20, true, ["a", "b"]) and, where it is none, as the text it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.changes import carry_out, wait_options
from netd.cli.options import call, common_options, invocation, not_found

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from netd.client import shapes
    from netd.client.control import ControlClient

REFUSED = 78  # EX_CONFIG, sysexits.h
_DEFAULT = "default"


@click.group(short_help="Show, check, compare or change the configuration.")
@common_options
def config() -> None:
    """Show, check, compare or change the configuration."""


@config.command()
@click.argument("section", required=False)
@common_options
def show(section: str | None) -> None:
    """The running configuration as TOML, each key with where it was set; or one SECTION of it ("trace")."""
    view = call(lambda client: client.config())
    from netd.cli.output import console, print_json, text

    if invocation().json:
        print_json(view if section is None else {**view, "values": {section: find(view["values"], section)}})
        return
    out = console()
    if section is None:
        out.print(text(("# read from: " + (", ".join(view["sources"]) or "no file, all defaults"), "dim")))
    values = find(view["values"], section) if section else view["values"]
    if not isinstance(values, dict):
        assert section is not None
        _print_lines(out, [(f"{section} = {brief_toml(values, section)}", origin_of(view, section))])
        return
    _print_lines(out, list(toml_lines(values, section or "", view)))


@config.command("get")
@click.argument("key")
@common_options
def get_key(key: str) -> None:
    """The running value of one KEY ("trace.max_hops"), bare, for scripts."""
    view = call(lambda client: client.config())
    value = find(view["values"], key)
    from netd.cli.output import print_json, printable_lines

    if invocation().json:
        print_json({"key": key, "value": value, "origin": origin_of(view, key)})
    elif isinstance(value, str):
        click.echo(printable_lines(value))
    else:
        click.echo("" if value is None else brief_toml(value, key))


@config.command("set")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--unset", is_flag=True, help="Take KEY out of the override file: back to what the other files say.")
@click.option("--text", "as_text", is_flag=True, help="Take VALUE as text even if it looks like a number or a list.")
@wait_options
@common_options
def set_key(key: str, value: str | None, unset: bool, as_text: bool, wait: float) -> None:
    """Set KEY to VALUE in the daemon's override file, and reload.

    If the daemon cannot run with it, nothing is kept. VALUE is TOML: 20, true, ["a", "b"]; anything else is text.
    """
    if unset == (value is not None):
        raise click.UsageError(f"cannot set {key!r}: give either VALUE or --unset")
    wanted = None if value is None else value if as_text else parse_value(value)

    async def begin(client: ControlClient, seconds: float) -> shapes.Change:
        return await client.config_patch({key: wanted}, wait=seconds)

    change = carry_out(begin, f"set {key}" if value is not None else f"unset {key}", wait)
    if change is not None:
        from netd.cli.reload import print_applied

        print_applied(change)


@config.command()
@common_options
def check() -> None:
    """Whether the daemon could run with what is on disk now; changes nothing.

    Exit code 78 if it could not. Without a running daemon: netd --check --config FILE.
    """
    answer = call(lambda client: client.config_check())
    from netd.cli.config_view import differences, print_differences
    from netd.cli.output import console, print_json, printable, text

    if invocation().json:
        print_json(answer)
    elif answer["ok"]:
        out = console()
        out.print(text(("✓ ", "green"), "the configuration on disk is fine"))
        if answer["changes"]:
            fixed = [change["path"] for change in answer["changes"] if change["effect"] == "fixed"]
            if fixed:
                out.print(
                    text(("▲ ", "yellow"), f"a reload would be refused: only a restart changes {', '.join(fixed)}")
                )
            else:
                out.print(text("a reload would change:"))
            print_differences(out, differences(answer["changes"]))
    else:
        for problem in answer["problems"]:
            parts = (problem.get("source"), problem.get("path"), problem["message"])
            click.echo(": ".join(printable(part) for part in parts if part), err=True)
    if not answer["ok"]:
        click.get_current_context().exit(REFUSED)


@config.command()
@common_options
def diff() -> None:
    """What differs between the running configuration and the files, and what a reload would do about it."""
    changes = call(lambda client: client.config_diff())
    from netd.cli.config_view import differences, print_differences
    from netd.cli.output import console, print_json

    if invocation().json:
        print_json({"changes": changes})
    elif changes:
        print_differences(console(), differences(changes))
    else:
        click.echo("no difference: what is on disk is running")


@config.command()
@common_options
def schema() -> None:
    """The JSON schema of the configuration, for editors."""
    from netd.cli.output import print_json

    print_json(call(lambda client: client.config_schema()))


# --- pieces ---------------------------------------------------------------------------------------------------------


def find(values: Any, key: str) -> Any:
    """The value at a dotted key; numbers index lists. RequestFailed (not-found) names the nearest key there is."""
    found = values
    taken: list[str] = []
    for part in _parts(key):
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            import difflib

            names = list(found) if isinstance(found, dict) else []
            near = difflib.get_close_matches(part, names, n=1)
            meant = f" (did you mean {'.'.join([*taken, near[0]])}?)" if near else ""
            raise not_found(f"cannot find {key!r} in the configuration{meant}")
        taken.append(part)
    return found


def _parts(key: str) -> tuple[str, ...]:
    """'log.loggers."netd.trace"' -> its parts. What is no key of TOML is split at its dots, and not found."""
    if '"' not in key and "'" not in key:
        return tuple(key.split("."))
    from netd.wire.tomlkeys import split_key

    try:
        return split_key(key)
    except ValueError:
        return tuple(key.split("."))


def origin_of(view: shapes.ConfigView, key: str) -> str:
    """Where a key, or the table or list it is in, was set; "default" if nowhere."""
    while key:
        if (origin := view["origins"].get(key)) is not None:
            return origin
        key = key.rpartition(".")[0]
    return _DEFAULT


def parse_value(text: str) -> Any:
    """A command-line value as TOML, or as the text it is. A date or time stays text: the configuration knows none."""
    import tomllib

    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    plain = len(parsed) == 1 and isinstance(value, str | int | float | bool | list | dict)
    return value if plain and _is_json(value) else text


def _is_json(value: Any) -> bool:
    import json

    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # a date within a list; nan and inf
        return False
    return True


def toml_lines(values: dict[str, Any], path: str, view: shapes.ConfigView) -> Iterator[tuple[str, str]]:
    """(line, origin) pairs: plain keys first, then tables and arrays of tables, as TOML wants it."""
    tables = {key: value for key, value in values.items() if isinstance(value, dict) or _is_tables(value)}
    for key, value in values.items():
        if key not in tables:
            dotted = f"{path}.{_toml_key(key)}" if path else _toml_key(key)
            line = f"{_toml_key(key)} = {brief_toml(value, key)}" if value is not None else f"# {key} is not set"
            yield line, origin_of(view, dotted)
    for key, value in tables.items():
        dotted = f"{path}.{_toml_key(key)}" if path else _toml_key(key)
        for index, member in enumerate(value if isinstance(value, list) else [value]):
            yield "", ""
            yield (f"[[{dotted}]]", "") if isinstance(value, list) else (f"[{dotted}]", "")
            yield from toml_lines(member, f"{dotted}.{index}" if isinstance(value, list) else dotted, view)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(member, dict) for member in value)


def brief_toml(value: Any, key: str = "") -> str:
    """One value as TOML writes it, on one line. TOML has no null: what is not set is left out of lists and tables.

    `key` is the value's, dotted or not: permissions are written as everybody reads them, in octal.
    """
    import json

    match value:
        case dict():
            known = [(name, member) for name, member in value.items() if member is not None]
            return "{" + ", ".join(f"{_toml_key(name)} = {brief_toml(member, name)}" for name, member in known) + "}"
        case list():
            return "[" + ", ".join(brief_toml(member) for member in value if member is not None) + "]"
        case str():
            # a JSON string is a basic string of TOML 1.0, but for DEL, which TOML wants escaped too
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case None:
            return '""'
        case int() if not isinstance(value, bool) and "mode" in key.rpartition(".")[2] and value >= 0:
            return f"0o{value:03o}"
        case _:
            return json.dumps(value)


def _toml_key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else brief_toml(key)


def _print_lines(out: Any, lines: Sequence[tuple[str, str]]) -> None:
    from netd.cli.output import text

    width = min(max((len(line) for line, origin in lines if origin), default=0), 48)
    for line, origin in lines:
        if not origin:
            out.print(text((line, "bold cyan")))
            continue
        set_here = origin != _DEFAULT
        comment = f"  # {origin}" if set_here else ""
        out.print(text((f"{line:<{width}}" if comment else line, "" if set_here else "dim"), (comment, "dim")))
