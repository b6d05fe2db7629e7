"""netctl's door: the nouns there are, the page that `netctl --help` prints, and which way a command line goes.

Rules:
- `netctl`, `netctl --help` and `netctl --version` import nothing beyond this file: a person at a prompt, a shell's
  completion and every script pay for what is imported here. Even click takes longer than the interpreter itself;
- everything else is click's (root.py), which imports one noun's file when that noun is asked for;
- the page and click know the same nouns in the same words: both read NOUNS.
"""

from __future__ import annotations

import sys

from netd import __version__

TYPE_CHECKING = False  # typing's own costs more than this whole file
if TYPE_CHECKING:
    from typing import TextIO

NOUNS = {
    "status": "The daemon at a glance: its services and what is wrong.",
    "services": "List services; start, stop or restart one.",
    "health": "What is wrong, and what to do; whether it is ready.",
    "reload": "Apply the configuration on disk to the running daemon.",
    "config": "Show, check, compare or change the configuration.",
    "changes": "Long operations, running and finished.",
    "events": "What happens in the daemon, as it happens.",
    "metrics": "Counters and gauges (Prometheus).",
    "log": "Show or change log levels while the daemon runs.",
    "trace": "The path to each client: watch, list, show, run.",
    "framed": "Framed TCP: info, connections; send, listen, connect, bench.",
    "broker": "WebSockets: info, channels; connect, publish, subscribe, bench.",
    "workers": "Application workers: list, show, drain.",
    "sessions": "Who is connected: list, show, kick, send.",
    "channels": "What is said: list, info, show, publish, tail, history.",
    "tokens": "Signed tokens (JWT): list, revoke.",
    "nodes": "The machines that are one hub over Redis.",
    "anomaly": "Sessions that behave unlike themselves.",
    "completion": "Print a completion script for bash, zsh or fish.",
}
"""Noun -> one line about it. Each is the command of the same name in the file of the same name."""

_LEAST = 30  # columns; on a terminal that is narrower, lines are too long

OPTIONS = {
    "--socket PATH": "The daemon's control socket.  [env: NETD_CONTROL__SOCKET; default: /run/netd/control.sock]",
    "--json": "Print JSON: one object, or one a line when following.",
    "--version": "Print the version and exit.",
    "--help": "Print this page and exit; after a command, its own.",
}


def page(columns: int = 80) -> str:
    """The help page, for a terminal of so many columns; beyond 80 it grows no wider."""
    room = max(min(columns, 80), _LEAST)
    about = "\n".join(_wrapped("  ", "Look at a running netd, and change it.", room))
    options = "\n".join(line for option, text in OPTIONS.items() for line in _entry(option, text, room))
    nouns = "\n".join(line for noun, text in NOUNS.items() for line in _entry(noun, text, room))
    usage = "\n".join(_wrapped("Usage: ", "netctl [OPTIONS] COMMAND [ARGS]...", room))
    return f"{usage}\n\n{about}\n\nOptions:\n{options}\n\nCommands:\n{nouns}\n"


def _entry(name: str, text: str, room: int) -> list[str]:
    hint = text.find("[env")  # on a line of its own
    first, second = (text, "") if hint < 0 else (text[:hint], text[hint:])
    return _wrapped(f"  {name:<14} ", first, room) + (_wrapped(" " * 17, second, room) if second else [])


def _wrapped(begin: str, text: str, room: int) -> list[str]:
    """Lines of words, below each other; a word that is longer than the room is not broken."""
    lines, line = [], begin
    for word in text.split():
        if line != begin and len(line) + len(word) > room:
            lines.append(line.rstrip())
            line = begin = " " * len(begin)
        line += f"{word} "
    return [*lines, line.rstrip()]


def columns_of(stream: TextIO) -> int:
    """How wide a page for this stream is to be: COLUMNS, else what its terminal has, else 80."""
    import os  # loaded already, by the interpreter's own start

    try:
        if (chosen := int(os.environ["COLUMNS"])) > 0:
            return chosen
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):  # no terminal, closed, or something of Python's
        return 80


def version() -> str:
    return f"netctl {__version__}"


def main() -> None:
    """The console script. Ends the process: 0 done, 2 misused, 130 interrupted, else the error's own exit code."""
    arguments = sys.argv[1:]
    try:
        if not _completing():
            if arguments == ["--help"]:
                _end(page(columns_of(sys.stdout)), 0)
            if not arguments:
                _end(page(columns_of(sys.stderr)), 2)
            if arguments == ["--version"]:
                _end(version() + "\n", 0)
        from netd.cli.root import run

        sys.exit(run(arguments))
    except KeyboardInterrupt:  # before or after the command itself, which has its own way to end on it
        sys.exit(130)


def _completing() -> bool:
    import os  # loaded already, by the interpreter's own start

    return "_NETCTL_COMPLETE" in os.environ


def _end(text: str, code: int) -> None:
    try:
        print(text, end="", file=sys.stderr if code else sys.stdout, flush=True)
    except BrokenPipeError:
        silence()
    sys.exit(code)


def silence() -> None:
    """Nobody reads our output any more: let the interpreter's last flush go nowhere rather than complain."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
