"""Who the client of a request is, where a proxy tells: X-Forwarded-For, Forwarded (RFC 7239). Pure.

    client, proxy 1, proxy 2 --> here         X-Forwarded-For: client, proxy 1          peer: proxy 2

Rules:
- only a trusted peer is listened to: anybody may write these headers;
- proxies append, so the list is read from its end: the last address that is not trusted is the client's. What stands
  before it was written by whoever has that address, and counts for nothing;
- what is no address ("unknown", "_hidden", rubbish) ends the reading: the client is then the last one that is known;
- every comma ends an element, also between quotation marks, where none belongs: or a client that leaves some open would
  swallow what its proxy says of it;
- no more is looked at than may count: a header can be as long as a request's head;
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
_MAX_PAIRS = 16
"""Of one element of Forwarded; RFC 7239 knows four."""
_PAIR = re.compile(r'\s*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)\s*=\s*("(?:[^"\\]++|\\.)*+"|[^\s";]*+)\s*(?:;|$)')
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
    loose: list[str] = []
    standard: list[str] = []
    schemes: list[str] = []
    for name, value in headers:
        if name == b"x-forwarded-for":
            loose.append(value.decode("latin-1"))
        elif name == b"forwarded":
            standard.append(value.decode("latin-1"))
            schemes += [each["proto"] for each in map(_element, _last([standard[-1]])) if "proto" in each]
        elif name == b"x-forwarded-proto":
            schemes.append(value.decode("latin-1").rpartition(",")[2].strip())
    heard = [
        [_address(each) for each in _last(loose)],
        [_address(_element(each).get("for", "")) for each in _last(standard)],
    ]
    found = {_last_untrusted(peer, each, networks) for each in heard if each}
    if len(found) > 1:
        raise ControlError("cannot tell the client: X-Forwarded-For and Forwarded name different ones")
    scheme = schemes[-1].lower() if schemes else None
    return Client(found.pop() if found else peer, scheme if scheme in ("http", "https") else None)


def _last_untrusted(peer: str, hops: list[str | None], networks: Sequence[IPNetwork]) -> str:
    known = peer
    for hop in reversed(hops):
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


def _last(values: list[str]) -> list[str]:
    """The last elements of a list that is in several headers, in order: as many as count."""
    found: list[str] = []
    for value in reversed(values):
        found = [*value.rsplit(",", MAX_HOPS)[-MAX_HOPS:], *found]
        if len(found) >= MAX_HOPS:
            break
    return found[-MAX_HOPS:]


def _element(text: str) -> dict[str, str]:
    """The pairs of an element of Forwarded (RFC 7239 section 4); none of one that cannot be read to its end."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(text):
        found = _PAIR.match(text, at)
        if found is None or len(pairs) >= _MAX_PAIRS:
            return {}
        name, value = found[1].lower(), found[2]
        if value.startswith('"'):
            value = _QUOTED.sub(r"\1", value[1:-1])
        if name in pairs:
            return {}  # at most once (section 4)
        pairs[name] = value
        at = found.end()
    return pairs
