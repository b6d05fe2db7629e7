#!/usr/bin/env python3
"""Write completions of netctl and netd for bash, zsh and fish: `packaging/generate/completions.py DIR`.

    DIR/bash/{netctl,netd}            for /usr/share/bash-completion/completions/
    DIR/zsh/{_netctl,_netd}           for /usr/share/zsh/vendor-completions/
    DIR/fish/{netctl,netd}.fish       for /usr/share/fish/vendor_completions.d/

netctl's are what `netctl completion SHELL` prints; netd's come from its argparse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from netd import __main__ as daemon_main
from netd.cli.completion_scripts import SHELLS, Command, Option, Value, of_click, script
from netd.cli.root import root

_FILES = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}


def of_argparse(parser: argparse.ArgumentParser) -> Command:
    """The tree of a parser that has options only."""
    options = []
    for action in parser._actions:  # argparse has no public way to them
        value = None
        if action.nargs != 0:
            value = Value(choices=tuple(action.choices or ()), file=action.type is Path)
        repeated = isinstance(action, argparse._AppendAction)
        metavar = str(action.metavar or action.dest.upper())
        options.append(Option(tuple(action.option_strings), _brief(action.help or ""), value, metavar, repeated))
    return Command((parser.prog,), parser.description or "", tuple(options))


def _brief(text: str) -> str:
    """What a menu has room for: up to the first semicolon or bracket."""
    return text.partition(";")[0].partition(" (")[0]


def programs() -> list[Command]:
    return [of_click(root, "netctl"), of_argparse(daemon_main._parser())]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write completions of netctl and netd into a directory.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    directory: Path = parser.parse_args().directory
    for shell in SHELLS:
        (directory / shell).mkdir(parents=True, exist_ok=True)
        for program in programs():
            file = directory / shell / _FILES[shell].format(program.name)
            file.write_text(script(shell, program), encoding="ascii")


if __name__ == "__main__":
    main()
