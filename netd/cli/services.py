"""`netctl services`: list, start, stop, restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.changes import carry_out, wait_options
from netd.cli.options import call, common_options, invocation
from netd.cli.targets import complete_services

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from netd.client import shapes


@click.group(invoke_without_command=True, short_help="List services; start, stop or restart one.")
@common_options
@click.pass_context
def services(ctx: click.Context) -> None:
    """List services; start, stop or restart one. Without a command: list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_services)


@services.command("list")
@common_options
def list_services() -> None:
    """Every service with its state and where it listens."""
    units = call(lambda client: client.services())
    if invocation().json:
        from netd.cli.output import print_json

        print_json({"services": units})
        return
    from netd.cli.output import console

    print_services(console(), units)


def _verb(name: str, summary: str) -> Callable[..., Any]:
    @services.command(name, help=summary, short_help=summary.split(".")[0] + ".")
    @click.argument("service", shell_complete=complete_services)
    @wait_options
    @common_options
    def verb(service: str, wait: float) -> None:
        change = carry_out(
            lambda client, seconds: getattr(client, f"service_{name}")(service, wait=seconds),
            f"{name} {service}",
            wait,
        )
        if change is not None:
            _print_outcome(change, service)

    return verb


start = _verb("start", "Start a service. Nothing happens to one that is running.")
stop = _verb("stop", "Stop a service: its clients are told, and have until the drain deadline.")
restart = _verb("restart", "Restart a service. Its listeners stay open, so clients wait rather than being refused.")


def _print_outcome(change: shapes.Change, service: str) -> None:
    from netd.cli.output import console, state, text

    unit = change.get("result") or {}
    word = unit.get("state")
    line = text(service, " is ") + state(word) if word else text(service, ": ") + state("done")
    if addresses := unit.get("addresses"):
        line += text(", listening on ", ", ".join(addresses))
    console().print(line)


def print_services(out: Console, units: Sequence[shapes.Unit]) -> None:
    """The services of a daemon, one a row; below, what went wrong with whom."""
    from netd.cli.output import print_indented, text

    out.print(_table(units, out.width), crop=False)
    for unit in units:
        if trouble := _trouble(unit):
            out.print()
            out.print(text(("✗ ", "red"), (unit["name"], "bold")))
            print_indented(out, trouble)


def _table(units: Sequence[shapes.Unit], width: int) -> Table:
    from netd.cli.output import Column, ago, table

    columns = [
        Column("SERVICE", style="bold"),
        Column("STATE"),
        Column("SINCE", spare=1),
        Column("RESTARTS", "right", spare=2),
        Column("LISTENING", narrow="wrap"),
    ]
    rows = [
        (
            unit["name"],
            _state(unit),
            ago(unit.get("since")),
            unit.get("restarts", 0),
            ", ".join(unit.get("addresses") or ()),
        )
        for unit in units
    ]
    return table(columns, rows, width=width)


def _state(unit: shapes.Unit) -> Text:
    from netd.cli.output import STATE_STYLES, text

    stopped = unit["state"] == "stopped"
    word = unit["state"] if unit.get("enabled", True) else "disabled" if stopped else f"{unit['state']} (disabled)"
    return text((f"{'○' if stopped else '●'} {word}", STATE_STYLES.get(unit["state"], "")))


def _trouble(unit: shapes.Unit) -> str:
    import time

    from netd.cli.output import duration

    trouble = unit.get("error") or ""
    if (retry_at := unit.get("retry_at")) is not None:
        trouble += f" (next attempt in {duration(retry_at - time.time())})"
    return trouble.strip()
