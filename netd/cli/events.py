"""`netctl events`: what happens in the daemon, one line each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import call, common_options, invocation

if TYPE_CHECKING:
    from netd.client.control import ControlClient
    from netd.client.stream import ServerEvent

PATIENCE = 30.0
"""Seconds that a follower waits for a daemon that is being restarted."""

_STYLES = {"error": "red", "warningRaised": "yellow", "missed": "yellow", "ended": "yellow"}
_OURS = ("missed", "ended")  # about the stream itself: shown whatever is asked for


@click.command(short_help="What happens in the daemon, as it happens.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only events of this kind (may be repeated).")
@click.option("--service", metavar="NAME", help="Only events of this service.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0, 10000),
    default=None,
    metavar="N",
    help="How many past events to begin with.  [default: 50; 0 with --follow]",
)
@common_options
def events(follow: bool, kinds: tuple[str, ...], service: str | None, lines: int | None) -> None:
    """What happened in the daemon lately; with --follow, what happens from now on.

    A daemon that restarts meanwhile is waited for; events that were lost are counted as "missed".
    """
    wanted = lines if lines is not None else 0 if follow else 50
    write = _writer()

    async def show(client: ControlClient) -> None:
        since = ""
        if wanted:
            # the daemon keeps one history of all kinds: what is asked for may lie far back in it
            kept = await client.recent_events(limit=10000)
            since = kept[-1].id if kept else ""
            chosen = [event for event in kept if _is_wanted(event, kinds, service)]
            for event in chosen[-wanted:]:
                write(event)
        if follow:
            stream = client.events(kinds=kinds, service=service, since=since, patience=PATIENCE)
            async with stream as following:
                async for event in following:
                    write(event)

    call(show)


def _is_wanted(event: ServerEvent, kinds: tuple[str, ...], service: str | None) -> bool:
    if event.kind in _OURS:
        return not (kinds or service)
    return (not kinds or event.kind in kinds) and (service is None or event.service == service)


def _writer() -> Any:
    if invocation().json:
        from netd.cli.output import print_json_line

        return lambda event: print_json_line(event.as_json())
    from netd.cli.output import clock, console, text

    out = console()

    def write(event: ServerEvent) -> None:
        at = event.data.get("time")
        fields = {key: value for key, value in event.data.items() if key not in ("time", "service")}
        parts: list[str | tuple[str, str]] = [
            (f"{clock(at) if isinstance(at, int | float) else '':<12}", "dim"),
            f" {event.service or 'netd':<8} ",
            (f"{event.kind:<16}", _STYLES.get(event.kind, "bold")),
        ]
        for key, value in fields.items():
            parts += [(f" {key}=", "dim"), _value(value)]
        out.print(text(*parts), soft_wrap=True)
        sys.stdout.flush()

    return write


def _value(value: Any) -> str:
    """A field's value as a log line has it: bare where that is clear, quoted where it is not."""
    import json

    if isinstance(value, str) and value and not any(c in value for c in ' "='):
        return value
    return json.dumps(value, ensure_ascii=False)
