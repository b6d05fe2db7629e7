"""The head of a request -> what it asks for: the broker's paths, their parameters, and where a token stands. Pure.

    GET  /ws, /ws/{channel}, application path       Operations, Plain, App: WebSockets
    GET  /channels/{name}/events                    Events: server-sent events
    GET  /channels/{name}/history, .../presence     History, Presence
    POST /channels/{name}, /sessions/{target}       Publish, Direct
    GET  /healthz, /netd.js, /netd.d.ts             Health, Asset
    anything else                                   Application: the workers' business, whatever it is

Rules:
- paths are matched as they came, in bytes: nothing is normalised, so "..", "//" and "%2F" are what they are, and a
  channel's name is one segment, percent-encoded;
- everything below /ws/, /channels/ and /sessions/ is ours: what is none of the above there is nothing (404);
- a parameter that is not known, is given twice, or cannot be read is refused (400), so that nobody is misunderstood;
- two different tokens in one request are refused; each of them might be meant.

Left out: whether this Host and Origin are welcome (origins.py), who the client is (forwarded.py), what is allowed.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

import msgspec

from netd.errors import ControlError, NotFound
from netd.wire import plain
from netd.wire.messages import MAX_CHANNEL, MAX_NAME, MAX_TOKEN, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Headers: TypeAlias = "Iterable[tuple[bytes, bytes]]"

MAX_PARAMETERS: Final = 64
MAX_EVENT_CHANNELS: Final = 64
"""Channels of one event stream."""
MAX_TARGET: Final = 2 * MAX_NAME + 5
"""Characters of "tag:KEY=VALUE" at most."""
MAX_OFFSET: Final = 2**53 - 1
_ESCAPE = re.compile(rb"%(?:([0-9A-Fa-f]{2})|)")
_NUMBER = re.compile(r"[0-9]{1,16}")
_POSITION = re.compile(r"([!-~]{1,128}):([0-9]{1,16})")
_TOKEN_PREFIX, _TOKEN64_PREFIX = "netd.token.", "netd.token64."
_TOKEN_MARK: Final = b"netd.token"
"""What both begin with: a list without it is not taken apart, however long it is."""
_GET: Final = ("GET", "HEAD", "OPTIONS")
_SOCKET: Final = ("GET", "OPTIONS")
_POST: Final = ("POST", "OPTIONS")


class Unsupported(ControlError):
    """A body of a type that cannot be read."""

    kind = "unsupported"
    status = 415


@dataclass(frozen=True, slots=True)
class Operations:
    """A WebSocket that speaks the message vocabulary."""

    word: ClassVar = "operations"
    methods: ClassVar = _SOCKET


@dataclass(frozen=True, slots=True)
class Plain:
    """A WebSocket whose frames are a channel's messages."""

    word: ClassVar = "channel"
    methods: ClassVar = _SOCKET
    channel: bytes
    role: Literal["pub", "sub", "both"] = "both"
    echo: bool = False


@dataclass(frozen=True, slots=True)
class App:
    """A WebSocket whose frames are the application's."""

    word: ClassVar = "application"
    methods: ClassVar = _SOCKET


