"""`netctl broker`: the service (info, channels, connections), and a client for it (connect, publish, subscribe, bench).
What the client commands do is in broker_talk.py and broker_bench.py, how they connect in broker_dial.py.
"""

from __future__ import annotations

from typing import Any

import click

from netd.cli.broker_dial import bench_options, broker_options
from netd.cli.channels import list_channels
from netd.cli.connections import connections_command
from netd.cli.data import message_options, read_data
from netd.cli.options import call, common_options, invocation
from netd.cli.talk_options import TALKING, check_listening, linger_option, listen_options
from netd.cli.targets import complete_channels


@click.group(short_help="WebSockets: info, channels; connect, publish, subscribe, bench.")
@common_options
def broker() -> None:
    """WebSockets and HTTP: the daemon's broker, and a client for it or any other netd's (--url)."""


# --- the service ------------------------------------------------------------------------------------------------------


@broker.command()
@common_options
def info() -> None:
    """The service: listeners, connections, sums."""
    status: Any = call(lambda client: client.broker())
    from netd.cli.output import print_json

    if invocation().json:
        print_json(status)
        return
    from netd.cli.broker_dial import url_of
    from netd.cli.connections_view import print_status
    from netd.cli.output import Column, counted

    about = [(Column("TLS"), lambda one: "yes" if one.get("tls") else "no")]
    if print_status("broker", status, about):
        click.echo(f"{counted(status.get('requests') or 0, 'connection')} of HTTP beside them")
        if (url := url_of(status)) is not None:
            click.echo(f"clients here: {url}")


broker.add_command(connections_command("broker"))
broker.add_command(list_channels, "channels")


# --- a client ---------------------------------------------------------------------------------------------------------


@broker.command(help=TALKING)
@click.option("--plain", metavar="CHANNEL", help="Lines are this channel's messages, not operations (/ws/CHANNEL).")
@click.option("--echo", is_flag=True, help="With --plain: our own messages come back, too.")
@linger_option
@broker_options
@common_options
def connect(**how: Any) -> None:
    if how["echo"] and not how["plain"]:
        raise click.UsageError("cannot use --echo without --plain")
    from netd.cli import broker_talk
    from netd.cli.dial import run

    run(broker_talk.connect, as_json=invocation().json, **how)


@broker.command()
@click.argument("channel", shell_complete=complete_channels)
@message_options
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Send it N times.")
@click.option("--lines", is_flag=True, help="Each line of DATA is a message.")
@broker_options
@common_options
def publish(channel: str, data: str | None, **how: Any) -> None:
    """Publish DATA to CHANNEL. DATA "-" or none is read from standard input."""
    from netd.cli import broker_talk
    from netd.cli.dial import run

    run(broker_talk.publish, channel, read_data(data), as_json=invocation().json, **how)


@broker.command()
@listen_options
@broker_options
@common_options
def subscribe(channels: tuple[str, ...], **how: Any) -> None:
    """Print what is said in the CHANNELs, until Ctrl-C; with none, what is sent to this session.

    A lost connection is made again, and what was missed is fetched; what cannot be fetched is shown as a gap.
    """
    check_listening(how, channels)
    from netd.cli import broker_talk
    from netd.cli.dial import run

    run(broker_talk.subscribe, channels=channels, as_json=invocation().json, **how)


@broker.command()
@click.option("--channel", "-c", default="public:bench", show_default=True, metavar="CHANNEL", help="Where.")
@click.option("--size", type=click.IntRange(16, 4_000_000), default=128, show_default=True, help="Bytes of a message.")
@click.option("--publishers", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many at once.")
@click.option("--subscribers", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Who hear them.")
@click.option("--window", type=click.IntRange(1, 65_536), default=64, show_default=True, help="In flight on each.")
@click.option("--rate", type=click.FloatRange(0.1), metavar="N", help="Messages a second, of all together.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="For how long.")
@bench_options
@common_options
def bench(**how: Any) -> None:
    """How many messages a second are published and delivered, and how long each is on its way; in binary messages.

    This client is a Python process: with small messages it may be what is measured.
    """
    from netd.cli import broker_bench
    from netd.cli.dial import run

    run(broker_bench.bench, format="msgpack", as_json=invocation().json, **how)
