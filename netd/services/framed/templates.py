"""The channel that a plain client is given: "devices:{tags.device}" filled with what is known of it. Pure.

Rules:
- fields are {tags.X}, {name}, {session} and {listener}; "{{" and "}}" are braces; nothing else of Python's format
  language is understood;
- a field that is not known, or is empty, fills nothing: `fill` says which one is missing;
- a client must not choose the namespace, which is what stands before a channel's first ":": in a template that has ":"
  no field may stand before it, and in one without no value may bring one;
- a value with control characters is refused;
- whether the client may use the channel is not asked here: that is the hub's.
"""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING

from netd.errors import ProtocolError
from netd.wire.messages import MAX_CHANNEL, CloseCode

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIELDS = ("name", "session", "listener")


class Template:
    """A channel name with fields. Raises ValueError with a sentence for the person who wrote it."""

    __slots__ = ("_open", "_parts", "fields")

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"cannot use channel {text!r}: {str(error).lower()}") from None
        for literal, field, form, conversion in parts:
            if field is not None and (form or conversion or not _is_field(field)):
                raise ValueError(
                    f"cannot use channel {text!r}: {{{field}}} is none of {{tags.NAME}}, {{name}}, {{session}}, "
                    "{listener}"
                )
            self._parts.append((literal, field))
        self._open = all(":" not in literal for literal, _ in self._parts)
        """Nothing in it ends the namespace: a value could."""
        if self._open and any(field == "listener" for _, field in self._parts):
            raise ValueError(
                f'cannot use channel {text!r}: {{listener}} has a ":", and what is before it would be the namespace; '
                'write for example "ports:{listener}"'
            )
        ahead, first = "", None
        for literal, first in self._parts:
            ahead += literal
            if first is not None:
                break
        if ":" not in ahead and not self._open:
            raise ValueError(
                f"cannot use channel {text!r}: its clients would choose the namespace; write a namespace's name and "
                f'":" in front of {{{first}}}'
            )
        self.fields = tuple(field for _, field in self._parts if field is not None)
        """In their order, "tags.device"."""
        if not text:
            raise ValueError("cannot use an empty channel")

    @property
    def of_the_handshake(self) -> list[str]:
        """The fields that only a handshake tells."""
        return [field for field in self.fields if field == "name" or field.startswith("tags.")]

    def fill(self, *, session: str, name: str | None, listener: str, tags: Mapping[str, str]) -> bytes:
        """The channel's name. Raises ProtocolError (1008) when a field is not known, or the name gets too long."""
        known = {"session": session, "name": name or "", "listener": listener}
        out = []
        for literal, field in self._parts:
            out.append(literal)
            if field is None:
                continue
            value = known[field] if field in known else tags.get(field.removeprefix("tags."), "")
            if not value:
                raise ProtocolError(
                    f"cannot tell the channel of this client: its handshake has no {field}", close=CloseCode.POLICY
                )
            if any(sign < " " or "\x7f" <= sign <= "\x9f" for sign in value):
                raise ProtocolError(
                    f"cannot tell the channel of this client: its {field} has control characters",
                    close=CloseCode.POLICY,
                )
            if self._open and ":" in value:
                raise ProtocolError(
                    f'cannot tell the channel of this client: its {field} has a ":", which would choose a namespace',
                    close=CloseCode.POLICY,
                )
            out.append(value)
        channel = "".join(out).encode("utf-8", "surrogatepass")
        if len(channel) > MAX_CHANNEL:
            raise ProtocolError(
                f"cannot use a channel of {len(channel)} bytes: at most {MAX_CHANNEL}", close=CloseCode.POLICY
            )
        return channel


def _is_field(field: str) -> bool:
    return field in _FIELDS or (field.startswith("tags.") and len(field) > len("tags."))
