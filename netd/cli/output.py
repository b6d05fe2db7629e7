"""How netctl writes: JSON for programs, tables that fit the terminal for people.

Rules:
- every string that comes from the daemon passes `printable`: names of routers and reasons of clients are written by
  strangers, and a terminal obeys what it is sent;
- colour only on a terminal, never with NO_COLOR (rich sees to both); no state is told by colour alone;
- on a terminal a table gives way at its flexible columns, then does without its least important ones, and then breaks
  words where cells wrap; ids and addresses are never cut: rather is a line too long (print such a table with
  crop=False). Into a file or a pipe it is as wide as it needs to be.

rich is imported when the first table is made.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from netd.cli.main import columns_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_UNLIMITED = 4096  # columns, for output that no terminal shows
_LEAST_CUT = 8  # columns of a cell that may be cut, or whose words may be broken
_LONGEST_WORD = 48  # columns of a word that is not broken where there is room: an IPv6 address with its port has 47
_DUMB_HEIGHT = 25  # lines; what rich assumes, and wants to be told if it is told the width
_GAP = 2  # columns between columns
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


# --- JSON -----------------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """One object, indented. ASCII only, so that nothing in it can be an order to the terminal."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """One object on one line, at once: somebody follows."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


# --- text -----------------------------------------------------------------------------------------------------------


def printable(value: object) -> str:
    """`value` as text with everything a terminal would act on (escapes, line ends, reversed writing) made visible."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """`printable` for text of many lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def console(*, stderr: bool = False) -> Console:
    """Where people read. Nothing in what is printed is markup."""
    from rich.console import Console

    class Pipe(Console):
        """rich ends the process with code 1 when its reader is gone; how netctl ends is root.py's affair."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _UNLIMITED
    height = None
    if stream.isatty() and is_dumb():
        width, height = columns_of(stream), _DUMB_HEIGHT  # rich takes every dumb terminal for one of 80 columns
    return Pipe(stderr=stderr, width=width, height=height, markup=False, highlight=False, emoji=False, soft_wrap=False)


def is_dumb() -> bool:
    """Whether the terminal can do nothing but show what it gets (TERM=dumb): no colour, and no line is rewritten."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


