"""`netctl changes`, and how a command carries one out: begin it, wait with a sign of life, say how it ended.

A change goes on in the daemon whether or not netctl waits; Ctrl-C ends the waiting, not the change.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from netd.client import shapes
    from netd.client.control import ControlClient

STILL_DOING = 75  # EX_TEMPFAIL, sysexits.h


def wait_options(command: Callable[..., None]) -> Callable[..., None]:
    """--wait SECONDS (30) and --no-wait, which reach the command as one parameter `wait`: seconds, 0 for not at all."""

    @click.option(
        "--wait",
        type=click.FloatRange(0, 3600),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the change to end.",
    )
    @click.option("--no-wait", is_flag=True, help="Return as soon as the change has begun.")
    @functools.wraps(command)
    def merged(wait: float, no_wait: bool, **rest: Any) -> None:
        command(wait=0.0 if no_wait else wait, **rest)

    return merged


def carry_out(
    begin: Callable[[ControlClient, float], Awaitable[shapes.Change]], what: str, wait: float
) -> shapes.Change | None:
    """Begin a change and wait for its end. Returns it when there is something for a person to read about it.

    Otherwise everything was said: --json printed it, or it is still doing (exit code 75 if it was waited for). Raises
    RequestFailed if it failed.
    """

    async def both(client: ControlClient) -> shapes.Change:
        change = await begin(client, wait)
        return await client.settled(change, within=wait) if wait else change

    with waiting(what):
        change = call(both)
    if invocation().json:
        from netd.cli.output import print_json

        print_json(change)
    elif change["status"] == "doing":
        from netd.cli.output import printable

        long = f" after {wait:g} s" if wait else ""
        click.echo(f"{what}: still doing{long}; follow it with: netctl changes show {printable(change['id'])}")
    else:
        return change
    if wait and change["status"] == "doing":
        click.get_current_context().exit(STILL_DOING)
    return None


def waiting(what: str) -> AbstractContextManager[object]:
    """A sign of life on the terminal's stderr while something takes its time; nothing elsewhere."""
    from contextlib import nullcontext

    if invocation().json or not sys.stderr.isatty():
        return nullcontext()
    from netd.cli.output import console, text

    return console(stderr=True).status(text(f"{what} …"))


@click.group(invoke_without_command=True, short_help="Long operations, running and finished.")
@common_options
@click.pass_context
def changes(ctx: click.Context) -> None:
    """Long operations, running and finished. Without a command: list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_changes)


@changes.command("list")
@common_options
def list_changes() -> None:
    """The changes the daemon remembers."""
    found = call(lambda client: client.changes())
    from netd.cli.output import Column, ago, console, duration, print_json, state, table

    if invocation().json:
        print_json({"changes": found})
        return
    if not found:
        click.echo("no changes yet")
        return
    columns = [
        Column("ID", style="bold"),
        Column("KIND", spare=2),
        Column("TARGET", narrow="cut", spare=1),
        Column("STATUS"),
        Column("BEGAN", spare=3),
        Column("TOOK", "right", spare=4),
        Column("ERROR", narrow="wrap"),
    ]
    rows = [
        (
            change["id"],
            change["kind"],
            change["target"],
            state(change["status"]),
            ago(change["since"]),
            duration(ended - change["since"]) if (ended := change.get("ended")) is not None else None,
            error["message"] if (error := change.get("error")) else None,
        )
        for change in found
    ]
    out = console()
    out.print(table(columns, rows, width=out.width), crop=False)


@changes.command("show")
@click.argument("change_id", metavar="ID")
@click.option("--wait", type=click.FloatRange(0, 3600), default=0.0, metavar="SECONDS", help="Wait for its end.")
@common_options
def show_change(change_id: str, wait: float) -> None:
    """One change, with its result; of a reload, what differs. Ends with the exit code of its error if it failed."""

    async def ask(client: ControlClient) -> shapes.Change:
        change = await client.change(change_id)
        return await client.settled(change, within=wait)

    with waiting(f"change {change_id}"):
        change = call(ask)
    from netd.cli.output import ago, console, duration, print_json, state, text

    if invocation().json:
        print_json(change)
        return
    out = console()
    target = f" {change['target']}" if change.get("target") else ""
    ended = change.get("ended")
    took = f", took {duration(ended - change['since'])}" if ended is not None else ""
    out.print(text((change["kind"], "bold"), target, ": ") + state(change["status"]))
    out.print(text(("began ", "dim"), ago(change["since"]), took))
    result = change.get("result") or {}
    if "changes" in result:  # of a reload; the services that it names are as `netctl services` shows them
        from netd.cli.reload import print_applied

        print_applied(change)
        return
    for key, value in result.items():
        from netd.cli.output import brief

        out.print(text((f"{key} ", "dim"), brief(value)))
