"""How `netctl broker` reaches a broker: the options that its client commands have besides those of dial.py, and where
the daemon's own broker is. Imports click only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from netd.cli.dial import FILE, NAMES, WAY, WHO, checked, client_options, give, misuse
from netd.cli.options import invocation

if TYPE_CHECKING:
    from netd.client import shapes
    from netd.client.broker import BrokerClient
    from netd.client.broker_plain import PlainSocket

_FORMATS = {"json": "json", "msgpack": "messagepack"}

_URL = click.option(
    "--url", metavar="URL", help="ws://HOST:PORT, wss://HOST:PORT or unix:/PATH.  [default: the daemon's own broker]"
)
_FORMAT = click.option(
    "--format", type=click.Choice(tuple(_FORMATS)), default="json", show_default=True, help="Text, or binary."
)
_OPTIONS = (
    *WHO,
    click.option("--token-file", metavar="FILE", type=FILE, help="The token is in FILE, read for every connection."),
    click.option(
        "--token-in",
        type=click.Choice(("hello", "header")),
        default="hello",
        show_default=True,
        help="Where the token is shown.",
    ),
    click.option("--header", "headers", metavar="NAME:VALUE", multiple=True, help="A header of the upgrade (several)."),
    *WAY,
)

broker_options = give((_URL, _FORMAT, *_OPTIONS))
"""Give a command the options of a connection."""
bench_options = give((_URL, *_OPTIONS))
"""The same for one that chooses its own format."""


async def client_of(how: dict[str, Any], **more: Any) -> BrokerClient:
    """The client that the options describe; they are taken out of `how`. What cannot be used of them is misuse."""
    from netd.client.broker import BrokerClient

    url, options = await _told(how)
    with misuse():
        return checked(BrokerClient(url, **(options | more)))


async def plain_of(how: dict[str, Any], channel: str, query: str) -> PlainSocket:
    """The same for a channel's plain messages."""
    from dataclasses import replace

    from netd.cli.targets import channel_bytes
    from netd.client.broker_options import parse_url
    from netd.client.broker_plain import PlainSocket

    url, options = await _told(how)
    with misuse():
        where = parse_url(url)
        path, _, given = where.target.partition("?")
        both = "&".join(part for part in (given, query) if part)
        target = f"{path.rstrip('/')}/{quote(channel_bytes(channel), safe=':')}"
        return checked(PlainSocket(replace(where, target=f"{target}?{both}" if both else target), **options))


async def _told(how: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where to, and the options of the client."""
    names = (*NAMES, "url", "format", "token_file", "token_in", "headers")
    taken = {name: how.pop(name) for name in names}
    if taken["token"] and taken["token_file"] and not _from_environment("token"):
        raise click.UsageError("cannot use --token with --token-file: give one of them")
    url = await own_url() if taken["url"] is None else taken["url"]
    secure = url.startswith(("wss:", "https:"))
    options = client_options(taken, secure=secure) | {
        "format": _FORMATS[taken["format"]],
        "token_in": taken["token_in"],
        "headers": _headers_of(taken["headers"]),
    }
    if taken["token_file"]:
        options["token"] = lambda: _token_in(taken["token_file"])
    return url, options


def _from_environment(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.ENVIRONMENT


def _token_in(path: str) -> str:
    from pathlib import Path

    from netd.errors import DaemonUnreachable

    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DaemonUnreachable(f"cannot read a token from {path}: {getattr(error, 'strerror', error)}") from error


def _headers_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """ "NAME:VALUE" as a mapping."""
    headers: dict[str, str] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name:
            raise click.UsageError(f"cannot use header {pair!r}: write NAME:VALUE")
        headers[name] = value.strip()
    return headers


# --- the daemon's own broker ------------------------------------------------------------------------------------------


async def own_url() -> str:
    """Where the daemon's broker listens. RequestFailed if there is none that a WebSocket can reach."""
    from netd.client.control import ControlClient
    from netd.errors import DaemonUnreachable, RequestFailed

    chosen = invocation()
    try:
        async with ControlClient(chosen.socket) as client:
            try:
                status = await client.broker()
            finally:
                chosen.daemon_version = client.daemon_version
    except DaemonUnreachable as error:
        raise DaemonUnreachable(f"{error}; or say where the broker is: --url ws://HOST:PORT") from error
    found = url_of(status)
    if found is None:
        why = "it listens on no TCP port" if status.get("running") else "it does not run ([broker] enabled)"
        raise RequestFailed(
            "conflict", f"cannot find the daemon's broker: {why}; or give --url (also unix:/PATH)", status=409
        )
    return found


def url_of(status: shapes.BrokerStatus) -> str | None:
    """The first of its listeners that is a TCP port, as this machine reaches it."""
    for listener in status.get("listeners") or []:
        host, colon, port = listener["address"].rpartition(":")
        if colon and port.isdigit() and "/" not in host and not host.startswith("unix"):
            here = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
            return f"{'wss' if listener.get('tls') else 'ws'}://{here}:{port}"
    return None
