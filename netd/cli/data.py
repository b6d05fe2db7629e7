"""What DATA on a command line means: bytes, text, JSON or hexadecimal; and the options that say so.

Imports click only.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C", bound="Callable[..., Any]")

_STRUCTURED = ("json", "cbor", "messagepack")

_OPTIONS = (
    click.argument("data", required=False),
    click.option("--as", "form", type=click.Choice(("text", "json", "hex")), help="What DATA is.  [default: text]"),
    click.option("--priority", type=click.IntRange(0, 255), default=128, show_default=True, help="Lower goes first."),
    click.option("--ephemeral", is_flag=True, help="It may be dropped for slow readers, and no history keeps it."),
)


def message_options(command: C) -> C:
    """Give a command DATA and what is said about it: `form`, `priority` and `ephemeral`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_data(data: str | None) -> bytes:
    """What to send: the argument, or standard input for "-" or none."""
    if data is not None and data != "-":
        return data.encode(errors="surrogateescape")
    return sys.stdin.buffer.read()


def plain_value(data: bytes, codec: str, form: str | None) -> Any:
    """The value that a plain payload is made from.

    Of the structured codecs, text that is JSON stands for that value, unless it is said to be text.
    """
    if form is None and codec in _STRUCTURED:
        try:
            return json.loads(data)
        except ValueError:
            form = "text"
    value = parse(data, form or "bytes")
    if codec == "raw":
        return (
            value
            if isinstance(value, bytes)
            else value.encode()
            if isinstance(value, str)
            else json.dumps(value).encode()
        )
    if isinstance(value, bytes):
        return value if codec in ("cbor", "messagepack") and form == "hex" else _text(value)
    return value


def parse(data: bytes, form: str) -> Any:
    """`data` as --as says: "bytes" (nothing was said), "text", "json", "hex"."""
    match form:
        case "json":
            try:
                return json.loads(data)
            except ValueError as error:
                raise click.UsageError(f"cannot send DATA as JSON: {error}") from None
        case "hex":
            try:
                return bytes.fromhex(_text(data))
            except ValueError as error:
                raise click.UsageError(f"cannot send DATA as hexadecimal: {error}") from None
        case "text":
            return _text(data)
        case _:
            return data


def operation_data(data: bytes, form: str | None) -> Any:
    """What a message carries: text if it is UTF-8 and nothing else was said, else bytes."""
    if form is not None:
        return parse(data, form)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"cannot send DATA as text: {error}") from None
