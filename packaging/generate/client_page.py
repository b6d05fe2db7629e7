"""netctl(1): every command and option from click's own objects.

Options that several commands of a noun have in common are described once, after the commands.
"""

from __future__ import annotations

import inspect
import re
import typing

import click
import settings_page
from common import every_error, rows_of, sentence, statuses
from document import (
    Block,
    Code,
    Entries,
    Entry,
    Heading,
    Page,
    Paragraph,
    Section,
    Span,
    Synopsis,
    anchor,
    bold,
    italic,
)

import netd
from netd import errors
from netd.cli.main import NOUNS, OPTIONS
from netd.cli.root import root
from netd.client.control import SOCKET_VARIABLE
from netd.settings import Settings

_SHARED = 3  # so many commands of one noun that have an option in common: it is described once, after them

_HINT = re.compile(r"\s*\[((?:default|env): [^\]]*)\]\s*$")


class Command(typing.NamedTuple):
    """A command of netctl: click's own object, and the words that lead to it."""

    words: tuple[str, ...]
    command: click.Command
    context: click.Context


def commands(noun: str) -> list[Command]:
    """A noun and the commands below it, outer before inner."""
    above = click.Context(root, info_name="netctl")
    command = root.get_command(above, noun)
    assert command is not None

    def walk(words: tuple[str, ...], command: click.Command, parent: click.Context) -> list[Command]:
        context = click.Context(command, info_name=words[-1], parent=parent)
        found = [Command(words, command, context)]
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None and not inner.hidden:
                    found += walk((*words, name), inner, context)
        return found

    return walk((noun,), command, above)


def options(command: click.Command) -> list[click.Option]:
    """A command's own options: those of netctl as a whole are described once."""
    common = {parameter.name for parameter in root.params}
    return [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in common and not parameter.hidden
    ]


def value_name(parameter: click.Parameter) -> str:
    """What stands for an option's value or an argument."""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return "|".join(map(str, parameter.type.choices))
    if isinstance(parameter, click.Argument):
        return (parameter.name or "").upper()
    return "N" if "int" in parameter.type.name or "float" in parameter.type.name else parameter.type.name.upper()


def usage(command: click.Command) -> list[Span]:
    """What may follow a command."""
    spans: list[Span] = []
    if options(command):
        spans += [Span(" ["), italic("OPTION"), Span("]...")]
    for parameter in command.params:
        if not isinstance(parameter, click.Argument):
            continue
        name = value_name(parameter)
        inner = name.removesuffix("...").strip("[]")
        tail = "..." if parameter.nargs != 1 else ""
        if parameter.required:
            spans += [Span(" "), italic(name.strip("[]") if name.startswith("[") else name), Span(tail)]
        else:
            spans += [Span(" ["), italic(inner), Span("]" + tail)]
    if isinstance(command, click.Group):
        optional = command.invoke_without_command
        spans += [Span(" [" if optional else " "), italic("COMMAND"), Span("]" if optional else "")]
    return [span for span in spans if span.text]


def _page_help(option: click.Option) -> str:
    """What `netctl --help` says of an option of netctl as a whole: its page is printed without click."""
    return next((text for name, text in OPTIONS.items() if name.split()[0] in option.opts), option.help or "")


def option_entry(option: click.Option, where: str, text: str | None = None) -> Entry:
    """An option with its help (or `text`), range, default and variable."""
    tag: list[Span] = []
    for name in (*option.opts, *option.secondary_opts):
        tag += [Span(", "), bold(name)]
    if not option.is_flag and not option.count:
        tag += [Span(" "), italic(value_name(option))]
    text = option.help or "" if text is None else text
    said: dict[str, str] = {}
    while hint := _HINT.search(text):
        said |= dict(re.findall(r"(default|env): ([^;\]]+(?:; \d[^\]]*)?)", hint[1]))
        text = text[: hint.start()]
    notes = []
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low, high = option.type.min, option.type.max
        if low is not None and high is not None:
            notes.append(f"{settings_page.number(low)} to {settings_page.number(high)}")
        elif low is not None:
            notes.append(f"at least {settings_page.number(low)}")
    default = said.get("default") or _default(option)
    if default:
        notes.append(f"default {default}")
    if variable := said.get("env") or option.envvar:
        notes.append(f"environment `{variable}`")
    if option.multiple and "several" not in text and "repeated" not in text:
        notes.append("may be repeated")
    note = "; ".join(notes)
    text = " ".join(filter(None, (sentence(text), sentence(note))))
    long = max(option.opts, key=len).lstrip("-")
    return Entry(tuple(tag[1:]), (Paragraph(text),) if text else (), anchor=anchor(f"{where}-{long}"))


def _default(option: click.Option) -> str:
    value = option.default
    shown = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    if not shown or option.is_flag:
        return ""
    return settings_page.number(value) if isinstance(value, int | float) else str(value)


def helped(command: click.Command) -> list[Block]:
    """A command's help as blocks."""
    blocks: list[Block] = []
    for paragraph in re.split(r"\n[ \t]*\n", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):  # click's mark for lines that are not to be filled
            lines = paragraph.split("\n")[1:]
            blocks.append(Code(tuple(line.rstrip() for line in lines)))
        elif paragraph.strip():
            blocks.append(Paragraph(sentence(paragraph)))
    return blocks


def _alike(option: click.Option) -> tuple[object, ...]:
    return (tuple(option.opts), option.help, option.metavar, _default(option), repr(option.type))


