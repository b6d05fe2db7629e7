"""Names that stand for many channels: "room:a.*.c", "room:a.>". Sans-IO; messages.py has the specification.

    name = namespace ":" tokens, divided by "."     `*`: exactly one token     `>` as the last: one or more

A name without ":", or that begins with it, is all tokens. Left out: whether a namespace has wildcards at all (hub/).
"""

from __future__ import annotations


def is_wild(tokens: bytes) -> bool:
    """Whether a name, without its namespace, has a wildcard."""
    if b"*" not in tokens and not tokens.endswith(b">"):
        return False
    found = tokens.split(b".")
    return b"*" in found or found[-1] == b">"


def literal(tokens: bytes) -> bytes:
    """What every name that a pattern matches begins with; both without the namespace."""
    head = b""
    found = tokens.split(b".")
    for index, token in enumerate(found):
        if token == b"*" or (token == b">" and index == len(found) - 1):
            break
        head += token + b"."
    return head


def matches(pattern: bytes, channel: bytes) -> bool:
    """Whether a pattern, as a whole name, stands for this channel too."""
    namespace, wanted = _divided(pattern)
    other, found = _divided(channel)
    if namespace != other or len(found) < len(wanted):
        return False
    if wanted[-1] == b">":
        wanted.pop()
    elif len(found) != len(wanted):
        return False
    return all(want in (b"*", token) for want, token in zip(wanted, found, strict=False))


def _divided(name: bytes) -> tuple[bytes, list[bytes]]:
    namespace, _, rest = name.partition(b":")
    if not namespace or len(namespace) == len(name):
        return b"", name.split(b".")
    return namespace, rest.split(b".")
