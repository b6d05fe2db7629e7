"""How paths look: the table of hops, a client's heading, the whole screen of `netctl trace watch`, and plain lines.

Rules:
- the screen fits the terminal: when not all clients can be shown, those that were heard of last are;
- nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from netd.cli.output import Column, clock, counted, milliseconds, printable, table, text
from netd.cli.trace_path import number, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from netd.cli.trace_path import Fields, Route, Row
    from netd.cli.trace_watch import Client, Watch

METHODS = {"tcp": "in-connection", "udp": "by UDP beside it", "syn": "by TCP SYN beside it"}
REASONS = {
    "destination": "reached",
    "max-hops": "no answer at the last hop allowed",
    "timeout": "timed out",
    "closed": "the connection ended",
    "no-carrier": "the session has nothing to carry probes",
    "no-loopback": "the kernel did not loop the message back",
    "unprivileged": "not permitted to trace",
    "limited": "a limit did not let it run",
    "error": "failed, the log says why",
}
_STYLES = {"connected": "yellow", "tracing": "cyan", "done": "green", "gone": "dim", "recorded": "dim"}
_MARKS = {"connected": "○", "tracing": "◐", "done": "●", "gone": "○", "recorded": "·"}


class Target(NamedTuple):
    """The destination. Times in milliseconds; None: not known."""

    address: str
    last: float | None
    best: float | None
    mean: float | None
    worst: float | None
    jitter: float | None


def hop_table(route: Route, *, indent: int = 0, target: Target | None = None, width: int | None = None) -> Table:
    """The hops of a route; with `target`, the destination as the last row. `width` as in `table`.

    Columns that nothing would stand in (names, jitter, loss of a single round) are left out.
    """
    rows = route.rows()
    columns = [Column("TTL", "right"), Column("ROUTER"), Column("NAME", narrow="cut", spare=1)]
    columns += [Column("RTT ms", "right"), Column("BEST", "right", spare=4), Column("MEAN", "right", spare=3)]
    columns += [Column("WORST", "right", spare=5), Column("JITTER", "right", spare=6)]
    columns += [Column("LOSS", "right"), Column("", narrow="cut", spare=2)]
    cells: list[list[Any]] = [_cells(row) for row in rows]
    if target is not None and route.dest_ttl is not None:
        mark = text(("← destination", "green"))
        times = [milliseconds(ms) for ms in (target.last, target.best, target.mean, target.worst, target.jitter)]
        cells.append([route.dest_ttl, text((target.address, "bold")), "", *times, "", mark])
    keep = [0, 1, 3]
    keep += [column for column in (2, 7, 8, 9) if any(str(row[column] or "") for row in cells)]
    if any(row.rounds > 1 for row in rows):
        keep += [4, 5, 6]
    keep.sort()
    return table([columns[i] for i in keep], [[row[i] for i in keep] for row in cells], indent=indent, width=width)


def _cells(row: Row) -> list[Any]:
    silent = row.router is None
    router = text((_router(row), "dim" if silent else ""))
    last = row.last_ms if row.last_ms is not None else row.mean_ms
    loss = row.loss_percent
    return [
        row.ttl,
        router,
        _name(row),
        "" if silent else milliseconds(last),
        milliseconds(row.best_ms),
        milliseconds(row.mean_ms),
        milliseconds(row.worst_ms),
        milliseconds(row.jitter_ms),
        text((f"{loss:.0f} %", "red" if loss >= 50 else "yellow" if loss else "")) if loss is not None else "",
        _remarks(row),
    ]


def _remarks(row: Row) -> Text:
    joined = text((", ".join(row.notes), "yellow"))
    if row.kind == "shared":
        joined += text((", shared" if row.notes else "shared", "dim"))
    return joined


def _router(row: Row) -> str:
    if row.router is None:
        return "(silent)" if row.kind == "silent" else "(withheld)"
    others = len(row.addresses) - 1
    return row.router if others <= 0 else f"{row.router} +{others}"


def _name(row: Row) -> str:
    system = " ".join(part for part in (f"AS{row.asn}" if row.asn else "", row.as_name or "") if part)
    return "  ".join(part for part in (row.name or "", system) if part)


# --- a trace --------------------------------------------------------------------------------------------------------


def summary(done: Fields) -> list[str | tuple[str, str]]:
    """The end of a trace (snake_case fields) as parts of a line: distance, times, method, what is odd."""
    parts: list[str] = []
    reason = str(done.get("reason") or "destination")
    if (dest_ttl := whole(done.get("dest_ttl"))) is not None:
        parts.append(f"{dest_ttl} {'hop' if dest_ttl == 1 else 'hops'}")
    if reason != "destination":
        parts.append(REASONS.get(reason, reason))
    rounds, wanted = whole(done.get("rounds")), whole(done.get("rounds_wanted"))
    if rounds is not None and wanted and rounds != wanted:
        parts.append(f"{rounds} of {wanted} rounds")
    for key, word in (("path_rtt_ms", "path"), ("tcp_rtt_ms", "TCP"), ("pong_rtt_ms", "pong")):
        if (value := number(done.get(key))) is not None:
            parts.append(f"{word} {milliseconds(value)} ms")
    line: list[str | tuple[str, str]] = [", ".join(parts)]
    if done.get("proxy"):
        line.append((", proxy or VPN between", "yellow"))
    if method := done.get("method"):
        line.append(", " + METHODS.get(str(method), str(method)))
    if (probes := done.get("probes")) is not None:
        line.append(f", {counted(probes, 'probe')}")
    return line


def summary_line(done: Fields) -> str:
    """`summary` without colours."""
    return "".join(printable(part if isinstance(part, str) else part[0]) for part in summary(done))


def target_of(done: Fields, address: str) -> Target | None:
    """The destination for `hop_table`, None if it was not reached. A daemon that tells the mean only has one time."""
    if whole(done.get("dest_ttl")) is None:
        return None
    times = done.get("path_rtt")
    times = times if isinstance(times, Mapping) else {}
    mean = number(done.get("path_rtt_ms"))
    last, best, worst, jitter = (number(times.get(f"{name}_ms")) for name in ("last", "best", "worst", "jitter"))
    return Target(address or "client", mean if last is None else last, best, mean, worst, jitter)


# --- the live screen ------------------------------------------------------------------------------------------------


def heading(client: Client) -> Text:
    """One client on one line."""
    style = _STYLES[client.state]
    what: list[str | tuple[str, str]] = []
    match client.state:
        case "tracing":
            what = [f"tracing, round {client.route.round}" if client.route.round > 1 else "tracing"]
        case "done" | "gone" | "recorded":
            what = [*summary(client.done)] if client.done else []
            if client.state != "done":
                what += [(f"{', ' if client.done else ''}{_LATER[client.state]}", "dim")]
        case "connected":
            what = ["connected"]
    named = f" {client.id}  " if client.address and client.id else "  "
    line = text((f"{_MARKS[client.state]} ", style), (client.address or client.id, "bold"), (named, "dim"), *what)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


_LATER = {"gone": "gone", "recorded": "from the history"}


def screen(watch: Watch, height: int) -> RenderableType:
    """Everything in at most `height` lines."""
    from rich.console import Group

    clients = watch.clients()
    shown = _that_fit(clients, height - _FRAME)
    parts: list[RenderableType] = [_title(watch, clients)]
    if not clients:
        parts.append(text(("  waiting for a client to connect …", "dim")))
    for client in shown:
        parts += [text(""), heading(client)]
        if client.route.rows() or client.done.get("dest_ttl") is not None:
            parts.append(hop_table(client.route, indent=2, target=target_of(client.done, client.address)))
    if len(shown) < len(clients):
        parts += [text(""), text((f"  and {len(clients) - len(shown)} more that were quiet for longer", "dim"))]
    if watch.error:
        parts += [text(""), text(("✗ ", "red"), watch.error)]
    return Group(*parts)


_FRAME = 6  # lines that are not a client: title, "and more", a complaint, empty lines


def _title(watch: Watch, clients: Sequence[Client]) -> Text:
    here = sum(client.state not in ("gone", "recorded") for client in clients)
    tracing = sum(client.state == "tracing" for client in clients)
    count = f"{here} {'client' if here == 1 else 'clients'}, {tracing} being traced, {watch.finished} finished"
    line = text(("netd trace", "bold"), f"  {count}", ("  (Ctrl-C ends)", "dim"))
    if watch.missed:
        line += text((f"  {counted(watch.missed, 'event')} missed", "yellow"))
    if watch.ended:
        line += text(("  the daemon is away", "yellow"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _that_fit(clients: Sequence[Client], lines: int) -> list[Client]:
    """The clients heard of last, as many as fit, in their usual order. At least one."""
    chosen: set[str] = set()
    for client in sorted(clients, key=lambda one: one.touched, reverse=True):
        hops = len(client.route.rows()) + (client.done.get("dest_ttl") is not None)
        lines -= 2 + (hops + 1 if hops else 0)
        if chosen and lines < 0:
            break
        chosen.add(client.id)
    return [client for client in clients if client.id in chosen]


# --- plain lines ----------------------------------------------------------------------------------------------------


def hop_line(row: Row, hop: Fields) -> str:
    """One hop as one line: " 3  10.0.3.1  0.412 ms  router.example  (NAT)"."""
    router = hop.get("router") or hop.get("addr") or hop.get("ip")
    rtt = number(hop.get("rtt_ms"))
    parts = [f"{row.ttl:>2}", f"{printable(router or '*'):<15}"]
    parts.append(f"{milliseconds(rtt)} ms" if rtt is not None else "(no answer)" if not router else "")
    remarks = ", ".join(map(printable, row.remarks))
    parts += [printable(_name(row)), f"({remarks})" if remarks else ""]
    return "  ".join(part for part in parts if part).rstrip()


def event_line(kind: str, data: Fields, client: Client | None, row: Row | None) -> str:
    """One event of a watch as one line (`data` in snake_case)."""
    when = clock(number(data.get("time")))
    who = printable(client.address or client.id) if client is not None else "netd"
    match kind:
        case "clientConnected":
            what = f"connected ({printable(client.id)})" if client is not None else "connected"
        case "hop":
            what = f"hop {hop_line(row, data)}" if row is not None else "hop"
        case "name":
            what = f"{printable(data.get('router'))} is {printable(data.get('name'))}"
        case "clientDone":
            what = f"done: {summary_line(data)}"
        case "clientGone":
            what = f"gone ({printable(data.get('reason') or '')})"
        case "missed":
            missed = whole(data.get("count"))
            what = "missed events" if missed is None else f"missed {counted(missed, 'event')}"
        case "ended":
            what = "the daemon is stopping"
        case "error":
            what = f"error: {printable(data.get('message') or '')}"
        case _:
            what = printable(kind)
    return f"{when}  {who}  {what}".lstrip()
