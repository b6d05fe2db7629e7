"""How `netctl framed` shows things: the service, its connections, messages as lines or as JSON."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from netd.cli.output import Column, ago, clock, console, counted, duration, printable, size, table, text

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN = 4096  # characters of a message on a line


# --- the service ------------------------------------------------------------------------------------------------------


def print_status(status: Mapping[str, Any]) -> None:
    out = console()
    if not status.get("running"):
        out.print("the framed service is not running")
        return
    listeners = status.get("listeners") or []
    columns = [Column("LISTENING", style="bold"), Column("MODE"), Column("CODEC", spare=2), Column("TLS", spare=1)]
    columns += [Column("HANDSHAKE", spare=3), Column("CONNECTIONS", "right")]
    rows = [
        (
            listener.get("address"),
            listener.get("mode"),
            listener.get("codec"),
            "yes" if listener.get("tls") else "no",
            listener.get("handshake"),
            listener.get("connections"),
        )
        for listener in listeners
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


# --- messages ---------------------------------------------------------------------------------------------------------


def shown(data: Any) -> str:
    """A message's data on one line: text as it is, bytes as text if they are that, else in hexadecimal."""
    if isinstance(data, bytes):
        try:
            data = data.decode()
        except UnicodeDecodeError:
            return f"0x{data[: _SHOWN // 2].hex()}" + (f"... ({len(data)} bytes)" if len(data) > _SHOWN // 2 else "")
    elif not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, default=_as_json)
    return printable(data[:_SHOWN]) + (f"... ({len(data)} characters)" if len(data) > _SHOWN else "")


def data_field(data: Any) -> dict[str, Any]:
    """The field that carries the data in JSON: bytes travel in data64."""
    if isinstance(data, bytes):
        return {"data64": base64.b64encode(data).decode()}
    return {"data": json.loads(json.dumps(data, default=_as_json))}


def _as_json(value: Any) -> Any:
    """What CBOR and MessagePack have and JSON has not."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def item_json(item: Any) -> dict[str, Any]:
    """Anything that a client yields as an object; `event` says what it is."""
    from msgspec import UNSET, structs

    from netd.client.framed_session import Gap, readable
    from netd.wire import messages

    if isinstance(item, Gap):
        return {"event": "gap", "channel": _channel(item.channel), "epoch": item.epoch, "missed": item.missed}
    if not hasattr(item, "__struct_fields__"):
        return {"event": "payload", **data_field(item)}
    fields: dict[str, Any] = {"event": item.__struct_config__.tag}
    for name, value in structs.asdict(item).items():
        if value is UNSET or value is None or name in ("channel", "channel64", "data", "data64"):
            continue
        fields[name.rstrip("_")] = structs.asdict(value) if hasattr(value, "__struct_fields__") else value
    if hasattr(item, "channel"):
        fields["channel"] = _channel(readable(messages.channel_of(item)))
    if hasattr(item, "data"):
        fields |= data_field(messages.data_of(item))
    return fields


def _channel(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def item_line(item: Any) -> str:
    """The same as a line for people."""
    from netd.client.framed_session import Gap, readable
    from netd.wire import messages

    def channel() -> str:
        return printable(_channel(readable(messages.channel_of(item))))

    def sender() -> str:
        return printable(str(item.from_)[:8]) if item.from_ else "daemon"

    match item:
        case Gap():
            many = counted(item.missed, "message") if item.missed else "messages may be"
            what = f"{printable(_channel(item.channel))}  -- {many} missing here --"
        case messages.Message():
            place = f" {item.offset}" if item.offset is not None else ""
            what = f"{channel()}{place}  {sender()}  {shown(messages.data_of(item))}"
        case messages.Direct():
            what = f"direct  {sender()}  {shown(messages.data_of(item))}"
        case messages.Broadcast():
            what = f"broadcast  {sender()}  {shown(messages.data_of(item))}"
        case messages.Joined() | messages.Left():
            verb = "joined" if isinstance(item, messages.Joined) else "left"
            what = f"{channel()}  {printable(item.name or item.session)} {verb}"
        case messages.TextEvent():
            what = f"application  {shown(item.text)}"
        case messages.BinaryEvent():
            what = f"application  {shown(messages.data_of(item))}"
        case messages.Error():
            what = f"refused ({printable(item.code)}): {printable(item.message)}"
        case _:
            what = shown(item)
    return f"{clock(time.time())}  {what}"


def client_rows(clients: list[Any]) -> list[tuple[str, ...]]:
    """Sessions as rows of a table."""
    return [
        (
            client.session,
            client.name or "",
            client.transport,
            ", ".join(f"{key}={value}" for key, value in (client.tags or {}).items()),
        )
        for client in clients
    ]
