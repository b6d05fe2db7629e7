"""How netctl reaches a server as a client of it: the options that `netctl framed` and `netctl broker` share.

Imports click only; the client is imported when a command runs.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from netd.client.broker import BrokerClient
    from netd.client.broker_plain import PlainSocket
    from netd.client.framed import FramedClient

A = TypeVar("A", "BrokerClient", "FramedClient", "PlainSocket")
C = TypeVar("C", bound="Callable[..., Any]")


def complete_interfaces(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """This machine's network interfaces."""
    import socket

    return [name for _, name in socket.if_nameindex() if name.startswith(incomplete)]


FILE = click.Path(exists=True, dir_okay=False)

WHO = (
    click.option(
        "--token", metavar="SECRET", envvar="NETCTL_TOKEN", help="What permits operations.  [env: NETCTL_TOKEN]"
    ),
    click.option("--name", metavar="NAME", help="The session's name."),
    click.option("--tag", "tags", metavar="KEY=VALUE", multiple=True, help="A tag of the session (several)."),
)
"""Who we are. `token`, `name`, `tags`."""

WAY = (
    click.option("--ca", metavar="FILE", type=FILE, help="Who may sign the server's certificate (PEM)."),
    click.option("--server-name", metavar="NAME", help="Whose certificate it has to be."),
    click.option("--cert", metavar="FILE", type=FILE, help="Our own certificate (PEM)."),
    click.option("--cert-key", metavar="FILE", type=FILE, help="Its private key (PEM)."),
    click.option("--insecure", is_flag=True, help="Accept any certificate."),
    click.option(
        "--interface", metavar="NAME", shell_complete=complete_interfaces, help="Leave by this network interface."
    ),
    click.option("--bind", metavar="ADDRESS", help="Connect from this address, or ADDRESS:PORT."),
    click.option(
        "--timeout",
        type=click.FloatRange(0.01, 3600),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="For connecting, and answers.",
    ),
)
"""How to get there. `ca`, `server_name`, `cert`, `cert_key`, `insecure`, `interface`, `bind`, `timeout`."""

NAMES = (
    *("token", "name", "tags", "ca", "server_name", "cert", "cert_key", "insecure", "interface", "bind", "timeout"),
)


def give(options: Sequence[Callable[[C], C]]) -> Callable[[C], C]:
    """A decorator that gives a command these options, in this order."""

    def decorate(command: C) -> C:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@contextmanager
def misuse() -> Iterator[None]:
    """What our own caller got wrong is misuse of the command line."""
    from netd.errors import ProtocolError

    try:
        yield
    except ProtocolError as error:
        if error.origin != "local":
            raise
        raise click.UsageError(str(error)) from None


def checked(client: A) -> A:
    """The client, if its TLS files can be used: now that is misuse, later it would be a connection that fails."""
    from netd.client.link import tls_context
    from netd.client.options import ClientTls

    tls = client.options.tls
    if isinstance(tls, ClientTls) and (tls.ca or tls.certificate):
        tls_context(client.options)
    return client


def client_options(taken: dict[str, Any], *, secure: bool = False) -> dict[str, Any]:
    """The options of a client that WHO and WAY stand for. `secure`: TLS is wanted, whatever they say."""
    options: dict[str, Any] = {
        "token": taken["token"],
        "name": taken["name"],
        "tags": tags_of(taken["tags"]),
        "interface": taken["interface"],
        "connect_timeout": taken["timeout"],
        "answer_timeout": taken["timeout"],
        "tls": _tls(taken, secure),
        "linger": min(5.0, taken["timeout"]),
    }
    if taken["bind"]:
        options["local_address"], options["local_port"] = place_of(taken["bind"])
    return options


def tags_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """ "KEY=VALUE" as a mapping."""
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"cannot use tag {pair!r}: write KEY=VALUE")
        tags[key] = value
    return tags


def _tls(taken: dict[str, Any], secure: bool) -> Any:
    """What TLS is to be like; None: none is wanted."""
    from pathlib import Path

    from netd.client.options import ClientTls

    if not secure and not any(taken[name] for name in ("ca", "cert", "server_name", "insecure")):
        if taken["cert_key"]:
            raise click.UsageError("cannot use --cert-key without --cert")
        return None
    files = {name: Path(taken[option]) for name, option in _FILES.items() if taken[option]}
    return ClientTls(**files, server_name=taken["server_name"], verify=not taken["insecure"])


_FILES = {"ca": "ca", "certificate": "cert", "key": "cert_key"}


def place_of(text: str) -> tuple[str | None, int]:
    """--bind: an address, with a port or without."""
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], 0
    if not colon or (":" in host and not host.startswith("[")):  # an IPv4 address, or a bare IPv6 one
        return text, 0
    if not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
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
