"""Completion scripts for bash, zsh and fish, written from a tree of commands.

    script("bash", of_click(root, "netctl"))

Rules:
- a script knows every command, option and choice by itself: what it offers of these starts no process. It asks the
  program only for what is known at run time (a session's id), by click's protocol, and only where that can stand;
- what the program answers may have been named by strangers: it is quoted for the shell, is never evaluated, and words
  with control characters are left out;
- an option's value may stand behind "=" or in the next word; words with ":" in them are completed whole.

Left out: whose words these are. `netctl completion` prints netctl's; the package has them in files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")

_WORD = re.compile(r"[\w.:@%+,/-]+")  # what needs no quotes in any of the shells, nor in the tables below


@dataclass(frozen=True)
class Value:
    """What may stand in a place. Nothing known of it: the default."""

    choices: tuple[str, ...] = ()
    file: bool = False
    asked: bool = False
    """The program is asked."""


@dataclass(frozen=True)
class Option:
    names: tuple[str, ...]
    help: str
    value: Value | None = None
    """None: it takes none."""
    metavar: str = ""
    repeated: bool = False


@dataclass(frozen=True)
class Argument:
    metavar: str
    value: Value
    repeated: bool = False


@dataclass(frozen=True)
class Command:
    """A command; `words` are those that lead to it, the program's name first."""

    words: tuple[str, ...]
    help: str = ""
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.words[-1]

    def all(self) -> Iterator[Command]:
        """This one and all below it."""
        yield self
        for command in self.commands:
            yield from command.all()


# --- from click -------------------------------------------------------------------------------------------------------


def of_click(command: click.Command, name: str) -> Command:
    """The tree of a click command. Imports every file that it loads lazily."""
    return _of_click(command, (name,), None)


def _of_click(command: click.Command, words: tuple[str, ...], above: click.Context | None) -> Command:
    context = click.Context(command, info_name=words[-1], parent=above)
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            flag = parameter.is_flag or parameter.count
            metavar = parameter.metavar or parameter.type.name.upper()
            names = (*parameter.opts, *parameter.secondary_opts)
            value = None if flag else _value(parameter)
            options.append(Option(names, _line(parameter.help), value, metavar, parameter.multiple))
        elif isinstance(parameter, click.Argument):
            metavar = (parameter.metavar or (parameter.name or "").upper()).strip("[].")
            arguments.append(Argument(metavar, _value(parameter), parameter.nargs == -1))
    inner = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inner.append(_of_click(child, (*words, name), context))
    return Command(words, _line(command.get_short_help_str(200)), tuple(options), tuple(arguments), tuple(inner))


def _value(parameter: click.Parameter) -> Value:
    if isinstance(parameter.type, click.Choice):
        return Value(choices=tuple(map(str, parameter.type.choices)))
    if isinstance(parameter.type, click.Path | click.File):
        return Value(file=True)
    return Value(
        asked=getattr(parameter, "_custom_shell_complete", None) is not None
    )  # click has no public name for it


def _line(text: str | None) -> str:
    """Help for one line of a menu, without the [default: ...] that was written by hand."""
    flat = " ".join((text or "").split())
    return re.sub(r"\s*\[(?:default|env): [^\]]*\]$", "", flat).rstrip(".")


# --- scripts ----------------------------------------------------------------------------------------------------------


def script(shell: str, program: Command) -> str:
    """The script for one of SHELLS."""
    for command in program.all():
        words = [command.name, *(name for option in command.options for name in option.names)]
        values = [*(option.value for option in command.options), *(argument.value for argument in command.arguments)]
        words += [choice for value in values if value for choice in value.choices]
        if strange := [word for word in words if not _WORD.fullmatch(word)]:
            raise ValueError(f"cannot complete {strange[0]!r}: it would have to be quoted")
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return write(program)


