"""The [framed] section: where framed TCP is served, in which manner, and what nobody may exceed. Pure.

Rules:
- every bound of the service stands here; what one *session* may do (messages a second, subscriptions) stands in [hub];
- limits are `live` and hold for sessions that are there already, from their next message on; what a listener *is*
  (address, mode, codec, handshake) is `replace`: sessions that are there keep what they came with;
- combinations that cannot work are refused here, by name, before anything is opened.

Left out: certificates, keys, codecs and verifiers are only named here; `service.py` loads them in `prepare`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, model_validator

from netd.section import Listen, live, parse_address, replace
from netd.services.framed.templates import Template
from netd.sessions.config import SessionLimits

_REFERENCE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
_CODEC_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")
_OPERATIONS_CODECS = ("auto", "json", "messagepack")

Mode = Literal["operations", "channel", "worker", "echo"]
Shaking = Literal["none", "optional", "required"]


def _codec(name: str) -> str:
    if not (_CODEC_NAME.match(name) or _REFERENCE.match(name)):
        raise ValueError(
            f'cannot use codec {name!r}: write "auto", "raw", "text", "json", "cbor", "messagepack", '
            'the name of an entry point, or "module:attribute"'
        )
    return name


def _reference(text: str) -> str:
    if text and not _REFERENCE.match(text):
        raise ValueError(f'cannot use verifier {text!r}: write "module:function"')
    return text


def _template(text: str) -> str:
    if text:
        Template(text)
    return text


class FramedListen(Listen):
    """One `[[framed.listen]]` entry. Sessions that are there keep the mode, codec and framing that they came with."""

    mode: Mode = replace("operations")
    """operations: the message vocabulary, each client a full session of the hub. channel: every payload is published to
    `channel`, and what others publish there comes back as plain payloads. worker: every payload goes to the application
    (a worker, see [worker]; without one it comes back), and what that says comes as plain payloads. echo: every payload
    comes back."""
    codec: Annotated[str, AfterValidator(_codec)] = replace("auto")
    """What payloads are: raw, text, json, cbor, messagepack, an entry point of the group "netd.codecs", or
    "module:attribute". auto: in operations JSON or MessagePack by the first byte of the session, elsewhere raw. In echo
    mode a payload that does not decode ends its connection with 1007, and what decodes comes back as it came."""
    framing: Literal["length", "none"] = replace("length")
    """length: four bytes of length (big endian), then the payload. none: whatever arrives at once is a payload."""
    channel: Annotated[str, AfterValidator(_template)] = replace("", max_length=255)
    """Of mode channel: where payloads are published, "devices:{tags.device}". {tags.X} is a tag of the handshake,
    {name} its tag "name", {session} the session's id, {listener} the listener's address. A client without one of those
    tags, or with a control character in one, is refused with 1008. The namespace is the template's own: of one with
    ":" no field may stand before the first of them; in one without, a value with ":" is refused like a missing one."""
    echo_own: bool = replace(False)
    """Of mode channel: a client also receives what it published itself."""

    token: str = replace("", max_length=64)
    """Of the modes operations, channel and worker: the name of a `[[hub.token]]` that every session of this listener
    has, without showing it. In the last two there is no other way to have one. While there is no such token, clients
    are refused (1013), those who are there are ended, and a health warning says so; a token whose secret was changed
    ends them too. In operations a client may show another one in its hello instead."""

    handshake: Shaking = replace("optional")
    """The first payload {"type": "handshake", "version": ..., "tags": ...}. none: it is a payload like any other.
    optional: taken as a handshake if it is one. required: whoever sends something else first is refused with 1008."""
    version: str = replace("", max_length=128)
    """The handshake's version has to be this one; "": any will do, or none. With `optional` it is asked of those who
    send a handshake."""
    keys: list[Path] = replace(default_factory=list, max_length=256)
    """Files with the Ed25519 public keys (PEM, DER, or base64 of the DER) that may sign handshakes. With any, every
    handshake has to be signed by one of them. Files that change are taken by the next handshake."""
    handshake_window: float = replace(30.0, ge=1, le=3600)
    """Seconds by which the time of a signed handshake may be off; within it a nonce is good once."""
    verifier: Annotated[str, AfterValidator(_reference)] = replace("", max_length=255)
    """ "module:function", called with the Handshake (netd.wire.handshake) and trusted to say whether it is good: what
    is not true refuses the client with 1008, and so does an exception. `def` runs in a thread, `async def` on Trio;
    either has what is left of `handshake_timeout`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.mode == "operations":
            if self.codec not in _OPERATIONS_CODECS:
                raise ValueError(
                    f"cannot use codec {self.codec!r} with mode 'operations': its messages are "
                    f"{', '.join(_OPERATIONS_CODECS)}"
                )
            if self.framing == "none":
                raise ValueError("cannot use framing 'none' with mode 'operations': nothing says where a message ends")
        if self.mode == "worker" and self.codec in ("json", "cbor", "messagepack"):
            raise ValueError(
                f"cannot use codec {self.codec!r} with mode 'worker': applications take text and bytes; "
                'write "raw" or "text"'
            )
        if self.mode == "channel" and not self.channel:
            raise ValueError("cannot use mode 'channel' without a channel: write for example \"devices:{tags.device}\"")
        if self.mode != "channel" and self.channel:
            raise ValueError(f"cannot publish to channel {self.channel!r} in mode {self.mode!r}: write mode 'channel'")
        if self.token and self.mode == "echo":
            raise ValueError(
                f"cannot use the token {self.token!r} in mode {self.mode!r}: its clients do nothing with it"
            )
        if self.framing == "none" and self.handshake != "none":
            raise ValueError(
                "cannot take a handshake with framing 'none': nothing says where it ends; write handshake = \"none\""
            )
        if self.handshake == "none" and self.channel and (missing := Template(self.channel).of_the_handshake):
            raise ValueError(f"cannot fill {missing[0]!r} into {self.channel!r} without a handshake")
        for what, given in (("keys", self.keys), ("a verifier", self.verifier)):
            if given and self.handshake != "required":
                raise ValueError(
                    f"cannot hold handshakes against {what} if clients may come without one: "
                    'write handshake = "required"'
                )
        if self.version and self.handshake == "none":
            raise ValueError(f"cannot ask for version {self.version!r} without a handshake")
        if self.interface is not None and isinstance(parse_address(self.address), Path):
            raise ValueError(f"cannot bind {self.address!r} to interface {self.interface!r}: it is a Unix socket")
        return self


