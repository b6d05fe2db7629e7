"""`netctl channels`: list, show, publish, tail, history."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from netd.cli.data import message_options, operation_data, read_data
from netd.cli.options import call, common_options, invocation, limit_option
from netd.cli.targets import channel_bytes, channel_name, complete_channels

if TYPE_CHECKING:
    from netd.client import shapes
    from netd.client.control import ControlClient
    from netd.client.stream import ServerEvent


@click.group(invoke_without_command=True, short_help="What is said: list, info, show, publish, tail, history.")
@common_options
@click.pass_context
def channels(ctx: click.Context) -> None:
    """Channels that are heard or have a history; over Redis, those that are heard. Without a command: list."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_channels)


@channels.command("list")
@click.argument("prefix", default="", shell_complete=complete_channels)
@limit_option(1_000_000)
@common_options
def list_channels(prefix: str = "", limit: int = 100) -> None:
    """Channels by name; with PREFIX, those whose names begin so. Subscriptions with wildcards are among them.

    Over Redis, those that are heard on any machine, with the subscribers of all; one that only has a history is shown
    by its name (show, history).
    """
    silent = 0

    async def ask(client: ControlClient) -> list[shapes.ChannelRow]:
        nonlocal silent
        rows: list[shapes.ChannelRow] = []
        async for page in client.channel_pages(most=limit + 1, prefix=prefix):
            rows += page["channels"]
            silent = max(silent, page.get("silent", 0))
        return rows

    found = call(ask)
    more, found = len(found) > limit, found[:limit]
    from netd.cli.output import Column, console, print_json, table

    if invocation().json:
        print_json({"channels": found, "more": more, "silent": silent})
        return
    if silent:
        machines = f"{silent} machine{'s' if silent > 1 else ''}"
        click.echo(f"{machines} did not say in time what is heard there: not counted", err=True)
    if not found:
        click.echo("no channels" + (f" that begin with {prefix!r}" if prefix else ""))
        return
    columns = [Column("CHANNEL", narrow="wrap", style="bold"), Column("SUBSCRIBERS", "right")]
    columns += [Column("HISTORY", "right", spare=1), Column("OFFSET", "right", spare=2), Column("EPOCH", spare=3)]
    rows = [
        (_labelled(row), row.get("subscribers"), row.get("history") or None, row.get("offset"), row.get("epoch"))
        for row in found
    ]
    out = console()
    out.print(table(columns, rows, width=out.width), crop=False)
    if more:
        click.echo("and more (--limit)")


@channels.command()
@common_options
def info() -> None:
    """The hub's totals: sessions, channels, messages, what histories hold; a line for each namespace."""
    answer: dict[str, Any] = call(lambda client: client.hub())
    from netd.cli.output import print_json

    if invocation().json:
        print_json(answer)
        return
    _print_hub(answer.get("hub") or {})


@channels.command()
@click.argument("channel", shell_complete=complete_channels)
@common_options
def show(channel: str) -> None:
    """One channel and who hears it."""
    found = call(lambda client: client.channel(channel_bytes(channel)))
    from netd.cli.output import Column, console, counted, print_json, table, text

    if invocation().json:
        print_json(found)
        return
    out = console()
    subscribers, epoch = found["subscribers"], found.get("epoch")
    kept = f", {counted(found['history'], 'message')} kept" if epoch is not None else ", no history"
    if found.get("pattern"):
        kept = " to all channels that match"
    at = f", at {epoch}:{found['offset']}" if epoch is not None else ""
    out.print(text((channel_name(found), "bold"), f"  {counted(subscribers, 'subscriber')}{kept}{at}"))
    members = found["presence"]
    if members:
        columns = [Column("SESSION", style="bold"), Column("NAME", narrow="cut", spare=1)]
        columns += [Column("TRANSPORT", spare=2), Column("TAGS", narrow="wrap", spare=3)]
        rows = [
            (
                one.get("session"),
                one.get("name"),
                one.get("transport"),
                ", ".join(f"{key}={value}" for key, value in (one.get("tags") or {}).items()),
            )
            for one in members
        ]
        out.print(table(columns, rows, indent=2, width=out.width), crop=False)
    if (more := subscribers - len(members)) > 0:
        click.echo(f"  and {more} more")


@channels.command()
@click.argument("channel", shell_complete=complete_channels)
@message_options
@common_options
def publish(channel: str, data: str | None, form: str | None, priority: int, ephemeral: bool) -> None:
    """Publish DATA. DATA "-" or none is read from standard input. Needs write access."""
    from netd.cli.sessions import print_delivered

    value, name = operation_data(read_data(data), form), channel_bytes(channel)
    answer = call(lambda client: client.channel_published(name, value, priority=priority, ephemeral=ephemeral))
    print_delivered(answer)


@channels.command()
@click.argument("channel", shell_complete=complete_channels)
@limit_option(1000, 20)
@click.option("--since", metavar="EPOCH:OFFSET", help="The first messages after this position, not the newest.")
@common_options
def history(channel: str, limit: int, since: str | None) -> None:
    """What was said in a channel, oldest first. Needs access to content."""
    name, position = channel_bytes(channel), _position(since)
    page = call(lambda client: client.channel_history(name, since=position, limit=limit))
    if invocation().json:
        from netd.cli.output import print_json

        print_json(page)
        return
    if since is not None and page["messages"] and not _follows(page["messages"][0], position):
        click.echo("-- something is missing here: it is no longer kept --", err=True)
    for message in page["messages"]:
        click.echo(_message_line(message))
    if not page["messages"]:
        click.echo("nothing was said" + (" since" if since else ""))