def _quoted(text: str) -> str:
    """For bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


# bash: tables of words. An option that takes a value ends in "=" and what is known of it; arguments are only that:
# "/" a file, "@" the program is asked, "a|b" choices, "-" nothing known; "..." there may be more of it

_BASH = """\
# bash completion for NAME. Commands, options and choices stand here; NAME is asked for what only it knows.

_ID_at() {  # what may follow a command: sets commands, options, arguments
    commands= options= arguments=
    case $1 in
TABLE
    esac
}

_ID_value() {  # offer values of a kind, each after $2
    local word
    case $1 in
    -) ;;
    /)
        compopt -o filenames
        while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "${current#"$2"}")
        ;;
    @)
        while IFS= read -r word; do
            word=${word#*,}
            [[ $word == *[[:cntrl:]]* ]] && continue
            [[ $word == *: ]] && compopt -o nospace
            printf -v word %q "$word"
            _ID_offer "$2$word"
        done < <(
            env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) _VARIABLE_COMPLETE=bash_complete \\
                "${words[0]}" 2>/dev/null
        )
        ;;
    *)
        for word in ${1//|/ }; do _ID_offer "$2$word"; done
        ;;
    esac
}

_ID_offer() {  # a whole word, without what bash has put aside of it
    [[ $1 == "$current"* ]] && COMPREPLY+=("${1#"$aside"}")
}

