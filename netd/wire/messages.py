"""The message vocabulary of every transport, and its wire specification. Sans-IO; msgspec structs, tagged unions.

    request = decode_request(payload, "json")          event = decode_event(payload, "messagepack")
    payload = encode(message, "json")

FORMATS. A message is one map, in JSON (RFC 8259, UTF-8) or in MessagePack, alone in its payload: a frame (u32 big-
endian length, then the payload), a WebSocket message (text: JSON, binary: MessagePack), a frame on a QUIC stream. A
client speaks the format of its first payload (`{` or white space begins JSON, anything else MessagePack), and answers
come in it. Fields may stand in any order. Unknown fields are passed over, of a field given twice the last one counts,
and one marked ? may be left out. Times are seconds, but `ts`, which is its sender's own business: ms by custom.

TEXT AND BYTES. A channel is named by 1 to 255 bytes: `channel` where they are UTF-8, else `channel64`. Data is `data`
if it is text or any JSON value, and `data64` if it is bytes. A field with 64 is base64 (RFC 4648 section 4, padded) in
JSON and bin in MessagePack, where `data` may be bin as well. Of each pair exactly one is there. C stands for `channel`
or `channel64` below, and D for `data` or `data64`. `data` nests at most 64 deep, with at most 16384 values in lists
and maps; its integers fit 64 bits, its floats are finite, the keys of its maps are text; no ext. Bin deeper inside
`data` is base64 text to those who get JSON.

CLIENT TO DAEMON. Any may have ref? (text of at most 128, or an integer below 2**53), and is then answered by ok, error
or what it asks for, with the same `ref`. Those with D, and text, may have priority? (0 to 255, lower first, 128) and
ephemeral? (may be dropped when a receiver is slow, false). Priorities order direct messages, broadcasts, and messages
that have no offset; those with an offset come in the order of their offsets, whatever their priority.

    hello        version (1), name?, token?, tags? (text to text, 32 at most, no "=" in a key), resume? (from an earlier
                 welcome)
    refresh      token: in the place of the one that the session has, and for the same subject
    subscribe    C, recover? {epoch, offset}: also what came after that position; pattern? (false: as the name says)
    unsubscribe  C
    publish      C, D
    direct       to (a session's id, "name:NAME" or "tag:KEY=VALUE"), D
    broadcast    D
    text         text: to the application                 binary     D, bytes: to the application
    list         C?                                       presence   C
    history      C, since? {epoch, offset}, limit?
    ping, pong   ts, pad? (ping: to be ignored)           close      code? (1000), reason?

A NAME AND TAGS OF A HELLO ARE CLAIMS, which nobody checks: other sessions may have the same ones, and "name:NAME" and
"tag:KEY=VALUE" reach all of them. Tags that a token or a signed handshake gives win over them. Who must reach one
session alone names its id.

DAEMON TO CLIENT. `from` is the id of the session that sent it, absent where none did. `epoch` and `offset` are there
where the channel has a history; another epoch is another history.

    welcome      session, server, version, heartbeat? (0: none), resume? (a secret, for one hello), expires?
    message      C, from?, D, offset?, epoch?, tags?, origin?
    direct, broadcast       from?, D                      joined, left   session, name?, C
    clients      ref?, clients [{session, name?, transport?, tags?}]
    presence     ref?, clients, C
    history      ref?, epoch, offset (the newest there is), messages [message], C
    text         text                                     binary     D
    ping, pong   ts, pad?
    ok           ref?; subscribe: C, epoch?, offset?, recovered?, pattern?; publish, direct, broadcast: delivered?
                 (sessions; none: it is under way between machines); refresh: expires?
    error        ref?, refresh?, message, and as code
                 invalid, denied, not-found, too-large, rate, unsupported, too-many, unavailable
    close        code? (1000), reason?, retry_after?: the connection ends behind it

`recovered` is false where something after the position to recover from is gone, is too much, or may not be read by this
session: it goes on from the position it is told. A history has as many messages as fit (the first after `since`, else
the newest), and at least one: who wants more asks again with another `since`. Joined and left are hints: only those who
may ask who is there are told, not where much waits for them, and not of all when many come and go.

`expires` is in how many seconds the token does, where it does. A session whose token has expired, or counts no more
since a reload, stays, without it: it is told with an error that has "refresh":true and no `ref`, and then of each
subscription that this ends, and may refresh or say hello again.

PATTERNS. Where a channel's namespace has wildcards (hub.namespace.N.wildcards, off unless configured), a name is a
pattern if what follows the namespace and its ":", divided by ".", has the token `*`, or `>` as its last. `*` stands for
exactly one token, `>` for one or more. Tokens may be empty, the namespace is literal, and elsewhere both are bytes like
any. Where the namespace has none such names are ordinary channels, as they always were: a client that wants a pattern
or nothing says "pattern":true, and is refused then (unsupported). The ok of a pattern has "pattern":true.

To subscribe to a pattern takes what each channel takes that it can match. It brings the messages of all of them, those
to come too, with the channel's own name, offset and epoch; a message that several subscriptions of a session match
comes once. It ends with unsubscribe and the same name. A pattern is no channel: publish is refused (invalid), history
too (unsupported), and nothing is recovered (asked to, the ok has "recovered":false). Who hears a channel through one is
not in its presence, and neither tells nor is told joined and left; presence and list of a pattern are those who
subscribed to just that. When a reload makes a name a pattern, or no pattern any more, subscriptions to it end with an
error that has C and no ref.

Where machines are one hub, messages of a channel that has a history come without an offset while they are out of touch,
but with an `origin`, to know them by if another machine has them too. An ok without `ref`, with C, epoch and offset,
then says where the channel is: nothing was missed if the epoch is the same. Before, a return may be "recovered":false.

Codes of close are those of RFC 6455 section 7.4.1, and 4008 too slow a reader, 4009 replaced by another connection,
4010 removed. After an error the connection stays.

EXAMPLES, read by the tests. `>` client to daemon, `<` daemon to client; below it the same in MessagePack, in hex, where
that says something; `=` the whole frame of the JSON above it.

    > {"type":"hello","version":1,"name":"alpha","tags":{"device":"alpha"}}
    < {"type":"welcome","session":"3f0c","server":"netd","version":"0.1.0","heartbeat":25.0,"resume":"c2VjcmV0"}
    < {"type":"welcome","session":"3f0c","server":"netd","version":"0.1.0","expires":3600.0}
    > {"type":"refresh","token":"eyJ.eyJ.c2ln","ref":3}
      83 a4 74797065 a7 72656672657368 a5 746f6b656e ac 65794a2e65794a2e6332 6c6e a3 726566 03
    < {"type":"ok","expires":3600.0,"ref":3}
      83 a4 74797065 a2 6f6b a7 65787069726573 cb 40ac200000000000 a3 726566 03
    > {"type":"subscribe","channel":"chat:room","recover":{"epoch":"x7","offset":2},"ref":1}
    < {"type":"ok","channel":"chat:room","epoch":"x7","offset":2,"recovered":true,"ref":1}
      86 a4 74797065 a2 6f6b a7 6368616e6e656c a9 636861743a726f6f6d a5 65706f6368 a2 7837 a6 6f6666736574 02
      a9 7265636f7665726564 c3 a3 726566 01
    > {"type":"publish","channel":"chat:room","data":"hi","ref":2}
      84 a4 74797065 a7 7075626c697368 a7 6368616e6e656c a9 636861743a726f6f6d a4 64617461 a2 6869 a3 726566 02
    < {"type":"message","channel":"chat:room","from":"3f0c","data":"hi","offset":3,"epoch":"x7"}
    < {"type":"ok","delivered":1,"ref":2}
    > {"type":"publish","channel64":"/wA=","data64":"aGk=","priority":0,"ephemeral":true}
      85 a4 74797065 a7 7075626c697368 a9 6368616e6e656c3634 c4 02 ff00 a6 646174613634 c4 02 6869
      a8 7072696f72697479 00 a9 657068656d6572616c c3
    > {"type":"publish","channel":"a","data":null}
      83 a4 74797065 a7 7075626c697368 a7 6368616e6e656c a1 61 a4 64617461 c0
    > {"type":"direct","to":"tag:device=alpha","data":{"level":[1,-2,2.5,true]}}
    < {"type":"direct","from":"3f0c","data":{"level":[1,-2,2.5,true]}}
    > {"type":"broadcast","data":"all"}
    < {"type":"broadcast","from":"3f0c","data":"all"}
    > {"type":"text","text":"to the application"}
    < {"type":"text","text":"to the application"}
    > {"type":"binary","data64":"AAH/"}
      82 a4 74797065 a6 62696e617279 a6 646174613634 c4 03 0001ff
    < {"type":"binary","data64":"AAH/"}
    > {"type":"list","ref":"a"}
    < {"type":"clients","clients":[{"session":"3f0c","name":"alpha","transport":"framed"}],"ref":"a"}
    > {"type":"presence","channel":"chat:room"}
    < {"type":"presence","clients":[],"channel":"chat:room"}
    > {"type":"history","channel":"chat:room","since":{"epoch":"x7","offset":2},"limit":10}
    < {"type":"history","epoch":"x7","offset":3,"messages":[],"channel":"chat:room"}
    < {"type":"history","epoch":"x7","offset":3,"messages":[{"type":"message","channel":"a","data":1}],"channel":"a"}
    < {"type":"joined","session":"77aa","name":"beta","channel":"chat:room"}
    < {"type":"left","session":"77aa","channel":"chat:room"}
    > {"type":"subscribe","channel":"chat:*.news","ref":3}
      83 a4 74797065 a9 737562736372696265 a7 6368616e6e656c ab 636861743a2a2e6e657773 a3 726566 03
    < {"type":"ok","channel":"chat:*.news","pattern":true,"ref":3}
      84 a4 74797065 a2 6f6b a7 6368616e6e656c ab 636861743a2a2e6e657773 a7 7061747465726e c3 a3 726566 03
    < {"type":"message","channel":"chat:a.news","from":"3f0c","data":"hi","offset":1,"epoch":"q2"}
    > {"type":"subscribe","channel":"chat:>","pattern":true}
      83 a4 74797065 a9 737562736372696265 a7 6368616e6e656c a6 636861743a3e a7 7061747465726e c3
    < {"type":"error","code":"denied","message":"cannot stay subscribed to ...","channel":"chat:>"}
    > {"type":"unsubscribe","channel":"chat:room"}
    > {"type":"ping","ts":1732190000000}
      82 a4 74797065 a4 70696e67 a2 7473 cf 000001934e91d380
      = 00000022 7b2274797065223a2270696e67222c227473223a313733323139303030303030307d
    < {"type":"pong","ts":1732190000000}
    < {"type":"error","code":"denied","message":"cannot publish to chat:room: ...","ref":2}
    < {"type":"error","code":"denied","message":"cannot go on with the token 'a': it has expired","refresh":true}
    < {"type":"error","code":"denied","message":"cannot subscribe to chat:room: ...","channel":"chat:room"}
    < {"type":"close","code":1001,"reason":"the daemon stops","retry_after":2.5}
    > {"type":"close"}

Over 600 lines, as the specification stands with the structs that it is of.
Left out: who may do what, and what follows from a message (hub/); bytes to payloads (framing.py).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from netd.errors import ProtocolError
from netd.wire import plain

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
"""Of this vocabulary: what Hello.version says."""
MAX_CHANNEL = 255
"""Bytes of a channel's name."""
MAX_NAME = 128
"""Characters of a session's name, of a tag's key and of its value."""
MAX_TAGS = 32
MAX_REF = 128
MAX_TOKEN = 8192
MAX_REASON = 123
"""Characters of a close reason; RFC 6455 section 5.5 leaves 123 bytes for it."""

