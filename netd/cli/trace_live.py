"""The loops behind `netctl trace watch` and `netctl trace run`: events in, a screen (or lines) out, until the end.

    EventStream --> reader task --> Watch or Route --(dirty)--> painter task --> terminal, at most FRAMES a second

Rules:
- reading never waits for painting: a burst of hops is one frame;
- SIGTERM ends like Ctrl-C does, so that the terminal gets its cursor back.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click
import trio

from netd.cli.events import PATIENCE
from netd.cli.output import console, counted, print_json_line, printable
from netd.cli.trace_path import snake, whole
from netd.cli.trace_view import REASONS, event_line, heading, hop_line, hop_table, screen, summary_line, target_of
from netd.cli.trace_watch import Client, Watch
from netd.errors import RequestFailed, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from netd.client.control import ControlClient
    from netd.client.stream import EventStream, ServerEvent

FRAMES = 20
IDLE = 1.0  # seconds after which even an unchanged screen is painted: the terminal may have been resized
TERMINATED = 143


async def watch(client: ControlClient, *, count: int | None, recent: int, as_json: bool) -> int:
    """Follow the trace service until `count` traces have finished (None: for ever). Returns the exit code."""
    out = console()
    known = Watch()
    async with client.events(service="trace", patience=PATIENCE) as events:
        if as_json or not _can_repaint(out):
            await _print_events(events, known, count, as_json)
            return 0
        # the stream is open already, so nothing falls between the history and the present
        await _recall(client, known, recent)

        def see(event: ServerEvent) -> bool:
            known.see(event.kind, event.data)
            return count is not None and known.finished >= count

        return await _show_live(out, events, see, lambda: screen(known, out.size.height))


async def run(client: ControlClient, target: str, *, as_json: bool, **options: Any) -> int:
    """Have the daemon trace to `target`, showing hops as they come. Returns the exit code.

    Raises ServiceError when the trace ended before all of it was done; what was found is printed by then.
    """
    out = console()
    traced = Client("", address=target, state="tracing")
    async with client.trace_run(target, **options) as events:
        if as_json or not _can_repaint(out):
            await _print_run(events, traced, as_json)
            _check_whole(traced)
            return 0

        def see(event: ServerEvent) -> bool:
            _see_run(traced, event)
            return traced.state == "done"

        def paint() -> RenderableType:
            from rich.console import Group

            target = target_of(traced.done, traced.address)
            table = hop_table(traced.route, indent=2, target=target, width=out.width)
            return Group(heading(traced), table) if traced.route.rows() or traced.done else heading(traced)

        code = await _show_live(out, events, see, paint)
    if not code:
        _check_whole(traced)
    return code


def _can_repaint(out: Console) -> bool:
    """Whether a screen can be drawn over itself; not into a pipe (whatever FORCE_COLOR says), nor on TERM=dumb."""
    return sys.stdout.isatty() and not out.is_dumb_terminal


# --- on a terminal --------------------------------------------------------------------------------------------------


async def _show_live(
    out: Console, events: EventStream, see: Callable[[ServerEvent], bool], paint: Callable[[], RenderableType]
) -> int:
    """Paint while events come in, until `see` says that it was the last one or the stream ends."""
    from rich.live import Live

    code = 0
    dirty = trio.Event()

    async def read() -> None:
        async for event in events:
            last = see(event)
            dirty.set()
            if last:
                return

    async def repaint(live: Live) -> None:
        nonlocal dirty
        while True:
            with trio.move_on_after(IDLE):
                await dirty.wait()
            dirty = trio.Event()
            live.update(paint(), refresh=True)
            await trio.sleep(1 / FRAMES)

    async def until_terminated() -> None:
        nonlocal code
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                code = TERMINATED
                nursery.cancel_scope.cancel()

    with Live(paint(), console=out, auto_refresh=False) as live:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repaint, live)
            nursery.start_soon(until_terminated)
            await read()
            nursery.cancel_scope.cancel()
        live.update(paint(), refresh=True)
    return code


async def _recall(client: ControlClient, known: Watch, recent: int) -> None:
    """The last traces from the history, and who is connected. Without a history, or with one that is being cleared,
    or with the service stopped, there are fewer.
    """
    try:
        found = await client.traces(limit=recent) if recent else []
        for trace in reversed(found):
            known.recall(await client.trace_record(str(trace.get("id") or "")))
        for connected in await client.trace_clients():
            known.greet(connected)
    except RequestFailed as error:
        if error.status not in (404, 503):
            raise
        known.error = ""  # nothing to complain about: the history is a convenience here


# --- line by line ---------------------------------------------------------------------------------------------------


async def _print_events(events: EventStream, known: Watch, count: int | None, as_json: bool) -> None:
    async for event in events:
        client, row = known.see(event.kind, event.data)
        if as_json:
            print_json_line(event.as_json())
        else:
            click.echo(event_line(event.kind, snake(event.data), client, row))
            sys.stdout.flush()
        if count is not None and known.finished >= count:
            return


async def _print_run(events: EventStream, traced: Client, as_json: bool) -> None:
    async for event in events:
        row = _see_run(traced, event)
        if as_json:
            print_json_line(event.as_json())
        elif row is not None:
            click.echo(hop_line(row, snake(event.data)))
    if as_json:
        return
    if traced.route.round > 1:
        out = console()
        out.print(hop_table(traced.route, target=target_of(traced.done, traced.address), width=out.width))
    click.echo(f"{printable(traced.address)}: {summary_line(traced.done)}")


def _check_whole(traced: Client) -> None:
    """Raise ServiceError for a trace that had fewer rounds than were asked for, or sent no probe at all.

    A daemon that does not tell these figures (an older one) is believed.
    """
    done = traced.done
    rounds, wanted = whole(done.get("rounds")), whole(done.get("rounds_wanted"))
    early = rounds is not None and wanted is not None and rounds < wanted
    if not early and whole(done.get("probes")) != 0:
        return
    reason = str(done.get("reason") or "")
    made = f" after {rounds} of {counted(wanted, 'round')}" if early and wanted is not None else ""
    raise ServiceError("trace", f"cannot finish the trace to {traced.address}{made}: {REASONS.get(reason, reason)}")


def _see_run(traced: Client, event: ServerEvent) -> Any:
    data = snake(event.data)
    match event.kind:
        case "hop":
            return traced.route.see_hop(data)
        case "name":
            traced.route.see_name(data.get("router"), data.get("name"))
        case "round":
            traced.route.see_rows(data)
        case "done":
            traced.state, traced.done = "done", data
            traced.address = str(data.get("address") or traced.address)
            traced.route.end(data)
        case _:
            pass
    return None
