"""`netctl workers`: the applications that clients' messages and HTTP requests go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from rich.console import Console

    from netd.client import shapes

_ODD = (
    ("crashed", "gone without a word"),
    ("hung", "hung"),
    ("rejected", "connections refused"),
    ("lost", "events lost with a worker"),
    ("dropped", "events dropped"),
    ("cancelled", "handlers cancelled"),
    ("pauses", "clients held back"),
)

_NUMBER = click.IntRange(min=1)


@click.group(invoke_without_command=True, short_help="Application workers: list, show, drain.")
@common_options
@click.pass_context
def workers(ctx: click.Context) -> None:
    """Application workers: processes of the user's that clients' messages and HTTP requests go to. Without a command:
    list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_workers)


@workers.command("list")
@common_options
def list_workers() -> None:
    """The workers that are connected, and what waits for them."""
    found: shapes.WorkerStatus = call(lambda client: client.workers())
    from netd.cli.output import console, print_json

    if invocation().json:
        print_json(found)
        return
    if not found["running"]:
        click.echo("the worker service is not running (worker.enabled)")
        return
    out = console()
    if found.get("workers"):
        _table(out, found["workers"])
    else:
        out.print("no worker is connected: messages are echoed, HTTP requests are answered with 503")
    _print_programs(out, found.get("programs", []))
    _print_sums(out, found)


@workers.command()
@click.argument("id", type=_NUMBER)
@common_options
def show(id: int) -> None:
    """One worker, by its number."""
    found: shapes.WorkerInfo = call(lambda client: client.worker(id))
    from netd.cli.output import console, duration, print_json, size, text

    if invocation().json:
        print_json(found)
        return
    out = console()
    rows = [
        ("name", found["name"]),
        ("state", found["state"]),
        ("process", f"{found['pid']}, account {found['uid']}" + _place(found)),
        ("library", found["library"] or "unknown"),
        ("handlers", ", ".join(found["handlers"]) or "none"),
        ("connected", f"for {duration(found['age'])}"),
        ("sessions", f"{found['sessions']}, {found['waiting']} of them wait for a free hand"),
        ("in hand", f"{found['in_flight']}, {found['requests']} of them HTTP requests"),
        ("unread", size(found["queued_bytes"])),
        ("handled", found["handled"]),
        ("cancelled", found["cancelled"]),
        ("too long", found["refused"]),
    ]
    for name, value in rows:
        out.print(text((f"{name:<10}", "bold"), f"  {value}"), crop=False)


@workers.command()
@click.argument("id", type=_NUMBER)
@click.option("--now", is_flag=True, help="Do not wait: what it has in hand is lost.")
@common_options
def drain(id: int, now: bool) -> None:
    """Have a worker finish what it has in hand, and go. Its sessions become others'. Needs write access.

    One that the daemon starts itself is started again.
    """
    found = call(lambda client: client.worker_drain(id, now=now))
    from netd.cli.output import counted, print_json, printable

    if invocation().json:
        print_json(found)
        return
    what = "disconnected" if now else f"leaving, with {counted(found['in_flight'], 'thing')} in hand"
    click.echo(f"worker {found['id']} ({printable(found['name'])}) is {what}")


def _table(out: Console, found: list[shapes.WorkerInfo]) -> None:
    from netd.cli.output import Column, duration, state, table

    columns = [Column("ID", "right"), Column("NAME", narrow="cut", style="bold"), Column("STATE")]
    columns += [Column("PID", "right", spare=2), Column("UP", "right", spare=4), Column("SESSIONS", "right")]
    columns += [Column("IN HAND", "right", spare=1), Column("HANDLED", "right", spare=3)]
    columns += [Column("LIBRARY", narrow="cut", spare=5)]
    rows = [
        (
            one["id"],
            one["name"],
            state(one["state"]),
            one["pid"],
            duration(one["age"]),
            one["sessions"],
            one["in_flight"],
            one["handled"],
            one["library"],
        )
        for one in found
    ]
    out.print(table(columns, rows, width=out.width), crop=False)


def _print_programs(out: Console, programs: list[shapes.WorkerProgram]) -> None:
    from netd.cli.output import print_indented

    for one in programs:
        if one["ended"]:
            out.print(f"program {one['place']} (worker.command) ended, and is started again:")
            print_indented(out, one["ended"])


def _print_sums(out: Console, found: shapes.WorkerStatus) -> None:
    from netd.cli.output import counted, size

    waiting = []
    if events := found.get("waiting_events"):
        waiting.append(f"{counted(events, 'event')} ({size(found.get('waiting_bytes', 0))})")
    if asked := found.get("waiting_requests"):
        waiting.append(counted(asked, "HTTP request"))
    if waiting:
        out.print("waiting for a free hand: " + ", ".join(waiting))
    odd = [f"{found[key]} {words}" for key, words in _ODD if found.get(key)]  # type: ignore[literal-required]
    odd += [
        f"{counted(count, 'request')} {how}"
        for how, count in found.get("requests", {}).items()
        if count and how != "answered"
    ]
    if odd:
        out.print("since the daemon began: " + ", ".join(odd))


def _place(found: shapes.WorkerInfo) -> str:
    return "" if found["program"] is None else f", program {found['program']} of worker.command"
