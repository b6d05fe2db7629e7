"""How the help pages of commands are set: on a terminal of 40 columns as on one of 80.

Rules:
- text is as wide as the terminal, 78 columns at most (click's own pages never go below 50);
- where there is little room, the text of an option stands below its name;
- a list of commands has the first sentence of each, whole;
- lines that a command has set itself (after "\\b") are not broken: some are there to be copied.

Left out: netctl's own page, which is printed without click (main.py).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from netd.cli.main import columns_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST = 28  # columns
_SENTENCE = 200  # characters of a command's first sentence
_TEXT = 44  # columns that the texts of options and commands have, before their names have any beside them
_NAMES = (6, 30)  # columns of the names beside it: at least, and at most


class _Formatter(click.HelpFormatter):
    def __init__(self, *, width: int | None = None, max_width: int | None = None) -> None:
        width = width or min(columns_of(sys.stdout), max_width or 80) - 2
        super().__init__(width=max(width, _LEAST))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = _NAMES[1], col_spacing: int = 2) -> None:
        beside = max(self.width - _TEXT - 2 * col_spacing, _NAMES[0])
        super().write_dl(rows, min(col_max, beside), col_spacing)


class _Context(click.Context):
    formatter_class = _Formatter


def fitted(command: click.Command) -> click.Command:
    """The command and all below it, with pages that fit."""
    command.context_class = _Context
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            fitted(inner).short_help = inner.get_short_help_str(_SENTENCE)  # click would cut it where the line ends
    return command
