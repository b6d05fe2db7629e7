"""What every room's config.py is made of: frozen sections, fields that say how a reload treats them, listeners.

Each field of a section is declared with `live`, `replace` or `fixed`:

    live     takes effect at once, on the running generation, disturbing nobody
    replace  takes a new generation of the service: prepared first, then committed
    fixed    cannot change without a restart: a reload that changes it is refused by name
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

OVERRIDE_FILE = "override.toml"
"""In the state directory: what was changed through the control API, and wins over every other source."""

_EFFECT = "x-reload"


class Effect(StrEnum):
    """How a reload treats a changed field."""

    LIVE = "live"
    REPLACE = "replace"
    FIXED = "fixed"


class Section(BaseModel):
    """A table of the configuration. Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


def live(default: Any = ..., **field: Any) -> Any:
    """A field that takes effect at once."""
    return _field(Effect.LIVE, default, field)


def replace(default: Any = ..., **field: Any) -> Any:
    """A field whose change takes a new generation of the service."""
    return _field(Effect.REPLACE, default, field)


def fixed(default: Any = ..., **field: Any) -> Any:
    """A field that cannot change while the daemon runs."""
    return _field(Effect.FIXED, default, field)


def _field(effect: Effect, default: Any, field: dict[str, Any]) -> Any:
    extra = {**field.pop("json_schema_extra", {}), _EFFECT: effect.value}
    if "default_factory" in field:
        return Field(json_schema_extra=extra, **field)
    return Field(default, json_schema_extra=extra, **field)


def effect_of(section: type[BaseModel], key: str) -> Effect:
    """How a reload treats `key` of `section`; a field declared without saying so is FIXED, the careful reading."""
    extra = section.model_fields[key].json_schema_extra
    return Effect(str(extra.get(_EFFECT, Effect.FIXED))) if isinstance(extra, dict) else Effect.FIXED


# --- listeners: one shape for every service --------------------------------------------------------------------------

_HOST_PORT = re.compile(r"^(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>\d{1,5})$")


def parse_address(address: str) -> tuple[str, int] | Path:
    """A listener's address: (host, port) for "127.0.0.1:3000" and "[::1]:3000", a Path for "unix:/run/x.sock".

    Raises ValueError with a sentence for the person who wrote it. Host names are refused: a listener is bound before
    any name service is sure to answer.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        if not path.is_absolute():
            raise ValueError(f"cannot listen on {address!r}: the path after unix: must be absolute")
        return path
    match = _HOST_PORT.match(address)
    if match is None:
        raise ValueError(f'cannot listen on {address!r}: write "127.0.0.1:3000", "[::1]:3000" or "unix:/run/x.sock"')
    host, port = match["v6"] or match["host"] or "", int(match["port"])
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        why = f"{host!r} is not an IP address (names are not looked up)"
        raise ValueError(f"cannot listen on {address!r}: {why}") from None
    if (version == 6) != (match["v6"] is not None):
        raise ValueError(f"cannot listen on {address!r}: an IPv6 address stands in brackets, an IPv4 address does not")
    if port > 65535:
        raise ValueError(f"cannot listen on {address!r}: port {port} is above 65535")
    return host, port


def _valid_address(address: str) -> str:
    parse_address(address)
    return address


Address = Annotated[str, AfterValidator(_valid_address)]

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def _valid_network(network: object) -> object:
    if not isinstance(network, str):
        return network
    try:
        return ipaddress.ip_network(network)
    except ValueError as error:
        try:
            meant = ipaddress.ip_network(network, strict=False)
        except ValueError:
            why = 'write "10.0.0.0/8", "192.0.2.7" or "2001:db8::/32"'
            raise ValueError(f"cannot use {network!r} as a network: {why}") from error
        raise ValueError(f"cannot use {network!r} as a network: it is an address within {str(meant)!r}") from error


Network = Annotated[IPNetwork, BeforeValidator(_valid_network), PlainSerializer(str)]
"""An IP network, or a single address: "10.0.0.0/8", "192.0.2.7", "2001:db8::/32"."""


class Tls(Section):
    """A certificate for a listener. Files that have changed are taken by the next connection, without a reload."""

    certificate: Path = replace()
    """PEM file with the certificate chain, leaf first."""
    key: Path = replace()
    """PEM file with the private key."""
    client_ca: Path | None = replace(None)
    """PEM file with the authorities whose certificates clients have to show (mutual TLS). None: none is asked for."""


class Listen(Section):
    """One `[[SERVICE.listen]]` entry; services add fields of their own in a subclass."""

    address: Address = replace()
    """Where to listen: "127.0.0.1:3000", "[::1]:3000", port 0 for any free port, or "unix:/run/x.sock"."""
    interface: str | None = replace(None, max_length=15)
    """Accept only what arrives on this network interface (SO_BINDTODEVICE)."""
    tls: Tls | None = replace(None)
    """Serve TLS with this certificate."""
    proxy_protocol: list[Network] = live([], max_length=64)
    """Proxies in front: connections from these networks have to begin with a PROXY protocol v2 header, and the client
    is whom it names. Connections from anywhere else are taken as they are. Empty: the protocol is not spoken."""
