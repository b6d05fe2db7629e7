"""How messages, and whatever else a client yields, look: as lines for people, as objects for programs."""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from netd.cli.output import clock, console, counted, print_json_line, printable, text

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN = 4096  # characters of a message on a line


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

    from netd.client.subscription import Gap, readable
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


def item_line(item: Any, *, clocked: bool = True) -> str:
    """The same as a line for people."""
    return "".join(part for part, _ in item_parts(item, clocked=clocked))


def item_parts(item: Any, *, clocked: bool = True) -> list[tuple[str, str]]:
    """Such a line as (text, style); `clocked`: with the time, which is ours, as messages have none."""
    from netd.client.subscription import Gap, readable
    from netd.wire import messages

    def channel() -> tuple[str, str]:
        return printable(_channel(readable(messages.channel_of(item)))), "cyan"

    def sender() -> tuple[str, str]:
        return (printable(str(item.from_)[:8]) if item.from_ else "daemon"), "bold"

    def said() -> tuple[str, str]:
        return f"  {shown(messages.data_of(item))}", ""

    parts: list[tuple[str, str]]
    match item:
        case Gap():
            many = counted(item.missed, "message") if item.missed else "messages may be"
            parts = [(printable(_channel(item.channel)), "cyan"), (f"  -- {many} missing here --", "yellow")]
        case messages.Message():
            place = f" {item.offset}" if item.offset is not None else ""
            parts = [channel(), (f"{place}  ", "dim"), sender(), said()]
        case messages.Direct():
            parts = [("direct  ", "magenta"), sender(), said()]
        case messages.Broadcast():
            parts = [("broadcast  ", "magenta"), sender(), said()]
        case messages.Joined() | messages.Left():
            verb = "joined" if isinstance(item, messages.Joined) else "left"
            parts = [channel(), (f"  {printable(item.name or item.session)} {verb}", "dim")]
        case messages.TextEvent() | messages.BinaryEvent():
            parts = [("application", "green"), said()]
        case messages.Error():
            parts = [(f"refused ({printable(item.code)}): {printable(item.message)}", "red")]
        case _:
            parts = [(shown(item), "")]
    return [(f"{clock(time.time())}  ", "dim"), *parts] if clocked else parts


def writer(as_json: bool, *, clocked: bool = True) -> Callable[[Any], None]:
    """What prints anything that a client yields. `clocked`: it comes now, and when that is shown to people."""
    if as_json:
        return lambda item: print_json_line(item_json(item))
    if sys.stdout.isatty():
        out = console()
        return lambda item: out.print(text(*item_parts(item, clocked=clocked)), soft_wrap=True)

    def write(item: Any) -> None:
        sys.stdout.write(item_line(item, clocked=clocked) + "\n")
        sys.stdout.flush()

    return write


def client_json(client: Any) -> dict[str, Any]:
    """A session as an object."""
    return {"session": client.session, "name": client.name, "transport": client.transport, "tags": client.tags or {}}


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
