"""Which hosts and web pages are welcome: Host, Origin and CORS (the Fetch standard, RFC 6454). Pure.

    Hosts(patterns).allows(host, own)            Origins(patterns).allows(origin, site)
        "example.org", "*.example.org",              "https://example.org", "https://*.example.org:8443",
        "example.org:8443", "[2001:db8::1]", "*"     "null", "*"

Rules:
- a Host that is neither listed, nor localhost, nor the address that the client connected to is refused: a page whose
  name was made to point here (DNS rebinding) sends its own name, and nothing else tells it from a friend;
- a page of the same origin as what it asks is always welcome; others have to be listed. Whoever sends no Origin is no
  page, or asks for something that it may not read;
- names are compared without regard to case or a final dot, ports with their scheme's default filled in;
- "*" in a name stands for one or more labels, and never for none;
- an answer that depends on the Origin says so (Vary), whatever the Origin was.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?)\.?)(?::([0-9]{0,5}))?")
_NAME_PATTERN = re.compile(r"\*\.[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_FIELD_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_MAX_REQUESTED = 32


class Site(NamedTuple):
    """An origin in the sense of RFC 6454: scheme, host (lower case, IPv6 without brackets) and port."""

    scheme: str
    host: str
    port: int


def parse_host(text: str) -> tuple[str, int | None] | None:
    """ "Example.org:8443" -> ("example.org", 8443); None for what is no host (RFC 9110 section 7.2)."""
    found = _HOST.fullmatch(text.lower())
    if found is None:
        return None
    host = found[2]
    if host is None:
        try:
            host = str(ipaddress.IPv6Address(found[1]))
        except ValueError:
            return None
    port = int(found[3]) if found[3] else None
    return None if port is not None and port > 65535 else (host, port)


def parse_origin(text: str) -> Site | None:
    """ "https://Example.org" -> Site; None for what is none, "null" included."""
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark or not _SCHEME.fullmatch(scheme):
        return None
    parsed = parse_host(rest)
    if parsed is None:
        return None
    host, port = parsed
    return Site(scheme, host, _PORTS.get(scheme, 0) if port is None else port)


class _Names:
    """Names and wildcards of names."""

    def __init__(self) -> None:
        self.exact: set[tuple[str, str, int | None]] = set()
        self.ends: list[tuple[str, str, int | None]] = []

    def add(self, scheme: str, name: str, port: int | None) -> None:
        if name.startswith("*."):
            self.ends.append((scheme, name[1:], port))
        else:
            self.exact.add((scheme, name, port))

    def have(self, scheme: str, name: str, port: int | None) -> bool:
        if (scheme, name, port) in self.exact:
            return True
        return any(
            scheme == one and port == other and name.endswith(end) and len(name) > len(end)
            for one, end, other in self.ends
        )


def _named(text: str) -> tuple[str, int | None] | None:
    """A host of a pattern: `parse_host`, or one that begins with "*."."""
    if not text.startswith("*."):
        return parse_host(text)
    name, colon, port = text.lower().partition(":")
    if not _NAME_PATTERN.fullmatch(name) or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
        return None
    return name, int(port) if colon else None


def check_host_pattern(text: str) -> str:
    """The pattern as it is. Raises ValueError for what is none."""
    if text != "*" and _named(text) is None:
        raise ValueError(f'cannot use {text!r} as a host: write "example.org", "*.example.org", "[2001:db8::1]" or "*"')
    return text


def check_origin_pattern(text: str) -> str:
    """The pattern as it is. Raises ValueError for what is none."""
    if text in ("*", "null"):
        return text
    scheme, mark, rest = text.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme.lower()) or _named(rest) is None:
        raise ValueError(
            f'cannot use {text!r} as an origin: write "https://example.org", "https://*.example.org", "null" or "*"'
        )
    return text


class Hosts:
    """Which values of Host are answered."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._any = False
        self._names = _Names()
        for pattern in patterns:
            if pattern == "*":
                self._any = True
            elif (named := _named(pattern)) is not None:
                self._names.add("", *named)

    def allows(self, host: str, port: int | None, own: str | None) -> bool:
        """`own` is the address that the client connected to, where there is one."""
        if self._any or self._names.have("", host, None) or self._names.have("", host, port):
            return True
        if host == "localhost" or host.endswith(".localhost"):
            return True
        ip = _address(host)
        return ip is not None and (ip.is_loopback or (own is not None and ip == _address(own.partition("%")[0])))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """What is written so; an IPv4 address in IPv6 clothes (::ffff:127.0.0.1) is the IPv4 address."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


class Origins:
    """Which pages may use this."""

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = list(patterns)
        self.any = "*" in patterns
        self._null = "null" in patterns
        self._names = _Names()
        for pattern in patterns:
            scheme, mark, rest = pattern.partition("://")
            if mark and (named := _named(rest)) is not None:
                scheme = scheme.lower()
                name, port = named
                self._names.add(scheme, name, _PORTS.get(scheme, 0) if port is None else port)

    def allows(self, origin: str, site: Site | None) -> bool:
        """Whether a page of this origin may ask `site`."""
        if self.any:
            return True
        if origin == "null":
            return self._null
        page = parse_origin(origin)
        return page is not None and (page == site or self._names.have(page.scheme, page.host, page.port))


def site_of(scheme: str, host: str, port: int | None) -> Site:
    """What a request is for, as an origin."""
    return Site(scheme, host, _PORTS.get(scheme, 0) if port is None else port)


def written(site: Site) -> str:
    """As an origin is written, its port always said."""
    host = f"[{site.host}]" if ":" in site.host else site.host
    return f"{site.scheme}://{host}:{site.port}"


# --- CORS ------------------------------------------------------------------------------------------------------------

_EXPOSED = b"content-length, etag, retry-after, www-authenticate"


def cors_headers(origins: Origins, origin: bytes | None) -> list[tuple[bytes, bytes]]:
    """What an answer to a page says; `origin` was allowed. Nothing with credentials: tokens are sent by hand."""
    if origin is None:
        return [] if origins.any else [(b"vary", b"Origin")]
    allowed = [(b"access-control-allow-origin", b"*" if origins.any else origin)]
    return [*allowed, (b"access-control-expose-headers", _EXPOSED), *([] if origins.any else [(b"vary", b"Origin")])]


def preflight(
    headers: Iterable[tuple[bytes, bytes]], methods: Sequence[str], max_age: int
) -> list[tuple[bytes, bytes]] | None:
    """What to say to a page that asks what it may ask, besides `cors_headers`; None: it is no preflight.

    `methods` are those that there are; (): any. Headers that it asks for are granted as far as they are names: there is
    none that would be dangerous to read here.
    """
    asked: bytes | None = None
    requested: list[bytes] = []
    for name, value in headers:
        if name == b"access-control-request-method":
            asked = value
        elif name == b"access-control-request-headers":
            requested += [each.strip(b" \t").lower() for each in value.split(b",")]
    if asked is None:
        return None
    granted = [each for each in dict.fromkeys(requested) if _FIELD_NAME.fullmatch(each)][:_MAX_REQUESTED]
    allowed = ", ".join(methods).encode("ascii") if methods else asked if _METHOD.fullmatch(asked) else b"GET"
    said = [(b"access-control-allow-methods", allowed), (b"access-control-max-age", b"%d" % max_age)]
    if granted:
        said.append((b"access-control-allow-headers", b", ".join(granted)))
    varies = b"Access-Control-Request-Method, Access-Control-Request-Headers"
    return [*said, (b"vary", varies)]