_ID() {
    local IFS=$' \\t\\n' at=NAME commands options arguments expected= plain= word option index
    local -a words=() places
    # bash has split words at ":" and "=": put together what stands together on the line, up to the cursor
    local rest=${COMP_LINE:0:COMP_POINT} trimmed
    for ((index = 0; index <= COMP_CWORD; index++)); do
        trimmed=${rest#"${rest%%[![:space:]]*}"}
        [[ $index == 0 || $trimmed != "$rest" ]] && words+=('')
        word=${COMP_WORDS[index]}
        [[ $index == "$COMP_CWORD" || $trimmed != "$word"* ]] && word=$trimmed
        words[-1]+=$word
        rest=${trimmed#"$word"}
    done
    local current=${words[-1]} aside=
    local breaks=${COMP_WORDBREAKS//[^:=]/}
    [[ $breaks && $current == *["$breaks"]* ]] && aside=${current%"${current##*["$breaks"]}"}

    # which command is this, how many arguments has it, and does the word before want a value?
    local count=0
    _ID_at "$at"
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $expected ]]; then
            expected=
        elif [[ $word == -- && ! $plain ]]; then
            plain=1
        elif [[ $word == -* && $word != *=* && ! $plain ]]; then
            for option in $options; do
                [[ $option == "$word="* ]] && expected=${option#*=}
            done
        elif [[ $word != -* || $plain ]]; then
            if [[ $commands ]]; then
                [[ " $commands " == *" $word "* ]] || return 0
                at+=" $word"
                _ID_at "$at"
            else
                ((count += 1))
            fi
        fi
    done

    COMPREPLY=()
    if [[ $expected ]]; then
        _ID_value "$expected" ''
    elif [[ $current == -*=* && ! $plain ]]; then
        for option in $options; do
            [[ $option == "${current%%=*}="* ]] && _ID_value "${option#*=}" "${current%%=*}="
        done
    elif [[ $current == -* && ! $plain ]]; then
        for option in $options; do _ID_offer "${option%%=*}"; done
    elif [[ $commands ]]; then
        for word in $commands; do _ID_offer "$word"; done
    else
        places=($arguments)
        if ((count >= ${#places[@]} && ${#places[@]} > 0)) && [[ ${places[-1]} == *... ]]; then
            count=$((${#places[@]} - 1))
        fi
        word=${places[count]-}
        [[ $word ]] && _ID_value "${word%...}" ''
    fi
    return 0
}

complete -o nosort -F _ID NAME
"""


def _kind(value: Value) -> str:
    return "@" if value.asked else "/" if value.file else "|".join(value.choices) or "-"


def _bash(program: Command) -> str:
    table = []
    for command in program.all():
        options = [
            name + (f"={_kind(option.value)}" if option.value else "")
            for option in command.options
            for name in option.names
        ]
        places = [_kind(argument.value) + ("..." if argument.repeated else "") for argument in command.arguments]
        rows = [
            ("commands", [inner.name for inner in command.commands]),
            ("options", options),
            ("arguments", places),
        ]
        table.append(f"    {_quoted(' '.join(command.words))})")
        table += [f"        {name}={_quoted(' '.join(words))}" for name, words in rows if words]
        table.append("        ;;")
    return _filled(_BASH, program, "\n".join(table))


def _filled(template: str, program: Command, table: str) -> str:
    name = program.name
    identifier = re.sub(r"\W", "_", name)
    text = template.replace("VARIABLE", identifier.upper()).replace("_ID", f"_{identifier}").replace("NAME", name)
    return text.replace("TABLE", table)


# zsh: a function for each command, over its own _arguments

_ZSH = """\
#compdef NAME
# zsh completion for NAME. Commands, options and choices stand here; NAME is asked for what only it knows.

_ID_ask() {
  local -a found ends
  found=(${(f)"$(env COMP_WORDS="${(j: :)ID_words[1,ID_current]}" COMP_CWORD=$((ID_current - 1)) \\
    _VARIABLE_COMPLETE=bash_complete $ID_words[1] 2>/dev/null)"})
  found=(${${found#*,}:#*[[:cntrl:]]*})
  ends=(${(M)found:#*:})
  found=(${found:#*:})
  (( $#ends )) && compadd -S '' -a ends
  (( $#found )) && compadd -a found
}

TABLE

_ID() {
  local -a ID_words=("${words[@]}")
  integer ID_current=$CURRENT
  _ID__ROOT
}

if [[ $funcstack[1] == _ID ]]; then
  _ID "$@"
else
  compdef _ID NAME
fi
"""


def _zsh(program: Command) -> str:
    text = _filled(_ZSH, program, "\n\n".join(_zsh_command(command) for command in program.all()))
    return text.replace("__ROOT", "__" + re.sub(r"\W", "_", program.name))


def _zsh_name(command: Command) -> str:
    return "_" + re.sub(r"\W", "_", command.words[0]) + "__" + "_".join(re.sub(r"\W", "_", w) for w in command.words)


def _zsh_command(command: Command) -> str:
    identifier = re.sub(r"\W", "_", command.words[0])
    specs = [spec for option in command.options for spec in _zsh_option(option, identifier)]
    if not command.commands:
        for argument in command.arguments:
            place = "*" if argument.repeated else ""
            specs.append(_quoted(f"{place}:{_zsh_escaped(argument.metavar)}:{_zsh_action(argument.value, identifier)}"))
        lines = [f"{_zsh_name(command)}() {{", "  _arguments -S : \\"]
        return "\n".join([*lines, *(f"    {spec} \\" for spec in specs[:-1]), f"    {specs[-1]}", "}"])
    lines = [
        f"{_zsh_name(command)}() {{",
        "  local context state state_descr line ret=1",
        "  typeset -A opt_args",
        "  local -a commands=(",
        *(f"    {_quoted(f'{inner.name}:{_zsh_escaped(inner.help)}')}" for inner in command.commands),
        "  )",
        "  _arguments -S -C : \\",
        *(f"    {spec} \\" for spec in specs),
        "    '1: :->command' '*:: :->rest' && ret=0",
        "  case $state in",
        f"  command) _describe -t commands '{command.name} command' commands && ret=0 ;;",
        "  rest)",
        "    case $line[1] in",
        *(f"    {inner.name}) {_zsh_name(inner)} && ret=0 ;;" for inner in command.commands),
        "    esac",
        "    ;;",
        "  esac",
        "  return ret",
        "}",
    ]
    return "\n".join(lines)


def _zsh_option(option: Option, identifier: str) -> Iterator[str]:
    others = "*" if option.repeated else f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    for name in option.names:
        takes = "" if option.value is None else "=" if name.startswith("--") else "+"
        spec = f"{others}{name}{takes}[{_zsh_escaped(option.help)}]"
        if option.value is not None:
            spec += f":{_zsh_escaped(option.metavar)}:{_zsh_action(option.value, identifier)}"
        yield _quoted(spec)


def _zsh_escaped(text: str) -> str:
    return re.sub(r"[\\:\[\]`$]", r"\\\g<0>", text)


def _zsh_action(value: Value, identifier: str) -> str:
    if value.asked:
        return f"_{identifier}_ask"
    if value.file:
        return "_files"
    return f"({' '.join(value.choices)})" if value.choices else " "


# fish: a `complete` for each word, under the condition that the cursor is at its command

_FISH = """\
# fish completion for NAME. Commands, options and choices stand here; NAME is asked for what only it knows.

function __ID_known --description 'the commands after a command, and its options that take a value'
    switch "$argv[1]"
TABLE
    end
end

function __ID_at --description 'is the cursor at this command, after so many arguments (or more: N+)?'
    set -l at NAME
    set -l known (__ID_known NAME)
    set -l count 0
    set -l value 0
    set -l tokens (commandline -opc)
    for token in $tokens[2..]
        if test $value = 1
            set value 0
        else if string match -q -- '-*' $token
            contains -- $token $known; and set value 1
        else if contains -- $token $known
            set at "$at $token"
            set known (__ID_known $at)
        else
            set count (math $count + 1)
        end
    end
    test "$at" = "$argv[1]"; or return 1
    test -n "$argv[2]"; or return 0
    if string match -q '*+' -- $argv[2]
        test $count -ge (string trim -rc + -- $argv[2])
    else
        test $count -eq $argv[2]
    end
end

function __ID_ask
    set -l words (commandline -opc)
    env COMP_WORDS="$words "(commandline -ct | string collect -a) COMP_CWORD=(count $words) \\
        _VARIABLE_COMPLETE=bash_complete $words[1] 2>/dev/null | string replace -r '^[a-z]+,' '' |
        string match -rv '[[:cntrl:]]'
end

complete -c NAME -f
COMPLETIONS
"""


def _fish(program: Command) -> str:
    identifier = re.sub(r"\W", "_", program.name)
    known, lines = [], []
    for command in program.all():
        at = " ".join(command.words)
        words = [inner.name for inner in command.commands]
        words += [name for option in command.options if option.value for name in option.names]
        if words:
            known += [
                f"        case {_fish_quoted(at)}",
                f"            string split ' ' -- {_fish_quoted(' '.join(words))}",
            ]
        here = f"complete -c {program.name} -n {_fish_quoted(f'__{identifier}_at {_fish_quoted(at)}')}"
        first = f"complete -c {program.name} -n {_fish_quoted(f'__{identifier}_at {_fish_quoted(at)} 0')}"
        lines.append("")
        for inner in reversed(command.commands):  # with -k fish shows first what was declared last
            lines.append(f"{first} -ka {inner.name} -d {_fish_quoted(inner.help)}")
        for option in command.options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = "" if option.value is None else " " + _fish_value(option.value, identifier, required=True)
            lines.append(f"{here} {names}{value} -d {_fish_quoted(option.help)}")
        for index, argument in enumerate(command.arguments):
            if argument.value == Value():
                continue
            place = f"{index}+" if argument.repeated else str(index)
            there = f"complete -c {program.name} -n {_fish_quoted(f'__{identifier}_at {_fish_quoted(at)} {place}')}"
            lines.append(f"{there} {_fish_value(argument.value, identifier, required=False)}")
    return _filled(_FISH, program, "\n".join(known)).replace("COMPLETIONS", "\n".join(lines))


def _fish_value(value: Value, identifier: str, *, required: bool) -> str:
    if value.file:
        return "-rF" if required else "-F"
    options = "-x" if required else "-k"
    if value.asked:
        return f"{options} -a '(__{identifier}_ask)'"
    return f"{options} -a {_fish_quoted(' '.join(value.choices))}" if value.choices else options


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
