"""How `netctl framed` reaches a framed server: the options that its client commands share.

Imports click only; the client is imported when a command runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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
            raise click.UsageError(str(error), ctx) from None
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


def complete_interfaces(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """This machine's network interfaces."""
    import socket

    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


_FILE = click.Path(exists=True, dir_okay=False)

_OPTIONS = (
    click.option(
        "--codec",
        metavar="NAME",
        callback=_known_codec,
        shell_complete=complete_codecs,
        help="raw, text, json, cbor, messagepack, or an installed one.  [default: raw]",
    ),
    click.option("--framing", type=click.Choice(("length", "none")), default="length", help="none: the raw stream."),
    click.option(
        "--token", metavar="SECRET", envvar="NETCTL_TOKEN", help="What permits operations.  [env: NETCTL_TOKEN]"
    ),
    click.option("--name", metavar="NAME", help="The session's name."),
    click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag of the handshake (several)."),
    click.option("--handshake-version", metavar="V", help="Send a handshake with this version."),
    click.option("--sign", metavar="FILE", type=_FILE, help="Sign the handshake with this Ed25519 key."),
    click.option("--tls", is_flag=True, help="Use TLS."),
    click.option("--ca", metavar="FILE", type=_FILE, help="Who may sign the server's certificate (PEM)."),
    click.option("--server-name", metavar="NAME", help="Whose certificate it has to be."),
    click.option("--cert", metavar="FILE", type=_FILE, help="Our own certificate (PEM)."),
    click.option("--cert-key", metavar="FILE", type=_FILE, help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Accept any certificate."),
    click.option(
        "--interface", metavar="NAME", shell_complete=complete_interfaces, help="Leave by this network interface."
    ),
    click.option("--bind", metavar="ADDRESS", help="Connect from this address, or ADDRESS:PORT."),
    click.option(
        "--timeout",
        type=click.FloatRange(0.01, 3600),
        default=10.0,
        metavar="SECONDS",
        help="For connecting, and answers.",
    ),
)


def dial_options(command: C) -> C:
    """Give a command the options of a connection."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def address_argument(*, required: bool = False) -> Callable[[C], C]:
    """ADDRESS, the first argument."""
    if required:
        return click.argument("address", metavar="ADDRESS", type=_Address())
    return click.argument("address", metavar="[ADDRESS]", type=_Address(), default=DEFAULT)


def client_of(address: str, how: dict[str, Any], **more: Any) -> FramedClient:
    """The client that the options describe; they are taken out of `how`. What cannot be used of them is misuse."""
    from netd.errors import ProtocolError

    try:
        return _client_of(address, how, more)
    except ProtocolError as error:
        if error.origin != "local":
            raise
        raise click.UsageError(str(error)) from None


def _client_of(address: str, how: dict[str, Any], more: dict[str, Any]) -> FramedClient:
    from pathlib import Path

    from netd.client.framed import FramedClient
    from netd.client.framed_connection import load_signer
    from netd.client.framed_link import tls_context

    taken = {name: how.pop(name) for name in _NAMES}
    options: dict[str, Any] = {
        "codec": taken["codec"] or "raw",
        "framing": taken["framing"],
        "token": taken["token"],
        "name": taken["name"],
        "tags": tags_of(taken["tags"]),
        "version": taken["handshake_version"],
        "signer": load_signer(Path(taken["sign"]) if taken["sign"] else None),
        "interface": taken["interface"],
        "connect_timeout": taken["timeout"],
        "answer_timeout": taken["timeout"],
        "tls": _tls(taken),
        "linger": min(5.0, taken["timeout"]),
    }
    if taken["bind"]:
        options["local_address"], options["local_port"] = _place(taken["bind"])
    client = FramedClient(address, **(options | more))
    if taken["ca"] or taken["cert"]:
        tls_context(client.options)  # here a file that cannot be used is misuse; later, a connection that fails
    return client


_NAMES = (
    *("codec", "framing", "token", "name", "tags", "handshake_version", "sign", "tls", "ca", "server_name"),
    *("cert", "cert_key", "insecure", "interface", "bind", "timeout"),
)


def tags_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """ "KEY=VALUE" as a mapping."""
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"cannot use tag {pair!r}: write KEY=VALUE")
        tags[key] = value
    return tags


def _tls(taken: dict[str, Any]) -> Any:
    """--tls, or any option that only makes sense with it."""
    from pathlib import Path

    from netd.client.framed_options import ClientTls

    if not any(taken[name] for name in ("tls", "ca", "cert", "server_name", "insecure")):
        if taken["cert_key"]:
            raise click.UsageError("--cert-key goes with --cert")
        return None
    files = {name: Path(taken[option]) for name, option in _FILES.items() if taken[option]}
    return ClientTls(**files, server_name=taken["server_name"], verify=not taken["insecure"])


_FILES = {"ca": "ca", "certificate": "cert", "key": "cert_key"}


def _place(text: str) -> tuple[str | None, int]:
    """--bind: an address, with a port or without."""
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], 0
    if not colon or (":" in host and not host.startswith("[")):  # an IPv4 address, or a bare IPv6 one
        return text, 0
    if not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"cannot bind to {text!r}: write ADDRESS or ADDRESS:PORT")
    return host.strip("[]") or None, int(port)


def run(function: Callable[..., Awaitable[int]], *arguments: Any, **how: Any) -> None:
    """Run it in a Trio loop of its own, and end with the exit code that it returns."""
    from netd.cli.options import run_loop

    code = run_loop(lambda: function(*arguments, **how))
    click.get_current_context().exit(code)


def warn(sentence: str) -> None:
    """A remark for the person, beside the output."""
    from netd.cli.output import printable

    click.echo(f"netctl: {printable(sentence)}", err=True)
    sys.stderr.flush()
