"""A WebSocket decoder too simple to be wrong, for tests and the fuzzer: one frame after the other, nothing in between.

It has no limits and no compression, and looks at text when a message is complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.wire.websocket import Close, Messages, Ping, Pong

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.wire.websocket import Event

Said = tuple[str, Any]


def said(events: Iterable[Event]) -> list[Said]:
    """Events one by one, so that it does not show how they were gathered."""
    flat: list[Said] = []
    for event in events:
        match event:
            case Messages(text, payloads):
                assert payloads
                flat += [("text" if text else "binary", payload) for payload in payloads]
            case Ping(payload):
                flat.append(("ping", payload))
            case Pong(payload):
                flat.append(("pong", payload))
            case Close(code, reason):
                flat.append(("close", (code, reason)))
    return flat


def raw(first: int, payload: bytes, key: bytes | None = b"", *, length: int | None = None, size: int = 0) -> bytes:
    """A frame with any first byte and, where told, a `length` that is a lie, in `size` bytes (0, 2, 8).

    `key`: None for an unmasked frame, empty for one that is told by the payload.
    """
    if key == b"":
        key = bytes((17 * len(payload) + i * 91 + first) % 256 for i in range(4))
    length = len(payload) if length is None else length
    size = size or (0 if length < 126 else 2 if length < 65536 else 8)
    bit = 0 if key is None else 0x80
    head = bytes([first, bit | {0: length, 2: 126, 8: 127}[size]]) + (length.to_bytes(size) if size else b"")
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def simple(stream: bytes, *, masked: bool) -> tuple[list[Said], int | None]:
    """What the stream says, and the close code it ends with, None if it does not."""
    flat: list[Said] = []
    kind, parts = "", b""
    at = 0
    while at + 2 <= len(stream):
        first, second = stream[at], stream[at + 1]
        opcode, final, size = first & 15, first >> 7, second & 127
        if (second >> 7) != masked or (opcode > 7 and size > 125):
            return flat, 1002
        wrong = first & 0x70 or opcode not in (0, 1, 2, 8, 9, 10) or (opcode > 7 and not final)
        if wrong or (opcode == 0 and not kind) or (opcode in (1, 2) and kind):
            return flat, 1002
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(stream[at : at + width])
            if at + width > len(stream):
                return flat, None
            if size < (126 if width == 2 else 65536) or size >> 63:
                return flat, 1002
            at += width
        key = bytes(4)
        if masked:
            key = stream[at : at + 4]
            at += 4
        if at + size > len(stream):
            # text is looked at as it comes
            kind = kind or ("text" if opcode == 1 else "binary")
            if opcode < 8 and kind == "text" and not begins_utf8(parts + unmasked(stream[at:], key)):
                return flat, 1007
            return flat, None
        payload = unmasked(stream[at : at + size], key)
        at += size
        if opcode in (9, 10):
            flat.append(("ping" if opcode == 9 else "pong", payload))
        elif opcode == 8:
            code = int.from_bytes(payload[:2])
            if not payload:
                return [*flat, ("close", (1005, ""))], None
            if len(payload) == 1 or not (1000 <= code < 1004 or 1007 <= code < 1015 or 3000 <= code < 5000):
                return flat, 1002
            try:
                return [*flat, ("close", (code, payload[2:].decode()))], None
            except UnicodeDecodeError:
                return flat, 1007
        else:
            kind = kind or ("text" if opcode == 1 else "binary")
            parts += payload
            if kind == "text" and not (is_utf8(parts) if final else begins_utf8(parts)):
                return flat, 1007
            if final:
                flat.append((kind, parts))
                kind, parts = "", b""
    return flat, None


def unmasked(payload: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def begins_utf8(text: bytes) -> bool:
    """Whether something could follow that makes it UTF-8: said by trying what could."""
    followers = (b"", b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xbf", b"\xbf\x80", b"\xbf\x80\x80")
    return any(is_utf8(text + more) for more in followers)
