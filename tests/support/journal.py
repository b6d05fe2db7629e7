"""The receiving end of journald's native protocol, written from its specification."""

from __future__ import annotations


def decode(entry: bytes) -> dict[str, str]:
    """A datagram's fields."""
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:  # the binary form: name, newline, 64-bit length, value, newline
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        entry = rest
    return fields
