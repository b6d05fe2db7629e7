"""How people name sessions and channels on a command line, and how a shell completes them and services.

    ID            a session's id, or as much of its beginning as only one has
    name:NAME     sessions of a name            tag:KEY=VALUE   sessions with a tag

A channel's name is text; bytes that are no text reach us as the shell passed them, and go on as those bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import call, not_found
from netd.errors import NetdError, RequestFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.client.control import ControlClient

COMPLETION = 1.0
"""Seconds in which a completion asks the daemon: a person waits with a finger on the Tab key."""

_ID = 36  # characters of a whole one
_COMPLETED = 50  # words offered to a shell
_WHERE = "netctl sessions lists them"


async def target_of(client: ControlClient, text: str) -> str:
    """What the daemon takes for `text`: names and tags as they are, an id whole."""
    _check(text)
    if text.startswith(("name:", "tag:")) or len(text) >= _ID:
        return text
    return await session_id(client, text)


async def session_id(client: ControlClient, text: str) -> str:
    """The id of the one session that `text` stands for. RequestFailed if there is none, or more than one."""
    _check(text)
    if text.startswith("name:"):
        page = await client.sessions(name=text.removeprefix("name:"), limit=2)
    elif text.startswith("tag:"):
        page = await client.sessions(tag=text.removeprefix("tag:"), limit=2)
    elif len(text) >= _ID:
        return text
    else:
        page = await client.sessions(prefix=text, limit=2)
    found = [row["id"] for row in page["sessions"]]
    if text in found:  # whole, and the beginning of another
        return text
    if not found:
        raise not_found(f"cannot find session {text!r}: there is no such session ({_WHERE})")
    if len(found) > 1:
        raise RequestFailed("invalid", f"cannot tell which session {text!r} is: several are ({_WHERE})", status=400)
    return found[0]


def _check(text: str) -> None:
    if text.startswith("tag:") and "=" not in text:
        raise click.UsageError(f"cannot find session {text!r}: write tag:KEY=VALUE")


def channel_bytes(text: str) -> bytes:
    """A channel's name as it stood on the command line."""
    return text.encode("utf-8", "surrogateescape")


def channel_name(row: Any) -> str:
    """A channel's name as people read it; escapes stand for bytes that are no text."""
    if (name := row.get("name")) is not None:
        return str(name)
    import base64
    import binascii

    try:
        return base64.b64decode(row.get("name64") or "").decode(errors="backslashreplace")
    except (binascii.Error, ValueError):
        return "?"


# --- completion -------------------------------------------------------------------------------------------------------


def _words(ctx: click.Context, ask: Callable[[ControlClient], Awaitable[list[str]]]) -> list[str]:
    """What the daemon knows, none while it cannot be asked."""
    import trio

    async def in_time(client: ControlClient) -> list[str]:
        with trio.fail_after(COMPLETION):
            return await ask(client)

    try:
        with ctx.scope(cleanup=False):
            return call(in_time)
    except (NetdError, trio.TooSlowError):
        return []  # a completion has nowhere to say why: it would be printed into the middle of the prompt


def complete_sessions(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids, and names as name:NAME."""

    async def ask(client: ControlClient) -> list[str]:
        if incomplete.startswith(("name:", "tag:")):
            rows = (await client.sessions(limit=1000))["sessions"]
            words = [f"name:{row['name']}" for row in rows if row["name"]]
            words += [f"tag:{key}={value}" for row in rows for key, value in row["tags"].items()]
            return [word for word in dict.fromkeys(words) if word.startswith(incomplete)][:_COMPLETED]
        rows = (await client.sessions(prefix=incomplete, limit=_COMPLETED))["sessions"]
        words = [row["id"] for row in rows]
        return words + [word for word in ("name:", "tag:") if word.startswith(incomplete)]

    return _words(ctx, ask)


def complete_transports(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Those that have sessions now."""

    async def ask(client: ControlClient) -> list[str]:
        names = dict.fromkeys(row["transport"] for row in (await client.sessions(limit=1000))["sessions"])
        return [name for name in names if name.startswith(incomplete)][:_COMPLETED]

    return _words(ctx, ask)


def complete_channels(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names that are text."""

    async def ask(client: ControlClient) -> list[str]:
        rows = (await client.channels(prefix=incomplete, limit=_COMPLETED))["channels"]
        return [row["name"] for row in rows if row["name"]]

    return _words(ctx, ask)


def complete_services(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of services."""

    async def ask(client: ControlClient) -> list[str]:
        return [unit["name"] for unit in await client.services() if unit["name"].startswith(incomplete)]

    return _words(ctx, ask)