Format = Literal["json", "messagepack"]
Data: TypeAlias = Any
"""What a message carries: str is text, bytes is binary, anything else a JSON-like value."""
Ref: TypeAlias = int | str
"""A client's own reference to a request of its."""


class CloseCode(IntEnum):
    """Why a connection ends; the numbers of RFC 6455 section 7.4.1 where it has one, used on every transport."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL = 1002
    UNSUPPORTED = 1003
    INVALID = 1007
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    TRY_LATER = 1013
    SLOW = 4008
    REPLACED = 4009
    KICKED = 4010


ERROR_CODES = ("invalid", "denied", "not-found", "too-large", "rate", "unsupported", "too-many", "unavailable")

# what a double counts exactly, so that JavaScript reads the same number
_Exact: TypeAlias = Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)]
_Ref: TypeAlias = _Exact | Annotated[str, Meta(max_length=MAX_REF)]
_Ts: TypeAlias = _Exact | Annotated[float, Meta(ge=-(2.0**53), le=2.0**53)]
_Short: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME)]
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CHANNEL)] | UnsetType
_Name64: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=MAX_CHANNEL)] | UnsetType
_Bytes: TypeAlias = bytes | UnsetType
_Tags: TypeAlias = Annotated[dict[_Short, _Short], Meta(max_length=MAX_TAGS)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]


class Position(Struct, frozen=True):
    """A place in a channel's history: what came after `offset` is newer. Another epoch is another history."""

    epoch: _Short
    offset: _Count


