"""`netctl nodes`: the machines that are one hub.

A node is shown by its name, which is its host's unless backplane.node says otherwise, with the id of its run where
another has the same; and by the address that clients find it at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from netd.client import shapes


@click.command(short_help="The machines that are one hub over Redis.")
@common_options
def nodes() -> None:
    """The machines that are one hub over Redis (hub.backplane), this one first, and how Redis is doing."""
    found: shapes.NodeList = call(lambda client: client.nodes())
    from netd.cli.output import Column, ago, console, counted, milliseconds, print_indented, print_json, table, text

    if invocation().json:
        print_json(found)
        return
    out = console()
    if found["backplane"] == "memory":
        out.print('one machine: hub.backplane is "memory"')
        return
    redis = found["redis"]
    if redis is None:
        out.print(text(("alone", "bold red"), ": the backplane service does not run (see netctl services)"))
        return
    if redis["online"]:
        out.print(text("Redis at ", redis["url"], ": ", ("there", "green")))
    else:
        out.print(text("Redis at ", redis["url"], ": ", ("away", "bold red"), " (see netctl health)"))
        print_indented(out, redis["why"] or "")
    columns = [Column("NODE", narrow="wrap", style="bold"), Column("ADDRESS", spare=3)]
    columns += [Column("VERSION", spare=4), Column("SESSIONS", "right"), Column("CHANNELS", "right", spare=2)]
    columns += [Column("QUEUE", "right", spare=1), Column("LAG", "right", spare=2), Column("SEEN", "right")]
    names = [one["name"] for one in found["nodes"]]
    rows = [
        (
            (one["name"] if names.count(one["name"]) == 1 else one["node"]) + (" (here)" if one["here"] else ""),
            one["address"],
            one["version"],
            one["sessions"],
            one["channels"],
            one["queue"],
            milliseconds(one["lag_ms"]),
            "now" if one["here"] else ago(one["seen"] or None),
        )
        for one in found["nodes"]
    ]
    out.print(table(columns, rows, width=out.width), crop=False)
    odd = [f"{counted(redis[key], 'message')} {words}" for key, words in _ODD if redis[key]]  # type: ignore[literal-required]
    if odd:
        out.print("since this one began: " + ", ".join(odd))


_ODD = (
    ("given_up", "lost to the others"),
    ("missed", "missed from them"),
    ("dropped", "fetched from history instead, as too many came at once"),
    ("unreadable", "not understood"),
)
