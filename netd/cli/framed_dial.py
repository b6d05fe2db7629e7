"""How `netctl framed` reaches a framed server: the options that its client commands share, and what DATA means.

Imports click only; the client is imported when a command runs.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.client.framed import FramedClient

C = TypeVar("C", bound="Callable[..., Any]")

DEFAULT = "127.0.0.1:9000"
_STRUCTURED = ("json", "cbor", "messagepack")

_OPTIONS = (
    click.option("--codec", default=None, metavar="NAME", help="raw, text, json, cbor, messagepack.  [default: raw]"),
    click.option("--framing", type=click.Choice(("length", "none")), default="length", help="none: the raw stream."),
    click.option(
        "--token", metavar="SECRET", envvar="NETCTL_TOKEN", help="What permits operations.  [env: NETCTL_TOKEN]"
    ),
    click.option("--name", metavar="NAME", help="The session's name."),
    click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag of the handshake (several)."),
    click.option("--handshake-version", metavar="V", help="Send a handshake with this version."),
    click.option("--sign", metavar="FILE", type=click.Path(), help="Sign the handshake with this Ed25519 key."),
    click.option("--tls", is_flag=True, help="Use TLS."),
    click.option("--ca", metavar="FILE", type=click.Path(), help="Who may sign the server's certificate (PEM)."),
    click.option("--server-name", metavar="NAME", help="Whose certificate it has to be."),
    click.option("--cert", metavar="FILE", type=click.Path(), help="Our own certificate (PEM)."),
    click.option("--cert-key", metavar="FILE", type=click.Path(), help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Accept any certificate."),
    click.option("--interface", metavar="NAME", help="Leave by this network interface."),
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
        return click.argument("address", metavar="ADDRESS")
    return click.argument("address", metavar="[ADDRESS]", default=DEFAULT)


def client_of(address: str, how: dict[str, Any], **more: Any) -> FramedClient:
    """The client that the options describe; they are taken out of `how`."""
    from pathlib import Path

    from netd.client.framed import FramedClient

    taken = {name: how.pop(name) for name in _NAMES}
    options: dict[str, Any] = {
        "codec": taken["codec"] or "raw",
        "framing": taken["framing"],
        "token": taken["token"],
        "name": taken["name"],
        "tags": tags_of(taken["tags"]),
        "version": taken["handshake_version"],
        "signer": Path(taken["sign"]) if taken["sign"] else None,
        "interface": taken["interface"],
        "connect_timeout": taken["timeout"],
        "answer_timeout": taken["timeout"],
        "tls": _tls(taken),
        "linger": min(5.0, taken["timeout"]),
    }
    if taken["bind"]:
        options["local_address"], options["local_port"] = _place(taken["bind"])
    return FramedClient(address, **(options | more))


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


# --- data -------------------------------------------------------------------------------------------------------------


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


def warn(sentence: str) -> None:
    """A remark for the person, beside the output."""
    from netd.cli.output import printable

    click.echo(f"netctl: {printable(sentence)}", err=True)
    sys.stderr.flush()
