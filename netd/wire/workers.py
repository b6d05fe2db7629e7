"""What the daemon and its application workers say to each other, and its specification. Sans-IO; msgspec structs.

    message = decode_from_worker(payload)      message = decode_to_worker(payload)      data = encode(message)

TRANSPORT. A Unix stream socket. Each message is one frame: a length (u32, big-endian), then one MessagePack map whose
`type` says which message it is. Fields may stand in any order, unknown ones are passed over, and what is marked ? may
be left out. Of the two kinds of text, str is text and bin is bytes, also in `data`: a text frame of a client arrives
as str, a binary one as bin, and what a worker sends as str goes out as text. CHANNELS ARE ALWAYS BIN: a channel that
somebody calls by a text is the UTF-8 of it. Times are seconds. Both sides read always, whatever they have to write.

THE BEGINNING. The socket is that of [worker] socket (/run/netd/worker.sock); a worker that the daemon starts itself
finds its path in NETD_WORKER_SOCKET. The worker says hello within `hello_timeout` of [worker] and waits for the
welcome; before it, nothing else is allowed. Whoever is refused gets a goodbye in its place. In every version of this
protocol hello and welcome are called so and say `version`, whatever else stands in them.

    > hello      version (1), name (need not be unique), pid, handlers [any of "http_request", "session_opened",
                 "message", "session_closed"], sessions? (of how many sessions it runs handlers at once, 64),
                 requests? (how many HTTP requests it runs at once, 64), library? (who says it, "netd.worker 0.1.0")
    < welcome    version (1), worker (its number), server, release (netd's version), max_frame (bytes; longer messages
                 end the connection), ping (seconds between pings), hang (seconds within which a ping has to be
                 answered), request_timeout, message_timeout (seconds), window (events of one session that are handed
                 over without waiting for the first to be done)

WORK. The daemon numbers what it hands over with `n`, from 1 on and for this connection. The worker says of each `n`
when it is over: `done` when a handler has returned (or raised: that is the worker's to log), or where it has no such
handler; `response` for a request. `done` takes several at once.

    < session_opened   n, session {...}       a session that no worker has seen before is this worker's from now on
    < session          session {...}          the state of a session of this worker, or of one that is this worker's
                                              from now on (another one had it). No handler runs, nothing is answered
    < message          n, session (its id), data (str or bin)
    < session_closed   n, session (its id), token? (bin, the last), code, reason?: it is in no channel any more
    < request          n, request {method, target ("/path?query" as it came), headers [[name, value], bin, names in
                       lower case, in order], body? (bin), client? ("192.0.2.7:5000"), scheme? ("http"),
                       http_version? ("1.1")}
    < cancel           n: what it does is awaited no more (its time is up, its client has gone). It still has to end
    > done             n [numbers]
    > response         n, response {status? (200), headers? [[name, value], bin], body? (bin)}

    session            id, transport ("framed", "websocket", ...), address? (the client's "192.0.2.7:5000"), listener?,
                       name?, tags? {text: text}, opened? (seconds since the epoch), subject? (whom its token is for),
                       grant? (the name of the hub's token that it showed), token? (bin, what set_token set)

ORDER AND LIMITS. Events of one session are handed over in order, and its handlers have to run in that order, one after
the other. No more than `sessions` sessions have events handed over that are not done, each of them no more than
`window`, and there are no more than `requests` requests: whatever is handed over may therefore be begun at once,
and only what stands behind another event of its session waits. The rest waits in the daemon: of each session a
bounded number of messages, past which nothing more is read from its client. Every session is one worker's until it ends
or the worker goes. `session` comes again, before the next event, when something in it has changed.

When a worker goes, its sessions stay and become another worker's (`session`, not `session_opened`). What was handed
over and is not done is lost and counted: it may have happened, and it may be what brought the worker down. What was not
handed over goes to the other worker, in order. A session that resumes an earlier one (wire/messages.py) is closed under
the id that it had for a moment, and opened with the earlier one's.

VERBS. A worker may say these at any time, about any session. With `ref` (an integer of the worker's) they are answered
by `answer`, as soon as the hub has it and in no certain order, or by `error`; without, only by `error`, without `ref`.
What a handler said before its `done` or `response` has happened before that counts. A session that there is not is
no error: it may have gone a moment ago, and the value says so. Nothing is checked against permissions; the bounds
of the hub and the size limits of its namespaces hold. Where several daemons share a backplane, a worker has sessions of
its own daemon only, and its verbs are about those of all: what is wanted of a session of another one is done there, and
the value comes back. There a refusal of that daemon counts as false, and the token that its worker knows is the new one
from the next event on. Only `copy_session` and `info` know nothing of sessions of another daemon. While the backplane
is away, and where a daemon does not answer in time ([backplane] answers), the value is what is known here.

    > send               session, data (str or bin), priority?, ephemeral?       bool: it went out (true also where
                                                                                 another node has the session)
    > publish            channel, data (any), from? (a session's id), priority?, ephemeral?     int: sessions reached,
                         or none where it is under way between machines
    > direct             to (an id, "name:NAME", "tag:KEY=VALUE"), data (any), priority?, ephemeral?  int: so many too
    > broadcast          data (any), priority?, ephemeral?                                            int: so many too
    > subscribe          session, channel           bool: true where it did not hear it before
    > unsubscribe        session, channel           bool: true where it did hear it
    > copy_subscriptions source, target (channels)  int: all who hear the source now hear the target too: a union, and
                                                    the source goes on as it was. So many did not before. An error
                                                    where a bound keeps some from it: the others do all the same
    > copy_session       source, target (sessions)  int: the target hears what the source hears too. So many are new
    > set_token          session, token? (bin; absent or empty: none)      bool: there is such a session. It is kept
                         with the session, at most 8192 bytes. Where it is a token that the hub knows (hub.token, JWT),
                         the session may from now on what that permits, until none is set, which leaves it with what
                         anyone may; another one changes nothing of that. Before the answer comes `session`, if it is
                         this worker's: who waits for the answer before the next handler runs shows it the new token.
                         A session that resumes this one has the token too, but not what it permitted: set it again
    > close              session, code? (1000), reason?     bool: there was such a session. It cannot be resumed
    > presence           channel                    [{session, name?, transport?, tags?}]
    > history            channel, since? {epoch, offset}, limit? (100)   null, or {epoch, offset, messages [{data,
                                                    from?, offset?, time?}]}
    > info               session                    null, or session {...}
    < answer             ref, value
    < error              ref?, code (invalid, too-large, too-many, unsupported, denied, unavailable), message

priority is 0 to 255 (lower first, 128), ephemeral may be dropped where a receiver is slow. Data of any kind is a plain
value as wire/messages.py has it (at most 64 deep and 16384 values).

LIFE. The daemon pings every `ping` seconds; a worker that does not answer within `hang` seconds is hung, as is one that
does not read, and one that has not ended an `n` within `hang` seconds of its `cancel`. A request is cancelled after
`request_timeout`, what a session's handler does after `message_timeout`. Where the `cancel` came sooner, as the client
went away, the request still has its `request_timeout`, and `hang` after it, to end. A hung worker's connection ends
without more ado, and if the daemon started the process it is killed.

    < ping       n                             > pong       n
    > leave                                    the worker wants to go: no new work comes, its sessions become others',
                                               and when nothing is open any more it gets a goodbye
    < drain      seconds                       the daemon wants it to go: the same, within this time
    < goodbye    code, reason, retry?          nothing comes after it. retry: connecting again makes sense. Codes:
                                               version, invalid, too-large, denied, too-many, hung, drained, stopping

A connection that ends in another way is a crash: its requests are answered with 502.

EXAMPLES, read by the tests, in the notation of Python. `>` worker to daemon, `<` daemon to worker.

    > {"type": "hello", "version": 1, "name": "chat", "pid": 4711, "handlers": ["message", "http_request"]}
    < {"type": "welcome", "version": 1, "worker": 3, "server": "netd", "release": "0.1.0", "max_frame": 16777216,
       "ping": 5.0, "hang": 10.0, "request_timeout": 30.0, "message_timeout": 60.0, "window": 16}
    < {"type": "session_opened", "n": 1, "session": {"id": "3f0c", "transport": "websocket", "address": "192.0.2.7:1"}}
    < {"type": "session", "session": {"id": "3f0c", "transport": "framed", "name": "alpha", "token": b"t"}}
    < {"type": "message", "n": 2, "session": "3f0c", "data": "hello"}
    < {"type": "message", "n": 3, "session": "3f0c", "data": b"\\x00\\xff"}
    > {"type": "subscribe", "session": "3f0c", "channel": b"room", "ref": 1}
    < {"type": "answer", "ref": 1, "value": True}
    > {"type": "publish", "channel": b"room", "data": "hello", "from": "3f0c"}
    > {"type": "send", "session": "3f0c", "data": b"\\x00\\xff"}
    > {"type": "done", "n": [1, 2, 3]}
    < {"type": "request", "n": 4, "request": {"method": "POST", "target": "/auth?x=1", "headers": [[b"host", b"a"]],
       "body": b"{}", "client": "192.0.2.7:2"}}
    > {"type": "response", "n": 4, "response": {"status": 201, "headers": [[b"content-type", b"text/plain"]],
       "body": b"OK"}}
    > {"type": "direct", "to": "tag:device=alpha", "data": {"level": 1}, "priority": 0}
    > {"type": "broadcast", "data": [1, 2.5, None], "ephemeral": True}
    > {"type": "unsubscribe", "session": "3f0c", "channel": b"room"}
    > {"type": "copy_subscriptions", "source": b"room", "target": b"\\xff", "ref": 2}
    > {"type": "copy_session", "source": "3f0c", "target": "77aa"}
    > {"type": "set_token", "session": "3f0c", "token": b"secret", "ref": 3}
    > {"type": "presence", "channel": b"room", "ref": 4}
    < {"type": "answer", "ref": 4, "value": [{"session": "3f0c", "name": "alpha", "transport": "framed"}]}
    > {"type": "history", "channel": b"room", "since": {"epoch": "x7", "offset": 2}, "limit": 10, "ref": 5}
    < {"type": "answer", "ref": 5, "value": {"epoch": "x7", "offset": 3, "messages": [{"data": "hi", "offset": 3}]}}
    > {"type": "info", "session": "3f0c", "ref": 6}
    < {"type": "answer", "ref": 6}
    > {"type": "close", "session": "3f0c", "code": 1000, "reason": "enough"}
    < {"type": "error", "code": "too-large", "message": "cannot publish 70000 bytes to room: at most 65536", "ref": 7}
    < {"type": "session_closed", "n": 5, "session": "3f0c", "token": b"secret", "code": 1001, "reason": "gone"}
    < {"type": "cancel", "n": 5}
    < {"type": "ping", "n": 1}
    > {"type": "pong", "n": 1}
    > {"type": "leave"}
    < {"type": "drain", "seconds": 10.0}
    < {"type": "goodbye", "code": "drained", "reason": "the worker wanted to leave"}

Left out: who gets what (services/worker/pool.py), and what a user's code sees of it (netd/worker).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from netd.errors import ProtocolError
from netd.wire import plain
from netd.wire.framing import frame
from netd.wire.messages import MAX_CHANNEL, MAX_NAME, Client, CloseCode, Position

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
"""Of this protocol: what Hello.version and Welcome.version say."""
MAX_FRAME = 16 * 2**20
"""Bytes of the longest message by default, either way."""
MAX_APPLICATION_TOKEN = 8192
"""Bytes of what set_token sets."""
MAX_DONE = 4096
"""Numbers in one `done`."""

Handler = Literal["http_request", "session_opened", "message", "session_closed"]
GoodbyeCode = Literal["version", "invalid", "too-large", "denied", "too-many", "hung", "drained", "stopping"]

_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Number: TypeAlias = Annotated[int, Meta(ge=1, le=2**53 - 1)]
_Width: TypeAlias = Annotated[int, Meta(ge=1, le=2**20)]
_Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Id: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME)]
_Channel: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=MAX_CHANNEL)]
_Priority: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
_Headers: TypeAlias = list[tuple[bytes, bytes]]


class HttpRequest(Struct, frozen=True, omit_defaults=True):
    """One HTTP request as it came, its body complete.

    `target` is the path with its query, percent-encoded as it was; `headers` are in order, their names in lower case,
    as in ASGI; `client` is the address that counts ("192.0.2.7:5000", behind proxies that are trusted).
    """

    method: str
    target: str
    headers: _Headers
    body: bytes = b""
    client: str = ""
    scheme: str = "http"
    http_version: str = "1.1"


class HttpResponse(Struct, frozen=True, omit_defaults=True):
    """The answer to one. Whoever sends it puts content-length there and leaves the connection's own headers out."""

    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: _Headers = msgspec.field(default_factory=list)
    body: bytes = b""