def noun_blocks(noun: str) -> list[Block]:
    """All about one noun."""
    found = commands(noun)
    first, *inner = found
    title = (bold(f"netctl {noun}"), *usage(first.command))
    blocks: list[Block] = [Heading(title, anchor(f"netctl-{noun}")), *helped(first.command)]
    if own := options(first.command):
        blocks.append(Entries(tuple(option_entry(option, noun) for option in own)))
    having: dict[tuple[object, ...], list[Command]] = {}
    for command in inner:
        for option in options(command.command):
            having.setdefault(_alike(option), []).append(command)
    shared = {alike: users for alike, users in having.items() if len(users) >= _SHARED}
    entries = []
    for command in inner:
        words = " ".join(command.words)
        below: list[Block] = helped(command.command)
        own = [option for option in options(command.command) if _alike(option) not in shared]
        if own:
            below.append(Entries(tuple(option_entry(option, words) for option in own), dense=True))
        entries.append(Entry((bold(words), *usage(command.command)), tuple(below), anchor=anchor(f"netctl-{words}")))
    if entries:
        blocks.append(Entries(tuple(entries)))
    for users in dict.fromkeys(tuple(command.words for command in users) for users in shared.values()):
        names = [f"`{' '.join(words)}`" for words in users]
        blocks.append(Paragraph(f"Options that {', '.join(names[:-1])} and {names[-1]} have in common:"))
        last = next(command for command in inner if command.words == users[-1])
        same = [
            option
            for option in options(last.command)
            if tuple(command.words for command in shared.get(_alike(option), ())) == users
        ]
        blocks.append(Entries(tuple(option_entry(option, noun) for option in same), dense=True))
    return blocks


_ABOUT_KINDS = (
    'With `--json` an error is an object on standard error: `{"error": {"kind": ..., "message": ...}}`. The kinds that '
    "end with a status are named with it."
)


def page() -> Page:
    """netctl(1)."""
    kinds: dict[int, list[str]] = {}
    for error in every_error(errors.NetdError):
        if error is not errors.ClientError and error is not errors.NetdError and error is not errors.RequestFailed:
            code = errors._EXIT_CODES.get(error.kind, error.exit_code)  # what netctl makes of the daemon's answer
            kinds.setdefault(code, []).append(error.kind)
    context = click.Context(root, info_name="netctl")
    globals_ = [parameter for parameter in root.get_params(context) if isinstance(parameter, click.Option)]
    all_commands = [command for noun in NOUNS for command in commands(noun)]
    return Page(
        "netctl",
        1,
        "look at a running netd, and change it",
        (
            Section(
                "SYNOPSIS",
                (Synopsis(("netctl [OPTION]... COMMAND [ARGUMENT]...", "netctl COMMAND [COMMAND] --help")),),
            ),
            Section(
                "DESCRIPTION",
                (
                    Paragraph(
                        "`netctl` speaks to netd(8) over its control socket. The options below may stand before or "
                        "after the command. On a terminal it prints tables that fit; with `--json` it prints what "
                        "programs read, and failures too are JSON on standard error."
                    ),
                    Paragraph(
                        "Who may read and who may change what is said in netd(8) under ACCESS. A change goes on in "
                        "the daemon whether or not `netctl` waits for it."
                    ),
                ),
            ),
            Section(
                "OPTIONS", (Entries(tuple(option_entry(option, "netctl", _page_help(option)) for option in globals_)),)
            ),
            Section("COMMANDS", tuple(block for noun in NOUNS for block in noun_blocks(noun))),
            Section("ENVIRONMENT", (rows_of(_environment(all_commands)),)),
            Section("FILES", (rows_of(((str(Settings().control.socket), "The control socket."),)),)),
            Section("EXIT STATUS", (Paragraph(_ABOUT_KINDS), statuses(kinds, (0, 1, 2, 130, 141, 143)))),
            Section("EXAMPLES", _examples()),
        ),
        netd.__version__,
        ("netd(8)", "netd.toml(5)", "journalctl(1)"),
    )


def _environment(every: list[Command]) -> list[tuple[str, str]]:
    rows = [(SOCKET_VARIABLE, "The control socket, where `--socket` does not name it.")]
    variables: dict[str, list[str]] = {}
    for command in every:
        for option in options(command.command):
            if isinstance(option.envvar, str):
                variables.setdefault(option.envvar, []).append(max(option.opts, key=len))
    rows += [(name, f"The default of `{used[0]}`.") for name, used in sorted(variables.items())]
    rows.append(("NO_COLOR", "If set, nothing is coloured."))
    rows.append(("COLUMNS", "The width of tables, where it is not to be that of the terminal."))
    return rows


def _examples() -> tuple[Block, ...]:
    service = next(table.path for table in settings_page.tables() if settings_page.is_service(table))
    return (
        Paragraph("How is it?"),
        Code(("netctl status", "netctl health")),
        Paragraph("Wait in a script until every service serves:"),
        Code(("netctl health --ready --wait 30",)),
        Paragraph("Stop one service and start it again:"),
        Code((f"netctl services stop {service}", f"netctl services start {service}")),
        Paragraph("Log more for a while:"),
        Code(("netctl log level debug", "netctl log level --reset")),
        Paragraph("The state of each service, for a program:"),
        Code(("netctl --json services | jq -r '.services[] | [.name, .state] | @tsv'",)),
    )
