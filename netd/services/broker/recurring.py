"""Handshakes that recur: heads that were understood and let in before, byte for byte, but for their key. Pure.

    head --without its key--> known? --> the key, permissions, drain are looked at anew --> 101
                                '-- no --> h11 and the site (doorstep.py), which remember it if anybody may have it

After a restart thousands come back at once, and they are programs of a few kinds that send a few heads. To parse one,
and to find out that its Host, Origin, path, parameters and subprotocols are welcome, is most of what a visit costs:
connect, upgrade and close took 234 us of CPU in all where nothing was remembered, and a third of that where it was.

Rules:
- h11 has parsed whatever stands here. The 24 characters between "Sec-WebSocket-Key: " and the end of that line are all
  that may differ, and only where they are 16 bytes in base64, as they were: h11 reads every other byte as it did
  (tests/services/broker/test_recurring.py asks h11);
- what was somebody's own is not kept: a head with a token, credentials or cookies, or that came by a listener whose
  proxies name the client. Nor is one that is longer than `MAX_HEAD`;
- what may change while the configuration stays is asked every time: permissions, drain, the address of this end if the
  Host is known by that alone. A new configuration knows none;
- when there are `MAX_HEADS`, the one that came first has to go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from netd.wire.upgrade import accept_key, is_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netd.wire.deflate import Agreed

MAX_HEADS: Final = 256
MAX_HEAD: Final = 2048
"""Bytes."""
_KEY: Final = b"\r\nSec-WebSocket-Key: "
_END: Final = b"\r\n\r\n"
_SIZE: Final = 24
_OWN: Final = frozenset((b"authorization", b"cookie", b"proxy-authorization"))


class Head(NamedTuple):
    """A head in two."""

    constant: bytes
    """All of it but the key."""
    key: bytes
    """16 bytes in base64."""


class Known(NamedTuple):
    """What a head is answered."""

    before: bytes
    """What is said before Sec-WebSocket-Accept's value, and `after` it."""
    after: bytes
    mode: Any
    """Of the session (modes.py)."""
    deflate: Agreed | None
    own: str | None
    """The address of this end for which the Host is welcome; None: whatever that is."""

    def answer(self, key: bytes) -> bytes:
        return self.before + accept_key(key) + self.after


def head_of(data: bytes) -> Head | None:
    """`data` in two, if it may be one whole head and nothing else, as short as those that are kept."""
    start = data.find(_KEY) + len(_KEY)
    stop = start + _SIZE
    if start < len(_KEY) or len(data) > MAX_HEAD or data[stop : stop + 2] != b"\r\n":
        return None
    if data.find(_END) != len(data) - len(_END):
        return None
    key = data[start:stop]
    return Head(data[:start] + data[stop:], key) if is_key(key) else None


class Recurring:
    """The heads that are known, under one configuration."""

    __slots__ = ("_config", "_known")

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._config: object = None

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes, config: object) -> tuple[Known, bytes] | None:
        """What a head was answered under this configuration, and the key that it has now."""
        if config is not self._config:
            self._known.clear()
            self._config = config
        at = data.find(_KEY)
        if at < 0:
            return None
        start = at + len(_KEY)
        stop = start + _SIZE
        # what is here is one whole head, as `head_of` saw: with the key out of it, so is this
        known = self._known.get(data[:start] + data[stop:])
        if known is None or not is_key(key := data[start:stop]):
            return None
        return known, key

    def put(self, head: Head, headers: Iterable[tuple[bytes, bytes]], said: bytes, mode: Any, **more: Any) -> None:
        """Remember what a head, whose headers are these, was answered."""
        if any(name in _OWN for name, _ in headers):
            return
        before, accept, after = said.partition(accept_key(head.key))
        if accept:
            if len(self._known) >= MAX_HEADS:
                del self._known[next(iter(self._known))]
            self._known[head.constant] = Known(before, after, mode, **more)
