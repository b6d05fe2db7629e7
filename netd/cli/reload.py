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
    from netd.cli.config import changes_table
    from netd.cli.output import console, text

    result = change.get("result") or {}
    out = console()
    changed = result.get("changes") or []
    if not changed:
        out.print(text("reloaded: nothing had changed"))
        return
    out.print(text("reloaded: ", f"{len(changed)} {'change' if len(changed) == 1 else 'changes'} running"))
    out.print(changes_table(changed, before="WAS", after="IS"))