_ROOM: Final = 64 * 1024
"""Bytes that have to fit into an outbox besides the longest frame: what is around a message's data, and its Close."""


class FramedConfig(SessionLimits):
    """The `[framed]` section: messaging over length-prefixed TCP. Times are in seconds, sizes in bytes."""

    listen: list[FramedListen] = replace(
        default_factory=lambda: [FramedListen(address="127.0.0.1:9000")], min_length=1, max_length=64
    )
    """Where framed clients connect. A removed entry drains the sessions that came by it, and no others."""

    # what a connection may cost
    max_frame: int = live(4 * 1024 * 1024, ge=64, le=256 * 1024 * 1024)
    """Bytes of one payload, inclusive; a frame that announces more ends its connection with 1009 before it is read."""
    ping_interval: float = live(30.0, ge=0, le=3600)
    """In operations mode a client silent for so long is sent a ping, which it need not answer; 0: never."""

    # what may wait for a connection
    backpressure: int = live(5 * 1024 * 1024, ge=64 * 1024, le=1024**3)
    """Bytes that may wait for one client to read; at least 64 KiB more than `max_frame`. Past half of it the notice
    `backpressure` is sent, below an eighth `drain`. A message that is larger by itself is dropped for this client. An
    echo is never lost: past half of it nothing more is read from its client."""

    @model_validator(mode="after")
    def _has_room_for_a_frame(self) -> Self:
        if self.backpressure < self.max_frame + _ROOM:
            raise ValueError(
                f"cannot let {self.backpressure} bytes wait for a client (backpressure) where one frame may have "
                f"{self.max_frame} (max_frame): write at least {self.max_frame + _ROOM}, or a smaller max_frame"
            )
        return self
