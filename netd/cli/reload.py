"""`netctl reload`: apply the configuration on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.changes import carry_out, wait_options
from netd.cli.options import common_options

if TYPE_CHECKING:
    from netd.client import shapes


@click.command(short_help="Apply the configuration on disk to the running daemon.")
@wait_options
@common_options
def reload(wait: float) -> None:
    """Apply the configuration on disk to the running daemon.

    Either all of it is running afterwards, or nothing has changed and the answer says why. `netctl config check` and
    `netctl config diff` tell beforehand.
    """
    change = carry_out(lambda client, seconds: client.reload(wait=seconds), "reload", wait)
    if change is not None:
        print_applied(change)


def print_applied(change: shapes.Change) -> None:
    """What a finished reload (or `config set`) changed."""
    from netd.cli.config_view import differences, print_differences
    from netd.cli.output import console, text

    result = change.get("result") or {}
    out = console()
    found = differences(result.get("changes") or [])
    if not found:
        # secrets are no settings: one that was rotated in its file is in force, and nobody is told that it is another
        out.print(text("reloaded: no setting had changed; secrets, keys and certificates were read anew"))
        return
    out.print(text("reloaded: ", f"{len(found)} {'change' if len(found) == 1 else 'changes'} running"))
    print_differences(out, found, before="WAS", after="IS")
