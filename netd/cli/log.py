"""`netctl log`: levels, changed while the daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from netd.client import shapes

LOGGERS = (
    "netd.anomaly",
    "netd.backplane",
    "netd.broker",
    "netd.control",
    "netd.daemon",
    "netd.framed",
    "netd.hub",
    "netd.listeners",
    "netd.metrics",
    "netd.net",
    "netd.reactor",
    "netd.runtime",
    "netd.sessions",
    "netd.settings",
    "netd.store",
    "netd.systemd",
    "netd.trace",
    "netd.worker",
)
"""Those of netd itself, for a hint only: libraries have theirs, and a daemon of another version may have others."""

LEVELS = ("debug", "info", "warning", "error", "critical")


@click.group(short_help="Show or change log levels while the daemon runs.")
@common_options
def log() -> None:
    """Show or change log levels while the daemon runs. The logs themselves: journalctl -u netd."""


@log.command(epilog="Loggers: " + ", ".join(LOGGERS) + ".")
@click.argument("level", metavar="[LEVEL]", type=click.Choice(LEVELS, case_sensitive=False), required=False)
@click.option("--logger", default="", metavar="NAME", help='Only this logger and those under it ("netd.trace").')
@click.option("--reset", is_flag=True, help="Back to the configured (or inherited) level.")
@common_options
def level(level: str | None, logger: str, reset: bool) -> None:
    """Show the levels, or set one until the daemon restarts; log.level in the configuration is for good.

    LEVEL is debug, info, warning, error or critical.
    """
    if reset and level is not None:
        raise click.UsageError("cannot use LEVEL with --reset: give one of them")
    if level is None and not reset:
        if logger:
            raise click.UsageError("cannot use --logger alone: give LEVEL or --reset")
        _print(call(lambda client: client.log_levels()))
        return
    wanted = level.lower() if level is not None else None
    _print(call(lambda client: client.set_log_level(wanted, logger=logger)))
    if wanted and logger and not invocation().json:
        _hint(logger)


def _hint(logger: str) -> None:
    """Say so if nothing of netd logs under this name now. It is no error: a logger appears when it is first used."""
    if any(name == logger or name.startswith(f"{logger}.") for name in LOGGERS):
        return
    import difflib

    from netd.cli.output import printable

    parts = logger.split(".")  # "netd.services.trace" means "netd.trace"
    near = [f"netd.{parts[-1]}"] if f"netd.{parts[-1]}" in LOGGERS else difflib.get_close_matches(logger, LOGGERS, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    hint = f"hint: netd itself has no logger {printable(logger)}{meant}; the level waits for one, a library's perhaps"
    click.echo(hint, err=True)


def _print(levels: shapes.LogLevels) -> None:
    from netd.cli.output import Column, console, print_json, table

    if invocation().json:
        print_json(levels)
        return
    loggers = sorted(levels.get("loggers", {}).items())
    console().print(
        table([Column("LOGGER", style="bold"), Column("LEVEL")], [("(all others)", levels["level"]), *loggers])
    )
