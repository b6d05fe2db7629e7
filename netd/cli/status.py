"""`netctl status`: the daemon at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from rich.console import Console

    from netd.client import shapes


@click.command(short_help="The daemon at a glance: its services and what is wrong.")
@common_options
def status() -> None:
    """The daemon at a glance: its services, where they listen, and what is wrong.

    Exit code 0 whenever the daemon answers; `netctl health` has one for each condition.
    """
    answer = call(lambda client: client.status())
    if invocation().json:
        from netd.cli.output import print_json

        print_json(answer)
        return
    from netd.cli.health import print_warnings
    from netd.cli.output import console
    from netd.cli.services import print_services

    out = console()
    _print_daemon(out, answer)
    out.print()
    print_services(out, answer["services"])
    out.print()
    print_warnings(out, answer["warnings"])


def _print_daemon(out: Console, answer: shapes.Status) -> None:
    from netd import __version__
    from netd.cli.output import STATE_STYLES, duration, text

    word = answer["state"]
    ready = ("ready", "green") if answer["ready"] else ("not ready", "yellow")
    out.print(
        text(
            ("● ", STATE_STYLES.get(word, "")),
            (f"netd {answer['version']}", "bold"),
            " is ",
            (word, STATE_STYLES.get(word, "")),
            ", ",
            ready,
            f"; up {duration(answer['uptime_s'])}, pid {answer['pid']}",
        )
    )
    sources = answer["config"]["sources"]
    out.print(text(("  config  ", "dim"), ", ".join(sources) if sources else "defaults only (no file)"))
    if answer["version"] != __version__:
        hint = f"this is netctl {__version__}: if netd was upgraded, restart the daemon"
        out.print(text(("  hint    ", "dim"), hint))