class _Told(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """What a daemon says of its own accord."""


class _Numbered(Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True):
    """A request, or an answer to one: `ref` is the client's own reference."""

    ref: _Ref | None = None


class _Reference(Struct, frozen=True):
    """Of any message, no more than its reference."""

    ref: _Ref | None = None


class _Sent(_Numbered, frozen=True, kw_only=True):
    """A request that carries data."""

    priority: Annotated[int, Meta(ge=0, le=255)] = 128
    ephemeral: bool = False


# --- client to daemon ------------------------------------------------------------------------------------------------


class Hello(_Numbered, frozen=True, tag="hello"):
    version: Annotated[int, Meta(ge=0, le=65535)] | _Short
    name: _Short | None = None
    token: Annotated[str, Meta(max_length=MAX_TOKEN)] | None = None
    tags: _Tags | None = None
    resume: _Short | None = None


class Refresh(_Numbered, frozen=True, tag="refresh"):
    token: Annotated[str, Meta(max_length=MAX_TOKEN)]


class Subscribe(_Numbered, frozen=True, tag="subscribe"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    recover: Position | None = None
    pattern: bool = False


class Unsubscribe(_Numbered, frozen=True, tag="unsubscribe"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class Publish(_Sent, frozen=True, tag="publish"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class Brief(Struct, frozen=True, tag_field="type", tag="publish", forbid_unknown_fields=True, gc=False):
    """A `Publish` as most are, and nothing else: what is read a thousand times over is read in half the time."""

    channel: Annotated[str, Meta(min_length=1, max_length=MAX_CHANNEL)]
    data: Data
    ref: _Ref | None = None


class _Never(Struct, tag_field="type", tag=""):
    """A `type` need not be there where there is but one: so here are two."""

    ref: Annotated[int, Meta(gt=0, lt=0)]


class SendDirect(_Sent, frozen=True, tag="direct"):
    to: Annotated[str, Meta(min_length=1, max_length=2 * MAX_NAME + 5)]
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class SendBroadcast(_Sent, frozen=True, tag="broadcast"):
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class Text(_Sent, frozen=True, tag="text"):
    text: str


class Binary(_Sent, frozen=True, tag="binary"):
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class ListClients(_Numbered, frozen=True, tag="list"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class AskPresence(_Numbered, frozen=True, tag="presence"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class AskHistory(_Numbered, frozen=True, tag="history"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    since: Position | None = None
    limit: _Count | None = None


# --- both ways -------------------------------------------------------------------------------------------------------


class Ping(_Numbered, frozen=True, tag="ping"):
    ts: _Ts
    pad: str | None = None


class Pong(_Numbered, frozen=True, tag="pong"):
    ts: _Ts


class Close(_Numbered, frozen=True, tag="close"):
    code: Annotated[int, Meta(ge=1000, le=4999)] = 1000
    reason: Annotated[str, Meta(max_length=MAX_REASON)] = ""
    retry_after: _Seconds | None = None


# --- daemon to client ------------------------------------------------------------------------------------------------


class Welcome(_Told, frozen=True, tag="welcome"):
    session: str
    server: str
    version: str
    heartbeat: _Seconds = 0.0
    resume: str | None = None
    expires: _Seconds | None = None


class Message(_Told, frozen=True, tag="message", rename={"from_": "from"}):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    from_: str | None = None
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET
    offset: _Count | None = None
    epoch: str | None = None
    tags: _Tags | None = None
    origin: _Short | None = None


class Direct(_Told, frozen=True, tag="direct", rename={"from_": "from"}):
    from_: str | None = None
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class Broadcast(_Told, frozen=True, tag="broadcast", rename={"from_": "from"}):
    from_: str | None = None
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class Joined(_Told, frozen=True, tag="joined"):
    session: str
    name: str | None = None
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class Left(_Told, frozen=True, tag="left"):
    session: str
    name: str | None = None
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class Client(Struct, frozen=True, omit_defaults=True):
    session: str
    name: str | None = None
    transport: str = ""
    tags: _Tags | None = None


class Clients(_Numbered, frozen=True, tag="clients"):
    clients: list[Client]


class Presence(_Numbered, frozen=True, tag="presence"):
    clients: list[Client]
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class History(_Numbered, frozen=True, tag="history"):
    epoch: str
    offset: _Count
    messages: list[Message]
    channel: _Name = UNSET
    channel64: _Name64 = UNSET


class TextEvent(_Told, frozen=True, tag="text"):
    text: str


class BinaryEvent(_Told, frozen=True, tag="binary"):
    data: Data | UnsetType = UNSET
    data64: _Bytes = UNSET


class Ok(_Numbered, frozen=True, tag="ok"):
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    epoch: str | None = None
    offset: _Count | None = None
    recovered: bool | None = None
    pattern: bool = False
    delivered: _Count | None = None
    expires: _Seconds | None = None


class Error(_Numbered, frozen=True, tag="error"):
    code: str
    message: str
    channel: _Name = UNSET
    channel64: _Name64 = UNSET
    refresh: bool = False


Request: TypeAlias = (
    Hello
    | Refresh
    | Subscribe
    | Unsubscribe
    | Publish
    | SendDirect
    | SendBroadcast
    | Text
    | Binary
    | ListClients
    | AskPresence
    | AskHistory
    | Ping
    | Pong
    | Close
)
Event: TypeAlias = (
    Welcome
    | Message
    | Direct
    | Broadcast
    | Joined
    | Left
    | Clients
    | Presence
    | History
    | TextEvent
    | BinaryEvent
    | Ping
    | Pong
    | Ok
    | Error
    | Close
)

_read_json: Callable[[bytes], Request] = msgspec.json.Decoder(Request).decode
_read_messagepack: Callable[[bytes], Request] = msgspec.msgpack.Decoder(Request).decode

_read_brief_messagepack: Callable[[bytes], Brief] = msgspec.msgpack.Decoder(Brief | _Never).decode


def _decode_messagepack(payload: bytes) -> Request:
    plain.check_messagepack(payload)
    return _read_messagepack(payload)


def _decode_brief_messagepack(payload: bytes) -> Brief:
    plain.check_messagepack(payload)
    return _read_brief_messagepack(payload)


UNCHECKED: dict[Format, Callable[[bytes], Request]] = {"json": _read_json, "messagepack": _decode_messagepack}
"""`decode_request` without `check_request`, for those who have thousands. They raise ValueError and RecursionError."""
BRIEFLY: dict[Format, Callable[[bytes], Brief]] = {
    "json": msgspec.json.Decoder(Brief | _Never).decode,
    "messagepack": _decode_brief_messagepack,
}
"""They raise ValueError and RecursionError for whatever is not brief. Data that is neither text nor bytes was not
looked at, nor how many bytes a channel has."""
_EVENTS: dict[Format, Callable[[bytes], Any]] = {
    "json": msgspec.json.Decoder(Event).decode,
    "messagepack": msgspec.msgpack.Decoder(Event).decode,
}
_REFERENCES: dict[Format, Callable[[bytes], _Reference]] = {
    "json": msgspec.json.Decoder(_Reference).decode,
    "messagepack": msgspec.msgpack.Decoder(_Reference).decode,
}
_ENCODERS: dict[Format, Callable[[Any], bytes]] = {
    "json": msgspec.json.Encoder().encode,
    "messagepack": msgspec.msgpack.Encoder().encode,
}


def decode_request(payload: bytes, format: Format) -> Request:
    """What a client asks for. Raises ProtocolError (close 1007) and nothing else, whatever the bytes."""
    try:
        request = UNCHECKED[format](payload)
        if (check := _CHECKS.get(type(request))) is not None:
            check(request)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise unreadable("request", error) from None
    return request


def check_request(request: Request) -> None:
    """What the types of the fields do not say. Raises ValueError."""
    if (check := _CHECKS.get(type(request))) is not None:
        check(request)


def ref_of(payload: bytes, format: Format) -> Ref | None:
    """The reference of a request that could not be read, where at least that can be: its error then has it too."""
    try:
        return _REFERENCES[format](payload).ref
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def decode_event(payload: bytes, format: Format) -> Event:
    """What a daemon says. Raises ProtocolError (close 1007) and nothing else, whatever the bytes."""
    try:
        if format == "messagepack":
            plain.check_messagepack(payload, bounded=False)
        event: Event = _EVENTS[format](payload)
        if (check := _CHECKS.get(type(event))) is not None:
            check(event)
    except (ValueError, RecursionError) as error:
        raise unreadable("event", error) from None
    return event


def encode(message: Request | Event, format: Format) -> bytes:
    """The payload of a message. Raises ProtocolError (origin "local") for `data` that the format has no form for.

    Whatever was decoded can be encoded in both formats. NaN and infinity, which only our own code could put there, are
    null in JSON.
    """
    try:
        return _ENCODERS[format](message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"cannot write a message as {format}: {str(error)[:200]}", origin="local") from None


def channel_of(message: Any) -> bytes:
    """The name of a message's channel. Of `list` and `ok` only where they have one."""
    channel = message.channel
    return message.channel64 if channel is UNSET else channel.encode()  # type: ignore[no-any-return]


def data_of(message: Any) -> Data:
    """What a message carries, whichever field it came in."""
    if isinstance(message, (Text, TextEvent)):
        return message.text
    data = message.data
    return message.data64 if data is UNSET else data


def channel_fields(channel: bytes) -> dict[str, Any]:
    """The keyword of the constructors that names this channel."""
    try:
        return {"channel": channel.decode()}
    except UnicodeDecodeError:
        return {"channel64": channel}


def data_fields(data: Data) -> dict[str, Any]:
    """The keyword of the constructors that takes this data."""
    return {"data64": bytes(data)} if isinstance(data, (bytes, bytearray, memoryview)) else {"data": data}


def sniff(first: bytes) -> Format:
    """The format of whoever sends this as the first payload."""
    return "json" if first.startswith(_JSON_BEGINS) else "messagepack"


_JSON_BEGINS = (b"{", b" ", b"\t", b"\r", b"\n")


# --- what msgspec does not check -------------------------------------------------------------------------------------


def unreadable(what: str, error: Exception) -> ProtocolError:
    """What a peer is told of bytes that were not read for this reason."""
    # msgspec's errors quote what the peer sent
    reason = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
    if isinstance(error, RecursionError):
        reason = "nests too deep"
    return ProtocolError(f"cannot read the {what}: {reason}", close=CloseCode.INVALID)


def _check_channel(message: Any) -> None:
    if message.channel is UNSET and message.channel64 is UNSET:
        raise ValueError("neither `channel` nor `channel64` is there")
    _check_maybe_channel(message)


def _check_maybe_channel(message: Any) -> None:
    channel = message.channel
    if channel is not UNSET:
        if message.channel64 is not UNSET:
            raise ValueError("`channel` and `channel64` are both there")
        if not channel.isascii() and len(channel.encode()) > MAX_CHANNEL:
            raise ValueError(f"`channel` has more than {MAX_CHANNEL} bytes")


def _check_data(message: Any) -> None:
    data = message.data
    if data is UNSET:
        if message.data64 is UNSET:
            raise ValueError("neither `data` nor `data64` is there")
    elif message.data64 is not UNSET:
        raise ValueError("`data` and `data64` are both there")
    elif type(data) is not str:
        try:
            plain.check(data)
        except ValueError as error:
            raise ValueError(f"{error} - in `data`") from None


def _check_said(message: Any) -> None:
    """What is for a channel: most often text, for one whose name is ASCII, and then nothing can be wrong."""
    channel = message.channel
    if (
        type(message.data) is not str
        or message.data64 is not UNSET
        or message.channel64 is not UNSET
        or channel is UNSET
        or not channel.isascii()
    ):
        _check_channel(message)
        _check_data(message)


def _check_binary(message: Any) -> None:
    _check_data(message)
    if message.data is not UNSET and not isinstance(message.data, bytes):
        raise ValueError("`data` is not bytes; use `data64`")


def _check_messages(message: History) -> None:
    _check_channel(message)
    for each in message.messages:
        _check_said(each)


_CHECKS: dict[type, Callable[[Any], None]] = {
    **dict.fromkeys((Subscribe, Unsubscribe, AskPresence, AskHistory, Joined, Left, Presence), _check_channel),
    **dict.fromkeys((ListClients, Ok, Error), _check_maybe_channel),
    **dict.fromkeys((Publish, Message), _check_said),
    **dict.fromkeys((SendDirect, SendBroadcast, Direct, Broadcast), _check_data),
    **dict.fromkeys((Binary, BinaryEvent), _check_binary),
    History: _check_messages,
}
