"""`netctl sessions`: every transport's sessions: list, show (with path and TCP), kick, send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.data import message_options, operation_data, read_data
from netd.cli.options import call, common_options, invocation, limit_option
from netd.cli.targets import channel_name, complete_sessions, complete_transports, session_id, target_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from netd.client import shapes
    from netd.client.control import ControlClient

_ROOM_FOR_IDS = 80  # columns of a terminal that shows ids whole
_LEAST_OF_ID = 8  # characters that others show


@click.group(invoke_without_command=True, short_help="Who is connected: list, show, kick, send.")
@common_options
@click.pass_context
def sessions(ctx: click.Context) -> None:
    """Who is connected, over any transport. Without a command: list.

    ID may be as much of a session's id as only it begins with, or "name:NAME" or "tag:KEY=VALUE".
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_sessions)


@sessions.command("list")
@click.option(
    "--transport", metavar="NAME", shell_complete=complete_transports, help="Only this transport's (framed, ...)."
)
@click.option("--tag", metavar="KEY=VALUE", help="Only sessions with this tag.")
@click.option("--name", metavar="NAME", help="Only sessions of this name.")
@limit_option(1_000_000)
@common_options
def list_sessions(
    transport: str | None = None, tag: str | None = None, name: str | None = None, limit: int = 100
) -> None:
    """The sessions, in the order of their coming."""
    if tag is not None and "=" not in tag:
        raise click.UsageError(f"cannot use tag {tag!r}: write KEY=VALUE")

    async def ask(client: ControlClient) -> tuple[list[shapes.SessionRow], int]:
        every = client.every_session(most=limit, transport=transport, tag=tag, name=name)
        found = [row async for row in every]
        return found, (await client.sessions(limit=1))["total"]

    found, total = call(ask)
    from netd.cli.output import console, print_json

    if invocation().json:
        print_json({"sessions": found, "total": total})
        return
    if not found:
        click.echo("no sessions" + (" of that kind" if transport or tag or name else ""))
        return
    out = console()
    _print_list(out, found)
    if len(found) < total and not (transport or tag or name):
        click.echo(f"and {total - len(found)} more (--limit)")


@sessions.command()
@click.argument("target", metavar="ID", shell_complete=complete_sessions)
@click.option("--path", "with_path", is_flag=True, help="Trace the path to it, inside its own connection.")
@click.option("--tcp", "with_tcp", is_flag=True, help="What the kernel thinks of its connection.")
@click.option("--max-hops", type=click.IntRange(1, 32), metavar="N", help="With --path: farthest router to ask.")
@common_options
def show(target: str, with_path: bool, with_tcp: bool, max_hops: int | None) -> None:
    """One session whole; with --path its path, with --tcp its connection. --path needs write access."""
    if max_hops is not None and not with_path:
        raise click.UsageError("cannot use --max-hops without --path")

    async def ask(client: ControlClient) -> dict[str, Any]:
        chosen = await session_id(client, target)
        found: dict[str, Any] = {"session": await client.session(chosen)}
        if with_path:
            found["path"] = await client.session_trace(chosen, max_hops=max_hops)
        if with_tcp:
            found["tcp"] = await client.session_tcp(chosen)
        return found

    with _waiting(with_path):
        found = call(ask)
    from netd.cli.output import console, print_json

    if invocation().json:
        print_json(found)
        return
    out = console()
    _print_session(out, found["session"])
    if "path" in found:
        _print_path(out, found["path"])
    if "tcp" in found:
        from netd.cli.tcp_view import tcp_table

        out.print()
        out.print("TCP:")
        out.print(tcp_table(found["tcp"], width=out.width), crop=False)


@sessions.command()
@click.argument("target", metavar="ID", shell_complete=complete_sessions)
@click.option(
    "--code", type=click.IntRange(1000, 4999), metavar="N", help="The close code they are told. [default: 4010]"
)
@click.option("--reason", default="", metavar="TEXT", help="The reason they are told.")
@common_options
def kick(target: str, code: int | None, reason: str) -> None:
    """End sessions and their connections: one, or all of a name or tag."""

    async def ask(client: ControlClient) -> int:
        return await client.session_kick(await target_of(client, target), code=code, reason=reason)

    kicked = call(ask)
    if invocation().json:
        from netd.cli.output import print_json

        print_json({"kicked": kicked})
    else:
        from netd.cli.output import counted

        click.echo(f"ended {counted(kicked, 'session')}")


