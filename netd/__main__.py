"""The daemon's command line: arguments in, exit code out.

    netd [--config PATH]... [--log-level LEVEL | -v] [--check | --print-schema]

Rules:
- what went wrong is said on standard error, a line each, and the exit code tells its kind (`NetdError.exit_code`, from
  sysexits.h): 64 wrong usage, 69 something needed is not to be had, 78 the configuration cannot be used. A traceback
  and 1 are a defect of netd;
- --print-schema, and --check of a configuration that does not validate, import settings and no more; what validates
  is checked by the daemon's own services, which start nothing and bind nothing for it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from netd import __version__
from netd.errors import ConfigError, NetdError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EX_OK = 0
EX_USAGE = 64

_EPILOG = """\
Each NETD_SECTION__KEY variable sets a key of the configuration (NETD_LOG__LEVEL=debug); lists are JSON.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="netd", description="The netd network daemon.", epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="a TOML file (PATH.d/*.toml is read after it) or a directory of *.toml; may be repeated, and later ones "
        "win (default: /etc/netd/netd.toml)",
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error", "critical"),
        metavar="LEVEL",
        help="debug, info, warning, error or critical; stronger than the configuration's [log] level",
    )
    level.add_argument("-v", "--verbose", action="store_const", const="debug", dest="log_level", help="log level debug")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check",
        action="store_true",
        help="say what of the configuration cannot be used, then exit; credentials are those that the running "
        "netd.service was started with, which only root can read",
    )
    instead.add_argument("--print-schema", action="store_true", help="print the configuration's JSON schema, then exit")
    parser.add_argument("--version", action="version", version=f"netd {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (None: sys.argv) and return the exit code. Raises SystemExit on wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.print_schema:
            return _print_schema()
        if arguments.check:
            return _check(arguments.config)
        return _run(arguments.config, arguments.log_level)
    except NetdError as error:
        for line in str(error).splitlines():
            print(f"netd: {line}", file=sys.stderr)
        return error.exit_code


def _run(paths: list[Path], log_level: str | None) -> int:
    from netd import daemon

    return daemon.run(paths=paths, log_level=log_level)


def _check(paths: list[Path]) -> int:
    from netd.settings import load

    environ, remark = _with_credentials(os.environ)
    try:
        loaded = load(paths, environ=environ)
        from netd.daemon import check

        if problems := check(loaded):
            raise ConfigError(problems)
    finally:
        if remark:
            print(f"netd: {remark}", file=sys.stderr)
    print(f"configuration ok: {', '.join(loaded.sources) or 'defaults only, no file read'}")
    return EX_OK


def _with_credentials(environ: Mapping[str, str]) -> tuple[Mapping[str, str], str]:
    """The environment with the credentials that systemd shows the service, which a shell is not told of; and a remark
    if there are some that could not be looked at.
    """
    from netd import settings

    if "CREDENTIALS_DIRECTORY" in environ:
        return environ, ""
    loaded, there = settings.LOADED_CREDENTIALS, settings.CREDENTIALS
    if _entries(loaded) is None:
        return environ, "credentials were not looked at (run as root)"
    if _entries(loaded):
        return {**environ, "CREDENTIALS_DIRECTORY": str(loaded)}, ""
    if _entries(there) == []:
        return environ, ""
    return environ, "credentials were not looked at (start netd.service, and run as root)"


def _entries(directory: Path) -> list[str] | None:
    """What is in a directory; none in one that is not there, None if it cannot be told."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        return None


def _print_schema() -> int:
    from netd.settings import schema

    print(json.dumps(schema(), indent=2))
    return EX_OK


if __name__ == "__main__":
    sys.exit(main())
