"""`netctl trace`: watch, run, list, show, clients. The loops and looks are in trace_live.py and trace_view.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import by_id, call, common_options, invocation, limit_option

if TYPE_CHECKING:
    from netd.client.control import ControlClient


@click.group(short_help="The path to each client: watch, list, show, run.")
@common_options
def trace() -> None:
    """The path between this host and each client: every router, as it is found."""


@trace.command()
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N finished traces.")
@click.option("--once", is_flag=True, help="The same as --count 1.")
@click.option(
    "--recent",
    type=click.IntRange(0, 50),
    default=3,
    show_default=True,
    metavar="N",
    help="How many traces from the history to begin with.",
)
@common_options
def watch(count: int | None, once: bool, recent: int) -> None:
    """Clients as they connect and their hops as they are found; into a pipe or file, one line an event."""
    if once and count not in (None, 1):
        raise click.UsageError("cannot use --count with --once: give one of them")
    from netd.cli import trace_live

    as_json = invocation().json
    limit = 1 if once else count
    code = call(lambda client: trace_live.watch(client, count=limit, recent=recent, as_json=as_json))
    click.get_current_context().exit(code)


@trace.command()
@click.argument("target", metavar="HOST[:PORT]")
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many times.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="From the beginning of one round to that of the next.",
)
@click.option("--max-hops", type=click.IntRange(1, 32), metavar="N", help="Farthest router to ask.")
@click.option(
    "--send",
    type=click.Choice(("auto", "http", "tls")),
    default="auto",
    show_default=True,
    help="What to say on the connection so that there is something to trace with.",
)
@common_options
def run(target: str, rounds: int, interval: float, max_hops: int | None, send: str) -> None:
    """Have the daemon connect to HOST[:PORT] over TCP and trace inside that connection. Needs write access.

    Exit code 69 if the trace ended before all its rounds, because the connection closed for good or a limit cut it.
    """
    from netd.cli import trace_live

    options = {"rounds": rounds, "interval": interval, "max_hops": max_hops, "send": send}
    as_json = invocation().json
    code = call(lambda client: trace_live.run(client, target, as_json=as_json, **options))
    click.get_current_context().exit(code)


@trace.command("list")
@limit_option(1000, 20)
@click.option("--client", metavar="ID", help="Only traces of this client.")
@click.option("--before", metavar="ID", help="Only traces before this one: to read on.")
@common_options
def list_traces(limit: int, client: str | None, before: str | None) -> None:
    """Finished traces from the history, newest first."""

    async def ask(control: ControlClient) -> list[dict[str, Any]]:
        return await by_id(
            control.traces(limit=limit, before=before, client=client),
            before=("trace", before, "netctl trace list"),
            client=("client", client, "netctl trace clients"),
        )

    found = call(ask)
    from netd.cli.output import Column, ago, console, milliseconds, print_json, table
    from netd.cli.trace_view import REASONS

    if invocation().json:
        print_json({"traces": found})
        return
    if not found:
        click.echo("no traces in the history" + (" of that client" if client else ""))
        return
    columns = [Column("ID", style="bold"), Column("WHEN", spare=4), Column("CLIENT", spare=6), Column("ADDRESS")]
    columns += [Column("HOPS", "right", spare=2), Column("PATH ms", "right", spare=3), Column("METHOD", spare=5)]
    columns += [Column("END", narrow="wrap", spare=1)]
    rows = [
        (
            record.get("id"),
            ago(record.get("time")),
            record.get("client_id") or "(run)",
            record.get("address"),
            record.get("dest_ttl"),
            milliseconds(record.get("path_rtt_ms")),
            record.get("method"),
            REASONS.get(str(record.get("reason")), record.get("reason")),
        )
        for record in found
    ]
    out = console()
    out.print(table(columns, rows, width=out.width), crop=False)


@trace.command()
@click.argument("trace_id", metavar="ID")
@common_options
def show(trace_id: str) -> None:
    """One trace of the history, with every hop."""
    record: dict[str, Any] = call(
        lambda client: by_id(client.trace_record(trace_id), id=("trace", trace_id, "netctl trace list"))
    )
    from netd.cli.output import ago, console, print_json, text

    if invocation().json:
        print_json(record)
        return
    from netd.cli.trace_path import Route
    from netd.cli.trace_view import hop_table, summary, target_of

    route = Route()
    route.end(record)
    address = str(record.get("address") or "")
    out = console()
    who = f" ({client})" if (client := record.get("client_id")) else ""
    out.print(text((address, "bold"), f"{who}, {ago(record.get('time'))}"))
    out.print(text(*summary(record)))
    out.print()
    out.print(hop_table(route, target=target_of(record, address), width=out.width))


@trace.command()
@click.argument("client_id", metavar="[ID]", required=False)
@common_options
def clients(client_id: str | None) -> None:
    """The clients connected now; with a client's ID, trace that one once more."""

    async def ask(control: ControlClient) -> Any:
        if client_id is not None:
            return await by_id(control.trace_client(client_id), id=("client", client_id, "netctl trace clients"))
        return {"clients": await control.trace_clients()}

    answer = call(ask)
    from netd.cli.output import Column, ago, console, milliseconds, print_json, table

    if invocation().json:
        print_json(answer)
    elif client_id is not None:
        click.echo("tracing; see: netctl trace watch")
    elif not answer["clients"]:
        click.echo("no clients connected")
    else:
        columns = [Column("ID", style="bold"), Column("ADDRESS"), Column("CONNECTED", spare=4)]
        columns += [Column("STATE", spare=1), Column("HOPS", "right", spare=2), Column("PATH ms", "right", spare=3)]
        columns += [Column("TRACES", "right", spare=5)]
        rows = [
            (
                client.get("client_id"),
                client.get("address"),
                ago(client.get("connected")),
                client.get("state"),
                client.get("dest_ttl"),
                milliseconds(client.get("path_rtt_ms")),
                client.get("traces"),
            )
            for client in answer["clients"]
        ]
        out = console()
        out.print(table(columns, rows, width=out.width), crop=False)
