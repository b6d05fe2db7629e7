"""The root command: finds a noun's file when the noun is asked for, and decides how netctl ends.

How it ends:
    0        done
    2        misused (click prints the usage)
    130      Ctrl-C, quietly
    141      whoever read our output is gone, quietly (what a C program gets from SIGPIPE)
    143      SIGTERM while following
    other    the error's own exit code (netd/errors.py; sysexits.h numbers), its sentence on stderr; with --json, stderr
             gets the API's own shape, {"error": {"kind", "message", "path"?}}

Left out: what the nouns do, and the help page (main.py).
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from netd import __version__
from netd.cli.main import NOUNS, columns_of, page, silence, version
from netd.cli.options import Invocation, common_options
from netd.cli.pages import fitted
from netd.errors import NetdError, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Sequence


class Root(click.Group):
    """The nouns of NOUNS, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NOUNS:
            return None
        command = getattr(importlib.import_module(f"netd.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return fitted(command)

    def get_help(self, ctx: click.Context) -> str:
        return page(columns_of(sys.stdout)).rstrip()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            silence()
            ctx.exit(141)
        except KeyboardInterrupt:
            ctx.exit(130)
        except NetdError as error:
            _report(error, ctx.ensure_object(Invocation))
            ctx.exit(error.exit_code)


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(version())
        ctx.exit()


@click.command(cls=Root, name="netctl", no_args_is_help=True)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
@common_options
def root() -> None:
    """Look at a running netd, and change it."""


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # under LANG=C a name in Cyrillic must not end the command with a traceback
            stream.reconfigure(errors="replace")
    try:
        root.main(list(arguments), prog_name="netctl")  # always ends in SystemExit
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def _report(error: NetdError, invocation: Invocation) -> None:
    if invocation.json:
        body = {"kind": error.kind, "message": str(error)}
        if path := getattr(error, "path", None):
            body["path"] = path
        click.echo(json.dumps({"error": body}), err=True)
        return
    from netd.cli.output import printable

    first, *more = str(error).splitlines() or [type(error).__name__]
    click.echo(f"netctl: {printable(first)}", err=True)
    for line in more:
        click.echo(f"  {printable(line)}", err=True)
    daemon = invocation.daemon_version
    if isinstance(error, RequestFailed) and daemon not in (None, __version__):
        hint = f"hint: this is netctl {__version__}, the daemon is netd {printable(daemon)}; "
        click.echo(hint + "if it was upgraded, restart it", err=True)