@dataclass(frozen=True)
class Column:
    """A column of a table. `narrow` says what happens to it on a narrow terminal: a rigid one stays whole."""

    title: str
    justify: Literal["left", "right"] = "left"
    narrow: Literal["rigid", "cut", "wrap"] = "rigid"
    style: str = ""
    spare: int = 0
    """Of the columns that a narrow terminal has no room for, the one with the highest goes first; 0 never goes."""


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], *, indent: int = 0, width: int | None = None
) -> Table:
    """A table without lines. Cells may be Text (for colour) or anything else (made printable); None is an empty one.

    `width` is the room for it, in columns of the terminal; None: whatever it needs.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [
        [cell if isinstance(cell, Text) else Text("" if cell is None else printable(cell)) for cell in row]
        for row in rows
    ]
    kept = list(range(len(columns)))
    widths: dict[int, int] = {}
    if width is not None:
        texts = [[column.title, *(row[index].plain for row in cells)] for index, column in enumerate(columns)]
        kept, widths = _fit(columns, texts, width - indent)
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    if indent:
        made.add_column("", width=indent - 2)
    for index in kept:
        column = columns[index]
        made.add_column(
            Text(column.title),
            justify=column.justify,
            style=column.style,
            no_wrap=column.narrow == "rigid",
            min_width=widths.get(index),
            max_width=widths.get(index),
            overflow="ellipsis" if column.narrow != "wrap" else "fold",
        )
    for row in cells:
        for cell, column in zip(row, columns, strict=True):
            cell.no_wrap = column.narrow != "wrap"  # rich cuts a cell that does not wrap, in a column that may shrink
        made.add_row(*([Text("")] if indent else []), *(row[index] for index in kept))
    return made


def _least(column: Column, texts: Sequence[str]) -> int:
    """The width that a column cannot do without."""
    from rich.cells import cell_len

    match column.narrow:
        case "rigid":
            return max(map(cell_len, texts))
        case "cut":
            return min(max(map(cell_len, texts)), max(cell_len(column.title), _LEAST_CUT))
        case "wrap":
            return min(max((cell_len(word) for text in texts for word in text.split()), default=0), _LONGEST_WORD)


def _fit(columns: Sequence[Column], texts: Sequence[Sequence[str]], room: int) -> tuple[list[int], dict[int, int]]:
    """The indices of the columns that there is room for, and the width of each. Those that must not go stay even if
    there is none.
    """
    from rich.cells import cell_len

    least = [_least(column, cells) for column, cells in zip(columns, texts, strict=True)]
    kept = list(range(len(columns)))
    while (left := room - sum(least[index] for index in kept) - _GAP * (len(kept) - 1)) < 0:
        spare = max(kept, key=lambda index: columns[index].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    for index in kept:
        if columns[index].narrow == "wrap" and left < 0:
            folded = min(-left, max(0, least[index] - max(cell_len(columns[index].title), _LEAST_CUT)))
            least[index] -= folded
            left += folded
    widths = {index: least[index] for index in kept}
    missing = {index: max(map(cell_len, texts[index])) - least[index] for index in kept}
    for served, index in enumerate(sorted(kept, key=missing.__getitem__)):  # who wants little gets all of it
        more = max(0, min(missing[index], left // (len(kept) - served)))
        widths[index] += more
        left -= more
    return kept, widths


def text(*parts: str | tuple[str, str]) -> Text:
    """A line of (text, style) parts, each made printable."""
    from rich.text import Text

    return Text.assemble(
        *(printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts)
    )


def print_indented(out: Console, sentence: str, mark: str = "") -> None:
    """A sentence below a heading, wrapped where the terminal ends."""
    from rich.padding import Padding

    out.print(Padding(text((mark, "bold"), sentence), (0, 0, 0, 4), expand=False))


# --- words ----------------------------------------------------------------------------------------------------------

STATE_STYLES = {
    "running": "green",
    "ready": "green",
    "ok": "green",
    "done": "green",
    "starting": "yellow",
    "preparing": "yellow",
    "reloading": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "backoff": "yellow",
    "degraded": "yellow",
    "warning": "yellow",
    "doing": "yellow",
    "failed": "red",
    "failing": "red",
    "error": "red",
    "stopped": "dim",
}


def state(word: object) -> Text:
    """A state in its colour."""
    return text((str(word), STATE_STYLES.get(str(word), "")))


def duration(seconds: float) -> str:
    """The two largest units: "3 d 4 h", "12 min 5 s", "0.4 s"."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = int(seconds)
    parts: list[str] = []
    for name, seconds_each in units:
        count, whole = divmod(whole, seconds_each)
        if count or parts:
            parts.append(f"{count} {name}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 "))


def ago(since: float | None) -> str:
    """How long ago a time (epoch seconds) was; "" for None."""
    return "" if since is None else f"{duration(max(0.0, time.time() - since))} ago"


def clock(at: float | None) -> str:
    """A time of day to the millisecond in local time; "" for None."""
    if at is None:
        return ""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
    except (OverflowError, ValueError, OSError):  # a time that no calendar has
        return ""


def milliseconds(value: float | None) -> str:
    """Three significant figures or so: "0.412", "12.3", "187"."""
    if value is None:
        return ""
    return (
        f"{value:.3f}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:.0f}"
    )


def counted(count: int, noun: str) -> str:
    """A number of things whose plural has an "s": "1 message", "2 messages"."""
    return f"{count} {noun if count == 1 else noun + 's'}"


def size(count: float) -> str:
    """Bytes as people read them: "512 B", "1.4 MiB"."""
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def brief(value: Any) -> str:
    """A configuration value on one line, as TOML would have it; "(not set)" for None."""
    return "(not set)" if value is None else json.dumps(value, ensure_ascii=False)