class SessionState(Struct, frozen=True, omit_defaults=True):
    """What a worker is told of a session."""

    id: str
    transport: str = ""
    address: str = ""
    listener: str = ""
    name: str | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    opened: float = 0.0
    subject: str | None = None
    grant: str | None = None
    token: bytes | None = None


class Said(Struct, frozen=True, omit_defaults=True, rename={"from_": "from"}):
    """A message of a channel's history."""

    data: Any
    from_: str | None = None
    offset: int | None = None
    time: float | None = None


class HistoryPage(Struct, frozen=True):
    """The value of `history`."""

    epoch: str
    offset: int
    messages: list[Said]


class _Tagged(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """One message, whichever way it goes."""


class _Verb(_Tagged, frozen=True, kw_only=True):
    """What a worker asks for."""

    ref: _Count | None = None


class _Sending(_Verb, frozen=True, kw_only=True):
    priority: _Priority = 128
    ephemeral: bool = False


# --- worker to daemon ------------------------------------------------------------------------------------------------


class Hello(_Tagged, frozen=True, tag="hello"):
    version: Annotated[int, Meta(ge=0, le=65535)]
    name: _Name
    pid: _Count
    handlers: Annotated[list[Handler], Meta(max_length=16)]
    sessions: _Width = 64
    requests: _Width = 64
    library: Annotated[str, Meta(max_length=MAX_NAME)] = ""


class Done(_Tagged, frozen=True, tag="done"):
    n: Annotated[list[_Number], Meta(max_length=MAX_DONE)]


class Response(_Tagged, frozen=True, tag="response"):
    n: _Number
    response: HttpResponse


class Pong(_Tagged, frozen=True, tag="pong"):
    n: _Count


class Leave(_Tagged, frozen=True, tag="leave"):
    pass


class Send(_Sending, frozen=True, tag="send"):
    session: _Id
    data: Any


class Publish(_Sending, frozen=True, tag="publish", rename={"from_": "from"}):
    channel: _Channel
    data: Any
    from_: _Id | None = None


class SendDirect(_Sending, frozen=True, tag="direct"):
    to: Annotated[str, Meta(min_length=1, max_length=2 * MAX_NAME + 5)]
    data: Any


class SendBroadcast(_Sending, frozen=True, tag="broadcast"):
    data: Any


class Subscribe(_Verb, frozen=True, tag="subscribe"):
    session: _Id
    channel: _Channel


class Unsubscribe(_Verb, frozen=True, tag="unsubscribe"):
    session: _Id
    channel: _Channel


class CopySubscriptions(_Verb, frozen=True, tag="copy_subscriptions"):
    source: _Channel
    target: _Channel


class CopySession(_Verb, frozen=True, tag="copy_session"):
    source: _Id
    target: _Id


class SetToken(_Verb, frozen=True, tag="set_token"):
    session: _Id
    token: Annotated[bytes, Meta(max_length=MAX_APPLICATION_TOKEN)] | None = None


class CloseSession(_Verb, frozen=True, tag="close"):
    session: _Id
    code: Annotated[int, Meta(ge=1000, le=4999)] = 1000
    reason: Annotated[str, Meta(max_length=123)] = ""


class AskPresence(_Verb, frozen=True, tag="presence"):
    channel: _Channel


class AskHistory(_Verb, frozen=True, tag="history"):
    channel: _Channel
    since: Position | None = None
    limit: _Count = 100


class AskInfo(_Verb, frozen=True, tag="info"):
    session: _Id


# --- daemon to worker ------------------------------------------------------------------------------------------------


class Welcome(_Tagged, frozen=True, tag="welcome"):
    version: int
    worker: int
    server: str
    release: str
    max_frame: int
    ping: float
    hang: float
    request_timeout: float
    message_timeout: float
    window: int


class SessionOpened(_Tagged, frozen=True, tag="session_opened"):
    n: _Number
    session: SessionState


class SessionKnown(_Tagged, frozen=True, tag="session"):
    session: SessionState


class Message(_Tagged, frozen=True, tag="message"):
    n: _Number
    session: str
    data: Any


class SessionClosed(_Tagged, frozen=True, tag="session_closed"):
    n: _Number
    session: str
    token: bytes | None = None
    code: int = 1000
    reason: str = ""


class Request(_Tagged, frozen=True, tag="request"):
    n: _Number
    request: HttpRequest


class Cancel(_Tagged, frozen=True, tag="cancel"):
    n: _Number


class Answer(_Tagged, frozen=True, tag="answer"):
    ref: _Count
    value: Any = None


class Error(_Tagged, frozen=True, tag="error"):
    code: str
    message: str
    ref: _Count | None = None


class Ping(_Tagged, frozen=True, tag="ping"):
    n: _Count


class Drain(_Tagged, frozen=True, tag="drain"):
    seconds: _Seconds


class Goodbye(_Tagged, frozen=True, tag="goodbye"):
    code: str
    reason: str = ""
    retry: bool = False


Verb: TypeAlias = (
    Send
    | Publish
    | SendDirect
    | SendBroadcast
    | Subscribe
    | Unsubscribe
    | CopySubscriptions
    | CopySession
    | SetToken
    | CloseSession
    | AskPresence
    | AskHistory
    | AskInfo
)
FromWorker: TypeAlias = Hello | Done | Response | Pong | Leave | Verb
ToWorker: TypeAlias = (
    Welcome
    | SessionOpened
    | SessionKnown
    | Message
    | SessionClosed
    | Request
    | Cancel
    | Answer
    | Error
    | Ping
    | Drain
    | Goodbye
)

_from_worker: Callable[[bytes], FromWorker] = msgspec.msgpack.Decoder(FromWorker).decode
_to_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
_encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode


def decode_from_worker(payload: bytes) -> FromWorker:
    """What a worker says. Raises ProtocolError (close 1007) and nothing else, whatever the bytes."""
    return _decode(_from_worker, payload)  # type: ignore[no-any-return]


def decode_to_worker(payload: bytes) -> ToWorker:
    """What a daemon says. Raises ProtocolError (close 1007) and nothing else, whatever the bytes."""
    return _decode(_to_worker, payload)  # type: ignore[no-any-return]


class _Greeting(Struct):
    type: str = ""
    version: int = VERSION


_greeting: Callable[[bytes], _Greeting] = msgspec.msgpack.Decoder(_Greeting).decode


def version_of(payload: bytes) -> int:
    """What a hello or a welcome says of its version, also where another version has given it another shape; VERSION for
    anything else."""
    try:
        plain.check_messagepack(payload, bounded=False)
        greeting = _greeting(payload)
    except (ValueError, RecursionError):
        return VERSION
    return greeting.version if greeting.type in ("hello", "welcome") else VERSION


def encode(message: FromWorker | ToWorker) -> bytes:
    """A message as it goes on the wire, its length in front. Raises ProtocolError (origin "local") for data that has no
    form there. Whether it is longer than `max_frame` (4 bytes less count) is its caller's to see.
    """
    try:
        return frame(_encode(message))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot write a message: {str(error)[:200]}", origin="local") from None


def _decode(decode: Callable[[bytes], Any], payload: bytes) -> Any:
    try:
        # what a worker returns of headers, or is told of a history, is many values
        plain.check_messagepack(payload, bounded=False)
        message = decode(payload)
        if (check := _CHECKS.get(type(message))) is not None:
            check(message.data)
    except RecursionError:
        reason = "nests too deep"
    except ValueError as error:  # msgspec's errors are
        reason = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
    else:
        return message
    raise ProtocolError(f"cannot read the message: {reason}", close=CloseCode.INVALID)


def _check_text_or_bytes(data: Any) -> None:
    if type(data) not in (str, bytes):
        raise ValueError("`data` is neither text nor bytes")


_CHECKS: dict[type, Callable[[Any], None]] = {
    **dict.fromkeys((Send, Message), _check_text_or_bytes),
    **dict.fromkeys((Publish, SendDirect, SendBroadcast), plain.check),
}

__all__ = [
    "Answer",
    "AskHistory",
    "AskInfo",
    "AskPresence",
    "Cancel",
    "Client",
    "CloseSession",
    "CopySession",
    "CopySubscriptions",
    "Done",
    "Drain",
    "Error",
    "FromWorker",
    "Goodbye",
    "GoodbyeCode",
    "Handler",
    "Hello",
    "HistoryPage",
    "HttpRequest",
    "HttpResponse",
    "Leave",
    "Message",
    "Ping",
    "Pong",
    "Position",
    "Publish",
    "Request",
    "Response",
    "Said",
    "Send",
    "SendBroadcast",
    "SendDirect",
    "SessionClosed",
    "SessionKnown",
    "SessionOpened",
    "SessionState",
    "SetToken",
    "Subscribe",
    "ToWorker",
    "Unsubscribe",
    "Verb",
    "Welcome",
    "decode_from_worker",
    "decode_to_worker",
    "encode",
    "version_of",
]
