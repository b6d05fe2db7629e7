"""`netctl framed`: the service (info, connections), and a client for it or any framed server (send, listen, connect,
bench). What the client commands do is in framed_send.py, framed_talk.py and framed_bench.py, how they connect in
framed_dial.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.framed_dial import address_argument, dial_options
from netd.cli.options import by_id, call, common_options, invocation, json_option

if TYPE_CHECKING:
    from netd.client.control import ControlClient


@click.group(short_help="Framed TCP: info, connections; send, listen, connect, bench.")
@common_options
def framed() -> None:
    """Length-prefixed messages over TCP: the daemon's service, and a client for it or any framed server.

    ADDRESS is "HOST:PORT", "[::1]:PORT", ":PORT" or "unix:/PATH"; 127.0.0.1:9000 if nothing is given.
    """


# --- the service ------------------------------------------------------------------------------------------------------


@framed.command()
@common_options
def info() -> None:
    """The service: listeners, connections, sums."""
    status: dict[str, Any] = call(lambda client: client.framed())
    from netd.cli.output import print_json

    if invocation().json:
        print_json(status)
        return
    from netd.cli.framed_view import print_status

    print_status(status)


@framed.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="Show at most N."
)
@common_options
def connections(session_id: str | None, limit: int) -> None:
    """The connections that are here, the oldest first; with a session's ID, all about that one."""

    async def ask(client: ControlClient) -> dict[str, Any]:
        if session_id is None:
            return await client.framed_connections(limit=limit)
        where = "netctl framed connections"
        return await by_id(client.framed_connection(session_id), id=("connection", session_id, where))

    answer = call(ask)
    from netd.cli.output import print_json

    if invocation().json:
        print_json(answer)
        return
    from netd.cli.framed_view import print_connection, print_connections

    if session_id is None:
        print_connections(answer)
    else:
        print_connection(answer)


# --- a client ---------------------------------------------------------------------------------------------------------


@framed.command()
@address_argument(required=True)
@click.argument("data", required=False)
@click.option("--channel", "-c", metavar="CHANNEL", help="Publish to this channel.")
@click.option("--to", metavar="WHOM", help='Send to sessions: an ID, "name:NAME" or "tag:KEY=VALUE".')
@click.option("--broadcast", is_flag=True, help="Send to every session.")
@click.option("--priority", type=click.IntRange(0, 255), default=128, show_default=True, help="Lower goes first.")
@click.option("--ephemeral", is_flag=True, help="It may be dropped for readers that are slow.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Send it N times.")
@click.option("--lines", is_flag=True, help="Each line of DATA is a message.")
@click.option("--as", "form", type=click.Choice(("text", "json", "hex")), help="What DATA is.  [default: text]")
@click.option("--answer", is_flag=True, help="Plain: wait for as many payloads as were sent, and print them.")
@dial_options
@json_option
def send(address: str, data: str | None, **how: Any) -> None:
    """Send DATA to ADDRESS: with --channel, --to or --broadcast as an operation, otherwise as a plain payload.

    DATA "-" or none is read from standard input.
    """
    targets = [name for name in ("channel", "to", "broadcast") if how[name]]
    if len(targets) > 1:
        raise click.UsageError(f"give either --{targets[0]} or --{targets[1]}")
    if targets and how["answer"]:
        raise click.UsageError(
            f"--answer is for plain payloads; with --{targets[0]} the daemon's answer is awaited anyway"
        )
    from netd.cli import framed_send
    from netd.cli.data import read_data
    from netd.cli.framed_dial import run

    run(framed_send.send, address, read_data(data), as_json=invocation().json, **how)


@framed.command()
@address_argument()
@click.argument("channels", metavar="[CHANNEL]...", nargs=-1)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("--presence", is_flag=True, help="Show who joins and leaves, too.")
@click.option(
    "--recover",
    metavar="POSITION",
    help='Begin after EPOCH:OFFSET, as a message shows it, or with all that the channel keeps: "start".',
)
@dial_options
@json_option
def listen(address: str, channels: tuple[str, ...], **how: Any) -> None:
    """Print what comes, until Ctrl-C: messages of the CHANNELs, or every plain payload if there is none.

    A lost connection is made again, and what was missed is fetched; what cannot be fetched is shown as a gap.
    """
    if how["recover"] is not None and not channels:
        raise click.UsageError("--recover goes with a CHANNEL")
    if how["recover"] not in (None, "start") and len(channels) > 1:
        raise click.UsageError("a position is one channel's: give a single CHANNEL with --recover")
    from netd.cli import framed_talk
    from netd.cli.framed_dial import run

    if how["recover"] not in (None, "start"):
        how["recover"] = framed_talk.parse_position(how["recover"])
    run(framed_talk.listen, address, channels=channels, as_json=invocation().json, **how)


@framed.command()
@address_argument()
@click.option("--plain", is_flag=True, help="Lines are plain payloads, not operations.")
@click.option(
    "--linger",
    type=click.FloatRange(0, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="After the end of input, stay until nothing came for so long.",
)
@dial_options
@json_option
def connect(address: str, **how: Any) -> None:
    """Talk by hand: lines go out, what comes is printed. Input may be a pipe.

    \b
    /sub CHANNEL         hear a channel
    /unsub CHANNEL       no longer
    /pub CHANNEL TEXT    publish
    /use CHANNEL         lines are published there
    /direct WHOM TEXT    to sessions
    /broadcast TEXT      to everybody
    /list [CHANNEL]      who is connected
    /presence CHANNEL    who is in it
    /history CHANNEL     what it keeps
    /ping                there and back
    /help                this list
    /quit

    Other lines go to the daemon's application (which echoes them unless there is one).
    """
    from netd.cli import framed_talk
    from netd.cli.framed_dial import run

    run(framed_talk.connect, address, as_json=invocation().json, **how)


@framed.command()
@address_argument()
@click.option(
    "--size", type=click.IntRange(0, 4 * 1024 * 1024), default=64, show_default=True, help="Bytes of a message."
)
@click.option("--connections", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How many at once.")
@click.option("--window", type=click.IntRange(1, 65_536), default=64, show_default=True, help="In flight on each.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="For how long.")
@click.option("--operations", is_flag=True, help="Through the message path of a listener of mode operations.")
@dial_options
@json_option
def bench(address: str, **how: Any) -> None:
    """How many messages a second come back from an echo, and how fast. The server has to be in mode echo.

    This client is a Python process: with small messages it may be what is measured.
    """
    from netd.cli import framed_bench
    from netd.cli.framed_dial import run

    run(framed_bench.bench, address, as_json=invocation().json, **how)
