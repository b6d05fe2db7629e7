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

OPTIONS = {
    "--socket PATH": "The daemon's control socket.  [env: NETD_CONTROL__SOCKET; default: /run/netd/control.sock]",
    "--json": "Print JSON: one object, or one a line when following.",
    "--version": "Print the version and exit.",
    "--help": "Print this page and exit; after a command, its own.",
}


def page() -> str:
    """The help page, at most 80 columns wide (but for the one long default)."""
    options = "\n".join(f"  {option:<14} {line}" for option, line in OPTIONS.items())
    options = options.replace("  [env", f"\n{'':17}[env")
    nouns = "\n".join(f"  {noun:<14} {line}" for noun, line in NOUNS.items())
    return (
        "Usage: netctl [OPTIONS] COMMAND [ARGS]...\n\n"
        "  Look at a running netd, and change it.\n\n"
        f"Options:\n{options}\n\nCommands:\n{nouns}\n"
    )


def version() -> str:
    return f"netctl {__version__}"


def main() -> None:
    """The console script. Ends the process: 0 done, 2 misused, 130 interrupted, else the error's own exit code."""
    arguments = sys.argv[1:]
    try:
        if not _completing():
            if arguments == ["--help"] or not arguments:
                _end(page(), 0 if arguments else 2)
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