@dataclass(frozen=True, slots=True)
class Events:
    """A stream of what is said in channels; `recover` is a position in one of them, or one in each, as far as known."""

    word: ClassVar = "events"
    methods: ClassVar = _GET
    channels: tuple[bytes, ...]
    recover: Position | tuple[Position | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """The body is a message for a channel."""

    word: ClassVar = "publish"
    methods: ClassVar = _POST
    channel: bytes
    priority: int = 128
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What was said in a channel."""

    word: ClassVar = "history"
    methods: ClassVar = _GET
    channel: bytes
    since: Position | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """Who hears a channel."""

    word: ClassVar = "presence"
    methods: ClassVar = _GET
    channel: bytes


@dataclass(frozen=True, slots=True)
class Direct:
    """The body is a message for sessions: an id, "name:NAME" or "tag:KEY=VALUE"."""

    word: ClassVar = "direct"
    methods: ClassVar = _POST
    target: str
    priority: int = 128
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """Whether it serves."""

    word: ClassVar = "health"
    methods: ClassVar = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the client for browsers."""

    word: ClassVar = "asset"
    methods: ClassVar = _GET
    name: str


@dataclass(frozen=True, slots=True)
class Application:
    """The workers answer it, whatever its method is."""

    word: ClassVar = "workers"
    methods: ClassVar[tuple[str, ...]] = ()


Socket: TypeAlias = Operations | Plain | App
Route: TypeAlias = Socket | Events | Publish | History | Presence | Direct | Health | Asset | Application

HEALTH: Final = b"/healthz"
_FIXED: Mapping[bytes, Route] = {
    b"/ws": Operations(),
    HEALTH: Health(),
    b"/netd.js": Asset("netd.js"),
    b"/netd.d.ts": Asset("netd.d.ts"),
}


class Place:
    """What a path leads to. `methods` are those that it takes; () for the workers', who decide for themselves."""

    __slots__ = ("_kind", "_segment", "methods", "word")

    def __init__(self, kind: type[Route] | Route, segment: bytes = b"") -> None:
        self._kind = kind
        self._segment = segment
        self.methods: tuple[str, ...] = kind.methods
        self.word: str = kind.word
        """What it is called in metrics."""

    @property
    def application(self) -> bool:
        """Whether it is the workers' business."""
        return self._kind is _APPLICATION

    def route(self, query: bytes, headers: Headers = ()) -> tuple[Route, str | None]:
        """The route with its parameters, and the token of the query. Raises ControlError for what cannot be read."""
        kind = self._kind
        if kind is _APPLICATION:
            return _APPLICATION, None  # what its query means is nobody's business here
        given = Parameters(query)
        token = given.text("token")
        made = kind if not isinstance(kind, type) else _READERS[kind](self._segment, given, headers)
        given.finish()
        return made, token


_APPLICATION = Application()


def place(path: bytes, application: str = "/app") -> Place:
    """What a path (raw, without its query) leads to. Raises NotFound for what is ours and is not there."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return Place(fixed)
    if path == application.encode("ascii"):
        return Place(App())
    if path.startswith(b"/ws/"):
        segment = path[4:]
        if b"/" not in segment:
            return Place(Plain, segment)
    elif path.startswith(b"/channels/"):
        segment, slash, verb = path[10:].partition(b"/")
        if not slash:
            return Place(Publish, segment)
        if (kind := _VERBS.get(verb)) is not None:
            return Place(kind, segment)
    elif path.startswith(b"/sessions/"):
        segment = path[10:]
        if b"/" not in segment:
            return Place(Direct, segment)
    else:
        return Place(_APPLICATION)
    there = "/ws/NAME, /channels/NAME, its /events, /history and /presence, /sessions/ID"
    raise NotFound(f"cannot find {_shown(path)}: there are {there}; within a name, / is written %2F")


def check_application_path(path: str) -> str:
    """The path as it is. Raises ValueError for one that leads somewhere already."""
    try:
        free = place(path.encode(), "").application
    except NotFound:
        free = False
    if not free:
        raise ValueError(f"cannot have the application at {path!r}, which is the broker's own: write another path")
    return path


_VERBS: Mapping[bytes, type[Route]] = {b"events": Events, b"history": History, b"presence": Presence}


# --- parameters ------------------------------------------------------------------------------------------------------


class Parameters:
    """The query of a request. Every parameter is asked for; `finish` refuses those that nobody asked for."""

    def __init__(self, query: bytes) -> None:
        self._known: list[str] = []
        self._given: dict[str, list[str]] = {}
        if not query:
            return
        pairs = query.split(b"&")
        if len(pairs) > MAX_PARAMETERS:
            raise ControlError(f"cannot take a query of {len(pairs)} parameters: {MAX_PARAMETERS} is the most")
        for pair in pairs:
            if pair:
                key, _, value = pair.partition(b"=")
                name = _query_text(key, key)
                self._given.setdefault(name, []).append(_query_text(value, key))

    def all(self, name: str) -> list[str]:
        """Every value of one that may be repeated."""
        self._known.append(name)
        return self._given.pop(name, [])

    def text(self, name: str) -> str | None:
        found = self.all(name)
        if len(found) > 1:
            raise ControlError(f"cannot take {name!r} {len(found)} times: give it once", path=name)
        return found[0] if found else None

    def number(self, name: str, most: int) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text) or int(text) > most:
            raise ControlError(f"cannot take {name}={_short(text)}: it is a number from 0 to {most}", path=name)
        return int(text)

    def flag(self, name: str) -> bool:
        text = self.text(name)
        if text not in (None, "0", "1", "true", "false"):
            raise ControlError(f"cannot take {name}={_short(text)}: write 1 or 0", path=name)
        return text in ("1", "true")

    def finish(self) -> None:
        """Raise for what nobody asked for."""
        if self._given:
            name = next(iter(self._given))
            known = ", ".join(self._known)
            raise ControlError(f"cannot take the parameter {_short(name)} here: there are {known}", path=name[:64])


def channel_of(segment: bytes) -> bytes:
    """The name of a channel that a segment of a path stands for. Raises ControlError."""
    name = unescaped(segment)
    if not name:
        raise ControlError("cannot use a channel without a name")
    if len(name) > MAX_CHANNEL:
        raise ControlError(f"cannot use a channel of {len(name)} bytes: a name has {MAX_CHANNEL} at most")
    return name


def unescaped(text: bytes) -> bytes:
    """Percent-decoded bytes (RFC 3986 section 2.1). Raises ControlError for a % that is none."""
    return text if b"%" not in text else _ESCAPE.sub(_byte, text)


def _byte(found: re.Match[bytes]) -> bytes:
    if found[1] is None:
        raise ControlError(f"cannot read {_shown(found.string)}: % stands before two hexadecimal digits (write %25)")
    return bytes.fromhex(found[1].decode("ascii"))


def _query_text(text: bytes, name: bytes) -> str:
    """A parameter's name or value. What is wrong with it is told by its name: it may be a token."""
    try:
        return unescaped(text.replace(b"+", b" ")).decode()  # as forms and URLSearchParams write it
    except UnicodeDecodeError:
        raise ControlError(f"cannot read the parameter {_shown(name)}: it is no UTF-8") from None
    except ControlError:
        why = "% stands before two hexadecimal digits (write %25)"
        raise ControlError(f"cannot read the parameter {_shown(name)}: {why}") from None


def _plain(segment: bytes, given: Parameters, headers: Headers) -> Plain:
    role = given.text("role")
    if role not in (None, "pub", "sub", "both"):
        raise ControlError(f"cannot take role={_short(role)}: there are pub, sub and both", path="role")
    return Plain(channel_of(segment), role or "both", given.flag("echo"))  # type: ignore[arg-type]


def _events(segment: bytes, given: Parameters, headers: Headers) -> Events:
    names = [channel_of(segment)]
    for name in given.all("channel"):
        more = name.encode()
        if not 0 < len(more) <= MAX_CHANNEL:
            raise ControlError(f"cannot use a channel of {len(more)} bytes: a name has 1 to {MAX_CHANNEL}")
        names.append(more)
    channels = tuple(dict.fromkeys(names))
    if len(channels) > MAX_EVENT_CHANNELS:
        raise ControlError(f"cannot stream {len(channels)} channels at once: {MAX_EVENT_CHANNELS} is the most")
    # what the browser remembers is newer than what the page began with
    last = [value.decode("latin-1") for name, value in headers if name == b"last-event-id"]
    asked = given.text("last_event_id")
    return Events(channels, positions_of(last[-1] if last else asked, len(channels)))


def positions_of(text: str | None, count: int) -> Position | tuple[Position | None, ...] | None:
    """What the id of an event of so many channels says: a position in each, "-" for none. Raises ControlError."""
    if count == 1 or not text or "," not in text:
        return position_of(text)
    parts = text.split(",")
    if len(parts) != count:
        what = f"it tells of {len(parts)} channels, and {count} are asked for"
        raise ControlError(f"cannot go on after event {_short(text)}: {what}", path="last_event_id")
    return tuple(None if part == "-" else position_of(part or "nothing") for part in parts)


def position_of(text: str | None) -> Position | None:
    """What an event's id says: "EPOCH:OFFSET". Raises ControlError."""
    if not text:
        return None
    found = _POSITION.fullmatch(text)
    if found is None or int(found[2]) > MAX_OFFSET:
        raise ControlError(f"cannot go on after event {_short(text)}: an id is EPOCH:OFFSET", path="last_event_id")
    return Position(found[1], int(found[2]))


def _history(segment: bytes, given: Parameters, headers: Headers) -> History:
    epoch, offset = given.text("since_epoch"), given.number("since", MAX_OFFSET)
    if (epoch is None) != (offset is None) or epoch == "" or len(epoch or "") > MAX_NAME:
        raise ControlError("cannot tell since when: give both since_epoch and since, or none of them", path="since")
    since = None if epoch is None or offset is None else Position(epoch, offset)
    return History(channel_of(segment), since, given.number("limit", MAX_OFFSET))


def _publish(segment: bytes, given: Parameters, headers: Headers) -> Publish:
    return Publish(channel_of(segment), _priority(given), given.flag("ephemeral"))


def _presence(segment: bytes, given: Parameters, headers: Headers) -> Presence:
    return Presence(channel_of(segment))


def _direct(segment: bytes, given: Parameters, headers: Headers) -> Direct:
    try:
        target = unescaped(segment).decode()
    except UnicodeDecodeError:
        raise ControlError(f"cannot find the session {_shown(segment)}: it is no UTF-8") from None
    if not 0 < len(target) <= MAX_TARGET:
        raise ControlError('cannot find a session without a target: an id, "name:NAME" or "tag:KEY=VALUE"')
    return Direct(target, _priority(given), given.flag("ephemeral"))


def _priority(given: Parameters) -> int:
    priority = given.number("priority", 255)
    return 128 if priority is None else priority


_READERS: Mapping[Any, Callable[[bytes, Parameters, Headers], Route]] = {
    Plain: _plain,
    Events: _events,
    History: _history,
    Publish: _publish,
    Presence: _presence,
    Direct: _direct,
}


# --- tokens ----------------------------------------------------------------------------------------------------------


def token_of(query_token: str | None, headers: Headers) -> str | None:
    """The token of a request: of its query, of `Authorization: Bearer`, or among the subprotocols it asks for.

    Raises ControlError for an empty one, one beyond 8 KiB, and for different ones. Authorization in another scheme is
    somebody else's business (a proxy's).
    """
    found: list[str] = [] if query_token is None else [query_token]
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(credentials.strip().decode("latin-1"))
        elif name == b"sec-websocket-protocol" and _TOKEN_MARK in value:
            found += [token for each in value.split(b",") if (token := _of_subprotocol(each)) is not None]
    if not found:
        return None
    if len(set(found)) > 1:
        raise ControlError("cannot tell which token is meant: there are different ones; give one", path="token")
    token = found[0]
    if not token:
        raise ControlError("cannot use an empty token: leave it out", path="token")
    if len(token) > MAX_TOKEN:
        raise ControlError(f"cannot use a token of {len(token)} characters: {MAX_TOKEN} is the most", path="token")
    return token


def _of_subprotocol(each: bytes) -> str | None:
    name = each.strip(b" \t").decode("latin-1")
    if name.startswith(_TOKEN_PREFIX):
        return name[len(_TOKEN_PREFIX) :]
    if not name.startswith(_TOKEN64_PREFIX):
        return None
    text = name[len(_TOKEN64_PREFIX) :]
    try:
        return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (Base64Error, ValueError):
        raise ControlError(f"cannot read a token after {_TOKEN64_PREFIX!r}: it is no base64url of UTF-8") from None


# --- bodies ----------------------------------------------------------------------------------------------------------


def data_of(content_type: bytes, body: bytes) -> Any:
    """What a body says as a message: text of `text/*`, a value of application/json, else bytes.

    Raises ControlError for what is none, and Unsupported for text in another charset than UTF-8.
    """
    kind, _, parameters = content_type.lower().partition(b";")
    kind = kind.strip()
    if kind == b"application/json":
        try:
            value = msgspec.json.decode(body)
            plain.check(value)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            raise ControlError(f"cannot read the body as JSON: {error}") from None
        return value
    if not kind.startswith(b"text/"):
        return body
    charset = re.search(rb'charset\s*=\s*"?([^\s";]+)', parameters)
    if charset is not None and charset[1] not in (b"utf-8", b"utf8", b"us-ascii"):
        raise Unsupported(f"cannot read text in {_shown(charset[1])}: send UTF-8")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ControlError(f"cannot read the body as text: it is no UTF-8 at byte {error.start}") from None


def _shown(text: bytes) -> str:
    return repr(text[:80].decode("latin-1"))


def _short(text: str | None) -> str:
    return repr((text or "")[:80])
