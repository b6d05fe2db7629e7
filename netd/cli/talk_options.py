"""The options of listening and of talking by hand, for every client's commands. Imports click only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from netd.cli.dial import give

if TYPE_CHECKING:
    from netd.wire.messages import Position

_OFFSET = re.compile(r"[0-9]{1,15}")

listen_options = give(
    (
        click.argument("channels", metavar="[CHANNEL]...", nargs=-1),
        click.option(
            "--pattern",
            is_flag=True,
            help='The CHANNELs have wildcards ("a:b.*", "a:>"), or are refused (hub.namespace.wildcards).',
        ),
        click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages."),
        click.option("--presence", is_flag=True, help="Show who joins and leaves, too."),
        click.option(
            "--recover",
            "--since",
            "recover",
            metavar="POSITION",
            help='Begin after EPOCH:OFFSET, which a message has with --json, or with all that is kept: "start".',
        ),
    )
)
"""What is heard, and from where on."""

linger_option = click.option(
    "--linger",
    type=click.FloatRange(0, 3600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="After the end of input, stay until nothing came for so long.",
)

TALKING = """Talk by hand: lines go out, what comes is printed. Input may be a pipe.

    \b
    /sub CHANNEL         hear a channel
    /sub a:b.*           or all that match
    /unsub CHANNEL       no longer
    /pub CHANNEL TEXT    publish
    /use CHANNEL         lines go there
    /direct WHOM TEXT    to sessions
    /broadcast TEXT      to everybody
    /list [CHANNEL]      who is connected
    /presence CHANNEL    who is in it
    /history CHANNEL     what it keeps
    /ping                there and back
    /help                this list
    /quit

    Other lines go to the daemon's application (which echoes them unless there is one).
    What comes while you type is printed over your line, which is kept: Ctrl-R shows it again.
    """


def check_listening(how: dict[str, Any], channels: tuple[str, ...]) -> None:
    """`recover` as listening wants it: a Position, "start" or None. What makes no sense is misuse."""
    recover = how["recover"]
    for name in ("pattern", "presence", "recover"):
        if how[name] and not channels:
            raise click.UsageError(f"cannot use --{name} without a CHANNEL")
    for name in ("presence", "recover"):
        if how[name] and how["pattern"]:
            raise click.UsageError(f"cannot use --{name} with --pattern: it is of one channel")
    if recover not in (None, "start"):
        if len(channels) > 1:
            raise click.UsageError("cannot use --recover with many CHANNELs: a position is one channel's")
        how["recover"] = _position(recover)


def _position(text: str) -> Position:
    """ "EPOCH:OFFSET"."""
    from netd.wire.messages import Position

    epoch, colon, offset = text.rpartition(":")
    if not colon or not epoch or not _OFFSET.fullmatch(offset):
        raise click.UsageError(f'cannot recover from {text!r}: write EPOCH:OFFSET, or "start"')
    return Position(epoch, int(offset))