@channels.command()
@click.argument("channel", shell_complete=complete_channels)
@click.option("--since", metavar="EPOCH:OFFSET", help="Begin after this position, as far as it is kept.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@common_options
def tail(channel: str, since: str | None, count: int | None) -> None:
    """What is said in a channel, as it is said, until Ctrl-C. Needs access to content.

    A daemon that restarts meanwhile is waited for, and what was missed is fetched where the channel keeps it.
    """
    from netd.cli.events import PATIENCE

    name, position = channel_bytes(channel), _position(since)
    write = _writer(channel)

    async def follow(client: ControlClient) -> None:
        left = count
        async with client.channel_events(name, since=position or "", patience=PATIENCE) as events:
            async for event in events:
                write(event)
                if left is not None and event.kind == "message":
                    left -= 1
                    if not left:
                        return

    call(follow)


def _labelled(row: shapes.ChannelRow) -> str:
    return f"{channel_name(row)} (pattern)" if row.get("pattern") else channel_name(row)


def _print_hub(hub: dict[str, Any]) -> None:
    from netd.cli.output import Column, console, counted, size, table, text

    def count(key: str, noun: str) -> str:
        return counted(hub.get(key, 0), noun)

    out = console()
    away = f", {hub['resumable']} that may come back" if hub.get("resumable") else ""
    out.print(text(f"{count('sessions', 'session')}{away}, {hub.get('opened', 0)} so far"))
    patterns = f", {count('patterns', 'pattern')}" if hub.get("patterns") else ""
    out.print(text(f"{count('channels', 'channel')} heard{patterns}, {count('subscriptions', 'subscription')}"))
    out.print(text(f"published {count('published', 'message')}, delivered {hub.get('delivered', 0)}"))
    odd = [f"{counted(hub[key], noun)} {key}" for key, noun in _ODD if hub.get(key)]
    came = f"received {count('messages_in', 'request')}, sent {count('messages_out', 'message')}"
    out.print(text("; ".join((came, *odd))))
    kept = f"{count('history_messages', 'message')} kept, {size(hub.get('history_bytes', 0))}"
    evicted = f", {hub['history_evicted']} given up for others" if hub.get("history_evicted") else ""
    histories = "history" if hub.get("histories") == 1 else "histories"
    out.print(text(f"{hub.get('histories', 0)} {histories}: {kept}{evicted}"))
    out.print()
    if not hub.get("namespaces"):
        out.print("no namespace is configured (hub.namespace): clients can use no channel")
        return
    columns = [Column("NAMESPACE", narrow="wrap", style="bold"), Column("CHANNELS", "right", spare=2)]
    columns += [Column("PUBLISHED", "right"), Column("DELIVERED", "right"), Column("REFUSED", "right", spare=1)]
    keys = ("channels", "published", "delivered", "refused")
    rows = [(one.get("name") or '""', *(one.get(key) for key in keys)) for one in hub["namespaces"]]
    out.print(table(columns, rows, width=out.width), crop=False)


_ODD = (("refused", "request"), ("dropped", "message"))


def _position(text: str | None) -> str | None:
    """A position as the API writes it."""
    if text is None:
        return None
    epoch, _, offset = text.rpartition(":") if ":" in text else text.rpartition("-")
    if not epoch or not offset.isdecimal():
        raise click.UsageError(f'cannot begin after {text!r}: write --since as "EPOCH:OFFSET", as messages show it')
    return f"{epoch}-{offset}"


def _follows(message: dict[str, Any], position: str | None) -> bool:
    """Whether this message is the one after the position."""
    epoch, _, offset = (position or "").rpartition("-")
    return message.get("epoch") == epoch and message.get("offset") == int(offset) + 1


def _message_line(message: dict[str, Any]) -> str:
    """One message as a line: when, where in the history, who, what."""
    from netd.cli.message_view import shown
    from netd.cli.output import clock, printable
    from netd.cli.trace_path import number

    at = clock(number(message.get("time")))
    epoch, offset = message.get("epoch"), message.get("offset")
    place = f"{printable(epoch)}:{printable(offset)}" if epoch is not None and offset is not None else ""
    sender = printable(str(message["from"])[:8]) if message.get("from") else "daemon"
    return "  ".join(part for part in (at, place, sender, shown(_data(message))) if part)


def _data(message: dict[str, Any]) -> Any:
    if (encoded := message.get("data64")) is None:
        return message.get("data")
    import base64
    import binascii

    try:
        return base64.b64decode(encoded)
    except (binascii.Error, ValueError, TypeError):
        return encoded


def _writer(channel: str) -> Any:
    if invocation().json:
        from netd.cli.output import print_json_line

        return lambda event: print_json_line(event.as_json())

    from netd.cli.output import printable

    def write(event: ServerEvent) -> None:
        line = _event_line(event.kind, event.data)
        if line and event.kind == "message" and event.data.get("channel", channel) != channel:  # it asked for a pattern
            line = f"{printable(event.data['channel'])}  {line}"
        if line:
            click.echo(line)
            sys.stdout.flush()

    return write


def _event_line(kind: str, data: dict[str, Any]) -> str:
    from netd.cli.output import printable

    match kind:
        case "message":
            return _message_line(data)
        case "joined" | "left":
            return f"-- {printable(data.get('name') or data.get('session'))} {kind} --"
        case "missed":
            lost = "1 message is" if data.get("count") == 1 else f"{printable(data.get('count'))} messages are"
            return f"-- {lost} missing here: this reader is too slow --"
        case "subscribed" if data.get("recovered") is False:
            return "-- something is missing here: it is no longer kept --"
        case "subscribed":
            return ""
        case "closed":
            return f"-- the daemon ended the subscription: {printable(data.get('reason') or 'no reason')} --"
        case "ended":
            return "-- the daemon is stopping --"
        case _:
            return f"-- {printable(kind)} --"
