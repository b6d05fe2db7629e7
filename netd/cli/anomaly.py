"""`netctl anomaly`: which sessions behave unlike themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import call, common_options, invocation, limit_option
from netd.cli.targets import complete_sessions, session_id

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from netd.client import shapes
    from netd.client.control import ControlClient


@click.command(short_help="Sessions that behave unlike themselves.")
@click.argument("target", metavar="[ID]", required=False, shell_complete=complete_sessions)
@limit_option(1000, 20)
@common_options
def anomaly(target: str | None, limit: int) -> None:
    """Scores of sessions, the most unusual first; with a session's ID, of that one.

    All scores are from 0 to 1. ANOMALY: how far the newest sample is from what is usual for this session, and by which
    figure. COHERENCE: how well its rate follows from its own recent past. ENTROPY: how evenly its rate is spread.
    """

    async def ask(client: ControlClient) -> Any:
        if target is None:
            return await client.anomaly(limit=limit)
        return await client.anomaly_of(await session_id(client, target))

    answer = call(ask)
    from netd.cli.output import console, print_json

    if invocation().json:
        print_json(answer)
        return
    out = console()
    if target is not None:
        _print_scores(out, [answer], None)
        return
    if not answer["running"]:
        click.echo("the anomaly service is not running (anomaly.enabled)")
        return
    _print_status(out, answer)
    if answer["sessions"]:
        out.print()
        _print_scores(out, answer["sessions"], answer.get("threshold"))


def _print_status(out: Console, answer: shapes.AnomalyStatus) -> None:
    from netd.cli.output import text

    tracked, over = answer["tracked"], answer["over"]
    learning = f", {answer['learning']} learning" if answer.get("learning") else ""
    beyond = f", {answer['untracked']} too many to watch" if answer.get("untracked") else ""
    style = "red" if over else "green"
    past = (f"{over} past {answer.get('threshold'):g}", style)
    watched = f"{tracked} {'session' if tracked == 1 else 'sessions'} watched{learning}{beyond}, "
    every = f"; every {answer.get('interval'):g} s, scored by {answer.get('scoring')}"
    out.print(text(watched, past, every))
    if error := answer.get("adapter_error"):
        out.print(text(("✗ ", "red"), f"{answer.get('use')}: {error}"))


def _print_scores(out: Console, sessions: list[shapes.SessionScores], threshold: float | None) -> None:
    from netd.cli.output import Column, table

    columns = [Column("ID", style="bold"), Column("ANOMALY", "right"), Column("BY", spare=1)]
    columns += [Column("COHERENCE", "right", spare=4), Column("ENTROPY", "right", spare=3)]
    columns += [
        Column("NAME", narrow="cut", spare=2),
        Column("TRANSPORT", spare=5),
        Column("SAMPLES", "right", spare=6),
    ]
    rows = [
        (
            one.get("session"),
            _score(one.get("anomaly"), threshold),
            one.get("figure") or (one.get("source") if one.get("source") != "builtin" else None),
            _two(one.get("coherence")),
            _two(one.get("entropy")),
            one.get("name"),
            one.get("transport"),
            one.get("samples"),
        )
        for one in sessions
    ]
    out.print(table(columns, rows, width=out.width), crop=False)


def _score(value: float | None, threshold: float | None) -> Text:
    from netd.cli.output import text

    over = value is not None and threshold is not None and value >= threshold
    return text((f"{'! ' if over else ''}{_two(value)}", "red" if over else ""))


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
