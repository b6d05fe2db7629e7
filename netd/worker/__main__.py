"""Run somebody's worker: `python -m netd.worker MODULE:NAME`.

    python -m netd.worker chat:worker --directory /srv/chat
    python -m netd.worker netd.worker.examples.chat --check

Each option has a variable, which netd-worker@.service is configured with: NETD_WORKER_APP, NETD_WORKER_DIRECTORY,
NETD_WORKER_SOCKET, NETD_WORKER_NAME, NETD_WORKER_THREADS, NETD_WORKER_TASKS, NETD_WORKER_DRAIN.

Exit status (sysexits.h): 64 wrong usage, 69, 70, 76 see program.py, 78 the application cannot be imported, or there is
no worker in it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from netd import __version__
from netd.errors import ConfigError, ConfigProblem
from netd.wire.messages import MAX_NAME
from netd.worker.program import log_to_stderr, work
from netd.worker.running import DEFAULT_SOCKET, DRAIN
from netd.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger("netd.worker")

_NAMES = ("worker", "app")
"""What a module's worker is called, if nobody says."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def _name(text: str) -> str:
    if not 1 <= len(text) <= MAX_NAME:
        raise ValueError(text)
    return text


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 4096:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86_400:  # which is not so of nan either
        raise ValueError(text)
    return number


class _Option(NamedTuple):
    """--NAME, and the variable that says the same."""

    name: str
    variable: str
    read: Callable[[str], Any]
    """Raises ValueError."""
    metavar: str
    help: str
    takes: str = ""
    """What `read` does not refuse, in words."""
    default: Any = None


_OPTIONS = (
    _Option(
        "directory", "NETD_WORKER_DIRECTORY", Path, "DIR", "work in this directory, and look for the module there first"
    ),
    _Option(
        "socket",
        "NETD_WORKER_SOCKET",
        Path,
        "PATH",
        f"the daemon's socket for workers (default: {DEFAULT_SOCKET})",
        "",
        DEFAULT_SOCKET,
    ),
    _Option("name", "NETD_WORKER_NAME", _name, "NAME", "what netctl workers shows", f"1 to {MAX_NAME} characters"),
    _Option(
        "threads",
        "NETD_WORKER_THREADS",
        _count,
        "N",
        "`def` handlers that run at once, for sessions and for HTTP each",
        "1 to 4096",
    ),
    _Option("tasks", "NETD_WORKER_TASKS", _count, "N", "the same of `async def` handlers", "1 to 4096"),
    _Option(
        "drain",
        "NETD_WORKER_DRAIN",
        _seconds,
        "SECONDS",
        f"how long handlers may take to end when the worker is stopped (default: {DRAIN:g})",
        "seconds from 0 to 86400",
        DRAIN,
    ),
)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m netd.worker", description="Run an application for netd.", allow_abbrev=False)
    app = "the module, and the name of the Worker in it (default: worker, or app)"
    parser.add_argument("app", nargs="?", default=environ.get("NETD_WORKER_APP"), metavar="MODULE[:NAME]", help=app)
    for option in _OPTIONS:
        parser.add_argument(
            f"--{option.name}",
            type=partial(_value, option),
            default=environ.get(option.variable) or option.default,
            metavar=option.metavar,
            help=option.help,
        )
    parser.add_argument("--check", action="store_true", help="import the application, say what it handles, and end")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"netd {__version__}")
    return parser


def _value(option: _Option, text: str) -> Any:
    try:
        return option.read(text)
    except ValueError:
        why = f"cannot use {text!r}: write {option.takes} ({option.variable} is the same)"
        raise argparse.ArgumentTypeError(why) from None


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser(os.environ)
    options = parser.parse_args(argv)
    if not options.app:
        parser.error("cannot run nothing: name a module, chat:worker, or set NETD_WORKER_APP")
    log_to_stderr(logging.DEBUG if options.verbose else logging.INFO)
    try:
        if options.directory is not None:
            _enter(options.directory)
        worker = load(options.app)
    except ConfigError as error:
        print(f"netd.worker: {error}", file=sys.stderr)
        return error.exit_code
    worker.name = options.name or worker.name or options.app.partition(":")[0].rpartition(".")[2]
    worker.threads = options.threads or worker.threads
    worker.tasks = options.tasks or worker.tasks
    if options.check:
        handlers = ", ".join(sorted(worker.handlers)) or "nothing"
        print(f"{options.app} handles {handlers}")
        return 0
    return work(worker, options.socket, drain=options.drain)


def _enter(directory: Path) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise _problem(f"cannot work in {directory}: {error.strerror}") from None
    sys.path.insert(0, os.getcwd())


def load(app: str) -> Worker:
    """The worker of "module:name" or "module". ConfigError, with what to do, if there is none."""
    module_name, _, name = app.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        file = Path(module_name)
        raise _problem(f"cannot run {app!r}: name a module and not a file: {file.stem} --directory {file.parent}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise _problem(
                f"cannot find the module {module_name!r} in {', '.join(path or os.getcwd() for path in sys.path)}: "
                "say where it is with --directory, or set PYTHONPATH"
            ) from None
        raise _problem(f"cannot import {module_name!r}: {_last_line(error)}") from None
    except Exception as error:
        log.exception("cannot import %r", module_name)
        raise _problem(f"cannot import {module_name!r}: {_last_line(error)}") from None
    found = [getattr(module, one, None) for one in ([name] if name else _NAMES)]
    worker = next((one for one in found if isinstance(one, Worker)), None)
    if worker is None:
        there = sorted(one for one, value in vars(module).items() if isinstance(value, Worker))
        wanted = name or " or ".join(_NAMES)
        instead = f"there is {', '.join(there)}: write {module_name}:{there[0]}" if there else "there is none"
        raise _problem(f"cannot find a Worker named {wanted} in {module_name!r}: {instead}")
    return worker


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _problem(message: str) -> ConfigError:
    return ConfigError([ConfigProblem("", message)])


if __name__ == "__main__":
    sys.exit(main())
