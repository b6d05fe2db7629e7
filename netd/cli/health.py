"""`netctl health`: what is wrong and what to do, with an exit code for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from netd.client import shapes
    from netd.client.control import ControlClient

UNHEALTHY = 69  # EX_UNAVAILABLE, sysexits.h
_POLL = 0.1  # seconds between two looks at a daemon that is on its way up


@click.command(short_help="What is wrong, and what to do; whether it is ready.")
@click.option("--strict", is_flag=True, help="Let a warning count as failure too.")
@click.option("--ready", is_flag=True, help="Ask whether every enabled service is serving, rather than for warnings.")
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=0.0,
    metavar="SECONDS",
    help="With --ready: wait this long for it, also for a daemon that is not there yet.",
)
@common_options
def health(strict: bool, ready: bool, wait: float) -> None:
    """What is wrong, and what to do; with --ready, whether it is ready.

    Exit code 0 when all is well enough, 69 when the daemon is failing (with --strict: or has any warning), not ready,
    or not there.
    """
    if wait and not ready:
        raise click.UsageError("cannot use --wait without --ready")
    if ready:
        _readiness(wait)
        return
    report = call(lambda client: client.health())
    if invocation().json:
        from netd.cli.output import print_json

        print_json(report)
    else:
        from netd.cli.output import console, state, text

        out = console()
        out.print(text("health: ") + state(report["status"]))
        print_warnings(out, report["warnings"])
    if report["status"] == "failing" or (strict and report["status"] != "ok"):
        click.get_current_context().exit(UNHEALTHY)


def _readiness(wait: float) -> None:
    async def ask(client: ControlClient) -> shapes.Readiness:
        return await wait_until_ready(client, wait)

    answer = call(ask)
    if invocation().json:
        from netd.cli.output import print_json

        print_json(answer)
    elif answer["ready"]:
        click.echo("ready")
    else:
        from netd.cli.output import printable

        waiting = ", ".join(printable(name) for name in answer.get("waiting", ()))
        click.echo("not ready" + (f": waiting for {waiting}" if waiting else ""))
    if not answer["ready"]:
        click.get_current_context().exit(UNHEALTHY)


async def wait_until_ready(client: ControlClient, within: float) -> shapes.Readiness:
    """The daemon's readiness, once it is ready or `within` seconds passed. DaemonUnreachable if nobody was there."""
    import trio

    from netd.errors import DaemonUnreachable

    deadline = trio.current_time() + within
    while True:
        try:
            answer = await client.ready()
        except DaemonUnreachable:
            if trio.current_time() >= deadline:
                raise
        else:
            if answer["ready"] or trio.current_time() >= deadline:
                return answer
        await trio.sleep(_POLL)


def print_warnings(out: Console, warnings: Sequence[shapes.Warning_]) -> None:
    """Each warning with what to do about it; one line of relief when there is none."""
    from netd.cli.output import STATE_STYLES, ago, print_indented, text

    if not warnings:
        out.print(text(("✓ ", "green"), "no warnings"))
    for warning in warnings:
        style = STATE_STYLES.get(warning["severity"], "")
        mark = "✗ " if warning["severity"] == "error" else "▲ "
        since = f"  since {ago(warning['since'])}" if warning.get("since") else ""
        out.print(text((mark, style), (warning["code"], f"bold {style}"), (since, "dim")))
        print_indented(out, warning["message"])
        if advice := warning.get("advice"):
            print_indented(out, advice, "→ ")
