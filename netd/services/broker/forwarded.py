"""Who the client of a request is, where a proxy tells: X-Forwarded-For, Forwarded (RFC 7239). Pure.

    client, proxy 1, proxy 2 --> here         X-Forwarded-For: client, proxy 1          peer: proxy 2

Rules:
- only a trusted peer is listened to: anybody may write these headers;
- proxies append, so the list is read from its end: the last address that is not trusted is the client's. What stands
  before it was written by whoever has that address, and counts for nothing;
- what is no address ("unknown", "_hidden", rubbish) ends the reading: the client is then the last one that is known;
- where both headers are there and do not name the same client, one of them is the client's own: the request is refused.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from netd.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netd.section import IPNetwork

MAX_HOPS = 32
"""Addresses that are looked at, from the end."""
_PAIR = re.compile(r'\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s";,]*)\s*(;|,|$)')
_QUOTED = re.compile(r"\\(.)")
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::[0-9_A-Za-z]{1,8})?|([0-9.]+)(?::[0-9_A-Za-z]{1,8})?")


class Client(NamedTuple):
    """Who sent a request, and how to the first proxy that is not trusted."""

    host: str
    scheme: str | None
    """ "http" or "https"; None where nobody says."""


def client_of(peer: str, headers: Iterable[tuple[bytes, bytes]], networks: Sequence[IPNetwork]) -> Client:
    """The client of a request that came from `peer` ("192.0.2.7", or "unix:": trusted if anybody is).

    Raises ControlError where the headers contradict each other.
    """
    if not networks or not _trusted(peer, networks):
        return Client(peer, None)
    lists: list[list[str | None]] = []
    loose: list[str | None] = []
    standard: list[str | None] = []
    schemes: list[str] = []
    for name, value in headers:
        if name == b"x-forwarded-for":
            loose += [_address(each) for each in value.decode("latin-1").split(",")]
        elif name == b"forwarded":
            for element in _elements(value.decode("latin-1")):
                standard.append(_address(element["for"]) if "for" in element else None)
                schemes += [element["proto"]] if "proto" in element else []
        elif name == b"x-forwarded-proto":
            schemes += [each.strip() for each in value.decode("latin-1").split(",")]
    lists = [each for each in (loose, standard) if each]
    found = {_last_untrusted(peer, each, networks) for each in lists}
    if len(found) > 1:
        raise ControlError("cannot tell the client: X-Forwarded-For and Forwarded name different ones")
    scheme = schemes[-1].lower() if schemes else None
    return Client(found.pop() if found else peer, scheme if scheme in ("http", "https") else None)


def _last_untrusted(peer: str, hops: list[str | None], networks: Sequence[IPNetwork]) -> str:
    known = peer
    for hop in list(reversed(hops))[:MAX_HOPS]:
        if hop is None:
            return known
        known = hop
        if not _trusted(hop, networks):
            return hop
    return known


def _trusted(address: str, networks: Sequence[IPNetwork]) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True  # "unix:": its permissions let it in
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks)


def _address(text: str) -> str | None:
    """An IP address, with or without a port, IPv6 with or without brackets; None for anything else."""
    text = text.strip()
    found = _WITH_PORT.fullmatch(text)
    if found is not None:
        text = found[1] if found[1] is not None else found[2]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return str(ip).partition("%")[0]


def _elements(value: str) -> list[dict[str, str]]:
    """The elements of a Forwarded header (RFC 7239 section 4), in order; from what cannot be read on, one without
    anything in it, so that what is behind it counts and what is before does not."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while at < len(value):
        found = _PAIR.match(value, at)
        if found is None:
            comma = value.find(",", at)
            elements[-1] = {}
            if comma < 0:
                break
            elements.append({})
            at = comma + 1
            continue
        name, text = found[1].lower(), found[2]
        if text.startswith('"'):
            text = _QUOTED.sub(r"\1", text[1:-1])
        elements[-1][name] = text
        if found[3] == ",":
            elements.append({})
        at = found.end()
    return elements
