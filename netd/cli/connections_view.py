"""How a service whose connections are sessions looks: the service, its connections, one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.cli.output import Column, ago, console, counted, duration, size, table, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


# --- the service ------------------------------------------------------------------------------------------------------


def print_status(
    service: str, status: Mapping[str, Any], about: Sequence[tuple[Column, Callable[[Mapping[str, Any]], object]]]
) -> bool:
    """`about`: what there is to say of a listener besides its address. False: the service does not run."""
    out = console()
    if not status.get("running"):
        out.print(f"the {service} service is not running")
        return False
    columns = [Column("LISTENING", style="bold"), *(column for column, _ in about), Column("CONNECTIONS", "right")]
    rows = [
        (listener.get("address"), *(cell(listener) for _, cell in about), listener.get("connections"))
        for listener in status.get("listeners") or []
    ]
    out.print(table(columns, rows, width=out.width), crop=False)
    out.print()
    here, arriving = status.get("sessions", 0), status.get("arriving", 0)
    waiting = f", {arriving} arriving" if arriving else ""
    out.print(text(f"{counted(here, 'session')}{waiting}, {status.get('total', 0)} so far"))
    for word, way in (("received", "in"), ("sent", "out")):
        messages, total = counted(status.get(f"messages_{way}", 0), "message"), size(status.get(f"bytes_{way}", 0))
        out.print(text(f"{word} {messages}, {total}"))
    if pressed := status.get("backpressure", 0):
        lost = f"; {counted(dropped, 'message')} dropped" if (dropped := status.get("dropped")) else ""
        drained = counted(status.get("drains", 0), "time")
        out.print(text(f"backpressure {counted(pressed, 'time')}, drained {drained}{lost}"))
    rejected = {reason: count for reason, count in (status.get("rejected") or {}).items() if count}
    if rejected:
        out.print(
            text(("not let in: ", "yellow"), ", ".join(f"{count} {reason}" for reason, count in rejected.items()))
        )
    return True


def print_connections(answer: Mapping[str, Any]) -> None:
    out = console()
    found = answer["connections"]
    if not found:
        out.print("no connections")
        return
    columns = [Column("ID", style="bold"), Column("ADDRESS", spare=1), Column("NAME", narrow="cut", spare=2)]
    columns += [Column("MODE", spare=3), Column("OPENED", spare=6), Column("IDLE", "right", spare=7)]
    columns += [Column("IN", "right", spare=4), Column("OUT", "right", spare=5), Column("QUEUED", "right", spare=8)]
    rows = [
        (
            one.get("id"),
            one.get("address"),
            one.get("name"),
            f"{one.get('mode')}, TLS" if one.get("tls") else one.get("mode"),
            ago(one.get("opened")),
            duration(one.get("idle") or 0.0),
            size(one.get("bytes_in") or 0),
            size(one.get("bytes_out") or 0),
            size(one["queued"]) if one.get("queued") else None,
        )
        for one in found
    ]
    out.print(table(columns, rows, width=out.width), crop=False)
    total = answer.get("total", len(found))
    if total > len(found):
        out.print(text((f"and {total - len(found)} more (--limit)", "dim")))


_FACTS = {
    "address": "from",
    "listener": "listener",
    "mode": "mode",
    "name": "name",
    "tags": "tags",
    "version": "version",
    "signed": "signed",
    "channel": "channel",
    "tls": "TLS",
    "opened": "opened",
    "idle": "idle",
    "bytes_in": "bytes in",
    "bytes_out": "bytes out",
    "messages_in": "messages in",
    "messages_out": "messages out",
    "unfinished": "unfinished",
    "queued": "queued",
    "dropped": "dropped",
    "paused": "paused by",
    "pid": "process",
    "uid": "user id",
}


def print_connection(one: Mapping[str, Any]) -> None:
    out = console()
    out.print(text((str(one.get("id")), "bold")))
    rows = []
    for key in [*_FACTS, *(key for key in one if key not in _FACTS and key != "id")]:
        value = one.get(key)
        if value in (None, [], {}) or (key in ("signed", "tls", "unfinished", "queued", "dropped") and not value):
            continue
        rows.append((_FACTS.get(key, key), _fact(key, value)))
    out.print(table([Column("", style="dim"), Column("", narrow="wrap")], rows, indent=2, width=out.width), crop=False)


def _fact(key: str, value: Any) -> str:
    match key:
        case "opened":
            return ago(value)
        case "idle":
            return duration(value)
        case "bytes_in" | "bytes_out" | "unfinished" | "queued":
            return size(value)
        case "tags":
            return ", ".join(f"{tag}={content}" for tag, content in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
