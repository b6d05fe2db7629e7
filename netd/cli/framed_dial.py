"""How `netctl framed` reaches a framed server: the options that its client commands have besides those of dial.py.

Imports click only; the client is imported when a command runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from netd.cli.dial import FILE, NAMES, WAY, WHO, checked, client_options, give, misuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.client.framed import FramedClient

C = TypeVar("C", bound="Callable[..., Any]")

DEFAULT = "127.0.0.1:9000"
CODECS = ("raw", "text", "json", "cbor", "messagepack")


class _Address(click.ParamType):  # type: ignore[type-arg]  # generic in newer ones only
    """Where to connect, as text; misuse if it has no form that is known."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from netd.client.framed_options import parse_address
        from netd.errors import ProtocolError

        try:
            parse_address(value)
        except ProtocolError as error:
            raise click.UsageError(f"{error} (ADDRESS is the first argument)", ctx) from None
        return value


def _known_codec(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """A codec's name; misuse if there is none of this name."""
    if name is None or name in CODECS:
        return name
    from netd.errors import ProtocolError
    from netd.wire.codecs import codec

    try:
        codec(name)
    except ProtocolError as error:
        raise click.UsageError(str(error), ctx) from None
    except (ImportError, AttributeError, ValueError) as error:
        raise click.UsageError(f"cannot find codec {name!r}: {error}", ctx) from None
    return name


def complete_codecs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """The built-in codecs, and those that packages bring along."""
    from importlib.metadata import entry_points

    from netd.wire.codecs import GROUP

    return [name for name in (*CODECS, *sorted(entry_points(group=GROUP).names)) if name.startswith(incomplete)]


_OPTIONS = (
    click.option(
        "--codec",
        metavar="NAME",
        callback=_known_codec,
        shell_complete=complete_codecs,
        help="raw, text, json, cbor, messagepack, or an installed one.  [default: raw, of connect text]",
    ),
    click.option("--framing", type=click.Choice(("length", "none")), default="length", help="none: the raw stream."),
    *WHO,
    click.option("--handshake-version", metavar="V", help="Send a handshake with this version."),
    click.option("--sign", metavar="FILE", type=FILE, help="Sign the handshake with this Ed25519 key."),
    click.option("--tls", is_flag=True, help="Use TLS."),
    *WAY,
)


dial_options = give(_OPTIONS)
"""Give a command the options of a connection."""


def address_argument(*, required: bool = False) -> Callable[[C], C]:
    """ADDRESS, the first argument."""
    if required:
        return click.argument("address", metavar="ADDRESS", type=_Address())
    return click.argument("address", metavar="[ADDRESS]", type=_Address(), default=DEFAULT)


def client_of(address: str, how: dict[str, Any], **more: Any) -> FramedClient:
    """The client that the options describe; they are taken out of `how`. What cannot be used of them is misuse."""
    with misuse():
        return _client_of(address, how, more)


def _client_of(address: str, how: dict[str, Any], more: dict[str, Any]) -> FramedClient:
    from pathlib import Path

    from netd.client.framed import FramedClient
    from netd.client.framed_wire import load_signer

    taken = {name: how.pop(name) for name in (*NAMES, "codec", "framing", "handshake_version", "sign", "tls")}
    options = client_options(taken, secure=taken["tls"]) | {
        "codec": taken["codec"] or "raw",
        "framing": taken["framing"],
        "version": taken["handshake_version"],
        "signer": load_signer(Path(taken["sign"]) if taken["sign"] else None),
    }
    return checked(FramedClient(address, **(options | more)))
