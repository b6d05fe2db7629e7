"""`netctl framed`: the service (info, connections), and a client for it or any framed server (send, listen, connect,
bench). What the client commands do is in framed_send.py, framed_talk.py and framed_bench.py, how they connect in
framed_dial.py.
"""

from __future__ import annotations

from typing import Any

import click

from netd.cli.connections import connections_command
from netd.cli.framed_dial import address_argument, dial_options
from netd.cli.options import call, common_options, invocation, json_option
from netd.cli.talk_options import TALKING, check_listening, linger_option, listen_options


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
    from netd.cli.connections_view import print_status
    from netd.cli.output import Column

    about = [
        (Column("MODE"), lambda one: one.get("mode")),
        (Column("CODEC", spare=2), lambda one: one.get("codec")),
        (Column("TLS", spare=1), lambda one: "yes" if one.get("tls") else "no"),
        (Column("HANDSHAKE", spare=3), lambda one: one.get("handshake")),
    ]
    print_status("framed", status, about)


framed.add_command(connections_command("framed"))


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
    targets = [name for name in ("channel", "to", "broadcast") if how[name] not in (None, False)]
    if len(targets) > 1:
        raise click.UsageError(f"cannot use --{targets[0]} with --{targets[1]}: give one of them")
    if targets and how["answer"]:
        raise click.UsageError(
            f"cannot use --answer with --{targets[0]}: it is for plain payloads; the daemon's answer is awaited anyway"
        )
    from netd.cli import framed_send
    from netd.cli.data import read_data
    from netd.cli.dial import run

    run(framed_send.send, address, read_data(data), as_json=invocation().json, **how)


@framed.command()
@address_argument()
@listen_options
@dial_options
@json_option
def listen(address: str, channels: tuple[str, ...], **how: Any) -> None:
    """Print what comes, until Ctrl-C: messages of the CHANNELs, or every plain payload if there is none.

    A lost connection is made again, and what was missed is fetched; what cannot be fetched is shown as a gap.
    """
    check_listening(how, channels)
    from netd.cli import framed_talk
    from netd.cli.dial import run

    run(framed_talk.listen, address, channels=channels, as_json=invocation().json, **how)


@framed.command(help=TALKING)
@address_argument()
@click.option("--plain", is_flag=True, help="Lines are plain payloads, not operations.")
@linger_option
@dial_options
@json_option
def connect(address: str, **how: Any) -> None:
    from netd.cli import framed_talk
    from netd.cli.dial import run

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
    from netd.cli.dial import run

    run(framed_bench.bench, address, as_json=invocation().json, **how)
