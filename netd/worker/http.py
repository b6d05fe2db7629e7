"""HTTP as a worker's handler sees it: Request in, Response out. Pure.

    request.method, request.path, request.headers["content-type"], request.json()
    Response(404, "Not Found")    Response(body={"token": token})    Response(200, data, {"content-type": "image/png"})

Rules:
- nothing is decoded that the client may have meant otherwise: `url`, `path` and `query` are as they came, percent signs
  and all (urllib.parse.unquote and parse_qs read them);
- names of header fields have no case. One that came several times reads as one value, joined as RFC 9110 section 5.3
  allows; `headers.all(name)` has each;
- what a handler returns becomes a Response: text, bytes, a JSON value (dict or list), or None, which is 200 "OK";
- a response that HTTP cannot say (a line break in a header field, status 99) is a ValueError as if the handler had
  raised it: the client gets 500 and the log has it. How a response is framed (Content-Length, Connection ...) is the
  daemon's business.

Left out: cookies, forms, routing, streaming. Any library for them works on these values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

Body = str | bytes | dict[str, Any] | list[Any] | None
"""What a response's body may be: text (UTF-8), bytes, or a value that is sent as JSON."""
Pairs = Iterable[tuple[str | bytes, str | bytes]]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
_IN_A_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")  # RFC 9110 section 5.5; obs-text is let through
_FRAMING = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"trailer", b"upgrade"})
_NO_BODY = frozenset({204, 205, 304})  # RFC 9110 sections 15.3.5, 15.3.6, 15.4.5


class Headers(Mapping[str, str]):
    """Header fields; names have no case, and iterating gives them in lower case. Text is ISO-8859-1, as bytes came."""

    __slots__ = ("_fields", "pairs")

    def __init__(self, pairs: Pairs | Mapping[str, str] = ()) -> None:
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        self.pairs = tuple((_text(name).lower(), _text(value)) for name, value in given)
        """All of them in the order they came, names in lower case."""
        self._fields: dict[str, list[str]] = {}
        for name, value in self.pairs:
            self._fields.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        """The value; of several, one text with ", " between them (cookie: "; ")."""
        values = self._fields[name.lower()]
        return values[0] if len(values) == 1 else ("; " if name.lower() == "cookie" else ", ").join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def all(self, name: str) -> list[str]:
        """Each value that came under this name, in order; none: an empty list."""
        return list(self._fields.get(name.lower(), ()))

    def __repr__(self) -> str:
        return f"Headers({list(self.pairs)!r})"


class Request:
    """What a client asked over HTTP."""

    __slots__ = ("body", "client", "headers", "http_version", "method", "path", "query", "scheme", "url")

    def __init__(
        self,
        method: str,
        url: str,
        headers: Pairs | Mapping[str, str] = (),
        body: bytes = b"",
        *,
        client: str = "",
        scheme: str = "http",
        http_version: str = "1.1",
    ) -> None:
        self.method = method
        """"GET", "POST" ..., as it came: methods have case."""
        self.url = url
        """The target as it came: path and query, "/rooms/7?full=1"."""
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body = body
        self.client = client
        """The client's address, "192.0.2.7:51234"; behind a trusted proxy, whom that names."""
        self.scheme = scheme
        """"http" or "https"."""
        self.http_version = http_version
        self.path, _, self.query = _origin_form(url).partition("?")
        # path: "/rooms/7"; query: "full=1", without the question mark

    @property
    def pathname(self) -> str:
        """Another name of `path`."""
        return self.path

    @property
    def search(self) -> str:
        """The query with its question mark, "" where there is none."""
        return f"?{self.query}" if self.query else ""

    @property
    def text(self) -> str:
        """The body as UTF-8. UnicodeDecodeError, a ValueError, if it is not."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON, whatever its content type. ValueError if it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"cannot read the body of {self.method} {self.path} as JSON: {error}") from None

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.url} from {self.client or 'nowhere'}, {len(self.body)} bytes>"


class Response:
    """What a client is answered."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int = 200, body: Body = b"", headers: Mapping[str, str] | Pairs = ()) -> None:
        """`headers`: a mapping, or pairs where a name stands several times (set-cookie).

        Without a content-type among them it is text/plain (UTF-8) for text, application/json for a dict or a list,
        and application/octet-stream for bytes.
        """
        self.status = status
        self.body = body
        self.headers = headers

    @classmethod
    def of(cls, result: Response | Body) -> Response:
        """What a handler returned, as a response. TypeError for anything else."""
        if isinstance(result, Response):
            return result
        if result is None:
            return cls(200, "OK")
        if isinstance(result, str | bytes | bytearray | memoryview | dict | list):
            return cls(200, result if isinstance(result, str | dict | list) else bytes(result))
        raise TypeError(
            f"cannot answer with {type(result).__name__}: http_request returns a Response, str, bytes, dict, list, None"
        )

    def parts(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, header fields and body as they are sent. ValueError or TypeError for what HTTP cannot say."""
        status = self.status
        if type(status) is not int or not 200 <= status <= 599:
            raise ValueError(f"cannot answer with status {status!r}: it is a number from 200 to 599")
        body, kind = _encoded(self.body)
        if status in _NO_BODY:
            body, kind = b"", b""
        given = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        fields = [_field(name, value) for name, value in given]
        lengths = {value for name, value in fields if name == b"content-length"}
        if lengths - {b"%d" % len(body)}:
            raise ValueError(
                f"cannot answer with content-length {', '.join(map(_text, sorted(lengths)))}: the body has {len(body)} "
                "bytes; leave the header out"
            )
        fields = [(name, value) for name, value in fields if name != b"content-length"]
        if kind and not any(name == b"content-type" for name, _ in fields):
            fields.append((b"content-type", kind))
        return status, fields, body

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def _origin_form(url: str) -> str:
    """Path and query; of the absolute form, in which proxies are asked, what is behind the host (RFC 9112, 3.2)."""
    if url.startswith("/"):
        return url  # not by urllib: "//a/b" is a path here, and urlsplit takes it for a host
    scheme, found, rest = url.partition("://")
    if not found or "?" in scheme:
        return url  # "*" of OPTIONS
    at = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    return rest[at:] if rest[at : at + 1] == "/" else f"/{rest[at:]}"


def _encoded(body: Body) -> tuple[bytes, bytes]:
    """A body's bytes, and its content type if nobody says another."""
    if body is None:
        return b"", b""
    if isinstance(body, str):
        return body.encode(), b"text/plain; charset=utf-8"
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), b"application/octet-stream" if body else b""
    if isinstance(body, dict | list):
        return msgspec.json.encode(body), b"application/json"
    raise TypeError(f"cannot send {type(body).__name__} as a body: it is str, bytes, dict or list")


def _field(name: str | bytes, value: str | bytes) -> tuple[bytes, bytes]:
    try:
        raw, content = _raw(name).lower(), _raw(value).strip(b" \t")
    except UnicodeEncodeError:
        raise ValueError(f"cannot send the header {name!r}: {value!r}: it has characters beyond ISO-8859-1") from None
    if _TOKEN.fullmatch(raw) is None or _IN_A_VALUE.fullmatch(content) is None:
        raise ValueError(f"cannot send the header {name!r}: {value!r}: control characters, or no name of a header")
    if raw in _FRAMING:
        raise ValueError(f"cannot send the header {name!r}: how a response is framed is the daemon's business")
    return raw, content


def _raw(value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise TypeError(f"cannot send {value!r} in a header: it is {type(value).__name__}, not str")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
