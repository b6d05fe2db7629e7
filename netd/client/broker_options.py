"""What a BrokerClient can be told besides what every client can (options.py): its URL and its WebSocket. Pure data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_plus, urlsplit

from netd.client.options import ClientOptions, SharedOptions, Tcp, Unix, local_error

DEFAULT_URL = "ws://127.0.0.1:3000"
OPERATIONS = "/ws"
"""The path of operations on a broker."""
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message, inclusive."""

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE = re.compile(r"[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?|")  # RFC 9110 section 5.5
_SECRETS = re.compile(r"^([a-z]*://)?[^/?#]*(?=@)|(\?).*", re.DOTALL | re.IGNORECASE)
"""Where a URL that cannot be used may have a password or a token: before the host, or in the query."""
_TARGET = re.compile(r"[\x21-\x7e]*")
_OURS = ("host", "connection", "upgrade", "authorization")
_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}


@dataclass(frozen=True)
class Url:
    """Where a broker is: a ws or wss URL (RFC 6455 section 3), or a Unix socket."""

    secure: bool
    peer: Tcp | Unix
    target: str
    """Path and query, as they stand in the request."""

    @property
    def host(self) -> str:
        """Whom the request is for (RFC 9110 section 7.2): a Unix socket is of this machine."""
        return "localhost" if isinstance(self.peer, Unix) else str(self.peer)

    def __str__(self) -> str:
        """As people are shown it: without the token that its query may have."""
        target = _without_token(self.target)
        if isinstance(self.peer, Unix):
            return str(self.peer) if target == OPERATIONS else f"{self.peer} {target}"
        return f"{'wss' if self.secure else 'ws'}://{self.peer}{target}"


def parse_url(text: str) -> Url:
    """ "ws://HOST:PORT", "wss://HOST/path?query", "HOST:PORT", "unix:/run/x.sock"; http and https mean ws and wss.
    Without a path: /ws.

    ProtocolError with a sentence for the person who wrote it.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or "\0" in path:
            raise local_error(f"cannot connect to {text!r}: a path has to follow")
        return Url(False, Unix(Path(path)), OPERATIONS)
    shown = _SECRETS.sub(r"\1\2...", text)
    if not text.isprintable() or " " in text:  # urlsplit would pass over line ends and tabs
        raise local_error(f"cannot connect to {shown!r}: a URL has no such characters")
    try:
        parts = urlsplit(text if "://" in text else f"ws://{text}")
        port = parts.port
    except ValueError as error:
        raise local_error(f"cannot connect to {shown!r}: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise local_error(f'cannot connect to {shown!r}: write "ws://HOST:PORT", "wss://HOST:PORT" or "unix:/PATH"')
    if "@" in parts.netloc:
        raise local_error("cannot connect to a URL with a user's name in it: give the token as token=...")
    if "#" in text:
        raise local_error(f"cannot connect to {shown!r}: a WebSocket's URL has no fragment (#)")
    target = (parts.path if parts.path not in ("", "/") else OPERATIONS) + (f"?{parts.query}" if parts.query else "")
    if not _TARGET.fullmatch(target) or not _TARGET.fullmatch(parts.netloc):
        raise local_error(f"cannot connect to {shown!r}: write what is not ASCII as %XX")
    peer = Tcp(parts.hostname, port or _PORTS[parts.scheme])
    return Url(parts.scheme in ("wss", "https"), peer, target)


class BrokerOptions(SharedOptions, total=False):
    """The keywords of BrokerClient; Options says what each means and its default."""

    format: Literal["json", "messagepack"]
    max_message: int
    token_in: Literal["hello", "header"]
    headers: Mapping[str, str]
    write_timeout: float


@dataclass(frozen=True, kw_only=True)
class Options(ClientOptions):
    """Every option of a BrokerClient."""

    format: Literal["json", "messagepack"] = "json"
    """json: text messages; messagepack: binary ones, in which bytes need no base64."""
    max_message: int = MAX_MESSAGE
    """Largest message either way. A longer one is refused before it is sent; one from the peer ends the connection."""
    token_in: Literal["hello", "header"] = "hello"
    """Where the token is shown: in the hello, or in the Authorization header of the request that opens the WebSocket,
    so that who may not connect is told at once."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """More headers of that request (a proxy between may want some)."""
    write_timeout: float = 20.0
    """A peer that takes nothing of what waits for it for so long counts as lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("max_message")
        if not self.write_timeout > 0:
            raise local_error(f"cannot use write_timeout={self.write_timeout!r}: it has to be above 0")
        if self.format not in ("json", "messagepack"):
            raise local_error(f"cannot use format={self.format!r}: it is json or messagepack")
        if self.token_in not in ("hello", "header"):
            raise local_error(f"cannot use token_in={self.token_in!r}: it is hello or header")
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(value):
                raise local_error(f"cannot use header {name!r}: such characters may not stand in one")
            if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
                raise local_error(f"cannot use header {name!r}: it is the WebSocket's own")


def agreed(url: str | Url, options: Options) -> tuple[Url, Options]:
    """The two as they go together: wss asks for TLS, and TLS for wss."""
    where = parse_url(url) if isinstance(url, str) else url
    if where.secure and not options.tls:
        return where, replace(options, tls=True)
    if options.tls and not where.secure:
        raise local_error(f"cannot use TLS with {str(where)!r}: write wss://HOST:PORT")
    return where, options


def _without_token(target: str) -> str:
    """The target with dots for a token, which the daemon takes as a parameter too."""
    path, mark, query = target.partition("?")
    parts = (part.partition("=") for part in query.split("&"))
    return (
        path
        + mark
        + "&".join(
            f"{name}=..." if unquote_plus(name) == "token" else name + equals + value for name, equals, value in parts
        )
    )


def bearer(token: str) -> str:
    """The value of an Authorization header. ProtocolError for what cannot stand in one."""
    if not token or not _VALUE.fullmatch(token):
        raise local_error("cannot show this token in a header: it has characters that may not be there; use the hello")
    return f"Bearer {token}"