@sessions.command()
@click.argument("target", metavar="ID", shell_complete=complete_sessions)
@message_options
@common_options
def send(target: str, data: str | None, form: str | None, priority: int, ephemeral: bool) -> None:
    """Send DATA to sessions as a direct message. DATA "-" or none is read from standard input."""
    value = operation_data(read_data(data), form)

    async def ask(client: ControlClient) -> int:
        return await client.session_send(await target_of(client, target), value, priority=priority, ephemeral=ephemeral)

    print_delivered({"delivered": call(ask)})


def print_delivered(answer: Mapping[str, Any]) -> None:
    """To how many sessions a message went, and the daemon's remark on it."""
    from netd.cli.output import counted, print_json, printable

    if invocation().json:
        print_json(answer)
    else:
        remark = f" ({printable(answer['remark'])})" if answer.get("remark") else ""
        delivered = answer.get("delivered")
        told = "sent to all machines" if delivered is None else f"delivered to {counted(delivered, 'session')}"
        click.echo(told + remark)


# --- looks ------------------------------------------------------------------------------------------------------------


def _waiting(tracing: bool) -> Any:
    from contextlib import nullcontext

    if not tracing:
        return nullcontext()
    from netd.cli.changes import waiting

    return waiting("tracing")


def _print_list(out: Console, found: list[shapes.SessionRow]) -> None:
    from netd.cli.output import Column, ago, size, table

    columns = [Column("ID", style="bold"), Column("NAME", narrow="cut", spare=1), Column("TRANSPORT", spare=4)]
    columns += [Column("ADDRESS", spare=2), Column("OPENED", spare=3), Column("CHANNELS", "right", spare=7)]
    columns += [Column("IN", "right", spare=5), Column("OUT", "right", spare=6), Column("WAITING", "right", spare=8)]
    shortened = _shortened([row["id"] for row in found]) if out.width < _ROOM_FOR_IDS else {}
    rows = [
        (
            shortened.get(row["id"], row["id"]),
            row.get("name"),
            f"{row.get('transport')}, TLS" if row.get("tls") else row.get("transport"),
            row.get("address"),
            ago(row.get("opened")),
            row.get("channels"),
            size(row.get("bytes_in") or 0),
            size(row.get("bytes_out") or 0),
            size(row["outbox"]) if row.get("outbox") else None,
        )
        for row in found
    ]
    out.print(table(columns, rows, width=out.width), crop=False)


def _shortened(ids: list[str]) -> dict[str, str]:
    """As much of each id as only it begins with; every command takes that for the id."""
    length = _LEAST_OF_ID
    while length < max(map(len, ids)) and len({id[:length] for id in ids}) < len(ids):
        length += 1
    return {id: id[:length] for id in ids}


def _print_session(out: Console, session: shapes.SessionView) -> None:
    from netd.cli.output import ago, counted, size, text
    from netd.cli.tcp_view import facts

    name = f"  {session['name']}" if session.get("name") else ""
    out.print(text((session["id"], "bold"), name))
    waiting = size(session["outbox"]) if session.get("outbox") else ""
    pressed = " (above its mark: the client does not read)" if session.get("pressed") else ""
    known = [
        ("from", session.get("address")),
        ("transport", f"{session['transport']}, TLS" if session.get("tls") else session["transport"]),
        ("listener", session.get("listener")),
        ("opened", ago(session.get("opened"))),
        ("token", session.get("token")),
        ("tags", ", ".join(f"{key}={value}" for key, value in (session.get("tags") or {}).items())),
        ("received", f"{counted(session['messages_in'], 'message')}, {size(session['bytes_in'])}"),
        ("sent", f"{counted(session['messages_out'], 'message')}, {size(session['bytes_out'])}"),
        ("waiting", waiting + pressed),
        ("dropped", session.get("dropped") and counted(session["dropped"], "message")),
        ("refused", session.get("refused") and counted(session["refused"], "message")),
        ("channels", _channels(session)),
    ]
    out.print(facts(known, width=out.width), crop=False)


def _channels(session: shapes.SessionView) -> str:
    names = [channel_name(one) for one in session.get("subscriptions") or ()]
    more = session.get("channels", len(names)) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def _print_path(out: Console, path: Mapping[str, Any]) -> None:
    from netd.cli.output import counted, text
    from netd.cli.trace_path import Route, whole
    from netd.cli.trace_view import hop_table, summary, target_of

    route = Route()
    route.end(path)
    out.print()
    # the destination is a hop too, and a row of the table, though none of the record's `hops`
    distance = whole(path.get("dest_ttl"))
    between = f"{counted(distance - 1, 'router')} in between, " if distance else ""
    out.print(text("Path: ", between, *summary(path)))
    if route.rows() or path.get("dest_ttl") is not None:
        address = str(path.get("address") or "")
        out.print(hop_table(route, indent=2, target=target_of(path, address), width=out.width))
